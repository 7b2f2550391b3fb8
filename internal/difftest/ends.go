package difftest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// silent answers nothing until the client is gone, and says that it has begun.
func silent(_ http.ResponseWriter, r *http.Request) {
	s := serverOf(r)
	s.Arrived <- struct{}{}
	select {
	case <-r.Context().Done():
	case <-s.done:
	}
}

// halfway answers the first half, and then nothing.
func halfway(w http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(w, "half")
	flush(w)
	silent(w, r)
}

// firstThen is first for the path /, and then for others.
func firstThen(first, then http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			first(w, r)
			return
		}
		then(w, r)
	}
}

// ended: a request that the client ends, in each phase. A stream of HTTP/2 ends
// without its connection.
func ended() (list []Scenario) {
	for name, with := range endings() {
		if strings.HasPrefix(name, "deadline") && name != "deadline" {
			continue // compared over HTTP/1, and the same here
		}
		list = append(list, Scenario{Name: "ended awaiting the head, " + name, Handle: firstThen(silent, sayOK), Run: func(c *Client) {
			c.doEnding(c.Request("GET", "/", nil), with)
			c.Get("/after")
		}}, Scenario{Name: "ended while sending, " + name, Handle: firstThen(silent, sayOK), Run: func(c *Client) {
			c.doEnding(c.Request("POST", "/", NewBody(endless{})), with)
			c.Get("/after")
		}}, Scenario{Name: "ended in the body, " + name, Handle: firstThen(halfway, sayOK), Run: func(c *Client) {
			c.cancelInBody(with)
			c.Get("/after")
		}, DiffersHTTP2: []Difference{
			{"1 close failed", "*", "false", "Close of a response body does not fail"},
		}})
	}
	closing := func(read int) func(*Client) {
		return func(c *Client) {
			name := c.next()
			req := c.Request("GET", "/", nil)
			resp := c.begin(req, name)
			if resp == nil {
				return
			}
			n, err := io.ReadFull(resp.Body, make([]byte, read))
			c.Note(name("read"), fmt.Sprint(n, " ", classes(err)))
			c.noteEnd(req, resp, name)
			_, err = resp.Body.Read(make([]byte, 1))
			c.Note(name("read after close error"), classes(err))
			c.Get("/after")
		}
	}
	return append(
		list,
		Scenario{Name: "ended by Close", Handle: firstThen(halfway, sayOK), Run: closing(4)},
		Scenario{Name: "ended by Close, unread", Handle: firstThen(halfway, sayOK), Run: closing(0)},
		Scenario{Name: "ended by Close of a large body", Handle: firstThen(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(text(4 << 20))
		}, sayOK), Run: closing(100)},
		Scenario{Name: "ended by Close while reading", Handle: firstThen(halfway, sayOK), Run: func(c *Client) {
			closeWhileReading(c)
			c.Get("/after")
		}},
		Scenario{Name: "ended before it began", Handle: sayOK, Run: func(c *Client) {
			ctx, cancel := context.WithCancelCause(context.Background())
			cancel(errCause)
			c.Do(c.Request("POST", "/", NewBody(reader(10))).WithContext(ctx))
			c.Get("/after")
		}},
		Scenario{Name: "ended behind the answer", Handle: sayOK, Run: func(c *Client) {
			ctx, cancel := context.WithCancel(context.Background())
			c.Do(c.Request("POST", "/", NewBody(reader(10))).WithContext(ctx))
			cancel() // hits nobody
			c.Get("/after")
		}},
	)
}

// outOfTime: the transport's own limits, and http.Client's.
func outOfTime() []Scenario {
	const soon = 100 * time.Millisecond
	limited := func(tr *http.Transport, _ *Server) { tr.ResponseHeaderTimeout = soon }
	return []Scenario{
		{Name: "out of time for the head", Setup: limited, Handle: firstThen(silent, sayOK), Run: func(c *Client) {
			c.Do(c.Request("POST", "/", NewBody(reader(10))))
			c.Get("/after")
		}},
		{Name: "in time for the head", Setup: limited, Handle: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, "half")
			flush(w)
			s := serverOf(r)
			select {
			case <-s.turn: // the limit has passed
			case <-s.done:
			}
			_, _ = io.WriteString(w, "way")
		}, Run: func(c *Client) { // neither sending nor reading counts
			slow := NewBody(io.MultiReader(reader(10), reading(func() { pass(2 * soon) })))
			name := c.next()
			req := c.Request("POST", "/", slow)
			resp := c.begin(req, name)
			if resp == nil {
				return
			}
			pass(2 * soon)
			c.Server.turn <- struct{}{}
			body, err := io.ReadAll(resp.Body)
			c.Note(name("body"), fmt.Sprintf("%q %s", body, classes(err)))
			c.noteEnd(req, resp, name)
		}},
		{Name: "out of time of the client", Handle: firstThen(silent, halfway), Run: func(c *Client) {
			hc := &http.Client{Transport: c.RT, Timeout: soon}
			for _, path := range []string{"/", "/body"} {
				name := c.next()
				resp, err := hc.Do(c.Request("POST", path, strings.NewReader("x")))
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					_ = resp.Body.Close()
				}
				c.noteError(name("error"), err)
				_, isTimeout := errors.AsType[net.Error](err)
				c.Note(name("net.Error"), fmt.Sprint(isTimeout))
			}
		}},
		{Name: "out of time idle", Setup: func(tr *http.Transport, _ *Server) {
			tr.IdleConnTimeout = 50 * time.Millisecond
		}, Handle: sayOK, Run: func(c *Client) {
			c.Get("/")
			c.Note("closed while idle", fmt.Sprint(c.Server.awaitGone()))
			c.Get("/after")
		}},
		{Name: "head too large", Setup: func(tr *http.Transport, _ *Server) {
			tr.MaxResponseHeaderBytes = 2000
		}, Handle: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Large", string(text(20000)))
		}, Run: twice, DiffersHTTP2: []Difference{
			{"2 sent used connection", "*", "*", "whether the connection survives is net/http's affair"},
			{"connections", "*", "*", "for the same reason"},
		}},
	}
}

// pass lets time pass: it is the subject.
func pass(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// awaitGone waits until the client has closed all connections.
func (s *Server) awaitGone() bool {
	select {
	case <-s.real.gone:
		return true
	case <-s.cutOff:
		return false
	}
}
