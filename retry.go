package keepalive

import (
	"net/http"
	"time"
)

// RetryPolicy says when a request is sent again after its connection failed.
// The zero value never retries; DefaultRetryPolicy is what New uses.
//
//	what happened                                  idempotent      other
//	stale before a byte was written                another connection, not a retry
//	write failed with zero bytes accepted          retry           retry
//	refused: HTTP/2 stream or GOAWAY               retry           retry
//	reused connection ended before the first byte  retry           error
//	the same of one that had been said to end      retry           error
//	fresh connection ended before the first byte   error           error
//	a response byte was read, timeout, cancelled   error           error
//
// Whatever the policy says, a request is only repeated while nothing of an
// answer has been read (with HTTP/2, no head of one), and with a body that can be sent again: none, one with
// Request.GetBody, one that is small and in memory, or one that has not been
// touched. An error of Request.Body is never retried.
//
// Two answers count as none. A 408 with "Connection: close" on a connection that
// had been idle is its late end, for which the table holds. A 417 before any of
// the body was sent is followed by one request without Expect, under any policy;
// NoRetry rules it out.
type RetryPolicy struct {
	// MaxRetries is how many extra attempts a request may have. 0 means none.
	// The last one uses a freshly dialed connection, unless the server has refused
	// just that request (REFUSED_STREAM).
	MaxRetries int
	// Budget bounds retries to a share of requests, so that an outage does not
	// multiply its own load: 0.2 allows one retry for every five requests,
	// always ten a second, and 256 saved up. 0 means no bound. Not counted are requests of which
	// nothing was sent, and connections that ended after an idle pause: they
	// are the ordinary race of keep-alive and add no load.
	Budget float64
	// Retry decides on one failure. nil means RetryInfo.Safe, the table above.
	// It is called without locks, possibly concurrently, and must not panic.
	Retry func(RetryInfo) bool
}

// DefaultRetryPolicy returns the policy of New: two retries, a budget of 20 %
// and the table at RetryPolicy.
func DefaultRetryPolicy() RetryPolicy { return RetryPolicy{MaxRetries: 2, Budget: 0.2} }

// RetryInfo is what is known of an attempt that failed before the first byte
// of its answer.
type RetryInfo struct {
	// Request is the request; it must not be changed.
	Request *http.Request
	// Err is what happened.
	Err error
	// Attempt counts from 1.
	Attempt int
	// Reused is that of Error: the connection was not dialed for this request.
	Reused bool
	// IdleTime is how long the connection had been idle before.
	IdleTime time.Duration
	// BytesWritten is how much the socket accepted. 0 proves that the server
	// has seen nothing.
	BytesWritten int64
	// Refused reports whether the server said that it has not processed the
	// request (HTTP/2: RFC 9113 section 8.7).
	Refused bool
	// Leaving reports whether the server had said that the connection ends, for
	// no fault of anybody's (HTTP/2: GOAWAY with NO_ERROR, RFC 9113 section 6.8), or
	// that it takes no more there (a stream reset with PROTOCOL_ERROR).
	Leaving bool
	// Timeout reports whether a timeout caused it.
	Timeout bool
}

// Idempotent reports whether sending the request twice is as good as once:
// by its method (RFC 9110 section 9.2.2, QUERY: RFC 10008), or because it
// carries an Idempotency-Key or X-Idempotency-Key header.
func (i RetryInfo) Idempotent() bool { return isIdempotent(i.Request) }

// Safe reports whether the table at RetryPolicy allows to repeat the request.
func (i RetryInfo) Safe() bool {
	switch {
	case i.Timeout:
		return false
	case i.BytesWritten == 0, i.Refused:
		return true
	case !i.Reused && !i.Leaving:
		return false
	}
	return i.Idempotent()
}

func isIdempotent(req *http.Request) bool {
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace,
		http.MethodPut, http.MethodDelete, "QUERY":
		return true
	}
	// A key with a nil value is not sent, but still says that repeating is safe.
	_, ok := req.Header["Idempotency-Key"]
	_, xok := req.Header["X-Idempotency-Key"]
	return ok || xok
}

// failure is what retry.go is told of an attempt.
type failure struct {
	RetryInfo
	// stale: the connection was found dead before anything was written.
	stale bool
	// gotByte: a byte of an answer was read.
	gotByte bool
	// final: another attempt would come to the same, as when Request.Body itself
	// has failed.
	final bool
	// canceled: the request's own context or Close ended it.
	canceled bool
	// declined: the peer refused this request alone: nothing is wrong with the
	// connection.
	declined bool
	// rewindable: the body can be sent (again) from its start.
	rewindable bool
	// noRetry: the request's context asks for one attempt only.
	noRetry bool
}

// mustEnd reports whether no policy may have the request repeated.
func (f failure) mustEnd() bool {
	return f.gotByte || f.final || f.canceled || f.noRetry || !f.rewindable
}

// decision is what to do after a failure.
type decision struct {
	// again: take another connection and send the request once more.
	again bool
	// counted: it uses up one of the allowed retries.
	counted bool
	// race: it is the ordinary race of keep-alive, or nothing was sent.
	race bool
	// budgeted: it also needs a token of the retry budget.
	budgeted bool
	// fresh: the next attempt must dial.
	fresh bool
}

// idleRace is how long a connection must have been idle for its end to count
// as the ordinary keep-alive race rather than as a failing server.
const idleRace = 5 * time.Millisecond

// decideRetry applies the table at RetryPolicy. retries is the number of
// counted retries so far.
func decideRetry(f failure, p RetryPolicy, retries int) decision {
	if f.stale && f.rewindable && !f.canceled {
		return decision{again: true}
	}
	if f.mustEnd() || retries >= p.MaxRetries {
		return decision{}
	}
	allow := RetryInfo.Safe
	if p.Retry != nil {
		allow = p.Retry
	}
	if !allow(f.RetryInfo) {
		return decision{}
	}
	race := f.BytesWritten == 0 || f.Reused && f.IdleTime >= idleRace
	return decision{
		again:    true,
		counted:  true,
		race:     race,
		budgeted: !race && p.Budget > 0,
		fresh:    retries+1 >= p.MaxRetries && !f.declined,
	}
}

// Bounds of the retry budget: what is always allowed, and the most that can be
// saved up.
const (
	budgetFloor = 10  // retries per second
	budgetBurst = 256 // retries
)

// retryBudget is a token bucket: each request adds a share of a token, each
// budgeted retry takes one. Not safe for concurrent use: guarded by pool.mu.
type retryBudget struct {
	share  float64
	tokens float64
	filled time.Time
}

// request notes that a request was made.
func (b *retryBudget) request() {
	b.tokens = min(b.tokens+b.share, budgetBurst)
}

// take reports whether one more retry is within the budget at now.
func (b *retryBudget) take(now time.Time) bool {
	if b.filled.IsZero() {
		b.tokens = budgetBurst
	} else {
		b.tokens = min(b.tokens+now.Sub(b.filled).Seconds()*budgetFloor, budgetBurst)
	}
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
