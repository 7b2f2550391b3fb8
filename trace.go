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
// RoundTrip lasts. A dial belongs to the pool and may go on after that; then only
// the second half of what the hooks know to have begun is told, as net/http does.
type traceGuard struct {
	running chan struct{} // one hook at a time, and end waits for it
	over    atomic.Bool
	// How many have begun and not ended. Guarded by running.
	dns, connects, handshakes int
}

// end lets nothing more begin. It waits for a hook that is running, as long as ctx
// lasts.
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

// begin runs hook, which tells that one of open begins, unless end was called.
func (g *traceGuard) begin(open *int, hook func()) {
	g.running <- struct{}{}
	defer func() { <-g.running }()
	if !g.over.Load() {
		*open++
		hook()
	}
}

// done runs hook, which tells that one of open has ended, if it was told to begin.
func (g *traceGuard) done(open *int, hook func()) {
	g.running <- struct{}{}
	defer func() { <-g.running }()
	if *open > 0 {
		*open--
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
	h := new(httptrace.ClientTrace)
	h.DNSStart = func(i httptrace.DNSStartInfo) {
		g.begin(&g.dns, func() { call1(t.DNSStart, i) })
	}
	h.DNSDone = func(i httptrace.DNSDoneInfo) {
		g.done(&g.dns, func() { call1(t.DNSDone, i) })
	}
	h.ConnectStart = func(network, addr string) {
		g.begin(&g.connects, func() { call2(t.ConnectStart, network, addr) })
	}
	h.ConnectDone = func(network, addr string, err error) {
		g.done(&g.connects, func() {
			if t.ConnectDone != nil {
				t.ConnectDone(network, addr, err)
			}
		})
	}
	h.TLSHandshakeStart = func() {
		g.begin(&g.handshakes, func() {
			if t.TLSHandshakeStart != nil {
				t.TLSHandshakeStart()
			}
		})
	}
	h.TLSHandshakeDone = func(cs tls.ConnectionState, err error) {
		g.done(&g.handshakes, func() { call2(t.TLSHandshakeDone, cs, err) })
	}
	return httptrace.WithClientTrace(untraced{ctx}, h), g
}

func call1[A any](hook func(A), a A) {
	if hook != nil {
		hook(a)
	}
}

func call2[A, B any](hook func(A, B), a A, b B) {
	if hook != nil {
		hook(a, b)
	}
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
