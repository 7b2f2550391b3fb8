package difftest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"
)

// half sends a head and a part of the body, and no more.
func half(x *Exchange) {
	x.Body()
	x.Write(head + "Content-Length: 100000\r\n\r\nhalf")
	x.Hang()
}

// earlyCloses: Body.Close before the end.
func earlyCloses() (list []Scenario) {
	closeAfter := func(n int) func(*Client) {
		return func(c *Client) {
			name := c.next()
			req := c.Request("GET", "/", nil)
			resp := c.begin(req, name)
			if resp == nil {
				return
			}
			got, err := io.ReadFull(resp.Body, make([]byte, n))
			c.Note(name("read"), fmt.Sprint(got))
			c.Note(name("read error"), classes(err))
			c.noteEnd(req, resp, name)
			_, err = resp.Body.Read(make([]byte, 1))
			c.Note(name("read after close error"), classes(err))
			c.Get("/again")
		}
	}
	drained := []Difference{
		{"connections", "2", "1", "a short rest is read to keep the connection; net/http 1.26 closes it"},
		{"2 sent on", "a new connection", "a used connection", "for the same reason"},
	}
	small, large := sized(string(text(1000))), sized(string(text(4<<20)))
	return append(
		list,
		Scenario{Name: "close unread small", Serve: answerOnce(small), Run: closeAfter(0), Differs: drained},
		Scenario{Name: "close half read small", Serve: answerOnce(small), Run: closeAfter(500), Differs: drained},
		Scenario{Name: "close read but for EOF", Serve: answerOnce(small), Run: closeAfter(1000)},
		Scenario{Name: "close unread chunks", Serve: answerOnce(chunked("one", "two")), Run: closeAfter(0), Differs: drained},
		Scenario{Name: "close unread large", Serve: answerOnce(large), Run: closeAfter(0)},
		Scenario{Name: "close half read large", Serve: answerOnce(large), Run: closeAfter(100000)},
		Scenario{Name: "close unread no body", Serve: answerOnce(sized("")), Run: closeAfter(0)},
		Scenario{Name: "close while reading", Serve: half, Run: closeWhileReading},
	)
}

// ending makes a request end early: at once when the function that it returns
// is called, or soon.
type ending func(c *Client, r *http.Request) (end func())

func endings() map[string]ending {
	const soon = 300 * time.Millisecond
	until := func(ctx context.Context, c *Client, cancel func()) func() {
		return func() {
			select {
			case <-ctx.Done():
			case <-c.Server.done:
			}
			cancel()
		}
	}
	return map[string]ending{
		"context": func(_ *Client, r *http.Request) func() {
			ctx, cancel := context.WithCancel(r.Context())
			*r = *r.WithContext(ctx)
			return cancel
		},
		"cause": func(_ *Client, r *http.Request) func() {
			ctx, cancel := context.WithCancelCause(r.Context())
			*r = *r.WithContext(ctx)
			return func() { cancel(errCause) }
		},
		"channel": func(_ *Client, r *http.Request) func() {
			ch := make(chan struct{})
			r.Cancel = ch //nolint:staticcheck // SA1019: deprecated, but there
			return sync.OnceFunc(func() { close(ch) })
		},
		"deadline": func(c *Client, r *http.Request) func() {
			ctx, cancel := context.WithTimeout(r.Context(), soon)
			*r = *r.WithContext(ctx)
			return until(ctx, c, cancel)
		},
		"deadline with cause": func(c *Client, r *http.Request) func() {
			ctx, cancel := context.WithTimeoutCause(r.Context(), soon, errCause)
			*r = *r.WithContext(ctx)
			return until(ctx, c, cancel)
		},
	}
}

// doEnding is Do of a request that ends when it has arrived.
func (c *Client) doEnding(req *http.Request, with ending) {
	end, returned := with(c, req), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-c.Server.Arrived:
		case <-returned:
		}
		end()
	})
	c.Do(req)
	close(returned)
	wg.Wait()
}

