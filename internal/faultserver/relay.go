package faultserver

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

const (
	relayChunk = 32 << 10
	relayQueue = 32 // chunks under way in one direction before reading stops
)

// Relay is a TCP relay on 127.0.0.1 to one server. It delays each direction,
// keeping order, and can freeze: forward nothing, neither bytes nor ends,
// while the connections stay up. It stops when the test ends. (A dial itself
// is not delayed: the kernel answers it.)
type Relay struct {
	// Addr is "127.0.0.1:port".
	Addr string

	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu       sync.Mutex // guards what follows and the conns' frozen
	up, down time.Duration
	frozen   bool          // holds for new connections
	changed  chan struct{} // closed and replaced at every thaw
	conns    map[*relayConn]bool
	stopped  bool
	accepted int
	bytes    [2]int64
}

type relayConn struct {
	relay          *Relay
	client, server *net.TCPConn
	end            sync.Once
	done           chan struct{}
	frozen         bool
}

// chunk is what was read and when it is to be written. With an err it is the
// last one.
type chunk struct {
	data []byte
	due  time.Time
	err  error
}

// NewRelay starts a relay to the server at target with no delay.
func NewRelay(t testing.TB, target string) *Relay {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{
		Addr: l.Addr().String(), target: target, listener: l,
		changed: make(chan struct{}), conns: map[*relayConn]bool{},
	}
	r.running.Go(r.acceptLoop)
	t.Cleanup(r.Stop)
	return r
}

// SetDelay sets how long bytes and ends take to the server (up) and to the
// client (down), from now on.
func (r *Relay) SetDelay(up, down time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up, r.down = up, down
}

// Freeze stops forwarding on all connections, new ones too.
func (r *Relay) Freeze() {
	r.FreezeExisting()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = true
}

// FreezeExisting stops forwarding on the connections that there are.
func (r *Relay) FreezeExisting() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.frozen = true
	}
}

// Thaw forwards again, what was held up first.
func (r *Relay) Thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = false
	for c := range r.conns {
		c.frozen = false
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// Accepted counts the connections that were accepted.
func (r *Relay) Accepted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.accepted
}

// Open counts the connections that are relayed.
func (r *Relay) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns)
}

// Bytes counts what was forwarded to the server and to the client.
func (r *Relay) Bytes() (up, down int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes[0], r.bytes[1]
}

// ResetAll resets both sides of every connection.
func (r *Relay) ResetAll() { r.each((*relayConn).reset) }

// CloseAll closes both sides of every connection.
func (r *Relay) CloseAll() { r.each((*relayConn).close) }

func (r *Relay) each(do func(*relayConn)) {
	r.mu.Lock()
	all := make([]*relayConn, 0, len(r.conns))
	for c := range r.conns {
		all = append(all, c)
	}
	r.mu.Unlock()
	for _, c := range all {
		do(c)
	}
}

// Stop closes the listener and every connection. The end of the test calls it.
func (r *Relay) Stop() {
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
	_ = r.listener.Close() // a second Stop
	r.CloseAll()
	r.running.Wait()
}

func (r *Relay) acceptLoop() {
	for {
		nc, err := r.listener.Accept()
		if err != nil {
			return
		}
		client, ok := nc.(*net.TCPConn)
		if !ok {
			return
		}
		server, err := net.Dial("tcp", r.target) //nolint:noctx // loopback: it is refused or accepted at once
		if err != nil {
			_ = client.SetLinger(0)
			_ = client.Close()
			continue
		}
		up, ok := server.(*net.TCPConn)
		c := &relayConn{relay: r, client: client, server: up, done: make(chan struct{})}
		if !ok || !r.add(c) {
			c.close()
			return
		}
		r.running.Go(c.run)
	}
}

func (r *Relay) add(c *relayConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return false
	}
	r.accepted++
	r.conns[c] = true
	c.frozen = r.frozen
	return true
}

func (r *Relay) delay(direction int) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return [2]time.Duration{r.up, r.down}[direction]
}

// run relays until both directions have ended.
func (c *relayConn) run() {
	var all sync.WaitGroup
	for direction, ends := range [2][2]*net.TCPConn{{c.client, c.server}, {c.server, c.client}} {
		queue := make(chan chunk, relayQueue)
		all.Go(func() { c.fill(queue, ends[0], direction) })
		all.Go(func() { c.forward(queue, ends[1], direction) })
	}
	all.Wait()
	c.close()
}

// fill reads into the queue until the source ends. Each chunk has its own due
// time, so delays do not add up.
func (c *relayConn) fill(queue chan<- chunk, from *net.TCPConn, direction int) {
	buf := make([]byte, relayChunk)
	for {
		n, err := from.Read(buf)
		next := chunk{data: append([]byte(nil), buf[:n]...), due: time.Now().Add(c.relay.delay(direction)), err: err}
		select {
		case queue <- next:
		case <-c.done:
			return
		}
		if err != nil {
			return
		}
	}
}

// forward writes the queue's chunks when they are due. An end is forwarded as
// what it is: FIN for FIN, RST for anything else.
func (c *relayConn) forward(queue <-chan chunk, to *net.TCPConn, direction int) {
	for {
		var next chunk
		select {
		case next = <-queue:
		case <-c.done:
			return
		}
		if !c.waitDue(next.due) || !c.waitThaw() {
			return
		}
		n, err := to.Write(next.data)
		c.relay.mu.Lock()
		c.relay.bytes[direction] += int64(n)
		c.relay.mu.Unlock()
		switch {
		case err != nil, next.err != nil && !errors.Is(next.err, io.EOF):
			c.reset()
			return
		case next.err != nil:
			_ = to.CloseWrite() // it may be gone
			return
		}
	}
}

func (c *relayConn) waitDue(due time.Time) bool {
	wait := time.Until(due)
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.done:
		return false
	}
}

func (c *relayConn) waitThaw() bool {
	for {
		c.relay.mu.Lock()
		frozen, changed := c.frozen, c.relay.changed
		c.relay.mu.Unlock()
		if !frozen {
			return true
		}
		select {
		case <-changed:
		case <-c.done:
			return false
		}
	}
}

func (c *relayConn) reset() {
	_ = c.client.SetLinger(0)
	_ = c.server.SetLinger(0)
	c.close()
}

func (c *relayConn) close() {
	c.end.Do(func() {
		_ = c.client.Close() // its peer may be gone
		_ = c.server.Close()
		close(c.done)
		c.relay.mu.Lock()
		defer c.relay.mu.Unlock()
		delete(c.relay.conns, c)
	})
}
