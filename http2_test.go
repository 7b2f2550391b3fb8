package keepalive

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	h2 "golang.org/x/net/http2"

	"github.com/keepalive-http/keepalive/internal/netfake"
	"github.com/keepalive-http/keepalive/internal/rawhttp2"
)

// testCert is httptest's, for example.com and 127.0.0.1, and what trusts it.
var testCert = sync.OnceValues(func() (tls.Certificate, *x509.CertPool) {
	srv := httptest.NewUnstartedServer(nil)
	srv.StartTLS()
	defer srv.Close()
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	return srv.TLS.Certificates[0], pool
})

// withTestTLS trusts testCert.
func withTestTLS() Option {
	_, roots := testCert()
	return WithTLSConfig(&tls.Config{RootCAs: roots, ServerName: "example.com"})
}

// onlyH2C is HTTP/2 without TLS, by prior knowledge.
func onlyH2C() Option {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return WithProtocols(p)
}

// h2net is a network with a server that speaks HTTP/2 as told, and a Transport.
type h2net struct {
	*netfake.Net
	t   *testing.T
	tr  *Transport
	url string // of the server, without a path

	mu     sync.Mutex
	served []*rawhttp2.Conn
}

// overHTTP2 runs f in a bubble, over TLS and without. script is asked for each
// connection.
func overHTTP2(t *testing.T, script func(conn int) rawhttp2.Script, f func(t *testing.T, w *h2net), opts ...Option) {
	t.Helper()
	cert, _ := testCert()
	server := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}}
	for _, tt := range []struct {
		name, url, addr string
		opt             Option
		upper           func(net.Conn) net.Conn
	}{
		{"h2c", "http://a", "a:80", onlyH2C(), func(c net.Conn) net.Conn { return c }},
		{"TLS", "https://a", "a:443", withTestTLS(), func(c net.Conn) net.Conn { return tls.Server(c, server) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				w := &h2net{Net: n, t: t, tr: tr, url: tt.url}
				n.Serve(t, tt.addr, func(c *netfake.Conn) {
					rc := rawhttp2.New(tt.upper(c), c.Index(), script(c.Index()))
					w.mu.Lock()
					w.served = append(w.served, rc)
					w.mu.Unlock()
					_ = rc.Serve()
				})
				f(t, w)
				synctest.Wait() // what a limit or a context ends is given back in their goroutine
				require.Zero(t, tr.Stats().InUse)
				require.Zero(t, tr.Stats().Waiting)
			}, append([]Option{tt.opt}, opts...)...)
		})
	}
}

// conn returns the i-th connection that was accepted.
func (w *h2net) conn(i int) *rawhttp2.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	require.Greater(w.t, len(w.served), i)
	return w.served[i]
}

// get returns the answer to a GET.
func (w *h2net) get(path string) (string, error) {
	return fetch(w.t.Context(), w.tr, http.MethodGet, w.url+path)
}

// want makes a GET and fails without its own answer. Any goroutine may call it.
func (w *h2net) want(path string) {
	w.t.Helper()
	if got, err := w.get(path); err != nil || got != path {
		w.t.Errorf("%s: got %q, %v", path, got, err)
	}
}

// post returns the answer to a POST.
func (w *h2net) post(path string, body io.Reader) (string, error) {
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, w.url+path, body)
	require.NoError(w.t, err)
	return roundTrip(w.tr, req)
}

func roundTrip(tr http.RoundTripper, req *http.Request) (string, error) {
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// burst makes n requests at once; each must get its own answer.
func (w *h2net) burst(n int) {
	w.t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { w.want(fmt.Sprint("/", i)) })
	}
	wg.Wait()
}

// plain is a script that answers every request with its path.
func plain(settings ...h2.Setting) func(int) rawhttp2.Script {
	return func(int) rawhttp2.Script { return rawhttp2.Script{Settings: settings} }
}

// answerAfter is a script that takes d for each answer.
func answerAfter(d time.Duration, settings ...h2.Setting) func(int) rawhttp2.Script {
	return func(int) rawhttp2.Script {
		return rawhttp2.Script{Settings: settings, Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
			time.AfterFunc(d, func() { c.Answer(r.ID, r.Path) })
		}}
	}
}

