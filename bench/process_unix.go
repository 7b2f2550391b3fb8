//go:build unix

package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

// cpuTime is the user and system time that this process has used.
func cpuTime() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// fileLimit is how many descriptors a process may have.
func fileLimit() (int, error) {
	var l syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l)
	return int(min(uint64(l.Max), 1<<30)), err //nolint:unconvert // not everywhere the same type
}

// residentMemory is what of this process is in memory, in bytes, when what
// was garbage has been given back.
func residentMemory() (int64, error) {
	for range 3 { // a sync.Pool is empty after two
		debug.FreeOSMemory()
	}
	// Not /proc/self/status: its number lags behind.
	data, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		return 0, fmt.Errorf("resident memory: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "Rss: %d kB", &kb); err == nil {
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("resident memory: no Rss in smaps_rollup")
}

// machine is what the numbers were measured on, as far as it is known.
func machine() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