// cancels: the context, or Request.Cancel, ends a request in each phase.
func cancels() (list []Scenario) {
	hang := func(x *Exchange) {
		x.Body()
		x.s.Arrived <- struct{}{}
		x.Hang()
	}
	for name, with := range endings() {
		var differs, inBody []Difference
		if name == "deadline with cause" {
			differs = []Difference{{
				"[12] error", "errCause error", "DeadlineExceeded Timeout() errCause error",
				"a deadline with a cause of its own is still a timeout; net/http returns the bare cause",
			}}
			inBody = slices.Clone(differs)
			inBody[0].Fact = "1 error"
		}
		list = append(list, Scenario{Name: "cancel awaiting the head, " + name, Differs: differs, Serve: hang, Run: func(c *Client) {
			c.doEnding(c.Request("GET", "/", nil), with)
			c.doEnding(c.Request("POST", "/", NewBody(reader(100)), length(100)), with)
		}}, Scenario{Name: "cancel while sending, " + name, Differs: differs, Serve: (*Exchange).stall, Run: func(c *Client) {
			c.doEnding(c.Request("POST", "/", NewBody(endless{})), with)
		}}, Scenario{Name: "cancel in the body, " + name, Differs: inBody, Serve: func(x *Exchange) {
			if x.Conn == 1 {
				half(x)
				return
			}
			x.Write(ok)
		}, Run: func(c *Client) {
			c.cancelInBody(with)
			c.Get("/again")
		}})
	}
	plain := endings()["context"]
	return append(list, Scenario{Name: "cancel while dialing", Only: "http", Setup: func(tr *http.Transport, s *Server) {
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			s.Arrived <- struct{}{}
			select {
			case <-ctx.Done():
			case <-s.done:
			}
			return nil, errors.New("never")
		}
	}, Run: func(c *Client) {
		c.doEnding(c.Request("POST", "/", NewBody(reader(10))), plain)
	}}, Scenario{Name: "cancel with the whole body there", Serve: answerOnce(sized("hello")), Run: func(c *Client) {
		name := c.next()
		req := c.Request("GET", "/", nil)
		cancel := plain(c, req)
		resp := c.begin(req, name)
		cancel()
		if resp == nil {
			return
		}
		body, err := io.ReadAll(resp.Body)
		c.Note(name("body after cancel"), fmt.Sprintf("%q %s", body, classes(err)))
		c.noteEnd(req, resp, name)
	}, Differs: []Difference{
		{"1 body after cancel", "*", `"hello" nil`, "a body that arrived whole stays readable"},
	}})
}

// stall reads nothing of the body until the scenario is over.
func (x *Exchange) stall() {
	x.over = true
	x.s.Arrived <- struct{}{}
	<-x.s.done
}

// endless is a body without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func (c *Client) cancelInBody(with ending) {
	name := c.next()
	req := c.Request("GET", "/", nil)
	end := with(c, req)
	resp, err := c.RT.RoundTrip(req)
	if err == nil {
		_, err = io.ReadFull(resp.Body, make([]byte, 4))
	}
	end()
	// A deadline may have passed before: it is the same error.
	if err == nil {
		_, err = io.ReadAll(resp.Body)
	}
	c.Note(name("error"), classes(err))
	if resp != nil {
		c.Note(name("close failed"), fmt.Sprint(resp.Body.Close() != nil))
	}
}

