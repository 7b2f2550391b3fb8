package keepalive_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// fill writes to a socket until its buffer is full.
func fill(t *testing.T, c syscall.RawConn) {
	t.Helper()
	p := make([]byte, 64<<10)
	for took := 1; took > 0; {
		elapse(20 * time.Millisecond) // the peer's side takes some of it
		took = 0
		require.NoError(t, c.Write(func(fd uintptr) bool {
			for err := error(nil); err == nil; {
				var n int
				n, err = syscall.Write(int(fd), p)
				took += max(n, 0)
			}
			return true
		}))
	}
}

// A request whose head does not fit, because the server has answered the one
// before without reading its body, still ends with its context.
func TestCancelWhileTheHeadIsWritten(t *testing.T) {
	hold := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		nc, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer nc.Close()
		_, _ = io.WriteString(rw, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		_ = rw.Flush()
		<-hold
	}))
	defer srv.Close()
	defer close(hold)
	var raw syscall.RawConn
	tr := open(t, keepalive.WithDialContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if tcp, ok := c.(*net.TCPConn); ok {
			raw, err = tcp.SyscallConn()
		}
		return c, err
	}))
	// In place of a long body, the test itself fills the socket.
	_, _, err := question{method: http.MethodPut, url: srv.URL, body: io.MultiReader(strings.NewReader("body"))}.ask(t.Context(), tr)
	require.NoError(t, err)
	require.Equal(t, 1, tr.Stats().Idle)
	fill(t, raw)
	ctx, cancel := context.WithTimeout(httptrace.WithClientTrace(t.Context(), new(httptrace.ClientTrace)), 20*time.Millisecond)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, _, err := question{method: http.MethodGet, url: srv.URL, id: strings.Repeat("x", 3500)}.ask(ctx, tr)
		failed <- err
	}()
	select {
	case err = <-failed:
	case <-time.After(10 * time.Second):
		require.NoError(t, tr.Close())
		t.Fatalf("not cancelled: %v", <-failed)
	}
	require.ErrorIs(t, err, context.DeadlineExceeded)
	e, ok := errors.AsType[*keepalive.Error](err)
	require.True(t, ok)
	require.Equal(t, keepalive.PhaseWrite, e.Phase)
}

// A dial function that looks at the socket by way of os.File.Fd makes it a
// blocking one. The process must go on while such a connection waits.
func TestBlockingSocket(t *testing.T) {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		tcp, _ := c.(*net.TCPConn)
		f, err := tcp.File()
		if err != nil {
			return nil, err
		}
		_ = f.Fd()
		return c, f.Close()
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		runtime.GC() // stops the world
		_, _ = io.WriteString(w, r.Header.Get("X-Request-Id"))
	}))
	defer srv.Close()
	tr := open(t, keepalive.WithDialContext(dial))
	for i := range 3 {
		require.NoError(t, question{method: http.MethodGet, url: srv.URL, id: fmt.Sprint(i)}.own(t.Context(), tr))
	}
}

// slowly answers at once, or says half of its answer 20 ms later.
func slowly(x *faultserver.Exchange) {
	_, _ = x.ReadBody()
	id := x.Request.Header.Get("X-Request-Id")
	const pause = 20 * time.Millisecond
	switch x.Request.URL.Path {
	case "/quick":
		x.Reply(200, id)
	case "/head":
		x.WriteParts(faultserver.Part{Pause: pause, Data: faultserver.Response(200, id)})
	case "/body":
		answer := faultserver.Response(200, id)
		x.WriteParts(faultserver.Part{Data: answer[:len(answer)-1]}, faultserver.Part{Pause: pause, Data: answer[len(answer)-1:]})
	case "/upgrade":
		x.WriteParts(
			faultserver.Part{Data: "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"},
			faultserver.Part{Pause: pause, Data: id},
		)
		x.Close()
	}
}

// TestDeadlineLeftBehind: the read deadline that an exchange with a context leaves
// on its connection ends nothing of the one that follows, whatever that is,
// whether the deadline passes before or during it.
func TestDeadlineLeftBehind(t *testing.T) {
	t.Parallel()
	traced := httptrace.WithClientTrace(context.Background(), new(httptrace.ClientTrace))
	type exchange struct {
		ctx  context.Context //nolint:containedctx // of a table
		path string
		body func() io.Reader
	}
	none := func() io.Reader { return nil }
	memory := func() io.Reader { return strings.NewReader("body") }
	stream := func() io.Reader { return io.MultiReader(strings.NewReader("body")) }
	limited := keepalive.ContextWithOptions(t.Context(), keepalive.RequestTimeout(time.Minute))
	var table []exchange
	for _, ctx := range []context.Context{context.Background(), traced, t.Context(), limited} {
		for _, path := range []string{"/quick", "/head", "/body", "/upgrade"} {
			for _, body := range []func() io.Reader{none, memory, stream} {
				table = append(table, exchange{ctx, path, body})
			}
		}
	}
	for name, start := range map[string]func(testing.TB, func(*faultserver.Exchange), ...faultserver.Option) *faultserver.Server{
		"plain": faultserver.New, "TLS": faultserver.NewTLS,
	} {
		srv := start(t, slowly)
		for _, idle := range []time.Duration{0, 2 * time.Millisecond, 10 * time.Millisecond} {
			t.Run(fmt.Sprint(name, " ", idle), func(t *testing.T) {
				t.Parallel()
				opts := []keepalive.Option{keepalive.WithProtocols(http1Only())}
				if name == "TLS" {
					opts = append(opts, keepalive.WithTLSConfig(srv.ClientTLSConfig()))
				}
				tr := open(t, opts...)
				upgrades := uint64(0)
				for i, e := range table {
					quick := question{method: http.MethodGet, url: srv.URL + "/quick", id: fmt.Sprint("quick ", i)}
					require.NoError(t, quick.own(t.Context(), tr))
					elapse(idle)
					q := question{method: http.MethodPut, url: srv.URL + e.path, id: fmt.Sprint(i), body: e.body()}
					req, err := q.request(e.ctx)
					require.NoError(t, err)
					if e.path == "/upgrade" {
						req.Header["Connection"], req.Header["Upgrade"] = []string{"upgrade"}, []string{"x"}
						upgrades++
					}
					resp, err := tr.RoundTrip(req)
					require.NoError(t, err, "%d %s", i, e.path)
					got, err := io.ReadAll(resp.Body)
					require.NoError(t, err, "%d %s", i, e.path)
					require.NoError(t, resp.Body.Close())
					require.Equal(t, q.id, string(got))
				}
				require.Equal(t, upgrades, tr.Stats().Dials, "one for each; the last one ends with the table")
			})
		}
	}
}

