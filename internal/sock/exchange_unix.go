//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package sock

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

const haveSockets = true

// maxWrite is the most that one write(2) is given: some kernels refuse more
// than 2 GiB.
const maxWrite = 1 << 30

// stage is where a step stands.
type stage uint8

const (
	stageLook  stage = iota // peek; then as stageWrite
	stageWrite              // write; then wait for the first bytes
	stageFresh              // write; then read, as nobody has looked yet
	stageRead               // read, waiting as often as needed
	stageTry                // read, never waiting
)

// platform is the part of a Conn that works on its socket. The two callbacks
// are made once, so that no call allocates: turn in initPlatform, look when it
// is first needed, as most connections never do.
type platform struct {
	look   func(fd uintptr) // Guarded by Conn.mu.
	looked State            // Guarded by Conn.mu.

	// The step under way: WriteRead or TryRead, which are reads, so there is
	// one at most. The buffers are let go when it ends.
	stage stage
	found State
	errno syscall.Errno
	turn  func(fd uintptr) bool
	out   []byte
	in    []byte
	wrote int
	n     int
}

func (c *Conn) initPlatform() {
	if c.direct {
		c.turn = c.step
	}
}

// Peek looks at the socket without taking anything or waiting, while another
// goroutine reads too. An error that the socket holds (RST) is shown once: if
// Peek gets it, a later Read sees io.EOF.
func (c *Conn) Peek() State {
	if c.raw == nil {
		return Unknown
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.look == nil {
		c.look = func(fd uintptr) { c.looked = peek(fd) }
	}
	// Control, not Read: RawConn.Read would wait for a reader that is parked.
	if c.raw.Control(c.look) != nil {
		return Ended
	}
	return c.looked
}

// WriteRead is an exchange in one step: it looks whether the connection is
// Quiet, writes p without waiting, waits, and reads the first bytes of the
// answer into buf, which must not be empty. The read deadline holds for the
// wait; the write deadline plays no part. Only for a Direct Conn.
//
// With fresh the look is left out: the connection has not been used before, so
// what the peer said unasked may be its answer (a 503 on accepting).
//
// The whole is one RawConn.Read: the runtime forgets old readiness, then the
// callback's first turn looks, writes and asks to be called when there is
// something to read. What arrives after the look makes it readable anew, so
// nothing is missed, and the read that would find nothing is saved.
func (c *Conn) WriteRead(p, buf []byte, fresh bool) WriteReadResult {
	if !c.direct {
		return WriteReadResult{Err: ErrNoSocket}
	}
	c.stage = stageLook
	if fresh {
		c.stage = stageFresh
	}
	c.out, c.in = p, buf
	err := c.runStep()
	res := WriteReadResult{Wrote: c.wrote, N: c.n}
	c.bytesWritten.Add(int64(c.wrote))
	switch {
	case err != nil:
		res.Err = err
	case c.stage == stageLook:
		res.Stale, res.Found = true, c.found
	case c.stage == stageRead:
		res.Err = c.readResult()
	case c.errno != 0:
		res.WriteErr, res.Err = true, c.settle(c.opError("write", c.errno), flagWriteEnded)
	}
	return res
}

// TryRead reads what is there and never waits: (0, ErrWouldBlock) when there
// is nothing, (0, io.EOF) when the peer has ended. On a Conn that is not Direct
// it always answers ErrWouldBlock, which there says nothing.
func (c *Conn) TryRead(p []byte) (int, error) {
	if !c.direct {
		return 0, ErrWouldBlock
	}
	if len(p) == 0 {
		return 0, nil
	}
	c.stage = stageTry
	c.in = p
	if err := c.runStep(); err != nil {
		return c.n, err
	}
	return c.n, c.readResult()
}

// runStep runs the step that stage, out and in describe. Its error is the
// poller's: a deadline, or a closed connection.
func (c *Conn) runStep() error {
	c.wrote, c.n, c.errno, c.found = 0, 0, 0, Unknown
	err := c.raw.Read(c.turn)
	c.out, c.in = nil, nil
	c.bytesRead.Add(int64(c.n))
	if err == nil {
		return nil
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		op.Op = "read" // not "raw-read": how it was done is nobody's business
	}
	return c.settle(err, flagReadEnded)
}

// readResult is the error of a step that ended by reading.
func (c *Conn) readResult() error {
	switch {
	case c.errno == syscall.EAGAIN:
		return ErrWouldBlock
	case c.errno != 0:
		return c.settle(c.opError("read", c.errno), flagReadEnded)
	case c.n == 0:
		return c.settle(io.EOF, flagReadEnded)
	}
	return nil
}

// step is the callback of RawConn.Read: false asks to be called again when
// there is something to read.
func (c *Conn) step(fd uintptr) bool {
	switch c.stage {
	case stageLook:
		if c.found = peek(fd); c.found != Quiet {
			return true
		}
		c.stage = stageWrite
		return c.stepWrite(fd)
	case stageFresh:
		done := c.stepWrite(fd)
		return done || c.stepRead(fd)
	case stageWrite, stageRead, stageTry:
	}
	return c.stepRead(fd)
}

// stepWrite writes once; false means that all went out.
//
// Without MSG_NOSIGNAL, so SIGPIPE is handled as for any other connection of a
// Go program: the runtime ignores it on sockets.
func (c *Conn) stepWrite(fd uintptr) (done bool) {
	if c.flags.Load()&flagWriteEnded != 0 {
		c.errno = syscall.ECANCELED // settle makes it ErrInterrupted
		return true
	}
	if len(c.out) > 0 {
		c.wrote, c.errno = writeOnce(fd, c.out)
		if c.errno == syscall.EAGAIN {
			c.errno = 0 // a short write, of nothing
		}
		if c.wrote < len(c.out) {
			return true
		}
	}
	c.stage = stageRead
	return false
}

func (c *Conn) stepRead(fd uintptr) (done bool) {
	for {
		n, err := readNow(fd, c.in)
		if err == syscall.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		c.n, c.errno = max(n, 0), errnoOf(err)
		return c.errno != syscall.EAGAIN || c.stage == stageTry
	}
}

// tryWrite writes once and answers ErrWouldBlock for a rest. It is for the
// rare writes under SetNonblock, so it may allocate.
func (c *Conn) tryWrite(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	var errno syscall.Errno
	err = c.raw.Write(func(fd uintptr) bool {
		n, errno = writeOnce(fd, p)
		return true
	})
	switch {
	case err != nil:
		return n, err
	case errno != 0 && errno != syscall.EAGAIN:
		return n, c.opError("write", errno)
	case n < len(p):
		return n, ErrWouldBlock
	}
	return n, nil
}

// opError is the error package net would have made.
func (c *Conn) opError(op string, errno syscall.Errno) error {
	local := c.nc.LocalAddr()
	network := "tcp"
	if local != nil {
		network = local.Network()
	}
	return &net.OpError{
		Op: op, Net: network, Source: local, Addr: c.nc.RemoteAddr(),
		Err: os.NewSyscallError(op, errno),
	}
}

// writeOnce is one write(2), repeated only if a signal cut in.
func writeOnce(fd uintptr, p []byte) (int, syscall.Errno) {
	p = p[:min(len(p), maxWrite)]
	for {
		n, err := writeNow(fd, p)
		if err == syscall.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		return max(n, 0), errnoOf(err)
	}
}

// peek looks at one byte without taking it.
func peek(fd uintptr) State {
	var b [1]byte
	for {
		n, err := recvPeek(fd, b[:])
		switch {
		case err == nil && n > 0:
			return Readable
		case err == syscall.EAGAIN: //nolint:errorlint // a bare errno
			return Quiet
		case err != syscall.EINTR: //nolint:errorlint // a bare errno
			return Ended // err is nil for a FIN
		}
	}
}

// errnoOf is the errno that package syscall wrapped in err; 0 for nil.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(syscall.Errno); ok { //nolint:errorlint // a bare errno
		return errno
	}
	return syscall.EIO
}
