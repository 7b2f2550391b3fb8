package difftest

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
)

const head = "HTTP/1.1 200 OK\r\n"

func sized(body string) string {
	return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
}

func chunked(chunks ...string) string {
	var b strings.Builder
	b.WriteString(head + "Transfer-Encoding: chunked\r\n\r\n")
	for _, c := range chunks {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(c), c)
	}
	return b.String() + "0\r\n\r\n"
}

// twice does a GET, and one more to see what became of the connection.
func twice(c *Client) {
	c.Get("/")
	c.Get("/again")
}

// framings: how the end of a body is found, and reuse after it.
func framings() (list []Scenario) {
	big := string(text(1 << 20))
	rows := []struct{ name, raw string }{
		{"length 0", sized("")},
		{"length 1", sized("x")},
		{"length 1 MB", sized(big)},
		{"equal lengths", head + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"},
		{"chunks", chunked("one", "two")},
		{"no chunks", chunked()},
		{"large chunks", chunked(big[:70000], big[:1], big[:100000])},
		{"many small chunks", chunked(strings.Split(big[:3000], "")...)},
		{"chunk extension", head + "Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0;c\r\n\r\n"},
		{"CHUNKED", head + "Transfer-Encoding: CHUNKED\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
		{"trailer", head + "Trailer: X-A, X-B\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n"},
		{"trailer not sent", head + "Trailer: X-A\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
		{"trailer not announced", head + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-A: 1\r\nX-A: 2\r\n\r\n"},
		{"trailer after a large body", head + "Trailer: X-A\r\nTransfer-Encoding: chunked\r\n\r\n" +
			fmt.Sprintf("%x\r\n%s\r\n0\r\nX-A: 1\r\n\r\n", len(big), big)},
		{"no reason", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"},
		{"empty reason", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok"},
		{"long reason", "HTTP/1.1 299 All is (very) well\r\nContent-Length: 2\r\n\r\nok"},
		{"header values", head + "content-LENGTH: 2\r\nX-A:\r\nX-A:  v \t\r\nx-a: caf\xc3\xa9\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\nok"},
		{"large header", head + "X: " + big[:200000] + "\r\nContent-Length: 2\r\n\r\nok"},
		{"pragma", head + "Pragma: no-cache\r\nContent-Length: 2\r\n\r\nok"},
		{"keep-alive hint", head + "Connection: keep-alive\r\nKeep-Alive: timeout=60, max=100\r\nContent-Length: 2\r\n\r\nok"},
		{"unknown content encoding", head + "Content-Encoding: br\r\nContent-Length: 2\r\n\r\nok"},
		{"close", head + "Connection: close\r\nContent-Length: 2\r\n\r\nok"},
		{"close in a list", head + "Connection: foo, CLOSE\r\nContent-Length: 2\r\n\r\nok"},
		{"close in the second line", head + "Connection: foo\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"},
		{"xclose", head + "Connection: xclose\r\nContent-Length: 2\r\n\r\nok"},
		{"1.0", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"},
		{"1.0 keep-alive", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"},
		{"1.0 keep-alive in a list", "HTTP/1.0 200 OK\r\nConnection: foo, Keep-Alive\r\nContent-Length: 2\r\n\r\nok"},
		{"1.0 keep-alive and close", "HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\nContent-Length: 2\r\n\r\nok"},
		{"404", "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nok"},
		{"500", "HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
		{"999", "HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nok"},
		{"extra bytes", head + "Content-Length: 2\r\n\r\nokEXTRA"},
	}
	for _, r := range rows {
		list = append(list, Scenario{Name: "response " + r.name, Serve: answerOnce(r.raw), Run: twice})
	}
	for _, r := range []struct{ name, raw string }{
		{"until close", head + "\r\n" + big},
		{"until close, empty", head + "\r\n"},
		{"until close, 1.0", "HTTP/1.0 200 OK\r\n\r\nok"},
		{"until close, keep-alive", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nok"},
		{"cut in a length", head + "Content-Length: 5\r\n\r\nabc"},
		{"cut in a long length", head + "Content-Length: 1000000\r\n\r\n" + big[:99999]},
		{"cut before a body", head + "Content-Length: 5\r\n\r\n"},
		{"cut in a chunk", head + "Transfer-Encoding: chunked\r\n\r\n5\r\nabc"},
		{"cut between chunks", head + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"},
		{"cut in the last chunk", head + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"},
		{"cut in a trailer", head + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-A: 1"},
		{"cut in the head", head + "Content-Le"},
		{"cut in the status line", "HTTP/1."},
		{"nothing at all", ""},
	} {
		list = append(list, Scenario{Name: "response " + r.name, Serve: answerClose(r.raw), Run: twice})
	}
	return list
}

// noBodies: answers that have no body whatever they say.
func noBodies() (list []Scenario) {
	for _, r := range []struct{ name, method, raw string }{
		{"HEAD length", "HEAD", head + "Content-Length: 1000\r\n\r\n"},
		{"HEAD chunked", "HEAD", head + "Transfer-Encoding: chunked\r\n\r\n"},
		{"HEAD nothing", "HEAD", head + "\r\n"},
		{"HEAD gzip", "HEAD", head + "Content-Encoding: gzip\r\nContent-Length: 1000\r\n\r\n"},
		{"HEAD close", "HEAD", head + "Connection: close\r\nContent-Length: 5\r\n\r\n"},
		{"HEAD 404", "HEAD", "HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n"},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"204 to POST", "POST", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"204 length 0", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"},
		{"205", "GET", "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n"},
		{"205 chunked", "GET", "HTTP/1.1 205 Reset Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"},
		{"304 length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n"},
		{"304 chunked", "GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"},
	} {
		list = append(list, Scenario{Name: "bodyless " + r.name, Serve: answerOnce(r.raw), Run: func(c *Client) {
			c.Do(c.Request(r.method, "/", nil))
			c.Get("/again")
		}})
	}
	return list
}

// unasked: bytes behind a bodyless answer, which must never be taken for the
// next one.
func unasked() (list []Scenario) {
	const injected = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ninjected"
	const why = "net/http may take them for the next answer, or fail"
	for _, r := range []struct{ name, method, raw string }{
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n" + injected},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\n\r\n" + injected},
		{"length 0", "GET", sized("") + injected},
		{"HEAD", "HEAD", head + "Content-Length: 8\r\n\r\ninjected"},
		{"HEAD and answer", "HEAD", head + "Content-Length: 8\r\n\r\n" + injected},
		{"length 2", "GET", ok + injected},
		{"chunks", "GET", chunked("one") + injected},
	} {
		list = append(list, Scenario{Name: "unasked behind " + r.name, Serve: answerOnce(r.raw), Run: func(c *Client) {
			c.Do(c.Request(r.method, "/", nil))
			c.Do(c.Request("POST", "/again", nil))
		}, Differs: []Difference{
			{"2 error", "*", errNil, why},
			{"2 body", "*", `"ok"`, why},
			{"2 sent on", "*", "a new connection", why},
			{"2 *", "*", "*", why},
			{"connections", "*", "2", why},
		}})
	}
	return list
}

// interims: 1xx answers before the final one.
func interims() (list []Scenario) {
	for _, r := range []struct{ name, raw string }{
		{"103", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n" + ok},
		{"100 not asked for", "HTTP/1.1 100 Continue\r\n\r\n" + ok},
		{"several", "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + ok},
		{"199", "HTTP/1.1 199 X\r\nX: y\r\n\r\n" + ok},
		{"then cut", "HTTP/1.1 103 Early Hints\r\n\r\n"},
	} {
		list = append(list, Scenario{Name: "interim " + r.name, Serve: answerClose(r.raw), Run: func(c *Client) {
			c.Get("/") // nobody listens
		}}, Scenario{Name: "interim watched " + r.name, Serve: answerClose(r.raw), Run: func(c *Client) {
			var got []string
			c.Get("/", traced(&httptrace.ClientTrace{
				Got100Continue: func() { got = append(got, "100 Continue") },
				Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
					got = append(got, fmt.Sprint(code, " ", h))
					return nil
				},
			}))
			c.Note("interim", strings.Join(got, "; "))
			got = slices.DeleteFunc(got, func(s string) bool { return s == "100 Continue" })
			c.Note("all of Got1xxResponse", strings.Join(got, "; "))
			c.Get("/again")
		}, Differs: []Difference{
			{"interim", "*", "*", "Got100Continue is called for every 100 Continue; net/http does so after Expect only"},
		}})
	}
	return append(list, Scenario{Name: "interim refused by the hook", Serve: answer("HTTP/1.1 103 Early Hints\r\n\r\n" + ok), Run: func(c *Client) {
		c.Get("/", traced(&httptrace.ClientTrace{
			Got1xxResponse: func(int, textproto.MIMEHeader) error { return errBody },
		}))
	}})
}

func traced(t *httptrace.ClientTrace) func(*http.Request) {
	return func(r *http.Request) { *r = *r.WithContext(httptrace.WithClientTrace(r.Context(), t)) }
}

// expects: Expect: 100-continue.
func expects() (list []Scenario) {
	expect := func(r *http.Request) { r.Header.Set("Expect", "100-continue") }
	slow := func(tr *http.Transport, _ *Server) { tr.ExpectContinueTimeout = patience }
	refuse := func(raw string) func(*Exchange) {
		return func(x *Exchange) {
			if x.Req.Header.Get("Expect") == "" {
				x.Body()
				x.Write(ok)
				return
			}
			x.Write(raw) // and look whether the body comes all the same
		}
	}
	unsent := []Difference{
		{"1 sent body", "*", "cut short", "after a final answer the body is not sent; the connection closes instead"},
		{"2 sent on", "a used connection", "a new connection", "for the same reason"},
		{"connections", "1", "2", "for the same reason"},
	}
	post := func(c *Client) {
		c.Do(c.Request("POST", "/", NewBody(reader(1000)), expect, length(1000)))
		c.Get("/again")
	}
	list = []Scenario{
		{Name: "expect 100", Setup: slow, Serve: func(x *Exchange) {
			if x.Req.Header.Get("Expect") != "" {
				x.Write("HTTP/1.1 100 Continue\r\n\r\n")
			}
			x.Body()
			x.Write(ok)
		}, Run: func(c *Client) {
			post(c)
			c.Do(c.Request("PUT", "/chunks", NewBody(reader(1000)), expect))
			c.Do(c.Request("PUT", "/memory", reader(1000), expect))
			c.Do(c.Request("PUT", "/large", NewBody(reader(1<<20)), expect))
			c.Do(c.Request("POST", "/none", nil, expect))
			c.Do(c.Request("POST", "/case", NewBody(reader(10)), func(r *http.Request) { r.Header.Set("Expect", "100-Continue") }))
		}},
		{Name: "expect, silent server", Setup: func(tr *http.Transport, _ *Server) { tr.ExpectContinueTimeout = 1e6 }, Run: post},
		{Name: "expect, no waiting", Run: post},
		{Name: "expect 401", Setup: slow, Serve: refuse("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"), Run: post, Differs: unsent},
		{Name: "expect 401 close", Setup: slow, Serve: refuse("HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"), Run: post},
		{Name: "expect 204", Setup: slow, Serve: refuse("HTTP/1.1 204 No Content\r\n\r\n"), Run: post, Differs: unsent},
		{
			Name: "expect 417", Setup: slow, Serve: refuse("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno"), Run: post,
			Differs: []Difference{
				{"1 *", "*", "*", "417 is repeated without Expect, as RFC 9110 section 10.1.1 has it"},
				{"connections", "1", "2", "the repeated request has a new one: the first body was not sent"},
			},
		},
	}
	return list
}

func zip(parts ...string) string {
	var b bytes.Buffer
	for _, p := range parts {
		w := gzip.NewWriter(&b)
		_, _ = w.Write([]byte(p))
		_ = w.Close()
	}
	return b.String()
}

// gzips: unpacked only if we asked.
func gzips() (list []Scenario) {
	big := string(text(300 << 10))
	packed := func(data string) string {
		return fmt.Sprintf("%sContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", head, len(data), data)
	}
	inChunks := func(data string) string {
		return strings.Replace(chunked(data), "\r\n", "\r\nContent-Encoding: gzip\r\n", 1)
	}
	for _, r := range []struct{ name, raw string }{
		{"small", packed(zip("hello"))},
		{"large", packed(zip(big))},
		{"chunks", inChunks(zip("hello"))},
		{"large chunks", inChunks(zip(big))},
		{"several members", packed(zip("one", "two", ""))},
		{"GZIP", strings.Replace(packed(zip("hello")), ": gzip", ": GZIP", 1)},
		{"truncated", packed(zip(big)[:500])},
		{"truncated checksum", packed(zip("hello")[:len(zip("hello"))-3])},
		{"no gzip at all", packed("hello, this is no gzip")},
		{"empty", packed("")},
		{"junk behind", packed(zip("hello") + "junk")},
		{"wrong checksum", packed(zip("hello")[:len(zip("hello"))-8] + "12345678")},
		{"two encodings", strings.Replace(packed(zip("hello")), ": gzip", ": gzip, br", 1)},
		{"not packed", sized("hello")},
		{"trailer", strings.TrimSuffix(inChunks(zip("hello")), "\r\n") + "X-A: 1\r\n\r\n"},
	} {
		list = append(list, Scenario{Name: "gzip " + r.name, Serve: answerOnce(r.raw), Run: twice})
	}
	own := packed(zip("hello"))
	ask := func(name, value string) func(*Client) {
		return func(c *Client) {
			c.Get("/", func(r *http.Request) { r.Header.Set(name, value) })
			c.Get("/again")
		}
	}
	return append(
		list,
		Scenario{Name: "gzip user asked", Serve: answerOnce(own), Run: ask("Accept-Encoding", "gzip")},
		Scenario{Name: "gzip range", Serve: answerOnce(own), Run: ask("Range", "bytes=0-9")},
		Scenario{Name: "gzip disabled", Serve: answerOnce(own), Run: twice, Setup: func(tr *http.Transport, _ *Server) {
			tr.DisableCompression = true
		}},
		Scenario{Name: "gzip cut", Serve: answerClose(own[:len(own)-4]), Run: twice},
		Scenario{Name: "gzip closed unread", Serve: answerOnce(own), Run: func(c *Client) {
			name := c.next()
			req := c.Request("GET", "/", nil)
			if resp := c.begin(req, name); resp != nil {
				c.noteEnd(req, resp, name)
				_, err := resp.Body.Read(make([]byte, 1))
				c.Note(name("read after close failed"), fmt.Sprint(err != nil && !errors.Is(err, io.EOF)))
			}
		}},
	)
}
