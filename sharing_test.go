package keepalive

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
		b.take(b.p.settled(c))
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
