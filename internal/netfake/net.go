// Package netfake is an in-memory network for tests, made for bubbles of
// testing/synctest and just as usable outside them.
//
// Unlike [net.Pipe] it is buffered: a Write does not wait for the Read at the
// other end until the buffer (256 KiB unless [Net.SetBufferSize] says other)
// is full. Waiting is always in a [sync.Cond] or on a channel of the bubble,
// so a blocked reader, writer, dialer or acceptor is durably blocked, and
// deadlines go by the bubble's clock. There are no goroutines of its own.
//
// A [Conn] hides that there is no socket, as a wrapper does: it has neither
// SyscallConn nor NetConn.
//
// What it does as a TCP socket on Linux does:
//
//   - bytes that arrived before the peer's close or reset can still be read;
//   - the first Write after the peer has closed succeeds and its bytes are
//     lost; the next fails with EPIPE; Read says [io.EOF];
//   - a Write that waits for room when the peer closes fails with ECONNRESET;
//   - a deadline in the past fails even when there are bytes to be read.
//
// What it does not: Close never turns into a reset because of unread bytes.
// Use [Conn.Reset].
package netfake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// AnyAddr stands for every address that has no rule of its own.
const AnyAddr = "*"

const defaultBufferSize = 256 << 10

// Net is a network. Make one with [New]; in a bubble, make it there.
type Net struct {
	// mu guards everything below. It is taken after a link's mutex, never
	// before, and nothing waits while holding it.
	mu         sync.Mutex
	listeners  map[string]*Listener
	rules      map[string]*rule
	bufferSize int
	onDial     func(*Conn)
	conns      []*Conn
	dials      map[string]int
	allDials   int
	dialing    int
	maxDialing int
	open       int
	maxOpen    int
	closed     int
}

// rule is what has been scripted for dials to one address.
type rule struct {
	delay time.Duration
	err   error
	hole  chan struct{} // not nil: a black hole; closed when it is lifted
}

// New returns a network without listeners.
func New() *Net {
	return &Net{
		listeners:  map[string]*Listener{},
		rules:      map[string]*rule{},
		dials:      map[string]int{},
		bufferSize: defaultBufferSize,
	}
}

// Dial connects to the [Listener] of addr, whatever the network's name. It has
// the signature of http.Transport.DialContext. Without a listener the error is
// ECONNREFUSED in a *net.OpError.
func (n *Net) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	n.dials[addr]++
	n.allDials++
	n.dialing++
	n.maxDialing = max(n.maxDialing, n.dialing)
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.dialing--
		n.mu.Unlock()
	}()

	if err := n.travel(ctx, addr); err != nil {
		return nil, dialError(network, addr, err)
	}
	c, onDial, err := n.connect(addr)
	if err != nil {
		return nil, dialError(network, addr, err)
	}
	if onDial != nil {
		onDial(c)
	}
	return c, nil
}

// travel is the way of the SYN: it waits as scripted for addr and returns the
// scripted error.
func (n *Net) travel(ctx context.Context, addr string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := n.rule(addr)
	for r.hole != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.hole:
			r = n.rule(addr)
		}
	}
	if r.delay > 0 {
		timer := time.NewTimer(r.delay)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
	}
	return r.err
}

// connect makes a pair of ends and queues the server's at the listener.
func (n *Net) connect(addr string) (*Conn, func(*Conn), error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[addr]
	if l == nil {
		return nil, nil, syscall.ECONNREFUSED
	}
	client, server := newLink(n, len(n.conns), addr, n.bufferSize)
	n.conns = append(n.conns, client)
	n.open++
	n.maxOpen = max(n.maxOpen, n.open)
	l.queue = append(l.queue, server)
	l.cond.Signal()
	return client, n.onDial, nil
}

// Listen opens addr ("host:port", as the dialer will say it). It panics when
// addr is taken: that is a mistake in the test.
func (n *Net) Listen(addr string) *Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		panic(fmt.Sprintf("netfake: Listen(%q): address in use", addr))
	}
	l := &Listener{net: n, addr: addr}
	l.cond.L = &n.mu
	n.listeners[addr] = l
	return l
}

// SetDialDelay makes later dials to addr take d.
func (n *Net) SetDialDelay(addr string, d time.Duration) {
	n.edit(addr, func(r *rule) { r.delay = d })
}

// SetDialError makes later dials to addr fail with err in a *net.OpError (as
// it is, when it is one already), after the delay. Nil ends it.
func (n *Net) SetDialError(addr string, err error) {
	n.edit(addr, func(r *rule) { r.err = err })
}

// BlackHole makes dials to addr hang until their context ends, or until it is
// turned off: then they go on.
func (n *Net) BlackHole(addr string, on bool) {
	n.edit(addr, func(r *rule) {
		switch {
		case on && r.hole == nil:
			r.hole = make(chan struct{})
		case !on && r.hole != nil:
			close(r.hole)
			r.hole = nil
		}
	})
}

func (n *Net) edit(addr string, f func(*rule)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rules[addr] == nil {
		n.rules[addr] = &rule{}
	}
	f(n.rules[addr])
}

func (n *Net) rule(addr string) rule {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := cmp.Or(n.rules[addr], n.rules[AnyAddr]); r != nil {
		return *r
	}
	return rule{}
}

// SetBufferSize sets how many bytes each direction of later connections holds.
func (n *Net) SetBufferSize(size int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bufferSize = size
}

// OnDial has f called with each later client end before Dial returns it: the
// place to script its faults. Nil ends it.
func (n *Net) OnDial(f func(*Conn)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onDial = f
}

// Dials counts the calls of Dial, failed and unfinished ones too.
func (n *Net) Dials() int { return n.read(func() int { return n.allDials }) }

// DialsTo counts the calls of Dial with addr.
func (n *Net) DialsTo(addr string) int { return n.read(func() int { return n.dials[addr] }) }

// Dialing counts the dials under way.
func (n *Net) Dialing() int { return n.read(func() int { return n.dialing }) }

// MaxDialing is the highest that Dialing has been.
func (n *Net) MaxDialing() int { return n.read(func() int { return n.maxDialing }) }

// Open counts the client ends that are not closed.
func (n *Net) Open() int { return n.read(func() int { return n.open }) }

// MaxOpen is the highest that Open has been.
func (n *Net) MaxOpen() int { return n.read(func() int { return n.maxOpen }) }

// Closed counts the client ends that are closed.
func (n *Net) Closed() int { return n.read(func() int { return n.closed }) }

func (n *Net) read(f func() int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return f()
}

// Conns returns every client end in dial order, closed ones too. The Net holds
// them, so a test of what is garbage must look at a wrapper of its own.
func (n *Net) Conns() []*Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]*Conn(nil), n.conns...)
}

func dialError(network, addr string, err error) error {
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return err
	}
	return &net.OpError{Op: "dial", Net: network, Addr: hostPort(addr), Err: err}
}

// hostPort is the net.Addr of both ends.
type hostPort string

func (hostPort) Network() string  { return "tcp" }
func (a hostPort) String() string { return string(a) }
