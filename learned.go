package keepalive

import "time"

// What no header tells is learned from how idle connections end: a server that
// hangs up again and again after the same time has a limit there.

const (
	// learnFrom is how many ends must agree.
	learnFrom = 3
	// learnLeast is the shortest idle time that counts: what ends sooner has
	// other reasons.
	learnLeast = 100 * time.Millisecond
	// learnApart is how far apart ends must be to count as more than one: those
	// that come together are a restart.
	learnApart = 50 * time.Millisecond
	// learnFor is how long what was learned holds without having been seen again.
	learnFor = 15 * time.Minute
	// maxLearned bounds how many hosts are remembered.
	maxLearned = 1024
)

// idleEnds is what is known of a server's own idle limit. Not safe for
// concurrent use: guarded by pool.mu.
type idleEnds struct {
	last [learnFrom]time.Duration // idle times of the last ends, a ring
	n    int                      // ends noted
	at   time.Time                // the last one
	// limit is the server's, 0: unknown. Learned at at.
	limit time.Duration
}

// note adds an idle connection that its peer ended at now, after d.
func (l *idleEnds) note(d time.Duration, now time.Time) {
	if d < learnLeast || l.n > 0 && now.Sub(l.at) < learnApart {
		return
	}
	l.last[l.n%learnFrom] = d
	l.n++
	l.at = now
	if l.n < learnFrom {
		return
	}
	shortest, longest := l.last[0], l.last[0]
	for _, d := range l.last {
		shortest, longest = min(shortest, d), max(longest, d)
	}
	if longest-shortest <= max(learnApart, shortest/20) {
		l.limit = shortest
	}
}

// idleTimeout returns how long a connection with that round trip may stay idle,
// 0 if nothing was learned.
func (l *idleEnds) idleTimeout(now time.Time, rtt time.Duration) time.Duration {
	switch {
	case l == nil || l.limit == 0:
		return 0
	case now.Sub(l.at) > learnFor:
		*l = idleEnds{} // it may have changed
		return 0
	}
	return max(l.limit-keepAliveMargin(l.limit, rtt), 1)
}

// noteEndLocked learns from c, which was idle until its peer ended it at now.
func (p *pool) noteEndLocked(c *conn, now time.Time) {
	h := c.host
	if c.served == 0 || c.silent {
		return
	}
	if h.ends == nil {
		if len(p.learned) >= maxLearned {
			clear(p.learned)
		}
		h.ends = &idleEnds{}
		p.learned[h.key] = h.ends
	}
	h.ends.note(now.Sub(c.idleSince), now)
}
