package keepalive_test

import (
	"net/http"
	"sync"
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
		for _, road := range s.Roads() {
			t.Run(s.Name+"/"+road.Name, func(t *testing.T) {
				t.Parallel()
				compare(t, s, road, migrated)
			})
		}
	}
}

// TestSideBySideDefaults runs the scenarios that need no settings on the
// defaults of New: only "Connection: keep-alive" is turned off.
func TestSideBySideDefaults(t *testing.T) {
	t.Parallel()
	for _, s := range difftest.All() {
		road := s.Roads()[0]
		if s.Setup != nil || !road.Plain() {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			compare(t, s, road, defaults)
		})
	}
}

func compare(t *testing.T, s difftest.Scenario, road difftest.Road, ours difftest.Maker) {
	t.Helper()
	var a, b *difftest.Seen
	var both sync.WaitGroup // much of a scenario is waiting
	both.Go(func() { a = difftest.Run(t, s, road, netHTTP) })
	both.Go(func() { b = difftest.Run(t, s, road, ours) })
	both.Wait()
	if a == nil || b == nil {
		return // one has said why
	}
	wrong := s.Compare(a, b)
	for range 2 {
		// On a loaded machine net/http loses races of its own, and a request body
		// whose goroutine starves costs ours a connection.
		if len(wrong) > 0 {
			a, b = difftest.Run(t, s, road, netHTTP), difftest.Run(t, s, road, ours)
			wrong = s.Compare(a, b)
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
