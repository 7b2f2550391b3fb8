//go:build !darwin && !dragonfly && !freebsd && !linux && !netbsd && !openbsd

package sock

const haveSockets = false

// Peek answers Unknown: there is no socket access on this platform.
func (c *Conn) Peek() State { return Unknown }

// WriteRead answers ErrNoSocket: there is no socket access on this platform.
func (c *Conn) WriteRead(_, _ []byte, _ bool) WriteReadResult {
	return WriteReadResult{Err: ErrNoSocket}
}

// TryRead answers ErrWouldBlock, which says nothing: there is no socket access
// on this platform.
func (c *Conn) TryRead(_ []byte) (int, error) { return 0, ErrWouldBlock }

// tryWrite is never reached: SetNonblock has no effect here.
func (c *Conn) tryWrite(p []byte) (int, error) { return c.nc.Write(p) }
