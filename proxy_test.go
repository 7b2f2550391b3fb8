package keepalive_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
	"github.com/keepalive-http/keepalive/internal/sock"
)

// What a proxy does to the bytes of a request is compared with net/http in
// internal/difftest. Here, proxies are real: they connect to an origin.

const (
	proxyUser     = "usr-name"
	proxyPassword = "pass-word"
)

// hops are an origin and a proxy that connects to it, whatever the name of the
// target.
type hops struct {
	origin, proxy *faultserver.Server
	url           *url.URL // of the proxy, with credentials
	target        string   // of the origin, by a name that only the proxy knows
	tls           *tls.Config
}

// newHops starts an origin that answers with serve and a proxy, by their
// schemes.
func newHops(t *testing.T, proxyScheme, targetScheme string, serve func(*faultserver.Exchange)) hops {
	t.Helper()
	var h hops
	var certs []tls.Certificate
	// It has the certificate that both use.
	secure := faultserver.NewTLS(t, serve, faultserver.WithTLSConfig(func(c *tls.Config) { certs = c.Certificates }))
	h.origin, h.target, h.tls = secure, "https://example.com", secure.ClientTLSConfig()
	if targetScheme == "http" {
		h.origin, h.target = faultserver.New(t, serve), "http://example.com"
	}
	forward := func(x *faultserver.Exchange) { forwardTo(h.origin.Addr, x) }
	switch proxyScheme {
	case "http":
		h.proxy = faultserver.New(t, forward)
	case "https":
		h.proxy = faultserver.NewTLS(t, forward, faultserver.WithTLSConfig(func(c *tls.Config) { c.Certificates = certs }))
	default:
		h.proxy = faultserver.New(t, nil, faultserver.WithOnAccept(func(_ int, nc net.Conn) bool {
			socksTo(h.origin.Addr, nc)
			return false
		}))
	}
	h.url = &url.URL{Scheme: proxyScheme, Host: h.proxy.Addr, User: url.UserPassword(proxyUser, proxyPassword)}
	return h
}

// open returns a Transport that uses the proxy.
func (h hops) open(t *testing.T, opts ...keepalive.Option) *keepalive.Transport {
	t.Helper()
	return open(t, append([]keepalive.Option{
		keepalive.WithProxy(http.ProxyURL(h.url)), keepalive.WithTLSConfig(h.tls),
	}, opts...)...)
}

// forwardTo is an HTTP proxy's script: it makes a tunnel to addr, or answers
// with the request's target itself.
func forwardTo(addr string, x *faultserver.Exchange) {
	switch user, _, _ := (&http.Request{Header: http.Header{
		"Authorization": x.Request.Header["Proxy-Authorization"],
	}}).BasicAuth(); {
	case user != proxyUser:
		x.Reply(http.StatusProxyAuthRequired, "", "Proxy-Authenticate: Basic realm=x")
	case x.Request.Method != http.MethodConnect:
		_, _ = x.ReadBody()
		x.Reply(http.StatusOK, x.Request.RequestURI)
	default:
		nc, br := x.Take()
		x.Write("HTTP/1.1 200 OK\r\n\r\n")
		join(addr, nc, br)
	}
}

// socksTo is a SOCKS5 proxy that asks for a password (RFC 1928, RFC 1929).
func socksTo(addr string, nc net.Conn) {
	b := make([]byte, 512)
	read := func(n int) []byte {
		_, _ = io.ReadFull(nc, b[:n])
		return b[:n]
	}
	read(int(read(2)[1]))
	_, _ = nc.Write([]byte{5, 2})
	user := string(read(int(read(2)[1])))
	password := string(read(int(read(1)[0])))
	if user != proxyUser || password != proxyPassword {
		_, _ = nc.Write([]byte{1, 1})
		return
	}
	_, _ = nc.Write([]byte{1, 0})
	if read(4)[3] == 3 {
		read(int(read(1)[0]))
	}
	read(2)
	_, _ = nc.Write([]byte{5, 0, 0, 1, 127, 0, 0, 1, 0, 80})
	join(addr, nc, nc)
}

