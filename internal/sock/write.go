package sock

import (
	"errors"
	"os"
	"time"
)

// pieceSize is what a connection that is not Direct must accept within one
// write timeout.
const pieceSize = 16 << 10

// SetWriteTimeout sets how long a Write may go without progress; 0 turns it
// off, which is the default. For the owner only, never while a Write runs.
//
// On a Direct connection a Write fails with a timeout when, for d (noticed at
// most a quarter of d late), the kernel accepted not one byte and (on Linux)
// the peer acknowledged none either. However long a Write takes, progress
// keeps it alive. On a connection that is not Direct, progress cannot be seen
// and a deadline that passes may break what lies between (TLS does not outlive
// one): there a Write goes out in pieces of 16 KiB, each with the time d.
// WriteRead never waits to write, so this does not concern it.
func (c *Conn) SetWriteTimeout(d time.Duration) { c.writeTimeout = d }

// writeWatched writes in rounds of a quarter of the write timeout.
func (c *Conn) writeWatched(p []byte) (n int, err error) {
	defer c.unwatch()
	moved, queued := time.Now(), c.unacknowledged()
	for now := moved; ; {
		end, err := c.arm(now)
		if err != nil {
			return n, err
		}
		m, err := c.nc.Write(p[n:])
		n += m
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		now = time.Now()
		if !end.IsZero() && !now.Before(end) {
			return n, err
		}
		left := c.unacknowledged()
		switch {
		case m > 0 || left < queued:
			moved = now
		case now.Sub(moved) >= c.writeTimeout:
			return n, err
		}
		queued = left
	}
}

// writePieces writes p so that each piece has the whole write timeout. Where the
// connection has no deadlines, it is interrupted.
func (c *Conn) writePieces(p []byte) (n int, err error) {
	defer c.unwatch()
	for {
		_, err := c.arm(time.Now())
		if errors.Is(err, ErrInterrupted) {
			return n, err
		}
		var limit *time.Timer
		if err != nil {
			limit = time.AfterFunc(c.writeTimeout, c.Interrupt)
		}
		m, err := c.nc.Write(p[n:min(n+pieceSize, len(p))])
		if limit != nil {
			limit.Stop()
		}
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// arm sets the deadline of one round and returns the one set from outside.
// It never sets one over an interruption.
func (c *Conn) arm(now time.Time) (end time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flags.Load()&flagWriteEnded != 0 {
		return time.Time{}, ErrInterrupted
	}
	c.watching = true
	return c.writeEnd, c.armLocked(now)
}

// armLocked sets the round's deadline, or the one from outside if it is
// earlier. c.mu is held and the flags were looked at.
func (c *Conn) armLocked(now time.Time) error {
	round := c.writeTimeout
	if c.direct {
		round = max(round/4, time.Millisecond)
	}
	end := now.Add(round)
	if !c.writeEnd.IsZero() && c.writeEnd.Before(end) {
		end = c.writeEnd
	}
	return c.nc.SetWriteDeadline(end)
}

// unwatch puts back the deadline from outside.
func (c *Conn) unwatch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watching = false
	if c.flags.Load()&flagWriteEnded == 0 {
		_ = c.nc.SetWriteDeadline(c.writeEnd) // fails with the connection only, and the Write has said so
	}
}
