package keepalive

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
	"github.com/keepalive-http/keepalive/internal/rawhttp2"
)

// TestHTTP2EndsOfConns: how a connection ends that has served.
func TestHTTP2EndsOfConns(t *testing.T) {
	refuse := strategyFunc(func(resp *http.Response, _ ConnInfo, v ReuseVerdict) ReuseVerdict {
		v.Keep = v.Keep && resp.Request.URL.Path != "/last"
		return v
	})
	for _, tt := range []struct {
		name string
		opt  Option
		do   func(w *h2net)
		want CloseReason
	}{
		{"lifetime", WithMaxConnLifetime(time.Minute), func(w *h2net) {
			for range 7 {
				w.want("/")
				time.Sleep(10 * time.Second)
			}
		}, CloseLifetime},
		{"lifetime while idle", WithMaxConnLifetime(30 * time.Second), func(w *h2net) {
			w.want("/")
			time.Sleep(31 * time.Second)
		}, CloseLifetime},
		{"lifetime while in use", WithMaxConnLifetime(30 * time.Second), func(w *h2net) {
			var wg sync.WaitGroup
			wg.Go(func() { w.want("/slow") })
			time.Sleep(31 * time.Second)
			w.want("/")
			require.Equal(w.t, 2, w.Dials(), "the old one takes no more")
			wg.Wait()
			synctest.Wait()
		}, CloseLifetime},
		{"max requests", WithMaxRequestsPerConn(3), func(w *h2net) {
			for range 3 {
				w.want("/")
			}
		}, CloseMaxRequests},
		{"max requests at once", WithMaxRequestsPerConn(3), func(w *h2net) {
			w.burst(3)
		}, CloseMaxRequests},
		{"idle timeout", nil, func(w *h2net) {
			w.want("/")
			time.Sleep(51 * time.Second)
		}, CloseIdleTimeout},
		{"keep-alives disabled", WithDisableKeepAlives(true), func(w *h2net) { w.want("/") }, CloseKeepAlivesDisabled},
		{"Request.Close", nil, func(w *h2net) {
			req := w.request(http.MethodGet, nil)
			req.Close = true
			_, err := roundTrip(w.tr, req)
			require.NoError(w.t, err)
		}, CloseClientRequest},
		{"NoReuse", nil, func(w *h2net) {
			_, err := fetch(ContextWithOptions(w.t.Context(), NoReuse()), w.tr, http.MethodGet, w.url)
			require.NoError(w.t, err)
		}, CloseClientRequest},
		{"strategy", WithReuseStrategy(refuse), func(w *h2net) {
			w.want("/")
			require.Equal(w.t, 1, w.tr.Stats().Idle)
			w.want("/last")
		}, CloseStrategy},
		{"CloseIdleConnections", nil, func(w *h2net) {
			w.want("/")
			w.tr.CloseIdleConnections()
		}, CloseIdleConns},
		{"the peer closes", nil, func(w *h2net) {
			w.want("/")
			w.conn(0).Close()
		}, ClosePeerClosed},
		{"the peer resets", nil, func(w *h2net) {
			w.want("/")
			w.Conns()[0].Peer().Reset()
		}, ClosePeerClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := []Option{WithLifetimeJitter(0)}
			if tt.opt != nil {
				opts = append(opts, tt.opt)
			}
			script := func(int) rawhttp2.Script {
				return rawhttp2.Script{Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
					if r.Path == "/slow" {
						time.AfterFunc(40*time.Second, func() { c.Answer(r.ID, r.Path) })
						return
					}
					c.Answer(r.ID, r.Path)
				}}
			}
			overHTTP2(t, script, func(t *testing.T, w *h2net) {
				tt.do(w)
				synctest.Wait()
				require.Equal(t, uint64(1), w.tr.Stats().Closed[tt.want], "%v", w.tr.Stats().Closed)
				require.Equal(t, uint64(1), w.tr.Stats().TotalClosed(), "%v", w.tr.Stats().Closed)
				require.Equal(t, w.tr.Stats().Open, w.Open())
				w.want("/")
				require.Equal(t, 2, w.Dials())
				require.Zero(t, w.tr.Stats().StaleChecks)
			}, opts...)
		})
	}
}