// join copies between a client and the server at addr until either hangs up.
func join(addr string, client io.WriteCloser, from io.Reader) {
	server, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(server, from)
		_ = server.Close()
	})
	_, _ = io.Copy(client, server)
	_ = client.Close()
	wg.Wait()
}

// allHops runs f for each kind of proxy and each scheme of the target.
func allHops(t *testing.T, serve func(*faultserver.Exchange), f func(t *testing.T, h hops)) {
	t.Helper()
	for _, proxy := range []string{"http", "https", "socks5", "socks5h"} {
		for _, target := range []string{"http", "https"} {
			if target == "http" && (proxy == "http" || proxy == "https") {
				continue // answered by the proxy
			}
			t.Run(target+" through "+proxy, func(t *testing.T) { f(t, newHops(t, proxy, target, serve)) })
		}
	}
}

// TestProxyKeepsConnections: the connection to the target is as good as one
// without a proxy: used again, watched, checked before it is used, and no
// credentials of the proxy come through it.
func TestProxyKeepsConnections(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	allHops(t, func(x *faultserver.Exchange) {
		body, _ := x.ReadBody()
		if len(x.Request.Header["Proxy-Authorization"]) > 0 || strings.Contains(x.Request.RequestURI, "example.com") {
			x.Reply(http.StatusTeapot, "this is for a proxy")
			return
		}
		x.Reply(http.StatusOK, string(body))
	}, func(t *testing.T, h hops) {
		tr := h.open(t)
		post := func(body []byte) {
			t.Helper()
			status, got, err := question{method: http.MethodPost, url: h.target, body: bytes.NewReader(body)}.ask(t.Context(), tr)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, status)
			require.Equal(t, len(body), len(got))
			require.True(t, string(body) == got)
		}
		for range 3 {
			post([]byte("small"))
			post(big)
		}
		require.Equal(t, 1, h.origin.Accepted())
		require.Equal(t, 1, h.proxy.Accepted())
		require.Equal(t, uint64(5), tr.Stats().Reuses)

		h.origin.CloseIdle()
		eventually(t, func() bool { return tr.Stats().Open == 0 })
		require.Equal(t, map[keepalive.CloseReason]uint64{keepalive.ClosePeerClosed: 1}, tr.Stats().Closed)
		post([]byte("again"))
		require.Zero(t, tr.Stats().Retries)
	})
}

// TestProxyPoison: what a proxy, or the target, says between two requests is
// never taken for an answer, and no POST is lost by it.
func TestProxyPoison(t *testing.T) {
	const injected = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ninjected"
	// ask makes a request and returns the connection that it used.
	ask := func(t *testing.T, h hops, tr *keepalive.Transport, id string) (used net.Conn) {
		t.Helper()
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GotConn: func(i httptrace.GotConnInfo) { used = i.Conn },
		})
		require.NoError(t, question{method: http.MethodPost, url: h.target, id: id, body: strings.NewReader("x")}.own(ctx, tr))
		return used
	}
	arrived := func(t *testing.T, nc net.Conn) {
		t.Helper()
		eventually(t, func() bool { return sock.New(nc).Peek() != sock.Quiet })
	}
	more := make(chan *faultserver.Exchange, 2)
	serve := func(x *faultserver.Exchange) {
		echoID(x)
		more <- x
	}
	allHops(t, serve, func(t *testing.T, h hops) {
		tr := h.open(t)
		used := ask(t, h, tr, "first")
		(<-more).Write(injected)
		arrived(t, used)
		ask(t, h, tr, "second")
		<-more
		require.Zero(t, tr.Stats().Retries)
		require.Equal(t, 2, h.origin.Accepted())
	})
	t.Run("outside of the tunnel", func(t *testing.T) {
		h := newHops(t, "https", "https", echoID)
		raw := make(chan net.Conn, 2)
		addr := h.origin.Addr
		proxy := faultserver.NewTLS(t, func(x *faultserver.Exchange) {
			nc, br := x.Take()
			x.Write("HTTP/1.1 200 OK\r\n\r\n")
			raw <- nc
			join(addr, nc, br)
		})
		h.url.Host = proxy.Addr
		tr := h.open(t, keepalive.WithTLSConfig(insecure()))
		used := ask(t, h, tr, "1")
		_, err := io.WriteString(<-raw, injected)
		require.NoError(t, err)
		arrived(t, used)
		ask(t, h, tr, "2")
		require.Zero(t, tr.Stats().Retries)
		require.Equal(t, uint64(2), tr.Stats().Opened)
	})
}

