package keepalive

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	h2 "golang.org/x/net/http2"

	"github.com/keepalive-http/keepalive/internal/rawhttp2"
)

var errOurs = errors.New("a cause of our own")

// hanging is a script that never ends its answers: /head does not begin, /body
// stops in the body, /drip sends a byte every 400 ms, five of them. Pings are
// answered.
func hanging(int) rawhttp2.Script {
	return rawhttp2.Script{Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
		switch r.Path {
		case "/head":
		case "/body":
			c.Head(r.ID, "200", false)
			c.Data(r.ID, "begin", false)
		case "/drip":
			c.Head(r.ID, "200", false)
			for i := range 5 {
				time.AfterFunc(time.Duration(i+1)*400*time.Millisecond, func() { c.Data(r.ID, "x", i == 4) })
			}
		default:
			c.Answer(r.ID, r.Path)
		}
	}}
}

func TestHTTP2Timeouts(t *testing.T) {
	const d = time.Second
	timed := func(w *h2net, edit func(context.Context) (context.Context, context.CancelFunc)) func(string) error {
		return func(path string) error {
			ctx, cancel := edit(w.t.Context())
			defer cancel()
			_, err := fetch(ctx, w.tr, http.MethodGet, w.url+path)
			return err
		}
	}
	plainGet := func(w *h2net) func(string) error {
		return func(path string) error {
			_, err := w.get(path)
			return err
		}
	}
	for _, tt := range []struct {
		name    string
		opt     Option
		do      func(w *h2net) func(path string) error
		head    error // what /head ends with; nil: it is not tried
		body    error // what /body ends with
		timeout bool
	}{
		{"context deadline", nil, func(w *h2net) func(string) error {
			return timed(w, func(ctx context.Context) (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, d) })
		}, context.DeadlineExceeded, context.DeadlineExceeded, true},
		{"cause of a deadline", nil, func(w *h2net) func(string) error {
			return timed(w, func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithTimeoutCause(ctx, d, errOurs)
			})
		}, errOurs, errOurs, true},
		{"cancel", nil, func(w *h2net) func(string) error {
			return timed(w, func(ctx context.Context) (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(ctx)
				time.AfterFunc(d, cancel)
				return ctx, cancel
			})
		}, context.Canceled, context.Canceled, false},
		{"cause of a cancel", nil, func(w *h2net) func(string) error {
			return timed(w, func(ctx context.Context) (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancelCause(ctx)
				time.AfterFunc(d, func() { cancel(errOurs) })
				return ctx, func() { cancel(nil) }
			})
		}, errOurs, errOurs, false},
		{"request timeout", WithRequestTimeout(d), plainGet, ErrRequestTimeout, ErrRequestTimeout, true},
		{"response header timeout", WithResponseHeaderTimeout(d), plainGet, ErrResponseHeaderTimeout, nil, true},
		{"body read timeout", WithBodyReadTimeout(d), plainGet, nil, ErrBodyReadTimeout, true},
		{"option", nil, func(w *h2net) func(string) error {
			return timed(w, func(ctx context.Context) (context.Context, context.CancelFunc) {
				return ContextWithOptions(ctx, ResponseHeaderTimeout(d), BodyReadTimeout(d)), func() {}
			})
		}, ErrResponseHeaderTimeout, ErrBodyReadTimeout, true},
		{"Client.Timeout", nil, func(w *h2net) func(string) error {
			client := &http.Client{Transport: w.tr, Timeout: d}
			return func(path string) error {
				resp, err := client.Get(w.url + path)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				_, err = io.ReadAll(resp.Body)
				return err
			}
		}, context.DeadlineExceeded, context.DeadlineExceeded, true},
		{"Request.Cancel", nil, func(w *h2net) func(string) error {
			return func(path string) error {
				req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.url+path, nil)
				require.NoError(t, err)
				ch := make(chan struct{})
				req.Cancel = ch //nolint:staticcheck // SA1019: deprecated, and still in use
				time.AfterFunc(d, func() { close(ch) })
				_, err = roundTrip(w.tr, req)
				return err
			}
		}, context.Canceled, context.Canceled, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := []Option{}
			if tt.opt != nil {
				opts = append(opts, tt.opt)
			}
			overHTTP2(t, hanging, func(t *testing.T, w *h2net) {
				do := tt.do(w)
				require.NoError(t, do("/"))
				for path, want := range map[string]error{"/head": tt.head, "/body": tt.body} {
					if want == nil {
						continue
					}
					start := time.Now()
					err := do(path)
					require.Equal(t, d, time.Since(start), path)
					require.ErrorIs(t, err, want, path)
					require.Equal(t, tt.timeout, (&url.Error{Err: err}).Timeout() || isTimeout(err), path)
					require.Equal(t, tt.timeout, errors.Is(err, context.DeadlineExceeded), path)
					if e, ok := errors.AsType[*Error](err); ok {
						require.Equal(t, map[string]Phase{"/head": PhaseHeader, "/body": PhaseBody}[path], e.Phase)
						require.Equal(t, 1, e.Attempts)
						require.True(t, e.Reused)
					} else {
						require.Equal(t, "Client.Timeout", tt.name, "%v", err)
					}
					synctest.Wait()
					require.NoError(t, do("/"))
				}
				if tt.body == nil || errors.Is(tt.body, ErrBodyReadTimeout) {
					require.NoError(t, do("/drip"), "bytes come all the time")
				}
				require.Equal(t, 1, w.Dials(), "the connection lives: %+v", w.tr.Stats())
				require.Zero(t, w.tr.Stats().Retries)
			}, opts...)
		})
	}
}

