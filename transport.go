package keepalive

import (
	"context"
	"fmt"
	"net/http"
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
	// http2Maker makes the HTTP/2 part of connections.
	http2Maker *http.Transport
	lastID     atomic.Uint64
	tasks      tasks
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
	t := &Transport{cfg: cfg, http2Maker: newHTTP2Maker(cfg)}
	t.dialer = newDialer(cfg, t.speakHTTP2)
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
// to the end or closed, the request's context has ended or WithRequestTimeout
// has passed.
//
// Once a request has passed the checks of its form, errors are of type *Error;
// ErrClosed may come as it is.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	cl, err := t.newCall(req)
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	resp, err := cl.run()
	cl.recycle()
	return resp, err
}

// release gives a leased connection back to the pool.
func (t *Transport) release(c *conn, now time.Time, v verdict, cl *call, last bool) {
	if v.reason == CloseNone && c.checkable && !c.sc.HasSocket() {
		c.park(t.tasks.run, func() { t.perform(t.pool.peerGone(c, time.Now())) })
	}
	reason, do := t.pool.release(c, now, v, last)
	if cl.trace != nil && cl.trace.PutIdleConn != nil && last && cl.last != CloseKeepAlivesDisabled {
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

// act carries out what the pool decides, for a goroutine that is not of tasks:
// Close waits for it all the same.
func (t *Transport) act(decide func() todo) {
	t.tasks.add(1)
	defer t.tasks.add(-1)
	t.perform(decide())
}

// begin carries out all of do but the closing of connections.
func (t *Transport) begin(do todo) {
	for _, d := range do.cancel {
		d.cancel()
	}
	for _, c := range do.interrupt {
		c.cut.Store(true)
		t.unwatch(c)
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
	c.close(c)
	t.perform(t.pool.closed(c))
}

func (t *Transport) unwatch(c *conn) {
	if c.watched {
		t.watcher.Remove(&c.sc)
	}
}

// dial makes the connection that the pool asked for. It runs in a goroutine of
// its own, which perform starts; the dial's timeout or Close ends it.
func (t *Transport) dial(d *dial) {
	if d.many {
		timer := time.AfterFunc(dialPatience, func() { t.act(func() todo { return t.pool.overdue(d) }) })
		defer timer.Stop()
	}
	c, err := t.dialer.dial(d.ctx, d.host.key)
	d.cancel()
	if err != nil {
		t.perform(t.pool.dialed(d, nil, err, time.Now()))
		return
	}
	c.id = t.lastID.Add(1)
	// One that takes several requests at a time reads all the time.
	if !c.shares && c.sc.HasSocket() && sock.Watchable() && !t.cfg.disableKeepAlives {
		t.pool.watch(c)
		c.watched = t.watcher.Add(&c.sc, c.id) == nil
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
	t.perform(t.pool.peerGone(c, time.Now()))
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
// to the end or closed (WithDrainLimit included). It returns nil then, or the
// cause of ctx's end, when the rest goes on; Close ends it. Connections handed
// over by 101 Switching Protocols or CONNECT are not waited for. A user's Close,
// dial function or request body that hangs makes it wait beyond ctx, as it does
// Close.
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
// Protocols or CONNECT, and returns when all goroutines of the Transport have ended (the
// copy of a request body into a tunnel is not one of them); a user's Close, dial function or request body that hangs makes it wait. It
// returns nil. Calling it again does nothing.
func (t *Transport) Close() error {
	t.performAll(t.pool.shut(time.Now()))
	t.tasks.wait()
	t.watcher.Wait()
	return nil
}
