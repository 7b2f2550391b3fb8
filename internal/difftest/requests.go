package difftest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing/iotest"
)

// methods: every method, without and with a body.
func methods() (list []Scenario) {
	for _, m := range []string{"", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE", "PROPFIND", "QUERY", "get"} {
		list = append(list, Scenario{Name: "method " + m, Serve: func(x *Exchange) {
			x.Body()
			if x.Req.Method == http.MethodHead {
				x.Write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
				return
			}
			x.Write(ok)
		}, Run: func(c *Client) {
			set := func(r *http.Request) { r.Method = m }
			c.Do(c.Request("GET", "/", nil, set))
			c.Do(c.Request("GET", "/", http.NoBody, set))
			c.Do(c.Request("GET", "/", strings.NewReader("body"), set))
			c.Do(c.Request("GET", "/", NewBody(strings.NewReader("body")), set)) // of unknown length
			c.Do(c.Request("GET", "/", NewBody(strings.NewReader("")), set))
			c.Do(c.Request("GET", "/", NewBody(strings.NewReader("body")), set, length(4)))
			c.Do(c.Request("GET", "/", nil, set, func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("")) }))
		}})
	}
	return list
}

func length(n int64) func(*http.Request) {
	return func(r *http.Request) { r.ContentLength = n }
}

// bodies: how a body is sent, by its size and kind.
func bodies() (list []Scenario) {
	kinds := []struct {
		name string
		make func(n int) io.Reader
	}{
		{"bytes.Reader", func(n int) io.Reader { return bytes.NewReader(text(n)) }},
		{"bytes.Buffer", func(n int) io.Reader { return bytes.NewBuffer(text(n)) }},
		{"strings.Reader", func(n int) io.Reader { return strings.NewReader(string(text(n))) }},
		{"own reader", func(n int) io.Reader { return NewBody(reader(n)) }},
		{"data with EOF", func(n int) io.Reader { return NewBody(iotest.DataErrReader(reader(n))) }},
		{"half reads", func(n int) io.Reader { return NewBody(iotest.HalfReader(reader(n))) }},
		{"pipe", func(n int) io.Reader {
			r, w := io.Pipe()
			go func() {
				_, err := w.Write(text(n))
				_ = w.CloseWithError(err)
			}()
			return r
		}},
	}
	for _, k := range kinds {
		list = append(list, Scenario{Name: "body " + k.name, Run: func(c *Client) {
			for _, n := range []int{1, 1 << 10, 16<<10 - 1, 16 << 10, 16<<10 + 1, 64 << 10, 1 << 20} {
				c.Do(c.Request("POST", "/unknown", k.make(n)))
				c.Do(c.Request("PUT", "/known", k.make(n), length(int64(n))))
			}
		}})
	}
	trailer := func(r *http.Request) { r.Trailer = http.Header{"X-B": {"1", "2"}, "X-A": {"3"}, "X-Nil": nil} }
	return append(list, Scenario{Name: "trailer", Run: func(c *Client) {
		c.Do(c.Request("POST", "/", NewBody(reader(10)), trailer))
		c.Do(c.Request("POST", "/", NewBody(reader(1<<17)), trailer))
		c.Do(c.Request("POST", "/", NewBody(reader(0)), trailer))
		c.Do(c.Request("POST", "/known", NewBody(reader(3)), trailer, length(3))) // dropped: no chunks
		c.Do(c.Request("GET", "/", nil, trailer))
		late := c.Request("POST", "/late", nil)
		late.Trailer = http.Header{"X-Late": nil}
		late.Body = io.NopCloser(io.MultiReader(strings.NewReader("x"), reading(func() { late.Trailer.Set("X-Late", "v") })))
		late.ContentLength = -1
		c.Note("late", "set while the body is read")
		resp, err := c.RT.RoundTrip(late)
		c.Note("late error", classes(err))
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}}, Scenario{Name: "transfer encoding asked for", Run: func(c *Client) {
		te := func(v ...string) func(*http.Request) {
			return func(r *http.Request) { r.TransferEncoding = v }
		}
		c.Do(c.Request("POST", "/1", NewBody(reader(5)), length(5), te("chunked")))
		c.Do(c.Request("POST", "/2", reader(5), te("chunked")))
		c.Do(c.Request("POST", "/3", nil, te("chunked")))
		c.Do(c.Request("GET", "/4", nil, te("identity")))
		c.Do(c.Request("PUT", "/5", NewBody(reader(5)), length(5), te("identity")))
		for i, method := range []string{"GET", "POST"} { // a trailer behind nothing
			c.Do(c.Request(method, fmt.Sprint("/6/", i), NewBody(reader(0)), te("chunked"), trailer))
			c.Do(c.Request(method, fmt.Sprint("/7/", i), http.NoBody, te("chunked"), trailer))
			c.Do(c.Request(method, fmt.Sprint("/8/", i), reader(0), te("chunked")))
		}
	}})
}

