package keepalive

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keepalive-http/keepalive/internal/wire"
)

// exchange is one request and its answer on one connection. It owns the
// connection from its start to finish; when a response has been returned it
// lives on as its body.
type exchange struct {
	t  *Transport
	cl *call
	c  *conn
	rd *wire.Reader

	start    time.Time // when it got the connection
	reused   bool      // the connection has served before, or been idle
	gotFirst bool      // the trace has heard of the first byte
	cutShort bool      // writing the head failed
	// unwatched: the request may be cancelled, and nobody listens yet: see
	// watchSoon. stopWatch ends the watch. watchRan: cancel has been started by it,
	// or overdue by its timer, and may still be about to look at the exchange.
	unwatched bool
	watchRan  bool
	stopWatch func() bool
	wrote0    int64 // the connection's counter at the start
	sender    *sender
	begun     int64 // bytes of a body that went out with the head
	// hardTimer ends a body that nobody reads with the whole exchange's time.
	// Guarded by readMu.
	hardTimer *time.Timer

	// mu makes {is this still our connection?, act on it} one step. Under it only
	// the socket's own lock is taken, and a wrapper's SetDeadline runs.
	mu          sync.Mutex
	released    bool // the connection is not ours any more
	handedOver  bool // the response was returned, with this as its body
	interrupted bool // we have cut it off
	inHeader    bool // the head of the answer is awaited; set before anybody else looks
	armed       bool // a deadline is set on the connection
	// late interrupts a Read that does not heed readEnd; nil: none.
	late    *time.Timer
	readEnd deadline // the read deadline that is set

	verdict verdict
	body    wire.Body
	// readMu is held by one Read, or by Close. bodyErr is what Read returns
	// when nothing is left; guarded by readMu.
	readMu  sync.Mutex
	bodyErr error
	closed  atomic.Bool // Close was called
}

// http1 is the protocol of this file, HTTP/1.1 and 1.0 (RFC 9112).
type http1 struct{}

func (http1) roundTrip(cl *call, c *conn, now time.Time) (*http.Response, *outcome) {
	return cl.t.newExchange(cl, c, now).roundTrip()
}

func (http1) close(c *conn) { c.shutDown() }

// newExchange begins an exchange on c, which was leased at now.
func (t *Transport) newExchange(cl *call, c *conn, now time.Time) *exchange {
	ex := &cl.one
	if ex.t != nil {
		ex = new(exchange)
	}
	ex.t, ex.cl, ex.c, ex.start = t, cl, c, now
	ex.reused = c.served > 1 || c.wasIdle
	ex.wrote0 = c.sc.BytesWritten()
	ex.rd = wire.GetReader(c.nc)
	c.sc.SetWriteTimeout(cl.limit.write)
	ex.unwatched = cl.mayEnd()
	if cl.body != nil || !c.sc.Direct() || t.dialer.mayRenegotiate(c) {
		ex.watch()
	}
	return ex
}

// arm sets the deadline of the whole exchange.
func (ex *exchange) arm() {
	if hard := ex.cl.hard; !hard.at.IsZero() {
		ex.mu.Lock()
		defer ex.mu.Unlock()
		ex.armed, ex.readEnd = true, hard
		_ = ex.c.setDeadline(hard.at)
		ex.enforceLocked()
	}
}

// handOver makes the response body the exchange's owner. From here on Read, Close,
// the context's end and hardTimer may end it, one at a time under readMu.
func (ex *exchange) handOver() {
	ex.watch()
	ex.setRead(deadline{})
	ex.mu.Lock()
	ex.handedOver = true
	interrupted := ex.interrupted
	ex.mu.Unlock()
	if interrupted {
		ex.endUnread()
	}
	if at := ex.cl.hard.at; !at.IsZero() {
		ex.readMu.Lock()
		defer ex.readMu.Unlock()
		if ex.bodyErr == nil {
			ex.hardTimer = time.AfterFunc(time.Until(at), ex.endUnread)
		}
	}
}