// TestHTTP2TimeoutMatchesOS: a timeout of our own is one of os, too.
func TestHTTP2TimeoutMatchesOS(t *testing.T) {
	overHTTP2(t, hanging, func(t *testing.T, w *h2net) {
		_, err := w.get("/head")
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	}, WithRequestTimeout(time.Second))
}

// TestHTTP2SilentPeer: after a timeout without a byte from the peer nobody is
// given the connection until a ping was answered.
func TestHTTP2SilentPeer(t *testing.T) {
	for _, tt := range []struct {
		name  string
		pong  time.Duration // 0: never
		want  time.Duration // how long the next request takes
		dials int
	}{
		{"at once", 1, 1, 1},
		{"soon", minPingWait / 2, minPingWait / 2, 1},
		{"late", 3 * minPingWait, minPingWait, 2},
		{"never", 0, minPingWait, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			var last time.Time // request of the first connection
			script := func(conn int) rawhttp2.Script {
				s := rawhttp2.Script{Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
					mu.Lock()
					if conn == 0 {
						last = time.Now()
					}
					mu.Unlock()
					switch r.Path {
					case "/head":
					case "/long":
						time.AfterFunc(5*time.Second, func() { c.Answer(r.ID, r.Path) })
					default:
						c.Answer(r.ID, r.Path)
					}
				}}
				s.Ping = func(c *rawhttp2.Conn, data [8]byte) {
					if tt.pong > 0 {
						time.AfterFunc(tt.pong, func() { c.Pong(data) })
					}
				}
				return s
			}
			overHTTP2(t, script, func(t *testing.T, w *h2net) {
				w.want("/")
				var long sync.WaitGroup
				long.Go(func() { w.want("/long") })
				synctest.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := fetch(ctx, w.tr, http.MethodGet, w.url+"/head")
				require.ErrorIs(t, err, context.DeadlineExceeded)
				asked := time.Now()
				w.burst(20)
				require.Equal(t, tt.want, time.Since(asked))
				require.Equal(t, tt.dials, w.Dials())
				mu.Lock()
				if tt.dials > 1 {
					require.True(t, last.Before(asked), "nothing was sent to the silent one")
				} else {
					require.True(t, last.Equal(asked.Add(tt.want)))
				}
				mu.Unlock()
				long.Wait() // other streams go on
				w.burst(20)
				require.Equal(t, tt.dials, w.Dials())
				if tt.pong == 0 {
					require.Equal(t, 2, w.tr.Stats().Idle, "it was heard after all")
				}
			})
		})
	}
}