// reading is a reader without bytes that calls f when it is read.
type reading func()

func (f reading) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

// brokenBodies: bodies that are not what the request says, or fail.
func brokenBodies() (list []Scenario) {
	const cut = "how much of the head arrives before a known misfit is found is not fixed"
	rows := []struct {
		name string
		body func() io.Reader
		edit func(*http.Request)
	}{
		{"shorter", func() io.Reader { return NewBody(reader(5)) }, length(10)},
		{"longer", func() io.Reader { return NewBody(reader(15)) }, length(10)},
		{"shorter in memory", func() io.Reader { return reader(5) }, length(10)},
		{"longer in memory", func() io.Reader { return reader(15) }, length(10)},
		{"much shorter", func() io.Reader { return NewBody(reader(1 << 16)) }, length(1 << 17)},
		{"much longer", func() io.Reader { return NewBody(reader(1 << 17)) }, length(1 << 16)},
		{"fails at once", func() io.Reader { return NewBody(iotest.ErrReader(errBody)) }, length(10)},
		{"fails at once, unknown length", func() io.Reader { return NewBody(iotest.ErrReader(errBody)) }, length(-1)},
		{"fails later", func() io.Reader {
			return NewBody(io.MultiReader(reader(1<<16), iotest.ErrReader(errBody)))
		}, length(-1)},
		{"fails with ErrUnexpectedEOF", func() io.Reader {
			return NewBody(io.MultiReader(reader(9), iotest.ErrReader(io.ErrUnexpectedEOF)))
		}, length(-1)},
		{"length without a body", func() io.Reader { return nil }, length(10)},
		{"length with NoBody", func() io.Reader { return nil }, func(r *http.Request) {
			r.Body, r.ContentLength = http.NoBody, 10
		}},
	}
	for _, r := range rows {
		differs := []Difference{
			{"1 sent head", "*", "*", cut},
			{"1 sent body", "*", "*", cut},
			{"1 sent trailer", "*", "*", cut},
			{"1 sent on", "*", "*", cut},
			{"connections", "*", "*", "ours dials nothing for a request that cannot be sent"},
		}
		if r.name == "much longer" {
			differs = append(differs, Difference{"1 *", "*", "*", "net/http sends what was announced, and may be answered before it looks for more"})
		}
		list = append(list, Scenario{Name: "broken body " + r.name, Run: func(c *Client) {
			c.Do(c.Request("POST", "/", r.body(), r.edit))
		}, Differs: differs})
	}
	return list
}

