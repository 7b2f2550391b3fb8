package difftest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
)

// watched: httptrace, on each road from the dial on.
func watched() []Scenario {
	return []Scenario{
		{Name: "watched", Handle: sayOK, Run: func(c *Client) {
			c.doTraced(c.Request("GET", "/", nil, func(r *http.Request) { r.Header["X-Many"] = []string{"1", "2"} }))
			c.doTraced(c.Request("GET", "/", nil))
			c.doTraced(c.Request("POST", "/", reader(10)))
			c.doTraced(c.Request("POST", "/", NewBody(reader(100000))))
			c.doTraced(c.Request("HEAD", "/", nil))
		}},
		{Name: "watched, not kept", Handle: sayOK, Setup: func(tr *http.Transport, _ *Server) {
			tr.DisableKeepAlives = true
		}, Run: func(c *Client) {
			c.doTraced(c.Request("GET", "/", nil))
			c.doTraced(c.Request("GET", "/", nil))
		}, Differs: notTold()},
		{Name: "watched without hooks", Handle: sayOK, Run: func(c *Client) {
			c.Get("/", traced(&httptrace.ClientTrace{}))
			c.Do(c.Request("POST", "/", NewBody(reader(10)), traced(&httptrace.ClientTrace{})))
		}},
		{Name: "watched by two", On: direct, Handle: sayOK, Run: func(c *Client) {
			var order []string
			say := func(s string) *httptrace.ClientTrace {
				return &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { order = append(order, s) }}
			}
			c.Get("/", traced(say("first")), traced(say("second")))
			c.Note("order", fmt.Sprint(order))
		}},
		{Name: "watched interim answers, many", On: basic, Handle: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", string(text(1000)))
			for range 300 {
				w.WriteHeader(http.StatusEarlyHints)
			}
			_, _ = io.WriteString(w, "ok")
		}, Setup: func(tr *http.Transport, _ *Server) { tr.MaxResponseHeaderBytes = 10000 }, Run: func(c *Client) {
			n := 0 // no limit for who looks at each
			c.Get("/", traced(&httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
				n++
				return nil
			}}))
			c.Note("interim", fmt.Sprint(n))
			c.Get("/") // refused
		}},
		{Name: "watched, the hook refuses", On: basic, Handle: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			_, _ = io.WriteString(w, "ok")
		}, Run: func(c *Client) {
			c.Get("/", traced(&httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error { return errBody }}))
			c.Get("/after")
		}},
	}
}

// notTold says that PutIdleConn is not called where no connection is ever kept,
// by either of the two.
func notTold() []Difference {
	return []Difference{{"[12] trace answer", "GotFirstResponseByte", "GotFirstResponseByte", "nobody expects one to be kept"}}
}

// versions: what a Transport's settings say of HTTP/2, to a server that speaks
// it.
func versions() (list []Scenario) {
	encrypted := func(r Road) bool { return r.Name == "http2" }
	only := func(set func(*http.Protocols)) func(*http.Transport, *Server) {
		return func(tr *http.Transport, _ *Server) {
			tr.Protocols = new(http.Protocols)
			set(tr.Protocols)
		}
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
	unset := func(f func(*http.Transport, *Server)) func(*http.Transport, *Server) {
		return func(tr *http.Transport, s *Server) {
			tr.Protocols = nil
			f(tr, s)
		}
	}
	strict := []Difference{
		{"[12] error", "nil", "error", "what is not in the set is not spoken; net/http falls back on HTTP/1"},
		{"connections", "1", "*", "for the same reason"},
	}
	for name, setup := range map[string]func(*http.Transport, *Server){
		"TLSClientConfig": unset(func(*http.Transport, *Server) {}),
		"ForceAttemptHTTP2": unset(func(tr *http.Transport, _ *Server) {
			tr.ForceAttemptHTTP2, tr.DialContext = true, dial
		}),
		"TLSNextProto": unset(func(tr *http.Transport, _ *Server) {
			tr.ForceAttemptHTTP2, tr.TLSNextProto = true, map[string]func(string, *tls.Conn) http.RoundTripper{}
		}),
		"NextProtos": unset(func(tr *http.Transport, _ *Server) { tr.TLSClientConfig.NextProtos = []string{"http/1.1"} }),
		"DialTLSContext": unset(func(tr *http.Transport, s *Server) {
			tr.ForceAttemptHTTP2 = true
			tr.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				cfg := s.ClientTLS()
				cfg.NextProtos = []string{"h2", "http/1.1"}
				d := tls.Dialer{Config: cfg}
				return d.DialContext(ctx, network, addr)
			}
		}),
		"DialTLS": unset(func(tr *http.Transport, s *Server) {
			tr.DialTLS = func(network, addr string) (net.Conn, error) { //nolint:staticcheck // SA1019: deprecated, but there
				d := tls.Dialer{Config: s.ClientTLS()}
				return d.DialContext(context.Background(), network, addr)
			}
		}),
		"HTTP1": only(func(p *http.Protocols) { p.SetHTTP1(true) }),
		"HTTP2": only(func(p *http.Protocols) { p.SetHTTP2(true) }),
		"both and plain": only(func(p *http.Protocols) {
			p.SetHTTP1(true)
			p.SetHTTP2(true)
			p.SetUnencryptedHTTP2(true)
		}),
		"only plain": only(func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }),
		"none":       only(func(*http.Protocols) {}),
	} {
		var differs []Difference
		if name == "only plain" {
			differs = strict
		}
		list = append(list, Scenario{Name: "version by " + name, On: encrypted, Handle: sayOK, Setup: setup, Run: twice, Differs: differs})
	}
	return append(list, Scenario{Name: "version by HTTP2, without TLS", On: func(r Road) bool { return r.Name == "http" }, Handle: sayOK, Setup: only(func(p *http.Protocols) {
		p.SetHTTP2(true)
	}), Run: twice, Differs: strict})
}

