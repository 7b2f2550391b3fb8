package keepalive

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/hostkey"
)

// bench is a pool without a network: the test plays the part of the Transport
// and decides when what the pool asked for is done.
type bench struct {
	t    testing.TB
	p    *pool
	now  time.Time
	rand *rand.Rand

	dials   []*dial       // asked for, under way
	giveUp  map[*dial]int // asked to be cancelled
	closing []*conn       // asked to be closed
	waiting []*waiter
	leased  []*conn // once for each user
	conns   []*conn // all that were dialed and are not closed
}

func newBench(t testing.TB, opts ...Option) *bench {
	cfg, err := newConfig(opts)
	require.NoError(t, err)
	b := &bench{
		t: t, p: newPool(cfg, func() {}), now: time.Unix(1_000_000, 0), giveUp: map[*dial]int{},
		rand: rand.New(rand.NewPCG(1, 2)),
	}
	b.p.base = b.now
	return b
}

// key returns the key of a host. Connections to "s" may take several requests.
func key(host string) hostkey.Key {
	if host == "s" {
		return hostkey.Key{Scheme: "https", Host: host, Port: "443"}
	}
	return hostkey.Key{Scheme: "http", Host: host, Port: "80"}
}

func (b *bench) take(do todo) {
	b.dials = append(b.dials, do.dial...)
	for _, d := range do.cancel {
		b.giveUp[d]++
	}
	b.closing = append(b.closing, do.discard...)
	b.deliver()
}

// deliver collects what waiters have been granted.
func (b *bench) deliver() {
	b.waiting = slices.DeleteFunc(b.waiting, func(w *waiter) bool {
		select {
		case g := <-w.ready:
			if (g.c == nil) == (g.err == nil) {
				b.t.Fatalf("a grant of %+v", g)
			}
			if g.c != nil {
				if w.fresh && !g.c.shares && g.c.served > 1 {
					b.t.Fatal("a used connection for a request that wants a fresh one")
				}
				b.lease(g.c)
			}
			return true
		default:
			return false
		}
	})
}

func (b *bench) lease(c *conn) {
	if c.state != stateLeased || !c.shares && slices.Contains(b.leased, c) {
		b.t.Fatalf("two owners of one connection (%v)", c.state)
	}
	if reason := c.expired(b.now); c.served > 1 && reason != CloseNone &&
		(reason != CloseLifetime || c.users == 1 || !b.p.limitReachedLocked(c.host)) {
		b.t.Fatal("an expired connection was handed out")
	}
	if c.silent {
		b.t.Fatal("a silent connection was handed out")
	}
	b.leased = append(b.leased, c)
}

// acquire returns the connection, or the waiter.
func (b *bench) acquire(host string, fresh bool) (*conn, *waiter) {
	got, do, err := b.p.acquire(b.now, want{key: key(host), ctx: context.Background(), fresh: fresh, first: true})
	if err != nil {
		if !errors.Is(err, ErrTooManyWaiters) && !errors.Is(err, ErrClosed) {
			b.t.Fatal(err)
		}
		b.take(do)
		return nil, nil
	}
	if got.c != nil {
		b.lease(got.c)
	} else {
		b.waiting = append(b.waiting, got.w)
	}
	b.take(do)
	return got.c, got.w
}

func (b *bench) dialed(d *dial, err error) *conn {
	b.dials = remove(b.dials, d)
	var c *conn
	if err == nil {
		c = &conn{checkable: true, capacity: 1}
		if b.p.cfg.mayShare(d.host.key) && b.rand.IntN(4) > 0 {
			c.shares, c.capacity, c.settling = true, 3, true
		}
		b.conns = append(b.conns, c)
	}
	b.take(b.p.dialed(d, c, err, b.now))
	return c
}

func (b *bench) release(c *conn, v verdict) {
	b.leased = remove(b.leased, c)
	_, do := b.p.release(c, b.now, v, true)
	b.take(do)
}

func (b *bench) closed(c *conn) {
	b.closing, b.conns = remove(b.closing, c), remove(b.conns, c)
	b.take(b.p.closed(c))
}

func (b *bench) abandon(w *waiter) {
	b.waiting = remove(b.waiting, w)
	_, do := b.p.abandon(w, b.now)
	b.take(do)
}

func (b *bench) reap() {
	for {
		do, more := b.p.reap(b.now)
		b.take(do)
		if !more {
			return
		}
	}
}

