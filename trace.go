package keepalive

import (
	"context"
	"crypto/tls"
	"net"
	"net/http/httptrace"
	"reflect"
	"sync/atomic"
	"time"
)

// traceGuard passes a request's trace hooks on to a dial for as long as its
// RoundTrip lasts. A dial belongs to the pool and may go on after that, when
// the hooks must not be called any more.
type traceGuard struct {
	running chan struct{} // one hook at a time, and end waits for it
	over    atomic.Bool
}

// end stops all hooks. It waits for one that is running, as long as ctx lasts.
func (g *traceGuard) end(ctx context.Context) {
	if g == nil {
		return
	}
	g.over.Store(true)
	select {
	case g.running <- struct{}{}:
		<-g.running
	case <-ctx.Done():
	}
}

// do runs hook unless end was called.
func (g *traceGuard) do(hook func()) {
	g.running <- struct{}{}
	defer func() { <-g.running }()
	if !g.over.Load() {
		hook()
	}
}

// guardTrace returns ctx for a dial: with its values, but its trace hooks
// guarded. Without hooks it is ctx itself, and the guard is nil.
func guardTrace(ctx context.Context, t *httptrace.ClientTrace) (context.Context, *traceGuard) {
	if t == nil {
		return ctx, nil
	}
	g := &traceGuard{running: make(chan struct{}, 1)}
	h := &httptrace.ClientTrace{
		DNSStart:          guard1(g, t.DNSStart),
		DNSDone:           guard1(g, t.DNSDone),
		ConnectStart:      guard2(g, t.ConnectStart),
		TLSHandshakeDone:  guard2[tls.ConnectionState, error](g, t.TLSHandshakeDone),
		ConnectDone:       guardConnectDone(g, t.ConnectDone),
		TLSHandshakeStart: guard0(g, t.TLSHandshakeStart),
	}
	return httptrace.WithClientTrace(untraced{ctx}, h), g
}

func guard0(g *traceGuard, f func()) func() {
	if f == nil {
		return nil
	}
	return func() { g.do(f) }
}

func guard1[A any](g *traceGuard, f func(A)) func(A) {
	if f == nil {
		return nil
	}
	return func(a A) { g.do(func() { f(a) }) }
}

func guard2[A, B any](g *traceGuard, f func(A, B)) func(A, B) {
	if f == nil {
		return nil
	}
	return func(a A, b B) { g.do(func() { f(a, b) }) }
}

func guardConnectDone(g *traceGuard, f func(network, addr string, err error)) func(network, addr string, err error) {
	if f == nil {
		return nil
	}
	return func(network, addr string, err error) { g.do(func() { f(network, addr, err) }) }
}

// untraced hides the trace hooks of a context: those of httptrace, and the
// ones that httptrace leaves for package net.
type untraced struct{ context.Context } //nolint:containedctx // it is a context

func (c untraced) Value(key any) any {
	v := c.Context.Value(key)
	if v == nil {
		return nil
	}
	if _, ok := v.(*httptrace.ClientTrace); ok {
		return nil
	}
	if t := reflect.TypeOf(v); t.Kind() == reflect.Pointer && t.Elem().PkgPath() == "internal/nettrace" {
		return nil
	}
	return v
}

// connectTimer is the context of a dial that notes when the first TCP
// connection is begun, behind the name resolution: what it takes from there is
// a sample of the round trip.
type connectTimer struct {
	context.Context //nolint:containedctx // it is a context

	begun atomic.Int64 // nanoseconds since start
	start time.Time
}

type connectTimerKey struct{}

func (m *connectTimer) Value(key any) any {
	if _, ok := key.(connectTimerKey); ok {
		return m
	}
	return m.Context.Value(key)
}

// connecting is called by the dialer with each socket that it is about to
// connect.
func connecting(ctx context.Context) {
	if m, ok := ctx.Value(connectTimerKey{}).(*connectTimer); ok {
		m.begun.CompareAndSwap(0, max(int64(time.Since(m.start)), 1))
	}
}

// sample returns the round trip of a dial that has just succeeded. Of a user's
// dial function it is all the time that it took.
func (m *connectTimer) sample() time.Duration {
	return time.Since(m.start) - time.Duration(m.begun.Load())
}

// gotConn describes c to the trace.
func (l lease) gotConn(c *conn) httptrace.GotConnInfo {
	info := httptrace.GotConnInfo{Conn: c.nc, Reused: l.served > 0, WasIdle: l.wasIdle && l.idleFor > 0}
	if c.nc == net.Conn(&c.sc) {
		info.Conn = c.sc.NetConn()
	}
	if info.WasIdle {
		info.IdleTime = l.idleFor
	}
	return info
}
