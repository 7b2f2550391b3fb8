package keepalive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// bubble runs f in a synctest bubble with an in-memory network and a
// Transport on it.
func bubble(t *testing.T, f func(t *testing.T, n *netfake.Net, tr *Transport), opts ...Option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := netfake.New()
		tr, err := New(append([]Option{WithDialContext(n.Dial)}, opts...)...)
		require.NoError(t, err)
		t.Cleanup(func() {
			require.NoError(t, tr.Close())
			s := tr.Stats()
			require.Zero(t, s.Open)
			require.Equal(t, s.Opened, s.TotalClosed())
			require.Equal(t, s.Dials, s.Opened+s.DialErrors)
			require.Empty(t, s.Hosts)
		})
		f(t, n, tr)
	})
}

// reply serves each connection with what f returns for a request; "" ends it.
func reply(n *netfake.Net, t *testing.T, addr string, f func(conn, req int, r *http.Request) string) {
	t.Helper()
	n.Serve(t, addr, func(c *netfake.Conn) {
		br := bufio.NewReader(c)
		for i := 0; ; i++ {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if !strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
				_, _ = io.Copy(io.Discard, r.Body)
			}
			s := f(c.Index(), i, r)
			if s == "" {
				return
			}
			if _, err := io.WriteString(c, s); err != nil {
				return
			}
		}
	})
}

// ok is an answer with body, and more header lines.
func ok(body string, lines ...string) string {
	return "HTTP/1.1 200 OK\r\n" + strings.Join(append(lines, ""), "\r\n") +
		"Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
}

// get requests url and returns the body.
func fetch(ctx context.Context, tr http.RoundTripper, method, target string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return "", err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func mustGet(t *testing.T, tr http.RoundTripper, target string) string {
	t.Helper()
	s, err := fetch(t.Context(), tr, "GET", target)
	require.NoError(t, err)
	return s
}

// connNumber answers with the number of the connection.
func connNumber(conn, _ int, _ *http.Request) string { return ok(strconv.Itoa(conn)) }

func TestIdleTimeout(t *testing.T) {
	for _, tt := range []struct {
		idle time.Duration
		want string
	}{{50*time.Second - 1, "0"}, {50 * time.Second, "1"}} {
		bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
			reply(n, t, "a:80", connNumber)
			require.Equal(t, "0", mustGet(t, tr, "http://a/"))
			time.Sleep(tt.idle)
			require.Equal(t, tt.want, mustGet(t, tr, "http://a/"))
		})
	}
}

func TestIdleConnIsClosedWithoutTraffic(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		mustGet(t, tr, "http://a/")
		time.Sleep(50*time.Second + 100*time.Millisecond)
		synctest.Wait()
		require.Zero(t, n.Open())
		require.Equal(t, map[CloseReason]uint64{CloseIdleTimeout: 1}, tr.Stats().Closed)
	})
}

func TestKeepAliveHint(t *testing.T) {
	for _, tt := range []struct {
		header string
		idle   time.Duration
		want   string
	}{
		{"Keep-Alive: timeout=5", 4*time.Second - 1, "0"},
		{"Keep-Alive: timeout=5", 4 * time.Second, "1"},
		{"Keep-Alive: timeout=2", time.Second - 1, "0"},
		{"Keep-Alive: timeout=2", time.Second, "1"},
		{"Keep-Alive: timeout=0", 0, "1"},
		{"Keep-Alive: max=0", 0, "1"},
		{"Keep-Alive: timeout=100", 50*time.Second - 1, "0"},
		{"Keep-Alive: timeout=100", 50 * time.Second, "1"}, // only ever shorter
		{"Connection: close", 0, "1"},
	} {
		t.Run(tt.header, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				reply(n, t, "a:80", func(conn, _ int, _ *http.Request) string { return ok(strconv.Itoa(conn), tt.header) })
				require.Equal(t, "0", mustGet(t, tr, "http://a/"))
				time.Sleep(tt.idle)
				require.Equal(t, tt.want, mustGet(t, tr, "http://a/"))
			})
		})
	}
}

