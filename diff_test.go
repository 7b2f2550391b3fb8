package keepalive_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/difftest"
)

// TestSideBySide runs every scenario on net/http and on ours. What may differ
// is listed with the scenarios, each with its reason.
func TestSideBySide(t *testing.T) {
	for _, s := range difftest.All() {
		for _, scheme := range s.Schemes() {
			t.Run(s.Name+"/"+scheme, func(t *testing.T) {
				t.Parallel()
				theirs := difftest.Run(t, s, scheme, netHTTP)
				ours := difftest.Run(t, s, scheme, ours)
				for _, wrong := range s.Compare(theirs, ours) {
					t.Error(wrong)
				}
			})
		}
	}
}

func netHTTP(_ testing.TB, tr *http.Transport) (rt http.RoundTripper, end func()) {
	return tr, tr.CloseIdleConnections
}

// ours takes over the settings of tr: then "Connection: keep-alive" is not
// sent, and the bytes of a request are those of net/http.
func ours(t testing.TB, tr *http.Transport) (rt http.RoundTripper, end func()) {
	t.Helper()
	k, err := keepalive.New(keepalive.FromTransport(tr))
	require.NoError(t, err)
	return k, func() { require.NoError(t, k.Close()) }
}
