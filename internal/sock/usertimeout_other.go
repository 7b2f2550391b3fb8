//go:build !linux

package sock

import (
	"syscall"
	"time"
)

// UserTimeoutControl returns nil: only Linux has TCP_USER_TIMEOUT.
func UserTimeoutControl(time.Duration) func(network, address string, c syscall.RawConn) error {
	return nil
}
