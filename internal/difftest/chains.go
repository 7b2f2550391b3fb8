package difftest

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// tracer notes the events of a request, those of dialing, of writing and of
// reading apart: they are not in one order, as a server may answer early.
type tracer struct {
	mu                  sync.Mutex
	dial, write, answer []string
	wrote               chan struct{} // has a value for each WroteRequest
}

func newTracer() *tracer { return &tracer{wrote: make(chan struct{}, 10)} }

func (t *tracer) add(list *[]string, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	*list = append(*list, fmt.Sprintf(format, args...))
}

func (t *tracer) hooks() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn: func(addr string) { t.add(&t.dial, "GetConn %s", addr) },
		GotConn: func(i httptrace.GotConnInfo) {
			t.add(&t.dial, "GotConn conn=%v reused=%v idle=%v time=%v", i.Conn != nil, i.Reused, i.WasIdle, i.IdleTime > 0)
		},
		DNSStart:     func(i httptrace.DNSStartInfo) { t.add(&t.dial, "DNSStart %s", i.Host) },
		DNSDone:      func(i httptrace.DNSDoneInfo) { t.add(&t.dial, "DNSDone %v", i.Err) },
		ConnectStart: func(n, addr string) { t.add(&t.dial, "ConnectStart %s %s", n, addr) },
		ConnectDone:  func(n, addr string, err error) { t.add(&t.dial, "ConnectDone %s %s %v", n, addr, err) },
		TLSHandshakeStart: func() {
			t.add(&t.dial, "TLSHandshakeStart")
		},
		TLSHandshakeDone: func(s tls.ConnectionState, err error) {
			t.add(&t.dial, "TLSHandshakeDone %s %v", describeTLS(&s), err)
		},
		WroteHeaderField: func(k string, v []string) { t.add(&t.write, "WroteHeaderField %s %q", k, v) },
		WroteHeaders:     func() { t.add(&t.write, "WroteHeaders") },
		Wait100Continue:  func() { t.add(&t.write, "Wait100Continue") },
		WroteRequest: func(i httptrace.WroteRequestInfo) {
			t.add(&t.write, "WroteRequest %s", classes(i.Err))
			t.wrote <- struct{}{}
		},
		GotFirstResponseByte: func() { t.add(&t.answer, "GotFirstResponseByte") },
		Got100Continue:       func() { t.add(&t.answer, "Got100Continue") },
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			t.add(&t.answer, "Got1xxResponse %d %q", code, h)
			return nil
		},
		PutIdleConn: func(err error) { t.add(&t.answer, "PutIdleConn failed=%v", err != nil) },
	}
}

