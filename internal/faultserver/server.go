// Package faultserver is an HTTP/1 server on real sockets that misbehaves
// exactly as a test tells it, and a TCP relay that delays and freezes.
//
// A [Server] reads a request's head and hands it to the script. What the
// script does not do does not happen: there is no default answer, no
// 100 Continue, no Connection header that is obeyed. After the script the
// connection goes on with its next request, unless the script ended it.
package faultserver

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// waitLimit bounds every wait of a test for a server.
const waitLimit = 10 * time.Second

// Server is a listening server. [New], [NewTLS] and [NewUnix] start one; it
// stops when the test ends.
type Server struct {
	// Addr is "127.0.0.1:port", or the path of a Unix socket.
	Addr string
	// URL is the server's root without a final slash; "http://unix" for a Unix
	// socket.
	URL string

	t        testing.TB
	handle   func(*Exchange)
	settings settings
	listener net.Listener
	tls      *tls.Config // nil: no TLS
	client   *tls.Config
	running  sync.WaitGroup // the accept loop and the connections' loops

	mu       sync.Mutex // guards what follows; nothing waits while holding it
	changed  chan struct{}
	conns    map[*conn]bool
	stopped  bool
	accepted int
	maxOpen  int
	requests []int // by connection
	log      []Entry
}

type settings struct {
	idle     time.Duration
	onAccept func(index int, raw net.Conn) bool
	editTLS  []func(*tls.Config)
}

// Option sets what a [Server] does beside its script.
type Option func(*settings)

// WithIdleTimeout closes a connection when no byte has come for d after a
// response.
func WithIdleTimeout(d time.Duration) Option {
	return func(s *settings) { s.idle = d }
}

// WithOnAccept runs f with each connection before anything is read, and before
// TLS. The connection is closed when f returns false.
func WithOnAccept(f func(index int, raw net.Conn) bool) Option {
	return func(s *settings) { s.onAccept = f }
}

// WithTLSConfig lets f change the configuration of [NewTLS].
func WithTLSConfig(f func(*tls.Config)) Option {
	return func(s *settings) { s.editTLS = append(s.editTLS, f) }
}

// New starts a server on 127.0.0.1 whose script is handle. The script runs in
// the connection's goroutine.
func New(t testing.TB, handle func(x *Exchange), opts ...Option) *Server {
	t.Helper()
	s := start(t, "tcp", "127.0.0.1:0", handle, opts)
	s.URL = "http://" + s.Addr
	return s
}

// NewTLS starts a server like [New]'s with TLS and a certificate of its own,
// for 127.0.0.1, localhost and example.com. [Server.ClientTLSConfig] trusts it.
func NewTLS(t testing.TB, handle func(x *Exchange), opts ...Option) *Server {
	t.Helper()
	opts = append([]Option{withTLS(t)}, opts...)
	s := start(t, "tcp", "127.0.0.1:0", handle, opts)
	s.URL = "https://" + s.Addr
	return s
}

// NewUnix starts a server like [New]'s on a Unix socket.
func NewUnix(t testing.TB, handle func(x *Exchange), opts ...Option) *Server {
	t.Helper()
	// Not the test's own directory: its name may be too long for a socket's.
	dir, err := os.MkdirTemp("", "fs") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := start(t, "unix", filepath.Join(dir, "s"), handle, opts)
	s.URL = "http://unix"
	return s
}

func start(t testing.TB, network, addr string, handle func(*Exchange), opts []Option) *Server {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		Addr: l.Addr().String(), t: t, handle: handle, listener: l,
		changed: make(chan struct{}), conns: map[*conn]bool{},
	}
	for _, opt := range opts {
		opt(&s.settings)
	}
	if len(s.settings.editTLS) > 0 {
		s.tls, s.client = &tls.Config{MinVersion: tls.VersionTLS12}, &tls.Config{MinVersion: tls.VersionTLS12}
		for _, edit := range s.settings.editTLS {
			edit(s.tls)
		}
		s.client.RootCAs = s.tls.ClientCAs // put there by withTLS
		s.tls.ClientCAs = nil
	}
	s.running.Go(s.acceptLoop)
	t.Cleanup(s.Stop)
	return s
}

