package keepalive

import (
	"context"
	"sync"
	"time"

	"github.com/keepalive-http/keepalive/internal/hostkey"
	"github.com/keepalive-http/keepalive/internal/queue"
)

// unusedIdleTimeout is how long a connection that has never served may stay
// idle: servers give up such connections early.
const unusedIdleTimeout = 5 * time.Second

// silentIdleTimeout is how long a connection may stay idle whose peer was not
// heard while a request timed out on it, and is asked whether it is there.
const silentIdleTimeout = 15 * time.Second

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
	// ended is closed by shut, which may be called more than once.
	ended chan struct{}

	// mu guards every field below, every host, waiter and dial, and every
	// conn's guarded fields. It is a leaf: nothing that blocks, and no
	// caller's code, runs while it is held.
	mu    sync.Mutex
	phase poolPhase
	hosts map[hostkey.Key]*host
	// recent is the host that was asked for last: comparing keys costs less
	// than hashing them.
	recent *host
	// idleConns holds all idle connections, the longest idle first.
	idleConns queue.Queue[*conn]
	// leased holds all connections in use, for Close.
	leased queue.Queue[*conn]
	// blocked holds the hosts that have waiters without a dial and are held
	// back by maxConns alone.
	blocked queue.Queue[*host]
	// lastFair is when a connection was last closed for another host's request
	// that had waited: see owedLocked.
	lastFair time.Time
	// learned outlives the hosts: one whose connections have ended is gone.
	learned map[hostkey.Key]*idleEnds
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
	// shared holds the connections in use that have room for more.
	shared queue.Queue[*conn]
	// perConn is how many requests at a time one connection is likely to take:
	// 1 when it is known to speak HTTP/1. guessed: it is not known whether one
	// takes several; told: a peer has said how many, limit.
	perConn, limit int
	guessed, told  bool
	// freeing: a connection is being closed because a waiter of this host needs its
	// slot.
	freeing bool
	// settling counts the connections that are about to say how many they take,
	// serving those with several users at a time that may get more requests.
	settling, serving int
	// overdue counts the dials that nobody waits for before dialing more.
	overdue int
	// waiters holds all waiters in order of arrival; starving those of them
	// that no dial is under way for.
	waiters, starving queue.Queue[*waiter]
	ends              *idleEnds // how the server ends idle connections; nil: unknown
	// boarding are the dials that could be for more waiters, orphans those
	// whose waiters have all left.
	boarding, orphans queue.Queue[*dial]
	blocked           queue.Elem[*host]
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
		cfg: cfg, onTimer: onTimer, base: time.Now(), ended: make(chan struct{}),
		hosts:   make(map[hostkey.Key]*host),
		learned: make(map[hostkey.Key]*idleEnds),
		watched: make(map[uint64]*conn),
		budget:  retryBudget{share: cfg.retry.Budget},
	}
}

// acquired is what acquire returns: a leased connection, or a waiter whose
// ready channel will deliver one. The connection may have died since: the
// exchange checks it.
type acquired struct {
	c *conn
	w *waiter
}

// lease is what is known of a connection when a request gets it.
type lease struct {
	served  int           // requests begun before
	wasIdle bool          // it has been idle before
	idleFor time.Duration // how long it was idle until now
}

// acquire leases an idle connection to the caller, or puts it in line.
func (p *pool) acquire(now time.Time, want want) (got acquired, do todo, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == poolClosed || p.phase == poolDraining && want.first {
		return got, do, ErrClosed
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
		c := p.takeSharedLocked(h, now)
		if c == nil {
			c = p.takeIdleLocked(h, now, &do)
		}
		if c != nil {
			if c.shares && !c.serving {
				p.refillLocked(h, &do) // those who had to wait for it need not
			}
			return acquired{c: c}, do, nil
		}
	}
	w := &waiter{
		host: h, ctx: want.ctx, ready: make(chan grant, 1), fresh: want.fresh, since: now,
	}
	p.enqueueLocked(w, &do)
	if n := p.cfg.maxWaiters; n > 0 && p.limitedLocked(w) && h.starving.Len() > n {
		p.leaveLocked(w, now)
		return got, do, ErrTooManyWaiters
	}
	p.makeRoomLocked(h, &do)
	return acquired{w: w}, do, nil
}

