package difftest

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
)

// unpacked: gzip, which is undone only if we asked for it.
func unpacked() (list []Scenario) {
	big := string(text(300 << 10))
	send := func(w http.ResponseWriter, data string) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, data)
	}
	for _, row := range []struct{ name, data string }{
		{"small", zip("hello")},
		{"large", zip(big)},
		{"members", zip("one", "two", "")},
		{"empty", ""},
		{"of nothing", zip("")},
		{"cut", zip(big)[:500]},
		{"without checksum", zip("hello")[:len(zip("hello"))-8]},
		{"wrong", "this is no gzip"},
		{"with junk", zip("hello") + "junk"},
	} {
		list = append(list, Scenario{Name: "unpacked " + row.name, On: basic, Handle: func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/length" {
				w.Header().Set("Content-Length", fmt.Sprint(len(row.data)))
			}
			send(w, row.data)
		}, Run: func(c *Client) {
			c.Get("/")
			c.Get("/length")
			c.Do(c.Request("HEAD", "/length", nil))
			c.Do(c.Request("POST", "/", NewBody(reader(10))))
			c.Get("/", func(r *http.Request) { r.Header.Set("Accept-Encoding", "gzip") })
			c.Get("/", func(r *http.Request) { r.Header.Set("Range", "bytes=0-") })
		}})
	}
	small := func(w http.ResponseWriter, _ *http.Request) { send(w, zip("hello")) }
	return append(
		list,
		Scenario{Name: "unpacked not, compression disabled", On: basic, Handle: small, Setup: func(tr *http.Transport, _ *Server) {
			tr.DisableCompression = true
		}, Run: twice},
		Scenario{Name: "unpacked, no body", On: basic, Handle: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			var code int
			_, _ = fmt.Sscanf(r.URL.Path, "/%d", &code)
			w.WriteHeader(code)
		}, Run: func(c *Client) {
			for _, code := range []int{200, 204, 304} {
				c.Get(fmt.Sprint("/", code))
			}
		}},
		Scenario{Name: "unpacked with a trailer", On: basic, Handle: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-A")
			small(w, r)
			w.Header().Set("X-A", "1")
		}, Run: twice},
		Scenario{Name: "unpacked, some other coding", On: basic, Handle: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", r.URL.Path[1:])
			_, _ = io.WriteString(w, zip("hello"))
		}, Run: func(c *Client) {
			for _, coding := range []string{"GZIP", "x-gzip", "identity", "gzip,%20br"} {
				c.Get("/" + coding)
			}
		}},
		Scenario{Name: "unpacked and dumped", On: basic, Handle: small, Run: func(c *Client) {
			name := c.next()
			resp, err := c.RT.RoundTrip(c.Request("GET", "/", nil))
			c.noteError(name("error"), err)
			if err != nil {
				return
			}
			dump, err := httputil.DumpResponse(resp, true)
			c.Note(name("dump"), fmt.Sprintf("%q %s", dump, classes(err)))
			rest, err := io.ReadAll(resp.Body)
			c.Note(name("again"), fmt.Sprintf("%q %s", rest, classes(err)))
			_ = resp.Body.Close()
		}},
	)
}

// asksFirst: Expect: 100-continue.
func asksFirst() (list []Scenario) {
	expect := func(r *http.Request) { r.Header.Set("Expect", "100-continue") }
	patient := func(tr *http.Transport, _ *Server) { tr.ExpectContinueTimeout = patience }
	post := func(c *Client) {
		c.Do(c.Request("POST", "/", NewBody(reader(1000)), expect, length(1000)))
		c.Do(c.Request("PUT", "/", reader(1000), expect))
		c.Do(c.Request("POST", "/", NewBody(reader(1000)), expect))
		c.Do(c.Request("POST", "/none", nil, expect))
		c.Get("/after")
	}
	list = append(list, Scenario{Name: "asks first", Setup: patient, Handle: sayOK, Run: func(c *Client) {
		post(c)
		c.doTraced(c.Request("POST", "/", NewBody(reader(1000)), expect, length(1000)))
	}}, Scenario{Name: "asks first, without waiting", Handle: sayOK, Run: post})
	for _, code := range []int{200, 401, 417} {
		s := Scenario{Name: fmt.Sprint("asks first, told ", code), Setup: patient, Handle: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, "no")
		}, Run: func(c *Client) {
			c.Do(c.Request("POST", "/", NewBody(reader(1000)), expect, length(1000)))
		}}
		if code == 417 {
			s.Differs = []Difference{
				{"1 *", "*", "*", "417 is repeated without Expect, as RFC 9110 section 10.1.1 has it"},
				{"connections", "*", "*", "for the same reason"},
			}
		}
		list = append(list, s)
	}
	return list
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }

