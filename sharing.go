package keepalive

import "time"

// What the pool does for connections that serve several requests at a time.

// perConn returns how many requests at a time a connection may be given whose
// peer takes n.
func (c *config) perConn(n int) int {
	if c.disableKeepAlives || c.keepNoneIdle {
		return 1
	}
	if m := c.maxRequestsPerConn; m > 0 {
		n = min(n, m)
	}
	return max(n, 1)
}

// said notes what the peer of c has said: how many requests it takes at a time,
// and whether it takes no more at all.
func (p *pool) said(c *conn, limit int, goAway bool, now time.Time) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h, hadRoom := c.host, c.hasRoom()
	c.capacity = int32(limit) //nolint:gosec // bounded, see frames
	if goAway {
		p.retireLocked(c, CloseServerRequest)
		if c.state == stateIdle {
			p.noteEndLocked(c, now)
			p.dropLocked(c, CloseServerRequest, &do)
		}
		if h != nil {
			p.refillLocked(h, &do)
		}
		return do
	}
	if h == nil {
		c.told = true
		return do
	}
	h.perConn, h.limit, h.told = p.cfg.perConn(limit), limit, true
	if !hadRoom || c.state == stateLeased { // for an idle one that had room nobody waits
		p.offerLocked(c, now, &do)
	}
	p.shareLocked(c)
	return do
}

// retire makes c get no more requests, if it has a user.
func (p *pool) retire(c *conn, reason CloseReason) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.users > 0 {
		p.retireLocked(c, reason)
		p.refillLocked(c.host, &do)
	}
	return do
}

// serveLocked keeps host.serving.
func (p *pool) serveLocked(c *conn) {
	serves := c.shares && c.retired == CloseNone && !c.peerGone && !c.silent &&
		(c.left < 0 || int(c.users) < c.left) && (c.state == stateLeased || c.state == stateIdle)
	switch {
	case serves == c.serving:
		return
	case serves:
		c.host.serving++
	default:
		c.host.serving--
	}
	c.serving = serves
}

// silent notes that a request timed out on c and nothing was heard of its peer
// in that time. It gets no other request until heard is called; who comes before
// settled is called waits for that.
func (p *pool) silent(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.silent = true
	if !c.settling {
		c.settling = true
		c.host.settling++
	}
	p.shareLocked(c)
}

// heard notes that the peer of c, which had been silent, is there.
func (p *pool) heard(c *conn, now time.Time) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.silent = false
	p.offerLocked(c, now, &do) // if it is idle, the time for that was shorter
	p.endSettlingLocked(c, &do)
	return do
}

// offerLocked gives waiters what room c has.
func (p *pool) offerLocked(c *conn, now time.Time, do *todo) {
	switch {
	case c.host == nil: // being dialed
	case c.state == stateIdle:
		p.moveLocked(c, stateLeased)
		p.putLocked(c, now, do)
	case c.state == stateLeased:
		p.putLocked(c, now, do)
	}
}

// settled notes that what c takes is known as far as it will be: if that is not
// enough for those who wait, more connections are dialed.
func (p *pool) settled(c *conn, now time.Time) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := c.host; h != nil && c.settling && !c.silent && !h.told {
		c.capacity = initialStreams // it has said nothing
		p.offerLocked(c, now, &do)
		p.shareLocked(c)
	}
	p.endSettlingLocked(c, &do)
	return do
}

// endSettlingLocked ends the wait for what c takes, if there is one: those whom it
// kept waiting may dial.
func (p *pool) endSettlingLocked(c *conn, do *todo) {
	h, settling := c.host, c.settling
	c.settling = false
	if !settling || h == nil {
		return
	}
	h.settling--
	p.refillLocked(h, do)
	if h.starving.Len() > 0 && c.silent && c.state == stateIdle {
		p.dropLocked(c, CloseSuspect, do) // its slot is needed
	}
}