// TestRequestTimeoutLeavesNothing: its deadline is for writing, too.
func TestRequestTimeoutLeavesNothing(t *testing.T) {
	srv := faultserver.New(t, slowly)
	tr := open(t)
	const limit = 200 * time.Millisecond
	ctx := keepalive.ContextWithOptions(t.Context(), keepalive.RequestTimeout(limit))
	require.NoError(t, question{method: http.MethodGet, url: srv.URL + "/quick", id: "1"}.own(ctx, tr))
	elapse(limit)
	q := question{method: http.MethodPut, url: srv.URL + "/quick", id: "2", body: io.MultiReader(strings.NewReader("body"))}
	require.NoError(t, q.own(t.Context(), tr))
	require.EqualValues(t, 1, tr.Stats().Dials)
}

// bodyFunc is a request body that is code.
type bodyFunc func()

func (f bodyFunc) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

// TestCancelOnAYoungerConn: a request that has taken its time before it asks for a
// connection, and gets one that was dialed since, ends with its context.
func TestCancelOnAYoungerConn(t *testing.T) {
	srv := faultserver.New(t, func(x *faultserver.Exchange) {
		if x.Request.URL.Path == "/hang" {
			x.Hang()
			return
		}
		slowly(x)
	})
	tr := open(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	body := bodyFunc(func() { // of unknown length, and empty
		elapse(10 * time.Millisecond)
		err := question{method: http.MethodGet, url: srv.URL + "/quick", id: "1"}.own(context.Background(), tr)
		if err != nil {
			t.Error(err)
		}
	})
	failed := make(chan error, 1)
	go func() {
		_, _, err := question{method: http.MethodGet, url: srv.URL + "/hang", body: body}.ask(ctx, tr)
		failed <- err
	}()
	select {
	case err := <-failed:
		require.ErrorIs(t, err, context.DeadlineExceeded)
	case <-time.After(10 * time.Second):
		require.NoError(t, tr.Close())
		t.Fatalf("not cancelled: %v", <-failed)
	}
	require.EqualValues(t, 1, tr.Stats().Dials)
}

// userTimeout returns TCP_USER_TIMEOUT of a socket, in milliseconds.
func userTimeout(t *testing.T, nc net.Conn) (ms int) {
	t.Helper()
	const tcpUserTimeout = 0x12
	sc, ok := nc.(syscall.Conn)
	require.True(t, ok)
	raw, err := sc.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		ms, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout)
	}))
	require.NoError(t, err)
	return ms
}

// TestUserTimeoutIsSuspended: for TCP_USER_TIMEOUT a peer that reads nothing for a
// while is gone. An upload, and a connection that is the user's, may wait for it.
func TestUserTimeoutIsSuspended(t *testing.T) {
	began := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			w.WriteHeader(http.StatusSwitchingProtocols)
			return
		}
		if r.Method == http.MethodPost {
			_, _ = io.ReadFull(r.Body, make([]byte, 1))
			began <- struct{}{}
			_, _ = io.Copy(io.Discard, r.Body)
		}
	}))
	defer srv.Close()
	tr := open(t, keepalive.WithTCPUserTimeout(7*time.Second))
	var nc net.Conn
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { nc = i.Conn }})
	do := func(method string, body io.Reader, upgrade bool) {
		req, err := http.NewRequestWithContext(ctx, method, srv.URL, body)
		require.NoError(t, err)
		if upgrade {
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "x")
		}
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		if !upgrade {
			_, err = io.Copy(io.Discard, resp.Body)
			require.NoError(t, err)
			return
		}
		require.Zero(t, userTimeout(t, nc), "the user's")
	}
	do(http.MethodGet, nil, false)
	require.Equal(t, 7000, userTimeout(t, nc))
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(http.MethodPost, pr, false)
	}()
	_, err := pw.Write([]byte("x"))
	require.NoError(t, err)
	<-began
	require.Zero(t, userTimeout(t, nc), "while a body is sent")
	require.NoError(t, pw.Close())
	<-done
	require.Equal(t, 7000, userTimeout(t, nc), "after it")
	do(http.MethodGet, nil, true)
	require.EqualValues(t, 1, tr.Stats().Opened)
}

// TestUploadToAReaderThatPauses: longer than TCP_USER_TIMEOUT.
func TestUploadToAReaderThatPauses(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		elapse(1500 * time.Millisecond)
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n)
	}))
	defer srv.Close()
	tr := open(t, keepalive.WithTCPUserTimeout(300*time.Millisecond))
	const size = 32 << 20
	resp, err := tr.Client().Post(srv.URL, "", strings.NewReader(strings.Repeat("x", size)))
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprint(size), string(b))
}