// echoLines says every line again at once.
func echoLines(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	flush(w)
	br := bufio.NewReader(r.Body)
	for {
		line, err := br.ReadString('\n')
		_, _ = io.WriteString(w, line)
		flush(w)
		if err != nil {
			return
		}
	}
}

// sayInTurn says three lines, each when the client has read the one before.
func sayInTurn(w http.ResponseWriter, r *http.Request) {
	s := serverOf(r)
	for i := range 3 {
		_, _ = fmt.Fprintf(w, "data %d\n", i)
		flush(w)
		select {
		case <-s.turn:
		case <-s.done:
		}
	}
}

// hearInTurn says when the head has arrived, and each line: the client sends
// them one by one.
func hearInTurn(w http.ResponseWriter, r *http.Request) {
	s := serverOf(r)
	s.Arrived <- struct{}{}
	br := bufio.NewReader(r.Body)
	for {
		if _, err := br.ReadString('\n'); err != nil {
			break
		}
		s.Arrived <- struct{}{}
	}
	_, _ = io.WriteString(w, "ok")
}

// readInTurn reads what sayInTurn says.
func readInTurn(c *Client) {
	name := c.next()
	req := c.Request("GET", "/", nil)
	resp := c.begin(req, name)
	if resp == nil {
		return
	}
	br := bufio.NewReader(resp.Body)
	for i := range 3 {
		line, err := br.ReadString('\n')
		c.Note(name(fmt.Sprint("line ", i)), fmt.Sprintf("%q %s", line, classes(err)))
		c.Server.turn <- struct{}{}
	}
	rest, err := io.ReadAll(br)
	c.Note(name("rest"), fmt.Sprintf("%q %s", rest, classes(err)))
	c.noteEnd(req, resp, name)
}

// sendInTurn sends what hearInTurn hears.
func sendInTurn(c *Client) {
	pr, pw := io.Pipe()
	go func() {
		for i := range 4 {
			select {
			case <-c.Server.Arrived:
			case <-c.Server.done:
			}
			if i < 3 {
				_, _ = fmt.Fprintf(pw, "line %d\n", i)
			}
		}
		_ = pw.Close()
	}()
	c.Do(c.Request("POST", "/", NewBody(pr)))
}

// readSlowly reads a body in small parts, and beyond its end.
func readSlowly(c *Client) {
	name := c.next()
	req := c.Request("GET", "/", nil)
	resp := c.begin(req, name)
	if resp == nil {
		return
	}
	var got []byte
	p := make([]byte, 7)
	var err error
	for err == nil {
		var n int
		if n, err = resp.Body.Read(p[:0]); n != 0 || err != nil {
			break
		}
		n, err = resp.Body.Read(p)
		got = append(got, p[:n]...)
	}
	c.Note(name("got"), digest(got)+" "+classes(err))
	_, err = resp.Body.Read(p)
	c.Note(name("read again"), classes(err))
	c.noteEnd(req, resp, name)
	_, err = resp.Body.Read(p)
	c.Note(name("read after close failed"), fmt.Sprint(err != nil))
}

// streamed: neither side waits for the other to be done.
func streamed() []Scenario {
	return []Scenario{
		{Name: "streamed both ways", Handle: echoLines, Run: func(c *Client) {
			c.fullDuplex()
			c.Get("/after")
		}},
		{Name: "streamed to the client", Handle: sayInTurn, Run: readInTurn},
		{Name: "streamed to the server", Handle: hearInTurn, Run: sendInTurn},
		{Name: "streamed in small reads", Handle: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(text(10000))
		}, Run: readSlowly},
		{Name: "streamed, answered early", Handle: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			_, _ = io.WriteString(w, "too much")
		}, Run: func(c *Client) {
			c.Do(c.Request("POST", "/", NewBody(endless{})))
			c.Do(c.Request("POST", "/", NewBody(reader(4<<20)), length(4<<20)))
			c.Get("/after")
		}, Differs: []Difference{{"[12] sent body", "*", "*", "how much of it is read is the server's affair"}}},
		{Name: "streamed from what was answered", Handle: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = w.Write(text(1 << 20))
		}, Run: func(c *Client) { // one answer is the body of the next request
			resp, err := c.RT.RoundTrip(c.Request("GET", "/", nil))
			c.noteError("first error", err)
			if err != nil {
				return
			}
			c.Do(c.Request("POST", "/next", NewBody(resp.Body)))
			_ = resp.Body.Close()
		}},
	}
}