// TestHTTP2PingThatIsNotSent: net/http sends no other ping before an answer has
// come, and nobody waits for what was not asked.
func TestHTTP2PingThatIsNotSent(t *testing.T) {
	overHTTP2(t, hanging, func(t *testing.T, w *h2net) {
		ctx, cancel := context.WithCancel(t.Context())
		var quiet sync.WaitGroup
		quiet.Go(func() {
			if _, err := fetch(ctx, w.tr, http.MethodGet, w.url+"/head"); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
		synctest.Wait()
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := fetch(ctx, w.tr, http.MethodGet, w.url+"/head")
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			synctest.Wait()
		}
		start := time.Now()
		w.want("/")
		require.Zero(t, time.Since(start))
		cancel()
		quiet.Wait()
	}, WithMaxConnsPerHost(1), WithAcquireTimeout(time.Minute))
}

// TestHTTP2DeadPeer: a connection that leads nowhere is left by everybody after
// the first timeout, and closed.
func TestHTTP2DeadPeer(t *testing.T) {
	overHTTP2(t, plain(), func(t *testing.T, w *h2net) {
		w.want("/")
		w.Conns()[0].Peer().StallReads(true)
		var wg sync.WaitGroup
		for range 10 { // in flight on it
			wg.Go(func() {
				if _, err := w.get("/"); !errors.Is(err, ErrRequestTimeout) {
					t.Errorf("got %v", err)
				}
			})
		}
		wg.Wait()
		start := time.Now()
		w.burst(20)
		require.LessOrEqual(t, time.Since(start), maxPingWait)
		require.Equal(t, 2, w.Dials())
		time.Sleep(silentIdleTimeout + time.Second)
		require.Equal(t, map[CloseReason]uint64{CloseSuspect: 1}, w.tr.Stats().Closed)
	}, WithRequestTimeout(time.Second))
}

// TestHTTP2DeadPeerAndCallersThatCancel: they leave it after the first one, but
// not for one who has cancelled at once.
func TestHTTP2DeadPeerAndCallersThatCancel(t *testing.T) {
	for d, dials := range map[time.Duration]int{minPingWait - 1: 1, minPingWait: 2} {
		t.Run(d.String(), func(t *testing.T) {
			overHTTP2(t, hanging, func(t *testing.T, w *h2net) {
				w.want("/")
				w.Conns()[0].Peer().StallReads(true)
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(d, cancel)
				_, err := fetch(ctx, w.tr, http.MethodGet, w.url+"/head")
				require.ErrorIs(t, err, context.Canceled)
				if dials == 1 {
					w.Conns()[0].Peer().StallReads(false)
				}
				start := time.Now()
				w.want("/")
				require.LessOrEqual(t, time.Since(start), maxPingWait)
				require.Equal(t, dials, w.Dials())
			})
		})
	}
}

// TestHTTP2HeardInTime: a peer that said something while a request timed out is
// there: nobody waits.
func TestHTTP2HeardInTime(t *testing.T) {
	script := func(int) rawhttp2.Script {
		return rawhttp2.Script{
			Ping: func(*rawhttp2.Conn, [8]byte) {},
			Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
				if r.Path == "/head" {
					c.Head(r.ID, "103", false)
					return
				}
				c.Answer(r.ID, r.Path)
			},
		}
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		_, err := w.get("/head")
		require.ErrorIs(t, err, ErrRequestTimeout)
		start := time.Now()
		w.want("/")
		require.Zero(t, time.Since(start))
		require.Equal(t, 1, w.Dials())
	}, WithRequestTimeout(time.Second))
}

// TestHTTP2PeerThatTakesNoPreface: the dial ends with its timeout, or by Close.
func TestHTTP2PeerThatTakesNoPreface(t *testing.T) {
	for _, wrap := range []func(net.Conn) net.Conn{
		func(c net.Conn) net.Conn { return c },
		func(c net.Conn) net.Conn { return noDeadlines{c} },
	} {
		synctest.Test(t, func(t *testing.T) {
			dial := func(context.Context, string, string) (net.Conn, error) {
				c, _ := net.Pipe()
				return wrap(c), nil
			}
			tr, err := New(onlyH2C(), WithDialTimeout(time.Second), WithDialContext(dial))
			require.NoError(t, err)
			start := time.Now()
			_, err = fetch(t.Context(), tr, http.MethodGet, "http://a/")
			require.ErrorIs(t, err, ErrDialTimeout)
			require.LessOrEqual(t, time.Since(start), 2*time.Second)
			done := make(chan error)
			go func() {
				_, err := fetch(t.Context(), tr, http.MethodGet, "http://a/")
				done <- err
			}()
			synctest.Wait()
			start = time.Now()
			go func() { _ = tr.Close() }()
			require.ErrorIs(t, <-done, ErrClosed)
			require.NoError(t, tr.Close())
			require.LessOrEqual(t, time.Since(start), 500*time.Millisecond)
		})
	}
}

