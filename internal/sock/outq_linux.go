package sock

import (
	"syscall"
	"unsafe"
)

// unacknowledged returns how many bytes the peer has yet to acknowledge, sent
// or not (SIOCOUTQ, which is TIOCOUTQ by another name); 0 if that is unknown.
func (c *Conn) unacknowledged() int {
	var queued int32
	err := c.raw.Control(func(fd uintptr) {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&queued)))
		if errno != 0 {
			queued = 0
		}
	})
	if err != nil {
		return 0
	}
	return int(queued)
}
