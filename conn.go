package keepalive

import (
	"cmp"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/keepalive-http/keepalive/internal/queue"
	"github.com/keepalive-http/keepalive/internal/sock"
)

// protocol is what is spoken on a connection. dial.go chooses it, and nobody
// asks which one it is.
type protocol interface {
	// roundTrip sends the request of cl on c, which was leased to it at now,
	// and gives the lease back: with the end of the response's body, or before
	// it returns.
	roundTrip(cl *call, c *conn, now time.Time) (*http.Response, *outcome)
	// close closes c's socket, which nobody uses. Nothing in it waits for the
	// peer.
	close(c *conn)
}

// connState is who owns a connection. pool.moveLocked makes every move.
//
//	         adopt (dialed)
//	              |
//	              v        release, kept
//	  +------- leased ----------------------> idle
//	  |           |   <----------------------   |
//	  |           |             acquire         |
//	  | detach    | release, dropped            | reap, evict, peer gone, Close
//	  v           v                             |
//	detached   closing <------------------------+
//	  |           |
//	  |           v
//	  +------> closed
type connState uint8

const (
	// stateLeased: one exchange owns it, and until its last byte the response
	// body that came of it. Only they read, write and give it back. One whose
	// protocol has room for more (capacity) has several users.
	stateLeased connState = iota
	// stateIdle: the pool owns it. Nobody reads or writes; the watcher hears
	// that the peer is gone, a peek looks without taking. One that hides its
	// socket has a read under way (park), one of HTTP/2 is read all the time.
	stateIdle
	// stateClosing: whoever the pool returned it to closes it, once, with no
	// lock held. It still has its slot.
	stateClosing
	// stateDetached: the user owns it (101 Switching Protocols, CONNECT).
	stateDetached
	// stateClosed: nobody.
	stateClosed
)

func (s connState) String() string {
	switch s {
	case stateLeased:
		return "leased"
	case stateIdle:
		return "idle"
	case stateClosing:
		return "closing"
	case stateDetached:
		return "detached"
	case stateClosed:
		return "closed"
	}
	return "invalid"
}

// mayBecome reports whether the move is in the picture above connState.
func mayBecome(from, to connState) bool {
	switch from {
	case stateLeased:
		return to == stateIdle || to == stateClosing || to == stateDetached
	case stateIdle:
		return to == stateLeased || to == stateClosing
	case stateClosing, stateDetached:
		return to == stateClosed
	case stateClosed:
	}
	return false
}

// conn is one persistent connection. It is most of what an idle one costs, which
// is why it holds its sock.Conn itself, and why its size matters: see TestConnSize.
type conn struct {
	// Set when it is dialed; never changed.
	sc  sock.Conn // what we dialed, with a look at its socket
	nc  net.Conn  // what HTTP is spoken over: sc, or TLS on it
	tls *tls.ConnectionState
	protocol
	id uint64 // unique in its Transport, the watcher's token

	// Set by pool.adoptLocked; never changed. host is nil while it is dialed.
	host     *host
	dialedAt time.Time
	life     time.Duration // how long after dialedAt it may be used; 0: any

	// The owner's: of the exchange while leased, if it is the only one.
	parked *parkedRead
	rtt    time.Duration // the shortest round trip seen; 0: none
	// soon is the read deadline that watchSoon has left on the socket, after
	// dialedAt; 0: none.
	soon time.Duration

	// Written under pool.mu and, with one user (HTTP/1), by that one; read under
	// pool.mu or by the one user: the pool changes none of them while it is leased.
	served  int           // requests begun
	idleFor time.Duration // how long it had been idle when it was leased

	// Guarded by pool.mu.
	inPool, inHost queue.Elem[*conn]
	idleSince      time.Time
	idleLimit      time.Duration // how long after idleSince it may be used; 0: any
	hintIdle       time.Duration // the last answer's own limit; 0: none
	lookAt         time.Duration // when reap looks at it, after pool.base
	left           int           // requests it may still serve; -1: any
	heapIndex      int32         // in pool.expiry; -1: not there
	users          int32         // requests that it is leased to
	capacity       int32         // how many there may be at a time

	// cut is set by Close before it interrupts the connection.
	cut atomic.Bool

	// checkable: it can be told whether the connection is alive. One that
	// cannot is used once. watched: it is known to the watcher. Both are set
	// when it is dialed.
	checkable, watched bool
	// shares: it may take several requests at a time. Set when it is dialed.
	shares bool
	// peer10: the peer answers in HTTP/1.0. loaded: more than a short head was
	// written, so the socket's buffer may not be empty. The owner's.
	peer10, loaded bool

	// patient: TCP_USER_TIMEOUT is suspended, see exchange.patience. The owner's.
	patient bool

	// As served: it has been idle before.
	wasIdle bool

	// Guarded by pool.mu.
	peerGone bool
	// silent: a request timed out without a byte from the peer. It gets no
	// other one until the peer has been heard.
	silent bool
	// settling: its capacity is about to be heard. serving: host.serving
	// counts it. told: its peer had said so before it was the pool's.
	settling, serving, told bool
	retired                 CloseReason // why it gets no more requests; CloseNone: it does
	state                   connState
	limitReason             CloseReason // what idleLimit stands for
	reason                  CloseReason // why it was dropped; set with stateClosing
}