// ClientTLSConfig returns a new configuration that trusts this server.
func (s *Server) ClientTLSConfig() *tls.Config { return s.client.Clone() }

// Stop closes the listener and every connection and waits for the scripts. The
// end of the test calls it; calling it earlier makes later dials fail.
func (s *Server) Stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	_ = s.listener.Close() // a second Stop
	s.CloseAll()
	s.running.Wait()
}

func (s *Server) acceptLoop() {
	for index := 0; ; index++ {
		raw, err := s.listener.Accept()
		if err != nil {
			return
		}
		c := &conn{server: s, index: index, raw: raw, Conn: raw, done: make(chan struct{})}
		if !s.add(c) {
			c.close()
			return
		}
		s.running.Go(c.serve)
	}
}

func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.accepted++
	s.requests = append(s.requests, 0)
	s.conns[c] = true
	s.maxOpen = max(s.maxOpen, len(s.conns))
	s.broadcast()
	return true
}

// broadcast wakes those who wait for a count. The caller holds mu.
func (s *Server) broadcast() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Accepted counts the connections that were accepted.
func (s *Server) Accepted() int { return s.read(func() int { return s.accepted }) }

// Open counts the connections that the server has not closed. It closes one
// when its script does or when it reads the client's end; see
// [Exchange.AwaitClose].
func (s *Server) Open() int { return s.read(func() int { return len(s.conns) }) }

// MaxOpen is the highest that Open has been.
func (s *Server) MaxOpen() int { return s.read(func() int { return s.maxOpen }) }

// Requests counts the request heads that were read.
func (s *Server) Requests() int { return s.read(func() int { return len(s.log) }) }

// RequestsOn counts the request heads that were read on a connection.
func (s *Server) RequestsOn(conn int) int {
	return s.read(func() int {
		if conn >= len(s.requests) {
			return 0
		}
		return s.requests[conn]
	})
}

// Times counts the requests with this method and path (with its query).
func (s *Server) Times(method, path string) int {
	return s.read(func() int {
		n := 0
		for _, e := range s.log {
			if e.Method == method && e.Path == path {
				n++
			}
		}
		return n
	})
}

func (s *Server) read(f func() int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f()
}

// Entry is one request in the [Server.Log].
type Entry struct {
	Conn, Req int
	Method    string
	Path      string // with its query
	Key       string // Idempotency-Key or X-Idempotency-Key
	ID        string // X-Request-Id
}

// String returns "method path key id".
func (e Entry) String() string {
	return fmt.Sprintf("%s %s %s %s", e.Method, e.Path, e.Key, e.ID)
}

// Log returns the requests in the order in which their heads were read.
func (s *Server) Log() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// WaitOpen waits until Open is n. After ten seconds it fails the test.
func (s *Server) WaitOpen(n int) {
	s.t.Helper()
	s.wait("open connections", n, func() int { return len(s.conns) })
}

// WaitAccepted waits until Accepted is n. After ten seconds it fails the test.
func (s *Server) WaitAccepted(n int) {
	s.t.Helper()
	s.wait("accepted connections", n, func() int { return s.accepted })
}

// WaitRequests waits until Requests is n. After ten seconds it fails the test.
func (s *Server) WaitRequests(n int) {
	s.t.Helper()
	s.wait("requests", n, func() int { return len(s.log) })
}

// wait waits for get, called with mu held, to return n.
func (s *Server) wait(what string, n int, get func() int) {
	s.t.Helper()
	timer := time.NewTimer(waitLimit)
	defer timer.Stop()
	for {
		s.mu.Lock()
		got, changed := get(), s.changed
		s.mu.Unlock()
		if got == n {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			s.t.Fatalf("faultserver: got %d %s, want %d", got, what, n)
		}
	}
}

