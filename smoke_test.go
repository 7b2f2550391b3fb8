package keepalive

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSmoke(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
		io.WriteString(w, "hello")
	}))
	defer srv.Close()
	tr, err := New()
	require.NoError(t, err)
	c := tr.Client()
	for i := range 10 {
		var body io.Reader
		if i%2 == 1 {
			body = strings.NewReader(strings.Repeat("x", i*10000))
		}
		resp, err := c.Post(srv.URL, "text/plain", body)
		require.NoError(t, err)
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Contains(t, string(b), "hello")
		resp.Body.Close()
	}
	t.Logf("%+v", tr.Stats())
	require.NoError(t, tr.Close())
	t.Logf("%+v", tr.Stats())
}