func TestKeepAliveMaxHint(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(conn, req int, _ *http.Request) string {
			return ok(strconv.Itoa(conn), fmt.Sprintf("Keep-Alive: max=%d", 2-req))
		})
		var got []string
		for range 6 {
			got = append(got, mustGet(t, tr, "http://a/"))
		}
		require.Equal(t, []string{"0", "0", "0", "1", "1", "1"}, got)
		require.Equal(t, uint64(2), tr.Stats().Closed[CloseMaxRequests])
	})
}

func TestKeepAliveMaxHintIsCountedDown(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(conn, req int, _ *http.Request) string {
			if req == 0 {
				return ok(strconv.Itoa(conn), "Keep-Alive: max=2") // and not again
			}
			return ok(strconv.Itoa(conn))
		})
		var got []string
		for range 6 {
			got = append(got, mustGet(t, tr, "http://a/"))
		}
		require.Equal(t, []string{"0", "0", "0", "1", "1", "1"}, got)
	})
}

func TestContextCause(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.Serve(t, "a:80", func(c *netfake.Conn) { _, _ = io.Copy(io.Discard, c) })
		mine := errors.New("my cause")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, mine)
		defer cancel()
		_, err := fetch(ctx, tr, "GET", "http://a/")
		require.ErrorIs(t, err, mine)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.True(t, (&url.Error{Err: err}).Timeout())
	})
}

func TestMaxRequestsPerConn(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		var mu sync.Mutex
		var said []string
		reply(n, t, "a:80", func(conn, _ int, r *http.Request) string {
			mu.Lock()
			defer mu.Unlock()
			said = append(said, fmt.Sprint(conn, " ", r.Close))
			return ok("")
		})
		for range 7 {
			mustGet(t, tr, "http://a/")
		}
		require.Equal(t, []string{
			"0 false", "0 false", "0 true", "1 false", "1 false", "1 true", "2 false",
		}, said)
		require.Equal(t, map[CloseReason]uint64{CloseMaxRequests: 2}, tr.Stats().Closed)
	}, WithMaxRequestsPerConn(3))
}

func TestLifetimeEndsAnIdleConn(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		mustGet(t, tr, "http://a/")
		time.Sleep(time.Minute + 3*time.Second)
		synctest.Wait()
		require.Equal(t, map[CloseReason]uint64{CloseLifetime: 1}, tr.Stats().Closed)
	}, WithMaxConnLifetime(time.Minute), WithIdleConnTimeout(0))
}

func TestLifetimeUnderLoad(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		for i := range 30 {
			require.Equal(t, strconv.Itoa(i/6), mustGet(t, tr, "http://a/"), "request %d", i)
			time.Sleep(10 * time.Second)
		}
	}, WithMaxConnLifetime(time.Minute), WithLifetimeJitter(0))
}