// fields: which header lines are sent, in which order.
func fields() (list []Scenario) {
	set := func(kv ...string) func(*http.Request) {
		return func(r *http.Request) {
			for i := 0; i < len(kv); i += 2 {
				r.Header[kv[i]] = append(r.Header[kv[i]], kv[i+1])
			}
		}
	}
	rows := []struct {
		name string
		edit func(*http.Request)
	}{
		{"many", set("Zoo", "1", "Accept", "a/b", "accept", "lower", "X-Many", "1", "X-Many", "2", "X-Many", "3", "ETag", "odd")},
		{"more than fit the stack", func(r *http.Request) {
			for i := range 100 {
				r.Header.Add(fmt.Sprintf("X-%d", i%40), fmt.Sprint(i))
			}
		}},
		{"large", set("Cookie", string(text(60<<10)))},
		{"blanks", set("X-A", "  v \t", "X-B", "", "X-C", "a\tb", "X-D", "caf\xc3\xa9\xff")},
		{"no values", func(r *http.Request) { r.Header["X-None"], r.Header["X-Empty"] = nil, []string{} }},
		{"own framing", set("Content-Length", "77", "Transfer-Encoding", "chunked", "Trailer", "X", "Host", "other")},
		{"user agent", set("User-Agent", "me/1")},
		{"two user agents", set("User-Agent", "me/1", "User-Agent", "me/2")},
		{"empty user agent", set("User-Agent", "")},
		{"nil user agent", func(r *http.Request) { r.Header["User-Agent"] = nil }},
		{"host", func(r *http.Request) { r.Host = "other.example:81" }},
		{"host upper case", func(r *http.Request) { r.Host = "OTHER.example" }},
		{"host IDNA", func(r *http.Request) { r.Host = "bücher.example" }},
		{"host with zone", func(r *http.Request) { r.Host = "[fe80::1%25eth0]:80" }},
		{"host with path", func(r *http.Request) { r.Host = "other.example/x" }},
		{"connection close", set("Connection", "close")},
		{"connection Close", set("Connection", "Close")},
		{"connection list", set("Connection", "foo, close")},
		{"connection second line", set("Connection", "foo", "Connection", "close")},
		{"connection keep-alive", set("Connection", "keep-alive")},
		{"connection xclose", set("Connection", "xclose")},
		{"Request.Close", func(r *http.Request) { r.Close = true }},
		{"Request.Close and connection", func(r *http.Request) {
			r.Close = true
			r.Header.Set("Connection", "keep-alive")
		}},
		{"Request.Close and connection close", func(r *http.Request) {
			r.Close = true
			r.Header.Set("Connection", "close")
		}},
		{"accept-encoding", set("Accept-Encoding", "br")},
		{"empty accept-encoding", set("Accept-Encoding", "")},
		{"range", set("Range", "bytes=0-1")},
		{"idempotency key unsent", func(r *http.Request) { r.Header["Idempotency-Key"] = nil }},
		{"proxy lines", set("Proxy-Connection", "close", "Proxy-Authorization", "Basic x")},
		{"empty header", func(r *http.Request) { r.Header = http.Header{} }},
		{"fields for servers", func(r *http.Request) {
			r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.0", 1, 0
			r.RemoteAddr, r.Pattern, r.TLS = "192.0.2.1:1", "GET /", &tls.ConnectionState{}
			r.Form, r.PostForm = url.Values{"a": {"b"}}, url.Values{"c": {"d"}}
			r.Response = &http.Response{StatusCode: http.StatusFound}
		}},
		{"unknown length without a body", func(r *http.Request) {
			if r.Body == nil {
				r.ContentLength = -1
			}
		}},
	}
	for _, r := range rows {
		s := Scenario{Name: "header " + r.name, Run: func(c *Client) {
			c.Do(c.Request("GET", "/", nil, r.edit))
			c.Do(c.Request("POST", "/", strings.NewReader("hello"), r.edit))
			c.Do(c.Request("PUT", "/", NewBody(strings.NewReader("hello")), r.edit))
		}}
		switch r.name {
		case "unknown length without a body":
			const why = "an unknown length of no body is none; net/http fails, over HTTP/1 only"
			s.Differs = []Difference{
				{"1 error", "error", "nil", why},
				{"2 sent on", "a new connection", "a used connection", why},
				{"connections", "2", "1", why},
			}
		case "connection close", "connection Close", "connection list", "connection second line":
			const why = "a request that says close ends its connection (RFC 9112 section 9.6); net/http heeds only Request.Close"
			s.Differs = []Difference{
				{"connections", "1", "3", why},
				{"[23] sent on", "a used connection", "a new connection", why},
			}
		}
		list = append(list, s)
	}
	return list
}

