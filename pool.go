package keepalive

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/keepalive-http/keepalive/internal/hostkey"
	"github.com/keepalive-http/keepalive/internal/queue"
)

// unusedIdleTimeout is how long a connection that has never served may stay
// idle: servers give up such connections early.
const unusedIdleTimeout = 5 * time.Second

// maxOrphans is how many dials of a host may go on when the requests that
// they were for have been cancelled and nobody else waits. One is enough for
// the next request to find a connection that took longer than its timeout.
const maxOrphans = 1

// pool says who may have a connection. It decides and does nothing: what is to
// be dialed, closed or interrupted it returns as a todo, which the caller
// carries out with no lock held.
//
// A connection, and a dial, holds a slot of its host and of the pool until its
// socket is closed. What becomes free, a connection or a slot, goes to the
// oldest waiter before it is stored.
type pool struct {
	cfg *config // set in newPool; never changed
	// onTimer runs in the timer's goroutine. Set in newPool; never changed.
	onTimer func()
	base    time.Time // moments are kept as durations since; never changed

	// mu guards every field below, every host, waiter and dial, and every
	// conn's guarded fields. It is a leaf: nothing that blocks, and no
	// caller's code, runs while it is held.
	mu    sync.Mutex
	phase poolPhase
	hosts map[hostkey.Key]*host
	// idleConns holds all idle connections, the longest idle first.
	idleConns queue.Queue[*conn]
	// leased holds all connections in use, for Close.
	leased queue.Queue[*conn]
	// blocked holds the hosts that have waiters without a dial and are held
	// back by maxConns alone.
	blocked queue.Queue[*host]
	// watched finds a connection by its id, for the watcher.
	watched map[uint64]*conn

	all     tally
	waiting int // waiters of all hosts
	// active counts requests from their first acquire to their end. When it
	// is 0 while draining, quiet is closed.
	active int
	quiet  chan struct{}

	budget retryBudget

	expiry expiryHeap
	timer  *time.Timer   // made when first needed
	wakeAt time.Duration // when timer fires, after base; 0: it is not set
}

type poolPhase uint8

const (
	poolOpen poolPhase = iota
	// poolDraining: no new requests, those under way go on (Shutdown).
	poolDraining
	// poolClosed: nothing goes on (Close).
	poolClosed
)

// host is what the pool holds for one key. Guarded by pool.mu.
type host struct {
	tally
	key       hostkey.Key
	name      string // key as text, made once
	idleConns queue.Queue[*conn]
	// waiters holds all waiters in order of arrival; starving those of them
	// that no dial is under way for.
	waiters, starving queue.Queue[*waiter]
	// orphans are dials whose waiter has left.
	orphans queue.Queue[*dial]
	blocked queue.Elem[*host]
}

// waiter is a request that waits for a connection. Guarded by pool.mu.
type waiter struct {
	host *host
	ctx  context.Context //nolint:containedctx // the dial takes its values
	// ready receives one grant, sent under pool.mu: capacity 1, so that
	// delivery never blocks.
	ready          chan grant
	inLine, hungry queue.Elem[*waiter]
	dial           *dial // the dial under way for it, or nil
	fresh          bool  // wants a connection that has not served
	since          time.Time
}

// grant is what a waiter is given: a leased connection, or why there is none.
type grant struct {
	c   *conn
	err error
}

// dial is a dial under way. Guarded by pool.mu.
type dial struct {
	host   *host
	waiter *waiter // whom it is for; nil for an orphan
	orphan queue.Elem[*dial]
	// ctx has the values of the request that the dial was started for, not
	// its cancellation; cancel ends it. Set when it is made; never changed.
	ctx    context.Context //nolint:containedctx // of the dialing goroutine
	cancel context.CancelFunc
}

// todo is what a decision of the pool asks for. The caller carries it out
// after the lock is released: see Transport.perform.
type todo struct {
	dial      []*dial // to be started
	cancel    []*dial // to be given up
	discard   []*conn // to be closed
	interrupt []*conn // leased, to be cut off
}

// want is what acquire is asked for.
type want struct {
	key   hostkey.Key
	ctx   context.Context //nolint:containedctx // lives for one call
	fresh bool
	first bool // the request's first attempt
}

