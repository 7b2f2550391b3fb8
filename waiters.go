package keepalive

import (
	"context"
	"fmt"
	"time"

	"github.com/keepalive-http/keepalive/internal/queue"
)

// maxOrphans is how many dials of a host may go on when the requests that
// they were for have been cancelled and nobody else waits. One is enough for
// the next request to find a connection that took longer than its timeout.
const maxOrphans = 1

// dialPatience is how long a dial may take before it is not enough any more: for
// the many requests that wait for it, another one is started, and an orphan older
// than this does not keep a request from a dial of its own.
const dialPatience = 500 * time.Millisecond

// waiter is a request that waits for a connection. Guarded by pool.mu.
type waiter struct {
	host *host
	ctx  context.Context //nolint:containedctx // the dial takes its values
	// ready receives one grant, sent under pool.mu: capacity 1, so that
	// delivery never blocks.
	ready  chan grant
	inLine queue.Elem[*waiter]
	dial   *dial // the dial under way for it, or nil
	// place is among the starving, or in dial.
	place queue.Elem[*waiter]
	fresh bool // wants a connection that has not served
	since time.Time
}

// starving reports whether w waits without a dial under way for it. Guarded by
// pool.mu.
func (w *waiter) starving() bool { return w.place.Queued() && w.dial == nil }

// hold is why the starving waiters of a host get no dial. In this order: from
// holdShare on it is a limit, from holdHost on one that a closed connection eases.
type hold uint8

const (
	holdNone  hold = iota
	holdSay        // a connection is about to say how many requests it takes
	holdShare      // the connection that there is has to do
	holdHost       // maxConnsPerHost
	holdTotal      // maxConns alone
)

// grant is what a waiter is given: a leased connection, or why there is none.
type grant struct {
	c   *conn
	err error
}

// dial is a dial under way. Guarded by pool.mu.
type dial struct {
	host *host
	// waiters are those that it is for: as many as it has room. With fewer it is
	// among the host's boarding dials, with none among the orphans.
	waiters queue.Queue[*waiter]
	place   queue.Elem[*dial]
	// done: it has come to an end. many: it could be for several requests.
	// overdue: it takes long, and is for one waiter at most. many is set when it
	// is made and never changed.
	done, many, overdue bool
	// since is when the waiter came that it was started for, after pool.base.
	// Never changed.
	since time.Duration
	// ctx has the values of the request that the dial was started for, not
	// its cancellation; cancel ends it. Set when it is made; never changed.
	ctx    context.Context //nolint:containedctx // of the dialing goroutine
	cancel context.CancelFunc
}

// enqueueLocked puts w in line and sees to a dial for it, as far as that is due.
func (p *pool) enqueueLocked(w *waiter, do *todo) {
	h := w.host
	w.inLine.Value, w.place.Value = w, w
	h.waiters.Push(&w.inLine)
	h.starving.Push(&w.place)
	p.waiting++
	p.all.Waits++
	h.Waits++
	p.fillLocked(h, do)
}

// makeRoomLocked closes idle connections for their slots, the longest idle first: for
// those of h whom a limit holds back, as far as slots are not on their way; or for
// what h has got above the limit over all, as its first.
func (p *pool) makeRoomLocked(h *host, do *todo) {
	idle, n := &h.idleConns, h.starving.Len()-h.closing
	switch {
	case h.blocked.Queued():
		idle, n = &p.idleConns, h.starving.Len()-p.all.closing
	case h.starving.Len() > 0:
		if n <= 0 || idle.Len() == 0 || h.settling > 0 {
			return
		}
		h.freeing = true // they cannot use it themselves
	case p.cfg.maxConns > 0:
		idle, n = &p.idleConns, p.all.slots()-p.all.closing-p.cfg.maxConns
	}
	for ; n > 0 && idle.Len() > 0; n-- {
		p.dropLocked(idle.Front().Value, CloseEvicted, do)
	}
}

// refillLocked is fillLocked when waiters may come to a limit that did not hold
// them back before: it makes room for them, too.
func (p *pool) refillLocked(h *host, do *todo) {
	p.fillLocked(h, do)
	p.makeRoomLocked(h, do)
}

// boardLocked makes d the dial of starving waiters, as far as it has room.
func (p *pool) boardLocked(d *dial) {
	h := d.host
	room := h.perConn
	if d.overdue {
		room = 1
	}
	for e := h.starving.Front(); e != nil && d.waiters.Len() < room; e = h.starving.Front() {
		p.feedLocked(e.Value)
		e.Value.dial = d
		d.waiters.Push(e)
	}
	h.boarding.Remove(&d.place)
	h.orphans.Remove(&d.place)
	switch n := d.waiters.Len(); {
	case n == 0:
		h.orphans.Push(&d.place)
	case n < room:
		h.boarding.Push(&d.place)
	}
}

// feedLocked notes that w does not starve any more.
func (p *pool) feedLocked(w *waiter) {
	h := w.host
	h.starving.Remove(&w.place)
	if h.starving.Len() == 0 {
		p.blocked.Remove(&h.blocked)
	}
}