// setIdle notes that c is idle since now and when that ends. idleTimeout is
// the pool's own limit. Guarded by pool.mu.
func (c *conn) setIdle(now time.Time, idleTimeout time.Duration) {
	c.idleSince = now
	c.idleLimit, c.limitReason = idleTimeout, CloseIdleTimeout
	if c.served == 0 {
		c.limitIdle(unusedIdleTimeout, CloseIdleTimeout)
	}
	if c.hintIdle > 0 {
		c.limitIdle(c.hintIdle, CloseIdleTimeout)
	}
	if c.silent {
		c.limitIdle(silentIdleTimeout, CloseSuspect)
	}
	if c.life > 0 {
		// At least a nanosecond: 0 would mean no limit.
		c.limitIdle(max(c.life-now.Sub(c.dialedAt), 1), CloseLifetime)
	}
}

// limitIdle shortens how long c may stay idle. Guarded by pool.mu.
func (c *conn) limitIdle(d time.Duration, reason CloseReason) {
	if c.idleLimit == 0 || d < c.idleLimit {
		c.idleLimit, c.limitReason = d, reason
	}
}

// hasRoom reports whether c may have one more user. Guarded by pool.mu.
func (c *conn) hasRoom() bool {
	return c.users < c.capacity && !c.silent && (c.left < 0 || int(c.users) < c.left)
}

// expired returns why c may not be used at now, or CloseNone. The wall clock
// counts too: it goes on while a laptop sleeps. Guarded by pool.mu.
func (c *conn) expired(now time.Time) CloseReason {
	if c.life > 0 && now.Sub(c.dialedAt) >= c.life {
		return CloseLifetime
	}
	if c.users > 0 || c.idleLimit == 0 {
		return CloseNone
	}
	// By nanoseconds, where Round(0) and Sub would cost a turn of the pool 25 ns more.
	wall := time.Duration(now.UnixNano() - c.idleSince.UnixNano())
	if max(wall, now.Sub(c.idleSince)) < c.idleLimit {
		return CloseNone
	}
	return c.limitReason
}

// check returns why c must not be used, before anything is written, or
// CloseNone: nothing may have arrived since its last answer, and the peer must
// still be there. What arrived unasked could be taken for the answer to the
// next request.
func (c *conn) check() CloseReason {
	if c.parked != nil {
		return c.unpark()
	}
	if c.sc.Direct() {
		if c.nc != net.Conn(&c.sc) {
			// TLS may have read ahead of us what the socket does not show any
			// more, and has records that are no data: ask it, not the socket.
			return c.probe()
		}
		switch c.sc.Peek() {
		case sock.Readable:
			return CloseProtocolError
		case sock.Ended:
			return CloseStale
		case sock.Quiet, sock.Unknown:
		}
		return CloseNone
	}
	return c.checkWrapped()
}

// checkWrapped is check for a connection with something of the user's between
// us and the socket, which may read ahead and may take bytes for itself.
func (c *conn) checkWrapped() CloseReason {
	switch c.sc.Peek() {
	case sock.Ended:
		return CloseStale
	case sock.Quiet:
		// Nothing is in the socket: what has been read ahead comes at once,
		// deadline or not.
		return c.probeUntil(time.Unix(1, 0))
	case sock.Readable:
		if reason := c.probeUntil(time.Now().Add(probeWait)); reason != CloseNone {
			return reason
		}
		// The deadline may have passed before the read was tried.
		if c.sc.Peek() != sock.Quiet {
			return CloseProtocolError
		}
		return CloseNone
	case sock.Unknown:
	}
	// It hides its socket, and was not parked because it has not served.
	return c.probeUntil(time.Now().Add(probeWait))
}

// probeWait is how long a probe of a connection that cannot be read without
// waiting may take.
const probeWait = time.Millisecond

// probe reads through TLS on our own socket, without waiting. A timeout means
// that no data was there; data or an end mean that the connection is of no
// more use.
func (c *conn) probe() CloseReason {
	var b [1]byte
	c.sc.SetNonblock(true)
	defer c.sc.SetNonblock(false)
	wrote := c.sc.BytesWritten()
	reason := unasked(c.nc.Read(b[:]))
	if reason == CloseNone && c.tls != nil && c.tls.Version < tls.VersionTLS13 && c.sc.BytesWritten() != wrote {
		return CloseStale // the peer asked to shake hands again, which does not survive this
	}
	if r := c.records(); reason == CloseNone && r != nil && r.Within() {
		return CloseProtocolError
	}
	return reason
}

// records returns what lies between TLS and our own socket, nil if that is not
// how c is made.
func (c *conn) records() *sock.Records {
	if secure, ok := c.nc.(*tls.Conn); ok {
		r, _ := secure.NetConn().(*sock.Records)
		return r
	}
	return nil
}

