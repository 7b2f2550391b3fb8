package keepalive

import (
	"container/heap"
	"math"
	"time"
)

// reapBatch bounds how many connections one turn of reap looks at, so that the
// lock is never held for long.
const reapBatch = 64

// reapSlack is how much later than the earliest expiry the timer fires, so
// that connections which expire together go together. A connection is never
// handed out after its expiry, however late the timer.
const reapSlack = 20 * time.Millisecond

// expiryHeap orders connections by when reap has to look at them. That moment
// is never later than their expiry, but may be earlier: while a connection is
// used again and again its entry stays where it is, so that a request costs no
// heap operation.
type expiryHeap []*conn

// Len, Less and Swap are for container/heap.
func (h *expiryHeap) Len() int           { return len(*h) }
func (h *expiryHeap) Less(i, j int) bool { return (*h)[i].lookAt < (*h)[j].lookAt }
func (h *expiryHeap) Swap(i, j int) {
	s := *h
	s[i], s[j] = s[j], s[i]
	s[i].heapIndex, s[j].heapIndex = int32(i), int32(j) //nolint:gosec // no more connections than descriptors
}

// Push is for container/heap.
func (h *expiryHeap) Push(x any) {
	c, _ := x.(*conn)
	c.heapIndex = int32(len(*h)) //nolint:gosec // see Swap
	*h = append(*h, c)
}

// Pop is for container/heap.
func (h *expiryHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	c.heapIndex = -1
	return c
}

// expiresAtLocked returns when c expires, after pool.base; 0 means never.
func (p *pool) expiresAtLocked(c *conn) time.Duration {
	if c.idleLimit == 0 {
		return 0
	}
	since := c.idleSince.Sub(p.base)
	if c.idleLimit > math.MaxInt64/2-max(since, 0) {
		return 0 // more than a century from now
	}
	return max(since+c.idleLimit, 1)
}

// scheduleLocked makes sure that reap looks at c when it expires.
func (p *pool) scheduleLocked(c *conn, now time.Time) {
	at := p.expiresAtLocked(c)
	switch {
	case at == 0:
		return
	case c.heapIndex < 0:
		c.lookAt = at
		heap.Push(&p.expiry, c)
	case at < c.lookAt:
		c.lookAt = at
		heap.Fix(&p.expiry, int(c.heapIndex))
	}
	p.armLocked(now)
}

// unscheduleLocked forgets c.
func (p *pool) unscheduleLocked(c *conn) {
	if c.heapIndex >= 0 {
		heap.Remove(&p.expiry, int(c.heapIndex))
	}
	if len(p.expiry) == 0 && p.timer != nil {
		p.timer.Stop()
		p.wakeAt = 0
	}
}

// armLocked sets the timer for the first connection in the heap, unless it is
// set for then or earlier.
func (p *pool) armLocked(now time.Time) {
	if len(p.expiry) == 0 {
		return
	}
	at := p.expiry[0].lookAt
	if p.wakeAt != 0 && at >= p.wakeAt {
		return
	}
	p.wakeAt = at
	d := max(at-now.Sub(p.base), 0)
	d += min(reapSlack, d/20)
	if p.timer == nil {
		p.timer = time.AfterFunc(d, p.onTimer)
		return
	}
	p.timer.Reset(d)
}

// reap drops idle connections that have expired at now, at most reapBatch of
// them, and sets the timer for the next. more says that it should be called
// again at once.
func (p *pool) reap(now time.Time) (do todo, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range reapBatch {
		if len(p.expiry) == 0 || p.expiry[0].lookAt > now.Sub(p.base) {
			p.wakeAt = 0
			p.armLocked(now)
			return do, false
		}
		c := p.expiry[0]
		reason := CloseNone
		if c.state == stateIdle {
			reason = c.expired(now)
		}
		switch {
		case reason != CloseNone:
			p.dropLocked(c, reason, &do)
		case c.state == stateIdle && p.expiresAtLocked(c) != 0:
			c.lookAt = p.expiresAtLocked(c)
			heap.Fix(&p.expiry, 0)
		default:
			heap.Pop(&p.expiry) // scheduled again when it becomes idle
		}
	}
	return do, true
}
