package sock

import (
	"errors"
	"os"
	"syscall"
)

// Watchable reports whether this platform has a Watcher.
func Watchable() bool { return true }

// watchEvents: a peer that hung up, once. No EPOLLIN, so data wakes nobody;
// errors and resets are always reported.
const watchEvents = syscall.EPOLLRDHUP | epollET

// epollET is syscall.EPOLLET as the unsigned number it is; the constant of
// package syscall is negative.
const epollET = 1 << 31

// watchSet is one epoll instance. It is itself read through the runtime's
// poller, so waiting for it holds no thread.
type watchSet struct {
	// Set in newWatchSet; never changed.
	epfd int
	file *os.File // of epfd
	raw  syscall.RawConn
	turn func(fd uintptr) bool
	ctl  func(fd uintptr)

	// For next only.
	events [watchBatch]syscall.EpollEvent
	n      int

	// What ctl does, and what came of it. Guarded by the Watcher's mu, which also
	// keeps epfd open.
	op  int
	ev  syscall.EpollEvent
	err error
}

func newWatchSet() (*watchSet, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	// os.NewFile leaves what blocks outside the runtime's poller.
	if err := syscall.SetNonblock(fd, true); err != nil {
		_ = syscall.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	s := &watchSet{epfd: fd, file: os.NewFile(uintptr(fd), "epoll")}
	s.turn, s.ctl = s.wait, s.control
	if s.raw, err = s.file.SyscallConn(); err != nil {
		_ = s.file.Close()
		return nil, err
	}
	return s, nil
}

// add registers c. An end that has come already is reported as well.
func (s *watchSet) add(c *Conn, token uint64) error {
	ev := syscall.EpollEvent{Events: watchEvents, Fd: int32(uint32(token)), Pad: int32(uint32(token >> 32))}
	return s.apply(c, syscall.EPOLL_CTL_ADD, ev)
}

// remove takes c out again, if it is not closed.
func (s *watchSet) remove(c *Conn) {
	_ = s.apply(c, syscall.EPOLL_CTL_DEL, syscall.EpollEvent{}) // a closed socket has left by itself
}

func (s *watchSet) apply(c *Conn, op int, ev syscall.EpollEvent) error {
	s.op, s.ev, s.err = op, ev, nil
	return errors.Join(c.raw.Control(s.ctl), s.err)
}

// control is the callback of apply.
func (s *watchSet) control(fd uintptr) {
	s.err = os.NewSyscallError("epoll_ctl", syscall.EpollCtl(s.epfd, s.op, int(fd), &s.ev))
}

// close makes next answer false. It does not wait for the peer of any socket.
func (s *watchSet) close() { _ = s.file.Close() }

// next waits for events and appends their tokens; false when the set is closed.
func (s *watchSet) next(tokens []uint64) ([]uint64, bool) {
	if err := s.raw.Read(s.turn); err != nil {
		return tokens, false
	}
	for _, ev := range s.events[:s.n] {
		tokens = append(tokens, uint64(uint32(ev.Pad))<<32|uint64(uint32(ev.Fd)))
	}
	return tokens, true
}

// wait is the callback of next: false asks to be called again when the epoll
// instance has something.
func (s *watchSet) wait(fd uintptr) bool {
	n, err := syscall.EpollWait(int(fd), s.events[:], 0)
	s.n = max(n, 0)
	if err == syscall.EINTR {
		return true // no events; next is called again
	}
	return s.n > 0
}
