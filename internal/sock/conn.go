// Package sock is what the platform's sockets offer beyond net.Conn: a look at
// what has arrived without taking it (Peek), a whole exchange in one step
// (WriteRead), reads and writes that never wait (TryRead, SetNonblock), writes
// that are watched for progress (SetWriteTimeout), an end that cannot be taken
// back (Interrupt), the exchange in one step for TLS (Records), and one goroutine
// that hears when any of many peers hangs up (Watcher).
//
//	platform                               Peek, Direct   Watcher   acknowledgements seen
//	linux                                  yes            epoll     yes
//	darwin and the BSDs                    yes            kqueue    no
//	any other                              no             no        no
//
// Where a thing is missing, its predicate says so (Direct, HasSocket,
// Watchable) and the rest of Conn still works as a net.Conn.
package sock

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	// ErrWouldBlock is the answer of a read or write that may not wait. It is
	// a net.Error, a timeout and temporary, so that crypto/tls does not hold
	// it against the connection.
	ErrWouldBlock error = &connError{text: "sock: operation would block", temporary: true}

	// ErrInterrupted is what Read, Write, WriteRead and the deadline setters
	// answer after Interrupt (or InterruptWrite, for writes). It is a
	// net.Error and a timeout, not a temporary one, and errors.Is holds with
	// os.ErrDeadlineExceeded.
	ErrInterrupted error = &connError{text: "sock: connection interrupted"}

	// ErrNoSocket is the answer to what needs a socket on a connection that
	// has none, or hides it.
	ErrNoSocket = errors.New("sock: connection has no usable socket")
)

// connError is a timeout of our own making.
type connError struct {
	text      string
	temporary bool
}

func (e *connError) Error() string   { return e.text }
func (e *connError) Timeout() bool   { return true }
func (e *connError) Temporary() bool { return e.temporary }

// Is lets an interruption pass for a deadline, which is what causes it.
func (e *connError) Is(target error) bool {
	return !e.temporary && target == os.ErrDeadlineExceeded
}

// State is what Peek found on a socket.
type State uint8

const (
	// Unknown means that there is no socket to look at.
	Unknown State = iota
	// Quiet means that nothing is pending and the peer has not hung up.
	Quiet
	// Readable means that at least one byte waits.
	Readable
	// Ended stands for FIN, RST or a socket error, with no byte left before it.
	Ended
)

// String returns the state in one lower-case word.
func (s State) String() string {
	switch s {
	case Unknown:
		return "unknown"
	case Quiet:
		return "quiet"
	case Readable:
		return "readable"
	case Ended:
		return "ended"
	}
	return "invalid"
}

// Bits of Conn.flags.
const (
	flagNonblock     uint32 = 1 << iota // set and cleared by SetNonblock
	flagReadEnded                       // set by Interrupt, for good
	flagWriteEnded                      // set by Interrupt and InterruptWrite, for good
	flagClosed                          // set by Close, for good
	flagsInterrupted = flagReadEnded | flagWriteEnded
)

// interruptGrace is how long a connection that is not Direct has to heed the
// deadline of Interrupt before it is closed.
const interruptGrace = 25 * time.Millisecond

// maxUnwrap bounds the walk through NetConn methods.
const maxUnwrap = 8

// Conn is a net.Conn with a look at the socket below it. A connection that
// hides its socket can be wrapped too; it loses Peek, WriteRead and TryRead.
//
// A Conn has one owner at a time. Read and Write may run in parallel, as for
// any net.Conn; WriteRead and TryRead are reads, and WriteRead is also a write.
// Peek, Interrupt, InterruptWrite, Close and the deadline setters may be called
// at any time from any goroutine; BytesRead and BytesWritten too. The others
// belong to the owner.
type Conn struct {
	// Set in Init; never changed.
	nc     net.Conn
	raw    syscall.RawConn // nil: no socket
	direct bool

	// watching: a Write is being watched for progress. Guarded by mu.
	watching bool
	// watched: the peer's end is reported. Guarded by the Watcher's mu.
	watched bool

	// inflight counts Reads and Writes under way; only when not direct.
	inflight atomic.Int32
	flags    atomic.Uint32

	// mu makes {look at flags, set a deadline} one step, and guards what says
	// so. It is a leaf, and nothing that waits for the peer runs under it.
	mu sync.Mutex

	writeTimeout time.Duration // the owner's; see SetWriteTimeout
	writeEnd     time.Time     // the write deadline set from outside. Guarded by mu.

	bytesRead    atomic.Int64
	bytesWritten atomic.Int64
}