// doTraced is Do with the events as facts.
func (c *Client) doTraced(req *http.Request) {
	t := newTracer()
	traced(t.hooks())(req)
	if c.Do(req) != nil {
		select { // over HTTP/2 it may come behind the answer
		case <-t.wrote:
		case <-c.Server.cutOff:
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	name := func(what string) string { return fmt.Sprintf("%d trace %s", c.step, what) }
	if c.Road.HTTP2 {
		sortFields(t.write)
		t.dial = sameDial(t.dial, c.Road)
	}
	c.Note(name("dial"), c.events(t.dial))
	c.Note(name("write"), c.events(t.write))
	c.Note(name("answer"), c.events(t.answer))
}

// sameDial takes out of the events what net/http is of two minds about over
// HTTP/2: it may say GetConn twice; it names the proxy, or the target once there
// is a connection; a connection is idle as soon as the last stream is forgotten,
// which takes its time.
func sameDial(events []string, r Road) []string {
	for i, e := range events {
		if r.Proxy != "" && strings.HasPrefix(e, "GetConn ") {
			e = "GetConn ADDR"
		}
		events[i], _, _ = strings.Cut(e, " idle=")
	}
	return slices.Compact(events)
}

// sortFields sorts each run of header fields: over HTTP/2 net/http sends the
// map as it comes.
func sortFields(events []string) {
	isField := func(e string) bool { return strings.HasPrefix(e, "WroteHeaderField ") }
	for i := 0; i < len(events); i++ {
		n := slices.IndexFunc(events[i:], func(e string) bool { return !isField(e) })
		if n < 0 {
			n = len(events) - i
		}
		slices.Sort(events[i : i+n])
		i += n
	}
}

func (c *Client) events(list []string) string {
	return strings.ReplaceAll(strings.Join(list, "; "), c.Server.Addr, "ADDR")
}

// traces: the hooks of httptrace.
func traces() []Scenario {
	expect := func(r *http.Request) { r.Header.Set("Expect", "100-continue") }
	return []Scenario{
		{Name: "trace new and used connection", Run: func(c *Client) {
			c.doTraced(c.Request("GET", "/", nil))
			c.doTraced(c.Request("GET", "/", nil, func(r *http.Request) { r.Header["X-Many"] = []string{"1", "2"} }))
			c.doTraced(c.Request("POST", "/", reader(10)))
			c.doTraced(c.Request("POST", "/", NewBody(reader(100000))))
		}},
		{Name: "trace close", Serve: answer(strings.Replace(ok, "\r\n", "\r\nConnection: close\r\n", 1)), Run: func(c *Client) {
			c.doTraced(c.Request("GET", "/", nil))
			c.doTraced(c.Request("GET", "/", nil))
		}},
		{Name: "trace keep-alives disabled", Setup: func(tr *http.Transport, _ *Server) { tr.DisableKeepAlives = true }, Run: func(c *Client) {
			c.doTraced(c.Request("GET", "/", nil))
		}, Differs: notTold()},
		{Name: "trace stale connection", Serve: swallow, Run: func(c *Client) {
			c.doTraced(c.Request("GET", "/", nil))
			c.doTraced(c.Request("GET", "/", nil))
		}},
		{Name: "trace large answer", Serve: answer(sized(string(text(1 << 20)))), Run: func(c *Client) {
			c.doTraced(c.Request("GET", "/", nil))
		}},
		{Name: "trace expect", Setup: func(tr *http.Transport, _ *Server) { tr.ExpectContinueTimeout = patience }, Serve: func(x *Exchange) {
			x.Write("HTTP/1.1 100 Continue\r\n\r\n")
			x.Body()
			x.Write(ok)
		}, Run: func(c *Client) {
			c.doTraced(c.Request("POST", "/", NewBody(reader(10)), expect))
		}},
		{Name: "trace interim", Serve: answer("HTTP/1.1 103 Early Hints\r\n\r\n" + ok), Run: func(c *Client) {
			c.doTraced(c.Request("GET", "/", nil))
		}},
	}
}

// failedTraces: the hooks where a request fails.
func failedTraces() []Scenario {
	return []Scenario{
		{Name: "trace body error", Run: func(c *Client) {
			t := newTracer()
			c.Do(c.Request("POST", "/", NewBody(reader(5)), length(10), traced(t.hooks())))
			t.mu.Lock()
			defer t.mu.Unlock()
			c.Note("1 trace dial", c.events(t.dial))
		}, Differs: []Difference{
			{"1 sent *", "*", "*", "how much arrives is not fixed"},
		}},
		{Name: "trace certificate", Only: "https", Setup: func(tr *http.Transport, _ *Server) {
			tr.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "wrong.invalid"}
		}, Run: func(c *Client) {
			t := newTracer()
			c.Do(c.Request("GET", "/", nil, traced(t.hooks())))
			t.mu.Lock()
			defer t.mu.Unlock()
			for _, e := range t.dial {
				what, _, _ := strings.Cut(e, " ")
				c.Note("trace "+what, "called")
			}
		}},
		{Name: "trace name", Only: "http", Run: func(c *Client) {
			t := newTracer()
			_, port, _ := strings.Cut(c.Server.Addr, ":")
			c.Do(c.RequestURL("GET", "http://localhost:"+port+"/", nil, traced(t.hooks())))
			t.mu.Lock()
			defer t.mu.Unlock()
			for _, e := range t.dial { // localhost may have several addresses
				what, _, _ := strings.Cut(e, " ")
				c.Note("trace "+what, "called")
			}
		}},
	}
}

// redirects: http.Client over the transport.
func redirects() (list []Scenario) {
	for _, code := range []int{301, 302, 303, 307, 308} {
		for _, m := range []string{"GET", "POST", "PUT"} {
			list = append(list, Scenario{Name: fmt.Sprint("redirect ", code, " ", m), Serve: func(x *Exchange) {
				x.Body()
				if x.Req.URL.Path == "/" {
					x.Write(fmt.Sprintf("HTTP/1.1 %d Moved\r\nLocation: /moved\r\nContent-Length: 5\r\n\r\nmoved", code))
					return
				}
				x.Write(ok)
			}, Run: func(c *Client) {
				hc := &http.Client{Transport: c.RT}
				c.Via(hc, c.Request(m, "/", strings.NewReader("body")))
				c.Via(hc, c.Request(m, "/", strings.NewReader(string(text(100000)))))
				c.Via(hc, c.Request(m, "/", nil))
				c.Via(hc, c.Request(m, "/", NewBody(strings.NewReader("no GetBody"))))
			}})
		}
	}
	return append(list, Scenario{Name: "redirect without end", Serve: answer("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"), Run: func(c *Client) {
		c.Via(&http.Client{Transport: c.RT}, c.Request("GET", "/", nil))
	}}, Scenario{Name: "client with user", Run: func(c *Client) {
		u, err := url.Parse(c.Server.URL("/x"))
		if err != nil {
			c.T.Fatal(err)
		}
		u.User = url.UserPassword("me", "secret")
		c.Via(&http.Client{Transport: c.RT}, c.RequestURL("GET", u.String(), nil))
	}})
}

// through runs f with a client of a ReverseProxy that uses the transport.
func through(f func(c *Client, front string, hc *http.Client)) func(*Client) {
	return func(c *Client) {
		target, err := url.Parse(c.Server.URL("/"))
		if err != nil {
			c.T.Fatal(err)
		}
		front := httptest.NewServer(&httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
			Transport: c.RT, ErrorLog: quiet(),
		})
		defer front.Close()
		tr := &http.Transport{}
		defer tr.CloseIdleConnections()
		f(c, front.URL, &http.Client{Transport: tr})
	}
}