type strategyFunc func(*http.Response, ConnInfo, ReuseVerdict) ReuseVerdict

func (f strategyFunc) Reuse(resp *http.Response, c ConnInfo, v ReuseVerdict) ReuseVerdict {
	return f(resp, c, v)
}

// TestHTTP2LifetimeAtALimit: where a limit forbids another, a connection that has
// room is shared beyond its lifetime, until it has no user.
func TestHTTP2LifetimeAtALimit(t *testing.T) {
	for name, opts := range map[string][]Option{
		"of the host":         {WithMaxConnsPerHost(1)},
		"of the host, strict": {WithMaxConnsPerHost(1), WithHTTP2Config(http.HTTP2Config{StrictMaxConcurrentRequests: true})},
		"of all":              {WithMaxConns(1)},
	} {
		t.Run(name, func(t *testing.T) {
			overHTTP2(t, hanging, func(t *testing.T, w *h2net) {
				stop := w.hang()
				for range 3 {
					time.Sleep(30 * time.Second)
					start := time.Now()
					w.want("/")
					require.Zero(t, time.Since(start))
				}
				require.Equal(t, 1, w.Dials())
				stop()
				synctest.Wait()
				require.Equal(t, map[CloseReason]uint64{CloseLifetime: 1}, w.tr.Stats().Closed)
				w.want("/")
				require.Equal(t, 2, w.Dials())
			}, append(opts, WithMaxConnLifetime(time.Minute), WithLifetimeJitter(0), WithAcquireTimeout(time.Minute))...)
		})
	}
}

// noDeadlines is a connection that has none, as those of golang.org/x/crypto/ssh.
type noDeadlines struct{ net.Conn }

func (noDeadlines) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (noDeadlines) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (noDeadlines) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

// TestHTTP2WithoutDeadlines: it takes none to hear that such a connection is alive.
func TestHTTP2WithoutDeadlines(t *testing.T) {
	n := netfake.New()
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := n.Dial(ctx, network, addr)
		return noDeadlines{c}, err
	}
	overHTTP2(t, plain(), func(t *testing.T, w *h2net) {
		n = w.Net
		for range 10 {
			w.want("/")
		}
		require.Equal(t, 1, w.Dials())
	}, WithDialContext(dial))
}

// TestHTTP2LastRequestSharesNothing: who comes while the last request of a
// connection is under way gets another one.
func TestHTTP2LastRequestSharesNothing(t *testing.T) {
	overHTTP2(t, answerAfter(time.Second), func(t *testing.T, w *h2net) {
		w.want("/")
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx := ContextWithOptions(t.Context(), NoReuse())
			if _, err := fetch(ctx, w.tr, http.MethodGet, w.url); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		w.burst(5)
		wg.Wait()
		synctest.Wait()
		require.Equal(t, 2, w.Dials())
		require.Equal(t, map[CloseReason]uint64{CloseClientRequest: 1}, w.tr.Stats().Closed)
		require.Zero(t, w.tr.Stats().StaleChecks)
	})
}

// TestHTTP2LastRequestsInABurst: a request that ends its connection ends none of
// those that share it.
func TestHTTP2LastRequestsInABurst(t *testing.T) {
	for name, edit := range map[string]func(*http.Request){
		"Request.Close": func(r *http.Request) { r.Close = true },
		"header":        func(r *http.Request) { r.Header.Set("Connection", "close") },
	} {
		for _, every := range []int{1, 8} {
			t.Run(fmt.Sprint(name, " ", every), func(t *testing.T) {
				overHTTP2(t, answerAfter(5*time.Millisecond), func(t *testing.T, w *h2net) {
					var wg sync.WaitGroup
					for i := range 40 {
						req := w.request(http.MethodGet, nil)
						if i%every == 0 {
							edit(req)
						}
						wg.Go(func() {
							if _, err := roundTrip(w.tr, req); err != nil {
								t.Error(err)
							}
						})
					}
					wg.Wait()
					require.Zero(t, w.tr.Stats().Retries)
				})
			})
		}
	}
}