func remove[T comparable](s []T, v T) []T {
	i := slices.Index(s, v)
	if i < 0 {
		panic("not there")
	}
	return slices.Delete(s, i, i+1)
}

var keptVerdict = verdict{ReuseVerdict: ReuseVerdict{Keep: true}}

// open makes n idle connections to host.
func (b *bench) open(host string, n int) []*conn {
	b.t.Helper()
	for range n {
		b.acquire(host, true)
	}
	for len(b.dials) > 0 {
		b.dialed(b.dials[0], nil)
	}
	conns := slices.Clone(b.leased)
	require.Len(b.t, conns, n)
	for _, c := range conns {
		b.release(c, keptVerdict)
	}
	return conns
}

// checkShared checks what is known of connections with several users, and
// returns how many connections are leased.
func (b *bench) checkShared() (leased int) {
	users, settling, serving := map[*conn]int{}, map[*host]int{}, map[*host]int{}
	for _, c := range b.leased {
		users[c]++
	}
	for _, c := range b.conns {
		if int(c.users) != users[c] {
			b.t.Fatalf("a connection has %d users, the pool says %d", users[c], c.users)
		}
		inShared := false
		for e := c.host.shared.Front(); e != nil; e = e.Next() {
			inShared = inShared || e.Value == c
		}
		if want := c.users > 0 && c.hasRoom() && c.retired == CloseNone && !c.peerGone; inShared != want {
			b.t.Fatalf("a connection is shared: %v, want %v", inShared, want)
		}
		if c.settling {
			settling[c.host]++
		}
		if c.shares && c.retired == CloseNone && !c.peerGone && !c.silent && (c.left < 0 || int(c.users) < c.left) &&
			(c.state == stateLeased || c.state == stateIdle) {
			serving[c.host]++
		}
	}
	for _, h := range b.p.hosts {
		if h.serving != serving[h] {
			b.t.Fatalf("%d connections may get requests, the pool says %d", serving[h], h.serving)
		}
		if h.settling != settling[h] {
			b.t.Fatalf("%d connections settle, the pool says %d", settling[h], h.settling)
		}
	}
	return len(users)
}

// check compares the pool with what the test knows, and with itself.
func (b *bench) check() {
	p := b.p
	leased := b.checkShared()
	var sum tally
	var waiting, idle int
	for k, h := range p.hosts {
		if h.key != k {
			b.t.Fatal("a host under the wrong key")
		}
		for _, f := range []struct{ to, from *int }{
			{&sum.idle, &h.idle}, {&sum.inUse, &h.inUse}, {&sum.detached, &h.detached}, {&sum.dialing, &h.dialing}, {&sum.closing, &h.closing},
		} {
			if *f.from < 0 {
				b.t.Fatalf("a negative gauge: %+v", h.tally)
			}
			*f.to += *f.from
		}
		waiting += h.waiters.Len()
		idle += h.idleConns.Len()
		if h.slots() == 0 && h.waiters.Len() == 0 {
			b.t.Fatal("a host that holds nothing was kept")
		}
		b.checkHost(h)
	}
	got := [...]int{p.all.idle, p.all.inUse, p.all.dialing, p.all.closing, p.waiting, p.leased.Len(), p.idleConns.Len()}
	want := [...]int{sum.idle, leased, len(b.dials), len(b.closing), len(b.waiting), leased, idle}
	if got != want {
		b.t.Fatalf("idle, in use, dialing, closing, waiting, leased, idle: pool has %v, test has %v", got, want)
	}
	if waiting != p.waiting || sum.idle != idle || sum.inUse != p.all.inUse || sum.dialing != p.all.dialing || sum.closing != p.all.closing {
		b.t.Fatal("the sums over hosts differ from the whole")
	}
	s := p.stats()
	if s.Opened != uint64(s.Open)+s.TotalClosed() {
		b.t.Fatalf("opened %d != open %d + closed %d", s.Opened, s.Open, s.TotalClosed())
	}
	if s.Dials != s.Opened+s.DialErrors+uint64(s.Dialing) {
		b.t.Fatalf("dials %d != opened %d + errors %d + dialing %d", s.Dials, s.Opened, s.DialErrors, s.Dialing)
	}
	if p.blocked.Len() > 0 && p.idleConns.Len() > 0 && p.all.closing == 0 {
		b.t.Fatalf("requests wait at the total limit, and %d connections are idle", idle)
	}
	if n := p.cfg.maxIdle; n > 0 && idle > n {
		b.t.Fatalf("%d idle, limit %d", idle, n)
	}
}