// TestTimeouts: each phase's timeout ends its own phase and names it.
func TestTimeouts(t *testing.T) {
	const limit = 3 * time.Second
	for _, tt := range []struct {
		name   string
		opt    Option
		phase  Phase
		want   error
		reason CloseReason
		setUp  func(t *testing.T, n *netfake.Net, tr *Transport)
	}{
		{"dial", WithDialTimeout(limit), PhaseDial, ErrDialTimeout, 0, func(t *testing.T, n *netfake.Net, _ *Transport) {
			n.BlackHole("a:80", true)
		}},
		{"response header", WithResponseHeaderTimeout(limit), PhaseHeader, ErrResponseHeaderTimeout, CloseTimeout, func(t *testing.T, n *netfake.Net, _ *Transport) {
			n.Serve(t, "a:80", func(c *netfake.Conn) { _, _ = io.Copy(io.Discard, c) })
		}},
		{"body", WithBodyReadTimeout(limit), PhaseBody, ErrBodyReadTimeout, CloseTimeout, func(t *testing.T, n *netfake.Net, _ *Transport) {
			reply(n, t, "a:80", func(_, _ int, _ *http.Request) string { return "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf" })
		}},
		{"whole request, no answer", WithRequestTimeout(limit), PhaseHeader, ErrRequestTimeout, CloseTimeout, func(t *testing.T, n *netfake.Net, _ *Transport) {
			n.Serve(t, "a:80", func(c *netfake.Conn) { _, _ = io.Copy(io.Discard, c) })
		}},
		{"whole request, body", WithRequestTimeout(limit), PhaseBody, ErrRequestTimeout, CloseTimeout, func(t *testing.T, n *netfake.Net, _ *Transport) {
			reply(n, t, "a:80", func(_, _ int, _ *http.Request) string { return "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf" })
		}},
		{"whole request, dial", WithRequestTimeout(limit), PhaseDial, ErrRequestTimeout, 0, func(t *testing.T, n *netfake.Net, _ *Transport) {
			n.BlackHole("a:80", true)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				tt.setUp(t, n, tr)
				start := time.Now()
				_, err := fetch(t.Context(), tr, "GET", "http://a/")
				require.Equal(t, limit, time.Since(start))
				var e *Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, tt.phase, e.Phase, err)
				require.ErrorIs(t, err, tt.want)
				require.True(t, (&url.Error{Err: err}).Timeout(), "through url.Error")
				if tt.reason != 0 {
					require.Equal(t, map[CloseReason]uint64{tt.reason: 1}, tr.Stats().Closed)
				}
			}, tt.opt)
		})
	}
}

func TestAcquireTimeout(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(_, _ int, _ *http.Request) string { return "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf" })
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		start := time.Now()
		_, err = fetch(t.Context(), tr, "GET", "http://a/")
		require.ErrorIs(t, err, ErrAcquireTimeout)
		require.ErrorContains(t, err, "1 connections, 1 requests waiting")
		require.Equal(t, time.Second, time.Since(start))
		require.NoError(t, resp.Body.Close())
	}, WithMaxConnsPerHost(1), WithAcquireTimeout(time.Second))
}

// TestAcquireTimeoutDoesNotCountTheDial: a nanosecond means not to wait for a limit; a
// dial is waited for all the same, and not by asking all the time.
func TestAcquireTimeoutDoesNotCountTheDial(t *testing.T) {
	for _, limit := range []time.Duration{time.Second, time.Nanosecond} {
		bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
			reply(n, t, "a:80", connNumber)
			n.SetDialDelay("a:80", 5*time.Second)
			require.Equal(t, "0", mustGet(t, tr, "http://a/"))
		}, WithAcquireTimeout(limit))
	}
}

func TestMaxWaiters(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.SetDialDelay("a:80", time.Second)
		reply(n, t, "a:80", connNumber)
		var wg sync.WaitGroup
		var mu sync.Mutex
		full := 0
		for range 10 {
			wg.Go(func() {
				_, err := fetch(t.Context(), tr, "GET", "http://a/")
				mu.Lock()
				defer mu.Unlock()
				if errors.Is(err, ErrTooManyWaiters) {
					full++
				} else if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.Equal(t, 6, full, "one dials, three wait")
	}, WithMaxConnsPerHost(1), WithMaxWaiters(3))
}

// TestSlowDial: a dial that takes longer than the requests' timeouts is not
// lost: a later request finds its connection (golang/go#59017).
func TestSlowDial(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.SetDialDelay("a:80", 300*time.Millisecond)
		reply(n, t, "a:80", connNumber)
		for i := range 4 {
			ctx, cancel := context.WithTimeout(t.Context(), 110*time.Millisecond)
			_, err := fetch(ctx, tr, "GET", "http://a/")
			cancel()
			if i < 2 {
				require.ErrorIs(t, err, context.DeadlineExceeded)
			} else {
				require.NoError(t, err, "request %d", i)
			}
		}
		require.Equal(t, 1, n.Dials())
	})
}

