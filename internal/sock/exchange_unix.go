//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package sock

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
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

// step is one turn on a Conn's socket, a WriteRead, a TryRead or a Peek. Its
// callbacks are made once, so that no turn allocates, and it is pooled, so that an
// idle connection has none of it.
type step struct {
	turn func(fd uintptr) bool // of RawConn.Read
	look func(fd uintptr)      // of RawConn.Control

	// Set for the turn, and let go of at its end.
	c       *Conn
	out, in []byte

	stage stage
	found State
	errno syscall.Errno
	wrote int
	n     int
}

var steps = sync.Pool{ //nolint:gochecknoglobals // shared by nature
	New: func() any {
		s := new(step)
		s.turn = s.advance
		s.look = func(fd uintptr) { s.found = peek(fd) }
		return s
	},
}

func newStep(c *Conn) *step {
	s, _ := steps.Get().(*step)
	s.c = c
	return s
}

// free gives s back; it must not be used after.
func (s *step) free() {
	*s = step{turn: s.turn, look: s.look}
	steps.Put(s)
}

// Peek looks at the socket without taking anything or waiting, while another
// goroutine reads too. An error that the socket holds (RST) is shown once: if
// Peek gets it, a later Read sees io.EOF.
func (c *Conn) Peek() State {
	if c.raw == nil {
		return Unknown
	}
	s := newStep(c)
	defer s.free()
	// Control, not Read: RawConn.Read would wait for a reader that is parked.
	if c.raw.Control(s.look) != nil {
		return Ended
	}
	return s.found
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
	s := newStep(c)
	defer s.free()
	s.stage = stageLook
	if fresh {
		s.stage = stageFresh
	}
	s.out, s.in = p, buf
	err := s.run()
	res := WriteReadResult{Wrote: s.wrote, N: s.n}
	c.bytesWritten.Add(int64(s.wrote))
	switch {
	case err != nil:
		res.Err = err
	case s.stage == stageLook:
		res.Stale, res.Found = true, s.found
	case s.stage == stageRead:
		res.Err = s.readResult()
	case s.errno != 0:
		res.WriteErr, res.Err = true, c.settle(c.opError("write", s.errno), flagWriteEnded)
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
	s := newStep(c)
	defer s.free()
	s.stage, s.in = stageTry, p
	if err := s.run(); err != nil {
		return s.n, err
	}
	return s.n, s.readResult()
}

// run runs the step that stage, out and in describe. Its error is the poller's: a
// deadline, or a closed connection.
func (s *step) run() error {
	c := s.c
	err := c.raw.Read(s.turn)
	c.bytesRead.Add(int64(s.n))
	if err == nil {
		return nil
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		op.Op = "read" // not "raw-read": how it was done is nobody's business
	}
	return c.settle(err, flagReadEnded)
}

// readResult is the error of a step that ended by reading.
func (s *step) readResult() error {
	switch {
	case s.errno == syscall.EAGAIN:
		return ErrWouldBlock
	case s.errno != 0:
		return s.c.settle(s.c.opError("read", s.errno), flagReadEnded)
	case s.n == 0:
		return s.c.settle(io.EOF, flagReadEnded)
	}
	return nil
}

// advance is the callback of RawConn.Read: false asks to be called again when
// there is something to read.
func (s *step) advance(fd uintptr) bool {
	switch s.stage {
	case stageLook:
		if s.found = peek(fd); s.found != Quiet {
			return true
		}
		s.stage = stageWrite
		return s.write(fd)
	case stageFresh:
		done := s.write(fd)
		return done || s.read(fd)
	case stageWrite, stageRead, stageTry:
	}
	return s.read(fd)
}

// write writes once; false means that all went out.
//
// Without MSG_NOSIGNAL, so SIGPIPE is handled as for any other connection of a
// Go program: the runtime ignores it on sockets.
func (s *step) write(fd uintptr) (done bool) {
	if s.c.flags.Load()&flagWriteEnded != 0 {
		s.errno = syscall.ECANCELED // settle makes it ErrInterrupted
		return true
	}
	if len(s.out) > 0 {
		s.wrote, s.errno = writeOnce(fd, s.out)
		if s.errno == syscall.EAGAIN {
			s.errno = 0 // a short write, of nothing
		}
		if s.wrote < len(s.out) {
			return true
		}
	}
	s.stage = stageRead
	return false
}

func (s *step) read(fd uintptr) (done bool) {
	for {
		n, err := readNow(fd, s.in)
		if err == syscall.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		s.n, s.errno = max(n, 0), errnoOf(err)
		return s.errno != syscall.EAGAIN || s.stage == stageTry
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