func (b *bench) checkHost(h *host) {
	cfg := b.p.cfg
	if n := cfg.maxConnsPerHost; n > 0 && h.slots() > n {
		b.t.Fatalf("%d slots of a host, limit %d", h.slots(), n)
	}
	if n := cfg.maxConns; n > 0 && b.p.all.slots() > n && h.slots() > 1 && b.p.all.slots() > n+len(b.p.hosts) {
		b.t.Fatalf("%d slots, limit %d", b.p.all.slots(), n)
	}
	if n := cfg.maxIdlePerHost; n > 0 && h.idleConns.Len() > n {
		b.t.Fatalf("%d idle of a host, limit %d", h.idleConns.Len(), n)
	}
	// Nobody waits without a reason.
	full := cfg.maxConnsPerHost > 0 && h.slots() >= cfg.maxConnsPerHost
	blocked := b.p.fullLocked() && h.slots() > 0
	strict := cfg.http2 != nil && cfg.http2.StrictMaxConcurrentRequests && h.shares() && h.dialing-h.overdue+h.serving+h.closing > 0
	if h.starving.Len() > 0 && !full && !blocked && !strict && !h.aboutToSay() {
		b.t.Fatalf("%d requests starve although a dial is allowed: %+v", h.starving.Len(), h.tally)
	}
	if blocked && !full && !strict && h.starving.Len() > 0 && !h.blocked.Queued() && !h.aboutToSay() {
		b.t.Fatal("a host that is held back will not be told when a slot is free")
	}
	if full && h.starving.Len() > 0 && h.idleConns.Len() > 0 && h.closing == 0 && !h.aboutToSay() {
		b.t.Fatal("a request waits at the limit for a new connection, and one is idle")
	}
	overdue := 0
	for _, d := range b.dials {
		if d.host == h && d.overdue {
			overdue++
			if d.waiters.Len() > 1 {
				b.t.Fatal("requests wait for a dial that takes long")
			}
		}
	}
	if overdue != h.overdue {
		b.t.Fatalf("%d dials take long, the pool says %d", overdue, h.overdue)
	}
	dials := map[*dial]int{}
	for e := h.waiters.Front(); e != nil; e = e.Next() {
		w := e.Value
		if !w.fresh && h.idleConns.Len() > 0 && h.idleConns.Front().Value.hasRoom() {
			b.t.Fatal("a request waits while a connection is idle")
		}
		if !w.fresh && h.shared.Len() > 0 {
			b.t.Fatal("a request waits while a connection has room")
		}
		if !w.place.Queued() {
			b.t.Fatal("a waiter is nowhere")
		}
		if w.dial != nil {
			dials[w.dial]++
		}
	}
	for d, n := range dials {
		if n != d.waiters.Len() {
			b.t.Fatalf("a dial is for %d waiters, and says %d", n, d.waiters.Len())
		}
	}
	if h.starving.Len() > 0 && h.orphans.Len()+h.boarding.Len() > 0 {
		b.t.Fatal("a request starves while a dial has room")
	}
	given := 0
	for d := range b.giveUp {
		if d.host == h && slices.Contains(b.dials, d) {
			given++
		}
	}
	if h.dialing != len(dials)+h.orphans.Len()+given {
		b.t.Fatalf("%d dials, %d for waiters, %d orphans, %d given up", h.dialing, len(dials), h.orphans.Len(), given)
	}
}

// step does one thing that op and pick choose.
func (b *bench) step(op, pick byte) {
	hosts := []string{"a", "b", "c", "s"}
	at := func(n int) int { return int(pick) % n }
	switch {
	case op < 70:
		b.acquire(hosts[at(4)], pick > 240)
	case op < 115 && len(b.dials) > 0:
		b.dialed(b.dials[at(len(b.dials))], nil)
	case op < 130 && len(b.dials) > 0:
		b.dialed(b.dials[at(len(b.dials))], errors.New("refused"))
	case op < 134 && len(b.dials) > 0:
		b.take(b.p.overdue(b.dials[at(len(b.dials))]))
	case op < 180 && len(b.leased) > 0:
		b.release(b.leased[at(len(b.leased))], keptVerdict)
	case op < 195 && len(b.leased) > 0:
		b.release(b.leased[at(len(b.leased))], drop(CloseReason(1+pick%byte(numCloseReasons-1))))
	case op < 210 && len(b.waiting) > 0:
		b.abandon(b.waiting[at(len(b.waiting))])
	case op < 240 && len(b.closing) > 0:
		b.closed(b.closing[at(len(b.closing))])
	case op < 244:
		b.now = b.now.Add(time.Duration(pick) * 300 * time.Millisecond)
		b.reap()
	case op < 247:
		if e := b.p.idleConns.Front(); e != nil {
			b.take(b.p.peerGone(e.Value, b.now))
		}
	case op < 249 && len(b.leased) > 0:
		b.take(b.p.peerGone(b.leased[at(len(b.leased))], b.now))
	case op < 250:
		b.take(b.p.dropIdle(CloseIdleConns))
	case len(b.conns) > 0:
		b.shareStep(op, b.conns[at(len(b.conns))], int(pick/16))
	}
}