// insecure is for servers with certificates that differ.
func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// TestProxyUpgrade: a connection that has been handed over is the user's
// through a proxy, too.
func TestProxyUpgrade(t *testing.T) {
	allHops(t, func(x *faultserver.Exchange) {
		nc, br := x.Take()
		x.Write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\nhello ")
		_, _ = io.Copy(nc, br)
	}, func(t *testing.T, h hops) {
		tr := h.open(t)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.target, nil)
		require.NoError(t, err)
		req.Header = http.Header{"Connection": {"upgrade"}, "Upgrade": {"echo"}}
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		rw, ok := resp.Body.(io.ReadWriteCloser)
		require.True(t, ok)
		_, err = io.WriteString(rw, "echo")
		require.NoError(t, err)
		b := make([]byte, len("hello echo"))
		_, err = io.ReadFull(rw, b)
		require.NoError(t, err)
		require.Equal(t, "hello echo", string(b))
		require.NoError(t, rw.Close())
	})
}

// failing is a proxy that does what script says; what the error has to be.
type failing struct {
	name   string
	scheme string // of the proxy
	target string // its scheme; https if empty
	script func(*faultserver.Exchange)
	accept func(net.Conn)
	opts   []keepalive.Option
	phase  keepalive.Phase
	is     error
	says   string
}

func say(raw string) func(*faultserver.Exchange) {
	return func(x *faultserver.Exchange) {
		x.Write(raw)
		x.AwaitClose()
	}
}

