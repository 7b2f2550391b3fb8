package difftest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// In these scenarios the server is a proxy, of the scheme that the scenario is
// run with. The targets are names that only it can know.

// viaServer sends all requests through the server, with userinfo user.
func viaServer(user string, more ...func(*http.Transport, *Server)) func(*http.Transport, *Server) {
	return func(tr *http.Transport, s *Server) {
		u := &url.URL{Scheme: s.Scheme, Host: s.Addr}
		if name, password, ok := strings.Cut(user, ":"); ok {
			u.User = url.UserPassword(name, password)
		} else if user != "" {
			u.User = url.User(user)
		}
		tr.Proxy = http.ProxyURL(u)
		for _, f := range more {
			f(tr, s)
		}
	}
}

// forwarded: http requests through an HTTP proxy.
func forwarded() (list []Scenario) {
	for name, user := range map[string]string{"": "", " with password": "me:sec ret%", " with user": "me", " with colon": "me:"} {
		list = append(list, Scenario{Name: "forward" + name, Setup: viaServer(user), Run: func(c *Client) {
			c.Do(c.RequestURL("GET", "http://a.example/x?q=1", nil))
			c.Do(c.RequestURL("POST", "http://a.example:8080", strings.NewReader("body")))
			c.Do(c.RequestURL("GET", "http://b.example/%20", nil, func(r *http.Request) { r.Host = "other.example" }))
			c.Do(c.RequestURL("HEAD", "http://[::1]:81/", nil))
			c.Do(c.RequestURL("OPTIONS", "http://a.example", nil, func(r *http.Request) { r.URL.Opaque = "*" }))
			c.Do(c.RequestURL("GET", "http://a.example", nil, func(r *http.Request) { r.URL.Opaque = "//b.example/y" }))
			c.Do(c.RequestURL("GET", "http://b\u00fccher.example/", nil))
		}})
	}
	own := func(r *http.Request) { r.Header.Set("Proxy-Authorization", "Basic own") }
	ownLine := func(c *Client) {
		c.Do(c.RequestURL("GET", "http://example.com/", nil, own))
		c.Do(c.RequestURL("GET", "https://example.com/", nil, own))
	}
	return append(
		list,
		Scenario{Name: "proxy own authorization", Setup: viaServer(""), Serve: tunnel(connected), Run: ownLine},
		Scenario{Name: "proxy own authorization and password", Setup: viaServer("me:secret"), Serve: tunnel(connected), Run: ownLine},
		Scenario{Name: "forward invalid Host", Setup: viaServer(""), Run: func(c *Client) {
			c.Do(c.RequestURL("GET", "http://a.example/", nil, func(r *http.Request) { r.Host = "a b" }))
		}, Differs: []Difference{{"connections", "1", "0", "what cannot be sent is refused before a dial"}}},
		Scenario{Name: "forward 407", Setup: viaServer("me:wrong"), Serve: answer("HTTP/1.1 407 Proxy Authentication Required\r\n" +
			"Proxy-Authenticate: Basic realm=x\r\nContent-Length: 2\r\n\r\nno"), Run: twice},
		Scenario{Name: "forward refused", Setup: func(tr *http.Transport, s *Server) {
			ln := listen(s.t, "tcp", "127.0.0.1:0")
			_ = ln.Close()
			tr.Proxy = http.ProxyURL(&url.URL{Scheme: s.Scheme, Host: ln.Addr().String()})
		}, Run: func(c *Client) {
			c.Do(c.RequestURL("GET", "http://a.example/", nil))
			c.Do(c.RequestURL("GET", "https://a.example/", nil))
		}},
		Scenario{Name: "forward swallowed", Setup: viaServer(""), Serve: swallow, Run: func(c *Client) {
			c.Do(c.RequestURL("GET", "http://a.example/", nil))
			c.Do(c.RequestURL("GET", "http://b.example/", nil))
			c.Do(c.RequestURL("POST", "http://a.example/", NewBody(reader(10))))
		}},
		Scenario{Name: "forward trace", Setup: viaServer("me:secret"), Run: func(c *Client) {
			c.doTraced(c.RequestURL("GET", "http://a.example/", nil))
			c.doTraced(c.RequestURL("GET", "http://b.example/", nil))
		}},
		Scenario{Name: "forward redirect", Setup: viaServer("me:secret"), Serve: func(x *Exchange) {
			if x.Req.URL.Host == "a.example" {
				x.Write("HTTP/1.1 302 Found\r\nLocation: http://b.example/\r\nContent-Length: 0\r\n\r\n")
				return
			}
			x.Write(ok)
		}, Run: func(c *Client) {
			c.Via(&http.Client{Transport: c.RT}, c.RequestURL("GET", "http://a.example/", nil, own))
		}},
		Scenario{Name: "proxy without scheme", Only: "http", Setup: func(tr *http.Transport, s *Server) {
			tr.Proxy = http.ProxyURL(&url.URL{Host: s.Addr})
		}, Run: func(c *Client) { c.Do(c.RequestURL("GET", "http://a.example/", nil)) }},
		Scenario{Name: "proxy certificate", Only: "https", Setup: viaServer("", func(tr *http.Transport, _ *Server) {
			tr.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "wrong.invalid"}
		}), Run: func(c *Client) { c.Do(c.RequestURL("GET", "http://a.example/", nil)) }},
		Scenario{Name: "proxy dialed", Serve: tunnel(connected), Setup: viaServer("", func(tr *http.Transport, s *Server) {
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				s.note("dialed", strings.ReplaceAll(network+" "+addr, s.Addr, "ADDR"))
				var d net.Dialer
				return d.DialContext(ctx, network, addr)
			}
		}), Run: bothSchemes},
		Scenario{Name: "proxy dialed with TLS", Serve: tunnel(connected), Setup: viaServer("", func(tr *http.Transport, s *Server) {
			tr.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				s.note("dialed TLS", strings.ReplaceAll(network+" "+addr, s.Addr, "ADDR"))
				d := tls.Dialer{Config: s.ClientTLS()}
				return d.DialContext(ctx, network, addr)
			}
		}), Run: bothSchemes},
	)
}

