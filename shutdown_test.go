package keepalive_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// busy is a Transport with a connection in every state there is: idle, in use
// before the head and in the body, being dialed, waited for, detached, and
// with a closed body that is being drained.
type busy struct {
	t   *testing.T
	srv *faultserver.Server
	tr  *keepalive.Transport

	letGo  func() // lets the server go on
	dialOn func() // lets the dial go on
	// results has what came of each request but the one whose body is open.
	results chan answered
	open    *http.Response // its body is read up to begin
	pipe    io.ReadWriteCloser
}

// answered is what came of a request.
type answered struct {
	name string
	err  error
}

const (
	perHost      = 5
	busyResults  = 1 + perHost + 2 // in use, those and the one that waits, dialing
	dialingHost  = "example.com"
	waitingsHost = "localhost"
)

// newBusy makes a Transport whose requests are all held up.
func newBusy(t *testing.T, start func(testing.TB, func(*faultserver.Exchange), ...faultserver.Option) *faultserver.Server) *busy {
	t.Helper()
	b := &busy{t: t, results: make(chan answered, busyResults)}
	hold, gate := make(chan struct{}), make(chan struct{})
	b.letGo = sync.OnceFunc(func() { close(hold) })
	b.dialOn = sync.OnceFunc(func() { close(gate) })
	b.srv = start(t, func(x *faultserver.Exchange) {
		switch x.Request.URL.Path {
		case "/open", "/drained":
			x.Write(lengthHead(2*len(begin)) + begin)
			<-hold
			x.Write(begin)
		case "/pipe":
			x.Write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			nc, br := x.Take()
			_, _ = io.Copy(nc, br)
		case "/held":
			<-hold
			echoID(x)
		default:
			echoID(x)
		}
	})
	b.tr = open(t, trusting(b.srv,
		keepalive.WithMaxConnsPerHost(perHost), keepalive.WithDrainLimit(64<<10, time.Minute),
		keepalive.WithDialContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
			if strings.HasPrefix(addr, dialingHost) {
				select {
				case <-gate:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			return new(net.Dialer).DialContext(ctx, network, b.srv.Addr)
		}))...)
	t.Cleanup(func() { // before open's and the server's
		b.letGo()
		b.dialOn()
		_ = b.pipe.Close()
	})
	b.open = beginGet(t, b.tr, b.srv.URL+"/open")
	b.pipe = b.upgrade()
	b.ask("in use", "/held", "127.0.0.1")
	for range perHost + 1 {
		b.ask("waiting", "/held", waitingsHost)
	}
	b.ask("dialing", "/late", dialingHost)
	require.NoError(t, beginGet(t, b.tr, b.srv.URL+"/drained").Body.Close())
	require.NoError(t, question{url: b.srv.URL, id: "idle"}.own(t.Context(), b.tr))
	b.settles(keepalive.Gauges{Open: 5 + perHost, Idle: 1, InUse: 3 + perHost, Detached: 1, Dialing: 1, Waiting: 2})
	b.srv.WaitRequests(5 + perHost) // all that can be sent has arrived
	return b
}

// settles waits for the gauges, and checks the books.
func (b *busy) settles(want keepalive.Gauges) {
	b.t.Helper()
	var s keepalive.Stats
	require.Eventually(b.t, func() bool {
		s = b.tr.Stats()
		return s.Gauges == want
	}, 10*time.Second, time.Millisecond, "want %+v", want)
	require.Equal(b.t, s.Opened, uint64(s.Open)+s.TotalClosed())
	require.EqualValues(b.t, s.Dials, s.Opened+s.DialErrors+uint64(s.Dialing))
}

func (b *busy) upgrade() io.ReadWriteCloser {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, b.srv.URL+"/pipe", http.NoBody)
	require.NoError(b.t, err)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := b.tr.RoundTrip(req)
	require.NoError(b.t, err)
	pipe, ok := resp.Body.(io.ReadWriteCloser)
	require.True(b.t, ok)
	return pipe
}