func newPool(cfg *config, onTimer func()) *pool {
	return &pool{
		cfg: cfg, onTimer: onTimer, base: time.Now(),
		hosts:   make(map[hostkey.Key]*host),
		watched: make(map[uint64]*conn),
		budget:  retryBudget{share: cfg.retry.Budget},
	}
}

// acquire returns a leased connection, or a waiter whose ready channel will
// deliver one. The connection may have died since: the exchange checks it.
func (p *pool) acquire(now time.Time, want want) (c *conn, w *waiter, do todo, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == poolClosed || p.phase == poolDraining && want.first {
		return nil, nil, do, ErrClosed
	}
	h := p.hostLocked(want.key)
	defer p.forgetHostLocked(h)
	if want.first {
		p.all.Requests++
		h.Requests++
		p.active++
		p.budget.request()
	}
	if !want.fresh {
		if c = p.takeIdleLocked(h, now, &do); c != nil {
			return c, nil, do, nil
		}
	}
	w = &waiter{
		host: h, ctx: want.ctx, ready: make(chan grant, 1), fresh: want.fresh, since: now,
	}
	p.enqueueLocked(w, &do)
	if n := p.cfg.maxWaiters; n > 0 && w.hungry.Queued() && h.starving.Len() > n {
		p.leaveLocked(w, now)
		return nil, nil, do, ErrTooManyWaiters
	}
	return nil, w, do, nil
}

// hostLocked returns the host of key, made if need be.
func (p *pool) hostLocked(key hostkey.Key) *host {
	h := p.hosts[key]
	if h == nil {
		h = &host{key: key, name: key.String()}
		h.blocked.Value = h
		p.hosts[key] = h
	}
	return h
}

// forgetHostLocked drops a host that holds nothing.
func (p *pool) forgetHostLocked(h *host) {
	if h.slots() == 0 && h.waiters.Len() == 0 && p.hosts[h.key] == h {
		p.blocked.Remove(&h.blocked)
		delete(p.hosts, h.key)
	}
}

// takeIdleLocked leases an idle connection of h that has not expired.
func (p *pool) takeIdleLocked(h *host, now time.Time, do *todo) *conn {
	for {
		e := h.idleConns.Back()
		if p.cfg.idleOrder == FIFO {
			e = h.idleConns.Front()
		}
		if e == nil {
			return nil
		}
		c := e.Value
		if reason := c.expired(now); reason != CloseNone {
			p.dropLocked(c, reason, do)
			continue
		}
		c.idleFor = now.Sub(c.idleSince)
		p.moveLocked(c, stateLeased)
		p.countReuseLocked(c, 1)
		return c
	}
}

func (p *pool) countReuseLocked(c *conn, n uint64) {
	if c.served > 0 {
		p.all.Reuses += n
		c.host.Reuses += n
	}
}

// enqueueLocked puts w in line and sees to a dial for it: one whose own waiter
// has left, or a new one.
func (p *pool) enqueueLocked(w *waiter, do *todo) {
	h := w.host
	w.inLine.Value, w.hungry.Value = w, w
	h.waiters.Push(&w.inLine)
	h.starving.Push(&w.hungry)
	p.waiting++
	p.all.Waits++
	h.Waits++
	if e := h.orphans.Front(); e != nil {
		p.assignLocked(e.Value, w)
		return
	}
	p.fillLocked(h, do)
	if !w.hungry.Queued() {
		return
	}
	switch {
	case h.blocked.Queued() && p.idleConns.Len() > 0:
		p.dropLocked(p.idleConns.Front().Value, CloseEvicted, do)
	case w.fresh && h.idleConns.Len() > 0:
		p.dropLocked(h.idleConns.Front().Value, CloseEvicted, do)
	}
}

// assignLocked makes d the dial of w.
func (p *pool) assignLocked(d *dial, w *waiter) {
	h := w.host
	h.orphans.Remove(&d.orphan)
	h.starving.Remove(&w.hungry)
	d.waiter, w.dial = w, d
}

// fillLocked starts dials for the starving waiters of h, as far as the limits
// allow.
func (p *pool) fillLocked(h *host, do *todo) {
	p.blocked.Remove(&h.blocked)
	for h.starving.Len() > 0 {
		if n := p.cfg.maxConnsPerHost; n > 0 && h.slots() >= n {
			return
		}
		if p.fullLocked() && h.slots() > 0 {
			p.blocked.Push(&h.blocked)
			return
		}
		w := h.starving.Front().Value
		d := &dial{host: h}
		d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(w.ctx))
		d.orphan.Value = d
		p.assignLocked(d, w)
		h.dialing++
		p.all.dialing++
		h.Dials++
		p.all.Dials++
		do.dial = append(do.dial, d)
	}
}