func TestHTTP2BurstOnAColdHost(t *testing.T) {
	for _, tt := range []struct {
		limit    uint32 // of the server; 0: it sets none
		requests int
		want     int // connections
	}{
		{250, 1, 1},
		{250, 50, 1},
		{250, 240, 1},
		{0, 600, 1},
		{100, 600, 6},
		{128, 600, 5},
	} {
		t.Run(fmt.Sprintf("%d with limit %d", tt.requests, tt.limit), func(t *testing.T) {
			var settings []h2.Setting
			if tt.limit > 0 {
				settings = append(settings, rawhttp2.Limit(tt.limit))
			}
			overHTTP2(t, answerAfter(50*time.Millisecond, settings...), func(t *testing.T, w *h2net) {
				w.SetDialDelay("a:80", 10*time.Millisecond)
				w.SetDialDelay("a:443", 10*time.Millisecond)
				w.burst(tt.requests)
				require.Equal(t, tt.want, w.Dials())
				time.Sleep(10 * time.Second)
				require.Equal(t, tt.want, w.Dials(), "later")
				s := w.tr.Stats()
				require.Equal(t, uint64(tt.requests), s.Requests)
				require.Zero(t, s.Retries)
				require.Zero(t, s.StaleChecks)
				require.Equal(t, tt.want, s.Idle, "%v", s.Closed)
				w.burst(tt.requests) // and when they are warm
				require.Equal(t, tt.want, w.Dials())
			})
		})
	}
}

// TestHTTP2LowLimit: a cold burst is sent before the server's limit is known.
// What it refuses is sent again, and the next burst knows.
func TestHTTP2LowLimit(t *testing.T) {
	strict := func(int) rawhttp2.Script { return limited(10, 20*time.Millisecond) }
	overHTTP2(t, strict, func(t *testing.T, w *h2net) {
		w.burst(100)
		require.Equal(t, 10, w.Dials())
		require.LessOrEqual(t, w.tr.Stats().Retries, uint64(90), "once at most")
		before := w.tr.Stats().Retries
		w.burst(100)
		require.Equal(t, 10, w.Dials())
		require.Equal(t, before, w.tr.Stats().Retries)
	})
}

// limited is a script that refuses what is above its limit.
func limited(limit uint32, d time.Duration) rawhttp2.Script {
	var open atomic.Int64
	return rawhttp2.Script{
		Delay:    5 * time.Millisecond,
		Settings: []h2.Setting{rawhttp2.Limit(limit)},
		Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
			if open.Add(1) > int64(limit) {
				open.Add(-1)
				c.Reset(r.ID, h2.ErrCodeRefusedStream)
				return
			}
			time.AfterFunc(d, func() {
				open.Add(-1)
				c.Answer(r.ID, r.Path)
			})
		},
	}
}

// TestHTTP2LimitIsLowered: from 100 to 10 under load, and raised again.
func TestHTTP2LimitIsLowered(t *testing.T) {
	var limit, open, most atomic.Int64
	script := func(conn int) rawhttp2.Script {
		if conn > 0 {
			return limited(10, 20*time.Millisecond)
		}
		limit.Store(100)
		most.Store(0)
		return rawhttp2.Script{
			Settings: []h2.Setting{rawhttp2.Limit(100)},
			Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
				if r.Path == "/100" {
					limit.Store(10)
					c.Settings(rawhttp2.Limit(10))
				}
				if r.Path == "/700" {
					limit.Store(100)
					c.Settings(rawhttp2.Limit(100))
				}
				if n := open.Add(1); n > limit.Load() {
					open.Add(-1)
					c.Reset(r.ID, h2.ErrCodeRefusedStream)
					return
				} else if n > most.Load() {
					most.Store(n)
				}
				time.AfterFunc(20*time.Millisecond, func() {
					open.Add(-1)
					c.Answer(r.ID, r.Path)
				})
			},
		}
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		var next atomic.Int64
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				for i := next.Add(1); i <= 800; i = next.Add(1) {
					w.want(fmt.Sprint("/", i))
				}
			})
		}
		wg.Wait()
		require.Equal(t, 4, w.Dials(), "40 at a time, 10 each")
		require.Greater(t, most.Load(), int64(10))
	})
}

// TestHTTP2CapMakesRequestsWait: one connection with room for ten; the others
// are served in the order of their arrival.
func TestHTTP2CapMakesRequestsWait(t *testing.T) {
	var mu sync.Mutex
	var order []string
	script := func(int) rawhttp2.Script {
		return rawhttp2.Script{
			Settings: []h2.Setting{rawhttp2.Limit(10)},
			Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
				mu.Lock()
				order = append(order, r.Path)
				n := len(order)
				mu.Unlock()
				time.AfterFunc(time.Second+time.Duration(n)*time.Millisecond, func() { c.Answer(r.ID, r.Path) })
			},
		}
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		order = nil
		w.want("/first")
		var wg sync.WaitGroup
		for i := range 60 {
			time.Sleep(time.Millisecond)
			wg.Go(func() { w.want(fmt.Sprintf("/%02d", i)) })
		}
		wg.Wait()
		require.Equal(t, 1, w.Dials())
		require.Len(t, order, 61)
		require.True(t, slices.IsSorted(order[1:]), "%v", order)
		require.Zero(t, w.tr.Stats().StaleChecks)
	}, WithMaxConnsPerHost(1))
}

