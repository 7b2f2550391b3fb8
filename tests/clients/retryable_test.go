package clients_test

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/stretchr/testify/require"
)

func retryable(s *subject) *retryablehttp.Client {
	c := retryablehttp.NewClient()
	c.HTTPClient, c.Logger = s.client, nil
	c.RetryMax, c.RetryWaitMin, c.RetryWaitMax = 2, time.Millisecond, time.Millisecond
	return c
}

// TestRetryableStatus: 500, then 200, with the whole body each time.
func TestRetryableStatus(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"small body": 100, "large body": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			both(t, 1, func(t *testing.T, s *subject) {
				var requests atomic.Int64
				srv := s.serve(t, "http", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					n, _ := io.Copy(io.Discard, r.Body)
					switch {
					case n != int64(size):
						w.WriteHeader(http.StatusBadRequest)
					case requests.Add(1)%2 == 1:
						w.WriteHeader(http.StatusInternalServerError)
					default:
						_, _ = io.WriteString(w, "taken")
					}
				}))
				c := retryable(s)
				for _, body := range []any{noise(size), strings.NewReader(strings.Repeat("x", size))} {
					resp, err := c.Post(srv.URL, "text/plain", body)
					require.Equal(t, "taken", text(t, resp, err))
				}
				require.EqualValues(t, 4, requests.Load())
			})
		})
	}
}

// TestRetryableCutOff: the server ends the connection without an answer, which
// for a POST on a connection of ours is an error, and the library's to retry.
func TestRetryableCutOff(t *testing.T) {
	t.Parallel()
	both(t, 2, func(t *testing.T, s *subject) {
		var requests atomic.Int64
		srv := s.serve(t, "http", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if requests.Add(1) == 2 {
				panic(http.ErrAbortHandler)
			}
			_, _ = io.WriteString(w, "taken")
		}))
		c := retryable(s)
		for range 2 {
			resp, err := c.Post(srv.URL, "text/plain", []byte("body"))
			require.Equal(t, "taken", text(t, resp, err))
		}
		require.EqualValues(t, 3, requests.Load())
	})
}

func TestRetryableRefused(t *testing.T) {
	t.Parallel()
	both(t, 0, func(t *testing.T, s *subject) {
		_, err := retryable(s).Get("http://" + refusing(t))
		require.ErrorContains(t, err, "giving up after 3 attempt(s)")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		if s.ours != nil {
			require.EqualValues(t, 3, s.ours.Stats().DialErrors)
		}
	})
}