func TestHTTP2FreshConn(t *testing.T) {
	overHTTP2(t, answerAfter(time.Second), func(t *testing.T, w *h2net) {
		w.SetDialDelay("a:80", time.Millisecond)
		w.SetDialDelay("a:443", time.Millisecond)
		w.want("/")
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				ctx := ContextWithOptions(t.Context(), FreshConn())
				if _, err := fetch(ctx, w.tr, http.MethodGet, w.url); err != nil {
					t.Error(err)
				}
			})
		}
		start := time.Now()
		wg.Wait()
		require.Equal(t, 2, w.Dials(), "they share the one that was dialed for them")
		require.Less(t, time.Since(start), 1100*time.Millisecond)
	})
}

func TestHTTP2Shutdown(t *testing.T) {
	overHTTP2(t, answerAfter(time.Second), func(t *testing.T, w *h2net) {
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { w.want("/") })
		}
		synctest.Wait()
		start := time.Now()
		require.NoError(t, w.tr.Shutdown(t.Context()))
		require.Equal(t, time.Second, time.Since(start), "it waits for the requests")
		wg.Wait()
		_, err := w.get("/")
		require.ErrorIs(t, err, ErrClosed)
		require.Equal(t, map[CloseReason]uint64{CloseTransportClosed: 1}, w.tr.Stats().Closed)
	})
}

func TestHTTP2Close(t *testing.T) {
	overHTTP2(t, hanging, func(t *testing.T, w *h2net) {
		w.want("/")
		errs := make(chan error, 20)
		for range 10 {
			for _, path := range []string{"/head", "/body"} {
				go func() {
					_, err := w.get(path)
					errs <- err
				}()
			}
		}
		synctest.Wait()
		require.NoError(t, w.tr.Close())
		for range cap(errs) {
			require.ErrorIs(t, <-errs, ErrClosed)
		}
		synctest.Wait()
		require.Zero(t, w.Open())
		require.Equal(t, map[CloseReason]uint64{CloseTransportClosed: 1}, w.tr.Stats().Closed)
	})
}

// TestHTTP2CloseWithWaiters: those that wait for a stream fail too.
func TestHTTP2CloseWithWaiters(t *testing.T) {
	script := func(int) rawhttp2.Script {
		s := hanging(0)
		s.Settings = append(s.Settings, rawhttp2.Limit(1))
		return s
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		w.want("/")
		errs := make(chan error, 5)
		for range cap(errs) {
			go func() {
				_, err := w.get("/head")
				errs <- err
			}()
		}
		synctest.Wait()
		require.NoError(t, w.tr.Close())
		for range cap(errs) {
			require.ErrorIs(t, <-errs, ErrClosed)
		}
	}, WithMaxConnsPerHost(1))
}