func TestHTTP2StrictLimit(t *testing.T) {
	strict := WithHTTP2Config(http.HTTP2Config{StrictMaxConcurrentRequests: true})
	overHTTP2(t, answerAfter(50*time.Millisecond, rawhttp2.Limit(10)), func(t *testing.T, w *h2net) {
		w.burst(1)
		w.burst(60)
		require.Equal(t, 1, w.Dials())
	}, strict)
	t.Run("not for a connection that takes no more", func(t *testing.T) {
		script := func(conn int) rawhttp2.Script {
			return rawhttp2.Script{Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
				if r.Path != "/long" {
					c.Answer(r.ID, r.Path)
					return
				}
				c.GoAway(r.ID, h2.ErrCodeNo)
				time.AfterFunc(time.Hour, func() { c.Answer(r.ID, r.Path) })
			}}
		}
		overHTTP2(t, script, func(t *testing.T, w *h2net) {
			var wg sync.WaitGroup
			wg.Go(func() { w.want("/long") })
			synctest.Wait()
			start := time.Now()
			w.burst(20)
			require.Zero(t, time.Since(start))
			require.Equal(t, 2, w.Dials())
			wg.Wait()
		}, strict)
	})
}

// TestHTTP2OneRequestPerConn: where no connection can be shared nobody waits for
// another's dial.
func TestHTTP2OneRequestPerConn(t *testing.T) {
	for name, tt := range map[string]struct {
		opt  Option
		want int
	}{
		"keep-alives disabled": {WithDisableKeepAlives(true), 20},
		"one request":          {WithMaxRequestsPerConn(1), 20},
		"five requests":        {WithMaxRequestsPerConn(5), 4},
	} {
		t.Run(name, func(t *testing.T) {
			overHTTP2(t, answerAfter(50*time.Millisecond), func(t *testing.T, w *h2net) {
				w.SetDialDelay("a:80", 100*time.Millisecond)
				w.SetDialDelay("a:443", 100*time.Millisecond)
				start := time.Now()
				w.burst(20)
				require.Equal(t, tt.want, w.Dials())
				require.LessOrEqual(t, time.Since(start), 300*time.Millisecond)
			}, tt.opt)
		})
	}
}

// TestHTTP2OneRequestPerConnNeedsNoSettings: nobody waits to hear how many
// requests a connection takes that is used once.
func TestHTTP2OneRequestPerConnNeedsNoSettings(t *testing.T) {
	script := func(int) rawhttp2.Script { return rawhttp2.Script{Delay: 600 * time.Millisecond} }
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		var first sync.WaitGroup
		first.Go(func() { w.want("/first") })
		synctest.Wait()
		start := time.Now()
		w.want("/second")
		require.Equal(t, 600*time.Millisecond, time.Since(start))
		first.Wait()
	}, WithDisableKeepAlives(true))
}

// TestHTTP1BurstOnAColdTLSHost: when it is known that the host does not speak
// HTTP/2, the others dial at once.
func TestHTTP1BurstOnAColdTLSHost(t *testing.T) {
	cert, _ := testCert()
	for _, protos := range [][]string{{"http/1.1"}, nil} {
		t.Run(fmt.Sprint(protos), func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				n.SetDialDelay("a:443", 100*time.Millisecond)
				l := n.Listen("a:443")
				srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(50 * time.Millisecond)
					_, _ = io.WriteString(w, r.URL.Path)
				})}
				srv.Protocols = new(http.Protocols)
				srv.Protocols.SetHTTP1(true)
				done := make(chan struct{})
				go func() {
					defer close(done)
					_ = srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos}))
				}()
				w := &h2net{Net: n, t: t, tr: tr, url: "https://a"}
				start := time.Now()
				w.burst(20)
				require.LessOrEqual(t, time.Since(start), 250*time.Millisecond, "two dials and an answer")
				require.Equal(t, 20, n.Dials())
				require.NoError(t, tr.Close())
				_ = srv.Close()
				<-done
			}, withTestTLS())
		})
	}
}

// TestHTTP2DialThatHangs: one dial that leads nowhere keeps one request waiting,
// not the burst.
func TestHTTP2DialThatHangs(t *testing.T) {
	for _, warm := range []bool{false, true} {
		t.Run(fmt.Sprint("known ", warm), func(t *testing.T) {
			var hang atomic.Int64
			n := netfake.New()
			dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
				if hang.Add(-1) >= 0 {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return n.Dial(ctx, network, addr)
			}
			overHTTP2(t, answerAfter(10*time.Millisecond), func(t *testing.T, w *h2net) {
				n = w.Net
				if warm {
					w.want("/")
					w.tr.CloseIdleConnections()
				}
				hang.Store(2)
				start := time.Now()
				w.burst(50)
				require.Equal(t, 2*dialPatience+10*time.Millisecond, time.Since(start))
				require.Zero(t, w.tr.Stats().DialErrors)
			}, WithDialContext(dial))
		})
	}
}