func failures() []failing {
	soon := []keepalive.Option{
		keepalive.WithProxyConnectTimeout(50 * time.Millisecond),
		keepalive.WithTLSHandshakeTimeout(50 * time.Millisecond),
	}
	hook := func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
		_, err := io.ReadAll(resp.Body)
		return err
	}
	silent := func(nc net.Conn) { _, _ = io.Copy(io.Discard, nc) }
	refuse := func(context.Context, string, string) (net.Conn, error) { return nil, errRefused }
	block := func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	const connected = "HTTP/1.1 200 OK\r\n\r\n"
	return []failing{
		{
			name: "hangs", script: (*faultserver.Exchange).AwaitClose,
			opts: soon, phase: keepalive.PhaseProxy, is: keepalive.ErrProxyConnectTimeout,
		},
		{
			name: "hangs in the head", script: say("HTTP/1.1 200 OK\r\nX: "),
			opts: soon, phase: keepalive.PhaseProxy, is: keepalive.ErrProxyConnectTimeout,
		},
		{
			name: "dribbles", script: func(x *faultserver.Exchange) {
				x.Write("HTTP/1.1 200 OK\r\n")
				for x.Pause(5 * time.Millisecond) {
					if _, err := io.WriteString(x.Conn, "X: y\r\n"); err != nil {
						x.Close()
						return
					}
				}
			}, opts: soon, phase: keepalive.PhaseProxy, is: keepalive.ErrProxyConnectTimeout,
		},
		{
			name: "hangs in the body", script: say("HTTP/1.1 403 Forbidden\r\nContent-Length: 10\r\n\r\nhalf"),
			opts:  append([]keepalive.Option{keepalive.WithOnProxyConnectResponse(hook)}, soon...),
			phase: keepalive.PhaseProxy, is: keepalive.ErrProxyConnectTimeout,
		},
		{
			name: "SOCKS hangs", scheme: "socks5", target: "http", accept: silent,
			opts: soon, phase: keepalive.PhaseProxy, is: keepalive.ErrProxyConnectTimeout,
		},
		{
			name: "TLS hangs", scheme: "https", accept: silent,
			opts: soon, phase: keepalive.PhaseTLS, is: keepalive.ErrTLSHandshakeTimeout, says: "proxyconnect",
		},
		{
			name: "TLS hangs, forwarding", scheme: "https", target: "http", accept: silent,
			opts: soon, phase: keepalive.PhaseTLS, is: keepalive.ErrTLSHandshakeTimeout, says: "proxyconnect",
		},
		{
			name: "not TLS", scheme: "https", accept: func(nc net.Conn) {
				_, _ = io.WriteString(nc, "HTTP/1.1 400 Bad Request\r\n\r\n")
				silent(nc)
			}, phase: keepalive.PhaseTLS, is: http.ErrSchemeMismatch, says: "proxyconnect",
		},
		{
			name: "dial hangs", opts: []keepalive.Option{keepalive.WithDialContext(block), keepalive.WithDialTimeout(time.Millisecond)},
			phase: keepalive.PhaseDial, is: keepalive.ErrDialTimeout, says: "proxyconnect",
		},
		{
			name: "dial fails", target: "http", opts: []keepalive.Option{keepalive.WithDialContext(refuse)},
			phase: keepalive.PhaseDial, is: errRefused, says: "proxyconnect tcp: refused",
		},
		{
			name: "403", script: say("HTTP/1.1 403 Forbidden\r\n\r\n"),
			phase: keepalive.PhaseProxy, says: ": Forbidden",
		},
		{
			name: "407", script: say("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 6\r\n\r\nthe me"),
			phase: keepalive.PhaseProxy, says: ": Proxy Authentication Required",
		},
		{
			name: "closes", script: (*faultserver.Exchange).Close,
			phase: keepalive.PhaseProxy, is: io.ErrUnexpectedEOF, says: "the proxy closed the connection without an answer",
		},
		{
			name: "garbage", script: say("what?\r\n"),
			phase: keepalive.PhaseProxy, is: keepalive.ErrMalformedResponse,
		},
		{
			name: "glued bytes", script: say(connected + "\x16"),
			phase: keepalive.PhaseProxy, is: keepalive.ErrMalformedResponse, says: "more than its answer",
		},
		{
			name: "large head", script: say("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1000)),
			opts:  []keepalive.Option{keepalive.WithMaxResponseHeaderBytes(1000)},
			phase: keepalive.PhaseProxy, is: keepalive.ErrResponseTooLarge,
		},
		{
			name: "large interim answers", script: say(strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("x", 400)+"\r\n\r\n", 3)),
			opts:  append([]keepalive.Option{keepalive.WithMaxResponseHeaderBytes(1000)}, soon...),
			phase: keepalive.PhaseProxy, is: keepalive.ErrResponseTooLarge,
		},
		{
			name: "endless interim answers", script: say(strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 102)),
			phase: keepalive.PhaseProxy, is: keepalive.ErrResponseTooLarge,
		},
		{
			name: "TLS of the target hangs", script: say(connected),
			opts: soon, phase: keepalive.PhaseTLS, is: keepalive.ErrTLSHandshakeTimeout,
		},
		{
			name: "SOCKS password refused", scheme: "socks5", accept: func(nc net.Conn) {
				_, _ = nc.Write([]byte{5, 2, 1, 1})
				silent(nc)
			}, phase: keepalive.PhaseProxy, says: "authentication failed",
		},
		{
			name: "SOCKS unreachable", scheme: "socks5h", target: "http", accept: func(nc net.Conn) {
				_, _ = nc.Write([]byte{5, 0, 5, 4, 0, 1, 0, 0, 0, 0, 0, 0})
				silent(nc)
			}, phase: keepalive.PhaseProxy, says: "host unreachable",
		},
	}
}