// ask makes a request in the background.
func (b *busy) ask(name, path, host string) {
	url := strings.Replace(b.srv.URL, "127.0.0.1", host, 1) + path
	go func() {
		b.results <- answered{name, question{url: url, id: name}.own(b.t.Context(), b.tr)}
	}()
}

// pipes checks that the detached connection works.
func (b *busy) pipes() {
	b.t.Helper()
	_, err := io.WriteString(b.pipe, "ping")
	require.NoError(b.t, err)
	got := make([]byte, 4)
	_, err = io.ReadFull(b.pipe, got)
	require.NoError(b.t, err)
	require.Equal(b.t, "ping", string(got))
}

// refuses checks that there are no new requests, and that theirs bodies are
// closed.
func (b *busy) refuses() {
	b.t.Helper()
	dials := b.tr.Stats().Dials
	body := &closeOnce{Reader: strings.NewReader("x"), t: b.t}
	req, err := http.NewRequestWithContext(b.t.Context(), http.MethodPost, b.srv.URL, body)
	require.NoError(b.t, err)
	_, err = b.tr.RoundTrip(req)
	require.ErrorIs(b.t, err, keepalive.ErrClosed)
	require.Equal(b.t, int32(1), body.closed.Load())
	require.Equal(b.t, dials, b.tr.Stats().Dials)
}

// ends closes what is still open; only the detached connection may be.
func (b *busy) ends() {
	b.t.Helper()
	b.settles(keepalive.Gauges{Open: 1, Detached: 1})
	for range 2 {
		require.NoError(b.t, b.tr.Close())
		require.NoError(b.t, b.tr.Shutdown(b.t.Context()))
	}
	b.tr.CloseIdleConnections()
	b.refuses()
	b.pipes()
	require.NoError(b.t, b.pipe.Close())
	b.settles(keepalive.Gauges{})
	b.letGo()
	b.srv.WaitOpen(0)
}

// TestShutdownWithEverything: it waits for all requests, to the end of their
// bodies, and none of them fails.
func TestShutdownWithEverything(t *testing.T) {
	for _, s := range schemes {
		t.Run(s.name, func(t *testing.T) {
			b := newBusy(t, s.start)
			down := make(chan error, 1)
			go func() { down <- b.tr.Shutdown(t.Context()) }()
			b.settles(keepalive.Gauges{Open: 4 + perHost, InUse: 3 + perHost, Detached: 1, Dialing: 1, Waiting: 2})
			b.refuses()
			waits := func(why string) {
				t.Helper()
				elapse(10 * time.Millisecond)
				select {
				case err := <-down:
					require.FailNow(t, "Shutdown did not wait for "+why, "%v", err)
				default:
				}
			}
			waits("anything")
			b.letGo()
			for range busyResults - 1 {
				require.NoError(t, (<-b.results).err)
			}
			waits("the dial")
			b.dialOn()
			require.Equal(t, answered{name: "dialing"}, <-b.results)
			b.settles(keepalive.Gauges{Open: 2, InUse: 1, Detached: 1})
			waits("the body")
			got, err := io.ReadAll(b.open.Body)
			require.NoError(t, err)
			require.Equal(t, begin, string(got))
			require.NoError(t, <-down)
			require.EqualValues(t, 1, b.tr.Stats().Drained)
			b.ends()
		})
	}
}

// TestShutdownGivesUp: the rest goes on when its context ends, and Close ends
// that.
func TestShutdownGivesUp(t *testing.T) {
	b := newBusy(t, faultserver.New)
	ctx, cancel := context.WithCancelCause(t.Context())
	down := make(chan error, 1)
	go func() { down <- b.tr.Shutdown(ctx) }()
	b.settles(keepalive.Gauges{Open: 4 + perHost, InUse: 3 + perHost, Detached: 1, Dialing: 1, Waiting: 2})
	cancel(errOwnCause)
	require.ErrorIs(t, <-down, errOwnCause)
	b.letGo()
	for range busyResults - 1 {
		require.NoError(t, (<-b.results).err)
	}
	require.NoError(t, b.tr.Close())
	require.ErrorIs(t, (<-b.results).err, keepalive.ErrClosed)
	_, err := io.ReadAll(b.open.Body)
	require.ErrorIs(t, err, keepalive.ErrClosed)
	b.ends()
}

