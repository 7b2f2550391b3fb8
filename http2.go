package keepalive

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keepalive-http/keepalive/internal/wire"
)

// http2 is the protocol of a connection that speaks HTTP/2 (RFC 9113). How that
// is done is net/http's: an http.ClientConn on a connection that we have
// dialed. Who may use it, for how long, and what an error means is ours.
type http2 struct {
	t    *Transport
	cc   *http.ClientConn
	sock *http2Socket
	// answered: it has brought an answer.
	answered atomic.Bool
}

// initialStreams is how many requests at a time a connection takes whose peer
// has not said how many: what net/http assumes.
const initialStreams = 100

// newHTTP2Maker returns the http.Transport that makes ClientConns of our
// connections. It dials nothing and is used for nothing else.
func newHTTP2Maker(cfg *config) *http.Transport {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true) // TLS, if any, has been dealt with
	var details http.HTTP2Config
	if cfg.http2 != nil {
		details = *cfg.http2
	}
	details.WriteByteTimeout = cmp.Or(details.WriteByteTimeout, cfg.write)
	return &http.Transport{
		Protocols: &p, HTTP2: &details,
		DisableCompression:     cfg.disableCompression,
		ExpectContinueTimeout:  cfg.expectContinue,
		MaxResponseHeaderBytes: int64(cfg.maxHeaderBytes),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			nc, _ := ctx.Value(http2SocketKey{}).(net.Conn)
			return nc, nil
		},
	}
}

type http2SocketKey struct{}

// speakHTTP2 makes HTTP/2 the protocol of c, which has just been dialed. What is
// written for that has the time of a dial.
func (t *Transport) speakHTTP2(ctx context.Context, c *conn) error {
	h := &http2{t: t}
	c.protocol, c.shares, c.capacity, c.settling = h, true, initialStreams, true
	c.checkable = true // it is read all the time
	h.sock = newHTTP2Socket(t, c)
	with := context.WithValue(context.WithoutCancel(ctx), http2SocketKey{}, net.Conn(h.sock))
	ctx, cancel := withTimeout(ctx, t.cfg.dialTimeout, ErrDialTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, c.sc.Interrupt)
	var err error
	h.cc, err = t.http2Maker.NewClientConn(with, "http", "unused.invalid:80")
	if !stop() {
		err = context.Cause(ctx) // c is interrupted, whatever became of the writing
	}
	if err != nil {
		h.sock.settle()
	}
	return err
}

func (h *http2) close(*conn) { _ = h.cc.Close() }

// stream is one request and its answer on an HTTP/2 connection. When a response
// has been returned it lives on as its body.
type stream struct {
	h     *http2
	cl    *call
	c     *conn
	start time.Time
	lease lease
	// proven: the connection had brought an answer before.
	proven bool
	// ctx is of the request on this connection; end ends it, with the cause.
	ctx  context.Context //nolint:containedctx // see above
	end  context.CancelCauseFunc
	hard *time.Timer // of the whole exchange; nil: none
	// received and wrote are the connection's counters at the start.
	received, wrote int64
	sent            *streamedBody // nil: the request has no body, or a small one
	gotByte         atomic.Bool   // of an answer, be it an interim one
	verdict         verdict

	mu       sync.Mutex
	answered bool        // the head has arrived, or never will
	head     *time.Timer // of the wait for the head; nil: none
	body     io.ReadCloser
	over     bool // the connection was given back
	closed   bool // by the user
	bodyErr  error
	unwatch  func() bool // ends the watch of ctx for the body; nil: none

	closing sync.Once // of body
}