// bothSchemes makes requests in an order in which connections may be shared.
func bothSchemes(c *Client) {
	for range 2 {
		c.Do(c.RequestURL("GET", "http://example.com/", nil))
		c.Do(c.RequestURL("GET", "https://example.com/", nil))
		c.Do(c.RequestURL("GET", "http://b.example/", nil))
		c.Do(c.RequestURL("POST", "https://example.com/", NewBody(reader(100000))))
	}
}

const connected = "HTTP/1.1 200 Connection established\r\n\r\n"

// tunnel answers CONNECT with raw, and is the target behind it.
func tunnel(raw string) func(*Exchange) {
	return func(x *Exchange) {
		if x.Req.Method != http.MethodConnect {
			x.Body()
			x.Write(ok)
			return
		}
		x.over = true
		x.Write(raw)
		x.s.serveOn(x.s.secure(x.nc), x.Conn)
	}
}

// secure puts the server's side of TLS on nc.
func (s *Server) secure(nc net.Conn) net.Conn {
	return tls.Server(nc, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*s.cert}})
}

// tunnels: https requests through an HTTP proxy.
func tunnels() (list []Scenario) {
	get := func(c *Client) {
		c.Do(c.RequestURL("GET", "https://example.com/", nil))
		c.Do(c.RequestURL("GET", "https://example.com/again", nil))
	}
	header := http.Header{"X-B": {"1", "2"}, "User-Agent": {"own"}, "Proxy-Authorization": {"Bearer t"}}
	hook := func(err error) func(tr *http.Transport, s *Server) {
		return func(tr *http.Transport, s *Server) {
			tr.OnProxyConnectResponse = func(_ context.Context, u *url.URL, req *http.Request, resp *http.Response) error {
				s.note("hook url", strings.ReplaceAll(u.String(), s.Addr, "ADDR"))
				s.note("hook request", fmt.Sprintf("%s %s %s %q", req.Method, req.URL, req.Host, req.Header))
				s.note("hook response", fmt.Sprintf("%s %s %q %v", resp.Proto, resp.Status, resp.Header, resp.Request == req))
				if resp.StatusCode != http.StatusOK {
					body, err := io.ReadAll(resp.Body)
					s.note("hook body", fmt.Sprintf("%q %s", body, classes(err)))
				}
				return err
			}
		}
	}
	answers := map[string]string{
		"":             connected,
		" HTTP/1.0":    "HTTP/1.0 200 OK\r\n\r\n",
		" no reason":   "HTTP/1.1 200\r\n\r\n",
		" with length": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
		" with chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
	}
	for name, raw := range answers {
		list = append(list, Scenario{Name: "tunnel" + name, Setup: viaServer(""), Serve: tunnel(raw), Run: get})
	}
	fixed := func(tr *http.Transport, _ *Server) { tr.ProxyConnectHeader = header.Clone() }
	dynamic := func(err error) func(*http.Transport, *Server) {
		return func(tr *http.Transport, s *Server) {
			fixed(tr, s)
			tr.GetProxyConnectHeader = func(_ context.Context, u *url.URL, target string) (http.Header, error) {
				s.note("header for", strings.ReplaceAll(u.String(), s.Addr, "ADDR")+" "+target)
				return http.Header{"X-Got": {target}}, err
			}
		}
	}
	setups := map[string]func(*http.Transport, *Server){
		"password":            viaServer("me:secret"),
		"header":              viaServer("", fixed),
		"header and password": viaServer("me:secret", fixed),
		"header function":     viaServer("me:secret", dynamic(nil)),
		"header error":        viaServer("me:secret", dynamic(errBody)),
		"hook":                viaServer("me:secret", fixed, hook(nil)),
		"hook error":          viaServer("", hook(errBody)),
		"no header": viaServer("", func(tr *http.Transport, _ *Server) {
			tr.GetProxyConnectHeader = func(context.Context, *url.URL, string) (http.Header, error) { return nil, nil }
		}),
		"wrapped": viaServer("", func(tr *http.Transport, _ *Server) {
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				var d net.Dialer
				nc, err := d.DialContext(ctx, network, addr)
				return wrapped{nc}, err
			}
		}),
		"one connection":  viaServer("", func(tr *http.Transport, _ *Server) { tr.MaxConnsPerHost = 1 }),
		"no keep-alives":  viaServer("", func(tr *http.Transport, _ *Server) { tr.DisableKeepAlives = true }),
		"other TLS name":  viaServer("", func(tr *http.Transport, _ *Server) { tr.TLSClientConfig.ServerName = "127.0.0.1" }),
		"unknown CA":      viaServer("", func(tr *http.Transport, _ *Server) { tr.TLSClientConfig.RootCAs = nil }),
		"dial of no host": viaServer("", func(tr *http.Transport, _ *Server) { tr.Proxy = nil; tr.DialContext = refuse }),
	}
	for name, setup := range setups {
		list = append(list, Scenario{Name: "tunnel, " + name, Setup: setup, Serve: tunnel(connected), Run: bothSchemes})
	}
	return append(
		list,
		Scenario{Name: "tunnel trace", Setup: viaServer(""), Serve: tunnel(connected), Run: func(c *Client) {
			c.doTraced(c.RequestURL("GET", "https://example.com/", nil))
			c.doTraced(c.RequestURL("GET", "https://example.com/", nil))
		}},
		Scenario{Name: "tunnel hook refused", Setup: viaServer("", hook(nil)), Serve: func(x *Exchange) {
			x.Write("HTTP/1.1 403 Forbidden\r\nX: y\r\nContent-Length: 6\r\n\r\nno way")
		}, Run: get},
		Scenario{Name: "tunnel swallowed", Setup: viaServer(""), Serve: func(x *Exchange) {
			if x.Req.Method == http.MethodConnect {
				tunnel(connected)(x)
				return
			}
			swallow(x)
		}, Run: get},
		Scenario{Name: "tunnel to another name", Setup: viaServer(""), Serve: tunnel(connected), Run: func(c *Client) {
			c.Do(c.RequestURL("GET", "https://b.example/", nil)) // not in the certificate
			c.Do(c.RequestURL("GET", "https://127.0.0.1:8443/", nil))
			c.Do(c.RequestURL("GET", "https://[::1]/", nil))
		}},
		Scenario{Name: "tunnel to plain HTTP", Setup: viaServer(""), Serve: func(x *Exchange) {
			x.Write(connected)
			_, _ = x.br.Peek(1)
			x.Write("HTTP/1.1 400 Bad Request\r\n\r\n")
			x.Hang()
		}, Run: get},
	)
}

