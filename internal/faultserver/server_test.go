package faultserver

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const get = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n"

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(waitLimit)))
	return c.(*net.TCPConn)
}

func send(t *testing.T, c io.Writer, s string) {
	t.Helper()
	_, err := io.WriteString(c, s)
	require.NoError(t, err)
}

func expect(t *testing.T, c io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := io.ReadFull(c, got)
	require.NoError(t, err)
	require.Equal(t, want, string(got))
}

// ended wants the stream to end as target says; nil is a clean end.
func ended(t *testing.T, c io.Reader, target error) {
	t.Helper()
	rest, err := io.ReadAll(c)
	require.Empty(t, string(rest))
	require.ErrorIs(t, err, target)
}

func TestExchangesOnOneConnection(t *testing.T) {
	s := New(t, func(x *Exchange) {
		if x.ReqIndex == 1 {
			body, err := x.ReadBody()
			require.NoError(t, err)
			x.Reply(200, string(body), "X-A: b")
			return
		}
		x.Reply(200, "first") // the second's body is the only one read
	})
	c := dial(t, s.Addr)
	send(t, c, "POST /a?q=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nIdempotency-Key: k\r\nX-Request-Id: 7\r\n\r\n12345")
	expect(t, c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst")
	send(t, c, "PUT /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxy\r\n0\r\n\r\n")
	expect(t, c, "HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 2\r\n\r\nxy")
	send(t, dial(t, s.Addr), get)

	s.WaitRequests(3)
	require.Equal(t, []int{2, 1, 0}, []int{s.RequestsOn(0), s.RequestsOn(1), s.RequestsOn(2)})
	require.Equal(t, []int{2, 2, 2}, []int{s.Accepted(), s.Open(), s.MaxOpen()})
	require.Equal(t, Entry{Method: "POST", Path: "/a?q=1", Key: "k", ID: "7"}, s.Log()[0])
	require.Equal(t, "POST /a?q=1 k 7", s.Log()[0].String())
	require.Equal(t, []int{1, 0}, []int{s.Times("POST", "/a?q=1"), s.Times("POST", "/b")})
	require.Equal(t, 1, s.Times("PUT", "/b"), "the first body was not discarded: %v", s.Log())

	require.NoError(t, c.Close())
	s.WaitOpen(1)
}

func TestWaysToEnd(t *testing.T) {
	tests := []struct {
		name  string
		do    func(x *Exchange)
		bytes string
		err   error
	}{
		{"close", func(x *Exchange) { x.Close() }, "", nil},
		{"close twice", func(x *Exchange) { x.Close(); x.Close() }, "", nil},
		{"reset", func(x *Exchange) { x.Reset() }, "", syscall.ECONNRESET},
		{"close after an answer", func(x *Exchange) { x.Reply(204, ""); x.Close() }, Response(204, ""), nil},
		{"cut", func(x *Exchange) { x.Cut(Response(200, "body"), 20) }, Response(200, "body")[:20], nil},
		{
			"parts", func(x *Exchange) {
				x.WriteParts(Part{Data: "one"}, Part{Pause: time.Millisecond}, Part{Pause: time.Millisecond, Data: "two"})
				x.Close()
			}, "onetwo", nil,
		},
		{"half close", func(x *Exchange) { x.Write("x"); x.CloseWrite(); x.AwaitClose() }, "x", nil},
		{"take", func(x *Exchange) { c, _ := x.Take(); _, _ = io.WriteString(c, "raw") }, "raw", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := New(t, tt.do)
			c := dial(t, s.Addr)
			send(t, c, get)
			expect(t, c, tt.bytes)
			ended(t, c, tt.err)
			require.NoError(t, c.Close())
			s.WaitOpen(0)
			require.Equal(t, 1, s.Requests())
		})
	}
}

// TestDoesNotEndByItself is the other half: what the script does not do does
// not happen.
func TestDoesNotEndByItself(t *testing.T) {
	s := New(t, func(x *Exchange) {
		if x.ReqIndex == 1 {
			x.Write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		}
	})
	c := dial(t, s.Addr)
	send(t, c, get) // no answer at all
	send(t, c, get)
	expect(t, c, "HTTP/1.1 200 OK\r\nConnection: close\r\n")
	send(t, c, get)
	s.WaitRequests(3)
	require.Equal(t, 1, s.Open())
}

func TestHangEndsWithServer(t *testing.T) {
	for name, hang := range map[string]func(*Exchange){
		"hang":        (*Exchange).Hang,
		"await close": (*Exchange).AwaitClose,
		"pause":       func(x *Exchange) { require.False(t, x.Pause(time.Hour)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := New(t, hang)
			c := dial(t, s.Addr)
			send(t, c, get)
			s.WaitRequests(1)
			s.Stop()
			ended(t, c, nil)
			_, err := net.Dial("tcp", s.Addr)
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
		})
	}
}