var errRefused = errors.New("refused")

// TestProxyFailures: each failure has its phase, its cause, a Timeout that is
// right, and the names of proxy and target, but no credentials; the connection
// is closed.
func TestProxyFailures(t *testing.T) {
	for _, tt := range failures() {
		t.Run(tt.name, func(t *testing.T) {
			if tt.scheme == "" {
				tt.scheme = "http"
			}
			if tt.target == "" {
				tt.target = "https"
			}
			var onAccept []faultserver.Option
			if tt.accept != nil {
				onAccept = append(onAccept, faultserver.WithOnAccept(func(_ int, nc net.Conn) bool {
					tt.accept(nc)
					return false
				}))
			}
			srv := faultserver.New(t, tt.script, onAccept...)
			u := &url.URL{Scheme: tt.scheme, Host: srv.Addr, User: url.UserPassword(proxyUser, proxyPassword)}
			tr := open(t, append([]keepalive.Option{keepalive.WithProxy(http.ProxyURL(u)), keepalive.WithTLSConfig(insecure())}, tt.opts...)...)

			_, err := tr.Client().Do(mustRequest(t, tt.target+"://target.example/path"))
			var e *keepalive.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, tt.phase, e.Phase, "%v", err)
			if tt.is != nil {
				require.ErrorIs(t, err, tt.is)
			}
			require.Contains(t, err.Error(), tt.says)
			timeout := tt.is != nil && strings.Contains(tt.is.Error(), "timeout")
			require.Equal(t, timeout, e.Timeout(), "%v", err)
			port := map[string]string{"http": "80", "https": "443"}[tt.target]
			require.Equal(t, tt.target+"://target.example:"+port+" via "+tt.scheme+"://"+srv.Addr, e.Host)
			noCredentials(t, err.Error())
			if strings.HasPrefix(tt.says, "proxyconnect") {
				var op *net.OpError
				require.ErrorAs(t, err, &op)
				require.Equal(t, "proxyconnect", op.Op)
			}
			srv.WaitOpen(0)
			require.Equal(t, uint64(1), tr.Stats().DialErrors)
		})
	}
}

func noCredentials(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{proxyUser, proxyPassword, "dXNyLW5hbWU6"} { // base64 of the user
		require.NotContains(t, text, secret)
	}
}

func mustRequest(t *testing.T, u string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
	require.NoError(t, err)
	return req
}

// TestProxyCancel: a request that is cancelled while the proxy connects returns
// at once. One dial for the host may go on; Close ends it.
func TestProxyCancel(t *testing.T) {
	for _, scheme := range []string{"http", "socks5"} {
		t.Run(scheme, func(t *testing.T) {
			h := newHops(t, "http", "https", echoID)
			srv := faultserver.New(t, nil, faultserver.WithOnAccept(func(_ int, nc net.Conn) bool {
				_, _ = io.Copy(io.Discard, nc)
				return false
			}))
			h.url = &url.URL{Scheme: scheme, Host: srv.Addr}
			tr := h.open(t, keepalive.WithProtocols(http1Only())) // else they wait for one dial
			const requests = 10
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			errs := make(chan error, requests)
			for range requests {
				req := mustRequest(t, h.target).WithContext(ctx)
				go func() {
					_, err := tr.RoundTrip(req)
					errs <- err
				}()
			}
			srv.WaitAccepted(requests)
			cancel()
			for range requests {
				err := <-errs
				require.ErrorIs(t, err, context.Canceled)
				var e *keepalive.Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, keepalive.PhaseDial, e.Phase)
			}
			srv.WaitOpen(1)
			eventually(t, func() bool { return tr.Stats().Dialing == 1 })
			require.NoError(t, tr.Close())
			srv.WaitOpen(0)
		})
	}
}

