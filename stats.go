package keepalive

import (
	"maps"
	"time"
)

// Stats is a snapshot of what a Transport does and has done. Counters only
// grow; gauges are the moment's. These always hold:
//
//	Opened = Open + the sum of Closed
//	Open   = Idle + InUse + Detached
//	Dials  = Opened + DialErrors + Dialing
type Stats struct {
	Counters
	Gauges
	// Closed counts ended connections by reason.
	Closed map[CloseReason]uint64
	// Hosts holds the same for each host that has a connection, a dial or a
	// waiting request now. Its key is scheme://host:port, with " via " and the
	// proxy behind it, if there is one, and what WithPoolKey returned in
	// parentheses; http requests through an HTTP proxy share "http via" and the
	// proxy. A host that comes back later starts from zero: the counters of the
	// Transport do not.
	Hosts map[string]HostStats
}

// HostStats are the figures of one host.
type HostStats struct {
	Counters
	Gauges
	// Closed counts ended connections by reason.
	Closed map[CloseReason]uint64
}

// Counters only grow.
type Counters struct {
	// Requests counts calls of RoundTrip that asked for a connection.
	Requests uint64
	// Reuses counts attempts on a connection that had served before, when they
	// are over. One that found it dead before anything was written is none.
	Reuses uint64
	// Dials counts dials that were started, DialErrors those that failed or
	// were given up because nobody waited any more.
	Dials, DialErrors uint64
	// Opened counts connections that were set up.
	Opened uint64
	// Waits counts attempts that found no idle connection, whether they then
	// got a new one or one that became free; WaitTime is how long they waited.
	Waits    uint64
	WaitTime time.Duration
	// Retries counts repeated attempts after a failure. StaleChecks counts
	// connections that were found dead or dirty before anything was written:
	// their requests moved to another connection.
	Retries, StaleChecks uint64
	// Drained counts bodies that were closed early and whose rest was read so
	// that the connection could be kept.
	Drained uint64
}

// Gauges are the moment's figures.
type Gauges struct {
	// Open connections: Idle, InUse by a request, or Detached (the user's).
	Open, Idle, InUse, Detached int
	// Dialing counts dials under way, Waiting the requests that wait.
	Dialing, Waiting int
}

// tally is the live form of HostStats. Guarded by pool.mu.
type tally struct {
	Counters
	idle, inUse, detached, dialing int
	// closing counts connections whose socket is about to be closed: they are
	// counted in closed already, and still hold a slot.
	closing int
	closed  [numCloseReasons]uint64
}

// slots is the number of connections that count against the limits. Guarded by
// pool.mu, as gauge.
func (t *tally) slots() int { return t.idle + t.inUse + t.detached + t.dialing + t.closing }

func (t *tally) gauges(waiting int) Gauges {
	return Gauges{
		Open: t.idle + t.inUse + t.detached, Idle: t.idle, InUse: t.inUse,
		Detached: t.detached, Dialing: t.dialing, Waiting: waiting,
	}
}

func (t *tally) closedByReason() map[CloseReason]uint64 {
	m := make(map[CloseReason]uint64)
	for r, n := range t.closed {
		if n > 0 {
			m[CloseReason(r)] = n
		}
	}
	return m
}

// Stats returns a snapshot. It takes the pool's lock for a time that grows
// with the number of hosts. Safe for concurrent use.
func (t *Transport) Stats() Stats { return t.pool.stats() }

func (p *pool) stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{
		Counters: p.all.Counters,
		Gauges:   p.all.gauges(p.waiting),
		Closed:   p.all.closedByReason(),
		Hosts:    make(map[string]HostStats, len(p.hosts)),
	}
	for _, h := range p.hosts {
		// Keys that differ in a proxy's credentials, or in what makes connections
		// of their own (hostkey.Key.Auth, HTTP1), have the same name.
		s.Hosts[h.name] = s.Hosts[h.name].plus(HostStats{
			Counters: h.Counters, Gauges: h.gauges(h.waiters.Len()), Closed: h.closedByReason(),
		})
	}
	return s
}

// plus returns the sum of two.
func (s HostStats) plus(o HostStats) HostStats {
	if s.Closed == nil {
		return o
	}
	s.Requests += o.Requests
	s.Reuses += o.Reuses
	s.Dials += o.Dials
	s.DialErrors += o.DialErrors
	s.Opened += o.Opened
	s.Waits += o.Waits
	s.WaitTime += o.WaitTime
	s.Retries += o.Retries
	s.StaleChecks += o.StaleChecks
	s.Drained += o.Drained
	s.Open += o.Open
	s.Idle += o.Idle
	s.InUse += o.InUse
	s.Detached += o.Detached
	s.Dialing += o.Dialing
	s.Waiting += o.Waiting
	for r, n := range o.Closed {
		s.Closed[r] += n
	}
	return s
}

// ReuseRate is the number of attempts on connections that had served before,
// for each request: 0 without requests, and above 1 only by retries.
func (c Counters) ReuseRate() float64 {
	if c.Requests == 0 {
		return 0
	}
	return float64(c.Reuses) / float64(c.Requests)
}

// TotalClosed is the sum of Closed.
func (s Stats) TotalClosed() (n uint64) {
	for v := range maps.Values(s.Closed) {
		n += v
	}
	return n
}
