package sock

import (
	"math"
	"strings"
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT, which package syscall does not name on
// every architecture.
const tcpUserTimeout = 0x12

// SetUserTimeout sets TCP_USER_TIMEOUT to d, rounded up to a millisecond; 0 is the
// system's. It does nothing for networks that are not TCP, and on other systems
// than Linux.
func SetUserTimeout(network string, c syscall.RawConn, d time.Duration) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	ms := 0
	if d > 0 {
		ms = int(min((d-1)/time.Millisecond+1, math.MaxInt32))
	}
	// A kernel that refuses it works without.
	return c.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, ms)
	})
}