func (h *http2) roundTrip(cl *call, c *conn, now time.Time) (*http.Response, *outcome) {
	cl.watchCancel()
	s := &stream{h: h, cl: cl, c: c, start: now, lease: h.t.pool.lease(c), proven: h.answered.Load()}
	s.received, s.wrote = h.sock.received.Load(), c.sc.BytesWritten()
	if cl.last != CloseNone {
		h.t.perform(h.t.pool.retire(c, cl.last)) // nobody else may begin on it
	}
	s.ctx, s.end = context.WithCancelCause(cl.ctx)
	if at := cl.hard.at; !at.IsZero() {
		s.hard = time.AfterFunc(time.Until(at), func() { s.end(ErrRequestTimeout) })
	}
	resp, err := h.cc.RoundTrip(s.request())
	s.headArrived()
	if err != nil {
		return nil, s.fail(err)
	}
	s.deliver(resp)
	return resp, nil
}

// request returns the request as net/http is to send it.
func (s *stream) request() *http.Request {
	cl := s.cl
	hooks := &httptrace.ClientTrace{GotFirstResponseByte: func() { s.gotByte.Store(true) }}
	if d := cl.limit.responseHeader; d > 0 {
		hooks.WroteRequest = func(httptrace.WroteRequestInfo) { s.limitHead(d) }
	}
	req := cl.req.WithContext(httptrace.WithClientTrace(s.ctx, hooks))
	req.Cancel, req.GetBody = nil, nil //nolint:staticcheck // SA1019: ctx ends with Cancel
	// The pool ends the connection. A ClientConn would refuse those who share it.
	req.Close = false
	if wire.HasToken(req.Header["Connection"], "close") {
		req.Header = req.Header.Clone()
		req.Header.Del("Connection")
	}
	switch {
	case cl.inline != nil:
		// A copy: net/http may read it after an answer that came early.
		req.Body = io.NopCloser(bytes.NewReader(bytes.Clone(cl.inline.b)))
		req.ContentLength = cl.length
	case cl.body != nil:
		s.sent = &streamedBody{body: cl.body, done: make(chan struct{})}
		req.Body, req.ContentLength = s.sent, cl.length
		if n := cl.req.ContentLength; n > 0 {
			req.ContentLength = n // chunks were asked for, and there are none
		}
	default:
		req.Body, req.ContentLength = nil, 0
		req.Trailer = nil // net/http would never end the stream
	}
	return req
}

// limitHead bounds the wait for the head of the answer, from now.
func (s *stream) limitHead(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.answered {
		s.head = time.AfterFunc(d, func() { s.end(ErrResponseHeaderTimeout) })
	}
}

func (s *stream) headArrived() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered = true
	if s.head != nil {
		s.head.Stop()
	}
}

// deliver makes resp ours, and gives the connection back if nothing of the
// answer is still to come.
func (s *stream) deliver(resp *http.Response) {
	cl, t := s.cl, s.h.t
	resp.Request, resp.TLS = cl.req, s.c.tls
	s.verdict = verdict{ReuseVerdict: ReuseVerdict{Keep: true}}
	if cl.last != CloseNone {
		s.verdict = drop(cl.last)
	} else if strategy := t.cfg.reuse; strategy != nil {
		s.verdict = s.verdict.stricter(strategy.Reuse(resp, s.c.info(s.lease.served+1), s.verdict.ReuseVerdict))
	}
	s.h.answered.Store(true)
	s.body = resp.Body
	if isEmpty(resp, cl.req.Method) {
		resp.Body = http.NoBody
		s.finish()
		return
	}
	resp.Body = streamBody{s}
	s.mu.Lock() // endUnread may run at once
	defer s.mu.Unlock()
	s.unwatch = context.AfterFunc(s.ctx, s.endUnread)
}

// endOwn ends ctx with the stream, which is of no consequence for the body.
func (s *stream) endOwn() {
	s.mu.Lock()
	unwatch := s.unwatch
	s.mu.Unlock()
	if unwatch != nil {
		unwatch()
	}
	s.end(nil)
}

