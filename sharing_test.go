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