// targets: what of a URL stands on the request line.
func targets() (list []Scenario) {
	for _, path := range []string{
		"", "/", "/a/b", "/a%2Fb", "/a b", "/ä", "//double", "/x?", "?q=1", "/x?q=a b", "/x?q=a%20b&r=%zz", "/x#fragment", "/x?q#f",
		"/;p", "/%41", "/a\"b<c>", "/*",
	} {
		list = append(list, Scenario{Name: "target " + path, Run: func(c *Client) {
			u, err := url.Parse(c.Server.URL(path))
			if err != nil {
				c.T.Fatal(err)
			}
			c.Do(c.Request("GET", "/", nil, func(r *http.Request) { r.URL = u }))
		}, Differs: spaceInTarget(strings.Contains(path, "?q=a b"))})
	}
	rows := []struct {
		name string
		edit func(*url.URL)
	}{
		{"user", func(u *url.URL) { u.User = url.UserPassword("me", "secret") }},
		{"opaque path", func(u *url.URL) { u.Opaque = "/opaque%2Fpath" }},
		{"opaque authority", func(u *url.URL) { u.Opaque = "//other.example/p" }},
		{"opaque absolute", func(u *url.URL) { u.Opaque = "http://other.example/p" }},
		{"opaque and query", func(u *url.URL) { u.Opaque, u.RawQuery = "/o", "q=1" }},
		{"opaque with space", func(u *url.URL) { u.Opaque = "/a b" }},
		{"star", func(u *url.URL) { u.Path, u.Opaque = "", "*" }},
		{"path without slash", func(u *url.URL) { u.Path = "x" }},
		{"raw query with space", func(u *url.URL) { u.Path, u.RawQuery = "/", "a b" }},
		{"raw query with line end", func(u *url.URL) { u.Path, u.RawQuery = "/", "a\r\nX: y" }},
		{"raw query not ASCII", func(u *url.URL) { u.Path, u.RawQuery = "/", "q=ä" }},
		{"force query", func(u *url.URL) { u.ForceQuery = true }},
		{"fragment", func(u *url.URL) { u.Fragment = "f" }},
		{"upper case scheme", func(u *url.URL) { u.Scheme = strings.ToUpper(u.Scheme) }},
	}
	for _, r := range rows {
		s := Scenario{Name: "target " + r.name, Run: func(c *Client) {
			c.Do(c.Request("OPTIONS", "/", nil, func(q *http.Request) { r.edit(q.URL) }))
		}, Differs: spaceInTarget(strings.Contains(r.name, "with space"))}
		if r.name == "raw query with line end" {
			s.Differs = []Difference{{"connections", "1", "0", "checked before anything is dialed"}}
		}
		list = append(list, s)
	}
	return list
}

func spaceInTarget(yes bool) []Difference {
	if !yes {
		return nil
	}
	const why = "a space would end the request target (RFC 9112 section 3); net/http sends it all the same"
	return []Difference{
		{"1 error", "EOF error", "error", why},
		{"1 sent *", "*", "absent", why},
		{"connections", "1", "0", why},
	}
}

