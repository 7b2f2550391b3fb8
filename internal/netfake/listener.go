package netfake

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// Listener accepts what is dialled to its address.
type Listener struct {
	net  *Net
	addr string

	// The Net's mutex guards what follows; cond waits with it.
	cond     sync.Cond
	queue    []*Conn
	closed   bool
	accepted int
}

var _ net.Listener = (*Listener)(nil)

// Accept returns the server's end of the next connection, a *[Conn].
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.accept()
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (l *Listener) accept() (*Conn, error) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.cond.Wait()
	}
	if l.closed {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: hostPort(l.addr), Err: net.ErrClosed}
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	l.accepted++
	return c, nil
}

// Close refuses further dials and resets what was not accepted. What was
// accepted goes on.
func (l *Listener) Close() error {
	l.net.mu.Lock()
	if l.closed {
		l.net.mu.Unlock()
		return &net.OpError{Op: "close", Net: "tcp", Addr: hostPort(l.addr), Err: net.ErrClosed}
	}
	l.closed = true
	delete(l.net.listeners, l.addr)
	rest := l.queue
	l.queue = nil
	l.cond.Broadcast()
	l.net.mu.Unlock()

	for _, c := range rest {
		c.Reset()
	}
	return nil
}

// Addr returns the address that was listened to.
func (l *Listener) Addr() net.Addr { return hostPort(l.addr) }

// Accepted counts the connections that Accept has returned.
func (l *Listener) Accepted() int { return l.net.read(func() int { return l.accepted }) }

// Serve runs f for each connection, in a goroutine of its own, and closes the
// connection after it. When the listener is closed it closes the connections
// that are left, waits for every f, and returns. So f need only end when its
// connection fails.
func (l *Listener) Serve(f func(c *Conn)) {
	var running sync.WaitGroup
	defer running.Wait()
	live := map[*Conn]bool{}
	var mu sync.Mutex // guards live
	for {
		c, err := l.accept()
		if err != nil {
			break
		}
		mu.Lock()
		live[c] = true
		mu.Unlock()
		running.Go(func() {
			defer func() {
				_ = c.Close() // f may have closed it
				mu.Lock()
				delete(live, c)
				mu.Unlock()
			}()
			f(c)
		})
	}
	mu.Lock()
	rest := make([]*Conn, 0, len(live))
	for c := range live {
		rest = append(rest, c)
	}
	mu.Unlock()
	for _, c := range rest {
		_ = c.Close() // f may have closed it
	}
}

// Serve listens to addr and runs [Listener.Serve] with f until the test ends.
func (n *Net) Serve(t testing.TB, addr string, f func(c *Conn)) *Listener {
	t.Helper()
	l := n.Listen(addr)
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Serve(f)
	}()
	t.Cleanup(func() {
		_ = l.Close() // the test may have closed it
		<-done
	})
	return l
}

// Handle listens to addr and serves h with an [http.Server] until the test
// ends. The server is returned for its settings and its Close.
func (n *Net) Handle(t testing.TB, addr string, h http.Handler) *http.Server {
	t.Helper()
	l := n.Listen(addr)
	srv := &http.Server{Handler: h}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		// First what is about to end: the server sleeps for half a second
		// before some closes, and a bubble must not end meanwhile.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			_ = srv.Close() // the listener is closed already
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("netfake: Handle(%q): %v", addr, err)
		}
	})
	return srv
}