// TestBlackHole: cancelled requests do not leave their dials behind
// (golang/go#76784).
func TestBlackHole(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.BlackHole("a:80", true)
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
				defer cancel()
				_, err := fetch(ctx, tr, "GET", "http://a/")
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		require.LessOrEqual(t, n.Dialing(), 1)
		require.Zero(t, tr.Stats().Waiting)
	})
}

// TestBlockedCloseDelaysNobody is golang/go#79902: a Close that blocks on one
// host must not stop another.
func TestBlockedCloseDelaysNobody(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		reply(n, t, "b:80", connNumber)
		mustGet(t, tr, "http://a/")
		release := n.Conns()[0].BlockClose()
		mustGet(t, tr, "http://b/") // evicts the one to a
		start := time.Now()
		for range 3 {
			mustGet(t, tr, "http://b/")
		}
		require.Zero(t, time.Since(start))
		release()
	}, WithMaxIdleConns(1))
}

func TestPeerClosesWhileIdle(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		mustGet(t, tr, "http://a/")
		_ = n.Conns()[0].Peer().Close()
		synctest.Wait()
		require.Equal(t, map[CloseReason]uint64{ClosePeerClosed: 1}, tr.Stats().Closed, "without traffic")
		s, err := fetch(t.Context(), tr, "POST", "http://a/")
		require.NoError(t, err)
		require.Equal(t, "1", s)
	})
}

func TestBytesWhileIdle(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		mustGet(t, tr, "http://a/")
		_, _ = io.WriteString(n.Conns()[0].Peer(), ok("injected"))
		synctest.Wait()
		require.Equal(t, "1", mustGet(t, tr, "http://a/"))
	})
}

func TestLeftoverBytes(t *testing.T) {
	for _, first := range []string{
		"HTTP/1.1 204 No Content\r\n\r\n", ok(""), ok("ab"),
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
	} {
		bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
			reply(n, t, "a:80", func(conn, _ int, _ *http.Request) string {
				if conn == 0 {
					return first + ok("injected")
				}
				return ok("mine")
			})
			mustGet(t, tr, "http://a/")
			require.Equal(t, "mine", mustGet(t, tr, "http://a/"))
			require.Equal(t, uint64(1), tr.Stats().Closed[CloseProtocolError])
		})
	}
}

// TestRetryAfterStale: the server takes a request on a reused connection and
// hangs up.
func TestRetryAfterStale(t *testing.T) {
	for method, retried := range map[string]bool{"GET": true, "HEAD": true, "PUT": true, "DELETE": true, "POST": false, "PATCH": false} {
		t.Run(method, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				reply(n, t, "a:80", func(conn, req int, _ *http.Request) string {
					if conn == 0 && req == 1 {
						return ""
					}
					return ok("")
				})
				mustGet(t, tr, "http://a/")
				_, err := fetch(t.Context(), tr, method, "http://a/")
				if retried {
					require.NoError(t, err)
					require.Equal(t, uint64(1), tr.Stats().Retries)
					return
				}
				require.ErrorIs(t, err, ErrServerClosedIdle)
				require.ErrorIs(t, err, io.EOF)
				require.NotContains(t, err.Error(), "EOF")
				var e *Error
				require.ErrorAs(t, err, &e)
				require.True(t, e.Reused)
				require.Positive(t, e.BytesWritten)
				require.Zero(t, e.BytesRead)
				require.Equal(t, 1, e.Attempts)
				require.Equal(t, 1, e.Served)
			})
		})
	}
}

func TestRetriesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		seen := 0
		reply(n, t, "a:80", func(_, req int, r *http.Request) string {
			if r.URL.Path == "/warm" {
				return ok("")
			}
			seen++
			return ""
		})
		mustGet(t, tr, "http://a/warm")
		_, err := fetch(t.Context(), tr, "GET", "http://a/")
		require.Error(t, err)
		require.Equal(t, 2, seen, "once reused, once fresh")
		require.NotErrorIs(t, err, ErrServerClosedIdle, "it was fresh")
	})
}

