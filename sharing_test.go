package keepalive

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	h2 "golang.org/x/net/http2"

	"github.com/keepalive-http/keepalive/internal/netfake"
	"github.com/keepalive-http/keepalive/internal/rawhttp2"
)

// TestPoolPeerThatTakesNothingYet: a peer may say at once, before its connection
// is the pool's, that it takes no request for now (RFC 9113 section 6.5.2). It is
// not dialed again and again for that.
func TestPoolPeerThatTakesNothingYet(t *testing.T) {
	b := newBench(t)
	b.acquire("s", false)
	for range 3 {
		if len(b.dials) == 0 {
			break
		}
		d := b.dials[0]
		b.dials = remove(b.dials, d)
		c := &conn{checkable: true, shares: true, capacity: initialStreams, settling: true}
		b.conns = append(b.conns, c)
		b.take(b.p.said(c, 0, false, b.now))
		b.take(b.p.settled(c, b.now))
		b.take(b.p.dialed(d, c, nil, b.now))
		for len(b.closing) > 0 {
			b.closed(b.closing[0])
		}
	}
	b.check()
	require.Empty(t, b.dials)
	require.Equal(t, uint64(1), b.p.stats().Dials)
	b.settle()
}

// TestPoolStrictLimitSaidEarly: what a peer says before its connection is the
// pool's holds as what it says later.
func TestPoolStrictLimitSaidEarly(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprint("settled late ", late), func(t *testing.T) {
			b := newBench(t, WithHTTP2Config(http.HTTP2Config{StrictMaxConcurrentRequests: true}))
			b.acquire("s", false)
			d := b.dials[0]
			b.dials = nil
			c := &conn{checkable: true, shares: true, capacity: initialStreams, settling: true}
			b.conns = append(b.conns, c)
			b.take(b.p.said(c, 1, false, b.now))
			if !late {
				b.take(b.p.settled(c, b.now))
			}
			b.take(b.p.dialed(d, c, nil, b.now))
			if late {
				b.take(b.p.settled(c, b.now))
			}
			b.acquire("s", false)
			require.Empty(t, b.dials)
			require.Len(t, b.leased, 1)
			b.check()
			b.settle()
		})
	}
}

// TestHTTP2StrategyOutlivesAFailure: what a strategy said of the last answer
// holds, whatever becomes of a request that has none.
func TestHTTP2StrategyOutlivesAFailure(t *testing.T) {
	shorter := strategyFunc(func(_ *http.Response, _ ConnInfo, v ReuseVerdict) ReuseVerdict {
		v.IdleTimeout = 5 * time.Second
		return v
	})
	overHTTP2(t, hanging, func(t *testing.T, w *h2net) {
		w.want("/")
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := fetch(ctx, w.tr, http.MethodGet, w.url+"/head")
		require.ErrorIs(t, err, context.Canceled)
		time.Sleep(6 * time.Second)
		require.Zero(t, w.tr.Stats().Idle)
	}, WithReuseStrategy(shorter))
}

// TestHTTP2LostBeforeAnyAnswer: a connection that has brought no answer is as
// fresh for those that share it as for the first of them, and its end is no race
// with an idle limit.
func TestHTTP2LostBeforeAnyAnswer(t *testing.T) {
	hangUp := func(conn int) rawhttp2.Script {
		return rawhttp2.Script{Settings: []h2.Setting{rawhttp2.Limit(100)}, Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
			if conn > 0 || r.Path == "/4" {
				c.Close()
			}
		}}
	}
	overHTTP2(t, hangUp, func(t *testing.T, w *h2net) {
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				_, err := w.get(fmt.Sprint("/", i))
				if e, ok := errors.AsType[*Error](err); !ok || e.Reused || errors.Is(err, ErrServerClosedIdle) {
					t.Errorf("got %v", err)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		require.Equal(t, 1, w.Dials())
		require.Zero(t, w.tr.Stats().Retries)
	})
}

// oneAtATime is hanging with a limit of one.
func oneAtATime(conn int) rawhttp2.Script {
	s := hanging(conn)
	s.Settings = []h2.Setting{rawhttp2.Limit(1)}
	return s
}

