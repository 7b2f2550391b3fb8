package clients_test

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/keepalive-http/keepalive"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for an event that must come.
const patience = 30 * time.Second

// subject is a transport under test, with the servers it talks to.
type subject struct {
	http.RoundTripper
	client *http.Client
	ours   *keepalive.Transport // nil: it is *http.Transport
	// accepted counts the connections that the servers have seen.
	accepted atomic.Int64
}

// both runs f over our transport and over *http.Transport with the same
// settings. Ours must open exactly conns connections (-1: f looks at that
// itself) and have none in use at the end.
func both(t *testing.T, conns int, f func(t *testing.T, s *subject)) {
	t.Helper()
	t.Run("keepalive", func(t *testing.T) {
		t.Parallel()
		// A loaded machine may need longer for the rest of a body than the
		// default allows.
		tr, err := keepalive.New(keepalive.WithTLSConfig(tlsConfig()), keepalive.WithDrainLimit(64<<10, 2*time.Second))
		require.NoError(t, err)
		run(t, conns, &subject{RoundTripper: tr, ours: tr}, f)
	})
	t.Run("net/http", func(t *testing.T) {
		t.Parallel()
		run(t, conns, &subject{RoundTripper: netHTTP(http.Protocols{})}, f)
	})
}

// bothHTTP2 is both for HTTP/2: as ALPN picks it with TLS, or without TLS from
// the first byte on.
func bothHTTP2(t *testing.T, plain bool, conns int, f func(t *testing.T, s *subject)) {
	t.Helper()
	var only http.Protocols
	only.SetHTTP2(!plain)
	only.SetUnencryptedHTTP2(plain)
	t.Run("keepalive", func(t *testing.T) {
		t.Parallel()
		tr, err := keepalive.New(keepalive.FromTransport(netHTTP(only)))
		require.NoError(t, err)
		run(t, conns, &subject{RoundTripper: tr, ours: tr}, f)
	})
	t.Run("net/http", func(t *testing.T) {
		t.Parallel()
		run(t, conns, &subject{RoundTripper: netHTTP(only)}, f)
	})
}

// netHTTP is tuned as ours is by default. No protocols means HTTP/1 alone.
func netHTTP(p http.Protocols) *http.Transport {
	if p == (http.Protocols{}) {
		p.SetHTTP1(true)
	}
	return &http.Transport{
		MaxIdleConns:          512,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       50 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		TLSClientConfig:       tlsConfig(),
		Protocols:             &p,
	}
}

func run(t *testing.T, conns int, s *subject, f func(t *testing.T, s *subject)) {
	t.Helper()
	s.client = &http.Client{Transport: s}
	defer s.end(t, conns)
	f(t, s)
}

// end closes the transport and balances its books.
func (s *subject) end(t *testing.T, conns int) {
	t.Helper()
	if s.ours == nil {
		s.CloseIdleConnections()
		return
	}
	s.quiet(t)
	require.NoError(t, s.ours.Close())
	stats := s.ours.Stats()
	require.Zero(t, stats.Gauges, "after Close")
	require.Equal(t, stats.Opened, stats.TotalClosed(), "%v", stats.Closed)
	if conns >= 0 && !t.Failed() {
		require.EqualValues(t, conns, stats.Opened, "connections opened: %+v %v", stats.Counters, stats.Closed)
		require.EqualValues(t, conns, s.accepted.Load(), "connections that the servers saw")
	}
}

// quiet waits until no connection is in use.
func (s *subject) quiet(t *testing.T) {
	t.Helper()
	if s.ours == nil {
		return
	}
	eventually(t, func() bool {
		g := s.ours.Stats().Gauges
		return g.InUse == 0 && g.Detached == 0 && g.Dialing == 0 && g.Waiting == 0
	}, "in use at the end")
}

// CloseIdleConnections is what http.Client looks for.
func (s *subject) CloseIdleConnections() {
	if c, ok := s.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// serve runs an HTTP/1.1 server whose connections count for s.
func (s *subject) serve(t *testing.T, scheme string, h http.Handler) *httptest.Server {
	t.Helper()
	return s.start(t, scheme, httptest.NewUnstartedServer(h))
}

// serveHTTP2 runs a server that speaks HTTP/2 as bothHTTP2 wants it.
func (s *subject) serveHTTP2(t *testing.T, plain bool, h http.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	if plain {
		srv.Config.Protocols = new(http.Protocols)
		srv.Config.Protocols.SetUnencryptedHTTP2(true)
		return s.start(t, "http", srv)
	}
	srv.EnableHTTP2 = true
	return s.start(t, "https", srv)
}

func (s *subject) start(t *testing.T, scheme string, srv *httptest.Server) *httptest.Server {
	t.Helper()
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.accepted.Add(1)
		}
	}
	srv.Config.ErrorLog = quietLog
	if scheme == "https" {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return srv
}

// elsewhere runs a server that s does not talk to itself.
func elsewhere(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	return new(subject).serve(t, "http", h)
}

var quietLog = log.New(io.Discard, "", 0)

// tlsConfig trusts the certificate that all httptest servers have.
func tlsConfig() *tls.Config { return &tls.Config{RootCAs: roots()} }

var roots = sync.OnceValue(func() *x509.CertPool {
	srv := httptest.NewUnstartedServer(nil)
	srv.StartTLS()
	defer srv.Close()
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	return pool
})

// eventually waits for something that gives no sign when it becomes true.
func eventually(t *testing.T, ok func() bool, what string) {
	t.Helper()
	require.Eventually(t, ok, patience, time.Millisecond, what)
}

// receive returns what comes from c.
func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-c:
		return v
	case <-timer.C:
		require.FailNow(t, "nothing came", what)
		panic("not reached")
	}
}

// watch hears of what hangs: that it has begun, and that it has ended.
type watch struct{ begun, ended chan error }

func newWatch() watch { return watch{make(chan error, 10), make(chan error, 10)} }

// noise returns n bytes that do not compress.
func noise(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(p)
	return p
}

// text reads a response to its end.
func text(t *testing.T, resp *http.Response, err error) string {
	t.Helper()
	require.NoError(t, err)
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(p)
}

// refusing returns an address that refuses connections.
func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}
