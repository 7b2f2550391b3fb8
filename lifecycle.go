package keepalive

import (
	"math/rand/v2"
	"time"
)

// adoptLocked makes c a connection of h, leased.
func (p *pool) adoptLocked(h *host, c *conn, now time.Time) {
	c.host, c.state = h, stateLeased
	c.inPool.Value, c.inHost.Value = c, c
	c.heapIndex = -1
	c.dialedAt, c.idleSince = now, now
	c.left = -1
	if c.settling = c.settling && p.cfg.perConn(2) > 1; c.settling {
		h.settling++
	}
	if n := p.cfg.maxRequestsPerConn; n > 0 {
		c.left = n
	}
	if l := p.cfg.maxLifetime; l > 0 {
		l -= time.Duration(rand.Float64() * p.cfg.lifetimeJitter * float64(l)) //nolint:gosec // no secret
		c.life = max(l, 1)                                                     // 0 would mean none
	}
	p.leased.Push(&c.inPool)
	h.inUse++
	p.all.inUse++
	h.Opened++
	p.all.Opened++
	p.serveLocked(c)
}

// suspectLocked drops the idle connections of h that have been idle since
// before then: what was learned of one of them is likely true of all.
func (p *pool) suspectLocked(h *host, then time.Time, do *todo) {
	for e := h.idleConns.Front(); e != nil; {
		c := e.Value
		e = e.Next()
		if !c.idleSince.After(then) {
			p.dropLocked(c, CloseSuspect, do)
		}
	}
}

// suspect is suspectLocked for a failed exchange.
func (p *pool) suspect(h *host, then time.Time) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.suspectLocked(h, then, &do)
	return do
}

// dropLocked takes an idle or leased connection from the pool. It keeps its
// slot until closed is called.
func (p *pool) dropLocked(c *conn, reason CloseReason, do *todo) {
	c.reason = reason
	p.moveLocked(c, stateClosing)
	p.serveLocked(c)
	p.unscheduleLocked(c)
	delete(p.watched, c.id)
	c.host.closed[reason]++
	p.all.closed[reason]++
	do.discard = append(do.discard, c)
	p.endSettlingLocked(c, do)
}

// closed notes that the socket of c is closed: its slot is free.
func (p *pool) closed(c *conn) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.state == stateDetached {
		c.reason = CloseDetached
		c.host.closed[CloseDetached]++
		p.all.closed[CloseDetached]++
	}
	p.moveLocked(c, stateClosed)
	p.freedLocked(c.host, &do)
	return do
}

// detach makes c the user's. It keeps its slot until closed is called.
func (p *pool) detach(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.users--
	p.countReuseLocked(c)
	p.moveLocked(c, stateDetached)
	delete(p.watched, c.id)
	p.unscheduleLocked(c)
	p.endRequestLocked()
}

// watch notes that the watcher will hear c, which has just been dialed.
func (p *pool) watch(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watched[c.id] = c
}

// watchedConn returns the connection with that id, or nil.
func (p *pool) watchedConn(id uint64) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.watched[id]
}

// peerGone notes that the peer of c has hung up, or sent what nobody asked
// for: an idle connection goes at once, a leased one is not pooled again.
func (p *pool) peerGone(c *conn, now time.Time) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch c.state {
	case stateIdle:
		p.noteEndLocked(c, now)
		p.dropLocked(c, ClosePeerClosed, &do)
	case stateLeased:
		c.peerGone = true
		p.shareLocked(c)
		if c.host != nil {
			p.refillLocked(c.host, &do)
		}
	case stateClosing, stateClosed, stateDetached:
	}
	return do
}

// dropIdle drops all idle connections.
func (p *pool) dropIdle(reason CloseReason) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropIdleLocked(reason, &do)
	return do
}

func (p *pool) dropIdleLocked(reason CloseReason, do *todo) {
	for e := p.idleConns.Front(); e != nil; e = p.idleConns.Front() {
		p.dropLocked(e.Value, reason, do)
	}
}

// drain refuses new requests and drops what is idle. quiet is closed when no
// request is under way any more; nil means that none is.
func (p *pool) drain() (quiet <-chan struct{}, do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == poolOpen {
		p.phase = poolDraining
	}
	p.dropIdleLocked(CloseTransportClosed, &do)
	if p.quiet == nil && p.active > 0 {
		p.quiet = make(chan struct{})
	}
	return p.quiet, do
}

// shut ends everything: it drops what is idle, fails all waiters and returns
// the dials and the connections in use, to be cut off.
func (p *pool) shut(now time.Time) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase != poolClosed {
		close(p.ended)
	}
	p.phase = poolClosed
	p.dropIdleLocked(CloseTransportClosed, &do)
	for _, h := range p.hosts {
		for e := h.waiters.Front(); e != nil; e = h.waiters.Front() {
			w := e.Value
			p.leaveLocked(w, now)
			w.ready <- grant{err: ErrClosed}
		}
		for e := h.orphans.Front(); e != nil; e = h.orphans.Front() {
			h.orphans.Remove(e)
			do.cancel = append(do.cancel, e.Value)
		}
		p.forgetHostLocked(h)
	}
	for e := p.leased.Front(); e != nil; e = e.Next() {
		do.interrupt = append(do.interrupt, e.Value)
	}
	return do
}

// moveLocked makes every change of a connection's owner; the picture stands
// above connState. A move that is not in it is a bug of ours.
func (p *pool) moveLocked(c *conn, to connState) {
	from, h := c.state, c.host
	if !mayBecome(from, to) {
		bugf("connection to %s moved from %v to %v", h.name, from, to)
	}
	for _, t := range [...]*tally{&h.tally, &p.all} {
		if g := t.gauge(from); g != nil {
			*g--
		}
		if g := t.gauge(to); g != nil {
			*g++
		}
	}
	c.state = to
	switch from {
	case stateLeased:
		p.leased.Remove(&c.inPool)
		h.shared.Remove(&c.inHost)
	case stateIdle:
		p.idleConns.Remove(&c.inPool)
		h.idleConns.Remove(&c.inHost)
	case stateClosing, stateClosed, stateDetached:
	}
	switch to {
	case stateLeased:
		p.leased.Push(&c.inPool)
	case stateIdle:
		c.wasIdle = true
		p.idleConns.Push(&c.inPool)
		h.idleConns.Push(&c.inHost)
	case stateClosing, stateClosed, stateDetached:
	}
}

// gauge returns the count of connections in state s, nil for closed ones.
func (t *tally) gauge(s connState) *int {
	switch s {
	case stateLeased:
		return &t.inUse
	case stateIdle:
		return &t.idle
	case stateClosing:
		return &t.closing
	case stateDetached:
		return &t.detached
	case stateClosed:
	}
	return nil
}
