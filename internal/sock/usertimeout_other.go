//go:build !linux

package sock

import (
	"syscall"
	"time"
)

// SetUserTimeout does nothing: only Linux has TCP_USER_TIMEOUT.
func SetUserTimeout(string, syscall.RawConn, time.Duration) error { return nil }