// fullLocked reports whether the limit over all hosts is reached.
func (p *pool) fullLocked() bool {
	return p.cfg.maxConns > 0 && p.all.slots() >= p.cfg.maxConns
}

// freedLocked hands out a slot that h has just given back.
func (p *pool) freedLocked(h *host, do *todo) {
	if !h.blocked.Queued() || h.slots() == 0 { // the first one is always allowed
		p.fillLocked(h, do)
	}
	for p.blocked.Len() > 0 && !p.fullLocked() {
		p.fillLocked(p.blocked.Front().Value, do)
	}
	p.forgetHostLocked(h)
}

// leaveLocked takes w out of line, whatever became of it. Its dial goes to the
// next waiter that has none, or goes on as an orphan.
func (p *pool) leaveLocked(w *waiter, now time.Time) {
	h := w.host
	h.waiters.Remove(&w.inLine)
	h.starving.Remove(&w.hungry)
	p.waiting--
	p.all.WaitTime += now.Sub(w.since)
	h.WaitTime += now.Sub(w.since)
	d := w.dial
	if d == nil {
		return
	}
	w.dial, d.waiter = nil, nil
	if e := h.starving.Front(); e != nil {
		p.assignLocked(d, e.Value)
		return
	}
	h.orphans.Push(&d.orphan)
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
		if h.orphans.Len() > maxOrphans {
			d := h.orphans.Front().Value
			h.orphans.Remove(&d.orphan)
			do.cancel = append(do.cancel, d)
		}
		p.forgetHostLocked(h)
		return dialing, do
	}
	if g := <-w.ready; g.c != nil {
		p.countReuseLocked(g.c, ^uint64(0)) // it was not used after all
		p.putLocked(g.c, now, &do)
	}
	return false, do
}

// acquireTimeout says how things stood when w had waited too long.
func (p *pool) acquireTimeout(w *waiter) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := w.host
	return &marked{
		fmt.Sprintf("%v: %d connections in use, %d requests waiting", ErrAcquireTimeout, h.inUse, h.waiters.Len()),
		[]error{ErrAcquireTimeout},
	}
}

// starved reports whether w still waits without a dial under way for it.
func (p *pool) starved(w *waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return w.hungry.Queued()
}

// dialed takes over what came of d: a connection, or why there is none.
func (p *pool) dialed(d *dial, c *conn, err error, now time.Time) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := d.host
	h.orphans.Remove(&d.orphan)
	w := d.waiter
	d.waiter = nil
	if w != nil {
		w.dial = nil
	}
	h.dialing--
	p.all.dialing--
	if err != nil {
		h.DialErrors++
		p.all.DialErrors++
		if w != nil {
			p.leaveLocked(w, now)
			w.ready <- grant{err: err}
		}
		p.freedLocked(h, &do)
		return do
	}
	if w != nil {
		h.starving.Push(&w.hungry)
	}
	p.adoptLocked(h, c, now)
	if p.phase == poolClosed {
		p.dropLocked(c, CloseTransportClosed, &do)
		return do
	}
	p.putLocked(c, now, &do)
	return do
}

// adoptLocked makes c a connection of h, leased.
func (p *pool) adoptLocked(h *host, c *conn, now time.Time) {
	c.host, c.state = h, stateLeased
	c.inPool.Value, c.inHost.Value = c, c
	c.heapIndex = -1
	c.dialedAt, c.idleSince = now, now
	c.left = -1
	if n := p.cfg.maxRequestsPerConn; n > 0 {
		c.left = n
	}
	if l := p.cfg.maxLifetime; l > 0 {
		l -= time.Duration(rand.Float64() * p.cfg.lifetimeJitter * float64(l)) //nolint:gosec // no secret
		c.life = max(l, 1) // 0 would mean none
	}
	p.leased.Push(&c.inPool)
	h.inUse++
	p.all.inUse++
	h.Opened++
	p.all.Opened++
}