// TestProxyLimits: WithMaxConnsPerHost holds for the connections that requests
// may share: those to a proxy that passes requests on, whatever their target,
// and those to one target through a tunnel.
func TestProxyLimits(t *testing.T) {
	echo := func(x *faultserver.Exchange) {
		x.Pause(time.Millisecond)
		echoID(x)
	}
	t.Run("forwarded", func(t *testing.T) {
		srv := faultserver.New(t, echo)
		tr := open(t, keepalive.WithMaxConnsPerHost(2), keepalive.WithProxy(http.ProxyURL(&url.URL{Scheme: "http", Host: srv.Addr})))
		crew(t, 60, 12, func(_, i int) error {
			return question{method: http.MethodGet, url: fmt.Sprintf("http://host%d.example/", i%6), id: fmt.Sprint(i)}.own(t.Context(), tr)
		})
		require.LessOrEqual(t, srv.MaxOpen(), 2)
		require.Equal(t, 60, srv.Requests())
	})
	allHops(t, echo, func(t *testing.T, h hops) {
		tr := h.open(t, keepalive.WithMaxConnsPerHost(2))
		crew(t, 60, 12, func(_, i int) error {
			return question{method: http.MethodGet, url: h.target, id: fmt.Sprint(i)}.own(t.Context(), tr)
		})
		require.LessOrEqual(t, h.proxy.MaxOpen(), 2)
		require.Equal(t, 60, h.origin.Requests())
	})
}

// TestProxyIdentities: credentials, and WithPoolKey, keep connections apart.
// Stats adds up those that may not be told apart.
func TestProxyIdentities(t *testing.T) {
	srv := faultserver.New(t, func(x *faultserver.Exchange) {
		_, _ = x.ReadBody()
		x.Reply(http.StatusOK, x.Request.Header.Get("Proxy-Authorization"))
	})
	tr := open(t, keepalive.WithPoolKey(func(r *http.Request) string { return r.Header.Get("X-Worker") }),
		keepalive.WithProxy(func(r *http.Request) (*url.URL, error) {
			u := &url.URL{Scheme: "http", Host: srv.Addr}
			if id := r.Header.Get("X-Request-Id"); id != "" {
				u.User = url.UserPassword(proxyUser, id)
			}
			return u, nil
		}))
	for range 3 {
		seen := map[string]bool{}
		for _, q := range []question{{id: ""}, {id: "1"}, {id: "2"}, {id: "2", worker: "w"}} {
			q.method, q.url = http.MethodGet, "http://a.example/"
			_, auth, err := q.ask(t.Context(), tr)
			require.NoError(t, err)
			seen[auth] = true
		}
		require.Len(t, seen, 3)
	}
	require.Equal(t, 4, srv.Accepted())
	s := tr.Stats()
	name := "http via http://" + srv.Addr
	require.Len(t, s.Hosts, 2)
	require.Equal(t, 3, s.Hosts[name].Idle)
	require.Equal(t, uint64(9), s.Hosts[name].Requests)
	require.Equal(t, 1, s.Hosts[name+" (w)"].Idle)
	require.Equal(t, 4, s.Idle)
	noCredentials(t, fmt.Sprintf("%+v", s))
}