var _ net.Conn = (*Conn)(nil)

// New wraps nc: see Init.
func New(nc net.Conn) *Conn {
	c := new(Conn)
	c.Init(nc)
	return c
}

// Init makes c, which must be zero, wrap nc. If nc is exactly a *net.TCPConn or
// *net.UnixConn, c is Direct: reads and writes may go to the socket itself.
// Otherwise a socket is looked for below nc by its NetConn methods (as of
// *tls.Conn); such a socket serves Peek and the Watcher only, never reading or
// writing. SyscallConn is not asked of types other than these two.
func (c *Conn) Init(nc net.Conn) {
	c.nc = nc
	if !haveSockets {
		return
	}
	for below, depth := nc, 0; below != nil && depth < maxUnwrap; depth++ {
		if raw, ok := rawOf(below); ok {
			c.raw, c.direct = raw, raw != nil && depth == 0
			break
		}
		u, ok := below.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		below = u.NetConn()
	}
}

var _ interface{ NetConn() net.Conn } = (*tls.Conn)(nil)

// rawOf returns the raw form of a socket. ok says that nc is a socket; raw is
// nil all the same if it is of no use.
func rawOf(nc net.Conn) (raw syscall.RawConn, ok bool) {
	var err error
	switch nc := nc.(type) {
	case *net.TCPConn:
		raw, err = nc.SyscallConn()
	case *net.UnixConn:
		raw, err = nc.SyscallConn()
	default:
		return nil, false
	}
	if err != nil {
		return nil, true
	}
	return raw, true
}

// NetConn returns the wrapped connection.
func (c *Conn) NetConn() net.Conn { return c.nc }

// Direct reports whether reads and writes may use the socket itself, so that
// WriteRead, TryRead and SetNonblock work.
func (c *Conn) Direct() bool { return c.direct }

// HasSocket reports whether Peek and the Watcher work.
func (c *Conn) HasSocket() bool { return c.raw != nil }

// BytesRead returns how many bytes have been read since New.
func (c *Conn) BytesRead() int64 { return c.bytesRead.Load() }

// BytesWritten returns how many bytes were accepted since New, by the kernel
// or by the wrapped connection.
func (c *Conn) BytesWritten() int64 { return c.bytesWritten.Load() }

// LocalAddr returns the wrapped connection's local address.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// RemoteAddr returns the wrapped connection's remote address.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// Close closes the wrapped connection, once: TLS above may have done so, and a user's
// wrapper may count (one that heeds no deadline is closed by Interrupt, too). Another
// call returns nil, at once.
func (c *Conn) Close() error {
	if c.flags.Or(flagClosed)&flagClosed != 0 {
		return nil
	}
	return c.nc.Close()
}

// Read reads from the wrapped connection. Under SetNonblock it is TryRead.
// After Interrupt it fails with ErrInterrupted.
func (c *Conn) Read(p []byte) (int, error) {
	if !c.direct {
		c.inflight.Add(1) // before the flags: see closeIfUnheeded
		defer c.inflight.Add(-1)
	}
	switch f := c.flags.Load(); {
	case f&flagReadEnded != 0:
		return 0, ErrInterrupted
	case f&flagNonblock != 0:
		return c.TryRead(p)
	}
	n, err := c.nc.Read(p)
	c.bytesRead.Add(int64(n))
	return n, c.settle(err, flagReadEnded)
}

// Write writes to the wrapped connection.
//
// Under SetNonblock it attempts one write and answers ErrWouldBlock if not all
// of p fits. With a write timeout it fails only for want of progress, see
// SetWriteTimeout. After Interrupt or InterruptWrite it fails with
// ErrInterrupted. In all cases the count says what was accepted.
func (c *Conn) Write(p []byte) (n int, err error) {
	if !c.direct {
		c.inflight.Add(1)
		defer c.inflight.Add(-1)
	}
	switch f := c.flags.Load(); {
	case f&flagWriteEnded != 0:
		return 0, ErrInterrupted
	case f&flagNonblock != 0:
		n, err = c.tryWrite(p)
	case c.writeTimeout <= 0:
		n, err = c.nc.Write(p)
	case c.direct:
		n, err = c.writeWatched(p)
	default:
		n, err = c.writePieces(p)
	}
	c.bytesWritten.Add(int64(n))
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, c.settle(err, flagWriteEnded)
}

