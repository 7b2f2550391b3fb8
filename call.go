package keepalive

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// run is the road of a request: take its body apart, then acquire, exchange,
// and decide on another attempt.
func (cl *call) run() (*http.Response, error) {
	if err := cl.takeBody(); err != nil {
		return nil, cl.abort(cl.error(PhaseWrite, err))
	}
	if err := cl.contextEnded(); err != nil {
		return nil, cl.abort(cl.error(PhaseAcquire, err))
	}
	dialCtx, guard := guardTrace(cl.ctx, cl.trace)
	defer guard.end(cl.req.Context())
	needsFresh := cl.opts.fresh || cl.key.Auth && beginsConnAuth(cl.req.Header)
	fresh := needsFresh
	for first := true; ; first = false {
		cl.attempt++
		c, now, err := cl.acquire(dialCtx, fresh, first)
		if err != nil {
			return nil, cl.abort(err)
		}
		if cl.unread {
			if err := cl.takeInline(); err != nil {
				cl.t.release(c, now, dropUnused(CloseRequestUnsent), cl, false)
				return nil, cl.abort(cl.error(PhaseWrite, err))
			}
		}
		resp, out := c.roundTrip(cl, c, now)
		if out == nil {
			return resp, nil
		}
		again, dial := cl.decide(c, out)
		if !again {
			return nil, cl.abort(out.err)
		}
		if err := cl.rewind(); err != nil {
			return nil, cl.abort(cl.error(PhaseWrite, err))
		}
		fresh = dial || needsFresh
	}
}

// decide asks retry.go what to do after an attempt that failed.
func (cl *call) decide(c *conn, out *outcome) (again, fresh bool) {
	if out.again {
		return true, false
	}
	d := decideRetry(cl.failure(out), cl.t.cfg.retry, cl.retries)
	switch {
	case !d.again:
		return false, false
	case !d.counted:
		cl.attempt-- // nothing was sent
		return true, false
	case !cl.t.pool.mayRetry(c.host, d.budgeted, time.Now()):
		return false, false
	}
	cl.retries++
	return true, d.fresh
}

// failure is what retry.go is told.
func (cl *call) failure(out *outcome) failure {
	e := out.err
	return failure{
		RetryInfo: RetryInfo{
			Request: cl.req, Err: e, Attempt: cl.attempt, Reused: e.Reused, IdleTime: e.IdleTime,
			BytesWritten: e.BytesWritten, Timeout: e.Timeout(), Refused: out.refused,
			Leaving: out.leaving,
		},
		stale: out.stale, gotByte: out.gotByte, final: out.final || out.bodyErr, canceled: out.canceled,
		declined:   out.refused && isStreamError(e),
		rewindable: cl.rewindable(), noRetry: cl.opts.noRetry,
	}
}

// acquire returns a connection that is leased to this call, and the time.
func (cl *call) acquire(ctx context.Context, fresh, first bool) (*conn, time.Time, error) {
	t, now := cl.t, cl.start
	if cl.trace != nil && cl.trace.GetConn != nil {
		cl.trace.GetConn(cl.firstHop())
	}
	if !first || cl.req.Body != nil && !cl.unread || cl.trace != nil { // code of the user's has run since
		now = time.Now()
	}
	got, do, err := t.pool.acquire(now, want{key: cl.key, ctx: ctx, fresh: fresh, first: first})
	t.perform(do)
	cl.counted = cl.counted || !errors.Is(err, ErrClosed) // as the pool does: see pool.active
	c := got.c
	if got.w != nil {
		cl.watchCancel()
		c, err = cl.wait(got.w)
		now = time.Now()
	}
	if err != nil {
		return nil, now, cl.error(PhaseAcquire, err)
	}
	if cl.trace != nil && cl.trace.GotConn != nil {
		cl.trace.GotConn(cl.t.pool.lease(c).gotConn(c))
	}
	return c, now, nil
}

// minAcquireTurn keeps a request whose time to wait is short from asking all the
// time whether it is a limit that keeps it waiting.
const minAcquireTurn = 10 * time.Millisecond

// wait waits for what w is granted.
func (cl *call) wait(w *waiter) (*conn, error) {
	p := cl.t.pool
	var hard, limit <-chan time.Time
	if !cl.hard.at.IsZero() {
		timer := time.NewTimer(time.Until(cl.hard.at))
		defer timer.Stop()
		hard = timer.C
	}
	var acquire *time.Timer
	if cl.limit.acquire > 0 {
		acquire = time.NewTimer(cl.limit.acquire)
		defer acquire.Stop()
		limit = acquire.C
	}
	if hard == nil && limit == nil && cl.ctx.Done() == nil {
		g := <-w.ready // costs half of a select
		return g.c, g.err
	}
	for {
		var err error
		select {
		case g := <-w.ready:
			return g.c, g.err
		case <-cl.ctx.Done():
			err = cl.contextEnded()
		case <-hard:
			err = ErrRequestTimeout
		case <-limit:
			if !p.limited(w) { // it waits for a dial, which has a limit of its own, or to hear how many fit
				acquire.Reset(max(cl.limit.acquire, minAcquireTurn))
				continue
			}
			err = p.acquireTimeout(w)
		}
		dialing, do := p.abandon(w, time.Now())
		cl.t.perform(do)
		if dialing {
			err = cl.error(PhaseDial, err)
		}
		return nil, err
	}
}

// error makes err an *Error of this call, or completes the one that it is. A bare
// ErrClosed, and nil, stay what they are.
func (cl *call) error(phase Phase, err error) error {
	if err == ErrClosed || err == nil { //nolint:errorlint // our own sentinel
		return err
	}
	e := &Error{Phase: phase, Err: err}
	if known, ok := err.(*Error); ok { //nolint:errorlint // the outermost one
		*e = *known // others may have it, too: a dial can be for several requests
	}
	e.Host = cl.hostName()
	e.Attempts, e.Elapsed = max(cl.attempt, 1), time.Since(cl.start)
	return e
}

// abort ends a call that has no response.
func (cl *call) abort(err error) error {
	if cl.counted {
		cl.t.pool.endRequest()
	}
	cl.dropBody()
	cl.finish()
	return err
}
