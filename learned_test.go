package keepalive

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// hangsUp serves each connection and ends it when it has been idle for as long
// as idle says for that connection. It announces nothing.
func hangsUp(t *testing.T, n *netfake.Net, addr string, idle func(conn int) time.Duration) {
	t.Helper()
	n.Serve(t, addr, func(c *netfake.Conn) {
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(c, ok("x"))
			_ = c.SetReadDeadline(time.Now().Add(idle(c.Index())))
		}
	})
}

// pause makes a request and lets the connection be idle for d.
func pause(t *testing.T, tr *Transport, d time.Duration) {
	t.Helper()
	_, err := fetch(context.Background(), tr, http.MethodPost, "http://a.example/")
	require.NoError(t, err)
	time.Sleep(d)
}

func TestIdleLimitIsLearned(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		hangsUp(t, n, "a.example:80", func(int) time.Duration { return 5 * time.Second })
		for range learnFrom {
			pause(t, tr, 6*time.Second)
		}
		require.Equal(t, uint64(learnFrom), tr.Stats().Closed[ClosePeerClosed])
		for range 5 {
			pause(t, tr, 4500*time.Millisecond) // a second before the limit, and half of it later
		}
		s := tr.Stats()
		require.Equal(t, uint64(learnFrom), s.Closed[ClosePeerClosed])
		require.Equal(t, uint64(5), s.Closed[CloseIdleTimeout])
		// It is forgotten after a time, for it may have changed.
		time.Sleep(learnFor)
		pause(t, tr, 4900*time.Millisecond)
		require.Equal(t, 1, tr.Stats().Idle)
	})
}

// A server that is restarted, or ends connections for other reasons, has no
// limit to learn.
func TestIdleLimitIsNotGuessed(t *testing.T) {
	for name, idle := range map[string]func(conn int) time.Duration{
		"at any time": func(conn int) time.Duration {
			return time.Duration([]int{1700, 3000, 2300, 900, 4000, 1500}[conn%6]) * time.Millisecond
		},
		"at once": func(int) time.Duration { return learnLeast / 2 },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				hangsUp(t, n, "a.example:80", idle)
				for range 12 {
					pause(t, tr, 5*time.Second)
				}
				require.Equal(t, uint64(12), tr.Stats().Closed[ClosePeerClosed])
			})
		})
	}
}

// Connections that end together are one event.
func TestIdleLimitOfARestart(t *testing.T) {
	var l idleEnds
	now := time.Now()
	for range 10 {
		l.note(10*time.Second, now)
	}
	require.Zero(t, l.idleTimeout(now, 0))
	for range 2 {
		now = now.Add(time.Minute)
		l.note(10*time.Second, now)
	}
	require.Equal(t, 9*time.Second, l.idleTimeout(now, 0))
	require.Equal(t, 8*time.Second, l.idleTimeout(now, time.Second))
	require.Zero(t, (*idleEnds)(nil).idleTimeout(now, 0))
}