// shareStep does one of the things that happen to connections with several
// users.
func (b *bench) shareStep(op byte, c *conn, n int) {
	if c.state != stateLeased && c.state != stateIdle || !c.shares {
		return
	}
	switch op {
	case 250:
		b.take(b.p.settled(c, b.now))
	case 251, 252:
		b.take(b.p.said(c, n, n == 15, b.now))
	case 253:
		if c.users > 0 {
			b.take(b.p.retire(c, CloseClientRequest))
		}
	case 254:
		if c.users > 0 {
			b.p.silent(c)
		}
	case 255:
		b.take(b.p.heard(c, b.now))
	}
}

// settleAll says what every connection is about to say.
func (b *bench) settleAll() (did bool) {
	for _, c := range b.conns {
		if c.settling || c.silent && c.state == stateIdle {
			did = true
			b.take(b.p.settled(c, b.now))
			b.take(b.p.heard(c, b.now))
		}
	}
	return did
}

// settle brings everything to its end and checks that nothing is left.
func (b *bench) settle() {
	for range 100000 {
		switch {
		case len(b.dials) > 0:
			b.dialed(b.dials[0], nil)
		case len(b.closing) > 0:
			b.closed(b.closing[0])
		case len(b.leased) > 0:
			b.release(b.leased[0], keptVerdict)
		case b.settleAll():
		case len(b.waiting) > 0:
			b.t.Fatalf("%d requests wait for ever", len(b.waiting))
		default:
			b.check()
			b.take(b.p.shut(b.now))
			for len(b.closing) > 0 {
				b.closed(b.closing[0])
			}
			if len(b.p.hosts) != 0 || b.p.all.slots() != 0 || b.p.waiting != 0 || len(b.p.expiry) != 0 || b.p.blocked.Len() != 0 {
				b.t.Fatalf("something is left: %+v", b.p.all)
			}
			return
		}
		b.check()
	}
	b.t.Fatal("it does not come to an end")
}

var benchConfigs = [][]Option{
	{},
	{WithMaxConnsPerHost(1)},
	{WithMaxConnsPerHost(2), WithMaxWaiters(3)},
	{WithMaxConns(2)},
	{WithMaxConns(4), WithMaxConnsPerHost(2)},
	{WithMaxIdleConnsPerHost(2), WithMaxIdleConns(3), WithIdleOrder(FIFO)},
	{WithMaxRequestsPerConn(3), WithIdleConnTimeout(20 * time.Second), WithMaxConnLifetime(time.Minute)},
	{WithMaxConnsPerHost(1), WithMaxConnLifetime(20 * time.Second)},
	{WithDisableKeepAlives(true), WithMaxConnsPerHost(2)},
	{WithDisableKeepAlives(true)},
	{WithHTTP2Config(http.HTTP2Config{StrictMaxConcurrentRequests: true})},
	{WithHTTP2Config(http.HTTP2Config{StrictMaxConcurrentRequests: true}), WithMaxConns(3)},
	{WithHTTP2Config(http.HTTP2Config{StrictMaxConcurrentRequests: true}), WithMaxRequestsPerConn(3)},
}

func TestPoolAgainstAModel(t *testing.T) {
	for i, opts := range benchConfigs {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			for seed := range uint64(60) {
				b := newBench(t, opts...)
				b.rand = rand.New(rand.NewPCG(seed, uint64(i)))
				for range 400 {
					b.step(byte(b.rand.UintN(256)), byte(b.rand.UintN(256)))
					b.check()
				}
				b.settle()
			}
		})
	}
}