// isEmpty reports whether the body of resp is known to be empty. net/http's
// HTTP/2 has a type without any field for that, which is not http.NoBody, and
// one for a body that was announced and did not come.
func isEmpty(resp *http.Response, method string) bool {
	t := reflect.TypeOf(resp.Body)
	if t.Kind() != reflect.Struct || t.NumField() > 0 {
		return false
	}
	return resp.ContentLength <= 0 || method == http.MethodHead || resp.StatusCode == http.StatusNotModified
}

// finish gives the connection back, once. The request is over with it.
func (s *stream) finish() {
	s.sent.finish()
	if s.giveBack(s.verdict, true) {
		s.cl.finish()
	}
}

// giveBack ends the lease with v and reports whether it was still to be ended.
func (s *stream) giveBack(v verdict, last bool) bool {
	s.mu.Lock()
	first := !s.over
	s.over = true
	s.mu.Unlock()
	if !first {
		return false
	}
	if s.hard != nil {
		s.hard.Stop()
	}
	s.endOwn()
	_, do := s.h.t.pool.release(s.c, time.Now(), v, last)
	s.h.t.perform(do)
	return true
}

// fail ends a stream that has no answer.
func (s *stream) fail(err error) *outcome {
	out := &outcome{err: s.error(PhaseHeader, nil), gotByte: s.gotByte.Load()}
	if s.sent.unsent() {
		out.err.Phase = PhaseWrite
	}
	var bodyErr error
	if b := s.sent; b != nil {
		b.body.touched = b.stop()
		bodyErr, out.bodyErr = b.err, b.err != nil
	}
	v := verdict{}
	switch cause := s.ownDoing(out); {
	case cause != nil:
		out.err.Err = cause
	case bodyErr != nil:
		out.err.Err = bodyError(bodyErr)
	case isNotTaken(err):
		v = dropUnused(CloseStale)
		s.notTaken(out, err)
	case isRefused(err):
		out.refused, out.err.Err = true, named(err)
	case isObjection(err):
		out.leaving, out.err.Err = true, named(err) // as net/http has it, golang/go#47635
	case isStreamError(err), s.h.cc.Err() == nil:
		out.final, out.err.Err = true, named(err)
	default:
		v = drop(CloseReadError)
		out.leaving, out.err.Err = isLeaving(err), s.lost(err, out.err.Reused, out.gotByte)
	}
	s.listen(out.err)
	s.giveBack(v, false)
	return out
}

// notTaken says that nothing of the request was sent, because the connection
// takes no more. On one that has brought no answer yet that counts as an
// attempt, of its first request at least: there may never be one that does.
func (s *stream) notTaken(out *outcome, err error) {
	if failure := s.h.sock.failure(); errors.Is(failure, errAnswersHTTP1) {
		out.final, out.err.Err = true, failure // as it will be the next time
		return
	}
	out.err.Phase, out.err.Err = PhaseWrite, s.lost(err, false, false)
	if out.refused = true; s.h.answered.Load() || s.lease.served > 0 && s.h.cc.Err() == nil {
		out.stale = true
		s.h.t.pool.noteStale(s.c.host)
	}
}

// lost names the cause of the end of the connection, of which net/http says err.
// within: an answer had begun.
func (s *stream) lost(err error, reused, within bool) error {
	failure := s.h.sock.failure()
	if within && errors.Is(failure, io.EOF) {
		failure = io.ErrUnexpectedEOF
	}
	switch {
	case failure == nil || isEnd(err):
		return endError(err, reused, within)
	case isTimeout(failure):
		return writeTimeout(failure) // reading has none
	case isEnd(failure):
		failure = endError(failure, reused, within)
	}
	return &marked{err.Error() + ": " + failure.Error(), []error{err, failure}}
}

// ownDoing returns what we did ourselves to end the stream, or nil.
func (s *stream) ownDoing(out *outcome) error {
	if s.c.cut.Load() {
		out.canceled = true
		return ErrClosed
	}
	if ended := s.cl.contextEnded(); ended != nil {
		out.canceled = true
		return ended
	}
	return context.Cause(s.ctx)
}