// upgradedRoads: 101 Switching Protocols, and the tunnel of a user's CONNECT.
func upgradedRoads() []Scenario {
	// echo says every line again, behind a line that comes with the head.
	hello := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			sayOK(w, r)
			return
		}
		nc, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		defer func() { _ = nc.Close() }()
		_, _ = io.WriteString(rw, switching+"hello\n")
		_ = rw.Flush()
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				_, _ = io.WriteString(nc, "until the end\n")
				return
			}
			if line == "end\n" {
				return
			}
			_, _ = io.WriteString(nc, line)
		}
	}
	const why = "Upgrade is of HTTP/1.1 only (RFC 9113 section 8.6): it goes over a connection of that; net/http fails"
	ours := []Difference{{"*", "*", "*", why}}
	return []Scenario{
		{Name: "upgraded", Handle: hello, Run: func(c *Client) {
			c.upgrade(c.RT, c.Request("GET", "/", nil))
			c.upgrade(c.RT, c.Request("GET", "/", nil))
			c.Get("/after")
		}, DiffersHTTP2: ours},
		{Name: "upgraded, then half closed", Handle: hello, On: overHTTP1, Run: func(c *Client) {
			req := c.Request("GET", "/", nil)
			req.Header.Set("Connection", "upgrade")
			req.Header.Set("Upgrade", "echo")
			name := c.next()
			resp, err := c.RT.RoundTrip(req)
			c.noteError(name("error"), err)
			if err != nil {
				return
			}
			half, ok := resp.Body.(interface{ CloseWrite() error })
			c.Note(name("can half close"), fmt.Sprint(ok))
			if ok {
				c.Note(name("half closed"), fmt.Sprint(half.CloseWrite() == nil))
				rest, err := io.ReadAll(resp.Body)
				c.Note(name("rest"), fmt.Sprintf("%q %s", rest, classes(err)))
			}
			_ = resp.Body.Close()
		}, Differs: []Difference{
			{"1 can half close", "*", "true", "net/http 1.26 has it, too, on some connections only"},
			{"1 half closed", "*", "true", "TLS can be half closed as well"},
			{"1 rest", "*", `"hello\nuntil the end\n" nil`, "for the same reason"},
		}},
		{Name: "upgraded refused", Handle: func(w http.ResponseWriter, r *http.Request) {
			sayOK(w, r)
		}, On: overHTTP1, Run: func(c *Client) {
			for range 2 {
				c.Get("/", func(r *http.Request) {
					r.Header.Set("Connection", "Upgrade")
					r.Header.Set("Upgrade", "echo")
				})
			}
		}},
		{Name: "upgraded by CONNECT", On: direct, Handle: func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 {
				w.WriteHeader(http.StatusOK)
				flush(w)
				line, err := bufio.NewReader(r.Body).ReadString('\n')
				_, _ = io.WriteString(w, strings.ToUpper(line)+classes(err))
				return
			}
			nc, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer func() { _ = nc.Close() }()
			_, _ = io.WriteString(nc, connected)
			line, err := rw.ReadString('\n')
			_, _ = io.WriteString(nc, strings.ToUpper(line)+classes(err))
		}, Run: func(c *Client) {
			pr, pw := io.Pipe()
			req := c.Request("CONNECT", "/", pr)
			req.URL.Path, req.URL.Opaque = "", "target.example:80"
			name := c.next()
			resp := c.begin(req, name)
			if resp == nil {
				return
			}
			_, err := io.WriteString(pw, "line\n")
			c.Note(name("write"), classes(err))
			body, err := io.ReadAll(resp.Body)
			c.Note(name("body"), fmt.Sprintf("%q %s", body, classes(err)))
			_ = pw.Close()
			c.noteEnd(req, resp, name)
		}},
	}
}