// fillLocked sees to dials for the starving waiters of h: those under way that
// have room, and new ones as far as the limits allow. A dial that takes long
// already, and that a request has given up on, is good enough only where a new
// one is not allowed: whoever it connects to may never answer.
func (p *pool) fillLocked(h *host, do *todo) {
	for e := h.boarding.Front(); e != nil && h.starving.Len() > 0; e = h.boarding.Front() {
		p.boardLocked(e.Value)
	}
	for h.starving.Len() > 0 {
		first, hold := h.starving.Front().Value, p.holdLocked(h)
		orphan := h.orphans.Front()
		switch {
		case orphan != nil && (hold != holdNone || first.since.Sub(p.base)-orphan.Value.since < dialPatience):
			p.boardLocked(orphan.Value)
		case hold == holdTotal:
			p.blocked.Push(&h.blocked) // where it was, unless it has just had its turn
			return
		case hold != holdNone:
			p.blocked.Remove(&h.blocked)
			return
		default:
			p.blocked.Remove(&h.blocked)
			p.dialLocked(first, do)
		}
	}
}

// dialLocked begins a dial for w.
func (p *pool) dialLocked(w *waiter, do *todo) {
	h := w.host
	d := &dial{host: h, many: h.perConn > 1, since: w.since.Sub(p.base)}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(w.ctx))
	d.place.Value = d
	p.boardLocked(d)
	h.dialing++
	p.all.dialing++
	h.Dials++
	p.all.Dials++
	do.dial = append(do.dial, d)
}

// holdLocked returns why h may not dial once more.
func (p *pool) holdLocked(h *host) hold {
	strict := p.cfg.http2 != nil && p.cfg.http2.StrictMaxConcurrentRequests
	switch n := p.cfg.maxConnsPerHost; {
	case h.aboutToSay():
		return holdSay
	case strict && h.shares() && h.dialing-h.overdue+h.serving+h.closing > 0:
		return holdShare
	case n > 0 && h.slots() >= n:
		return holdHost
	case p.fullLocked() && h.slots() > 0:
		return holdTotal
	}
	return holdNone
}

// limitedLocked reports whether a limit keeps w from a dial of its own.
func (p *pool) limitedLocked(w *waiter) bool { return w.starving() && p.holdLocked(w.host) > holdSay }

// shares reports whether the connections of h take, or may take, several
// requests at a time. Guarded by pool.mu, as aboutToSay.
func (h *host) shares() bool { return h.perConn > 1 || h.told }

// aboutToSay reports whether a connection of h is about to say how many requests
// it takes: more are dialed only when that is not enough.
func (h *host) aboutToSay() bool { return h.settling > 0 || h.guessed && h.dialing > h.overdue }

// overdue notes that d takes long: of those that it is for all but one are seen
// to by another dial, or a single packet lost, or one address that leads
// nowhere, would keep all of them waiting.
func (p *pool) overdue(d *dial) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := d.host
	if d.done || d.overdue || p.limitReachedLocked(h) {
		return do
	}
	d.overdue = true
	h.overdue++
	for d.waiters.Len() > 1 {
		e := d.waiters.Back()
		d.waiters.Remove(e)
		e.Value.dial = nil
		h.starving.Push(e)
	}
	h.boarding.Remove(&d.place)
	p.fillLocked(h, &do)
	return do
}

// fullLocked reports whether the limit over all hosts is reached.
func (p *pool) fullLocked() bool {
	return p.cfg.maxConns > 0 && p.all.slots() >= p.cfg.maxConns
}

// limitReachedLocked reports whether a limit forbids h, which holds something, to
// dial.
func (p *pool) limitReachedLocked(h *host) bool {
	n := p.cfg.maxConnsPerHost
	return n > 0 && h.slots() >= n || p.fullLocked()
}

// freedLocked hands out a slot that h has just given back.
func (p *pool) freedLocked(h *host, do *todo) {
	h.freeing = false
	hold := p.holdLocked(h)
	if h.starving.Len() > 0 && h.slots() > 0 && p.blocked.Len() > 0 && (hold == holdNone || hold == holdTotal) {
		p.blocked.Push(&h.blocked) // behind those that have waited for a slot
	} else {
		p.fillLocked(h, do) // the first one of a host is always allowed
	}
	for p.blocked.Len() > 0 && !p.fullLocked() {
		p.fillLocked(p.blocked.Front().Value, do)
	}
	if e := p.blocked.Front(); e != nil {
		p.makeRoomLocked(e.Value, do)
	}
	p.forgetHostLocked(h)
}

// leaveLocked takes w out of line, whatever became of it. Its place in its dial
// goes to the next waiter that has none.
func (p *pool) leaveLocked(w *waiter, now time.Time) {
	h := w.host
	h.waiters.Remove(&w.inLine)
	p.feedLocked(w)
	p.waiting--
	p.all.WaitTime += now.Sub(w.since)
	h.WaitTime += now.Sub(w.since)
	if d := w.dial; d != nil {
		w.dial = nil
		d.waiters.Remove(&w.place)
		p.boardLocked(d)
	}
}

