package difftest

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// reuse: which connections are used again, for kinds that are not in framings.
func reuse() []Scenario {
	inMemory := []Difference{
		{"2 error", "*", "nil", "a small body in memory can be sent again without GetBody"},
		{"connections", "1", "2", "for the same reason"},
	}
	return []Scenario{
		{Name: "keep-alives disabled", Run: twice, Setup: func(tr *http.Transport, _ *Server) { tr.DisableKeepAlives = true }},
		{Name: "ten requests", Run: func(c *Client) {
			for range 10 {
				c.Get("/")
			}
		}},
		{Name: "one request sent again", Run: func(c *Client) {
			req := c.Request("GET", "/", nil)
			c.Do(req)
			c.Do(req)
		}},
		{Name: "close idle connections", Run: func(c *Client) {
			c.Get("/")
			(&http.Client{Transport: c.RT}).CloseIdleConnections()
			c.Get("/again")
		}},
		{Name: "mixed", Run: func(c *Client) {
			c.Do(c.Request("POST", "/", NewBody(reader(100000))))
			c.Get("/")
			c.Do(c.Request("PUT", "/", reader(100)))
			c.Do(c.Request("DELETE", "/", nil))
		}},
		{Name: "server closes after each answer", Serve: func(x *Exchange) {
			x.Body()
			x.Write(strings.Replace(ok, "\r\n", "\r\nConnection: close\r\n", 1))
			x.Close()
		}, Run: twice},
		{Name: "swallowed GET", Serve: swallow, Run: func(c *Client) { swallowed(c, "GET") }},
		{Name: "swallowed POST", Serve: swallow, Run: func(c *Client) { swallowed(c, "POST") }},
		{Name: "swallowed POST with key", Serve: swallow, Run: func(c *Client) {
			swallowed(c, "POST", func(r *http.Request) { r.Header.Set("Idempotency-Key", "k") })
		}},
		{Name: "swallowed GET, GetBody fails", Serve: swallow, Run: func(c *Client) {
			swallowed(c, "GET", func(r *http.Request) {
				r.GetBody = func() (io.ReadCloser, error) { return nil, errBody }
			})
		}, Differs: inMemory},
		{Name: "swallowed GET, no GetBody", Serve: swallow, Run: func(c *Client) {
			swallowed(c, "GET", func(r *http.Request) { r.GetBody = nil })
		}, Differs: inMemory},
		{Name: "swallowed GET, streamed", Serve: swallow, Run: func(c *Client) {
			swallowed(c, "GET", func(r *http.Request) {
				r.Body, r.ContentLength = NewBody(reader(100000)), 100000
				r.GetBody = func() (io.ReadCloser, error) { return NewBody(reader(100000)), nil }
			})
		}},
		{
			Name: "swallowed PUT", Serve: swallow, Run: func(c *Client) { swallowed(c, "PUT") },
			Differs: []Difference{
				{"2 error", "*", "nil", "PUT and DELETE are idempotent (RFC 9110 section 9.2.2), so repeated"},
				{"connections", "1", "2", "for the same reason"},
			},
		},
		{Name: "hung up while idle", Serve: func(x *Exchange) {
			x.Body()
			x.Write(ok)
			x.Close()
			x.s.Arrived <- struct{}{}
		}, Run: func(c *Client) {
			for range 3 {
				c.Get("/")
				<-c.Server.Arrived
			}
		}},
		{Name: "408 while idle", Serve: func(x *Exchange) {
			x.Body()
			x.Write(ok)
			if x.Conn == 1 {
				<-x.s.turn
				x.Write("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
				x.Close()
				x.s.Arrived <- struct{}{}
			}
		}, Run: func(c *Client) {
			c.Get("/")
			c.Server.turn <- struct{}{}
			<-c.Server.Arrived
			c.Get("/again")
		}, Differs: []Difference{
			{"2 status", "*", `200 "200 OK"`, "it is no answer to a request that came later; net/http may take it for one"},
			{"2 *", "*", "*", "for the same reason"},
			{"connections", "*", "2", "for the same reason"},
		}},
		{Name: "swallowed on a new connection", Serve: func(x *Exchange) {
			x.Body()
			x.Close()
		}},
	}
}

// swallow closes used connections instead of answering on them.
func swallow(x *Exchange) {
	x.Body()
	if x.N > 1 {
		x.Close()
		return
	}
	x.Write(ok)
}

func swallowed(c *Client, method string, edit ...func(*http.Request)) {
	c.Get("/")
	c.Do(c.Request(method, "/swallowed", strings.NewReader("x"), edit...))
}

// duplex: the answer begins before the request has been sent.
func duplex() []Scenario {
	early := func(raw string) func(*Exchange) {
		return func(x *Exchange) {
			if x.Conn > 1 {
				x.Write(ok)
				return
			}
			x.Write(raw)
			x.over = true
			<-x.s.done
		}
	}
	endlessly := func(c *Client) {
		c.Do(c.Request("POST", "/", NewBody(endless{})))
		c.Get("/again")
	}
	hanging := func(c *Client) {
		b := NewBody(reader(10))
		b.hang = make(chan struct{})
		c.Do(c.Request("POST", "/", b))
		c.Get("/again")
	}
	const why = "ours closes a request body whose Read hangs, so that it ends with the answer"
	closed := []Difference{{"1 request body at the end", "*", "closed", why}}
	return []Scenario{
		{Name: "early 413", Serve: early("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"), Run: endlessly},
		{Name: "early 413 close", Serve: early("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"), Run: endlessly},
		{Name: "early 413 chunks", Serve: early("HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"), Run: endlessly},
		{Name: "early 200", Serve: early(ok), Run: endlessly},
		{Name: "early 204", Serve: early("HTTP/1.1 204 No Content\r\n\r\n"), Run: endlessly},
		{Name: "early 413 reset", Serve: func(x *Exchange) {
			if x.Conn > 1 {
				x.Write(ok)
				return
			}
			x.Write("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
			x.Reset()
		}, Run: endlessly, Differs: []Difference{
			{"1 *", "*", "*", "a reset may overtake the answer"},
		}},
		{Name: "answer while the body hangs", Serve: early("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"), Run: hanging, Differs: closed},
		{Name: "answer 200 while the body hangs", Serve: early(ok), Run: hanging, Differs: closed},
		{Name: "full duplex", Serve: func(x *Exchange) {
			if len(x.Req.TransferEncoding) == 0 {
				x.Write(ok)
				return
			}
			x.Write(head + "Transfer-Encoding: chunked\r\n\r\n")
			x.bodyRead = true
			for {
				line, err := x.br.ReadString('\n')
				size, perr := strconv.ParseUint(strings.TrimSpace(line), 16, 16)
				if err != nil || perr != nil || size == 0 {
					break
				}
				data := make([]byte, size+2)
				if _, err := io.ReadFull(x.br, data); err != nil {
					break
				}
				x.Write(fmt.Sprintf("%x\r\n%s", size, data))
			}
			_, _ = x.br.ReadString('\n')
			x.Write("0\r\n\r\n")
		}, Run: func(c *Client) {
			c.fullDuplex()
			c.Get("/again")
		}},
		{Name: "parallel", Serve: func(x *Exchange) {
			x.Body()
			x.Write(sized(x.Req.URL.Path))
		}, Setup: func(tr *http.Transport, _ *Server) { tr.MaxConnsPerHost = 4 }, Run: parallel, Differs: []Difference{
			{"0 *", "*", "*", "many at once"},
			{"connections", "*", "*", "up to four"},
		}},
	}
}

// fullDuplex sends a line when the one before has come back.
func (c *Client) fullDuplex() {
	pr, pw := io.Pipe()
	name := c.next()
	req := c.Request("POST", "/", pr)
	resp := c.begin(req, name)
	if resp == nil {
		_ = pr.Close()
		return
	}
	br := bufio.NewReader(resp.Body)
	for i := range 3 {
		_, err := fmt.Fprintf(pw, "line %d\n", i)
		line, rerr := br.ReadString('\n')
		c.Note(name(fmt.Sprint("echo ", i)), fmt.Sprintf("%s %q %s", classes(err), line, classes(rerr)))
	}
	_ = pw.Close()
	rest, err := io.ReadAll(br)
	c.Note(name("rest"), fmt.Sprintf("%q %s", rest, classes(err)))
	c.noteEnd(req, resp, name)
}

// parallel makes many requests at once; each must get its own answer.
func parallel(c *Client) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	right := 0
	for i := range 16 {
		wg.Go(func() {
			for j := range 4 {
				path := fmt.Sprintf("/%d/%d", i, j)
				resp, err := c.RT.RoundTrip(c.Request("POST", path, strings.NewReader(path)))
				if err != nil {
					return
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err == nil && string(body) == path {
					mu.Lock()
					right++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	c.Note("right answers", fmt.Sprint(right))
}