func refuse(context.Context, string, string) (net.Conn, error) { return nil, errBody }

// refusedTunnels: other answers to CONNECT than 200, and none.
func refusedTunnels() (list []Scenario) {
	get := func(c *Client) {
		c.Do(c.RequestURL("POST", "https://example.com/", NewBody(reader(10))))
		c.Do(c.RequestURL("GET", "https://example.com/", nil))
	}
	for name, raw := range map[string]string{
		"403":              "HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nno way",
		"407":              "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
		"403 without text": "HTTP/1.1 403\r\n\r\n",
		"201":              "HTTP/1.1 201 Created\r\n\r\n",
		"101":              "HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"302":              "HTTP/1.1 302 Found\r\nLocation: http://login.example/\r\n\r\n",
		"garbage":          "what do you mean?\r\n\r\n",
		"half a line":      "HTTP/1.1 2",
		"half a head":      "HTTP/1.1 200 OK\r\nX: y\r\n",
		"nothing":          "",
		"a bad line":       "HTTP/1.1 200 OK\r\nbad line\r\n\r\n",
	} {
		list = append(list, Scenario{Name: "tunnel refused, " + name, Setup: viaServer("me:secret"), Serve: func(x *Exchange) {
			x.Write(raw)
			x.Close()
		}, Run: get})
	}
	return append(
		list,
		Scenario{Name: "tunnel reset", Setup: viaServer(""), Serve: (*Exchange).Reset, Run: get},
		Scenario{
			Name: "tunnel large head", Serve: tunnel("HTTP/1.1 200 OK\r\nX: " + string(text(20000)) + "\r\n\r\n"), Run: get,
			Setup: viaServer("", func(tr *http.Transport, _ *Server) { tr.MaxResponseHeaderBytes = 1000 }),
			Differs: []Difference{
				{"[12] error", "UnexpectedEOF error", "error", "a head that is too large is said to be so, not to end early"},
			},
		},
		Scenario{Name: "tunnel interim", Setup: viaServer(""), Serve: tunnel("HTTP/1.1 103 Early Hints\r\n\r\n" + connected), Run: func(c *Client) {
			c.Do(c.RequestURL("GET", "https://example.com/", nil))
		}, Differs: []Difference{
			{"1 error", "error", "nil", "an interim answer is not the final one (RFC 9110 section 15.2)"},
			{"1 sent *", "*", "*", "for the same reason"},
		}},
		Scenario{Name: "tunnel glued bytes", Setup: viaServer(""), Serve: tunnel(connected + "glued"), Run: func(c *Client) {
			c.Do(c.RequestURL("GET", "https://example.com/", nil))
		}, Differs: []Difference{
			{"1 error", "nil", "error", "bytes that nobody can have sent are not dropped in silence, as net/http does"},
			{"1 sent * again", "*", "*", "for the same reason"},
		}},
		Scenario{Name: "tunnel hangs", Setup: viaServer(""), Serve: func(x *Exchange) {
			x.s.Arrived <- struct{}{}
			x.Hang()
		}, Run: func(c *Client) {
			c.doEnding(c.RequestURL("POST", "https://example.com/", NewBody(reader(10))), endings()["context"])
			c.doEnding(c.RequestURL("GET", "https://example.com/", nil), endings()["deadline"])
		}, Differs: []Difference{
			{"connections", "2", "1", "the next request takes over the dial that goes on"},
			{"2 sent *", "*", "absent", "for the same reason"},
		}},
	)
}

