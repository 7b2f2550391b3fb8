package keepalive

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keepalive-http/keepalive/internal/sock"
)

// Transport is an http.RoundTripper with a pool of persistent connections. Use
// New to make one, share it, and Close it when it is not needed any more.
// Safe for concurrent use.
type Transport struct {
	cfg     *config
	pool    *pool
	dialer  *dialer
	watcher *sock.Watcher
	lastID  atomic.Uint64
	tasks   tasks
}

var _ http.RoundTripper = (*Transport)(nil)

// New returns a Transport. With no options it is set up for a service that
// talks to the same servers all day; see the options for the defaults. It
// returns all refused options at once, each an *OptionError.
func New(opts ...Option) (*Transport, error) {
	cfg, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	t := &Transport{cfg: cfg, dialer: newDialer(cfg)}
	t.pool = newPool(cfg, t.reap)
	t.watcher = sock.NewWatcher(t.hangup)
	return t, nil
}

// Client returns a new http.Client that uses t, and nothing else of its own.
func (t *Transport) Client() *http.Client { return &http.Client{Transport: t} }

// RoundTrip sends req and returns the answer, whatever its status. It does not
// follow redirects, keep cookies or add credentials, and never changes req.
//
// The request body is always closed, also on errors. It is not read any more
// when RoundTrip has returned an error, or when the response body has been
// read to its end or closed (a Read that hangs and is not ended by Close
// excepted). A response body that arrived whole with the head has no
// connection any more; any other keeps its connection until it has been read
// to the end, or closed.
//
// Errors of a request that was sent out are of type *Error.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	cl, err := t.newCall(req)
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	return cl.run()
}

// run is the road of a request: take its body apart, then acquire, exchange,
// and decide on another attempt.
func (cl *call) run() (*http.Response, error) {
	cl.watchCancel()
	if err := cl.takeBody(); err != nil {
		return nil, cl.abort(err)
	}
	if err := cl.contextEnded(); err != nil {
		return nil, cl.abort(cl.error(PhaseAcquire, err))
	}
	dialCtx, guard := dialContext(cl.ctx, cl.trace)
	defer guard.end()
	fresh := cl.opts.fresh
	for first := true; ; first = false {
		cl.attempt++
		c, now, err := cl.acquire(dialCtx, fresh, first)
		if err != nil {
			return nil, cl.abort(err)
		}
		unused := c.served == 0 && !c.wasIdle
		resp, out := cl.t.newExchange(cl, c, now).roundTrip(unused)
		if out == nil {
			return resp, nil
		}
		again, dial := cl.decide(c, out)
		if again {
			err = cl.rewind()
		}
		if !again || err != nil {
			return nil, cl.abort(firstOf(err, out.err))
		}
		fresh = dial || cl.opts.fresh
	}
}

func firstOf(err error, other *Error) error {
	if err != nil {
		return err
	}
	return other
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
			BytesWritten: e.BytesWritten, Timeout: e.Timeout(),
		},
		stale: out.stale, gotByte: out.gotByte, bodyErr: out.bodyErr, canceled: out.canceled,
		rewindable: cl.rewindable(), noRetry: cl.opts.noRetry,
	}
}

