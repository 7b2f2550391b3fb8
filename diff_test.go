package keepalive_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/difftest"
)

// TestSideBySide runs every scenario on net/http and on ours with the same
// settings. What may differ is listed with the scenarios, each with its reason.
func TestSideBySide(t *testing.T) {
	t.Parallel()
	for _, s := range difftest.All() {
		for _, scheme := range s.Schemes() {
			t.Run(s.Name+"/"+scheme, func(t *testing.T) {
				t.Parallel()
				compare(t, s, scheme, migrated)
			})
		}
	}
}

// TestSideBySideDefaults runs the scenarios that need no settings on the
// defaults of New: only "Connection: keep-alive" is turned off.
func TestSideBySideDefaults(t *testing.T) {
	t.Parallel()
	for _, s := range difftest.All() {
		if s.Setup != nil {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			compare(t, s, s.Schemes()[0], defaults)
		})
	}
}

func compare(t *testing.T, s difftest.Scenario, scheme string, ours difftest.Maker) {
	t.Helper()
	b := difftest.Run(t, s, scheme, ours)
	wrong := s.Compare(difftest.Run(t, s, scheme, netHTTP), b)
	for range 2 {
		if len(wrong) > 0 { // net/http loses races of its own on a loaded machine
			wrong = s.Compare(difftest.Run(t, s, scheme, netHTTP), b)
		}
	}
	for _, w := range wrong {
		t.Error(w)
	}
}

func netHTTP(_ testing.TB, tr *http.Transport) (rt http.RoundTripper, end func()) {
	return tr, tr.CloseIdleConnections
}

// migrated takes over the settings of tr: then "Connection: keep-alive" is not
// sent, and the bytes of a request are those of net/http.
func migrated(t testing.TB, tr *http.Transport) (rt http.RoundTripper, end func()) {
	t.Helper()
	return ours(t, keepalive.FromTransport(tr))
}

func defaults(t testing.TB, tr *http.Transport) (rt http.RoundTripper, end func()) {
	t.Helper()
	return ours(t, keepalive.WithTLSConfig(tr.TLSClientConfig), keepalive.WithKeepAliveHeader(false))
}

func ours(t testing.TB, opts ...keepalive.Option) (rt http.RoundTripper, end func()) {
	t.Helper()
	k, err := keepalive.New(opts...)
	require.NoError(t, err)
	return k, func() { require.NoError(t, k.Close()) }
}