// abandon takes w out of line because its request gives up. If it had been
// granted something in the meantime, that is passed on. dialing reports whether
// a dial was under way for it.
func (p *pool) abandon(w *waiter, now time.Time) (dialing bool, do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.inLine.Queued() {
		h := w.host
		dialing = w.dial != nil
		p.leaveLocked(w, now)
		if h.orphans.Len() > maxOrphans { // the oldest has come farthest
			d := h.orphans.Back().Value
			h.orphans.Remove(&d.place)
			do.cancel = append(do.cancel, d)
		}
		p.forgetHostLocked(h)
		return dialing, do
	}
	// Out of line: its grant was sent under this lock, so this does not wait.
	if g := <-w.ready; g.c != nil { // it was not used after all
		g.c.users--
		g.c.served--
		p.putLocked(g.c, now, &do)
	}
	return false, do
}

// acquireTimeout returns the error of w, which has waited too long.
func (p *pool) acquireTimeout(w *waiter) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := w.host
	return &marked{
		fmt.Sprintf("%v: %d connections, %d requests waiting", ErrAcquireTimeout, h.slots(), h.waiters.Len()),
		[]error{ErrAcquireTimeout},
	}
}

// limited is limitedLocked for a request whose time to wait is over.
func (p *pool) limited(w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.limitedLocked(w)
}

// dialed takes over what came of d: a connection, or why there is none. A dial
// that failed fails all that it was for.
func (p *pool) dialed(d *dial, c *conn, err error, now time.Time) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := d.host
	h.boarding.Remove(&d.place)
	h.orphans.Remove(&d.place)
	h.dialing--
	p.all.dialing--
	d.done = true
	if d.overdue {
		h.overdue--
	}
	if err != nil {
		h.DialErrors++
		p.all.DialErrors++
		for e := d.waiters.Front(); e != nil; e = d.waiters.Front() {
			w := e.Value
			d.waiters.Remove(e)
			w.dial = nil
			p.leaveLocked(w, now)
			w.ready <- grant{err: err}
		}
		p.freedLocked(h, &do)
		return do
	}
	for e := d.waiters.Front(); e != nil; e = d.waiters.Front() {
		d.waiters.Remove(e)
		e.Value.dial = nil
		h.starving.Push(e)
	}
	p.expectLocked(h, c)
	p.adoptLocked(h, c, now)
	if p.phase == poolClosed {
		p.dropLocked(c, CloseTransportClosed, &do)
		return do
	}
	p.putLocked(c, now, &do)
	p.refillLocked(h, &do)
	return do
}

// expectLocked notes what the protocol of c, which has just been dialed, says of
// the other connections of h, and what they say of c.
func (p *pool) expectLocked(h *host, c *conn) {
	if c.shares {
		// It goes to its waiter even if the peer takes nothing yet: the next one
		// would say the same.
		c.capacity = max(c.capacity, 1)
	}
	if c.told {
		h.limit, h.told, c.settling = int(c.capacity), true, false
	}
	switch {
	case !c.shares:
		h.perConn, h.told = 1, false
	case h.told && c.settling:
		c.capacity = min(c.capacity, int32(max(h.limit, 1))) //nolint:gosec // bounded, see frames
	case c.settling:
		// One until it has said how many: net/http lets requests that were
		// promised a place above the limit wait for each other.
		h.perConn = p.cfg.perConn(int(c.capacity))
		c.capacity = 1
	default:
		h.perConn = p.cfg.perConn(int(c.capacity))
	}
	h.guessed = false
}

// waiterForLocked returns the oldest waiter that can use c, or nil; nil, too, if
// an older one can use only its slot. To share a connection that was dialed since
// it waits is as good as to have one alone.
func (p *pool) waiterForLocked(c *conn) *waiter {
	h := c.host
	for e := h.waiters.Front(); e != nil; e = e.Next() {
		w := e.Value
		if !w.fresh || c.served == 0 || c.shares && c.dialedAt.After(w.since) {
			return w
		}
		if c.users == 0 && !h.freeing && w.starving() && p.holdLocked(h) >= holdHost {
			return nil
		}
	}
	return nil
}

// fairWait is how long a request waits while connections go from request to
// request of another host, before one of them is closed for it (WithMaxConns),
// and how often that happens at most. At each turn it would mean to dial all the
// time.
const fairWait = 100 * time.Millisecond

// owedLocked reports whether the slot of c, which its own host could use, is due
// to a request for another one with fewer, which came before and has waited for
// fairWait.
func (p *pool) owedLocked(c *conn, now time.Time) bool {
	if p.blocked.Len() == 0 || c.users > 0 || c.served == 0 || now.Sub(p.lastFair) < fairWait {
		return false
	}
	e := p.blocked.Front()
	if e.Value == c.host {
		e = e.Next()
	}
	if e == nil || e.Value.slots() >= c.host.slots() {
		return false
	}
	w, own := e.Value.starving.Front().Value, c.host.waiters.Front()
	return now.Sub(w.since) >= fairWait && (own == nil || w.since.Before(own.Value.since))
}