// TestCloseWithEverything: all requests end at once, with ErrClosed.
func TestCloseWithEverything(t *testing.T) {
	for _, s := range schemes {
		t.Run(s.name, func(t *testing.T) {
			b := newBusy(t, s.start)
			reading := make(chan error, 1)
			go func() {
				_, err := io.ReadAll(b.open.Body)
				reading <- err
			}()
			var all sync.WaitGroup
			all.Go(func() {
				if err := b.tr.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			})
			for range 3 {
				all.Go(func() {
					if err := b.tr.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			for range busyResults {
				r := <-b.results
				require.ErrorIs(t, r.err, keepalive.ErrClosed, r.name)
			}
			require.ErrorIs(t, <-reading, keepalive.ErrClosed)
			require.NoError(t, b.open.Body.Close())
			b.ends()
		})
	}
}

// TestCloseAmidTraffic: requests of all kinds end with their own answer or
// with ErrClosed, whatever they were about when the end came. After Shutdown
// none that had begun fails.
func TestCloseAmidTraffic(t *testing.T) {
	for _, s := range schemes {
		for _, cut := range []bool{true, false} {
			t.Run(fmt.Sprint(s.name, "/cut ", cut), func(t *testing.T) {
				srv := s.start(t, func(x *faultserver.Exchange) {
					id := x.Request.Header.Get("X-Request-Id")
					_, _ = x.ReadBody()
					x.Write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(id[:1]))
					x.Write(chunk(id[1:]) + "0\r\n\r\n")
				})
				for round := range counts(6, 200) {
					tr := open(t, trusting(srv, keepalive.WithMaxConnsPerHost(8))...)
					var all sync.WaitGroup
					var done atomic.Int64
					for w := range 20 {
						all.Go(func() {
							for i := 0; ; i++ {
								q := question{method: http.MethodPost, url: srv.URL, id: fmt.Sprint("id", w, ".", i)}
								q.body = strings.NewReader(strings.Repeat("x", 20<<10*(i%2)))
								err := q.own(t.Context(), tr)
								if err == nil {
									done.Add(1)
									continue
								}
								if !errors.Is(err, keepalive.ErrClosed) || !cut && err != keepalive.ErrClosed {
									t.Errorf("%v", err)
								}
								return
							}
						})
					}
					eventually(t, func() bool { return done.Load() >= int64(round*3) })
					if cut {
						require.NoError(t, tr.Close())
					} else {
						require.NoError(t, tr.Shutdown(t.Context()))
					}
					all.Wait()
					require.Zero(t, tr.Stats().Gauges)
					require.NoError(t, tr.Close())
				}
			})
		}
	}
}

// TestShutdownLetsARequestTryAgain: a request under way may need another
// connection.
func TestShutdownLetsARequestTryAgain(t *testing.T) {
	hold := make(chan struct{})
	srv := faultserver.New(t, func(x *faultserver.Exchange) {
		if x.ConnIndex == 0 && x.ReqIndex == 1 {
			<-hold
			x.Close()
			return
		}
		echoID(x)
	})
	tr := open(t)
	require.NoError(t, question{url: srv.URL, id: "warm"}.own(t.Context(), tr))
	asked := make(chan error, 1)
	go func() { asked <- question{url: srv.URL, id: "again"}.own(t.Context(), tr) }()
	srv.WaitRequests(2)
	down := make(chan error, 1)
	go func() { down <- tr.Shutdown(t.Context()) }()
	eventually(t, func() bool {
		_, _, err := question{url: srv.URL, id: "new"}.ask(t.Context(), tr)
		return errors.Is(err, keepalive.ErrClosed)
	})
	close(hold)
	require.NoError(t, <-asked)
	require.NoError(t, <-down)
	require.EqualValues(t, 1, tr.Stats().Retries)
}