// setHeaderDeadline bounds the wait for the head of the answer, from now. It
// has no effect when the head has arrived.
func (ex *exchange) setHeaderDeadline(d time.Duration, err error) {
	if d <= 0 {
		return
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if ex.inHeader && !ex.released {
		ex.setReadLocked(after(time.Now(), d, err))
	}
}

// setRead sets the read deadline for the next phase.
func (ex *exchange) setRead(d deadline) {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	ex.setReadLocked(d)
}

func (ex *exchange) setReadLocked(d deadline) {
	d = d.or(ex.cl.hard)
	if d.at.IsZero() && ex.readEnd.at.IsZero() {
		return
	}
	ex.armed, ex.readEnd = true, d
	_ = ex.c.setReadDeadline(d.at)
	ex.enforceLocked()
}

// roundTrip sends the request and returns the final answer, or what happened.
func (ex *exchange) roundTrip() (*http.Response, *outcome) {
	stale, phase, err := ex.send()
	if stale != CloseNone {
		return nil, ex.stale(stale)
	}
	if err != nil {
		return nil, ex.fail(phase, err)
	}
	head, err := ex.awaitHead()
	if ex.waitsForContinue() && ex.sender == nil && !ex.cutShort {
		ex.traceSent() // the body stays here
	}
	if err != nil {
		return nil, ex.fail(PhaseHeader, err)
	}
	return ex.deliver(head)
}

// awaitHead reads up to the head of the final answer, and sends a body that
// waits for 100 Continue when its time has come.
func (ex *exchange) awaitHead() (wire.Head, error) {
	waiting := ex.beginWait()
	limit, interim, oddity := ex.t.cfg.maxHeaderBytes, 0, ""
	for {
		head, err := ex.readHead(limit)
		oddity = cmp.Or(oddity, head.Oddity) // of any: an interim answer announces no body either
		if err == nil && isFinal(head) {
			head.Oddity = oddity
			ex.endHeader()
			return head, nil
		}
		if waiting && (err == nil && head.Response.StatusCode == http.StatusContinue || ex.expectTimedOut(err)) {
			waiting = false
			ex.setRead(deadline{})
			ex.startSender(nil)
		} else if err != nil {
			return head, err
		}
		if err != nil {
			continue // only the wait for 100 Continue is over
		}
		hooked, err := ex.interim(head)
		if err != nil {
			return head, err
		}
		if !hooked {
			limit -= head.Size
			if interim++; interim > ex.t.cfg.maxInterim || limit <= 0 {
				return head, wire.ErrHeadTooLarge
			}
		}
	}
}

// beginWait begins the wait for 100 Continue, and reports whether there is one.
func (ex *exchange) beginWait() bool {
	if !ex.waitsForContinue() {
		return false
	}
	if t := ex.cl.trace; t != nil && t.Wait100Continue != nil {
		t.Wait100Continue()
	}
	ex.setHeaderDeadline(ex.cl.limit.expectContinue, errExpectTimeout)
	return true
}

func isFinal(head wire.Head) bool {
	code := head.Response.StatusCode
	return code >= 200 || code == http.StatusSwitchingProtocols
}

// endHeader notes that the head of the final answer has arrived.
func (ex *exchange) endHeader() {
	ex.mu.Lock()
	ex.inHeader = false
	ex.mu.Unlock()
}

// errExpectTimeout never reaches the user.
var errExpectTimeout error = timeoutError("no 100 Continue")

// expectTimedOut reports whether err only says that no 100 Continue came.
func (ex *exchange) expectTimedOut(err error) bool {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return errors.Is(err, os.ErrDeadlineExceeded) && !ex.interrupted && errors.Is(ex.readEnd.err, errExpectTimeout)
}

// readHead reads one head, an interim or the final one.
func (ex *exchange) readHead(limit int) (wire.Head, error) {
	for ex.rd.Total() == 0 {
		ex.watchSoon()
		n, err := ex.c.nc.Read(ex.rd.Space())
		ex.rd.Advance(n)
		if n > 0 || err == nil {
			break
		}
		if !ex.watchNow(err) {
			return wire.Head{}, err
		}
	}
	if t := ex.cl.trace; t != nil && t.GotFirstResponseByte != nil && !ex.gotFirst {
		ex.gotFirst = true
		t.GotFirstResponseByte()
	}
	head, err := wire.ReadHead(ex.rd, ex.cl.req.Method, limit)
	if ex.watchNow(err) {
		head, err = wire.ReadHead(ex.rd, ex.cl.req.Method, limit)
	}
	if err == io.EOF && ex.rd.Total() > 0 { //nolint:errorlint // the parser's own
		err = io.ErrUnexpectedEOF // behind an interim answer
	}
	return head, err
}

// interim tells the hooks of a 1xx answer. hooked says that there is one that
// sees all of them, and so may refuse.
func (ex *exchange) interim(head wire.Head) (hooked bool, err error) {
	t := ex.cl.trace
	if t == nil {
		return false, nil
	}
	code := head.Response.StatusCode
	if code == http.StatusContinue && t.Got100Continue != nil {
		t.Got100Continue()
	}
	if t.Got1xxResponse == nil {
		return false, nil
	}
	return true, t.Got1xxResponse(code, textproto.MIMEHeader(head.Response.Header))
}

// deliver makes the response of the final head, and gives the connection back
// if nothing of the answer is still to come.
func (ex *exchange) deliver(head wire.Head) (*http.Response, *outcome) {
	resp, c := head.Response, ex.c
	resp.Request, resp.TLS = ex.cl.req, c.tls
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return ex.upgrade(resp)
	}
	if ex.cl.req.Method == http.MethodConnect && resp.StatusCode/100 == 2 {
		// A tunnel: what the head says of a body means nothing (RFC 9110 section
		// 9.3.6).
		resp.ContentLength, resp.TransferEncoding = -1, nil
		return ex.handToUser(resp)
	}
	c.peer10 = !resp.ProtoAtLeast(1, 1)
	now := time.Now()
	ex.judge(head, now)
	if out := ex.askedAgain(resp); out != nil {
		return nil, out
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		// The server has decided without the rest of the body: there is no use
		// in sending it (RFC 9110 section 10.1.1, RFC 9112 section 9.5).
		ex.sender.stopEarly()
	}
	ex.body.Reset(ex.rd, head, &resp.Trailer)
	if head.Framing == wire.FramingNone {
		ex.finish(now, ending{bodyDone: true, leftover: ex.rd.Buffered() > 0, requestSent: ex.requestSent()})
		ex.rd.Free()
		resp.Body = http.NoBody
		ex.cl.spent = ex.alone()
		return resp, nil
	}
	if (ex.sender == nil || ex.sender.isDone()) && ex.body.Whole() {
		leftover := ex.body.WholeLeftover() > 0
		resp.Body = head.TakeWhole(&ex.body)
		ex.finish(now, ending{bodyDone: true, leftover: leftover, requestSent: ex.requestSent()})
		ex.cl.spent = ex.alone()
	} else {
		resp.Body = body{ex}
		ex.handOver()
	}
	if ex.cl.gzip {
		unpack(resp)
	}
	return resp, nil
}