func FuzzPool(f *testing.F) {
	f.Add(byte(1), []byte{0, 0, 0, 0, 100, 0, 200, 0, 210, 0})
	f.Add(byte(3), []byte{0, 0, 0, 1, 0, 2, 100, 0, 100, 0, 100, 0, 0, 0, 0, 1, 150, 0, 150, 0})
	f.Add(byte(4), []byte{0, 0, 0, 0, 0, 0, 120, 0, 200, 1, 100, 0, 185, 0, 220, 0})
	f.Fuzz(func(t *testing.T, config byte, ops []byte) {
		b := newBench(t, benchConfigs[int(config)%len(benchConfigs)]...)
		for i := 0; i+1 < len(ops) && i < 2000; i += 2 {
			b.step(ops[i], ops[i+1])
			b.check()
		}
		b.settle()
	})
}

func TestPoolReleaseGoesToTheOldestWaiter(t *testing.T) {
	b := newBench(t, WithMaxConnsPerHost(1))
	b.acquire("a", false)
	c := b.dialed(b.dials[0], nil)
	_, w1 := b.acquire("a", false)
	_, w2 := b.acquire("a", false)
	b.release(c, keptVerdict)
	require.Equal(t, []*waiter{w2}, b.waiting, "first come, first served: %p", w1)
	b.check()
	b.abandon(w2)
	b.settle()
}

func TestPoolDroppedConnLetsAWaiterDial(t *testing.T) {
	b := newBench(t, WithMaxConnsPerHost(1))
	b.acquire("a", false)
	c := b.dialed(b.dials[0], nil)
	b.acquire("a", false)
	require.Empty(t, b.dials)
	b.release(c, drop(CloseReadError))
	require.Empty(t, b.dials, "the slot is free when the socket is closed")
	b.closed(c)
	require.Len(t, b.dials, 1)
	b.settle()
}

func TestPoolCanceledWaitersLeaveOneDial(t *testing.T) {
	b := newBench(t)
	for range 200 {
		b.acquire("a", false)
	}
	require.Len(t, b.dials, 200)
	for len(b.waiting) > 0 {
		b.abandon(b.waiting[b.rand.IntN(len(b.waiting))])
		b.check()
	}
	require.Len(t, b.giveUp, 199)
	b.acquire("a", false)
	require.Len(t, b.dials, 200, "the next request takes over the dial that was left")
	b.settle()
}

// TestPoolStrictLimitAndTheLastRequest: nobody waits for a connection whose users
// are all that it may still serve.
func TestPoolStrictLimitAndTheLastRequest(t *testing.T) {
	strict := WithHTTP2Config(http.HTTP2Config{StrictMaxConcurrentRequests: true})
	open := func(limit int) *bench {
		b := newBench(t, strict, WithMaxRequestsPerConn(2))
		b.acquire("s", false)
		c := &conn{checkable: true, shares: true, capacity: 3, settling: true}
		d := b.dials[0]
		b.dials, b.conns = nil, append(b.conns, c)
		b.take(b.p.dialed(d, c, nil, b.now))
		b.take(b.p.said(c, limit, false, b.now))
		b.take(b.p.settled(c, b.now))
		b.now = b.now.Add(time.Second)
		return b
	}
	t.Run("who comes", func(t *testing.T) {
		b := open(2)
		b.acquire("s", false)
		require.Empty(t, b.dials)
		b.acquire("s", false)
		require.Len(t, b.dials, 1)
		b.settle()
	})
	t.Run("who waits while it is given to another", func(t *testing.T) {
		b := open(1)
		b.acquire("s", false)
		b.acquire("s", false)
		require.Empty(t, b.dials, "strict")
		b.release(b.leased[0], keptVerdict)
		require.Len(t, b.waiting, 1)
		require.Len(t, b.dials, 1)
		b.settle()
	})
	t.Run("who waits for a new one", func(t *testing.T) {
		b := open(2)
		b.acquire("s", true)
		require.Empty(t, b.dials, "strict")
		b.acquire("s", false)
		require.Len(t, b.dials, 1)
		b.settle()
	})
}

