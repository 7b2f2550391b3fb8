package keepalive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// echoID answers with the request's id, once its body has been read.
func echoID(x *faultserver.Exchange) {
	_, _ = x.ReadBody()
	x.Reply(http.StatusOK, x.Request.Header.Get("X-Request-Id"))
}

// TestCloseRace: the server ends a connection that has been idle for a while,
// without a word, just as the next request is sent.
func TestCloseRace(t *testing.T) {
	const idle = 30 * time.Millisecond
	srv := faultserver.New(t, echoID, faultserver.WithIdleTimeout(idle))
	for _, tt := range []idleRace{
		{http.MethodGet, "", false},
		{http.MethodPut, "", false},
		{http.MethodDelete, "", false},
		{http.MethodPost, "key", false},
		{http.MethodPost, "", true},
	} {
		t.Run(tt.method+tt.key, func(t *testing.T) {
			tr := open(t, keepalive.WithPoolKey(func(r *http.Request) string { return r.Header.Get("X-Worker") }))
			lost := tt.run(t, tr, srv, idle)
			t.Logf("lost %d of 400, %d retries", lost, tr.Stats().Retries)
		})
	}
	t.Run("POST with a shorter idle timeout", func(t *testing.T) {
		tr := open(t, keepalive.WithIdleConnTimeout(idle/2),
			keepalive.WithPoolKey(func(r *http.Request) string { return r.Header.Get("X-Worker") }))
		require.Zero(t, idleRace{http.MethodPost, "", false}.run(t, tr, srv, idle))
		require.Zero(t, tr.Stats().Retries)
	})
}

// idleRace is a kind of request whose connection the server is about to end.
type idleRace struct {
	method, key string
	mayFail     bool // it cannot be repeated
}

// run makes 400 requests and returns how many were lost. None may run twice
// unless it may be repeated.
func (r idleRace) run(t *testing.T, tr *keepalive.Transport, srv *faultserver.Server, idle time.Duration) int64 {
	t.Helper()
	var lost atomic.Int64
	crew(t, 400, 20, func(worker, i int) error {
		elapse(idle + time.Duration(i%21-10)*10*time.Microsecond)
		q := question{
			method: r.method, url: srv.URL + "/race", id: fmt.Sprint(t.Name(), i), worker: fmt.Sprint(worker),
		}
		if r.key != "" {
			q.key = q.id
		}
		if r.method != http.MethodGet {
			q.body = strings.NewReader("body")
		}
		err := q.own(t.Context(), tr)
		if err != nil && r.mayFail && errors.Is(err, keepalive.ErrServerClosedIdle) {
			lost.Add(1)
			err = nil
		}
		return err
	})
	ran := map[string]int{}
	for _, e := range srv.Log() {
		ran[e.ID]++
		if r.mayFail {
			require.Equal(t, 1, ran[e.ID], "%s ran twice", e.ID)
		}
	}
	return lost.Load()
}

// TestKeepAliveHintBehindARelay: requests at the server's own limit, 20 ms
// away.
func TestKeepAliveHintBehindARelay(t *testing.T) {
	t.Parallel()
	const idle = 2 * time.Second
	for _, tt := range []struct {
		name, header, method string
		mayFail              bool
	}{
		{"POST, announced", "Keep-Alive: timeout=2", http.MethodPost, false},
		{"POST, not announced", "X: y", http.MethodPost, true},
		{"PUT, not announced", "X: y", http.MethodPut, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := faultserver.New(t, func(x *faultserver.Exchange) {
				_, _ = x.ReadBody()
				x.Reply(http.StatusOK, x.Request.Header.Get("X-Request-Id"), tt.header)
			}, faultserver.WithIdleTimeout(idle))
			relay := faultserver.NewRelay(t, srv.Addr)
			relay.SetDelay(10*time.Millisecond, 10*time.Millisecond)
			tr := open(t, keepalive.WithPoolKey(func(r *http.Request) string { return r.Header.Get("X-Worker") }))
			var lost atomic.Int64
			crew(t, 120, 40, func(worker, i int) error {
				q := question{
					method: tt.method, url: "http://" + relay.Addr + "/", id: fmt.Sprint(t.Name(), i),
					worker: fmt.Sprint(worker), body: strings.NewReader("body"),
				}
				err := q.own(t.Context(), tr)
				if err != nil && tt.mayFail && errors.Is(err, keepalive.ErrServerClosedIdle) {
					lost.Add(1)
					err = nil
				}
				if i < 80 { // the last ones are followed by nothing
					elapse(idle + time.Duration(i%11-5)*10*time.Millisecond)
				}
				return err
			})
			t.Logf("lost %d of 120", lost.Load())
			ran := map[string]int{}
			for _, e := range srv.Log() {
				ran[e.ID]++
				require.False(t, tt.method == http.MethodPost && ran[e.ID] > 1, "%s ran twice", e.ID)
			}
		})
	}
}

// closeOnce is a request body that must not be read after it was closed.
type closeOnce struct {
	io.Reader
	t      *testing.T
	closed atomic.Int32
}

func (b *closeOnce) Read(p []byte) (int, error) {
	if b.closed.Load() > 0 {
		b.t.Error("the request body was read after Close")
	}
	return b.Reader.Read(p)
}