// hosts: what is dialed, and the Host line, for hosts that are not addresses.
func hosts() (list []Scenario) {
	for _, host := range []string{
		"example.com", "EXAMPLE.com", "example.com.", "example.com:8080", "example.com:", "example.com:80", "example.com:443",
		"[::1]", "[::1]:8080", "[fe80::1%25eth0]:80", "bücher.example", "BÜCHER.example:81", "xn--bcher-kva.example",
		"_under.example", "127.1",
	} {
		var differs []Difference
		if host == "EXAMPLE.com" {
			const why = "host names have no case (RFC 9110 section 4.2.3): one pool for both spellings"
			differs = []Difference{
				{"dialed", "*", "*", why},
				{"dialed again", "*", "absent", why},
				{"2 sent on", "a new connection", "a used connection", why},
				{"connections", "2", "1", why},
			}
		}
		list = append(list, Scenario{Name: "host " + host, Differs: differs, Setup: func(tr *http.Transport, s *Server) {
			tr.TLSClientConfig.ServerName = "example.com"
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				s.note("dialed", network+" "+addr)
				var d net.Dialer
				return d.DialContext(ctx, "tcp", s.Addr)
			}
		}, Run: func(c *Client) {
			c.Do(c.RequestURL("GET", c.Server.Scheme+"://"+host+"/x", nil))
			c.Do(c.RequestURL("GET", c.Server.Scheme+"://"+strings.ToLower(host)+"/y", nil))
		}})
	}
	return list
}

// invalid: requests that must not be sent. The body is closed all the same.
func invalid() (list []Scenario) {
	rows := []struct {
		name string
		edit func(*http.Request)
	}{
		{"nil URL", func(r *http.Request) { r.URL = nil }},
		{"nil header", func(r *http.Request) { r.Header = nil }},
		{"no host", func(r *http.Request) { r.URL.Host = "" }},
		{"no scheme", func(r *http.Request) { r.URL.Scheme = "" }},
		{"bad scheme", func(r *http.Request) { r.URL.Scheme = "ftp" }},
		{"method with space", func(r *http.Request) { r.Method = "GE T" }},
		{"method with line end", func(r *http.Request) { r.Method = "GET\r\n" }},
		{"name with space", func(r *http.Request) { r.Header["X A"] = []string{"1"} }},
		{"name with colon", func(r *http.Request) { r.Header["X:"] = []string{"1"} }},
		{"empty name", func(r *http.Request) { r.Header[""] = []string{"1"} }},
		{"bad name without values", func(r *http.Request) { r.Header["X A"] = nil }},
		{"value with line end", func(r *http.Request) { r.Header["X-A"] = []string{"1\r\nX-B: 2"} }},
		{"value with NUL", func(r *http.Request) { r.Header["X-A"] = []string{"\x00"} }},
		{"bad trailer name", func(r *http.Request) { r.Trailer = http.Header{"X A": {"1"}} }},
		{"bad trailer value", func(r *http.Request) { r.Trailer = http.Header{"X-A": {"1\n"}} }},
		{"framing trailer", func(r *http.Request) { r.Trailer = http.Header{"Content-Length": {"1"}} }},
		{"host with space", func(r *http.Request) { r.Host = "a b" }},
		{"host with line end", func(r *http.Request) { r.Host = "a\r\nX: y" }},
		{"bad port", func(r *http.Request) { r.URL.Host = "127.0.0.1:99999" }},
		{"port no number", func(r *http.Request) { r.URL.Host = "127.0.0.1:x" }},
		{"RequestURI", func(r *http.Request) { r.RequestURI = "/x" }},
		{"done context", func(r *http.Request) {
			ctx, cancel := context.WithCancel(r.Context())
			cancel()
			*r = *r.WithContext(ctx)
		}},
	}
	for _, r := range rows {
		var differs []Difference
		if r.name == "framing trailer" {
			const why = "a wrong trailer is refused even where none would be sent"
			differs = []Difference{{"[234] error", "nil", "error", why}, {"connections", "2", "0", why}}
		}
		list = append(list, Scenario{Name: "invalid " + r.name, Differs: differs, Run: func(c *Client) {
			c.Do(c.Request("POST", "/", NewBody(reader(5)), r.edit))
			c.Do(c.Request("POST", "/", NewBody(reader(5)), length(5), r.edit))
			c.Do(c.Request("POST", "/", reader(5), r.edit))
			c.Do(c.Request("GET", "/", nil, r.edit))
		}})
	}
	return list
}