// TestPoolStrictLimitCountsWhatServes: with StrictMaxConcurrentRequests nobody
// waits for a connection that gets no more requests.
func TestPoolStrictLimitCountsWhatServes(t *testing.T) {
	for name, end := range map[string]func(b *bench, c *conn){
		"peer gone":  func(b *bench, c *conn) { b.take(b.p.peerGone(c, b.now)) },
		"GOAWAY":     func(b *bench, c *conn) { b.take(b.p.said(c, 3, true, b.now)) },
		"last one":   func(b *bench, c *conn) { b.take(b.p.retire(c, CloseClientRequest)) },
		"failed one": func(b *bench, c *conn) { b.release(c, drop(CloseReadError)) },
		"lifetime": func(b *bench, c *conn) {
			b.now = b.now.Add(time.Hour)
			b.release(c, keptVerdict)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, WithHTTP2Config(http.HTTP2Config{StrictMaxConcurrentRequests: true}))
			for range 4 {
				b.acquire("s", false)
			}
			require.Len(t, b.dials, 1)
			c := &conn{checkable: true, shares: true, capacity: 3, settling: true}
			d := b.dials[0]
			b.dials, b.conns = nil, append(b.conns, c)
			b.take(b.p.dialed(d, c, nil, b.now))
			b.take(b.p.said(c, 3, false, b.now))
			b.take(b.p.settled(c, b.now))
			require.Len(t, b.leased, 3)
			require.Empty(t, b.dials, "strict")
			end(b, c)
			require.Len(t, b.dials, 1)
			b.check()
			b.settle()
		})
	}
}

// TestPoolOverdueDial: a dial that takes long keeps the first of its waiters.
func TestPoolOverdueDial(t *testing.T) {
	b := newBench(t)
	for range 20 {
		b.acquire("s", false)
	}
	require.Len(t, b.dials, 1)
	b.take(b.p.overdue(b.dials[0]))
	b.check()
	require.Len(t, b.dials, 2, "one more, for all the others")
	require.Equal(t, 1, b.dials[0].waiters.Len())
	require.Equal(t, 19, b.dials[1].waiters.Len())
	b.acquire("s", false)
	require.Len(t, b.dials, 2, "who comes goes with them")
	b.take(b.p.overdue(b.dials[1]))
	require.Len(t, b.dials, 3)
	b.dialed(b.dials[0], errors.New("refused"))
	require.Len(t, b.waiting, 20, "it fails one")
	b.settle()
}

func TestPoolOverdueDialAtTheLimit(t *testing.T) {
	for _, opt := range []Option{WithMaxConnsPerHost(1), WithMaxConns(1)} {
		b := newBench(t, opt)
		for range 20 {
			b.acquire("s", false)
		}
		b.take(b.p.overdue(b.dials[0]))
		require.Len(t, b.dials, 1)
		require.Equal(t, 20, b.dials[0].waiters.Len(), "there is no other to wait for")
		b.settle()
	}
}

func TestPoolEvictsAnotherHostBeforeItMakesAnyoneWait(t *testing.T) {
	b := newBench(t, WithMaxConns(3))
	a := b.open("a", 2)
	b.now = b.now.Add(time.Second)
	b.open("b", 1)
	b.acquire("b", false)
	require.Empty(t, b.dials, "its idle connection serves")
	b.acquire("b", false)
	require.Equal(t, a[:1], b.closing, "the longest idle of any host makes room")
	require.Equal(t, CloseEvicted, a[0].reason)
	b.acquire("c", false)
	require.Len(t, b.dials, 1, "the first connection of a host is always allowed")
	b.settle()
}

func TestPoolIdleLimitKeepsTheReturningConn(t *testing.T) {
	b := newBench(t, WithMaxIdleConnsPerHost(2))
	c := b.open("a", 3)
	require.Equal(t, c[:1], b.closing)
	require.Equal(t, CloseHostIdleLimit, c[0].reason)
	b.settle()
}

func TestPoolIdleOrder(t *testing.T) {
	for _, tt := range []struct {
		order IdleOrder
		used  int
	}{{LIFO, 1}, {FIFO, 10}} {
		t.Run(tt.order.String(), func(t *testing.T) {
			b := newBench(t, WithIdleOrder(tt.order))
			b.open("a", 10)
			used := map[*conn]int{}
			for range 100 {
				c, _ := b.acquire("a", false)
				used[c]++
				b.release(c, keptVerdict)
			}
			require.Len(t, used, tt.used)
			for _, n := range used {
				require.Equal(t, 100/tt.used, n)
			}
			b.settle()
		})
	}
}