func (b *closeOnce) Close() error {
	b.closed.Add(1)
	return nil
}

// TestEarlyAnswer: the server refuses a large body before it has read it, and
// hangs up on the rest.
func TestEarlyAnswer(t *testing.T) {
	srv := faultserver.New(t, func(x *faultserver.Exchange) {
		_, _ = io.CopyN(io.Discard, x.Reader, 64<<10)
		x.Write("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
		x.Close() // with unread bytes: the kernel resets it
	})
	tr := open(t)
	big := bytes.Repeat([]byte("x"), 8<<20)
	answered := 0
	for range 100 {
		body := &closeOnce{Reader: io.MultiReader(bytes.NewReader(big)), t: t}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL, body)
		require.NoError(t, err)
		req.ContentLength = int64(len(big))
		resp, err := tr.RoundTrip(req)
		if err == nil {
			require.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
			answered++
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		require.Equal(t, int32(1), body.closed.Load())
	}
	t.Logf("%d of 100 answered", answered)
	require.GreaterOrEqual(t, answered, 99)
}

// TestVanishedConns: connections that lead nowhere, without an end, cost one
// request its timeout, not one for each.
func TestVanishedConns(t *testing.T) {
	for name, limit := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"response header timeout": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return keepalive.ContextWithOptions(ctx, keepalive.ResponseHeaderTimeout(300*time.Millisecond)), func() {}
		},
		"context deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 300*time.Millisecond)
		},
	} {
		t.Run(name, func(t *testing.T) {
			hold := make(chan struct{})
			srv := faultserver.New(t, func(x *faultserver.Exchange) {
				if x.Request.URL.Path == "/warm" {
					<-hold
				}
				echoID(x)
			})
			relay := faultserver.NewRelay(t, srv.Addr)
			tr := open(t)
			var warm sync.WaitGroup
			for i := range 20 {
				warm.Go(func() {
					q := question{method: http.MethodGet, url: "http://" + relay.Addr + "/warm", id: fmt.Sprint(i)}
					if err := q.own(t.Context(), tr); err != nil {
						t.Error(err)
					}
				})
			}
			srv.WaitRequests(20)
			close(hold)
			warm.Wait()
			relay.FreezeExisting()
			failed := 0
			for i := range 20 {
				ctx, cancel := limit(t.Context())
				err := question{method: http.MethodGet, url: "http://" + relay.Addr, id: fmt.Sprint("q", i)}.own(ctx, tr)
				cancel()
				if err != nil {
					failed++
				}
			}
			require.LessOrEqual(t, failed, 1)
		})
	}
}

// TestPeersHangUp: connections whose peers have gone are closed without any
// traffic.
func TestPeersHangUp(t *testing.T) {
	n := counts(500, 5000)
	srv := faultserver.New(t, echoID)
	tr := open(t, keepalive.WithMaxIdleConns(0), keepalive.WithMaxIdleConnsPerHost(0))
	ctx := keepalive.ContextWithOptions(t.Context(), keepalive.FreshConn())
	for i := range n {
		require.NoError(t, question{method: http.MethodGet, url: srv.URL, id: fmt.Sprint(i)}.own(ctx, tr))
	}
	require.Equal(t, n, tr.Stats().Idle)
	start := time.Now()
	srv.CloseAll()
	closed := time.Now()
	require.Eventually(t, func() bool { return tr.Stats().Open == 0 }, 10*time.Second, time.Millisecond)
	t.Logf("%d connections: closed in %v, all gone %v later", n, closed.Sub(start), time.Since(closed))
	require.Equal(t, uint64(n), tr.Stats().Closed[keepalive.ClosePeerClosed])
}

// TestLateCancelsHitNobody: contexts that end while, or just after, their
// answer arrives, and bodies that are closed late, are nothing to the requests
// that follow on the same connections, in the same recycled memory.
func TestLateCancelsHitNobody(t *testing.T) {
	srv := faultserver.New(t, echoID)
	tr := open(t)
	var canceled atomic.Int64
	crew(t, counts(8000, 200000), 16, func(_, i int) error {
		ctx, cancel := context.WithCancel(t.Context())
		if i%2 == 0 {
			time.AfterFunc(time.Duration(i%40)*10*time.Microsecond, cancel)
		}
		q := question{method: http.MethodGet, url: srv.URL, id: fmt.Sprint(i)}
		err := q.own(ctx, tr)
		cancel()
		if i%2 == 0 && errors.Is(err, context.Canceled) {
			canceled.Add(1)
			err = nil
		}
		return err
	})
	t.Logf("%d canceled in time, %d connections", canceled.Load(), tr.Stats().Opened)
	require.Zero(t, tr.Stats().InUse)
}

// TestHandlerComesAfterTheRequest: what the client did before a request, the
// handler may see, and the other way round, as with net/http: the race detector
// must not accuse tests that share a variable with their httptest.Server.
func TestHandlerComesAfterTheRequest(t *testing.T) {
	var asked, seen int
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { seen = asked }))
	defer srv.Close()
	tr := open(t)
	for asked = range 5 {
		require.NoError(t, question{method: http.MethodGet, url: srv.URL}.own(t.Context(), tr))
		require.Equal(t, asked, seen)
	}
}