// canWriteRead reports whether writeRead works on c. fresh: c has not been used
// before, and what the server says before it is asked may be its answer, which
// TLS has got hold of already.
func (c *conn) canWriteRead(fresh bool) bool {
	return c.sc.Direct() && (c.nc == net.Conn(&c.sc) || !fresh && c.records() != nil)
}

// writeRead is WriteRead of the socket, through TLS if there is TLS on it.
func (c *conn) writeRead(p, buf []byte, fresh bool) sock.WriteReadResult {
	if r := c.records(); r != nil {
		return r.WriteReadOver(c.nc, p, buf)
	}
	return c.sc.WriteRead(p, buf, fresh)
}

// writeRest writes what of p a writeRead has not written, and waits for that.
func (c *conn) writeRest(p []byte, wrote int) error {
	if r := c.records(); r != nil {
		return r.Flush()
	}
	_, err := c.nc.Write(p[wrote:])
	return err
}

// probeGrace is how long a probe may take to notice its deadline.
const probeGrace = 250 * time.Millisecond

// probeUntil is probe with a deadline, which a wrapper may not heed: its
// connection is closed then.
func (c *conn) probeUntil(deadline time.Time) CloseReason {
	var b [1]byte
	if c.sc.SetReadDeadline(deadline) != nil {
		return CloseStale
	}
	watchdog := time.AfterFunc(probeGrace, c.sc.Interrupt)
	reason := unasked(c.nc.Read(b[:]))
	if watchdog.Stop() && c.sc.SetReadDeadline(time.Time{}) == nil {
		return reason
	}
	return cmp.Or(reason, CloseStale)
}

// unasked returns what a read that should have got nothing says of its
// connection.
func unasked(n int, err error) CloseReason {
	switch {
	case n > 0:
		return CloseProtocolError
	case isTimeout(err):
		return CloseNone
	}
	return CloseStale
}

// setDeadline sets the deadlines of c's socket.
func (c *conn) setDeadline(at time.Time) error {
	c.soon = 0
	return c.sc.SetDeadline(at)
}

// setReadDeadline sets the read deadline of c's socket.
func (c *conn) setReadDeadline(at time.Time) error {
	c.soon = 0
	return c.sc.SetReadDeadline(at)
}

// calm takes back a read deadline that was left.
func (c *conn) calm() {
	if c.soon != 0 {
		_ = c.setReadDeadline(time.Time{}) // fails if c was interrupted or closed, as all that follows does
	}
}

// parkedRead is a read that is under way while a connection that hides its
// socket is idle: the only way to hear from its peer.
type parkedRead struct {
	done  chan struct{} // closed when the read has returned
	n     int           // valid after done
	err   error         // valid after done
	ended atomic.Bool   // unpark wants it to return
}

// park starts the read. gone is called if it ends before unpark, from the
// goroutine that reads: nobody listens any more then, even if it ended by a
// deadline of the wrapper's own. That goroutine ends with unpark or with the
// connection.
func (c *conn) park(run func(func()), gone func()) {
	r := &parkedRead{done: make(chan struct{})}
	c.parked = r
	run(func() {
		var b [1]byte
		r.n, r.err = c.nc.Read(b[:])
		close(r.done)
		if r.n > 0 || !isTimeout(r.err) || !r.ended.Load() {
			gone()
		}
	})
}

// unparkGrace is how long a read may take to notice its deadline.
const unparkGrace = 50 * time.Millisecond

// await waits for the read, whose deadline has passed, to return. A wrapper
// may take deadlines and do nothing with them.
func (r *parkedRead) await() error {
	select {
	case <-r.done:
		return nil
	default:
	}
	timer := time.NewTimer(unparkGrace)
	defer timer.Stop()
	select {
	case <-r.done:
		return nil
	case <-timer.C:
		return os.ErrDeadlineExceeded
	}
}

// unpark ends the read and returns what it heard.
func (c *conn) unpark() CloseReason {
	r := c.parked
	c.parked = nil
	select {
	case <-r.done:
		return cmp.Or(unasked(r.n, r.err), CloseStale) // it ended by itself
	default:
	}
	r.ended.Store(true)
	err := c.sc.SetReadDeadline(time.Unix(1, 0))
	if err == nil {
		err = r.await()
	}
	if err == nil {
		err = c.sc.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return CloseStale // closed, or interrupted
	}
	return unasked(r.n, r.err)
}

// sampleRTT notes that an answer took d: its round trip cannot be longer.
func (c *conn) sampleRTT(d time.Duration) {
	if c.rtt == 0 || d < c.rtt {
		c.rtt = d
	}
}

// shutDown closes the socket. TLS's close_notify is sent if there is room for
// it.
func (c *conn) shutDown() {
	c.sc.SetNonblock(true)
	_ = c.nc.Close()
}

// info describes c, with its served-th request, to a ReuseStrategy.
func (c *conn) info(served int) ConnInfo {
	return ConnInfo{Host: c.host.key.Peer(), RemoteAddr: addrString(c.nc.RemoteAddr()), DialedAt: c.dialedAt, Served: served}
}

func addrString(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}