func TestPoolReapAtIdleTimeout(t *testing.T) {
	b := newBench(t, WithIdleConnTimeout(time.Minute))
	b.open("a", 100)
	require.Len(t, b.closing, 36, "the default idle limit")
	for len(b.closing) > 0 {
		b.closed(b.closing[0])
	}
	b.now = b.now.Add(time.Minute - 1)
	b.reap()
	require.Empty(t, b.closing)
	b.now = b.now.Add(1)
	b.reap()
	require.Len(t, b.closing, 64)
	b.settle()
}

func TestPoolDoesNotLendAnExpiredConn(t *testing.T) {
	b := newBench(t, WithIdleConnTimeout(time.Minute))
	c := b.open("a", 1)
	b.now = b.now.Add(time.Minute)
	b.acquire("a", false)
	require.Equal(t, c, b.closing, "however late the timer")
	require.Equal(t, CloseIdleTimeout, c[0].reason)
	b.settle()
}

func TestPoolWallClock(t *testing.T) {
	b := newBench(t, WithIdleConnTimeout(time.Minute), WithMaxConnLifetime(0))
	b.now = time.Now()
	b.p.base = b.now
	c := b.open("a", 1)[0]
	require.Equal(t, CloseNone, c.expired(b.now.Add(time.Second)))
	slept := b.now.Round(0).Add(time.Hour) // the monotonic clock stood still
	require.Equal(t, CloseIdleTimeout, c.expired(slept))
	b.settle()
}

func TestPoolLifetimeAndJitter(t *testing.T) {
	const life = 100 * time.Second
	b := newBench(t, WithMaxConnLifetime(life), WithLifetimeJitter(0.2))
	seconds := map[int]bool{}
	for _, c := range b.open("a", 60) {
		age := c.life
		require.LessOrEqual(t, age, life, "jitter only ever shortens")
		require.GreaterOrEqual(t, age, life*8/10)
		seconds[int(age/time.Second)] = true
	}
	require.GreaterOrEqual(t, len(seconds), 10)
	b.settle()
}

func TestPoolLifetimeAtHandOver(t *testing.T) {
	b := newBench(t, WithMaxConnsPerHost(1), WithMaxConnLifetime(time.Minute), WithLifetimeJitter(0))
	b.acquire("a", false)
	c := b.dialed(b.dials[0], nil)
	b.acquire("a", false)
	b.now = b.now.Add(time.Minute)
	b.release(c, keptVerdict)
	require.Equal(t, []*conn{c}, b.closing, "also when somebody waits for it")
	require.Equal(t, CloseLifetime, c.reason)
	b.settle()
}

func TestPoolUnusedConnExpiresEarly(t *testing.T) {
	b := newBench(t)
	_, w := b.acquire("a", false)
	b.abandon(w)
	c := b.dialed(b.dials[0], nil)
	require.Equal(t, unusedIdleTimeout, c.idleLimit)
	b.settle()
}

func TestPoolBadMovePanics(t *testing.T) {
	states := []connState{stateLeased, stateIdle, stateClosing, stateDetached, stateClosed}
	allowed := 0
	for _, from := range states {
		for _, to := range states {
			b := newBench(t)
			c := b.open("a", 1)[0]
			c.state = from
			if mayBecome(from, to) {
				allowed++
				continue
			}
			require.Panics(t, func() { b.p.moveLocked(c, to) }, "%v -> %v", from, to)
		}
	}
	require.Equal(t, 7, allowed, "the arrows in the picture above connState")
}

// TestPoolDoesNothingItself holds the rule that the pool decides and the
// Transport acts (golang/go#79902: a Close under the lock stops every host).
func TestPoolDoesNothingItself(t *testing.T) {
	banned := []string{"Close", "Read", "Write", "SetDeadline", "SetReadDeadline", "SetWriteDeadline", "Interrupt", "Peek", "RoundTrip"}
	for _, name := range []string{"pool.go", "waiters.go", "lifecycle.go", "expiry.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s starts a goroutine", name)
			case *ast.SelectorExpr:
				if slices.Contains(banned, n.Sel.Name) {
					t.Errorf("%s calls %s", name, n.Sel.Name)
				}
			}
			return true
		})
	}
}

func BenchmarkPoolAcquireRelease(b *testing.B) {
	p := newBench(b)
	p.open("a", 8)
	now := p.now
	want := want{key: key("a"), ctx: context.Background(), first: true}
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		got, _, _ := p.p.acquire(now, want)
		p.p.release(got.c, now, keptVerdict, true)
	}
}