// hostLocked returns the host of key, made if need be.
func (p *pool) hostLocked(key hostkey.Key) *host {
	if h := p.recent; h != nil && h.key == key {
		return h
	}
	h := p.hosts[key]
	if h == nil {
		h = &host{key: key, name: key.String(), perConn: 1, ends: p.learned[key]}
		if n := p.cfg.perConn(initialStreams); n > 1 && p.cfg.mayShare(key) {
			h.perConn, h.guessed = n, true
		}
		h.blocked.Value = h
		p.hosts[key] = h
	}
	p.recent = h
	return h
}

// forgetHostLocked drops a host that holds nothing.
func (p *pool) forgetHostLocked(h *host) {
	if h.slots() == 0 && h.waiters.Len() == 0 && p.hosts[h.key] == h {
		p.blocked.Remove(&h.blocked)
		delete(p.hosts, h.key)
		if p.recent == h {
			p.recent = nil
		}
	}
}

// takeSharedLocked leases a connection of h that is in use and has room.
func (p *pool) takeSharedLocked(h *host, now time.Time) *conn {
	for e := h.shared.Front(); e != nil; e = h.shared.Front() {
		c := e.Value
		if reason := p.unfitLocked(c, now); reason != CloseNone {
			p.retireLocked(c, reason)
			continue
		}
		c.idleFor = 0
		p.lendLocked(c)
		return c
	}
	return nil
}

// takeIdleLocked leases an idle connection of h that has not expired.
func (p *pool) takeIdleLocked(h *host, now time.Time, do *todo) *conn {
	next := (*queue.Elem[*conn]).Prev
	e := h.idleConns.Back()
	if p.cfg.idleOrder == FIFO {
		next = (*queue.Elem[*conn]).Next
		e = h.idleConns.Front()
	}
	for e != nil {
		c := e.Value
		e = next(e)
		if reason := c.expired(now); reason != CloseNone {
			p.dropLocked(c, reason, do)
			continue
		}
		if !c.hasRoom() {
			continue
		}
		c.idleFor = now.Sub(c.idleSince)
		p.moveLocked(c, stateLeased)
		p.lendLocked(c)
		return c
	}
	return nil
}

// lendLocked gives c, which is leased, one more user.
func (p *pool) lendLocked(c *conn) {
	c.served++
	c.users++
	p.shareLocked(c)
}

// shareLocked keeps c among the connections to share exactly while it is in
// use and can take more.
func (p *pool) shareLocked(c *conn) {
	switch {
	case c.host == nil: // being dialed
		return
	case c.users > 0 && c.hasRoom() && c.retired == CloseNone && !c.peerGone:
		c.host.shared.Push(&c.inHost)
	default:
		c.host.shared.Remove(&c.inHost)
	}
	p.serveLocked(c)
}

// retireLocked makes c, which is in use, get no more requests.
func (p *pool) retireLocked(c *conn, reason CloseReason) {
	if c.retired == CloseNone {
		c.retired = reason
	}
	p.shareLocked(c)
}

// lease describes c to the request that it has just been leased to.
func (p *pool) lease(c *conn) lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	return lease{served: c.served - 1, wasIdle: c.wasIdle, idleFor: c.idleFor}
}