// acquire returns a connection that is leased to this call, and the time.
func (cl *call) acquire(ctx context.Context, fresh, first bool) (*conn, time.Time, error) {
	t, now := cl.t, cl.start
	if !first {
		now = time.Now()
	}
	if cl.trace != nil && cl.trace.GetConn != nil {
		cl.trace.GetConn(cl.key.Addr())
	}
	c, w, do, err := t.pool.acquire(now, want{key: cl.key, ctx: ctx, fresh: fresh, first: first})
	t.perform(do)
	cl.counted = cl.counted || !errors.Is(err, ErrClosed)
	if w != nil {
		c, err = cl.wait(w)
		now = time.Now()
	}
	if err != nil {
		return nil, now, cl.error(PhaseAcquire, err)
	}
	if cl.trace != nil && cl.trace.GotConn != nil {
		cl.trace.GotConn(c.gotConn())
	}
	return c, now, nil
}

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
	for {
		var err error
		select {
		case g := <-w.ready:
			return g.c, g.err
		case <-cl.ctx.Done():
			err = context.Cause(cl.ctx)
		case <-hard:
			err = ErrRequestTimeout
		case <-limit:
			if !p.starved(w) { // a dial is under way for it, with a limit of its own
				acquire.Reset(cl.limit.acquire)
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

// error makes err an *Error of this call, or completes the one that it is.
func (cl *call) error(phase Phase, err error) error {
	e, ok := err.(*Error) //nolint:errorlint // the outermost one
	if !ok {
		if err == ErrClosed || err == nil { //nolint:errorlint // our own sentinel
			return err
		}
		e = &Error{Phase: phase, Host: cl.key.String(), Err: err}
	}
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

// gotConn describes c to the trace.
func (c *conn) gotConn() httptrace.GotConnInfo {
	info := httptrace.GotConnInfo{Conn: c.nc, Reused: c.served > 0, WasIdle: c.wasIdle && c.idleFor > 0}
	if c.nc == net.Conn(c.sc) {
		info.Conn = c.sc.NetConn()
	}
	if info.WasIdle {
		info.IdleTime = c.idleFor
	}
	return info
}

// sampleRTT notes that an answer took d: its round trip cannot be longer.
func (c *conn) sampleRTT(d time.Duration) {
	if c.rtt == 0 || d < c.rtt {
		c.rtt = d
	}
}

// release gives a leased connection back to the pool.
func (t *Transport) release(c *conn, now time.Time, v verdict, cl *call, last bool) {
	if v.reason == CloseNone && c.checkable && !c.sc.HasSocket() {
		c.park(t.tasks.run, func() { t.perform(t.pool.peerGone(c)) })
	}
	reason, do := t.pool.release(c, now, v, last)
	if cl.trace != nil && cl.trace.PutIdleConn != nil && last {
		var err error
		if reason != CloseNone {
			err = fmt.Errorf("keepalive: connection not kept: %v", reason)
		}
		cl.trace.PutIdleConn(err)
	}
	t.perform(do)
}

// detach hands a leased connection to the user.
func (t *Transport) detach(c *conn) {
	t.unwatch(c)
	t.pool.detach(c)
}

// perform carries out what the pool decided. Nothing in it waits.
func (t *Transport) perform(do todo) {
	t.begin(do)
	for _, c := range do.discard {
		if c.sc.Direct() {
			t.discard(c)
		} else {
			t.tasks.run(func() { t.discard(c) })
		}
	}
}

// begin carries out all of do but the closing of connections.
func (t *Transport) begin(do todo) {
	for _, d := range do.cancel {
		d.cancel()
	}
	for _, c := range do.interrupt {
		c.cut.Store(true)
		c.sc.Interrupt()
		t.tasks.run(func() { _ = c.sc.Close() }) // its owner only lets go of it
	}
	for _, d := range do.dial {
		t.tasks.run(func() { t.dial(d) })
	}
}

// performAll is perform that returns when the connections are closed.
func (t *Transport) performAll(do todo) {
	t.begin(do)
	var wg sync.WaitGroup
	for _, c := range do.discard {
		if c.sc.Direct() {
			t.discard(c)
		} else {
			wg.Go(func() { t.discard(c) })
		}
	}
	wg.Wait()
}

// discard closes a connection that the pool has dropped. A user's connection
// may make it wait.
func (t *Transport) discard(c *conn) {
	t.unwatch(c)
	c.shutDown()
	t.perform(t.pool.closed(c))
}

func (t *Transport) unwatch(c *conn) {
	if c.watched {
		t.watcher.Remove(c.id)
	}
}

// dial makes the connection that the pool asked for. It runs in a goroutine of
// its own, which perform starts; the dial's timeout or Close ends it.
func (t *Transport) dial(d *dial) {
	c, err := t.dialer.dial(d.ctx, d.host.key)
	d.cancel()
	if err != nil {
		t.perform(t.pool.dialed(d, nil, err, time.Now()))
		return
	}
	c.id = t.lastID.Add(1)
	if c.sc.HasSocket() && sock.Watchable() && !t.cfg.disableKeepAlives {
		t.pool.watch(c)
		c.watched = t.watcher.Add(c.sc, c.id) == nil
	}
	t.perform(t.pool.dialed(d, c, nil, time.Now()))
}

// hangup is told by the watcher that the peer of a connection has hung up. It
// is a hint: descriptors are reused.
func (t *Transport) hangup(id uint64) {
	c := t.pool.watchedConn(id)
	if c == nil || c.sc.Peek() == sock.Quiet {
		return
	}
	t.perform(t.pool.peerGone(c))
}

// reap closes what has expired. It runs in the goroutine of the pool's timer.
func (t *Transport) reap() {
	t.tasks.add(1)
	defer t.tasks.add(-1)
	for {
		do, more := t.pool.reap(time.Now())
		t.perform(do)
		if !more {
			return
		}
	}
}

// CloseIdleConnections closes the connections that are idle now and returns
// when that is done. Connections in use are kept, and become idle as usual.
func (t *Transport) CloseIdleConnections() { t.performAll(t.pool.dropIdle(CloseIdleConns)) }

// Shutdown refuses new requests with ErrClosed, closes idle connections, and
// waits for the requests under way: until their response bodies have been read
// to the end or closed. It returns nil then, or the cause of ctx's end, when
// the rest goes on; Close ends it. Connections handed over by 101 Switching
// Protocols are not waited for.
func (t *Transport) Shutdown(ctx context.Context) error {
	quiet, do := t.pool.drain()
	t.performAll(do)
	if quiet != nil {
		select {
		case <-quiet:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return t.Close()
}

// Close refuses new requests, cuts off those under way, which fail with
// ErrClosed, closes all connections but those handed over by 101 Switching
// Protocols, and returns when all goroutines of the Transport have ended; a
// user's Close, dial function or request body that hangs makes it wait. It
// returns nil. Calling it again does nothing.
func (t *Transport) Close() error {
	t.performAll(t.pool.shut(time.Now()))
	t.tasks.wait()
	t.watcher.Wait()
	return nil
}