// listen sees to it that a connection whose peer was not heard while a request
// timed out, or was given up after some patience, gets no other request until it
// is. net/http has sent a ping, but for a peer that has answered one, and no
// request since.
func (s *stream) listen(e *Error) {
	h, patience := s.h, min(max(4*s.c.rtt, minPingWait), maxPingWait)
	late := e.Timeout() || errors.Is(e, context.Canceled) && time.Since(s.start) >= patience
	// Where net/http sends pings by time, too, the answer may have been to one of those.
	byTime := h.t.cfg.http2 != nil && h.t.cfg.http2.SendPingTimeout > 0
	if !late || h.sock.received.Load() != s.received || h.sock.ponged.Load() && !byTime {
		return
	}
	h.t.pool.silent(s.c)
	h.sock.silent.Store(true) // not before: the pool would hear of the answer first
	time.AfterFunc(patience, func() { h.t.act(func() todo { return h.t.pool.settled(s.c, time.Now()) }) })
	if h.sock.received.Load() != s.received && h.sock.silent.Swap(false) {
		h.t.act(func() todo { return h.t.pool.heard(s.c, time.Now()) })
	}
}

// How long requests wait for the answer to a ping before another connection is
// dialed, and a request for its answer before its cancellation says something of
// the peer: four round trips, within these bounds.
const (
	minPingWait = 200 * time.Millisecond
	maxPingWait = time.Second
)

// error makes an *Error of this stream.
func (s *stream) error(phase Phase, err error) *Error {
	l := s.lease
	e := &Error{
		Phase: phase, Host: s.cl.hostName(), RemoteAddr: remote(s.c.nc), Reused: s.proven || l.wasIdle,
		Age: s.start.Sub(s.c.dialedAt), Served: l.served, BytesWritten: s.c.sc.BytesWritten() - s.wrote,
		BytesRead: s.h.sock.received.Load() - s.received, Err: err,
	}
	if e.Reused {
		e.IdleTime = l.idleFor
	}
	e.Attempts, e.Elapsed = max(s.cl.attempt, 1), time.Since(s.cl.start)
	return e
}

// streamError has the fields of net/http's HTTP/2 error of one stream, which
// can be copied to it by errors.As.
type streamError struct {
	StreamID uint32
	Code     uint32 // RFC 9113 section 7
	Cause    error
}

func (e streamError) Error() string { return "HTTP/2 stream error" }

func isStreamError(err error) bool {
	_, ok := errors.AsType[streamError](err)
	return ok
}

// isObjection reports whether the peer ended the stream for an error in the
// protocol. Its connection takes no more then: see http2Socket.tell.
func isObjection(err error) bool {
	e, ok := errors.AsType[streamError](err)
	return ok && e.Code == protocolError && e.Cause != nil && e.Cause.Error() == "received from peer" // not exported
}

// isRefused reports whether the peer has not processed the request, which may
// be repeated then whatever its method (RFC 9113 section 8.7): a stream that it
// refused, or one above the last of a GOAWAY.
func isRefused(err error) bool {
	const refusedStream = 7
	if e, ok := errors.AsType[streamError](err); ok {
		return e.Code == refusedStream
	}
	return err.Error() == "http2: Transport received Server's graceful shutdown GOAWAY" // not exported
}

// isLeaving reports whether err says that the connection ended after a GOAWAY
// without an error.
func isLeaving(err error) bool {
	said, _, _ := strings.Cut(err.Error(), ", debug=") // not exported
	return strings.HasPrefix(said, "http2: server sent GOAWAY and closed the connection;") &&
		strings.HasSuffix(said, ", ErrCode=NO_ERROR")
}

// isNotTaken reports whether err says that nothing was sent: the connection
// took no more requests, or had ended before its first one.
func isNotTaken(err error) bool {
	switch err.Error() { // not exported
	case "http2: client conn not usable", "http2: client conn could not be established":
		return true
	}
	return false
}