// socksProxy makes the server a SOCKS5 proxy (RFC 1928) that notes what it
// hears and answers a request with reply. It speaks TLS behind that if secure.
func socksProxy(method byte, status byte, reply string, secure bool) func(*http.Transport, *Server) {
	return func(_ *http.Transport, s *Server) {
		s.greetWith(func(nc net.Conn) (net.Conn, bool) {
			n := s.step.Load()
			note := func(what string, b []byte) { s.note(fmt.Sprint(n, " sent socks ", what), fmt.Sprintf("%q", b)) }
			hello := socksPart(nc, 1, 1)
			note("hello", hello)
			_, _ = nc.Write([]byte{5, method})
			if method == 2 {
				user := socksPart(nc, 1, 1)
				password := socksPart(nc, 0, 1)
				note("user", append(user, password...))
				_, _ = nc.Write([]byte{1, status})
			}
			request := socksPart(nc, 3, 0)
			var addr []byte
			if len(request) == 4 && request[3] == 3 {
				addr = socksPart(nc, 0, 1)
			} else {
				addr = make([]byte, 4)
				_, _ = io.ReadFull(nc, addr)
			}
			port := make([]byte, 2)
			if _, err := io.ReadFull(nc, port); err != nil {
				return nc, false
			}
			note("request", append(append(request, addr...), port...))
			_, _ = io.WriteString(nc, reply)
			if reply == "" || reply[1] != 0 {
				return nc, false
			}
			if secure {
				nc = s.secure(nc)
			}
			return nc, true
		})
	}
}