// TestHTTP2Mismatch: what is said when the server speaks another protocol.
func TestHTTP2Mismatch(t *testing.T) {
	cert, _ := testCert()
	var only2, only1 http.Protocols
	only2.SetHTTP2(true)
	only1.SetHTTP1(true)
	upper := func(protos ...string) func(net.Conn) net.Conn {
		return func(c net.Conn) net.Conn {
			return tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos})
		}
	}
	speak1 := func(c net.Conn) {
		br := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(br); err != nil {
				_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
				return
			}
			_, _ = io.WriteString(c, ok("one"))
		}
	}
	speak2 := func(c net.Conn) { _ = rawhttp2.New(c, 0, rawhttp2.Script{}).Serve() }
	for _, tt := range []struct {
		name, url string
		opt       Option
		upper     func(net.Conn) net.Conn
		speak     func(net.Conn)
		phase     Phase
		want      string // in the error; "": none
	}{
		{"both, with an HTTP/1 server", "https://a", nil, upper("http/1.1"), speak1, 0, ""},
		{"both, with a server without ALPN", "https://a", nil, upper(), speak1, 0, ""},
		{"both, with an HTTP/2 server", "https://a", nil, upper("h2"), speak2, 0, ""},
		{"HTTP/2 with an HTTP/1 server", "https://a", WithProtocols(only2), upper("http/1.1"), speak1, PhaseTLS, "no application protocol"},
		{"HTTP/2 with a server without ALPN", "https://a", WithProtocols(only2), upper(), speak1, PhaseTLS, "the connection speaks HTTP/1, want {HTTP2}"},
		{"HTTP/1 with an HTTP/2 server", "https://a", WithProtocols(only1), upper("h2"), speak2, PhaseHeader, "server closed the connection without an answer"},
		{"h2c with an HTTP/1 server", "http://a", onlyH2C(), func(c net.Conn) net.Conn { return c }, speak1, PhaseHeader, "the server answers in HTTP/1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := []Option{withTestTLS()}
			if tt.opt != nil {
				opts = append(opts, tt.opt)
			}
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				for _, addr := range []string{"a:80", "a:443"} {
					n.Serve(t, addr, func(c *netfake.Conn) { tt.speak(tt.upper(c)) })
				}
				_, err := fetch(t.Context(), tr, http.MethodGet, tt.url)
				if tt.want == "" {
					require.NoError(t, err)
					return
				}
				require.ErrorContains(t, err, tt.want)
				require.NotErrorIs(t, err, net.ErrClosed)
				var e *Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, tt.phase, e.Phase)
			}, opts...)
		})
	}
}

// TestHTTP2UpgradeNeedsHTTP1: a request that asks for another protocol goes over
// HTTP/1.1, on a connection of its own.
func TestHTTP2UpgradeNeedsHTTP1(t *testing.T) {
	cert, _ := testCert()
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.Serve(t, "a:443", func(c *netfake.Conn) {
			tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}})
			if tc.HandshakeContext(t.Context()) != nil {
				return
			}
			if tc.ConnectionState().NegotiatedProtocol == "h2" {
				_ = rawhttp2.New(tc, 0, rawhttp2.Script{}).Serve()
				return
			}
			br := bufio.NewReader(tc)
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if r.Header.Get("Upgrade") != "echo" || r.Header.Get("Connection") != "Upgrade" {
				t.Errorf("got %v", r.Header)
			}
			_, _ = io.WriteString(tc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			_, _ = io.Copy(tc, br)
		})
		w := &h2net{Net: n, t: t, tr: tr, url: "https://a"}
		w.want("/")
		req := w.request(http.MethodGet, nil)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
		rwc, ok := resp.Body.(io.ReadWriteCloser)
		require.True(t, ok)
		_, err = io.WriteString(rwc, "hello")
		require.NoError(t, err)
		b := make([]byte, 5)
		_, err = io.ReadFull(rwc, b)
		require.NoError(t, err)
		require.Equal(t, "hello", string(b))
		w.want("/")
		require.NoError(t, rwc.Close())
		require.Equal(t, 2, n.Dials())
		require.Equal(t, 1, tr.Stats().Idle)
	}, withTestTLS())
}

// TestHTTP2CanceledDial: a request that gives up does not end the dial that
// others wait for.
func TestHTTP2CanceledDial(t *testing.T) {
	overHTTP2(t, plain(), func(t *testing.T, w *h2net) {
		w.SetDialDelay("a:80", 100*time.Millisecond)
		w.SetDialDelay("a:443", 100*time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := fetch(ctx, w.tr, http.MethodGet, w.url); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
		synctest.Wait()
		w.burst(10)
		wg.Wait()
		require.Equal(t, 1, w.Dials())
		require.True(t, strings.HasPrefix(w.url, "http"))
	})
}
