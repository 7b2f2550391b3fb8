//go:build linux

package keepalive_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

// sparseServer serves its connections one after the other, from one goroutine,
// and keeps all of them open: goroutines and descriptors can be counted then.
type sparseServer struct {
	net.Listener

	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

func newSparseServer(t *testing.T) *sparseServer {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &sparseServer{Listener: l}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for br := bufio.NewReader(nil); ; {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, nc)
			s.mu.Unlock()
			br.Reset(nc)
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		s.hangUp()
	})
	return s
}

// hangUp closes all connections.
func (s *sparseServer) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, nc := range s.conns {
		_ = nc.Close()
	}
}

// descriptors counts those that this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(list)
}

// roomFor returns n, or how many connections to ourselves this process may
// have, if that is fewer.
func roomFor(t *testing.T, n int) int {
	t.Helper()
	const ours, reserve = 2, 500 // descriptors per connection, and for all else
	want := uint64(ours*n + reserve)
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	if limit.Cur < want {
		raised := syscall.Rlimit{Cur: want, Max: max(limit.Max, want)}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
			t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) })
			return n
		}
	}
	return min(n, (int(limit.Cur)-reserve)/ours)
}

// TestManyIdleConns: idle connections cost no goroutine, and when their peers
// hang up, all at once and without any traffic, they are closed for it soon.
func TestManyIdleConns(t *testing.T) {
	n := roomFor(t, counts(1000, 10_000))
	srv := newSparseServer(t)
	fds := descriptors(t)
	tr := open(t, keepalive.WithMaxIdleConns(0), keepalive.WithMaxIdleConnsPerHost(0), keepalive.WithIdleConnTimeout(time.Hour))
	ctx := keepalive.ContextWithOptions(t.Context(), keepalive.FreshConn())
	q := question{url: "http://" + srv.Addr().String()}
	require.NoError(t, q.own(ctx, tr))
	goroutines := runtime.NumGoroutine() // with what one connection needs
	for range n - 1 {
		require.NoError(t, q.own(ctx, tr))
	}
	stats := tr.Stats()
	require.Equal(t, keepalive.Gauges{Open: n, Idle: n}, stats.Gauges)
	require.EqualValues(t, n, stats.Dials)
	require.Less(t, runtime.NumGoroutine(), goroutines+10, "with %d idle connections", n)

	start := time.Now()
	srv.hangUp()
	hungUp := time.Now()
	eventually(t, func() bool { return tr.Stats().Open == 0 })
	late := time.Since(hungUp)
	t.Logf("%d connections: hung up in %v, the last one closed %v later", n, hungUp.Sub(start), late)
	require.Less(t, late, 2*time.Second)
	stats = tr.Stats()
	require.Equal(t, map[keepalive.CloseReason]uint64{keepalive.ClosePeerClosed: uint64(n)}, stats.Closed)
	require.EqualValues(t, n, stats.Dials, "nothing was dialed")
	require.NoError(t, tr.Close())
	require.LessOrEqual(t, descriptors(t), fds, "descriptors")
}
