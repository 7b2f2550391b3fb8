package keepalive_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/difftest"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// These are scenarios for both transports that difftest's own collection does
// not have: what HTTP means rather than how it fails.

// TestSemanticsSideBySide runs them.
func TestSemanticsSideBySide(t *testing.T) {
	t.Parallel()
	for _, list := range [][]difftest.Scenario{expectScenarios(), interimScenarios(), trailerScenarios(), clientScenarios(), closeScenarios()} {
		for _, s := range list {
			for _, road := range s.Roads() {
				t.Run(s.Name+"/"+road.Name, func(t *testing.T) {
					t.Parallel()
					compare(t, s, road, migrated)
				})
			}
		}
	}
}

const (
	okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	chunks   = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
)

func expecting(r *http.Request) { r.Header.Set("Expect", "100-continue") }

func body1000() io.Reader { return difftest.NewBody(strings.NewReader(strings.Repeat("b", 1000))) }

// expectScenarios: 100-continue where the server is in no hurry, or in too
// much of one.
func expectScenarios() []difftest.Scenario {
	patient := func(tr *http.Transport, _ *difftest.Server) { tr.ExpectContinueTimeout = 10 * time.Second }
	post := func(c *difftest.Client) {
		c.Do(c.Request("POST", "/", body1000(), expecting))
		c.Get("/again")
	}
	// script writes before, reads the body and writes after, for a request that
	// asks; others are answered.
	script := func(before, after string) func(*difftest.Exchange) {
		return func(x *difftest.Exchange) {
			if x.Req.Header.Get("Expect") == "" {
				x.Body()
				x.Write(okAnswer)
				return
			}
			if before != "" {
				x.Write(before)
			}
			x.Body()
			x.Write(after)
		}
	}
	const why = "after a final answer the body is not sent; the connection closes instead"
	unsent := []difftest.Difference{
		{Fact: "1 sent body", NetHTTP: "*", Ours: "cut short", Why: why},
		{Fact: "1 sent trailer", NetHTTP: "*", Ours: "*", Why: why},
		{Fact: "2 sent on", NetHTTP: "*", Ours: "a new connection", Why: why},
		{Fact: "connections", NetHTTP: "*", Ours: "2", Why: why},
	}
	const goOn = "HTTP/1.1 100 Continue\r\n\r\n"
	return []difftest.Scenario{
		{Name: "100 twice", Setup: patient, Serve: script(goOn+goOn, okAnswer), Run: post},
		{Name: "103, then 100", Setup: patient, Serve: script("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"+goOn, okAnswer), Run: post},
		{Name: "100 behind the body", Setup: func(tr *http.Transport, _ *difftest.Server) {
			tr.ExpectContinueTimeout = time.Millisecond
		}, Serve: script("", goOn+okAnswer), Run: post},
		{Name: "100, then an error", Setup: patient, Serve: script(goOn, "HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno"), Run: post},
		{Name: "200 at once", Setup: patient, Serve: script(okAnswer, ""), Run: post, Differs: unsent},
		{
			Name: "200 at once, and close", Setup: patient, Run: post,
			Serve: script("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", ""),
			Differs: []difftest.Difference{
				{Fact: "1 sent body", NetHTTP: "*", Ours: "cut short", Why: why},
				{Fact: "1 sent trailer", NetHTTP: "*", Ours: "*", Why: why},
			},
		},
		{Name: "417 without end", Setup: patient, Serve: func(x *difftest.Exchange) {
			if x.Req.Header.Get("Expect") == "" {
				x.Body()
			}
			x.Write("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno")
		}, Run: post, Differs: []difftest.Difference{
			{Fact: "1 sent *", NetHTTP: "*", Ours: "*", Why: "417 is repeated once without Expect"},
			{Fact: "2 sent on", NetHTTP: "*", Ours: "a used connection", Why: "that of the repeated request"},
			{Fact: "connections", NetHTTP: "*", Ours: "2", Why: "the first body was not sent"},
		}},
	}
}

// interimScenarios: more 1xx than one thinks of.
func interimScenarios() (list []difftest.Scenario) {
	const hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
	for _, n := range []int{1, 5, 50, 150} {
		serve := func(x *difftest.Exchange) {
			x.Body()
			if x.Req.URL.Path == "/" {
				x.Write(strings.Repeat(hint, n))
			}
			x.Write(okAnswer)
		}
		if n <= 100 { // unheard, more are refused
			list = append(list, difftest.Scenario{Name: fmt.Sprint(n, " interims"), Serve: serve, Run: func(c *difftest.Client) {
				c.Get("/")
				c.Get("/again")
			}})
		}
		list = append(list, difftest.Scenario{Name: fmt.Sprint(n, " interims watched"), Serve: serve, Run: func(c *difftest.Client) {
			var got []string
			trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				got = append(got, fmt.Sprint(code, h))
				return nil
			}}
			c.Get("/", func(r *http.Request) { *r = *r.WithContext(httptrace.WithClientTrace(r.Context(), trace)) })
			c.Note("heard", strings.Join(got, ";"))
			c.Get("/again")
		}})
	}
	return list
}