// alone reports whether, now that it has been given back, nobody but its own
// goroutine can look at the exchange or its call.
func (ex *exchange) alone() bool { return ex == &ex.cl.one && ex.sender == nil && !ex.watchRan }

// requestSent ends the sending of the request and reports whether all of it
// was sent.
func (ex *exchange) requestSent() bool {
	if ex.sender == nil && ex.cl.body != nil {
		ex.cl.body.close() // 100 Continue never came, or there is no tunnel
		return ex.cl.tunnel && !ex.cutShort
	}
	return ex.sender.finish() && !ex.cutShort
}

// judge asks reuse.go, and the user's strategy, about the answer.
func (ex *exchange) judge(head wire.Head, now time.Time) {
	ex.c.sampleRTT(now.Sub(ex.start))
	ex.verdict = judge(answer{
		resp: head.Response, framing: head.Framing, oddity: head.Oddity, rtt: ex.c.rtt,
		last: ex.cl.lastOn(ex.c), auth: ex.cl.key.Auth && mayHaveBound(ex.cl.req.Header, head.Response.StatusCode),
	})
	if s := ex.t.cfg.reuse; s != nil && ex.verdict.Keep {
		ex.verdict = ex.verdict.stricter(s.Reuse(head.Response, ex.c.info(ex.c.served), ex.verdict.ReuseVerdict))
	}
}

// upgrade hands the connection to the user. An answer of 101 that nobody asked
// for is refused (RFC 9110 section 7.8).
func (ex *exchange) upgrade(resp *http.Response) (*http.Response, *outcome) {
	if len(ex.cl.req.Header["Upgrade"]) == 0 {
		err := &wire.MalformedError{Reason: "101 Switching Protocols, but the request had no Upgrade field"}
		return nil, ex.fail(PhaseHeader, err)
	}
	return ex.handToUser(resp)
}

// handToUser makes the connection the body of resp: it is the user's now. That
// takes a request which has been sent: the rest of it would come between.
func (ex *exchange) handToUser(resp *http.Response) (*http.Response, *outcome) {
	if !ex.cl.tunnel && !ex.requestSent() {
		err := fmt.Errorf("%s before the request was sent", resp.Status)
		return nil, ex.failFor(PhaseHeader, err, CloseRequestUnsent)
	}
	ex.mu.Lock()
	ex.released = true
	if ex.armed && !ex.interrupted {
		_ = ex.c.setDeadline(time.Time{})
	}
	ex.enforceLocked()
	ex.mu.Unlock()
	ex.unwatch()
	ex.c.sc.SetWriteTimeout(0)
	ex.patience(true)
	u := newUpgraded(ex)
	resp.Body = u
	ex.t.detach(ex.c)
	ex.cl.finish()
	ex.cl.tunnelTo(u)
	return resp, nil
}

// finish gives the connection back; nothing of the exchange touches it after.
// The request is over with it.
func (ex *exchange) finish(now time.Time, e ending) {
	ex.giveBack(now, judgeEnd(ex.verdict, e), true)
}

// giveBack releases the connection with v. last says that the request is over.
func (ex *exchange) giveBack(now time.Time, v verdict, last bool) {
	ex.mu.Lock()
	ex.released = true
	if ex.interrupted && v.reason == CloseNone {
		v = drop(CloseCanceled)
	}
	// watchSoon's deadline may stay, for the next one.
	stays := ex.c.soon != 0 && ex.cl.hard.at.IsZero()
	if ex.armed && !stays && v.reason == CloseNone && ex.c.setDeadline(time.Time{}) != nil {
		v = drop(CloseReadError) // the next request would inherit the deadline
	}
	ex.enforceLocked()
	ex.mu.Unlock()
	ex.unwatch()
	if ex.c.patient && v.reason == CloseNone {
		ex.patience(false)
	}
	ex.t.release(ex.c, now, v, ex.cl, last)
	if last {
		ex.cl.finish()
	}
}