// TestNoBytesWrittenIsRetried: of a POST that never left, another attempt is
// safe.
func TestNoBytesWrittenIsRetried(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		mustGet(t, tr, "http://a/")
		n.Conns()[0].FailWrites(0, errors.New("broken"))
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/", strings.NewReader("body"))
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "1", string(b))
	})
}

func TestCapWaitersAreServedInOrder(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		var mu sync.Mutex
		var order []string
		reply(n, t, "a:80", func(_, _ int, r *http.Request) string {
			time.Sleep(time.Second)
			mu.Lock()
			defer mu.Unlock()
			order = append(order, r.URL.Path)
			return ok("")
		})
		var wg sync.WaitGroup
		var want []string
		for i := range 10 {
			path := "/" + strconv.Itoa(i)
			want = append(want, path)
			wg.Go(func() { mustGet(t, tr, "http://a"+path) })
			synctest.Wait()
		}
		wg.Wait()
		require.Equal(t, want, order)
		require.Equal(t, 1, n.MaxOpen())
	}, WithMaxConnsPerHost(1))
}

func TestRequestOptions(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(conn, _ int, r *http.Request) string { return ok(fmt.Sprint(conn, " ", r.Close)) })
		get := func(opts ...RequestOption) string {
			s, err := fetch(ContextWithOptions(t.Context(), opts...), tr, "GET", "http://a/")
			require.NoError(t, err)
			return s
		}
		require.Equal(t, "0 false", get())
		require.Equal(t, "0 false", get())
		require.Equal(t, "1 false", get(FreshConn()))
		require.Equal(t, "1 false", get(), "it is the newest")
		require.Equal(t, "1 true", get(NoReuse()))
		require.Equal(t, "0 false", get())
		_, err := fetch(ContextWithOptions(t.Context(), BodyReadTimeout(-1)), tr, "GET", "http://a/")
		var oe *OptionError
		require.ErrorAs(t, err, &oe)
	})
}

func TestRequestOptionTimeouts(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.Serve(t, "a:80", func(c *netfake.Conn) { _, _ = io.Copy(io.Discard, c) })
		ctx := ContextWithOptions(t.Context(), ResponseHeaderTimeout(time.Second))
		_, err := fetch(ctx, tr, "GET", "http://a/")
		require.ErrorIs(t, err, ErrResponseHeaderTimeout)
		start := time.Now()
		ctx = ContextWithOptions(ctx, ResponseHeaderTimeout(0), RequestTimeout(7*time.Second))
		_, err = fetch(ctx, tr, "GET", "http://a/")
		require.ErrorIs(t, err, ErrRequestTimeout)
		require.Equal(t, 7*time.Second, time.Since(start))
	})
}

func TestNoRetryOption(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(conn, req int, _ *http.Request) string {
			if conn == 0 && req == 1 {
				return ""
			}
			return ok("")
		})
		mustGet(t, tr, "http://a/")
		_, err := fetch(ContextWithOptions(t.Context(), NoRetry()), tr, "GET", "http://a/")
		require.ErrorIs(t, err, ErrServerClosedIdle)
	})
}

func TestHTTP10NeedsTheHeader(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(conn, _ int, r *http.Request) string {
			if r.Header.Get("Connection") != "keep-alive" {
				return fmt.Sprintf("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n%d", conn)
			}
			return fmt.Sprintf("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n%d", conn)
		})
		for range 5 {
			require.Equal(t, "0", mustGet(t, tr, "http://a/"))
		}
	})
}

func TestKeepAliveHeaderIsSentOncePerConn(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(_, _ int, r *http.Request) string { return ok(r.Header.Get("Connection")) })
		require.Equal(t, "keep-alive", mustGet(t, tr, "http://a/"))
		require.Equal(t, "", mustGet(t, tr, "http://a/"))
	})
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(_, _ int, r *http.Request) string { return ok(r.Header.Get("Connection")) })
		require.Equal(t, "", mustGet(t, tr, "http://a/"))
	}, WithKeepAliveHeader(false))
}