// hang makes a request that hangs until stop is called, and waits until it is under
// way.
func (w *h2net) hang() (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := fetch(ctx, w.tr, http.MethodGet, w.url+"/head"); !errors.Is(err, context.Canceled) {
			w.t.Errorf("got %v", err)
		}
	})
	synctest.Wait()
	return func() {
		cancel()
		all.Wait()
	}
}

// TestHTTP2RoomForThoseWhoMeetALimitLate: what is idle makes room, too, for
// requests that no limit held back when they came.
func TestHTTP2RoomForThoseWhoMeetALimitLate(t *testing.T) {
	strict := WithHTTP2Config(http.HTTP2Config{StrictMaxConcurrentRequests: true})
	for _, tt := range []struct {
		name   string
		delay  time.Duration // of dials
		goAway bool          // once the first request has hung for a second
		opts   []Option
	}{
		{"they share a dial", time.Second, false, nil},
		{"GOAWAY, strict", 0, true, []Option{strict}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				s := oneAtATime(0)
				s.Head = func(c *rawhttp2.Conn, r *rawhttp2.Request) {
					if tt.goAway && r.Path == "/head" {
						time.AfterFunc(time.Second, func() { c.GoAway(r.ID, h2.ErrCodeNo) })
					}
				}
				for _, addr := range []string{"a:80", "b:80"} {
					n.Serve(t, addr, func(c *netfake.Conn) { _ = rawhttp2.New(c, 0, s).Serve() })
					n.SetDialDelay(addr, tt.delay)
				}
				mustGet(t, tr, "http://b/") // is idle
				w := &h2net{Net: n, t: t, tr: tr, url: "http://a"}
				stop := w.hang()
				start := time.Now()
				w.want("/")
				require.LessOrEqual(t, time.Since(start), 3*time.Second)
				require.Equal(t, uint64(1), tr.Stats().Closed[CloseEvicted])
				stop()
			}, append(tt.opts, onlyH2C(), WithMaxConns(2))...)
		})
	}
	t.Run("a fresh connection", func(t *testing.T) {
		script := func(conn int) rawhttp2.Script {
			s := oneAtATime(conn)
			s.Delay = time.Duration(conn) * 800 * time.Millisecond
			return s
		}
		overHTTP2(t, script, func(t *testing.T, w *h2net) {
			w.want("/")
			first := w.hang()
			second := w.hang() // on a connection that has said nothing yet
			first()
			start := time.Now()
			_, err := fetch(ContextWithOptions(t.Context(), FreshConn()), w.tr, http.MethodGet, w.url)
			require.NoError(t, err)
			require.LessOrEqual(t, time.Since(start), 3*time.Second)
			require.Equal(t, uint64(1), w.tr.Stats().Closed[CloseEvicted])
			second()
		}, WithMaxConnsPerHost(2))
	})
}

// TestPoolReusesAreUses: what was granted and not taken, or found dead, is no
// reuse, and the counter never falls.
func TestPoolReusesAreUses(t *testing.T) {
	b := newBench(t, WithMaxConnsPerHost(1))
	c := b.open("a", 1)[0]
	require.Zero(t, b.p.stats().Reuses)
	b.acquire("a", false)
	got, do, err := b.p.acquire(b.now, want{key: key("a"), ctx: context.Background(), first: true})
	require.NoError(t, err)
	b.take(do)
	b.release(c, keptVerdict) // goes to the waiter
	require.Equal(t, uint64(1), b.p.stats().Reuses)
	_, do = b.p.abandon(got.w, b.now)
	b.take(do)
	require.Equal(t, uint64(1), b.p.stats().Reuses)
	b.acquire("a", false)
	c.served-- // as exchange.stale does
	b.release(c, dropUnused(CloseStale))
	require.Equal(t, uint64(1), b.p.stats().Reuses)
	b.settle()
}

// TestPoolRefusedWaiterEvictsNothing: a request that may not wait needs no room.
func TestPoolRefusedWaiterEvictsNothing(t *testing.T) {
	b := newBench(t, WithMaxConns(3), WithMaxWaiters(1))
	b.open("b", 2)
	b.acquire("a", false)
	b.dialed(b.dials[0], nil)
	b.acquire("a", false)
	require.Len(t, b.closing, 1)
	_, w := b.acquire("a", false)
	require.Nil(t, w)
	require.Len(t, b.closing, 1)
	b.settle()
}