// timeouts: http.Client.Timeout, and the transport's own.
func timeouts() []Scenario {
	const soon = 200 * time.Millisecond
	via := func(c *Client) {
		hc := &http.Client{Transport: c.RT, Timeout: soon}
		for _, m := range []string{"GET", "POST"} {
			name := c.next()
			resp, err := hc.Do(c.Request(m, "/", strings.NewReader("x")))
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
			c.Note(name("error"), classes(err))
		}
	}
	block := func(tr *http.Transport, s *Server) {
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case <-ctx.Done():
			case <-s.done:
			}
			return nil, errors.New("never")
		}
	}
	return []Scenario{
		{Name: "Client.Timeout dialing", Setup: block, Run: via},
		{Name: "Client.Timeout awaiting the head", Serve: (*Exchange).Hang, Run: via},
		{Name: "Client.Timeout in the body", Serve: half, Run: via},
		{Name: "Client.Timeout not reached", Run: func(c *Client) {
			hc := &http.Client{Transport: c.RT, Timeout: patience}
			c.Via(hc, c.Request("POST", "/", NewBody(reader(10))))
			c.Via(hc, c.Request("GET", "/again", nil))
		}},
		{Name: "Client.Timeout while sending", Serve: (*Exchange).stall, Run: func(c *Client) {
			c.Via(&http.Client{Transport: c.RT, Timeout: soon}, c.Request("POST", "/", NewBody(endless{})))
		}},
		{Name: "ResponseHeaderTimeout", Serve: (*Exchange).Hang, Setup: func(tr *http.Transport, _ *Server) {
			tr.ResponseHeaderTimeout = soon
		}, Run: func(c *Client) {
			c.Get("/")
			c.Do(c.Request("POST", "/", NewBody(reader(10))))
		}},
		{Name: "TLSHandshakeTimeout", Only: "http", Setup: func(tr *http.Transport, _ *Server) {
			tr.TLSHandshakeTimeout = soon
		}, Run: func(c *Client) {
			// The server waits for a line, and says nothing.
			c.Do(c.RequestURL("POST", "https://"+c.Server.Addr, NewBody(reader(10))))
		}},
	}
}

// dials: how dials fail, and dial functions.
func dials() []Scenario {
	failing := func(err error) func(*http.Transport, *Server) {
		return func(tr *http.Transport, _ *Server) {
			tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, err }
		}
	}
	post := func(c *Client) {
		c.Do(c.Request("POST", "/", NewBody(reader(10))))
		c.Get("/")
	}
	return []Scenario{
		{Name: "dial refused", Run: func(c *Client) {
			ln := listen(c.T, "tcp", "127.0.0.1:0")
			_ = ln.Close()
			c.Do(c.RequestURL("POST", c.Server.Scheme+"://"+ln.Addr().String(), NewBody(reader(10))))
		}},
		{Name: "dial unknown host", Setup: failing(&net.OpError{
			Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "nosuch.invalid", IsNotFound: true},
		}), Run: post},
		{Name: "dial name timeout", Setup: failing(&net.DNSError{Err: "timeout", Name: "x", IsTimeout: true}), Run: post},
		{Name: "dial own error", Setup: failing(errBody), Run: post},
		{Name: "dial EOF", Setup: failing(io.EOF), Run: post},
		{Name: "dial no connection", Setup: failing(nil), Run: post},
		{Name: "dial unix", Run: post, Setup: func(tr *http.Transport, s *Server) {
			path := s.Unix()
			tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", path)
			}
		}},
		{Name: "DialTLSContext", Run: post, Setup: func(tr *http.Transport, s *Server) {
			tr.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS13} // not used
			tr.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				s.note("dialed TLS", network+" "+fmt.Sprint(addr == s.Addr))
				d := tls.Dialer{Config: s.ClientTLS()}
				return d.DialContext(ctx, network, addr)
			}
		}},
		{Name: "DialTLSContext without tls.Conn", Only: "http", Setup: func(tr *http.Transport, s *Server) {
			tr.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, network, addr)
			}
		}, Run: func(c *Client) {
			c.Do(c.RequestURL("GET", "https://"+c.Server.Addr+"/", nil))
			c.Do(c.RequestURL("GET", "https://"+c.Server.Addr+"/", nil))
		}},
		{Name: "wrapped connection", Run: post, Setup: func(tr *http.Transport, _ *Server) {
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				var d net.Dialer
				nc, err := d.DialContext(ctx, network, addr)
				return wrapped{nc}, err
			}
		}},
	}
}

// wrapped hides the socket of a connection.
type wrapped struct{ net.Conn }

