//go:build !linux

package sock

// unacknowledged is not known on this platform.
func (c *Conn) unacknowledged() int { return 0 }