// socksPart reads n bytes and, after a byte that says how many, more of them;
// without such a byte (sized 0) one more.
func socksPart(r io.Reader, n, sized int) []byte {
	b := make([]byte, n+1)
	if _, err := io.ReadFull(r, b); err != nil || sized == 0 {
		return b
	}
	more := make([]byte, b[n])
	_, _ = io.ReadFull(r, more)
	return slices.Concat(b, more)
}

const socksGranted = "\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"

// socksProxies: requests through a SOCKS5 proxy.
func socksProxies() (list []Scenario) {
	scenario := func(name, user string, setup func(*http.Transport, *Server), targets ...string) {
		for _, scheme := range []string{"socks5", "socks5h"} {
			list = append(list, Scenario{Name: scheme + " " + name, Only: "http", Setup: func(tr *http.Transport, s *Server) {
				viaServer(user)(tr, s)
				req, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://x/", nil)
				u, _ := tr.Proxy(req)
				u.Scheme = scheme
				setup(tr, s)
			}, Run: func(c *Client) {
				for _, u := range targets {
					c.Do(c.RequestURL("GET", u, nil))
				}
			}})
		}
	}
	a, b, ip := "http://a.example/x", "http://b.example:81/", "http://192.0.2.1/"
	scenario("plain", "", socksProxy(0, 0, socksGranted, false), a, a, b, ip)
	scenario("TLS", "", socksProxy(0, 0, socksGranted, true), "https://example.com/", "https://example.com/")
	scenario("password", "me:secret", socksProxy(2, 0, socksGranted, false), a, a)
	scenario("password not asked for", "me:secret", socksProxy(0, 0, socksGranted, false), a, a)
	scenario("password refused", "me:secret", socksProxy(2, 1, socksGranted, false), a)
	scenario("no method", "", socksProxy(0xff, 0, socksGranted, false), a)
	scenario("unreachable", "", socksProxy(0, 0, "\x05\x04\x00\x01\x00\x00\x00\x00\x00\x00", false), a)
	scenario("closes", "", socksProxy(0, 0, "", false), a)
	scenario("not SOCKS", "", func(_ *http.Transport, s *Server) {
		s.greetWith(func(nc net.Conn) (net.Conn, bool) {
			_, _ = io.WriteString(nc, "HTTP/1.1 400 Bad Request\r\n\r\n")
			_, _ = io.Copy(io.Discard, nc)
			return nc, false
		})
	}, a)
	return list
}

// choices: what the proxy function decides.
func choices() []Scenario {
	by := func(f func(*http.Request) (*url.URL, error)) func(*http.Transport, *Server) {
		return func(tr *http.Transport, _ *Server) { tr.Proxy = f }
	}
	post := func(c *Client) {
		c.Do(c.Request("POST", "/", NewBody(reader(10))))
		c.Get("/")
	}
	return []Scenario{
		{Name: "proxy none", Setup: by(func(*http.Request) (*url.URL, error) { return nil, nil }), Run: post},
		{Name: "proxy error", Setup: by(func(*http.Request) (*url.URL, error) { return nil, errBody }), Run: post},
		{Name: "proxy environment", Setup: by(http.ProxyFromEnvironment), Run: post},
		{Name: "proxy for some", Only: "http", Setup: func(tr *http.Transport, s *Server) {
			tr.Proxy = func(r *http.Request) (*url.URL, error) {
				s.note("asked for", strings.ReplaceAll(r.URL.String(), s.Addr, "ADDR"))
				switch r.URL.Host {
				case s.Addr:
					return nil, nil
				case "broken.example":
					return nil, errors.New("broken")
				}
				return &url.URL{Scheme: "http", Host: s.Addr, User: url.User(r.URL.Hostname())}, nil
			}
		}, Run: func(c *Client) {
			for range 2 { // each user has a connection
				c.Get("/direct")
				c.Do(c.RequestURL("GET", "http://a.example/", nil))
				c.Do(c.RequestURL("GET", "http://b.example/", nil))
				c.Do(c.RequestURL("GET", "http://broken.example/", nil))
			}
		}},
	}
}
