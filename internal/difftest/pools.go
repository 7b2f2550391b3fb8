package difftest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// pooled: which connections are opened, and which are used again.
func pooled() []Scenario {
	many := func(c *Client) {
		for range 3 {
			c.Get("/")
			c.Do(c.Request("POST", "/", NewBody(reader(1000))))
		}
	}
	return []Scenario{
		{Name: "pooled", Handle: sayOK, Run: many},
		{Name: "pooled not, disabled", Handle: sayOK, Run: many, Setup: func(tr *http.Transport, _ *Server) {
			tr.DisableKeepAlives = true
		}},
		{Name: "pooled not, closed by the request", Handle: sayOK, Run: func(c *Client) {
			for range 2 {
				c.Get("/", func(r *http.Request) { r.Close = true })
			}
			c.Get("/after")
		}},
		{Name: "pooled until CloseIdleConnections", Handle: sayOK, Run: func(c *Client) {
			c.Get("/")
			(&http.Client{Transport: c.RT}).CloseIdleConnections()
			c.Note("closed", fmt.Sprint(c.Server.awaitGone()))
			c.Get("/after")
		}},
		{Name: "pooled none", Handle: sayOK, Run: twice, Setup: func(tr *http.Transport, _ *Server) {
			tr.MaxIdleConnsPerHost = -1
		}, DiffersHTTP2: []Difference{
			{"2 sent used connection", "*", "false", "none is none, whatever is spoken"},
			{"2 sent to the proxy", "*", "*", "for the same reason"},
			{"connections", "*", "2", "for the same reason"},
		}},
		{Name: "pooled in buffers of any size", Handle: sayOK, Run: many, Setup: func(tr *http.Transport, _ *Server) {
			tr.WriteBufferSize, tr.ReadBufferSize = 10, 10
		}},
		{Name: "pooled by a clone", Handle: sayOK, Run: func(c *Client) {
			tr, ok := c.RT.(*http.Transport)
			if ok { // ours takes over a clone as it does any other
				clone := tr.Clone()
				defer clone.CloseIdleConnections()
				c.RT = clone
			}
			many(c)
		}},
		{Name: "pooled one", Setup: one, Handle: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(w, r.Body)
		}, Run: parallel},
		{Name: "pooled few", On: direct, Setup: func(tr *http.Transport, _ *Server) {
			tr.MaxConnsPerHost = 4
		}, Handle: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(w, r.Body)
		}, Run: parallel, Differs: []Difference{
			{"connections", "*", "*", "up to four; over HTTP/2 one is enough for ours"},
			{"0 sent to the proxy*", "*", "*", "for the same reason"},
		}},
		{Name: "pooled one, waited for", Setup: one, On: overHTTP1, Handle: firstThen(halfway, sayOK), Run: func(c *Client) {
			resp, err := c.RT.RoundTrip(c.Request("GET", "/", nil))
			c.noteError("held error", err)
			if err != nil {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			c.Do(c.Request("GET", "/waits", nil).WithContext(ctx))
			_ = resp.Body.Close()
			c.Get("/after")
		}},
	}
}

func one(tr *http.Transport, _ *Server) { tr.MaxConnsPerHost = 1 }

// registered: what can be done to an *http.Transport besides its fields.
func registered() []Scenario {
	return []Scenario{
		{Name: "registered protocol", Handle: sayOK, On: Road.Plain, Setup: func(tr *http.Transport, _ *Server) {
			tr.RegisterProtocol("other", fixed{})
		}, Run: func(c *Client) {
			c.Do(c.RequestURL("GET", "other://host/x", nil))
			c.Get("/after")
		}, Differs: []Difference{
			{"1 error", "nil", "error", "nothing tells ours what was registered: its users choose by scheme in front of it"},
		}},
	}
}

// fixed answers itself.
type fixed struct{}

func (fixed) RoundTrip(req *http.Request) (*http.Response, error) {
	return &http.Response{Status: "200 OK", StatusCode: http.StatusOK, Header: make(http.Header), Body: http.NoBody, Request: req}, nil
}

// dialed: the user's dial functions, on each road.
func dialed() []Scenario {
	note := func(s *Server, what, network, addr string) {
		s.note("dialed "+what, network+" "+replace(addr, s.Addr))
	}
	return []Scenario{
		{Name: "dialed by DialContext", Handle: sayOK, Run: twice, Setup: func(tr *http.Transport, s *Server) {
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				note(s, "plain", network, addr)
				var d net.Dialer
				return d.DialContext(ctx, network, addr)
			}
		}},
		{Name: "dialed by Dial", Handle: sayOK, Run: twice, Setup: func(tr *http.Transport, s *Server) {
			tr.Dial = func(network, addr string) (net.Conn, error) { //nolint:staticcheck // SA1019: deprecated, but there
				note(s, "plain", network, addr)
				var d net.Dialer
				return d.DialContext(context.Background(), network, addr)
			}
		}},
		{Name: "dialed on a Unix socket", Handle: sayOK, Run: twice, Setup: func(tr *http.Transport, s *Server) {
			path := s.Unix()
			tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", path)
			}
		}},
		{Name: "dialed without a socket", Handle: sayOK, Run: twice, Setup: func(tr *http.Transport, s *Server) {
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				var d net.Dialer
				nc, err := d.DialContext(ctx, network, addr)
				return wrapped{nc}, err
			}
		}},
		{Name: "dialed slowly", Handle: sayOK, Setup: func(tr *http.Transport, s *Server) {
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				s.Arrived <- struct{}{}
				select {
				case <-s.turn:
				case <-s.done:
				}
				var d net.Dialer
				return d.DialContext(ctx, network, addr)
			}
		}, Run: func(c *Client) { // two want a connection, one gives up
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			wg.Go(func() {
				_, err := c.RT.RoundTrip(c.Request("GET", "/given-up", nil).WithContext(ctx))
				c.Note("given up error", classes(err))
			})
			<-c.Server.Arrived
			cancel()
			wg.Wait()
			close(c.Server.turn)
			c.Get("/after")
		}, Differs: []Difference{
			{"[12] sent *", "*", "*", "the next request takes over the dial that goes on; net/http begins another one"},
			{"connections", "2", "1", "for the same reason"},
		}},
	}
}