// trailerScenarios: in answers of odd forms, and in requests that wait.
func trailerScenarios() (list []difftest.Scenario) {
	for _, r := range []struct{ name, announced, fields string }{
		{"lower case", "Trailer: x-end\r\n", "x-end: 1\r\n"},
		{"repeated", "Trailer: X-End\r\n", "X-End: 1\r\nX-End: 2\r\n"},
		{"announced in two lines", "Trailer: X-A\r\nTrailer: X-B, X-C\r\n", "X-C: 3\r\nX-A: 1\r\n"},
		{"empty value", "Trailer: X-End\r\n", "X-End:\r\n"},
		{"other than announced", "Trailer: X-End\r\n", "X-Other: 1\r\n"},
		{"same as a header", "X-End: head\r\nTrailer: X-End\r\n", "X-End: trailer\r\n"},
		{"large", "Trailer: X-End\r\n", "X-End: " + strings.Repeat("t", 3000) + "\r\n"},
	} {
		raw := chunks + r.announced + "\r\n2\r\nok\r\n0\r\n" + r.fields + "\r\n"
		list = append(list, difftest.Scenario{Name: "trailer " + r.name, Serve: func(x *difftest.Exchange) {
			x.Body()
			x.Write(raw)
		}, Run: func(c *difftest.Client) {
			c.Get("/")
			c.Get("/again")
		}})
	}
	return append(list, difftest.Scenario{
		Name: "trailer of a request that waits", Setup: func(tr *http.Transport, _ *difftest.Server) {
			tr.ExpectContinueTimeout = 10 * time.Second
		}, Serve: func(x *difftest.Exchange) {
			x.Write("HTTP/1.1 100 Continue\r\n\r\n")
			x.Body()
			x.Write(chunks + "Trailer: X-End\r\n\r\n2\r\nok\r\n0\r\nX-End: 1\r\n\r\n")
		}, Run: func(c *difftest.Client) {
			c.Do(c.Request("POST", "/", body1000(), expecting, func(r *http.Request) {
				r.Trailer = http.Header{"X-Sum": {"1"}, "X-Also": {"2", "3"}}
			}))
		},
	})
}

// clientScenarios: what http.Client makes of a URL and of a redirect.
func clientScenarios() (list []difftest.Scenario) {
	via := func(edit func(*http.Request)) func(*difftest.Client) {
		return func(c *difftest.Client) {
			hc := &http.Client{Transport: c.RT}
			c.Via(hc, c.Request("GET", "/", nil, edit))
			c.Via(hc, c.Request("POST", "/moved", body1000(), edit))
		}
	}
	for _, u := range []struct {
		name string
		user *url.Userinfo
	}{
		{"name only", url.User("me")},
		{"empty password", url.UserPassword("me", "")},
		{"odd letters", url.UserPassword("m:e@", "p/ä %")},
		{"empty", url.UserPassword("", "")},
	} {
		list = append(list, difftest.Scenario{Name: "user " + u.name, Run: via(func(r *http.Request) { r.URL.User = u.user })})
	}
	moved := func(where func(*difftest.Exchange) string) func(*difftest.Exchange) {
		return func(x *difftest.Exchange) {
			x.Body()
			if x.Req.URL.Path == "/there" {
				x.Write(okAnswer)
				return
			}
			x.Write("HTTP/1.1 307 There\r\nLocation: " + where(x) + "\r\nContent-Length: 0\r\n\r\n")
		}
	}
	relative := func(*difftest.Exchange) string { return "/there" }
	withAll := func(r *http.Request) {
		r.Host, r.URL.User = "other.example", url.UserPassword("me", "secret")
		r.Header.Set("Cookie", "a=b")
	}
	return append(
		list,
		difftest.Scenario{Name: "user and authorization", Run: via(func(r *http.Request) {
			r.URL.User = url.UserPassword("me", "secret")
			r.Header.Set("Authorization", "Bearer x")
		})},
		difftest.Scenario{Name: "host and user, redirected", Serve: moved(relative), Run: func(c *difftest.Client) {
			hc := &http.Client{Transport: c.RT}
			c.Via(hc, c.Request("GET", "/", nil, withAll))
			c.Via(hc, c.Request("PUT", "/", strings.NewReader("body"), withAll))
		}},
	)
}

