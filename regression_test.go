package keepalive

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

const halfBody = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"

func open(t *testing.T, tr *Transport, cancel <-chan struct{}) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
	require.NoError(t, err)
	req.Cancel = cancel //nolint:staticcheck // SA1019: http.Client sets it
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	return resp
}

func TestCloseDoesNotWaitForBodies(t *testing.T) {
	for _, cancel := range []chan struct{}{nil, make(chan struct{})} {
		bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
			reply(n, t, "a:80", func(_, _ int, _ *http.Request) string { return halfBody })
			if cancel != nil {
				cancel = make(chan struct{}) // of this bubble
			}
			resp := open(t, tr, cancel)
			require.NoError(t, tr.Close())
			require.Zero(t, n.Open())
			require.NoError(t, resp.Body.Close())
		})
	}
}

// TestBlockedHostIsForgotten: a host whose waiter was served holds no claim on
// the next connection that is released.
func TestBlockedHostIsForgotten(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(_, _ int, _ *http.Request) string {
			time.Sleep(time.Second)
			return ok("")
		})
		for range 3 {
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() { mustGet(t, tr, "http://a/") })
			}
			wg.Wait()
		}
		require.Equal(t, 1, n.Dials())
	}, WithMaxConns(1))
}

// wrappedEOF is a connection of a user's that wraps its errors.
type wrappedEOF struct{ net.Conn }

func (c wrappedEOF) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		err = fmt.Errorf("wrapped: %w", err)
	}
	return n, err
}

func TestWrappedEOFIsNoEndOfABody(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(_, req int, _ *http.Request) string { return halfBody })
		n.OnDial(func(c *netfake.Conn) {
			go func() {
				time.Sleep(time.Second)
				_ = c.Peer().Close()
			}()
		})
		tr.dialer.cfg.dialContext = wrapDial(n)
		resp := open(t, tr, nil)
		b, err := io.ReadAll(resp.Body)
		require.Error(t, err)
		require.Equal(t, "half", string(b))
		require.Equal(t, uint64(1), tr.Stats().TotalClosed())
	})
}

func wrapDial(n *netfake.Net) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := n.Dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return wrappedEOF{c}, nil
	}
}

func TestBodyReadTimeoutInsideAChunkHeader(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(_, _ int, _ *http.Request) string {
			return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5"
		})
		resp := open(t, tr, nil)
		_, err := io.ReadAll(resp.Body)
		require.ErrorIs(t, err, ErrBodyReadTimeout)
	}, WithBodyReadTimeout(time.Second))
}

func TestHugeIdleTimeout(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		mustGet(t, tr, "http://a/")
		time.Sleep(time.Hour)
		require.Equal(t, "0", mustGet(t, tr, "http://a/"))
	}, WithIdleConnTimeout(math.MaxInt64), WithMaxConnLifetime(0))
}

func TestConnectTunnelIsNotPooled(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodConnect, "http://a/", nil)
		require.NoError(t, err)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, "1", mustGet(t, tr, "http://a/"))
	})
}

// TestGetBodyIsChecked: a body that GetBody returns for another attempt must
// be the same as the first, or a rest of it would be the next request.
func TestGetBodyIsChecked(t *testing.T) {
	for name, again := range map[string]func() (io.ReadCloser, error){
		"longer": func() (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("abcDELETE /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")), nil
		},
		"nothing": func() (io.ReadCloser, error) { return nil, nil },
		"error":   func() (io.ReadCloser, error) { return nil, errors.New("gone") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				var paths []string
				reply(n, t, "a:80", func(conn, req int, r *http.Request) string {
					paths = append(paths, r.URL.Path)
					if conn == 0 && req == 1 {
						return ""
					}
					return ok("")
				})
				mustGet(t, tr, "http://a/warm")
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://a/put", io.MultiReader(strings.NewReader("abc")))
				require.NoError(t, err)
				req.ContentLength, req.GetBody = 3, again
				_, err = tr.RoundTrip(req)
				require.ErrorIs(t, err, ErrRequestBody)
				synctest.Wait()
				require.NotContains(t, paths, "/smuggled")
			})
		})
	}
}

func TestGzipReadAfterClose(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		var packed bytes.Buffer
		zw := gzip.NewWriter(&packed)
		_, _ = io.WriteString(zw, "hello, hello, hello")
		_ = zw.Close()
		reply(n, t, "a:80", func(_, _ int, _ *http.Request) string { return ok(packed.String(), "Content-Encoding: gzip") })
		resp := open(t, tr, nil)
		require.True(t, resp.Uncompressed)
		_, err := io.ReadFull(resp.Body, make([]byte, 5))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		_, err = resp.Body.Read(make([]byte, 5))
		require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	})
}

func TestLengthWithoutBodyIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/", nil)
		require.NoError(t, err)
		req.ContentLength = 5
		_, err = tr.RoundTrip(req)
		require.ErrorContains(t, err, "ContentLength=5 with nil Body")
		require.Zero(t, n.Dials())
	})
}