// countReuseLocked counts a use of c, which is over, unless it was the first one.
// It is not known before whether there is a use: a waiter may have left, the
// connection may be dead.
func (p *pool) countReuseLocked(c *conn) {
	if c.served-int(c.users) > 1 {
		p.all.Reuses++
		c.host.Reuses++
	}
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
	c.users--
	if !v.unused {
		p.countReuseLocked(c)
	}
	if v.reason != CloseNone {
		p.retireLocked(c, v.reason)
		if c.users == 0 {
			p.dropLocked(c, c.retired, &do)
		} else {
			p.refillLocked(c.host, &do)
		}
		if v.reason == CloseProtocolError && !v.odd {
			p.suspectLocked(c.host, now, &do)
		}
		return c.retired, do
	}
	if v.IdleTimeout > 0 { // some say it once: when they are asked to keep alive
		c.hintIdle = v.IdleTimeout
	}
	if c.left > 0 {
		c.left--
	}
	if v.MaxRequests > 0 && (c.left < 0 || v.MaxRequests < c.left) {
		c.left = v.MaxRequests
	}
	p.putLocked(c, now, &do)
	if c.state == stateClosing {
		return c.reason, do
	}
	return CloseNone, do
}

// putLocked gives a leased connection to the oldest waiters that can use it, as
// far as it has room. With no user it becomes idle, unless a limit says that it
// has to go.
func (p *pool) putLocked(c *conn, now time.Time, do *todo) {
	h := c.host
	if c.users == 0 {
		c.setIdle(now, p.cfg.idleTimeout)
		if d := h.ends.idleTimeout(now, c.rtt); d > 0 {
			c.limitIdle(d, CloseIdleTimeout)
		}
	}
	reason := p.unfitLocked(c, now)
	if reason == CloseNone && p.owedLocked(c, now) {
		reason, p.lastFair = CloseEvicted, now
		if p.blocked.Remove(&h.blocked) {
			p.blocked.Push(&h.blocked) // behind it
		}
	}
	serving := c.serving
	p.grantLocked(c, reason, now)
	if c.users > 0 {
		if reason != CloseNone {
			p.retireLocked(c, reason)
		}
		if p.shareLocked(c); serving && !c.serving {
			p.refillLocked(h, do)
		}
		return
	}
	p.restLocked(c, reason, now, do)
}

// restLocked makes c, which nobody has a use for, idle, unless reason says that
// it is not fit for that, or a limit that one has to go.
func (p *pool) restLocked(c *conn, reason CloseReason, now time.Time, do *todo) {
	h := c.host
	switch {
	case reason != CloseNone:
		p.dropLocked(c, reason, do)
		return
	case p.phase != poolOpen:
		p.dropLocked(c, CloseTransportClosed, do)
		return
	case h.starving.Len() > 0 && h.settling == 0 || p.blocked.Len() > 0:
		// Somebody needs its slot, not itself.
		h.freeing = true
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

// grantLocked gives c to waiters, as far as it has room. reason says why it is
// not fit for use, if it is not.
func (p *pool) grantLocked(c *conn, reason CloseReason, now time.Time) {
	// One that has just been dialed goes to its waiter whatever has become of
	// it, or a server that hangs up at once would be dialed for ever.
	for c.hasRoom() && (reason == CloseNone || c.served == 0) {
		w := p.waiterForLocked(c)
		if w == nil {
			return
		}
		p.leaveLocked(w, now)
		c.idleFor = 0
		p.lendLocked(c)
		w.ready <- grant{c: c}
	}
}

// unfitLocked returns why a leased connection may not be used once more.
func (p *pool) unfitLocked(c *conn, now time.Time) CloseReason {
	switch {
	case p.phase == poolClosed:
		return CloseTransportClosed
	case c.retired != CloseNone:
		return c.retired
	case c.peerGone:
		return ClosePeerClosed
	case c.left == 0:
		return CloseMaxRequests
	case p.cfg.disableKeepAlives || p.cfg.keepNoneIdle:
		return CloseKeepAlivesDisabled
	case !c.checkable:
		return CloseUncheckable
	}
	reason := c.expired(now)
	if h := c.host; reason == CloseLifetime && c.users > 0 && h.shared.Len() < 2 && p.limitReachedLocked(h) {
		return CloseNone // its users may stay long, and there is no other
	}
	return reason
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