// stalling returns the URL of a real server that does not read any more when it
// is asked for /stall, and answers /wait in part.
func stalling(t *testing.T) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				_ = rawhttp2.New(nc, 0, rawhttp2.Script{
					Settings: []h2.Setting{{ID: h2.SettingInitialWindowSize, Val: 1 << 30}},
					Head: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
						switch r.Path {
						case "/wait":
							c.Head(r.ID, "200", false)
							c.Window(0, 1<<30)
						case "/stall":
							<-t.Context().Done()
						}
					},
					Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
						if r.Path == "/" {
							c.Answer(r.ID, r.Path)
						}
					},
				}).Serve()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return "http://" + l.Addr().String()
}

// TestHTTP2PeerThatDoesNotRead: what cannot be sent ends with its timeout, and
// keeps nobody else from ending.
func TestHTTP2PeerThatDoesNotRead(t *testing.T) {
	url := stalling(t)
	tr, err := New(onlyH2C(), WithRetryPolicy(RetryPolicy{}))
	require.NoError(t, err)
	waits, err := tr.Client().Get(url + "/wait")
	require.NoError(t, err)
	stalled := make(chan error, 1)
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/stall", endless{})
		if err == nil {
			_, err = roundTrip(tr, req)
		}
		stalled <- err
	}()
	var sent int64
	requireSoon(t, func() bool { // nothing is sent any more
		before := sent
		sent = tr.pool.bytesWritten()
		return sent > 1<<20 && sent == before
	}, "the peer reads on")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = fetch(ctx, tr, http.MethodGet, url)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, waits.Body.Close())
	require.NoError(t, tr.Close())
	require.ErrorIs(t, <-stalled, ErrClosed)
	require.Zero(t, tr.Stats().Open)
}

// bytesWritten is how much the leased connections have written.
func (p *pool) bytesWritten() (n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for e := p.leased.Front(); e != nil; e = e.Next() {
		n += e.Value.sc.BytesWritten()
	}
	return n
}

func TestHTTP2WriteTimeout(t *testing.T) {
	url := stalling(t)
	tr, err := New(onlyH2C(), WithWriteTimeout(100*time.Millisecond))
	require.NoError(t, err)
	defer tr.Close()
	waits, err := tr.Client().Get(url + "/wait")
	require.NoError(t, err)
	defer waits.Body.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/stall", endless{})
	require.NoError(t, err)
	_, err = roundTrip(tr, req)
	require.ErrorIs(t, err, ErrWriteTimeout)
	e, ok := errors.AsType[*Error](err)
	require.True(t, ok)
	require.Equal(t, PhaseWrite, e.Phase)
	require.True(t, e.Timeout())
	_, err = waits.Body.Read(make([]byte, 1))
	require.ErrorIs(t, err, ErrWriteTimeout, "the others on it end for the same reason")
	require.Equal(t, "/", mustGet(t, tr, url+"/"))
	require.Equal(t, uint64(2), tr.Stats().Dials)
}

// TestHTTP2CancelTellsThePeer: the stream is reset, the connection kept.
func TestHTTP2CancelTellsThePeer(t *testing.T) {
	var resets chan h2.ErrCode
	script := func(int) rawhttp2.Script {
		resets = make(chan h2.ErrCode, 10)
		s := hanging(0)
		s.Reset = func(_ *rawhttp2.Conn, _ uint32, code h2.ErrCode) { resets <- code }
		return s
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		for _, path := range []string{"/head", "/body"} {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			_, err := fetch(ctx, w.tr, http.MethodGet, w.url+path)
			require.ErrorIs(t, err, context.Canceled)
			synctest.Wait()
			require.Len(t, resets, 1)
			require.Equal(t, h2.ErrCodeCancel, <-resets)
		}
		require.Equal(t, 1, w.tr.Stats().Idle)
	})
}

// TestHTTP2HealthCheckIsNoAnswer: the answer to a ping that was sent by time does not
// say that the peer is there when a request times out.
func TestHTTP2HealthCheckIsNoAnswer(t *testing.T) {
	overHTTP2(t, hanging, func(t *testing.T, w *h2net) {
		w.want("/")
		time.Sleep(4 * time.Second) // a health check has been answered
		w.Conns()[0].Peer().StallReads(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := fetch(ctx, w.tr, http.MethodGet, w.url+"/head")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		start := time.Now()
		w.want("/")
		require.LessOrEqual(t, time.Since(start), maxPingWait)
		require.Equal(t, 2, w.Dials())
	}, WithHTTP2Config(http.HTTP2Config{SendPingTimeout: 3 * time.Second}))
}
