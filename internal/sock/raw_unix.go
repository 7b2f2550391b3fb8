//go:build darwin || dragonfly || freebsd || netbsd || openbsd || (linux && (race || msan || !(amd64 || arm64)))

package sock

import "syscall"

// readNow reads from a non-blocking socket.
func readNow(fd uintptr, p []byte) (int, error) { return syscall.Read(int(fd), p) }

// recvPeek looks at what has arrived, without taking it.
func recvPeek(fd uintptr, p []byte) (int, error) {
	n, _, err := syscall.Recvfrom(int(fd), p, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return n, err
}

// writeNow writes to a non-blocking socket.
func writeNow(fd uintptr, p []byte) (int, error) { return syscall.Write(int(fd), p) }
