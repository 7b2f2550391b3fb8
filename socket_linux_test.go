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