// TestProxyFunction: it is asked once for a request, also for one that is
// repeated, and what it returns is checked before anything is dialed.
func TestProxyFunction(t *testing.T) {
	srv := faultserver.New(t, func(x *faultserver.Exchange) {
		if x.ConnIndex == 0 && x.ReqIndex == 1 {
			x.Close()
			return
		}
		x.Reply(http.StatusOK, "")
	})
	var calls atomic.Int32
	tr := open(t, keepalive.WithProxy(func(*http.Request) (*url.URL, error) {
		calls.Add(1)
		return &url.URL{Scheme: "http", Host: srv.Addr}, nil
	}))
	for range 2 {
		_, _, err := question{method: http.MethodGet, url: "http://a.example/"}.ask(t.Context(), tr)
		require.NoError(t, err)
	}
	require.Equal(t, uint64(1), tr.Stats().Retries)
	require.Equal(t, int32(2), calls.Load())

	for text, want := range map[string]string{
		"ftp://p.example":              `unsupported proxy scheme "ftp"`,
		"SOCKS4://p.example":           `unsupported proxy scheme "socks4"`,
		"http://" + proxyUser + ":x@:": "no host in the proxy URL",
		"http:p.example":               "no host in the proxy URL",
		"http://:3128":                 "no host in the proxy URL",
	} {
		u, err := url.Parse(text)
		require.NoError(t, err)
		tr := open(t, keepalive.WithProxy(http.ProxyURL(u)))
		_, err = tr.RoundTrip(mustRequest(t, "http://a.example/"))
		require.ErrorContains(t, err, want)
		noCredentials(t, err.Error())
		require.Zero(t, tr.Stats().Dials)
	}

	tr = open(t, keepalive.WithProxy(func(*http.Request) (*url.URL, error) { return nil, errRefused }))
	_, err := tr.RoundTrip(mustRequest(t, srv.URL))
	require.ErrorIs(t, err, errRefused)
	require.Zero(t, tr.Stats().Dials)
}

// TestProxyURLThatDoesNotParse: a URL that was put together by hand may not be
// one at all. The error has nothing of it but what is wrong.
func TestProxyURLThatDoesNotParse(t *testing.T) {
	for _, host := range []string{"a b", "[::1", "h:port"} {
		u := &url.URL{Scheme: "http", Host: host, User: url.UserPassword(proxyUser, proxyPassword)}
		tr := open(t, keepalive.WithProxy(http.ProxyURL(u)))
		_, err := tr.RoundTrip(mustRequest(t, "http://a.example/"))
		var e *keepalive.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, keepalive.PhaseProxy, e.Phase)
		require.Equal(t, "http://a.example:80 via an invalid proxy", e.Host)
		noCredentials(t, err.Error())
	}
}

// TestProxyEnvironment: New reads it, once. The rules are those of net/http,
// whose own function cannot be tested here: it reads the environment once in
// the life of the process.
func TestProxyEnvironment(t *testing.T) {
	var dialed atomic.Value
	dial := keepalive.WithDialContext(func(_ context.Context, _, addr string) (net.Conn, error) {
		dialed.Store(addr)
		return nil, errRefused
	})
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "REQUEST_METHOD"} {
		t.Setenv(name, "")
	}
	t.Setenv("HTTP_PROXY", "http://"+proxyUser+":"+proxyPassword+"@plain.example:3128")
	t.Setenv("HTTPS_PROXY", "secure.example")
	t.Setenv("NO_PROXY", "direct.example,.sub.example:8080,192.0.2.0/24")
	env := open(t, dial)
	none := open(t, dial, keepalive.WithProxy(nil))
	source := open(t, keepalive.FromTransport(&http.Transport{}), dial)
	t.Setenv("REQUEST_METHOD", "GET")
	cgi := open(t, dial)
	t.Setenv("HTTP_PROXY", "http://late.example")
	t.Setenv("NO_PROXY", "")
	for _, tt := range []struct {
		tr           *keepalive.Transport
		target, want string
	}{
		{env, "http://a.example", "plain.example:3128"},
		{env, "https://a.example", "secure.example:80"},
		{env, "http://direct.example", "direct.example:80"},
		{env, "https://x.direct.example", "x.direct.example:443"},
		{env, "http://x.sub.example:8080", "x.sub.example:8080"},
		{env, "http://x.sub.example", "plain.example:3128"},
		{env, "http://192.0.2.7", "192.0.2.7:80"},
		{env, "http://localhost:81", "localhost:81"},
		{env, "http://127.0.0.2:81", "127.0.0.2:81"},
		{env, "http://[::1]:81", "[::1]:81"},
		{none, "http://a.example", "a.example:80"},
		{source, "https://a.example", "a.example:443"},
		{cgi, "https://a.example", "secure.example:80"},
	} {
		_, err := tt.tr.RoundTrip(mustRequest(t, tt.target))
		require.ErrorIs(t, err, errRefused)
		require.Equal(t, tt.want, dialed.Load(), tt.target)
		noCredentials(t, err.Error())
	}
	_, err := cgi.RoundTrip(mustRequest(t, "http://a.example"))
	require.ErrorContains(t, err, "CGI")
}

