package keepalive

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/keepalive-http/keepalive/internal/wire"
)

// outcome is what an attempt came to without a response.
type outcome struct {
	err      *Error
	stale    bool // found dead before anything was written
	gotByte  bool // a byte of an answer was read
	bodyErr  bool // the request body failed
	canceled bool // the context, or Close, ended it
	// refused: the peer says that it has not looked at the request.
	refused bool
	// leaving: the peer had said that the connection ends, for no fault.
	leaving bool
	// final: another attempt would come to the same.
	final bool
	// again: the answer itself asks for another attempt.
	again bool
}

// askedAgain handles two answers that mean that the request was not looked at,
// where repeating it is safe; nil for all others.
//
//	408 with close, on a reused connection   the server gave up waiting before it
//	                                         saw the request (RFC 9110 section 15.5.9)
//	417, nothing of the body sent            once more without Expect (section 10.1.1)
func (ex *exchange) askedAgain(resp *http.Response) *outcome {
	cl := ex.cl
	switch {
	case resp.StatusCode == http.StatusExpectationFailed && ex.waitsForContinue() && ex.sender == nil &&
		!cl.body.touched && !cl.opts.noRetry:
		cl.withoutExpect()
		out := ex.failFor(PhaseHeader, errors.New("417 Expectation Failed"), CloseRequestUnsent)
		out.again = true
		return out
	case resp.StatusCode == http.StatusRequestTimeout && ex.reused && ex.verdict.reason == CloseServerRequest &&
		ex.mayRepeat():
		ex.rd.Free()
		ex.rd = wire.GetReader(nil) // what it said is no answer
		return ex.failFor(PhaseHeader, io.EOF, CloseServerRequest)
	}
	return nil
}

// mayRepeat reports whether the request would be sent again if the connection
// had ended without an answer, and that were the ordinary race of keep-alive.
func (ex *exchange) mayRepeat() bool {
	out := &outcome{err: ex.error(PhaseHeader, ErrServerClosedIdle)}
	d := decideRetry(ex.cl.failure(out), ex.t.cfg.retry, ex.cl.retries)
	return d.again && d.race
}

// stale ends an exchange whose connection was found dead, or with bytes that
// nobody asked for, before anything was written.
func (ex *exchange) stale(reason CloseReason) *outcome {
	out := &outcome{stale: true, err: ex.error(PhaseWrite, ErrServerClosedIdle)}
	if err := ex.cl.contextEnded(); err != nil {
		out.err.Err, out.canceled = err, true
	}
	ex.c.served-- // it has not served this one
	ex.t.pool.noteStale(ex.c.host)
	ex.rd.Free()
	ex.giveBack(time.Now(), dropUnused(reason), false)
	return out
}

// fail ends an exchange that failed in phase with err.
func (ex *exchange) fail(phase Phase, err error) *outcome {
	if phase == PhaseWrite {
		return ex.failFor(phase, err, CloseWriteError)
	}
	return ex.failFor(phase, err, CloseReadError)
}

// failFor is fail with the reason to close, unless the cause has its own.
func (ex *exchange) failFor(phase Phase, err error, reason CloseReason) *outcome {
	gotByte := ex.rd.Total() > 0
	ex.sender.stopEarly()
	out := &outcome{gotByte: gotByte}
	e := ex.error(phase, nil)
	reason, e.Err = ex.cause(err, reason, out)
	if s := ex.sender; s != nil && !s.isDone() {
		e.BytesWritten = max(e.BytesWritten, 1) // the write under way may have given all of it
	}
	if s := ex.sender; s != nil && phase == PhaseHeader && !gotByte && (!s.isDone() || s.err != nil) {
		e.Phase = PhaseWrite // it was still being sent
	}
	out.err = e
	then, suspect := ex.suspicion(out, err, reason)
	ex.rd.Free()
	ex.giveBack(time.Now(), drop(reason), false)
	if suspect {
		ex.t.perform(ex.t.pool.suspect(ex.c.host, then))
	}
	return out
}

