package keepalive

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// http2Socket is the net.Conn that a ClientConn reads and writes. It hears what
// a ClientConn does not tell.
type http2Socket struct {
	net.Conn
	t *Transport
	c *conn
	// Of the one goroutine that reads. told is the limit that the pool knows.
	frames   frames
	told     int
	received atomic.Int64
	// silent: the pool is to be told when the peer is heard next.
	silent atomic.Bool
	// ponged is that of frames, for all.
	ponged atomic.Bool

	mu      sync.Mutex
	settled bool
	timer   *time.Timer // until settled
	closed  bool
	err     error // the first of a read or write before that: the connection is lost
}

// settleWait is how long the first word of the peer may take before a
// connection is taken to allow initialStreams.
const settleWait = time.Second

func newHTTP2Socket(t *Transport, c *conn) *http2Socket {
	s := &http2Socket{Conn: c.nc, t: t, c: c, told: initialStreams}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(settleWait, s.settle)
	return s
}

// Read passes on to the pool what the peer says: at once that it takes less, and
// that it takes more when the ClientConn knows, which it does when it asks for
// what follows.
func (s *http2Socket) Read(p []byte) (int, error) {
	s.tell()
	n, err := s.Conn.Read(p)
	s.frames.feed(p[:n])
	s.ponged.Store(s.frames.ponged)
	s.received.Add(int64(n))
	if s.frames.goAway || s.frames.objected || s.frames.limit < s.told {
		s.tell()
	}
	if s.frames.http1 {
		s.lost(errAnswersHTTP1)
	}
	if err != nil {
		s.lost(err)
	}
	if n > 0 && s.silent.Load() && s.silent.Swap(false) {
		s.t.act(func() todo { return s.t.pool.heard(s.c, time.Now()) })
	}
	return n, err
}

var errAnswersHTTP1 = errors.New("the server answers in HTTP/1")

// tell tells the pool what is new.
func (s *http2Socket) tell() {
	if s.frames.objected { // net/http sends nothing more there (golang/go#47635)
		s.frames.objected = false
		s.t.act(func() todo { return s.t.pool.retire(s.c, CloseReadError) })
	}
	if !s.frames.news {
		return
	}
	s.frames.news = false
	s.told = s.frames.limit
	s.t.act(func() todo { return s.t.pool.said(s.c, s.frames.limit, s.frames.goAway, time.Now()) })
	s.settle()
}

// Write writes to the connection.
func (s *http2Socket) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	if err != nil {
		s.lost(err)
	}
	return n, err
}

// lost notes that the connection is of no more use.
func (s *http2Socket) lost(err error) {
	s.mu.Lock()
	if s.err == nil && !s.closed {
		s.err = err
	}
	s.mu.Unlock()
	s.t.act(func() todo { return s.t.pool.peerGone(s.c, time.Now()) })
	s.settle()
}

// failure returns why the connection was lost, nil if it was not, or was by our
// own doing.
func (s *http2Socket) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *http2Socket) settle() {
	s.mu.Lock()
	first := !s.settled
	s.settled = true
	s.timer.Stop()
	s.mu.Unlock()
	if first {
		s.t.act(func() todo { return s.t.pool.settled(s.c, time.Now()) })
	}
}

// Close closes the connection. TLS's close_notify is sent if there is room for
// it.
func (s *http2Socket) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.t.act(func() todo { return s.t.pool.peerGone(s.c, time.Now()) })
	s.settle()
	s.c.shutDown()
	return nil
}