// release takes back a connection at the end of an exchange. v is what the
// exchange says of it; last says that the request is over too.
//
// reason says whether it was kept: CloseNone.
func (p *pool) release(c *conn, now time.Time, v verdict, last bool) (reason CloseReason, do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last {
		p.endRequestLocked()
	}
	if v.reason != CloseNone {
		p.dropLocked(c, v.reason, &do)
		if v.reason == CloseProtocolError {
			p.suspectLocked(c.host, now, &do)
		}
		return v.reason, do
	}
	c.hintIdle = v.IdleTimeout
	if v.MaxRequests > 0 && (c.left < 0 || v.MaxRequests < c.left) {
		c.left = v.MaxRequests
	}
	p.putLocked(c, now, &do)
	if c.state == stateClosing {
		return c.reason, do
	}
	return CloseNone, do
}

// putLocked gives a leased connection to the oldest waiter that can use it, or
// makes it idle, unless a limit says that it has to go.
func (p *pool) putLocked(c *conn, now time.Time, do *todo) {
	h := c.host
	c.setIdle(now, p.cfg.idleTimeout)
	w := h.waiterFor(c)
	// One that has just been dialed goes to its waiter whatever has become of
	// it, or a server that hangs up at once would be dialed for ever.
	if reason := p.unfitLocked(c, now); reason != CloseNone && (w == nil || c.served > 0) {
		p.dropLocked(c, reason, do)
		return
	}
	if w != nil {
		p.leaveLocked(w, now)
		c.idleFor = 0
		p.countReuseLocked(c, 1)
		w.ready <- grant{c: c}
		return
	}
	switch {
	case p.phase != poolOpen:
		p.dropLocked(c, CloseTransportClosed, do)
		return
	case h.starving.Len() > 0 || p.blocked.Len() > 0:
		// Somebody needs its slot, not itself.
		p.dropLocked(c, CloseEvicted, do)
		return
	}
	p.moveLocked(c, stateIdle)
	p.scheduleLocked(c, now)
	if n := p.cfg.maxIdlePerHost; n > 0 && h.idleConns.Len() > n {
		p.dropLocked(h.idleConns.Front().Value, CloseHostIdleLimit, do)
	}
	if n := p.cfg.maxIdle; n > 0 && p.idleConns.Len() > n {
		p.dropLocked(p.idleConns.Front().Value, CloseIdleLimit, do)
	}
}

// waiterFor returns the oldest waiter that can use c, or nil.
func (h *host) waiterFor(c *conn) *waiter {
	for e := h.waiters.Front(); e != nil; e = e.Next() {
		if !e.Value.fresh || c.served == 0 {
			return e.Value
		}
	}
	return nil
}

// unfitLocked returns why a leased connection may not be used once more.
func (p *pool) unfitLocked(c *conn, now time.Time) CloseReason {
	switch {
	case p.phase == poolClosed:
		return CloseTransportClosed
	case c.peerGone:
		return ClosePeerClosed
	case c.left == 0:
		return CloseMaxRequests
	case p.cfg.disableKeepAlives || p.cfg.keepNoneIdle:
		return CloseKeepAlivesDisabled
	case !c.checkable:
		return CloseUncheckable
	}
	return c.expired(now)
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
	p.unscheduleLocked(c)
	delete(p.watched, c.id)
	c.host.closed[reason]++
	p.all.closed[reason]++
	do.discard = append(do.discard, c)
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
func (p *pool) peerGone(c *conn) (do todo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch c.state {
	case stateIdle:
		p.dropLocked(c, ClosePeerClosed, &do)
	case stateLeased:
		c.peerGone = true
	case stateClosing, stateClosed, stateDetached:
	}
	return do
}

// noteStale counts a connection that was found dead before it was used.
func (p *pool) noteStale(h *host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all.StaleChecks++
	h.StaleChecks++
}

// noteDrained counts a body whose rest was read after an early Close.
func (p *pool) noteDrained(h *host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all.Drained++
	h.Drained++
}

// mayRetry reports whether the retry budget allows one more, and counts it.
func (p *pool) mayRetry(h *host, budgeted bool, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if budgeted && !p.budget.take(now) {
		return false
	}
	p.all.Retries++
	if h != nil {
		h.Retries++
	}
	return true
}

// endRequest notes that a request ended without a connection.
func (p *pool) endRequest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endRequestLocked()
}

func (p *pool) endRequestLocked() {
	p.active--
	p.checkQuietLocked()
}

func (p *pool) checkQuietLocked() {
	if p.active == 0 && p.quiet != nil {
		close(p.quiet)
		p.quiet = nil
	}
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
