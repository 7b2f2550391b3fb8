package keepalive

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPoolFreshRequestIsNotOvertakenAtTheLimit(t *testing.T) {
	for _, opt := range []Option{WithMaxConnsPerHost(1), WithMaxConns(1)} {
		b := newBench(t, opt)
		b.acquire("a", false)
		c := b.dialed(b.dials[0], nil)
		_, fresh := b.acquire("a", true)
		_, later := b.acquire("a", false)
		b.release(c, keptVerdict)
		require.Equal(t, []*conn{c}, b.closing, "only its slot is of use to the oldest waiter")
		require.Equal(t, CloseEvicted, c.reason)
		b.closed(c)
		c = b.dialed(b.dials[0], nil)
		require.Equal(t, []*waiter{later}, b.waiting, "%p was first", fresh)
		b.release(c, keptVerdict)
		require.Empty(t, b.waiting)
		b.acquire("a", true)
		b.acquire("a", false)
		b.release(c, keptVerdict)
		require.Equal(t, []*conn{c}, b.closing, "nor the next one")
		b.settle()
	}
}

func TestPoolOneEvictionForOneFreshRequest(t *testing.T) {
	b := newBench(t, WithMaxConnsPerHost(2))
	b.acquire("a", true)
	b.acquire("a", true)
	c1, c2 := b.dialed(b.dials[0], nil), b.dialed(b.dials[0], nil)
	b.acquire("a", true)
	b.acquire("a", false)
	b.release(c1, keptVerdict)
	b.release(c2, keptVerdict)
	require.Equal(t, []*conn{c1}, b.closing)
	require.Equal(t, []*conn{c2}, b.leased, "the other one goes to who can use it")
	b.settle()
}

func TestPoolIdleEvictionForAFreshRequestIsEnough(t *testing.T) {
	b := newBench(t, WithMaxConnsPerHost(2))
	b.acquire("a", true)
	b.acquire("a", true)
	c1, c2 := b.dialed(b.dials[0], nil), b.dialed(b.dials[0], nil)
	b.release(c1, keptVerdict)
	b.acquire("a", true)
	require.Equal(t, []*conn{c1}, b.closing, "the idle one makes room")
	b.acquire("a", false)
	b.release(c2, keptVerdict)
	require.Equal(t, []*conn{c1}, b.closing)
	require.Equal(t, []*conn{c2}, b.leased, "the other one goes to who can use it")
	b.settle()
}

func TestPoolRoomIsMadeOnce(t *testing.T) {
	b := newBench(t, WithMaxConns(3))
	idle := b.open("a", 2)
	b.acquire("b", false)
	busy := b.dialed(b.dials[0], nil)
	b.acquire("b", false)
	require.Equal(t, idle[:1], b.closing)
	b.take(b.p.retire(busy, CloseClientRequest)) // looks again after who waits
	require.Equal(t, idle[:1], b.closing, "its slot is on its way")
	b.settle()
}

func TestPoolHostsShareTheTotalLimit(t *testing.T) {
	b := newBench(t, WithMaxConns(3))
	b.acquire("a", false)
	b.acquire("a", false)
	b.acquire("b", false)
	a1, a2 := b.dialed(b.dials[0], nil), b.dialed(b.dials[0], nil)
	b.dialed(b.dials[0], nil)
	b.acquire("a", false) // in line before
	b.now = b.now.Add(1)
	_, w := b.acquire("b", false)
	b.now = b.now.Add(1)
	b.acquire("a", false)
	b.release(a1, keptVerdict)
	b.release(a1, keptVerdict)
	require.Empty(t, b.closing, "not at every turn")
	b.now = w.since.Add(fairWait)
	b.acquire("a", false)
	b.acquire("a", false)
	b.release(a1, keptVerdict)
	require.Equal(t, []*conn{a1}, b.closing)
	b.release(a2, keptVerdict)
	require.Equal(t, []*conn{a1}, b.closing, "one for one")
	b.closed(a1)
	require.Len(t, b.dials, 1)
	require.Same(t, w, b.dials[0].waiters.Front().Value)
	b.settle()
}

func TestPoolHostKeepsOneUnderTheTotalLimit(t *testing.T) {
	b := newBench(t, WithMaxConns(2))
	b.acquire("a", false)
	a := b.dialed(b.dials[0], nil)
	b.acquire("b", false)
	b.dialed(b.dials[0], nil)
	b.acquire("b", false)
	b.now = b.now.Add(fairWait)
	b.acquire("a", false)
	b.release(a, keptVerdict)
	require.Empty(t, b.closing)
	b.settle()
}

func TestPoolBusyHostGoesBehindTheOthers(t *testing.T) {
	b := newBench(t, WithMaxConns(3))
	for range 3 {
		b.acquire("a", false)
	}
	a := []*conn{b.dialed(b.dials[0], nil), b.dialed(b.dials[0], nil), b.dialed(b.dials[0], nil)}
	b.acquire("a", false) // held back by the limit before anybody else
	b.acquire("b", false)
	b.dialed(b.dials[0], nil) // one above the limit, as the first one of its host
	b.now = b.now.Add(1)
	_, w := b.acquire("b", false)
	b.now = b.now.Add(fairWait)
	b.acquire("a", false)
	b.release(a[0], keptVerdict)
	require.Empty(t, b.closing, "the older request gets it")
	for _, c := range a[1:] {
		b.now = b.now.Add(fairWait)
		b.acquire("a", false)
		b.release(c, keptVerdict)
		require.Equal(t, []*conn{c}, b.closing)
		b.closed(c)
	}
	require.Len(t, b.dials, 1, "the first eviction only led back to the limit")
	require.Same(t, w, b.dials[0].waiters.Front().Value)
	b.settle()
}