func TestCloseIdle(t *testing.T) {
	s := New(t, func(x *Exchange) {
		if x.ConnIndex == 0 {
			x.Hang()
		}
		x.Reply(200, "")
	})
	busy, idle := dial(t, s.Addr), dial(t, s.Addr)
	s.WaitAccepted(2)
	send(t, busy, get)
	s.WaitRequests(1)
	// Connection order is accept order: that of the dials.
	send(t, idle, get)
	expect(t, idle, Response(200, ""))
	s.CloseIdle()
	ended(t, idle, nil)
	s.WaitOpen(1)
	s.ResetAll()
	ended(t, busy, syscall.ECONNRESET)
	s.WaitOpen(0)
}

// TestCloseIdleWhileTheScriptEnds has a client that is faster than the server.
func TestCloseIdleWhileTheScriptEnds(t *testing.T) {
	goOn := make(chan struct{})
	s := New(t, func(x *Exchange) {
		x.Reply(200, "")
		<-goOn
	})
	c := dial(t, s.Addr)
	send(t, c, get)
	expect(t, c, Response(200, ""))
	s.CloseIdle()
	require.Equal(t, 1, s.Open())
	close(goOn)
	ended(t, c, nil)
	s.WaitOpen(0)
}

func TestIdleTimeout(t *testing.T) {
	s := New(t, func(x *Exchange) { x.Reply(200, "") }, WithIdleTimeout(5*time.Millisecond))
	c, fresh := dial(t, s.Addr), dial(t, s.Addr)
	send(t, c, get)
	expect(t, c, Response(200, ""))
	ended(t, c, nil)
	send(t, fresh, get) // a connection without a request is not idle
	expect(t, fresh, Response(200, ""))
}

func TestOnAccept(t *testing.T) {
	s := New(t, func(x *Exchange) { x.Reply(200, "") }, WithOnAccept(func(i int, raw net.Conn) bool {
		_, _ = io.WriteString(raw, "early")
		return i > 0
	}))
	for i := range 2 {
		c := dial(t, s.Addr)
		expect(t, c, "early")
		if i == 0 {
			ended(t, c, nil)
			continue
		}
		send(t, c, get)
		expect(t, c, Response(200, ""))
	}
}

func TestTLS(t *testing.T) {
	s := NewTLS(t, func(x *Exchange) {
		switch x.ReqIndex {
		case 0:
			x.Reply(200, "secret")
		default:
			x.Reset()
		}
	}, WithTLSConfig(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }))
	c := tls.Client(dial(t, s.Addr), s.clientConfigFor("example.com"))
	send(t, c, get)
	expect(t, c, Response(200, "secret"))
	require.EqualValues(t, tls.VersionTLS12, c.ConnectionState().Version)
	send(t, c, get)
	ended(t, c, syscall.ECONNRESET)

	_, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(s.URL)
	require.ErrorContains(t, err, "unknown authority")
}

func (s *Server) clientConfigFor(name string) *tls.Config {
	c := s.ClientTLSConfig()
	c.ServerName = name
	return c
}

func TestHTTPClient(t *testing.T) {
	answer := func(x *Exchange) { x.Reply(200, x.Request.Host) }
	plain, secure, unix := New(t, answer), NewTLS(t, answer), NewUnix(t, answer)
	tr := &http.Transport{TLSClientConfig: secure.ClientTLSConfig()}
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "unix") {
			network, addr = "unix", unix.Addr
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	defer tr.CloseIdleConnections()
	for _, url := range []string{plain.URL, secure.URL, unix.URL} {
		for range 2 {
			resp, err := (&http.Client{Transport: tr}).Get(url + "/")
			require.NoError(t, err)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.True(t, strings.HasSuffix(url, string(body)), body)
		}
	}
	for _, s := range []*Server{plain, secure, unix} {
		require.Equal(t, []int{1, 2}, []int{s.Accepted(), s.RequestsOn(0)})
	}
}

// TestTLSEnds tells the ends apart by the bytes below TLS: Go's client calls
// all of them io.EOF.
func TestTLSEnds(t *testing.T) {
	s := NewTLS(t, func(x *Exchange) {
		switch x.ConnIndex {
		case 0:
			x.Close() // says close_notify
		case 1:
			_ = x.Raw.Close() // does not
			x.Close()
		case 2:
			x.CloseWrite()
			x.AwaitClose()
		}
	})
	var last [3]int64
	for i := range last {
		counted := &countConn{Conn: dial(t, s.Addr)}
		c := tls.Client(counted, s.clientConfigFor("localhost"))
		require.NoError(t, c.HandshakeContext(t.Context()))
		send(t, c, get)
		ended(t, c, nil)
		last[i] = counted.n
	}
	require.Greater(t, last[0], last[1])
	require.Greater(t, last[2], last[1])
}

// countConn counts what is read.
type countConn struct {
	net.Conn
	n int64
}

func (c *countConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n += int64(n)
	return n, err
}