// closeScenarios: Request.Close among requests that keep the connection.
func closeScenarios() (list []difftest.Scenario) {
	for _, r := range []struct{ name, answer string }{
		{"length", okAnswer},
		{"server insists", "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"},
		{"chunks", chunks + "\r\n2\r\nok\r\n0\r\n\r\n"},
		{"no body", "HTTP/1.1 204 No Content\r\n\r\n"},
	} {
		list = append(list, difftest.Scenario{Name: "Request.Close, " + r.name, Serve: func(x *difftest.Exchange) {
			x.Body()
			x.Write(r.answer)
		}, Run: func(c *difftest.Client) {
			last := func(r *http.Request) { r.Close = true }
			c.Get("/1")
			c.Get("/2", last)
			c.Do(c.Request("POST", "/3", body1000()))
			c.Do(c.Request("POST", "/4", body1000(), last))
			c.Do(c.Request("PUT", "/5", body1000(), last, expecting))
			c.Get("/6")
		}})
	}
	return list
}

// TestIPv6 is with real addresses: those that a dial function would hide.
func TestIPv6(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp6", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here: ", err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Host)
	}))
	_ = srv.Listener.Close()
	srv.Listener = l
	srv.StartTLS()
	defer srv.Close()
	plain, err := new(net.ListenConfig).Listen(t.Context(), "tcp6", "[::1]:0")
	require.NoError(t, err)
	also := &httptest.Server{Listener: plain, Config: &http.Server{Handler: srv.Config.Handler, ReadHeaderTimeout: time.Minute}}
	also.Start()
	defer also.Close()
	_, plainPort, err := net.SplitHostPort(plain.Addr().String())
	require.NoError(t, err)
	std, ok := srv.Client().Transport.(*http.Transport)
	require.True(t, ok)
	std.ForceAttemptHTTP2 = false
	tr := open(t, keepalive.WithTLSConfig(std.TLSClientConfig))
	for _, tt := range []struct{ url, host string }{
		{"http://[::1]:" + plainPort, "[::1]:" + plainPort},
		{"http://[0:0::0:1]:" + plainPort, "[0:0::0:1]:" + plainPort},
		{"http://[::1%25" + loopback(t) + "]:" + plainPort, "[::1]:" + plainPort},
		{"https://[::1]:" + port, "[::1]:" + port},
	} {
		for range 2 {
			for _, rt := range []http.RoundTripper{std, tr} {
				status, got, err := question{url: tt.url}.ask(t.Context(), rt)
				require.NoError(t, err, "%T %s", rt, tt.url)
				require.Equal(t, http.StatusOK, status)
				require.Equal(t, tt.host, got, "%T: the Host line of %s", rt, tt.url)
			}
		}
	}
	require.EqualValues(t, 4, tr.Stats().Reuses, "%+v", tr.Stats())
}

// loopback returns the name of the loopback interface.
func loopback(t *testing.T) string {
	t.Helper()
	list, err := net.Interfaces()
	require.NoError(t, err)
	for _, i := range list {
		if i.Flags&net.FlagLoopback != 0 {
			return i.Name
		}
	}
	require.FailNow(t, "no loopback interface")
	return ""
}

// TestUnixSocket: by a dial function, with all that a TCP connection has.
func TestUnixSocket(t *testing.T) {
	srv := faultserver.NewUnix(t, echoID)
	tr := open(t, keepalive.WithDialContext(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", srv.Addr)
	}))
	for i := range 5 {
		require.NoError(t, streamed(srv.URL, fmt.Sprint(i)).own(t.Context(), tr))
	}
	require.Equal(t, 1, srv.Accepted())
	srv.CloseIdle()
	eventually(t, func() bool { return tr.Stats().Open == 0 }, "the watcher hears it")
	require.Equal(t, map[keepalive.CloseReason]uint64{keepalive.ClosePeerClosed: 1}, tr.Stats().Closed)
	require.NoError(t, streamed(srv.URL, "again").own(t.Context(), tr))
	require.Equal(t, 2, srv.Accepted())
}

// TestTrailerWithoutBody: a request that has no body has no trailer either.
// With net/http it never ends over HTTP/2.
func TestTrailerWithoutBody(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	tr := open(t, keepalive.WithTLSConfig(insecure()))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
	require.NoError(t, err)
	req.Trailer = http.Header{"X-A": {"1"}}
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "HTTP/2.0", string(body))
	require.Equal(t, http.Header{"X-A": {"1"}}, req.Trailer)
}

// TestHTTP2OnAConnOfTheUser: HTTP/2 needs no *tls.Conn, only a connection that
// says what was negotiated.
func TestHTTP2OnAConnOfTheUser(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	cfg := insecure()
	cfg.NextProtos = []string{"h2"}
	tr := open(t, keepalive.WithDialTLSContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		tc, _ := nc.(*tls.Conn)
		return struct{ *tls.Conn }{tc}, nil
	}))
	resp, err := tr.Client().Get(srv.URL)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "HTTP/2.0", string(body))
	require.NotNil(t, resp.TLS)
}
