package keepalive

import "time"

// What the pool does for connections that serve several requests at a time.

// lease is what is known of a connection when a request gets it.
type lease struct {
	served  int           // requests begun before
	wasIdle bool          // it has been idle before
	idleFor time.Duration // how long it was idle until now
}

// lease describes c to the request that it has just been leased to.
func (p *pool) lease(c *conn) lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	return lease{served: c.served - 1, wasIdle: c.wasIdle, idleFor: c.idleFor}
}

// capacityChanged notes that c takes n requests at a time now. With none it
// takes no more at all.
func (p *pool) capacityChanged(c *conn, n int, now time.Time) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.capacity = int32(min(n, 1<<30)) //nolint:gosec // bounded
	if n <= 0 {
		p.retireLocked(c, CloseServerRequest)
		if c.state == stateIdle {
			p.dropLocked(c, CloseServerRequest, &do)
		}
		return do
	}
	if c.host != nil && c.host.perConn > 1 {
		c.host.perConn = max(n, 2)
	}
	p.offerLocked(c, now, &do)
	return do
}

// refused notes that c, which was leased, did not take the request: it has no
// room for it now, whatever was known.
func (p *pool) refused(c *conn) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.users--
	if c.users == 0 {
		p.dropLocked(c, CloseStale, &do)
		return do
	}
	c.capacity = c.users
	p.shareLocked(c)
	return do
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
	defer p.settledLocked(c, &do)
	if c.state == stateIdle { // its time to be idle was shorter
		p.moveLocked(c, stateLeased)
	}
	p.offerLocked(c, now, &do)
	return do
}

// offerLocked gives waiters what room c, which is leased, has.
func (p *pool) offerLocked(c *conn, now time.Time, do *todo) {
	if c.host == nil || c.state != stateLeased {
		return
	}
	p.putLocked(c, now, do)
}

// settled notes that what c takes is known as far as it will be: if that is not
// enough for those who wait, more connections are dialed.
func (p *pool) settled(c *conn) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settledLocked(c, &do)
	return do
}

func (p *pool) settledLocked(c *conn, do *todo) {
	h, settling := c.host, c.settling
	c.settling = false
	if !settling || h == nil {
		return
	}
	h.settling--
	p.fillLocked(h, do)
	if h.starving.Len() > 0 && c.silent && c.state == stateIdle {
		p.dropLocked(c, CloseSuspect, do) // its slot is needed
	}
}
