package keepalive

import (
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestHTTP2WindowOfEndedBodies: what had come of a body that was ended before it
// was read gives its place in the connection's window back (RFC 9113 section
// 6.9), or the connection stands still after some of them.
func TestHTTP2WindowOfEndedBodies(t *testing.T) {
	const window = 64 << 10
	small := WithHTTP2Config(http.HTTP2Config{MaxReceiveBufferPerConnection: window, MaxReceiveBufferPerStream: window})
	for _, tt := range []struct {
		name string
		opts []Option
		end  func(cancel context.CancelFunc)
	}{
		{"cancel", nil, func(cancel context.CancelFunc) { cancel() }},
		{"request timeout", []Option{WithRequestTimeout(200 * time.Millisecond)}, func(context.CancelFunc) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onSockets(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/small" {
					_, _ = io.WriteString(w, "ok")
					return
				}
				_, _ = w.Write(make([]byte, window/2))
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}, func(t *testing.T, tr *Transport, url string) {
				for range 12 {
					ctx, cancel := context.WithCancel(t.Context())
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
					require.NoError(t, err)
					resp, err := tr.RoundTrip(req)
					require.NoError(t, err)
					_, err = io.ReadFull(resp.Body, make([]byte, 1000)) // the rest is on its way
					require.NoError(t, err)
					tt.end(cancel)
					requireSoon(t, func() bool { return tr.Stats().InUse == 0 }, "the body ends with its request")
					require.NoError(t, resp.Body.Close())
					cancel()
					body, err := fetch(t.Context(), tr, http.MethodGet, url+"/small")
					require.NoError(t, err)
					require.Equal(t, "ok", body)
				}
				require.Equal(t, uint64(1), tr.Stats().Opened)
			}, append(tt.opts, small)...)
		})
	}
}
