//go:build linux && (amd64 || arm64)

package sock

import (
	"syscall"
	"unsafe"
)

// These system calls never wait, so the scheduler need not be told of them:
// with the two of a small exchange that saves 3 % of its CPU.

// readNow reads from a non-blocking socket. p must not be empty.
func readNow(fd uintptr, p []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	return rawResult(n, errno)
}

// recvPeek looks at what has arrived, without taking it. p must not be empty.
func recvPeek(fd uintptr, p []byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)),
		syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	return rawResult(n, errno)
}

func rawResult(n uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
