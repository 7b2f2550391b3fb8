package difftest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing/iotest"
)

// The scenarios of this file and the next ones have a handler on a real server,
// and run on all roads: net/http and ours must ask it the same, and make the
// same of its answer, whatever is spoken and whatever is in between.

// sayOK answers a request that it has read.
func sayOK(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	_, _ = io.WriteString(w, "ok")
}

// asked: requests, as a handler sees them.
func asked() (list []Scenario) {
	for _, m := range []string{"", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE", "QUERY"} {
		on := basic
		if m == "GET" || m == "POST" {
			on = nil
		}
		list = append(list, Scenario{Name: "asked with " + m, On: on, Handle: sayOK, Run: func(c *Client) {
			set := func(r *http.Request) { r.Method = m }
			c.Do(c.Request("GET", "/x?q=1", nil, set))
			c.Do(c.Request("GET", "/", http.NoBody, set))
			c.Do(c.Request("GET", "/", strings.NewReader("body"), set))
			c.Do(c.Request("GET", "/", NewBody(strings.NewReader("")), set))
			c.Do(c.Request("GET", "/", NewBody(strings.NewReader("body")), set))
			c.Do(c.Request("GET", "/", NewBody(strings.NewReader("body")), set, length(4)))
			c.Do(c.Request("GET", "/", nil, set, func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("")) }))
		}, DiffersHTTP2: []Difference{
			{"[47] sent length", "*", "*", "a body of unknown length that is empty is found to be none, as over HTTP/1; net/http sends an empty one"},
		}})
	}
	return append(list, askedBodies()...)
}

// askedBodies: request bodies of any kind and size.
func askedBodies() []Scenario {
	sizes := func(mk func(n int) io.Reader) func(*Client) {
		return func(c *Client) {
			for _, n := range []int{1, 1000, 16<<10 + 1, 200 << 10} {
				c.Do(c.Request("POST", "/unknown", mk(n)))
				c.Do(c.Request("PUT", "/known", mk(n), length(int64(n))))
			}
		}
	}
	piped := func(n int) io.Reader {
		r, w := io.Pipe()
		go func() {
			_, err := w.Write(text(n))
			_ = w.CloseWithError(err)
		}()
		return NewBody(r)
	}
	return []Scenario{
		{Name: "asked from memory", Handle: sayOK, Run: sizes(func(n int) io.Reader { return bytes.NewReader(text(n)) })},
		{Name: "asked from a reader", Handle: sayOK, Run: sizes(func(n int) io.Reader { return NewBody(reader(n)) })},
		{Name: "asked from a pipe", Handle: sayOK, Run: sizes(piped)},
		{Name: "asked, data with EOF", Handle: sayOK, Run: sizes(func(n int) io.Reader {
			return NewBody(iotest.DataErrReader(reader(n)))
		})},
		{Name: "asked, empty reads", Handle: sayOK, Run: func(c *Client) {
			c.Do(c.Request("POST", "/", NewBody(&hesitant{r: reader(1000)})))
			c.Do(c.Request("POST", "/", NewBody(&hesitant{r: reader(1000)}), length(1000)))
		}},
		{Name: "asked with chunks", Handle: sayOK, Run: func(c *Client) {
			te := func(r *http.Request) { r.TransferEncoding = []string{"chunked"} }
			c.Do(c.Request("POST", "/", NewBody(reader(5)), length(5), te))
			c.Do(c.Request("POST", "/", reader(5), te))
		}},
		{Name: "asked with a wrong length", Handle: sayOK, Run: func(c *Client) {
			c.Do(c.Request("POST", "/short", NewBody(reader(5)), length(10)))
			c.Do(c.Request("POST", "/long", NewBody(reader(15)), length(10)))
			c.Do(c.Request("POST", "/none", nil, length(10)))
			c.Get("/after")
		}, Differs: misfit, DiffersHTTP2: []Difference{
			{"3 error", "nil", "error", "a length without a body is refused, as over HTTP/1"},
		}},
		{Name: "asked, body fails", Handle: sayOK, Run: func(c *Client) {
			c.Do(c.Request("POST", "/at-once", NewBody(iotest.ErrReader(errBody))))
			c.Do(c.Request("POST", "/later", NewBody(io.MultiReader(reader(100000), iotest.ErrReader(errBody)))))
			c.Do(c.Request("POST", "/with-data", NewBody(&lastWords{p: text(100)}), length(200)))
			c.Get("/after")
		}, Differs: misfit},
		{Name: "asked again with the same request", Handle: sayOK, Run: func(c *Client) {
			req := c.Request("PUT", "/", strings.NewReader("body"))
			c.Do(req)
			for range 2 {
				req.Body, _ = req.GetBody()
				c.Do(req)
			}
			c.Do(req) // its body has been read: shorter than announced
		}, Differs: slices.Concat([]Difference{
			{"4 error", "nil", "error", "the body is what it is; on a connection that was used before net/http takes another one from GetBody"},
		}, misfit)},
		{Name: "asked, then changed", Handle: sayOK, Run: func(c *Client) {
			// It is the caller's again when the response body has been closed.
			req := c.Request("POST", "/one", NewBody(reader(100000)))
			for _, path := range []string{"/two", "/three"} {
				c.Do(req)
				req.URL.Path, req.Method, req.Host = path, "PUT", "other.example"
				req.Header.Set("X-Path", path)
				req.Body, req.ContentLength = NewBody(reader(50000)), 50000
			}
			c.Do(req)
		}},
	}
}