// CloseIdle closes the connections whose script is not running, and the others
// as soon as their script has returned: a client that has read the answer is
// faster than the server.
func (s *Server) CloseIdle() {
	s.each(func(c *conn) bool {
		c.retired = c.busy
		return !c.busy
	}, (*conn).close)
}

// CloseAll closes every connection.
func (s *Server) CloseAll() { s.each(func(*conn) bool { return true }, (*conn).close) }

// ResetAll resets every connection.
func (s *Server) ResetAll() { s.each(func(*conn) bool { return true }, (*conn).reset) }

// each calls do for the connections for which which, called with mu held, is
// true.
func (s *Server) each(which func(*conn) bool, do func(*conn)) {
	s.mu.Lock()
	var chosen []*conn
	for c := range s.conns {
		if which(c) {
			chosen = append(chosen, c)
		}
	}
	s.mu.Unlock()
	for _, c := range chosen {
		do(c)
	}
}

// conn is one connection of a [Server].
type conn struct {
	net.Conn // raw, or TLS over it
	server   *Server
	index    int
	raw      net.Conn
	end      sync.Once
	done     chan struct{} // closed when the server ends the connection

	// The server's mu guards these.
	busy    bool // its script is running
	retired bool // it is to be closed when its script returns
}

func (c *conn) serve() {
	defer c.close()
	s := c.server
	if f := s.settings.onAccept; f != nil && !f(c.index, c.raw) {
		return
	}
	br := bufio.NewReader(c.Conn)
	if s.tls != nil {
		tc, ok := c.handshake()
		if !ok {
			return
		}
		br.Reset(tc)
	}
	for req := 0; ; req++ {
		if req > 0 && s.settings.idle > 0 {
			_ = c.raw.SetReadDeadline(time.Now().Add(s.settings.idle))
			if _, err := br.Peek(1); err != nil {
				return
			}
			_ = c.raw.SetReadDeadline(time.Time{})
		}
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		x := &Exchange{Conn: c.Conn, Raw: c.raw, ConnIndex: c.index, ReqIndex: req, Request: r, Reader: br, conn: c}
		c.begin(r, req)
		s.handle(x)
		if x.over {
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		if c.rest() {
			return
		}
	}
}

func (c *conn) handshake() (*tls.Conn, bool) {
	tc := tls.Server(c.raw, c.server.tls)
	c.server.mu.Lock()
	c.Conn = tc
	c.server.mu.Unlock()
	return tc, tc.HandshakeContext(c.server.t.Context()) == nil
}

func (c *conn) begin(r *http.Request, req int) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	c.busy = true
	s.requests[c.index]++
	key := r.Header.Get("Idempotency-Key")
	if key == "" {
		key = r.Header.Get("X-Idempotency-Key")
	}
	s.log = append(s.log, Entry{
		Conn: c.index, Req: req, Method: r.Method, Path: r.RequestURI, Key: key, ID: r.Header.Get("X-Request-Id"),
	})
	s.broadcast()
}

// rest says that the script is not running any more, and hears whether the
// connection has been retired.
func (c *conn) rest() (retired bool) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.busy = false
	return c.retired
}

func (c *conn) close() {
	c.finish(func() {
		c.server.mu.Lock()
		nc := c.Conn
		c.server.mu.Unlock()
		_ = nc.Close() // the peer may be gone
	})
}

func (c *conn) reset() {
	c.finish(func() {
		if tc, ok := c.raw.(*net.TCPConn); ok {
			_ = tc.SetLinger(0)
		}
		_ = c.raw.Close() // not through TLS: it would write first
	})
}

// finish ends the connection once, by f.
func (c *conn) finish(f func()) {
	c.end.Do(func() {
		f()
		close(c.done)
		s := c.server
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
		s.broadcast()
	})
}
