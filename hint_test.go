package keepalive

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// A server that tells its limit when it is asked to keep alive, as Apache and
// Tomcat do, tells it once: we ask with the first request.
func TestHintThatIsGivenOnce(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a.example:80", func(_, _ int, r *http.Request) string {
			if r.Header.Get("Connection") == "keep-alive" {
				return ok("x", "Keep-Alive: timeout=10")
			}
			return ok("x")
		})
		for range 3 {
			pause(t, tr, time.Second)
		}
		require.Equal(t, 1, tr.Stats().Idle)
		time.Sleep(9 * time.Second) // a second before the limit
		require.Equal(t, uint64(1), tr.Stats().Closed[CloseIdleTimeout])
	})
}