// misfit: how much of a request that cannot be sent arrives.
var misfit = []Difference{ //nolint:gochecknoglobals // a constant
	{"[1234] sent *", "*", "*", "how much of a request that cannot be sent arrives is not fixed"},
	{"connections", "*", "*", "ours dials nothing for a request that cannot be sent"},
}

// hesitant reads nothing every other time.
type hesitant struct {
	r   io.Reader
	now bool
}

func (h *hesitant) Read(p []byte) (int, error) {
	if h.now = !h.now; !h.now {
		return h.r.Read(p[:min(len(p), 100)])
	}
	return 0, nil
}

// lastWords gives its data together with an error.
type lastWords struct{ p []byte }

func (l *lastWords) Read(p []byte) (int, error) {
	n := copy(p, l.p)
	l.p = l.p[n:]
	return n, errBody
}

// askedFields: header lines, and what URLs become.
func askedFields() (list []Scenario) {
	set := func(kv ...string) func(*http.Request) {
		return func(r *http.Request) {
			for i := 0; i < len(kv); i += 2 {
				r.Header[kv[i]] = append(r.Header[kv[i]], kv[i+1])
			}
		}
	}
	for _, row := range []struct {
		name string
		edit func(*http.Request)
	}{
		{"many fields", set("Zoo", "1", "Accept", "a/b", "X-Many", "1", "X-Many", "2", "etag", "lower", "Cookie", "a=1; b=2", "Cookie", "c=3")},
		{"large fields", set("X-Large", string(text(60<<10)))},
		{"odd values", set("X-A", "  v \t", "X-B", "", "X-C", "a\tb", "X-D", "caf\xc3\xa9\xff")},
		{"no values", func(r *http.Request) { r.Header["X-None"], r.Header["X-Empty"] = nil, []string{} }},
		{"own framing", set("Content-Length", "77", "Transfer-Encoding", "chunked", "Trailer", "X", "Host", "other")},
		{"user agent", set("User-Agent", "me/1")},
		{"no user agent", set("User-Agent", "")},
		{"Host", func(r *http.Request) { r.Host = "other.example:81" }},
		{"IDNA Host", func(r *http.Request) { r.Host = "b\u00fccher.example" }},
		{"Host with zone", func(r *http.Request) { r.Host = "[fe80::1%25eth0]:80" }},
		{"connection keep-alive", set("Connection", "keep-alive")},
		{"connection other", set("Connection", "x-other", "X-Other", "1")},
		{"keep-alive", set("Keep-Alive", "timeout=5")},
		{"proxy-connection", set("Proxy-Connection", "keep-alive")},
		{"TE trailers", set("TE", "trailers")},
		{"TE gzip", set("TE", "gzip")},
		{"accept-encoding", set("Accept-Encoding", "br")},
		{"range", set("Range", "bytes=0-1")},
		{"authorization", set("Authorization", "Bearer t", "Proxy-Authorization", "Basic x")},
		{"user in the URL", func(r *http.Request) { r.URL.User = url.UserPassword("me", "secret") }},
		{"empty path", func(r *http.Request) { r.URL.Path = "" }},
		{"escapes", func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/a/b c\u00e4", "/a%2Fb%20c\u00e4" }},
		{"query", func(r *http.Request) { r.URL.RawQuery = "a=%zz&b=c;d" }},
		{"forced query", func(r *http.Request) { r.URL.ForceQuery = true }},
		{"fragment", func(r *http.Request) { r.URL.Fragment = "f" }},
		{"opaque path", func(r *http.Request) { r.URL.Opaque = "/o%2Fp" }},
		{"star", func(r *http.Request) { r.Method, r.URL.Path, r.URL.Opaque = "OPTIONS", "", "*" }},
		{"two slashes", func(r *http.Request) { r.URL.Path = "//double" }},
		{"bad name", set("X A", "1")},
		{"bad value", set("X-A", "1\r\nX-B: 2")},
		{"bad method", func(r *http.Request) { r.Method = "G T" }},
		{"bad trailer", func(r *http.Request) { r.Trailer = http.Header{"Content-Length": {"1"}} }},
		{"bad Host", func(r *http.Request) { r.Host = "a b" }},
		{"nil header", func(r *http.Request) { r.Header = nil }},
		{"nil URL", func(r *http.Request) { r.URL = nil }},
		{"RequestURI", func(r *http.Request) { r.RequestURI = "/x" }},
	} {
		var differs []Difference
		switch row.name {
		case "bad trailer":
			const why = "a wrong trailer is refused even where none would be sent"
			differs = []Difference{{"1 error", "*", "error", why}, {"[13] sent to the proxy", "*", "*", why}, {"connections", "*", "1", why}}
		case "bad Host":
			differs = []Difference{{"connections", "*", "1", "what cannot be sent is refused before a dial"}}
		}
		list = append(list, Scenario{Name: "asked, " + row.name, On: basic, Handle: sayOK, Differs: differs, Run: func(c *Client) {
			c.Do(c.Request("GET", "/", nil, row.edit))
			c.Do(c.Request("POST", "/", NewBody(reader(5)), row.edit))
			c.Get("/after")
		}})
	}
	return list
}

// answered: responses of a handler.
func answered() (list []Scenario) {
	for _, code := range []int{200, 201, 204, 205, 206, 299, 300, 304, 400, 401, 404, 417, 500, 503, 599, 999} {
		list = append(list, Scenario{Name: fmt.Sprint("answered ", code), On: basic, Handle: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("X-A", "1")
			w.WriteHeader(code)
			if r.URL.Path == "/body" {
				_, _ = io.WriteString(w, "body")
			}
		}, Run: func(c *Client) {
			for _, m := range []string{"GET", "HEAD", "POST"} {
				c.Do(c.Request(m, "/", nil))
				c.Do(c.Request(m, "/body", nil))
			}
		}})
	}
	big := string(text(200 << 10))
	for _, row := range []struct {
		name   string
		handle func(w http.ResponseWriter, r *http.Request)
	}{
		{"with nothing", func(http.ResponseWriter, *http.Request) {}},
		{"with a large body", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, big) }},
		{"with a length", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "hello")
		}},
		{"with length 0", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "0") }},
		{"with a flush first", func(w http.ResponseWriter, _ *http.Request) {
			flush(w)
			_, _ = io.WriteString(w, "hello")
		}},
		{"with a flush and no body", func(w http.ResponseWriter, _ *http.Request) { flush(w) }},
		{"with flushes", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 3 {
				_, _ = fmt.Fprintf(w, "part %d", i)
				flush(w)
			}
		}},
		{"with too little", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "short")
		}},
		{"with nothing of a length", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
		}},
		{"with too much", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			_, _ = io.WriteString(w, "hel")
			_, _ = io.WriteString(w, "lo and more")
		}},
		{"with many fields", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 100 {
				w.Header().Add(fmt.Sprint("X-", i%30), fmt.Sprint(i))
			}
			w.Header()["Set-Cookie"] = []string{"a=1", "b=2"}
			w.Header()["X-Empty"] = []string{""}
			w.Header().Set("Content-Type", "text/plain")
		}},
		{"with large fields", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Large", big[:100<<10]) }},
		{"with close", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			_, _ = io.WriteString(w, "bye")
		}},
		{"with an abort", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{"with an abort in the body", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "begun")
			flush(w)
			panic(http.ErrAbortHandler)
		}},
		{"with an abort in a length", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "begun")
			flush(w)
			panic(http.ErrAbortHandler)
		}},
		{"with interim answers", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Add("Link", "</a>")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusProcessing)
			w.Header().Add("Link", "</b>")
			w.WriteHeader(http.StatusOK)
			_, _ = io.WriteString(w, "ok")
		}},
	} {
		on := basic
		switch row.name { // they tell of the end of a connection, or take their time
		case "with close", "with too little", "with an abort", "with an abort in the body", "with flushes", "with a large body":
			on = nil
		}
		list = append(list, Scenario{Name: "answered " + row.name, On: on, Handle: row.handle, Run: func(c *Client) {
			c.Get("/")
			c.Do(c.Request("POST", "/", nil))
			c.doTraced(c.Request("GET", "/traced", nil))
			if !strings.Contains(row.name, "abort in") { // such a HEAD is whole, and its connection as good as closed
				c.Do(c.Request("HEAD", "/", nil))
			}
			c.Get("/after")
		}})
	}
	return list
}