// TestProxyHooks: the functions around CONNECT see the context of the request,
// and a body that was kept is of no use and does no harm.
func TestProxyHooks(t *testing.T) {
	type ctxKey struct{}
	h := newHops(t, "http", "https", echoID)
	var refused atomic.Bool
	srv := faultserver.New(t, func(x *faultserver.Exchange) {
		if refused.Swap(true) {
			forwardTo(h.origin.Addr, x)
			return
		}
		x.Write("HTTP/1.1 403 Forbidden\r\nContent-Length: 10000\r\n\r\nbecause")
		x.AwaitClose()
	})
	h.url.Host = srv.Addr
	var kept io.ReadCloser
	tr := h.open(t, keepalive.WithProxyConnectHeader(func(ctx context.Context, u *url.URL, target string) (http.Header, error) {
		require.Equal(t, *h.url, *u)
		return http.Header{"X-Value": {fmt.Sprint(ctx.Value(ctxKey{}))}, "X-Target": {target}}, nil
	}), keepalive.WithOnProxyConnectResponse(func(ctx context.Context, u *url.URL, req *http.Request, resp *http.Response) error {
		require.Equal(t, *h.url, *u)
		require.Equal(t, "v", ctx.Value(ctxKey{}))
		require.Equal(t, []string{"v", "example.com:443"}, []string{req.Header.Get("X-Value"), req.Header.Get("X-Target")})
		if resp.StatusCode == http.StatusOK {
			require.Equal(t, http.NoBody, resp.Body)
		} else {
			kept = resp.Body
			because := make([]byte, 7)
			_, err := io.ReadFull(resp.Body, because)
			require.NoError(t, err)
			require.Equal(t, "because", string(because))
		}
		return nil
	}))
	req := mustRequest(t, h.target)
	req = req.WithContext(context.WithValue(req.Context(), ctxKey{}, "v"))
	_, err := tr.RoundTrip(req)
	require.ErrorContains(t, err, "Forbidden")
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	rest, err := io.ReadAll(kept)
	require.Error(t, err)
	require.Empty(t, rest)
}

// TestProxyTrace: the hooks of a dial through a tunnel, in their order.
func TestProxyTrace(t *testing.T) {
	h := newHops(t, "https", "https", echoID)
	tr := h.open(t)
	var events []string
	note := func(format string, args ...any) { events = append(events, fmt.Sprintf(format, args...)) }
	req := mustRequest(t, h.target)
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GetConn:           func(addr string) { note("GetConn %s", addr) },
		ConnectStart:      func(_, addr string) { note("ConnectStart %s", addr) },
		ConnectDone:       func(_, addr string, err error) { note("ConnectDone %s %v", addr, err) },
		TLSHandshakeStart: func() { note("TLSHandshakeStart") },
		TLSHandshakeDone: func(s tls.ConnectionState, err error) {
			note("TLSHandshakeDone %s %v", s.ServerName, err)
		},
		GotConn: func(i httptrace.GotConnInfo) { note("GotConn %v", i.Reused) },
	}))
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, []string{
		"GetConn " + h.proxy.Addr,
		"ConnectStart " + h.proxy.Addr, "ConnectDone " + h.proxy.Addr + " <nil>",
		"TLSHandshakeStart", "TLSHandshakeDone  <nil>",
		"TLSHandshakeStart", "TLSHandshakeDone example.com <nil>",
		"GotConn false",
	}, events)
	require.Equal(t, "example.com", resp.TLS.ServerName)
}
