package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
)

// types is floor behind net/http's types, the least that a RoundTripper can do:
// it trusts that the answer is the one that the server always gives, and makes a
// response of it. It looks at nothing, parses nothing, and knows no timeout, no
// context and no error that it could do something about.
type types struct {
	*floor
	fields []typesField
	text   int            // size of the answer's head
	hosts  map[string]int // by the host of the URL
}

// typesField is a header field: its name, and where its value is in the head.
type typesField struct {
	name     string
	from, to int
}

func newTypes(p *place) (client, error) {
	f := newFloor(p)
	t := &types{floor: f, hosts: make(map[string]int)}
	for i, addr := range p.addrs {
		t.hosts[addr] = i
	}
	all, _ := answer(p.scenario)
	head, _, _ := bytes.Cut(all, []byte("\r\n\r\n"))
	t.text = len(head) + len("\r\n\r\n")
	at := 0
	for i, line := range strings.SplitAfter(string(head), "\r\n") {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && i > 0 {
			from := at + len(name) + len(": ")
			t.fields = append(t.fields, typesField{http.CanonicalHeaderKey(name), from, from + len(value)})
		}
		at += len(line)
	}
	return withTypes(p, t, f.close)
}

// typesAnswer is a response with room for the values of its header: one
// allocation, as in keepalive.
type typesAnswer struct {
	resp   http.Response
	values [6]string
	body   typesBody
}

var typesBuffers = sync.Pool{ //nolint:gochecknoglobals // shared by nature
	New: func() any { return new([8 << 10]byte) },
}

// RoundTrip writes the prepared request and reads the head of the answer.
func (t *types) RoundTrip(req *http.Request) (*http.Response, error) {
	host := t.hosts[req.URL.Host]
	conn, err := t.take(host)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(t.request); err != nil {
		return nil, err
	}
	buf, _ := typesBuffers.Get().(*[8 << 10]byte)
	n := 0
	for n < t.text {
		m, err := conn.Read(buf[n:])
		if err != nil {
			return nil, err
		}
		n += m
	}
	text := string(buf[:t.text])
	a := new(typesAnswer)
	a.resp = http.Response{
		Status: text[9:15], StatusCode: http.StatusOK, Proto: text[:8], ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, len(t.fields)), ContentLength: int64(bodySize(t.scenario)), Body: &a.body, Request: req,
	}
	for i, f := range t.fields {
		a.values[i] = text[f.from:f.to]
		a.resp.Header[f.name] = a.values[i : i+1 : i+1]
	}
	a.body = typesBody{t: t, host: host, conn: conn, buf: buf, ahead: buf[t.text:n], left: t.head - n, size: bodySize(t.scenario)}
	a.body.arrived()
	return &a.resp, nil
}

// typesBody is the rest of the answer. It takes the frames of chunks for data,
// and returns as many bytes as the body has.
type typesBody struct {
	t     *types
	host  int
	conn  net.Conn // nil: given back
	buf   *[8 << 10]byte
	ahead []byte // has arrived with the head
	left  int    // bytes that have not arrived
	size  int    // of the body, as far as it was not read
}

// arrived gives the connection back when nothing is to come any more.
func (b *typesBody) arrived() {
	if b.left == 0 {
		b.t.give(b.host, b.conn)
		b.conn = nil
	}
}

func (b *typesBody) Read(p []byte) (n int, err error) {
	switch {
	case len(b.ahead) > 0:
		n = copy(p, b.ahead)
		b.ahead = b.ahead[n:]
	case b.left > 0:
		if n, err = b.conn.Read(p[:min(len(p), b.left)]); err != nil {
			return n, err
		}
		b.left -= n
		b.arrived()
	}
	if len(b.ahead) == 0 && b.left == 0 {
		err = io.EOF
		if b.buf != nil {
			typesBuffers.Put(b.buf)
			b.buf = nil
		}
	}
	n = min(n, b.size)
	b.size -= n
	return n, err
}

func (b *typesBody) Close() error { return nil }