// trailers: in both directions.
func trailers() (list []Scenario) {
	for _, row := range []struct {
		name   string
		handle http.HandlerFunc
	}{
		{"announced", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-A, X-B")
			w.Header().Add("Trailer", "X-Unset")
			_, _ = io.WriteString(w, "body")
			w.Header().Set("X-A", "1")
			w.Header()["X-B"] = []string{"2", "3"}
		}},
		{"announced, no body", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-A")
			w.WriteHeader(http.StatusOK)
			w.Header().Set("X-A", "1")
		}},
		{"announced, flushed", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-A")
			_, _ = io.WriteString(w, "body")
			flush(w)
			w.Header().Set("X-A", "1")
		}},
		{"not announced", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "body")
			flush(w)
			w.Header().Set(http.TrailerPrefix+"X-A", "1")
		}},
		{"forbidden", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-A, Content-Length")
			_, _ = io.WriteString(w, "body")
			flush(w)
			w.Header().Set("X-A", "1")
			w.Header().Set(http.TrailerPrefix+"Content-Length", "7")
		}},
		{"after a large body", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-A")
			_, _ = w.Write(text(200 << 10))
			w.Header().Set("X-A", "1")
		}},
	} {
		list = append(list, Scenario{Name: "trailer " + row.name, On: basic, Handle: row.handle, Run: func(c *Client) {
			c.Get("/")
			c.Do(c.Request("HEAD", "/", nil))
			c.Get("/after")
		}})
	}
	trailer := func(r *http.Request) { r.Trailer = http.Header{"X-B": {"1", "2"}, "X-A": {"3"}, "X-Nil": nil} }
	return append(list, Scenario{Name: "trailer of the request", Handle: sayOK, Run: func(c *Client) {
		c.Do(c.Request("POST", "/", NewBody(reader(10)), trailer))
		c.Do(c.Request("POST", "/", NewBody(reader(1<<17)), trailer))
		c.Do(c.Request("POST", "/", NewBody(reader(0)), trailer))
		c.Do(c.Request("POST", "/known", NewBody(reader(3)), trailer, length(3)))
		c.Do(c.Request("POST", "/memory", reader(3), trailer))
		if !c.Road.HTTP2 { // net/http never ends it, and neither do we
			c.Do(c.Request("GET", "/", nil, trailer))
		}
		c.Get("/after")
	}}, Scenario{Name: "trailer set while sending", Handle: sayOK, Run: func(c *Client) {
		for _, names := range [][]string{{"X-Late"}, {"X-Late", "X-Never"}} {
			req := c.Request("POST", "/", nil)
			req.Trailer = make(http.Header)
			for _, name := range names {
				req.Trailer[name] = nil
			}
			name := c.next()
			req.Body = io.NopCloser(io.MultiReader(reader(100), reading(func() { req.Trailer.Set("X-Late", "v") })))
			req.ContentLength = -1
			resp, err := c.RT.RoundTrip(req)
			c.noteError(name("error"), err)
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		}
	}})
}
