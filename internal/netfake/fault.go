package netfake

import (
	"sync"
	"time"
)

// Reset is an RST from the peer's side, as a middlebox sends it: both ways. At
// both ends what had arrived can still be read, then Read and Write fail with
// ECONNRESET. While reads are stalled it does not arrive.
func (c *Conn) Reset() {
	c.change(func() { c.in.rst, c.out.rst = true, true })
}

// BlockClose makes Close wait until release has been called, and take effect
// only then. Calling release again does nothing.
func (c *Conn) BlockClose() (release func()) {
	c.change(func() { c.closeGates++ })
	return sync.OnceFunc(func() { c.change(func() { c.closeGates-- }) })
}

// StallReads stops the network on its way to this end: Read waits, whatever
// the peer sent or did. Turned off, everything arrives.
func (c *Conn) StallReads(on bool) { c.change(func() { c.in.stalled = on }) }

// StallWrites stops the network on its way to the peer: Write goes on until
// the buffer is full, and nothing of it arrives.
func (c *Conn) StallWrites(on bool) { c.change(func() { c.out.stalled = on }) }

// BlockWrites makes Write itself wait, as if the buffer were full.
func (c *Conn) BlockWrites(on bool) { c.change(func() { c.out.blocked = on }) }

// FailWrites makes Write fail with err, in a *net.OpError, once it has taken n
// more bytes. A nil err ends it.
func (c *Conn) FailWrites(n int64, err error) {
	c.change(func() { c.out.failing, c.out.failLeft, c.out.failErr = err != nil, n, err })
}

func (c *Conn) change(f func()) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	f()
	c.link.cond.Broadcast()
}

// Peer returns the other end.
func (c *Conn) Peer() *Conn { return c.peer }

// Index is the connection's place in dial order, from 0, the same at both ends.
func (c *Conn) Index() int { return c.link.index }

// Closed says whether this end has been closed. It is false while Close is
// blocked.
func (c *Conn) Closed() bool {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	return c.closed
}

// CloseCalls counts the calls of Close, blocked and repeated ones too.
func (c *Conn) CloseCalls() int {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	return c.closeCalls
}

// BytesRead counts what Read has returned at this end.
func (c *Conn) BytesRead() int64 {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	return c.read
}

// BytesWritten counts what Write has taken at this end, lost bytes too.
func (c *Conn) BytesWritten() int64 {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	return c.written
}

// Unread counts the bytes on their way to this end.
func (c *Conn) Unread() int {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	return len(c.in.buf)
}

// Deadlines returns the deadlines as they were last set: between two exchanges
// both should be zero.
func (c *Conn) Deadlines() (read, write time.Time) {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	return c.readLimit.at, c.writeLimit.at
}