// handshakes: TLS that fails, and the wrong protocol on a port.
func handshakes() []Scenario {
	post := func(c *Client) { c.Do(c.Request("POST", "/", NewBody(reader(10)))) }
	edit := func(f func(*tls.Config)) func(*http.Transport, *Server) {
		return func(tr *http.Transport, _ *Server) { f(tr.TLSClientConfig) }
	}
	return []Scenario{
		{Name: "tls unknown authority", Only: "https", Run: post, Setup: edit(func(c *tls.Config) { c.RootCAs = x509.NewCertPool() })},
		{Name: "tls wrong name", Only: "https", Run: post, Setup: edit(func(c *tls.Config) { c.ServerName = "wrong.invalid" })},
		{Name: "tls not verified", Only: "https", Run: post, Setup: edit(func(c *tls.Config) {
			c.RootCAs, c.InsecureSkipVerify = nil, true
		})},
		{Name: "tls refused by us", Only: "https", Run: post, Setup: edit(func(c *tls.Config) {
			c.VerifyConnection = func(tls.ConnectionState) error { return errBody }
		})},
		{Name: "tls 1.2", Only: "https", Run: post, Setup: edit(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 })},
		{Name: "tls to a plain port", Only: "http", Run: func(c *Client) {
			ts := httptest.NewUnstartedServer(http.NotFoundHandler())
			ts.Config.ErrorLog = quiet()
			ts.Start()
			defer ts.Close()
			c.Do(c.RequestURL("POST", strings.Replace(ts.URL, "http:", "https:", 1), NewBody(reader(10))))
		}},
		{Name: "plain to a tls port", Only: "https", Run: func(c *Client) {
			ts := httptest.NewUnstartedServer(http.NotFoundHandler())
			ts.Config.ErrorLog = quiet()
			ts.StartTLS()
			defer ts.Close()
			c.Do(c.RequestURL("GET", strings.Replace(ts.URL, "https:", "http:", 1), nil))
		}},
	}
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// limits: MaxConnsPerHost and the size of a head.
func limits() []Scenario {
	return []Scenario{
		{Name: "MaxConnsPerHost", Setup: func(tr *http.Transport, _ *Server) { tr.MaxConnsPerHost = 1 }, Serve: func(x *Exchange) {
			x.Body()
			if x.Req.URL.Path == "/held" {
				x.Write(sized(string(text(1 << 20))))
				return
			}
			x.Write(ok)
		}, Run: func(c *Client) {
			held := c.next()
			req := c.Request("GET", "/held", nil)
			resp := c.begin(req, held)
			if resp == nil {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			c.Get("/waits", func(r *http.Request) { *r = *r.WithContext(ctx) })
			waits := make(chan error)
			go func() {
				resp, err := c.RT.RoundTrip(c.Request("GET", "/queued", nil))
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				waits <- err
			}()
			n, err := io.Copy(io.Discard, resp.Body)
			c.Note("held", fmt.Sprint(n, classes(err)))
			_ = resp.Body.Close()
			c.Note("queued error", classes(<-waits))
			c.Get("/last")
		}},
		{
			Name: "response head too large", Serve: answer(head + "X: " + string(text(20000)) + "\r\nContent-Length: 2\r\n\r\nok"),
			Setup: func(tr *http.Transport, _ *Server) { tr.MaxResponseHeaderBytes = 1000 },
		},
	}
}

// closeWhileReading closes a body of which some has been read, while another
// read waits for more.
func closeWhileReading(c *Client) {
	name := c.next()
	resp := c.begin(c.Request("GET", "/", nil), name)
	if resp == nil {
		return
	}
	reading, done := make(chan struct{}), make(chan error)
	go func() {
		_, err := io.ReadFull(resp.Body, make([]byte, 4))
		close(reading)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
		}
		done <- err
	}()
	<-reading
	c.Note(name("close error"), classes(resp.Body.Close()))
	c.Note(name("read failed"), fmt.Sprint(<-done != nil))
}
