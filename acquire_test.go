package keepalive

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// slowByte is a body whose first byte takes its time.
type slowByte struct{ d time.Duration }

func (b *slowByte) Read(p []byte) (int, error) {
	if b.d == 0 {
		return 0, io.EOF
	}
	time.Sleep(b.d)
	b.d = 0
	return copy(p, "x"), nil
}

// TestAcquireLooksAtTheClock: what a request does before it asks for a
// connection counts, or one that has expired since would be used.
func TestAcquireLooksAtTheClock(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		mustGet(t, tr, "http://a/")
		time.Sleep(50*time.Second - 100*time.Millisecond)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", io.NopCloser(&slowByte{101 * time.Millisecond}))
		require.NoError(t, err)
		got, err := roundTrip(tr, req)
		require.NoError(t, err)
		require.Equal(t, "1", got)
		require.Zero(t, tr.Stats().WaitTime)
	})
}