func TestWroteRequestHearsOfTheError(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.Serve(t, "a:80", func(c *netfake.Conn) { _, _ = bufio.NewReader(c).Peek(1) })
		broken := errors.New("broken")
		n.OnDial(func(c *netfake.Conn) { c.FailWrites(0, broken) })
		var got []error
		trace := &httptrace.ClientTrace{WroteRequest: func(i httptrace.WroteRequestInfo) { got = append(got, i.Err) }}
		ctx := httptrace.WithClientTrace(ContextWithOptions(t.Context(), NoRetry()), trace)
		_, err := fetch(ctx, tr, "GET", "http://a/")
		require.ErrorIs(t, err, broken)
		require.Len(t, got, 1)
		require.ErrorIs(t, got[0], broken)
	})
}

// TestBodyLongerThanAnnounced: also where the announced length ends at the end
// of a buffer.
func TestBodyLongerThanAnnounced(t *testing.T) {
	for _, n := range []int64{10, bufferSize - 1, bufferSize, bufferSize + 1, 2 * bufferSize} {
		bubble(t, func(t *testing.T, net *netfake.Net, tr *Transport) {
			reply(net, t, "a:80", connNumber)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/", io.LimitReader(endless{}, n+1))
			require.NoError(t, err)
			req.ContentLength = n
			_, err = tr.RoundTrip(req)
			require.ErrorIs(t, err, ErrRequestBody, n)
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestRequestTimeoutAnswer: 408 is the late end of a connection that had been
// idle, and the answer to a request that followed the last one at once, whatever
// the retry budget is.
func TestRequestTimeoutAnswer(t *testing.T) {
	const late = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 4\r\n\r\nlate"
	for _, budget := range []float64{0.2, 0} {
		for idle, want := range map[time.Duration]string{0: "late", idleRace: "ok"} {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				reply(n, t, "a:80", func(conn, req int, _ *http.Request) string {
					if conn == 0 && req == 1 {
						return late
					}
					return ok("ok")
				})
				mustGet(t, tr, "http://a/")
				time.Sleep(idle)
				require.Equal(t, want, mustGet(t, tr, "http://a/"), "idle for %v, budget %v", idle, budget)
			}, WithRetryPolicy(RetryPolicy{MaxRetries: 2, Budget: budget}))
		}
	}
}

// TestOddInterim: what is odd in an interim answer counts as in the final one: the
// body that a 103 announces would be taken for the next answer.
func TestOddInterim(t *testing.T) {
	for _, odd := range []string{"Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "A: b\r\n c\r\n", "A: b\n"} {
		bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
			reply(n, t, "a:80", func(conn, _ int, _ *http.Request) string {
				return "HTTP/1.1 103 Early Hints\r\n" + odd + "\r\n" + ok(strconv.Itoa(conn))
			})
			require.Equal(t, "0", mustGet(t, tr, "http://a/"))
			require.Equal(t, "1", mustGet(t, tr, "http://a/"), "%q", odd)
		})
	}
}

// TestOddAnswerCostsItsConnection: and no other one.
func TestOddAnswerCostsItsConnection(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(_, _ int, r *http.Request) string {
			time.Sleep(time.Second)
			if r.Method == http.MethodDelete {
				return "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"
			}
			return ok("ok")
		})
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() { mustGet(t, tr, "http://a/") })
		}
		all.Wait()
		_, err := fetch(t.Context(), tr, http.MethodDelete, "http://a/")
		require.NoError(t, err)
		require.Equal(t, map[CloseReason]uint64{CloseProtocolError: 1}, tr.Stats().Closed)
		require.Equal(t, 4, tr.Stats().Idle)
	})
}

// TestSameRequestAgain: a small body of a request that found no server can be sent
// with the next try.
func TestSameRequestAgain(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/", strings.NewReader("hello"))
		require.NoError(t, err)
		_, err = tr.RoundTrip(req)
		require.Error(t, err, "nobody listens")
		reply(n, t, "a:80", connNumber)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.NoError(t, tr.Close())
		req.Body = io.NopCloser(strings.NewReader("hello"))
		_, err = tr.RoundTrip(req)
		require.ErrorIs(t, err, ErrClosed)
		left, err := io.ReadAll(req.Body)
		require.NoError(t, err)
		require.Equal(t, "hello", string(left))
	})
}

// TestTimeoutOfTheConnectionsOwn: it is not one of ours.
func TestTimeoutOfTheConnectionsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := netfake.New()
		reply(n, t, "a:80", func(int, int, *http.Request) string {
			time.Sleep(time.Minute)
			return ""
		})
		tr := wrapping(t, n, func(c net.Conn) net.Conn { return impatientConn{c, time.Second} })
		_, err := fetch(t.Context(), tr, http.MethodGet, "http://a/")
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NotErrorIs(t, err, ErrWriteTimeout)
		require.NoError(t, tr.Close())
	})
}

// TestPathOfASocketInTheHost: a dial function gets it as it is.
func TestPathOfASocketInTheHost(t *testing.T) {
	var got string
	tr, err := New(WithDialContext(func(_ context.Context, _, addr string) (net.Conn, error) {
		got = addr
		return nil, errOfSource
	}))
	require.NoError(t, err)
	defer tr.Close()
	_, err = tr.RoundTrip(&http.Request{Method: http.MethodGet, URL: &url.URL{Scheme: "http", Host: "/run/My.sock"}, Header: http.Header{}})
	require.ErrorIs(t, err, errOfSource)
	require.Equal(t, "/run/My.sock:80", got)
}