// counted: how many connections wait idle, how many writes a request takes, and
// which connection a request gets.
func counted() []Scenario {
	// together makes n requests that are all under way at the same time.
	together := func(c *Client, n int) {
		var all sync.WaitGroup
		for range n {
			all.Go(func() {
				resp, err := c.RT.RoundTrip(c.Request("GET", "/", nil))
				if err != nil {
					c.T.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			})
		}
		for range n {
			<-c.Server.Arrived
		}
		for range n {
			c.Server.turn <- struct{}{}
		}
		all.Wait()
	}
	meet := func(x *Exchange) {
		x.s.Arrived <- struct{}{}
		<-x.s.turn
		x.Write(ok)
	}
	uncounted := []Difference{{"0 *", "*", "*", "many at once"}}
	return []Scenario{
		{Name: "idle per host", Serve: meet, Differs: uncounted, Setup: func(tr *http.Transport, _ *Server) {
			tr.MaxIdleConnsPerHost = 3
		}, Run: func(c *Client) {
			together(c, 5)
			together(c, 5)
		}},
		{Name: "idle per host, two", Serve: meet, Differs: uncounted, Setup: func(tr *http.Transport, _ *Server) {
			tr.MaxIdleConnsPerHost = 0 // DefaultMaxIdleConnsPerHost
		}, Run: func(c *Client) {
			together(c, 5)
			together(c, 5)
		}},
		{Name: "idle in all", Serve: meet, Differs: uncounted, Setup: func(tr *http.Transport, _ *Server) {
			tr.MaxIdleConnsPerHost, tr.MaxIdleConns = 10, 1
		}, Run: func(c *Client) {
			together(c, 3)
			together(c, 3)
		}},
		{Name: "writes", Setup: func(tr *http.Transport, s *Server) {
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				var d net.Dialer
				nc, err := d.DialContext(ctx, network, addr)
				return &writes{Conn: nc, s: s}, err
			}
		}, Only: "http", Run: func(c *Client) {
			c.Get("/")
			c.Do(c.Request("POST", "/", strings.NewReader("body")))
			c.Get("/", func(r *http.Request) { r.Header.Set("X-Large", string(text(2000))) })
		}},
		{Name: "error of a Read", Only: "http", Setup: func(tr *http.Transport, _ *Server) {
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				var d net.Dialer
				nc, err := d.DialContext(ctx, network, addr)
				return unreadable{nc}, err
			}
		}, Run: func(c *Client) {
			c.Get("/")
			c.Do(c.Request("POST", "/", NewBody(reader(10))))
		}, Differs: []Difference{
			{"[12] sent *", "*", "*", "how far the request comes is not fixed"},
			{"connections", "*", "*", "for the same reason"},
		}},
		{Name: "late binding", Serve: func(x *Exchange) {
			if x.Req.URL.Path == "/first" {
				x.s.Arrived <- struct{}{}
				<-x.s.turn
			}
			x.Write(ok)
		}, Setup: func(tr *http.Transport, s *Server) {
			var dials atomic.Int32
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if dials.Add(1) > 1 {
					s.turn <- struct{}{} // the second one waits for a connection: let go of the first
					select {
					case <-ctx.Done():
					case <-s.done:
					}
					return nil, errors.New("never")
				}
				var d net.Dialer
				return d.DialContext(ctx, network, addr)
			}
		}, Run: func(c *Client) {
			var first sync.WaitGroup
			first.Go(func() {
				resp, err := c.RT.RoundTrip(c.Request("GET", "/first", nil))
				c.Note("first error", classes(err))
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			})
			<-c.Server.Arrived
			c.Get("/second") // its dial hangs; it gets the connection of the first
			first.Wait()
		}},
		{Name: "closed idle ones while in use", Serve: meet, Run: func(c *Client) {
			var use sync.WaitGroup
			use.Go(func() { c.Get("/") })
			<-c.Server.Arrived
			(&http.Client{Transport: c.RT}).CloseIdleConnections()
			c.Server.turn <- struct{}{}
			use.Wait()
			c.Server.turn <- struct{}{}
			c.Get("/after")
		}, Differs: []Difference{
			{"2 sent on", "a new connection", "a used connection", "what is in use then is no idle connection; net/http closes it when it has been used"},
			{"connections", "2", "1", "for the same reason"},
		}},
		{Name: "interim without end", Serve: func(x *Exchange) {
			for {
				if _, err := io.WriteString(x.nc, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"); err != nil {
					x.over = true
					return
				}
			}
		}, Setup: func(tr *http.Transport, _ *Server) { tr.MaxResponseHeaderBytes = 100000 }},
	}
}

// writes notes how much each Write gets.
type writes struct {
	net.Conn

	s *Server
}

func (w *writes) Write(p []byte) (int, error) {
	w.s.note(fmt.Sprint(w.s.step.Load(), " written"), fmt.Sprint(len(p)))
	return w.Conn.Write(p)
}

// unreadable is a connection whose Read fails.
type unreadable struct{ net.Conn }

func (unreadable) Read([]byte) (int, error) { return 0, errBody }
