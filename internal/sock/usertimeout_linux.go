package sock

import (
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT, which package syscall does not name on
// every architecture.
const tcpUserTimeout = 0x12

// UserTimeoutControl returns a control function for net.Dialer that sets
// TCP_USER_TIMEOUT, rounded up to a millisecond; nil for d <= 0 and on other
// systems than Linux. Sockets that are not TCP are left alone.
func UserTimeoutControl(d time.Duration) func(network, address string, c syscall.RawConn) error {
	if d <= 0 {
		return nil
	}
	ms := int((d + time.Millisecond - 1) / time.Millisecond)
	return func(network, _ string, c syscall.RawConn) error {
		if len(network) < 3 || network[:3] != "tcp" {
			return nil
		}
		// A kernel that refuses it works without.
		return c.Control(func(fd uintptr) {
			_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, ms)
		})
	}
}