// plainly makes two requests through a ReverseProxy.
func plainly(method string, body func() io.Reader) func(*Client) {
	return through(func(c *Client, front string, hc *http.Client) {
		for range 2 {
			name := c.next()
			resp, err := hc.Do(c.RequestURL(method, front+"/a?b=c", body()))
			c.Note(name("error"), classes(err))
			if err != nil {
				return
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			c.Note(name("got"), fmt.Sprint(resp.StatusCode, resp.ContentLength, resp.TransferEncoding, digest(got), classes(err), resp.Trailer))
		}
	})
}

// proxies: httputil.ReverseProxy over the transport.
func proxies() []Scenario {
	none := func() io.Reader { return nil }
	withTrailer := head + "Trailer: X-A\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n"
	return []Scenario{
		{Name: "proxy GET", Run: plainly("GET", none)},
		{Name: "proxy HEAD", Serve: answer(head + "Content-Length: 5\r\n\r\n"), Run: plainly("HEAD", none)},
		{Name: "proxy POST", Run: plainly("POST", func() io.Reader { return reader(100000) })},
		{Name: "proxy POST of unknown length", Run: plainly("POST", func() io.Reader { return io.MultiReader(reader(100000)) })},
		{Name: "proxy DELETE without body", Run: plainly("DELETE", none)},
		{Name: "proxy trailer", Serve: answer(withTrailer), Run: plainly("GET", none)},
		{Name: "proxy large", Serve: answer(sized(string(text(1 << 20)))), Run: plainly("GET", none)},
		{Name: "proxy broken backend", Serve: func(x *Exchange) { x.Close() }, Run: plainly("POST", none)},
	}
}

// streams: ReverseProxy where one side does not wait for the other.
func streams() []Scenario {
	return []Scenario{
		{Name: "proxy early answer", Serve: func(x *Exchange) {
			x.Write("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
			x.Body()
			x.Close()
		}, Run: plainly("POST", func() io.Reader { return reader(1000) }), Differs: []Difference{
			{"[12] sent body", "*", "*", "whether it is still sent is not fixed"},
		}},
		{Name: "proxy stream", Serve: func(x *Exchange) {
			x.Write(head + "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
			for i := range 3 {
				x.Write(fmt.Sprintf("7\r\ndata %d\n\r\n", i))
				select {
				case <-x.s.turn: // the client has read it
				case <-x.s.done:
				}
			}
			x.Write("0\r\n\r\n")
		}, Run: through(func(c *Client, front string, hc *http.Client) {
			resp, err := hc.Do(c.RequestURL("GET", front, nil))
			c.Note("stream error", classes(err))
			if err != nil {
				return
			}
			br := bufio.NewReader(resp.Body)
			for i := range 3 {
				line, err := br.ReadString('\n')
				c.Note(fmt.Sprint("line ", i), fmt.Sprintf("%q %s", line, classes(err)))
				c.Server.turn <- struct{}{}
			}
			rest, err := io.ReadAll(br)
			c.Note("rest", fmt.Sprintf("%q %s", rest, classes(err)))
			_ = resp.Body.Close()
		})},
		{Name: "proxy client gone", Serve: func(x *Exchange) {
			x.Write(head + "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
			x.Hang()
			x.s.turn <- struct{}{}
		}, Run: through(func(c *Client, front string, hc *http.Client) {
			ctx, cancel := context.WithCancel(context.Background())
			resp, err := hc.Do(c.RequestURL("GET", front, nil).WithContext(ctx))
			c.Note("gone error", classes(err))
			cancel()
			if err == nil {
				_ = resp.Body.Close()
			}
			<-c.Server.turn // the proxy has hung up on the backend
		})},
		{Name: "proxy upgrade", Serve: echo, Run: through(func(c *Client, front string, hc *http.Client) {
			c.upgrade(hc.Transport, c.RequestURL("GET", front, nil))
		})},
	}
}

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

// echo answers an upgrade, with bytes right behind the head, and says every
// line again.
func echo(x *Exchange) {
	x.over = true
	x.Write(switching + "hello\n")
	for {
		line, err := x.br.ReadString('\n')
		if err != nil || line == "end\n" {
			return
		}
		x.Write(line)
	}
}

// upgrade asks for an upgrade and talks over it.
func (c *Client) upgrade(rt http.RoundTripper, req *http.Request) {
	name := c.next()
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := rt.RoundTrip(req)
	c.Note(name("error"), classes(err))
	if err != nil {
		return
	}
	c.noteHead(resp, name)
	rw, ok := resp.Body.(io.ReadWriteCloser)
	c.Note(name("writable"), fmt.Sprint(ok))
	if !ok {
		_ = resp.Body.Close()
		return
	}
	br := bufio.NewReader(rw)
	for _, say := range []string{"", "one\n", string(text(100000)) + "\n", "end\n"} {
		if say != "" {
			_, err := io.WriteString(rw, say)
			c.Note(name("write "+digest([]byte(say))), fmt.Sprint(err == nil))
		}
		line, err := br.ReadString('\n')
		c.Note(name("heard after "+digest([]byte(say))), digest([]byte(line))+" "+fmt.Sprint(errors.Is(err, io.EOF)))
	}
	c.Note(name("close failed"), fmt.Sprint(rw.Close() != nil))
}

// upgrades: 101 Switching Protocols.
func upgrades() []Scenario {
	return []Scenario{
		{Name: "upgrade", Serve: echo, Run: func(c *Client) {
			c.upgrade(c.RT, c.Request("GET", "/", nil))
			c.upgrade(c.RT, c.Request("GET", "/", nil))
		}},
		{Name: "upgrade refused", Run: func(c *Client) {
			c.Get("/", func(r *http.Request) {
				r.Header.Set("Connection", "Upgrade")
				r.Header.Set("Upgrade", "echo")
			})
			c.Get("/again")
		}},
		{Name: "upgrade with keep-alives disabled", Serve: echo, Setup: func(tr *http.Transport, _ *Server) {
			tr.DisableKeepAlives = true
		}, Run: func(c *Client) { c.upgrade(c.RT, c.Request("GET", "/", nil)) }},
		{Name: "upgrade cancelled after", Serve: echo, Run: func(c *Client) {
			ctx, cancel := context.WithCancel(context.Background())
			req := c.Request("GET", "/", nil).WithContext(ctx)
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "echo")
			resp, err := c.RT.RoundTrip(req)
			c.Note("upgrade error", classes(err))
			if err != nil {
				cancel()
				return
			}
			line, err := bufio.NewReader(resp.Body).ReadString('\n')
			c.Note("line", fmt.Sprintf("%q %s", line, classes(err)))
			cancel()
			_ = resp.Body.Close()
		}},
	}
}
