package difftest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
)

// redirecting answers /<status>/<rest> with a redirect of that status to /<rest>,
// and other paths with what it was sent.
func redirecting(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var code int
	rest := ""
	if _, err := fmt.Sscanf(r.URL.Path, "/%d/%s", &code, &rest); err != nil {
		_, _ = fmt.Fprintf(w, "%s %s %q", r.Method, body, r.Cookies())
		return
	}
	http.SetCookie(w, &http.Cookie{Name: "last", Value: fmt.Sprint(code), Path: "/"})
	w.Header().Set("Location", "/"+rest)
	w.WriteHeader(code)
	_, _ = io.WriteString(w, "moved")
}

// clients: what http.Client does is not the transport's affair, but it must find
// what it counts on.
func clients() []Scenario {
	userinfo := func(c *Client, path, user string) *http.Request {
		return c.Request("GET", path, nil, func(r *http.Request) {
			name, password, _ := strings.Cut(user, ":")
			r.URL.User = url.UserPassword(name, password)
		})
	}
	return []Scenario{
		{Name: "client redirected", Handle: redirecting, Run: func(c *Client) {
			hc := &http.Client{Transport: c.RT}
			for _, code := range []int{301, 302, 303, 307, 308} {
				path := fmt.Sprintf("/%d/end", code)
				c.Via(hc, c.Request("GET", path, nil))
				c.Via(hc, c.Request("POST", path, strings.NewReader("body")))
				c.Via(hc, c.Request("PUT", path, NewBody(strings.NewReader("no GetBody"))))
			}
			c.Via(hc, c.Request("POST", "/307/308/302/end", strings.NewReader("body")))
		}},
		{Name: "client redirected without end", On: basic, Handle: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/")
			w.WriteHeader(http.StatusFound)
		}, Run: func(c *Client) { c.Via(&http.Client{Transport: c.RT}, c.Request("GET", "/", nil)) }},
		{Name: "client not to be redirected", On: basic, Handle: redirecting, Run: func(c *Client) {
			c.Via(&http.Client{Transport: c.RT, CheckRedirect: func(*http.Request, []*http.Request) error {
				return http.ErrUseLastResponse
			}}, c.Request("POST", "/307/end", strings.NewReader("body")))
			c.Via(&http.Client{Transport: c.RT, CheckRedirect: func(*http.Request, []*http.Request) error {
				return errBody
			}}, c.Request("GET", "/302/end", nil))
			c.Get("/after")
		}},
		{Name: "client redirected nowhere", On: basic, Handle: func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusFound)
		}, Run: func(c *Client) {
			c.Via(&http.Client{Transport: c.RT}, c.Request("GET", "/", nil))
			c.Get("/after")
		}},
		{Name: "client redirected to another host", On: Road.forwarded, Handle: func(w http.ResponseWriter, r *http.Request) {
			if r.Host == "example.com" {
				http.Redirect(w, r, "http://b.example/", http.StatusTemporaryRedirect)
			}
		}, Run: func(c *Client) {
			c.Via(&http.Client{Transport: c.RT}, c.Request("POST", "/", strings.NewReader("x"), func(r *http.Request) {
				r.Header = http.Header{"Authorization": {"Bearer t"}, "Cookie": {"a=b"}, "X-Kept": {"1"}}
			}))
		}},
		{Name: "client with cookies", On: basic, Handle: redirecting, Run: func(c *Client) {
			jar, err := cookiejar.New(nil)
			if err != nil {
				c.T.Fatal(err)
			}
			hc := &http.Client{Transport: c.RT, Jar: jar}
			c.Via(hc, c.Request("GET", "/302/303/end", nil))
			c.Via(hc, c.Request("GET", "/end", nil))
		}},
		{Name: "client with a user", On: basic, Handle: redirecting, Run: func(c *Client) {
			hc := &http.Client{Transport: c.RT}
			for _, user := range []string{"me:secret", "me:", ":secret"} {
				c.Via(hc, userinfo(c, "/302/end", user))
			}
			own := userinfo(c, "/", "me:secret")
			own.Header.Set("Authorization", "Bearer t")
			c.Via(hc, own)
		}},
		{Name: "client with a user, failing", On: basic, Handle: func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		}, Run: func(c *Client) { // no password in the text
			c.Via(&http.Client{Transport: c.RT}, userinfo(c, "/", "me:secret"))
			c.Do(userinfo(c, "/", "me:secret"))
		}},
	}
}

