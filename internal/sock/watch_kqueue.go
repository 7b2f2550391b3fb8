//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package sock

import (
	"os"
	"sync"
	"syscall"
)

// Watchable reports whether this platform has a Watcher.
func Watchable() bool { return true }

// neverReached is a low-water mark that no receive buffer holds, so that data
// wakes nobody and an end still does.
const neverReached = 1 << 30

// watchSet is one kqueue. Its goroutine is blocked in kevent(2), which takes
// an OS thread, and is woken at the end by a pipe whose other side is closed.
type watchSet struct {
	kq         int // closed by next, which is its only waiter
	wake, stop *os.File
	events     [watchBatch]syscall.Kevent_t // for next only

	// mu guards tokens: events carry descriptors, which are used again.
	mu     sync.Mutex
	tokens map[uint64]uint64
}

func newWatchSet() (*watchSet, error) {
	kq, err := syscall.Kqueue()
	if err != nil {
		return nil, os.NewSyscallError("kqueue", err)
	}
	syscall.CloseOnExec(kq)
	s := &watchSet{kq: kq, tokens: make(map[uint64]uint64)}
	if s.wake, s.stop, err = os.Pipe(); err != nil {
		_ = syscall.Close(kq)
		return nil, err
	}
	if err := s.change(s.wake.Fd(), syscall.EV_ADD); err != nil {
		_ = s.stop.Close()
		s.release()
		return nil, err
	}
	return s, nil
}

// change adds or deletes one descriptor.
func (s *watchSet) change(fd uintptr, flags int) error {
	var ev [1]syscall.Kevent_t
	syscall.SetKevent(&ev[0], int(fd), syscall.EVFILT_READ, flags|syscall.EV_CLEAR)
	ev[0].Fflags = syscall.NOTE_LOWAT
	ev[0].Data = neverReached
	_, err := syscall.Kevent(s.kq, ev[:], nil, nil)
	return os.NewSyscallError("kevent", err)
}

// add registers c. An end that has come already is reported as well.
func (s *watchSet) add(c *Conn, token uint64) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cerr := c.raw.Control(func(fd uintptr) {
		if err = s.change(fd, syscall.EV_ADD); err == nil {
			s.tokens[uint64(fd)] = token
		}
	})
	if cerr != nil {
		return cerr
	}
	return err
}

// remove takes c out again, before it is closed.
func (s *watchSet) remove(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = c.raw.Control(func(fd uintptr) { // fails on a closed socket, which has left by itself
		delete(s.tokens, uint64(fd))
		_ = s.change(fd, syscall.EV_DELETE)
	})
}

// close makes next answer false.
func (s *watchSet) close() { _ = s.stop.Close() }

// release gives the descriptors back. After it, next is not called again.
func (s *watchSet) release() {
	_ = syscall.Close(s.kq)
	_ = s.wake.Close()
}

// next waits for events and appends their tokens; false when the set is closed.
func (s *watchSet) next(tokens []uint64) ([]uint64, bool) {
	n, err := syscall.Kevent(s.kq, nil, s.events[:], nil)
	if err == syscall.EINTR {
		return tokens, true
	}
	if err != nil {
		// Not expected. The descriptors stay until close, as add uses them.
		_, _ = s.wake.Read(make([]byte, 1))
		s.release()
		return tokens, false
	}
	wake := uint64(s.wake.Fd())
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ev := range s.events[:n] {
		if uint64(ev.Ident) == wake {
			s.release()
			return tokens, false
		}
		if token, ok := s.tokens[uint64(ev.Ident)]; ok && ev.Flags&(syscall.EV_EOF|syscall.EV_ERROR) != 0 {
			tokens = append(tokens, token)
		}
	}
	return tokens, true
}
