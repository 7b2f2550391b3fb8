package keepalive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// TestCancelAtEveryByte: a request that is cancelled when any number of bytes
// of its answer have arrived leaves nothing behind for the next one.
func TestCancelAtEveryByte(t *testing.T) {
	for name, answer := range map[string]string{
		"length":  ok("the answer to request one, which nobody waits for", "X-Filler: some more bytes"),
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				n.Serve(t, "a:80", func(c *netfake.Conn) {
					br := bufio.NewReader(c)
					for {
						r, err := http.ReadRequest(br)
						if err != nil {
							return
						}
						var cut int
						_, _ = fmt.Sscan(r.Header.Get("Cut"), &cut)
						out := ok(r.URL.Path)
						if r.URL.Path == "/one" {
							out = answer
						}
						_, _ = io.WriteString(c, out[:len(out)-cut])
						time.Sleep(time.Second)
						_, _ = io.WriteString(c, out[len(out)-cut:])
					}
				})
				for cut := range len(answer) + 1 {
					ctx, cancel := context.WithCancel(t.Context())
					time.AfterFunc(time.Second/2, cancel)
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://a/one", nil)
					require.NoError(t, err)
					req.Header.Set("Cut", fmt.Sprint(cut))
					resp, err := tr.RoundTrip(req)
					if err == nil {
						_, err = io.ReadAll(resp.Body)
					}
					if cut > 0 {
						require.ErrorIs(t, err, context.Canceled, "%d bytes missing", cut)
					}
					require.Equal(t, "/two", mustGet(t, tr, "http://a/two"), "%d bytes missing", cut)
					synctest.Wait()
					cancel()
				}
			})
		})
	}
}

// countingConn tells when it is closed.
type countingConn struct {
	net.Conn
	once   sync.Once
	closed func()
}

func (c *countingConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.closed)
	return err
}

// TestCapIsStrict: with cancels, dial errors and servers that hang up at
// random, there are never more connections than allowed, dials included, and
// everybody gets an answer or an error of his own.
func TestCapIsStrict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := netfake.New()
		rng := rand.New(rand.NewPCG(3, 4))
		var mu sync.Mutex
		roll := func(n int) int {
			mu.Lock()
			defer mu.Unlock()
			return rng.IntN(n)
		}
		reply(n, t, "a:80", func(_, _ int, r *http.Request) string {
			time.Sleep(time.Duration(roll(20)) * time.Millisecond)
			if roll(10) == 0 {
				return ""
			}
			return ok(r.URL.Path)
		})
		var open, most atomic.Int64
		tr, err := New(WithMaxConnsPerHost(2), WithDialContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
			for now := open.Add(1); ; {
				was := most.Load()
				if now <= was || most.CompareAndSwap(was, now) {
					break
				}
			}
			time.Sleep(time.Duration(roll(10)) * time.Millisecond)
			if roll(8) == 0 {
				open.Add(-1)
				return nil, errors.New("refused")
			}
			c, err := n.Dial(ctx, network, addr)
			if err != nil {
				open.Add(-1)
				return nil, err
			}
			return &countingConn{Conn: c, closed: func() { open.Add(-1) }}, nil
		}))
		require.NoError(t, err)
		var wg sync.WaitGroup
		var answered atomic.Int64
		for i := range 500 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(roll(3000))*time.Millisecond)
				defer cancel()
				path := fmt.Sprint("/", i)
				got, err := fetch(ctx, tr, "GET", "http://a"+path)
				if err == nil {
					answered.Add(1)
					if got != path {
						t.Errorf("%s got the answer to %s", path, got)
					}
				}
			})
		}
		wg.Wait()
		require.Equal(t, int64(2), most.Load())
		require.Positive(t, answered.Load())
		s := tr.Stats()
		require.Zero(t, s.Waiting)
		require.Zero(t, s.InUse)
		require.NoError(t, tr.Close())
		require.Zero(t, open.Load())
	})
}
