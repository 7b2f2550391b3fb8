package keepalive

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// BenchmarkExchange is one RoundTrip with its answer read to the end. The
// server is in the same process and part of the time; it allocates nothing. In
// memory the connection hides its socket, and the portable path is taken.
func BenchmarkExchange(b *testing.B) {
	small := smallAnswer + strings.Repeat("x", 128)
	chunked := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n" +
		strings.Repeat("400\r\n"+strings.Repeat("x", 1024)+"\r\n", 4) + "0\r\n\r\n"
	large := "HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n" + strings.Repeat("x", 64<<10)
	upload := bytes.Repeat([]byte("y"), 1<<10)
	cases := []struct {
		name     string
		body     []byte
		answer   string
		deadline bool
	}{
		{name: "get", answer: small},
		{name: "get with deadline", answer: small, deadline: true},
		{name: "get 4K chunked", answer: chunked},
		{name: "get 64K", answer: large},
		{name: "post 1K", answer: small, body: upload},
	}
	for _, tt := range cases {
		server := func(c net.Conn) { answerEach(c, len(tt.body), []byte(tt.answer)) }
		request := func(b *testing.B, dial dialFunc) {
			benchExchange(b, dial, tt.body, tt.deadline)
		}
		b.Run("socket/"+tt.name, func(b *testing.B) { request(b, dialLoopback(b, server)) })
		b.Run("memory/"+tt.name, func(b *testing.B) {
			n := netfake.New()
			n.Serve(b, "a:80", func(c *netfake.Conn) { server(c) })
			request(b, n.Dial)
		})
	}
}

// benchExchange makes requests one after the other.
func benchExchange(b *testing.B, dial dialFunc, body []byte, deadline bool) {
	t, err := New(WithDialContext(dial))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = t.Close() }()
	template, err := http.NewRequest(http.MethodGet, "http://a/bench", http.NoBody)
	if err != nil {
		b.Fatal(err)
	}
	if body != nil {
		template.Method, template.ContentLength = http.MethodPost, int64(len(body))
	}
	buf := make([]byte, 32<<10)
	b.ReportAllocs()
	for b.Loop() {
		req := template
		if body != nil {
			other := *template
			req, other.Body = &other, io.NopCloser(bytes.NewReader(body))
		}
		cancel := func() {}
		if deadline {
			var ctx context.Context
			ctx, cancel = context.WithTimeout(req.Context(), time.Minute)
			req = req.WithContext(ctx)
		}
		resp, err := t.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = resp.Body.Read(buf)
		}
		if err != io.EOF {
			b.Fatal(err)
		}
		_ = resp.Body.Close()
		cancel()
	}
}

// dialLoopback serves on a real socket until the benchmark ends, and returns
// the function that dials it.
func dialLoopback(b *testing.B, serve func(net.Conn)) dialFunc {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with the listener
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c) // one connection at a time
			_ = c.Close()
		}
	}()
	b.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, l.Addr().String())
	}
}

// answerEach answers each request, whose body has a known size, until the
// connection ends.
func answerEach(c net.Conn, body int, answer []byte) {
	buf := make([]byte, 8<<10)
	for n := 0; ; {
		m, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		n += m
		head := bytes.Index(buf[:n], []byte("\r\n\r\n"))
		if head < 0 || n-head-4 < body {
			continue
		}
		n = 0
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}