// behind: httputil.ReverseProxy over the transport, to servers of all kinds.
func behind() []Scenario {
	return []Scenario{
		{Name: "behind a ReverseProxy", Handle: func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			w.Header().Set("Trailer", "X-A")
			_, _ = fmt.Fprint(w, r.Method, " ", digest(body), " ", classes(err))
			flush(w)
			w.Header().Set("X-A", "1")
			w.Header().Set(http.TrailerPrefix+"X-B", "2")
		}, Run: through(func(c *Client, front string, hc *http.Client) {
			for _, body := range []io.Reader{nil, strings.NewReader("x"), NewBody(reader(100000))} {
				c.front(hc, c.RequestURL("POST", front+"/a?b=c", body))
			}
			c.front(hc, c.RequestURL("GET", front+"/", nil))
			c.front(hc, c.RequestURL("HEAD", front+"/", nil))
		})},
		{Name: "behind a ReverseProxy, aborted", Handle: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "begun")
			flush(w)
			panic(http.ErrAbortHandler)
		}, Run: through(func(c *Client, front string, hc *http.Client) {
			c.front(hc, c.RequestURL("POST", front, strings.NewReader("x")))
		})},
		{Name: "behind a ReverseProxy, both ways", On: func(r Road) bool { return r.HTTP2 }, Handle: func(w http.ResponseWriter, r *http.Request) {
			flush(w)
			p := make([]byte, 100)
			for {
				n, err := r.Body.Read(p)
				_, _ = w.Write(p[:n])
				flush(w)
				if err != nil {
					return
				}
			}
		}, Run: bothWays},
	}
}

// front sends req to a ReverseProxy, with a client of its own.
func (c *Client) front(hc *http.Client, req *http.Request) {
	name := c.next()
	resp, err := hc.Do(req)
	c.Note(name("error"), classes(err))
	if err != nil {
		return
	}
	got, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	c.Note(name("got"), fmt.Sprint(resp.StatusCode, resp.ContentLength, resp.TransferEncoding, digest(got), classes(err), resp.Trailer))
}

// bothWays talks through a ReverseProxy that speaks HTTP/2 on both sides.
func bothWays(c *Client) {
	target, err := url.Parse(c.Server.URL("/"))
	if err != nil {
		c.T.Fatal(err)
	}
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: c.RT, ErrorLog: quiet(), FlushInterval: -1,
	})
	front.Config.Protocols = new(http.Protocols)
	front.Config.Protocols.SetUnencryptedHTTP2(true)
	front.Start()
	defer front.Close()
	tr := &http.Transport{Protocols: front.Config.Protocols}
	defer tr.CloseIdleConnections()
	pr, pw := io.Pipe()
	name := c.next()
	resp, err := tr.RoundTrip(c.RequestURL("POST", front.URL, pr))
	c.Note(name("error"), classes(err))
	if err != nil {
		return
	}
	for i := range 3 {
		said := fmt.Sprintf("line %d", i)
		_, werr := io.WriteString(pw, said)
		heard := make([]byte, len(said))
		_, rerr := io.ReadFull(resp.Body, heard)
		c.Note(name(said), fmt.Sprintf("%q %s", heard, classes(errors.Join(werr, rerr))))
	}
	_ = pw.Close()
	rest, err := io.ReadAll(resp.Body)
	c.Note(name("rest"), fmt.Sprintf("%q %s", rest, classes(err)))
	_ = resp.Body.Close()
}
