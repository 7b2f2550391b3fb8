package keepalive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
)

// http2 is the protocol of a connection that speaks HTTP/2 (RFC 9113). How that
// is done is net/http's: an http.ClientConn on a connection that we have
// dialed. Who may use it, for how long, and what an error means is ours.
type http2 struct {
	t    *Transport
	cc   *http.ClientConn
	sock *http2Socket
}

// initialStreams is how many requests at a time a connection takes whose peer
// has not said how many: what net/http assumes.
const initialStreams = 100

// newHTTP2Maker returns the http.Transport that makes ClientConns of our
// connections. It dials nothing and is used for nothing else.
func newHTTP2Maker(cfg *config) *http.Transport {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true) // TLS, if any, has been dealt with
	return &http.Transport{
		Protocols: &p, HTTP2: cfg.http2,
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

// speakHTTP2 makes HTTP/2 the protocol of c, which has just been dialed.
func (t *Transport) speakHTTP2(ctx context.Context, c *conn) error {
	h := &http2{t: t, sock: newHTTP2Socket(t, c)}
	c.protocol, c.capacity, c.settling = h, initialStreams, true
	ctx = context.WithValue(context.WithoutCancel(ctx), http2SocketKey{}, net.Conn(h.sock))
	var err error
	if h.cc, err = t.http2Maker.NewClientConn(ctx, "http", "unused.invalid:80"); err != nil {
		h.sock.settle()
		return err
	}
	h.cc.SetStateHook(func(*http.ClientConn) { h.changed(c) })
	return nil
}

// changed is called when more requests may be sent than before, when one has
// ended, and when the connection is no more.
func (h *http2) changed(c *conn) {
	if h.cc.Err() != nil {
		h.t.perform(h.t.pool.peerGone(c, time.Now()))
		return
	}
	h.t.perform(h.t.pool.capacityChanged(c, h.cc.InFlight()+h.cc.Available(), time.Now()))
}

func (h *http2) close(*conn) { _ = h.cc.Close() }

// http2Socket is the net.Conn that a ClientConn reads and writes. It hears what
// a ClientConn does not tell.
type http2Socket struct {
	net.Conn
	t *Transport
	c *conn
	// began: a read has returned. Of the one goroutine that reads.
	began    bool
	received atomic.Int64
	// silent: the pool is to be told when the peer is heard next.
	silent atomic.Bool

	mu        sync.Mutex
	isSettled bool
	timer     *time.Timer // until settled
}

// settleWait is how long the first word of the peer may take before a
// connection is taken to allow initialStreams.
const settleWait = time.Second

func newHTTP2Socket(t *Transport, c *conn) *http2Socket {
	s := &http2Socket{Conn: c.nc, t: t, c: c}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(settleWait, s.settle)
	return s
}

// Read notes that what came before has been dealt with when the next bytes are
// asked for: the first is the peer's settings (RFC 9113 section 3.4).
func (s *http2Socket) Read(p []byte) (int, error) {
	if s.began {
		s.settle()
	}
	n, err := s.Conn.Read(p)
	s.began = true
	s.received.Add(int64(n))
	if err != nil {
		s.settle()
	}
	if n > 0 && s.silent.Load() && s.silent.Swap(false) {
		s.t.perform(s.t.pool.heard(s.c, time.Now()))
	}
	return n, err
}

func (s *http2Socket) settle() {
	s.mu.Lock()
	first := !s.isSettled
	s.isSettled = true
	s.timer.Stop()
	s.mu.Unlock()
	if first {
		s.t.perform(s.t.pool.settled(s.c))
	}
}

// Close closes the connection. TLS's close_notify is sent if there is room for
// it.
func (s *http2Socket) Close() error {
	s.settle()
	s.c.shutDown()
	return nil
}

// stream is one request and its answer on an HTTP/2 connection. When a response
// has been returned it lives on as its body.
type stream struct {
	h     *http2
	cl    *call
	c     *conn
	start time.Time
	lease lease
	// ctx is of the request on this connection; end ends it, with the cause.
	ctx  context.Context //nolint:containedctx // see above
	end  context.CancelCauseFunc
	hard *time.Timer // of the whole exchange; nil: none
	// received and wrote are the connection's counters at the start.
	received, wrote int64
	sent            *streamedBody // nil: the request has no body, or a small one
	verdict         verdict

	mu       sync.Mutex
	answered bool        // the head has arrived, or never will
	head     *time.Timer // of the wait for the head; nil: none
	body     io.ReadCloser
	over     bool // the connection was given back
}

func (h *http2) roundTrip(cl *call, c *conn, now time.Time) (*http.Response, *outcome) {
	cl.watchCancel()
	s := &stream{h: h, cl: cl, c: c, start: now, lease: h.t.pool.lease(c)}
	s.received, s.wrote = h.sock.received.Load(), c.sc.BytesWritten()
	if err := h.cc.Reserve(); err != nil {
		return nil, s.stale(err)
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

// stale says that the connection did not take the request: nothing was sent.
func (s *stream) stale(err error) *outcome {
	out := &outcome{stale: true, err: s.error(PhaseWrite, err)}
	if ended := s.cl.contextEnded(); ended != nil {
		out.err.Err, out.canceled = ended, true
	}
	s.h.t.pool.noteStale(s.c.host)
	s.h.t.perform(s.h.t.pool.refused(s.c))
	return out
}

// request returns the request as net/http is to send it.
func (s *stream) request() *http.Request {
	cl, ctx := s.cl, s.ctx
	if d := cl.limit.responseHeader; d > 0 {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			WroteRequest: func(httptrace.WroteRequestInfo) { s.limitHead(d) },
		})
	}
	req := cl.req.WithContext(ctx)
	req.Cancel, req.GetBody = nil, nil //nolint:staticcheck // SA1019: ctx ends with Cancel
	switch {
	case cl.inline != nil:
		// A copy: net/http may read it after an answer that came early.
		req.Body = io.NopCloser(bytes.NewReader(bytes.Clone(cl.inline.b)))
		req.ContentLength = cl.length
	case cl.body != nil:
		s.sent = &streamedBody{body: cl.body}
		req.Body, req.ContentLength = s.sent, cl.length
	default:
		req.Body, req.ContentLength = nil, 0
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

// streamedBody is a request body as net/http reads it.
type streamedBody struct {
	body *requestBody

	mu      sync.Mutex
	touched bool
	err     error // of the user's Read
}

func (b *streamedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	b.touched = true
	b.mu.Unlock()
	n, err := b.body.read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
	}
	return n, err
}

func (b *streamedBody) Close() error {
	b.body.close()
	return nil
}

// state returns what has become of the body. It may be nil.
func (b *streamedBody) state() (touched bool, err error) {
	if b == nil {
		return false, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.touched, b.err
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
		info := s.c.info()
		info.Served = s.lease.served + 1
		s.verdict = s.verdict.stricter(strategy.Reuse(resp, info, s.verdict.ReuseVerdict))
	}
	s.body = resp.Body
	if hasNoState(resp.Body) {
		resp.Body = http.NoBody
		s.finish()
		return
	}
	resp.Body = streamBody{s}
}

// hasNoState reports whether body is of a type without any field: the empty
// body of net/http's HTTP/2, which is not http.NoBody.
func hasNoState(body io.ReadCloser) bool {
	t := reflect.TypeOf(body)
	return t.Kind() == reflect.Struct && t.NumField() == 0
}

// finish gives the connection back, once. The request is over with it.
func (s *stream) finish() {
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
	s.end(nil)
	_, do := s.h.t.pool.release(s.c, time.Now(), v, last)
	s.h.t.perform(do)
	return true
}

// fail ends a stream that has no answer.
func (s *stream) fail(err error) *outcome {
	touched, bodyErr := s.sent.state()
	out := &outcome{err: s.error(PhaseHeader, nil), bodyErr: bodyErr != nil}
	if s.sent != nil && touched {
		s.cl.body.touched = true
	}
	v := verdict{}
	switch cause := s.ownDoing(out); {
	case cause != nil:
		out.err.Err = cause
	case bodyErr != nil:
		out.err.Err = bodyError(bodyErr)
	case isRefused(err):
		out.refused, out.err.Err = true, named(err)
	case isStreamError(err), s.h.cc.Err() == nil:
		out.final, out.err.Err = true, named(err)
	default:
		v = drop(CloseReadError)
		out.err.Err = endError(err, out.err.Reused, false)
	}
	s.listen(out.err)
	s.giveBack(v, false)
	return out
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
// timed out gets no other request until it is. net/http has sent a ping.
func (s *stream) listen(e *Error) {
	h := s.h
	if !e.Timeout() || h.sock.received.Load() != s.received {
		return
	}
	h.sock.silent.Store(true)
	h.t.pool.silent(s.c)
	patience := min(max(4*s.c.rtt, minPingWait), maxPingWait)
	time.AfterFunc(patience, func() { h.t.perform(h.t.pool.settled(s.c)) })
	if h.sock.received.Load() != s.received && h.sock.silent.Swap(false) {
		h.t.perform(h.t.pool.heard(s.c, time.Now()))
	}
}

// How long requests wait for the answer to a ping before another connection is
// dialed: four round trips, within these bounds.
const (
	minPingWait = 200 * time.Millisecond
	maxPingWait = time.Second
)

// error makes an *Error of this stream.
func (s *stream) error(phase Phase, err error) *Error {
	l := s.lease
	e := &Error{
		Phase: phase, Host: s.cl.key.String(), RemoteAddr: remote(s.c.nc), Reused: l.served > 0 || l.wasIdle,
		Age: s.start.Sub(s.c.dialedAt), Served: l.served, BytesWritten: s.c.sc.BytesWritten() - s.wrote,
		BytesRead: s.h.sock.received.Load() - s.received, Err: err,
	}
	if e.Reused {
		e.IdleTime = l.idleFor
	}
	e.Attempts, e.Elapsed = max(s.cl.attempt, 1), time.Since(s.cl.start)
	return e
}

// streamBody is the response body of a stream.
type streamBody struct{ s *stream }

// Read reads from the body. Its errors are io.EOF, http.ErrBodyReadAfterClose,
// or an *Error with PhaseBody.
func (b streamBody) Read(p []byte) (int, error) {
	s := b.s
	if d := s.cl.limit.bodyRead; d > 0 {
		timer := time.AfterFunc(d, func() { s.end(ErrBodyReadTimeout) })
		defer timer.Stop()
	}
	n, err := s.body.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		s.finish()
	default:
		err = s.failBody(err)
	}
	return n, err
}

// failBody ends the stream because reading its body failed with err, and
// returns the error for the user.
func (s *stream) failBody(err error) error {
	s.mu.Lock()
	over := s.over
	s.mu.Unlock()
	if over {
		return http.ErrBodyReadAfterClose
	}
	e := s.error(PhaseBody, named(err))
	if cause := s.ownDoing(&outcome{}); cause != nil {
		e.Err = cause
	}
	s.listen(e)
	s.finish()
	return e
}

// Close ends the body: the peer is told not to send the rest. It always returns
// nil.
func (b streamBody) Close() error {
	_ = b.s.body.Close()
	b.s.finish()
	return nil
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

// isRefused reports whether the peer has not processed the request, which may
// be repeated then whatever its method (RFC 9113 section 8.7): a stream that it
// refused, or one above the last of a GOAWAY; or that nothing was sent.
func isRefused(err error) bool {
	const refusedStream = 7
	if e, ok := errors.AsType[streamError](err); ok {
		return e.Code == refusedStream
	}
	// net/http exports neither.
	switch err.Error() {
	case "http2: Transport received Server's graceful shutdown GOAWAY", "http2: client conn not usable":
		return true
	}
	return false
}