// suspicion says since when other idle connections of the host must have been
// idle to be dropped too, after a failure on a reused one: those that have
// been idle at least as long as a stale one, and those that have not been
// used since a request began that got no byte of an answer.
func (ex *exchange) suspicion(out *outcome, err error, reason CloseReason) (then time.Time, ok bool) {
	switch {
	case !ex.reused || out.gotByte:
		return time.Time{}, false
	case reason == CloseTimeout, isTimeout(err) && !out.canceled, out.canceled && errors.Is(out.err.Err, context.DeadlineExceeded):
		return ex.start, true
	case isEnd(err) && !out.canceled:
		return ex.start.Add(-ex.c.idleFor), true
	}
	return time.Time{}, false
}

// cause names the cause of err and the reason to close; reason is what holds
// if the cause has none of its own.
func (ex *exchange) cause(err error, reason CloseReason, out *outcome) (CloseReason, error) {
	if r, own := ex.ownDoing(err, out); own != nil {
		return r, own
	}
	sendErr := ex.sender.failed()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // a deadline of ours, not the kernel's ETIMEDOUT
		return ex.timeoutCause(err, sendErr, reason)
	case isMalformed(err), errors.Is(err, wire.ErrHeadTooLarge):
		reason = CloseProtocolError
	case sendErr != nil && isEnd(err):
		end := endError(err, ex.reused, out.gotByte)
		text := sendErr.Error()
		if errors.Is(end, ErrServerClosedIdle) {
			text = ErrServerClosedIdle.Error() + ": " + text
		}
		return reason, &marked{text, []error{sendErr, end}}
	}
	return reason, endError(err, ex.reused, out.gotByte)
}

// ownDoing returns what we did ourselves to end the exchange, or nil. It comes
// before everything else: it is why the connection failed, whatever form that
// took.
func (ex *exchange) ownDoing(err error, out *outcome) (CloseReason, error) {
	ex.mu.Lock()
	interrupted := ex.interrupted
	ex.mu.Unlock()
	if ex.c.cut.Load() {
		out.canceled = true
		return CloseTransportClosed, ErrClosed
	}
	if ex.closed.Load() {
		return CloseUnreadBody, http.ErrBodyReadAfterClose
	}
	if s := ex.sender; s.failed() != nil && s.bodyErr {
		out.bodyErr = true
		return CloseWriteError, s.err
	}
	if ended := ex.cl.contextEnded(); ended != nil && (interrupted || isTimeout(err)) {
		out.canceled = true
		return CloseCanceled, ended
	}
	return CloseNone, nil
}

// timeoutCause says which of our limits the timeout err stands for: that of the
// whole request if it has passed, which ends reading and writing alike, then
// that of a write, then the one whose deadline was set last.
func (ex *exchange) timeoutCause(err, sendErr error, reason CloseReason) (CloseReason, error) {
	ex.mu.Lock()
	end := ex.readEnd.err
	ex.mu.Unlock()
	hard := ex.cl.hard
	switch {
	case !hard.at.IsZero() && !time.Now().Before(hard.at):
		return CloseTimeout, hard.err
	case sendErr != nil && isTimeout(sendErr):
		return CloseTimeout, writeTimeout(sendErr)
	case reason == CloseWriteError:
		return CloseTimeout, writeTimeout(err)
	case end == nil: // a limit of the connection's own
		return CloseTimeout, err
	case !isTimeout(end):
		return CloseWriteError, end // sending had failed, and no answer came
	}
	return CloseTimeout, end
}

func writeTimeout(err error) error {
	return &marked{ErrWriteTimeout.Error(), []error{ErrWriteTimeout, err}}
}

// error makes the error of this exchange.
func (ex *exchange) error(phase Phase, cause error) *Error {
	c := ex.c
	e := &Error{
		Phase: phase, Host: ex.cl.hostName(), RemoteAddr: remote(&c.sc), Reused: ex.reused, Age: ex.start.Sub(c.dialedAt),
		Served: c.served - 1, BytesWritten: c.sc.BytesWritten() - ex.wrote0, BytesRead: ex.rd.Total(),
		Attempts: ex.cl.attempt, Elapsed: time.Since(ex.cl.start), Err: cause,
	}
	if ex.reused {
		e.IdleTime = c.idleFor
	}
	return e
}