func TestPoolFreshRequestDoesNotWaitForAnotherClose(t *testing.T) {
	b := newBench(t, WithMaxConnsPerHost(3))
	for range 3 {
		b.acquire("a", true)
	}
	c := []*conn{b.dialed(b.dials[0], nil), b.dialed(b.dials[0], nil), b.dialed(b.dials[0], nil)}
	b.release(c[0], drop(CloseReadError)) // takes its time to close
	b.acquire("a", true)
	b.acquire("a", false)
	b.release(c[1], keptVerdict)
	require.Equal(t, []*conn{c[0], c[1]}, b.closing)
	b.settle()
}

func TestPoolHostThatTurnsOutToNeedMoreEvicts(t *testing.T) {
	b := newBench(t, WithMaxConns(2))
	b.open("a", 1)
	b.acquire("s", false)
	b.acquire("s", false)
	require.Len(t, b.dials, 1, "it may be for both")
	d := b.dials[0]
	b.dials = b.dials[:0]
	c := &conn{checkable: true, capacity: 1} // but is not
	b.conns = append(b.conns, c)
	b.take(b.p.dialed(d, c, nil, b.now))
	require.Len(t, b.closing, 1)
	b.settle()
}

func TestPoolFreedSlotGoesToWhoWaitedForIt(t *testing.T) {
	b := newBench(t, WithMaxConns(3), WithMaxConnsPerHost(2))
	b.acquire("a", true)
	b.acquire("a", true)
	a1 := b.dialed(b.dials[0], nil)
	b.dialed(b.dials[0], nil)
	b.acquire("b", false)
	b.dialed(b.dials[0], nil)
	b.acquire("b", false)
	b.acquire("a", false)
	require.Empty(t, b.dials)
	b.release(a1, drop(CloseReadError))
	b.closed(a1)
	require.Len(t, b.dials, 1)
	require.Equal(t, key("b"), b.dials[0].host.key)
	b.settle()
}

func TestPoolFirstConnOfAHostEvictsAnIdleOne(t *testing.T) {
	b := newBench(t, WithMaxConns(2), WithMaxIdleConns(0))
	b.open("a", 2)
	b.acquire("b", false)
	require.Len(t, b.dials, 1, "at once")
	require.Len(t, b.closing, 1)
	b.closed(b.closing[0])
	b.acquire("c", false)
	require.Len(t, b.closing, 1)
	b.settle()

	b = newBench(t, WithMaxConns(3), WithMaxIdleConns(0))
	b.open("a", 3)
	_, w := b.acquire("b", false)
	require.Len(t, b.closing, 1)
	b.abandon(w)
	b.acquire("b", false)
	require.Len(t, b.closing, 1, "that dial has its slot")
	b.settle()
}

func TestPoolOldOrphanIsNotEnough(t *testing.T) {
	b := newBench(t)
	_, w := b.acquire("a", false)
	b.abandon(w)
	b.now = b.now.Add(dialPatience - 1)
	_, w = b.acquire("a", false)
	require.Len(t, b.dials, 1, "it may come soon")
	b.abandon(w)
	b.now = b.now.Add(1)
	_, w = b.acquire("a", false)
	require.Len(t, b.dials, 2, "it may never come")
	old, young := b.dials[0], b.dials[1]
	b.abandon(w)
	require.Equal(t, map[*dial]int{young: 1}, b.giveUp, "the older one has come farther")
	b.acquire("a", false)
	require.Len(t, b.dials, 3)
	b.dialed(old, nil)
	require.Empty(t, b.waiting, "the first one that comes is taken")
	b.settle()
}

func TestPoolOldOrphanHasToDoAtTheLimit(t *testing.T) {
	b := newBench(t, WithMaxConnsPerHost(1))
	_, w := b.acquire("a", false)
	b.abandon(w)
	b.now = b.now.Add(time.Minute)
	b.acquire("a", false)
	require.Len(t, b.dials, 1)
	b.dialed(b.dials[0], nil)
	require.Empty(t, b.waiting)
	b.settle()
}

func TestPoolWaitingForWordIsNoLimit(t *testing.T) {
	b := newBench(t, WithMaxWaiters(1))
	for range 3 * initialStreams {
		b.acquire("s", false)
	}
	require.Len(t, b.waiting, 3*initialStreams, "they wait for the dial to say how many it takes")
	b.settle()
}

func TestPoolDirtyConnWasNotReused(t *testing.T) {
	b := newBench(t)
	c := b.open("a", 1)[0]
	b.acquire("a", false)
	b.release(c, keptVerdict)
	require.Equal(t, uint64(1), b.p.all.Reuses)
	b.acquire("a", false)
	c.served-- // as exchange.stale does
	b.release(c, dropUnused(CloseProtocolError))
	require.Equal(t, uint64(1), b.p.all.Reuses)
	b.settle()
}