func TestShutdownWaitsForBodies(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.Serve(t, "a:80", func(c *netfake.Conn) {
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
			time.Sleep(5 * time.Second)
			_, _ = io.WriteString(c, "lf")
			_, _ = io.Copy(io.Discard, c)
		})
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		start := time.Now()
		ended := make(chan error)
		go func() { ended <- tr.Shutdown(t.Context()) }()
		synctest.Wait()
		_, err = fetch(t.Context(), tr, "GET", "http://a/")
		require.ErrorIs(t, err, ErrClosed)
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "half", string(b))
		require.NoError(t, <-ended)
		require.Equal(t, 5*time.Second, time.Since(start))
	})
}

func TestShutdownEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(_, _ int, _ *http.Request) string { return "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf" })
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, tr.Shutdown(ctx), context.DeadlineExceeded)
		require.NoError(t, tr.Close())
		_, err = io.ReadAll(resp.Body)
		require.ErrorIs(t, err, ErrClosed, "Close cuts it off")
	})
}

func TestCloseCutsOffAndFailsWaiters(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.Serve(t, "a:80", func(c *netfake.Conn) { _, _ = io.Copy(io.Discard, c) })
		n.BlackHole("b:80", true)
		errs := make(chan error)
		for _, u := range []string{"http://a/", "http://a/", "http://b/"} {
			go func() {
				_, err := fetch(t.Context(), tr, "GET", u)
				errs <- err
			}()
			synctest.Wait()
		}
		require.NoError(t, tr.Close())
		for range 3 {
			require.ErrorIs(t, <-errs, ErrClosed)
		}
		require.Zero(t, n.Open())
		require.Zero(t, n.Dialing())
	}, WithMaxConnsPerHost(1))
}

func TestCloseIdleConnections(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		client := tr.Client()
		mustGet(t, tr, "http://a/")
		client.CloseIdleConnections()
		require.Zero(t, n.Open(), "done when it returns")
		require.Equal(t, "1", mustGet(t, tr, "http://a/"))
		require.Equal(t, "1", mustGet(t, tr, "http://a/"), "connections are kept again")
	})
}

func TestPoolKey(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		get := func(tenant string) string {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
			req.Header.Set("Tenant", tenant)
			resp, err := tr.RoundTrip(req)
			require.NoError(t, err)
			b, _ := io.ReadAll(resp.Body)
			return string(b)
		}
		require.Equal(t, []string{"0", "1", "0", "1"}, []string{get("x"), get("y"), get("x"), get("y")})
	}, WithPoolKey(func(r *http.Request) string { return r.Header.Get("Tenant") }))
}

// TestSlowReaderIsNoTimeout: time that the caller spends elsewhere is not the
// server's.
func TestSlowReaderIsNoTimeout(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.Serve(t, "a:80", func(c *netfake.Conn) {
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
			for range 20 {
				time.Sleep(80 * time.Millisecond)
				_, _ = io.WriteString(c, "x")
			}
			_, _ = io.Copy(io.Discard, c)
		})
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		for range 20 {
			_, err := io.ReadFull(resp.Body, make([]byte, 1))
			require.NoError(t, err)
			if time.Now().Nanosecond()%3 == 0 {
				time.Sleep(time.Second)
			}
		}
		time.Sleep(time.Second)
		_, err = resp.Body.Read(make([]byte, 1))
		require.Equal(t, io.EOF, err)
	}, WithBodyReadTimeout(100*time.Millisecond))
}

func TestWholeBodyGivesTheConnectionBackAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://a/", nil)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		require.Equal(t, 1, tr.Stats().Idle, "before the body was read")
		cancel()
		require.Equal(t, "0", mustGet(t, tr, "http://a/"), "the end of one request's context is nothing to the next")
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "0", string(b))
	})
}

func TestWithoutPeerNobodyHangs(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		_, err := fetch(t.Context(), tr, "GET", "http://nobody/")
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, PhaseDial, e.Phase)
		var oe *net.OpError
		require.ErrorAs(t, err, &oe)
		require.Equal(t, uint64(1), tr.Stats().DialErrors)
	})
}
