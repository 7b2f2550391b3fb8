package clients_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-resty/resty/v2"
	"github.com/stretchr/testify/require"
)

type person struct{ Name string }

// restyServer knows one person, takes a file, has one, fails twice, and hangs.
func restyServer(file []byte) http.Handler {
	var flaky atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /person", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(person{"Ada"})
	})
	mux.HandleFunc("POST /person", func(w http.ResponseWriter, r *http.Request) {
		var p person
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(person{p.Name + " again"})
	})
	mux.HandleFunc("POST /file", func(w http.ResponseWriter, r *http.Request) {
		f, head, err := r.FormFile("file")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		defer f.Close()
		got, _ := io.ReadAll(f)
		if !bytes.Equal(got, file) {
			http.Error(w, "not the file", http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, head.Filename+" "+r.FormValue("note"))
	})
	mux.HandleFunc("GET /file", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(file) })
	mux.HandleFunc("GET /flaky", func(w http.ResponseWriter, _ *http.Request) {
		if flaky.Add(1) < 3 {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "now")
	})
	mux.HandleFunc("GET /hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	return mux
}

func TestResty(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			both(t, 1, func(t *testing.T, s *subject) {
				file := noise(1 << 20)
				c := resty.NewWithClient(s.client).SetBaseURL(s.serve(t, scheme, restyServer(file)).URL)
				ok := func(resp *resty.Response, err error) *resty.Response {
					t.Helper()
					require.NoError(t, err)
					require.Equal(t, http.StatusOK, resp.StatusCode(), resp.String())
					return resp
				}

				var p person
				ok(c.R().SetResult(&p).Get("/person"))
				require.Equal(t, "Ada", p.Name)
				info := ok(c.R().EnableTrace().SetBody(p).SetResult(&p).Post("/person")).Request.TraceInfo()
				require.Equal(t, "Ada again", p.Name)
				require.True(t, info.IsConnReused)
				require.NotNil(t, info.RemoteAddr)

				sent := ok(c.R().SetFileReader("file", "up.bin", bytes.NewReader(file)).
					SetFormData(map[string]string{"note": "attached"}).Post("/file"))
				require.Equal(t, "up.bin attached", sent.String())

				down := filepath.Join(t.TempDir(), "down.bin")
				ok(c.R().SetOutput(down).Get("/file"))
				got, err := os.ReadFile(down)
				require.NoError(t, err)
				require.True(t, bytes.Equal(file, got))

				c.SetRetryCount(3).SetRetryWaitTime(time.Millisecond).SetRetryMaxWaitTime(time.Millisecond).
					AddRetryCondition(func(r *resty.Response, _ error) bool {
						return r.StatusCode() == http.StatusServiceUnavailable
					})
				flaky := ok(c.R().Get("/flaky"))
				require.Equal(t, "now", flaky.String())
				require.Equal(t, 3, flaky.Request.Attempt)
			})
		})
	}
}

// TestRestyTimeout: how far a request comes before its timeout is not known,
// so connections are not counted.
func TestRestyTimeout(t *testing.T) {
	t.Parallel()
	both(t, -1, func(t *testing.T, s *subject) {
		url := s.serve(t, "http", restyServer(nil)).URL
		_, err := resty.NewWithClient(&http.Client{Transport: s}).SetTimeout(50 * time.Millisecond).R().Get(url + "/hang")
		var timeout interface{ Timeout() bool }
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout(), "%v", err)
		resp, err := resty.NewWithClient(s.client).R().Get(url + "/person")
		require.NoError(t, err)
		require.JSONEq(t, `{"Name":"Ada"}`, resp.String())
	})
}
