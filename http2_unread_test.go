package keepalive

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestHTTP2BodyThatIsForgotten: the end of a request's context ends its body,
// whether it is read or not, as over HTTP/1.
func TestHTTP2BodyThatIsForgotten(t *testing.T) {
	for name, tt := range map[string]struct {
		opt  RequestOption
		want error
	}{
		"cancel":          {NoRetry(), context.Canceled},
		"request timeout": {RequestTimeout(time.Second), ErrRequestTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			overHTTP2(t, hanging, func(t *testing.T, w *h2net) {
				ctx, cancel := context.WithCancel(ContextWithOptions(t.Context(), tt.opt))
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+"/body", nil)
				require.NoError(t, err)
				resp, err := w.tr.RoundTrip(req)
				require.NoError(t, err)
				defer resp.Body.Close()
				synctest.Wait()
				require.Equal(t, 1, w.tr.Stats().InUse)
				if errors.Is(tt.want, context.Canceled) {
					cancel()
				}
				time.Sleep(time.Second + sentGrace)
				synctest.Wait()
				require.Zero(t, w.tr.Stats().InUse)
				require.Equal(t, 1, w.tr.Stats().Idle)
				_, err = io.ReadAll(resp.Body)
				require.ErrorIs(t, err, tt.want)
				w.want("/")
			})
		})
	}
}