// settle turns any error into ErrInterrupted once the direction that flag
// stands for was interrupted: what fails then fails because of it, whatever
// form the end took.
func (c *Conn) settle(err error, flag uint32) error {
	if err != nil && c.flags.Load()&flag != 0 {
		return ErrInterrupted
	}
	return err
}

// SetNonblock makes Read and Write (through TLS too, which sits above) answer
// ErrWouldBlock instead of waiting, until it is turned off. It serves to look
// for data through TLS, and to send a close_notify that never waits; after a
// Write that was cut short, the connection is of no more use. It reports whether
// it took effect: not on a Conn that is not Direct. Calls already under way are
// not affected. For the owner only.
func (c *Conn) SetNonblock(on bool) bool {
	if !c.direct {
		return false
	}
	if on {
		c.flags.Or(flagNonblock)
	} else {
		c.flags.And(^flagNonblock)
	}
	return true
}

// SetDeadline sets both deadlines. After Interrupt it changes nothing and
// returns ErrInterrupted; after InterruptWrite it sets the read deadline only.
func (c *Conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.flags.Load()
	if f&flagReadEnded != 0 {
		return ErrInterrupted
	}
	c.writeEnd = t
	switch {
	case f&flagWriteEnded != 0:
		return c.nc.SetReadDeadline(t)
	case !c.watching:
		return c.nc.SetDeadline(t)
	}
	return errors.Join(c.nc.SetReadDeadline(t), c.armLocked(time.Now()))
}

// SetReadDeadline sets the read deadline. After Interrupt it changes nothing
// and returns ErrInterrupted.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flags.Load()&flagReadEnded != 0 {
		return ErrInterrupted
	}
	return c.nc.SetReadDeadline(t)
}

// SetWriteDeadline sets the write deadline; it holds beside a write timeout.
// After Interrupt or InterruptWrite it changes nothing and returns
// ErrInterrupted.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flags.Load()&flagWriteEnded != 0 {
		return ErrInterrupted
	}
	c.writeEnd = t
	if c.watching {
		return c.armLocked(time.Now())
	}
	return c.nc.SetWriteDeadline(t)
}

// Interrupt makes all present and future Reads and Writes fail promptly with
// ErrInterrupted, for good. It does not wait for them and does not close the
// connection; the owner still does. Only a connection that is not Direct, and
// on which a Read or Write goes on although its deadline has passed, is closed
// after a short grace, from a goroutine of its own.
func (c *Conn) Interrupt() {
	c.flags.Or(flagsInterrupted)
	var grace *time.Timer
	if !c.direct {
		// Ends by itself; started before SetDeadline, which in a wrapper may
		// wait for the very call that is to be ended.
		grace = time.AfterFunc(interruptGrace, c.closeIfUnheeded)
	}
	c.mu.Lock()
	err := c.nc.SetDeadline(longAgo())
	c.mu.Unlock()
	if err != nil && grace != nil {
		grace.Reset(0)
	}
}

// InterruptWrite is Interrupt for writes only; reads go on. On a connection
// that is not Direct and does not heed deadlines, a Write under way ends with
// Close only.
func (c *Conn) InterruptWrite() {
	c.flags.Or(flagWriteEnded)
	c.mu.Lock()
	_ = c.nc.SetWriteDeadline(longAgo()) // fails on a closed connection only, or one without deadlines
	c.mu.Unlock()
}

// closeIfUnheeded closes the wrapped connection if a call on it is still under
// way. A call that counts itself later sees the flag, and never starts.
func (c *Conn) closeIfUnheeded() {
	if c.inflight.Load() > 0 {
		_ = c.nc.Close() // not Close: the owner's must wait for the end of it
	}
}

// SetUserTimeout is [SetUserTimeout] for a Conn that is Direct, and nothing for any
// other.
func (c *Conn) SetUserTimeout(d time.Duration) {
	if c.direct {
		_ = SetUserTimeout(c.nc.RemoteAddr().Network(), c.raw, d) // a closed connection says so itself
	}
}

// longAgo is a deadline that has passed.
func longAgo() time.Time { return time.Unix(1, 0) }
