package keepalive_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

// TestRequestIsGarbage: neither a Transport nor an idle connection holds on to
// a request, its body or its response that are over.
func TestRequestIsGarbage(t *testing.T) {
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/large" {
			_, _ = w.Write(make([]byte, 1<<20))
		}
	}))
	ts.EnableHTTP2 = true
	ts.StartTLS()
	defer ts.Close()
	plain := httptest.NewServer(ts.Config.Handler)
	defer plain.Close()
	tr := open(t, keepalive.WithTLSConfig(insecure()))
	type held [1 << 10]byte
	// ask returns pointers to what must not be kept.
	ask := func(method, url string, body io.Reader, read bool) (weak.Pointer[http.Request], weak.Pointer[http.Response], weak.Pointer[held]) {
		h := new(held)
		req, err := http.NewRequestWithContext(t.Context(), method, url, struct {
			io.Reader
			*held
		}{body, h})
		require.NoError(t, err)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		if read {
			_, err = io.Copy(io.Discard, resp.Body)
			require.NoError(t, err)
		}
		require.NoError(t, resp.Body.Close())
		return weak.Make(req), weak.Make(resp), weak.Make(h)
	}
	for name, origin := range map[string]string{"HTTP/1.1": plain.URL, "HTTP/2": ts.URL} {
		for _, path := range []string{"/", "/large"} {
			for _, size := range []int{0, 100000} {
				t.Run(fmt.Sprint(name, path, " ", size), func(t *testing.T) {
					method := http.MethodGet
					if size > 0 {
						method = http.MethodPut
					}
					req, resp, body := ask(method, origin+path, bytes.NewReader(make([]byte, size)), size > 0)
					require.Eventually(t, func() bool {
						runtime.GC()
						return req.Value() == nil && resp.Value() == nil && body.Value() == nil
					}, 10*time.Second, time.Millisecond)
				})
			}
		}
	}
	runtime.KeepAlive(tr)
}
