package keepalive

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestIdempotent(t *testing.T) {
	for method, want := range map[string]bool{
		"": true, "GET": true, "HEAD": true, "OPTIONS": true, "TRACE": true, "PUT": true, "DELETE": true, "QUERY": true,
		"POST": false, "PATCH": false, "CONNECT": false, "get": false, "LOCK": false,
	} {
		req := &http.Request{Method: method, Header: http.Header{}}
		require.Equal(t, want, isIdempotent(req), method)
		for _, key := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
			req.Header = http.Header{key: nil}
			require.True(t, isIdempotent(req), "%s with %s", method, key)
		}
	}
}

// TestDecideRetry checks every combination of facts against the table at
// RetryPolicy, written down a second time as a plain rule.
func TestDecideRetry(t *testing.T) {
	bools := []bool{false, true}
	n := 0
	for _, idempotent := range bools {
		for _, reused := range bools {
			for _, wrote := range bools {
				for _, timeout := range bools {
					for bits := range 64 {
						bit := func(i int) bool { return bits>>i&1 == 1 }
						f := failure{
							RetryInfo: RetryInfo{Request: &http.Request{Method: http.MethodPost}, Reused: reused, Timeout: timeout},
							stale:     bit(0), gotByte: bit(1), final: bit(2), canceled: bit(3), rewindable: bit(4), noRetry: bit(5),
						}
						if idempotent {
							f.Request.Method = "PUT"
						}
						if wrote {
							f.BytesWritten = 100
						}
						var want bool
						switch {
						case f.canceled:
						case f.stale:
							want = f.rewindable
						case f.gotByte, f.final, timeout, !f.rewindable, f.noRetry:
						case !wrote:
							want = true
						default:
							want = reused && idempotent
						}
						got := decideRetry(f, DefaultRetryPolicy(), 0)
						require.Equal(t, want, got.again, fmt.Sprintf("%+v", f))
						require.Equal(t, want && !f.stale, got.counted, fmt.Sprintf("%+v", f))
						n++
					}
				}
			}
		}
	}
	require.Equal(t, 1024, n)
}

func stale() failure {
	return failure{
		RetryInfo:  RetryInfo{Request: &http.Request{Method: http.MethodGet}, Reused: true, BytesWritten: 1, IdleTime: time.Second},
		rewindable: true,
	}
}

func TestDecideRetryIsBounded(t *testing.T) {
	p := DefaultRetryPolicy()
	require.Equal(t, decision{again: true, counted: true, race: true}, decideRetry(stale(), p, 0))
	require.Equal(t, decision{again: true, counted: true, race: true, fresh: true}, decideRetry(stale(), p, 1), "the last one dials")
	require.Equal(t, decision{}, decideRetry(stale(), p, 2))
	require.Equal(t, decision{}, decideRetry(stale(), RetryPolicy{}, 0), "zero means none")
	require.True(t, decideRetry(stale(), RetryPolicy{MaxRetries: 1}, 0).fresh)
	refused := stale()
	refused.Refused = true
	require.True(t, decideRetry(refused, p, 1).fresh, "the connection ends")
	refused.declined = true
	require.Equal(t, decision{again: true, counted: true, race: true}, decideRetry(refused, p, 1), "nothing is wrong with the connection")
}

func TestDecideRetryAsksThePolicy(t *testing.T) {
	p := DefaultRetryPolicy()
	p.Retry = func(RetryInfo) bool { return false }
	require.False(t, decideRetry(stale(), p, 0).again)
	p.Retry = func(RetryInfo) bool { return true }
	post := stale()
	post.Request = &http.Request{Method: http.MethodPost}
	require.True(t, decideRetry(post, p, 0).again)
	post.gotByte = true
	require.False(t, decideRetry(post, p, 0).again, "never after a byte of the answer")
	post.gotByte, post.rewindable = false, false
	require.False(t, decideRetry(post, p, 0).again, "never without its body")
}

func TestDecideRetryBudget(t *testing.T) {
	f := stale()
	require.False(t, decideRetry(f, DefaultRetryPolicy(), 0).budgeted, "the idle race is free")
	f.IdleTime = 0
	require.True(t, decideRetry(f, DefaultRetryPolicy(), 0).budgeted)
	f.BytesWritten = 0
	require.False(t, decideRetry(f, DefaultRetryPolicy(), 0).budgeted, "nothing was sent")
	require.False(t, decideRetry(f, RetryPolicy{MaxRetries: 1}, 0).budgeted, "no budget")
}

func TestRetryBudget(t *testing.T) {
	now := time.Unix(1000, 0)
	b := retryBudget{share: 0.2}
	taken := 0
	for b.take(now) {
		taken++
	}
	require.Equal(t, budgetBurst, taken)
	for range 100 + 3 { // three more, for what fractions lose
		b.request()
	}
	for range 20 {
		require.True(t, b.take(now))
	}
	require.False(t, b.take(now), "one in five")
	now = now.Add(time.Second + time.Millisecond)
	for range budgetFloor {
		require.True(t, b.take(now))
	}
	now = now.Add(time.Hour)
	for range budgetBurst {
		require.True(t, b.take(now))
	}
	require.False(t, b.take(now), "a pause saves up no more than a burst")
}
