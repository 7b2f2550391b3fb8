package netfake

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// link is what the two ends of a connection share.
type link struct {
	// mu guards both streams and both ends. Waiting is in cond only, which is
	// broadcast at every change: a link has few waiters.
	mu   sync.Mutex
	cond sync.Cond
	// index is the connection's place in dial order.
	index int
}

// stream is one direction of a link. The link's mutex guards it.
type stream struct {
	buf      []byte // on the way: written and not yet read
	size     int    // what buf may hold
	eof      bool   // the writer has closed; holds behind buf
	rst      bool   // the writer's side has reset; holds behind buf
	gone     bool   // the reader has closed
	broken   bool   // bytes were sent to a reader that was gone
	stalled  bool   // nothing arrives: no bytes, no end, no reset
	blocked  bool   // there is no room, whatever buf holds
	failing  bool   // failErr holds once failLeft more bytes were taken
	failLeft int64
	failErr  error
}

// Conn is one end of a connection. [Net.Dial] and [Net.Conns] give the
// client's, [Listener.Accept] and [Conn.Peer] the server's; the faults can be
// scripted at either.
type Conn struct {
	net    *Net
	link   *link
	peer   *Conn
	client bool
	local  hostPort
	remote hostPort
	in     *stream
	out    *stream

	// The link's mutex guards what follows.
	closed      bool
	closeGates  int
	closeCalls  int
	read        int64
	written     int64
	readLimit   deadline
	writeLimit  deadline
	writeClosed bool
}

// deadline turns true when its time has come.
type deadline struct {
	at      time.Time
	expired bool
	timer   *time.Timer
}

var _ net.Conn = (*Conn)(nil)

func newLink(n *Net, index int, addr string, size int) (client, server *Conn) {
	l := &link{index: index}
	l.cond.L = &l.mu
	up, down := &stream{size: size}, &stream{size: size}
	// 192.0.2.0/24 is for documentation; the port tells connections apart.
	from := hostPort(fmt.Sprintf("192.0.2.1:%d", 10000+index%50000))
	client = &Conn{net: n, link: l, client: true, local: from, remote: hostPort(addr), in: down, out: up}
	server = &Conn{net: n, link: l, local: hostPort(addr), remote: from, in: up, out: down}
	client.peer, server.peer = server, client
	return client, server
}

// Read reads what has arrived, and waits while there is nothing.
func (c *Conn) Read(p []byte) (int, error) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, c.opError("read", net.ErrClosed)
		case c.readLimit.expired:
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return 0, nil
		case c.in.stalled:
		case len(c.in.buf) > 0:
			return c.take(p), nil
		case c.in.rst:
			return 0, c.opError("read", syscall.ECONNRESET)
		case c.in.eof:
			return 0, io.EOF
		}
		c.link.cond.Wait()
	}
}

// take moves bytes that have arrived to p. The caller holds the link's mutex.
func (c *Conn) take(p []byte) int {
	n := copy(p, c.in.buf)
	c.in.buf = c.in.buf[n:]
	if len(c.in.buf) == 0 {
		c.in.buf = nil
	}
	c.read += int64(n)
	c.link.cond.Broadcast()
	return n
}

// Write sends p, and waits while there is no room for it.
func (c *Conn) Write(p []byte) (int, error) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	lost := c.out.gone && !c.out.stalled // before this Write began
	done := 0
	for {
		if err := c.writeErr(); err != nil {
			return done, c.opError("write", err)
		}
		if done == len(p) {
			return done, nil
		}
		switch {
		case lost && !c.out.blocked:
			c.out.broken = true
			c.written += int64(len(p) - done)
			return len(p), nil
		case c.out.gone && !c.out.stalled:
			c.out.broken = true
			return done, c.opError("write", syscall.ECONNRESET)
		}
		k := min(c.out.room(), len(p)-done)
		if k > 0 {
			c.out.put(p[done : done+k])
			done += k
			c.written += int64(k)
			c.link.cond.Broadcast()
			continue
		}
		c.link.cond.Wait()
	}
}

// writeErr says why nothing can be written. The caller holds the link's mutex.
func (c *Conn) writeErr() error {
	switch {
	case c.closed:
		return net.ErrClosed
	case c.writeLimit.expired:
		return os.ErrDeadlineExceeded
	case c.in.rst && !c.in.stalled:
		return syscall.ECONNRESET
	case c.writeClosed, c.out.broken:
		return syscall.EPIPE
	case c.out.failing && c.out.failLeft == 0:
		return c.out.failErr
	}
	return nil
}

// room is how many bytes put may take now.
func (s *stream) room() int {
	if s.blocked {
		return 0
	}
	room := max(0, s.size-len(s.buf))
	if s.failing {
		room = int(min(int64(room), s.failLeft))
	}
	return room
}

func (s *stream) put(p []byte) {
	s.buf = append(s.buf, p...)
	if s.failing {
		s.failLeft -= int64(len(p))
	}
}

// Close ends both directions: the peer reads EOF behind what was written. A
// second Close fails with [net.ErrClosed].
func (c *Conn) Close() error {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	c.closeCalls++
	for c.closeGates > 0 && !c.closed {
		c.link.cond.Wait()
	}
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	c.out.eof = true
	c.in.gone = true
	c.in.buf = nil
	c.readLimit.stop()
	c.writeLimit.stop()
	c.link.cond.Broadcast()
	if c.client {
		c.net.mu.Lock()
		c.net.open--
		c.net.closed++
		c.net.mu.Unlock()
	}
	return nil
}

// CloseWrite ends the direction to the peer only: it reads EOF behind what was
// written.
func (c *Conn) CloseWrite() error {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	c.writeClosed = true
	c.out.eof = true
	c.link.cond.Broadcast()
	return nil
}

// LocalAddr returns this end's address.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the other end's address; at the client's end, the one
// that was dialled.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines; the zero time means none.
func (c *Conn) SetDeadline(t time.Time) error {
	return c.setDeadlines(t, &c.readLimit, &c.writeLimit)
}

// SetReadDeadline sets the deadline of Read; the zero time means none.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, &c.readLimit) }

// SetWriteDeadline sets the deadline of Write; the zero time means none.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, &c.writeLimit) }

func (c *Conn) setDeadlines(t time.Time, limits ...*deadline) error {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	for _, d := range limits {
		d.set(t, c.link)
	}
	c.link.cond.Broadcast()
	return nil
}

// set moves the deadline to t. The caller holds the link's mutex.
func (d *deadline) set(t time.Time, l *link) {
	d.stop()
	d.at = t
	wait := time.Until(t)
	if d.expired = !t.IsZero() && wait <= 0; d.expired || t.IsZero() {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if d.timer == timer { // else it was moved while this waited for the lock
			d.expired = true
			l.cond.Broadcast()
		}
	})
	d.timer = timer
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: c.local.Network(), Source: c.local, Addr: c.remote, Err: err}
}
