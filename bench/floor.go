package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
)

// floor is no HTTP client: it writes prepared bytes to a socket and reads as
// many as the answer is known to have. A client can be cheaper only by writing
// in other pieces: 1 MB costs Linux less behind a first write of 4 KB.
type floor struct {
	*place
	request    []byte
	head, rest int           // sizes of the answer's parts
	slots      chan struct{} // holds one for each connection in use; nil: no limit

	mu   sync.Mutex
	idle [][]net.Conn // by host, the newest last. Guarded by mu.
}

func newFloor(p *place) *floor {
	head, rest := answer(p.scenario)
	var b bytes.Buffer
	if p.body == nil {
		b.WriteString("GET /bench HTTP/1.1\r\n")
	} else {
		fmt.Fprintf(&b, "POST /bench HTTP/1.1\r\nContent-Length: %d\r\n", len(p.body))
	}
	fmt.Fprintf(&b, "Host: %s\r\nUser-Agent: Go-http-client/1.1\r\nAccept-Encoding: gzip\r\n\r\n%s", p.addrs[0], p.body)
	c := &floor{
		place: p, request: b.Bytes(), head: len(head), rest: len(rest),
		idle: make([][]net.Conn, len(p.addrs)),
	}
	if p.maxPerHost > 0 {
		c.slots = make(chan struct{}, p.maxPerHost)
	}
	return c
}

func (c *floor) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conns := range c.idle {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
}

// take returns a connection to a host.
func (c *floor) take(host int) (net.Conn, error) {
	if c.slots != nil {
		c.slots <- struct{}{}
	}
	c.mu.Lock()
	if n := len(c.idle[host]); n > 0 {
		conn := c.idle[host][n-1]
		c.idle[host] = c.idle[host][:n-1]
		c.mu.Unlock()
		return conn, nil
	}
	c.mu.Unlock()
	var dialer net.Dialer
	conn, err := dialer.DialContext(background(), "tcp", c.addrs[host])
	if err == nil && c.trust != nil {
		config := c.trust.Clone()
		config.ServerName = "127.0.0.1"
		conn = tls.Client(conn, config)
	}
	return conn, err
}

func (c *floor) give(host int, conn net.Conn) {
	c.mu.Lock()
	c.idle[host] = append(c.idle[host], conn)
	c.mu.Unlock()
	if c.slots != nil {
		<-c.slots
	}
}

func (c *floor) worker(pick func() int) (func() error, error) {
	buf := c.buffer()
	return func() error {
		host := pick()
		conn, err := c.take(host)
		if err != nil {
			return err
		}
		if err := c.exchange(conn, buf); err != nil {
			return err
		}
		c.give(host, conn)
		return nil
	}, nil
}

func (c *floor) exchange(conn net.Conn, buf []byte) error {
	if _, err := conn.Write(c.request); err != nil {
		return err
	}
	for left := c.head; left > 0; {
		n, err := conn.Read(buf[:min(left, len(buf))])
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}

func (c *floor) hold() (finish func() error, err error) {
	conn, err := c.take(0)
	if err != nil {
		return nil, err
	}
	if err := c.exchange(conn, make([]byte, c.head)); err != nil {
		return nil, err
	}
	return func() error {
		_, err := io.ReadFull(conn, make([]byte, c.rest))
		c.give(0, conn)
		return err
	}, nil
}
