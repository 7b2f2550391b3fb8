package keepalive

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
)

var errOfSource = errors.New("a function of the source was called")

// takenOver is a field of http.Transport, with a value that New does not have.
type takenOver struct {
	field string
	set   func(*http.Transport)
	// change changes what set has set, where it stands.
	change func(*http.Transport)
	// has reports whether c has the value.
	has func(c *config) bool
	// nowhere: ours has nothing that the field could change.
	nowhere bool
}

func dialNothing(context.Context, string, string) (net.Conn, error) { return nil, errOfSource }

func isDialNothing(dial dialFunc) bool {
	if dial == nil {
		return false
	}
	_, err := dial(context.Background(), "tcp", "host:80")
	return errors.Is(err, errOfSource)
}

// connectHeader returns what c sends to proxies.
func connectHeader(c *config) http.Header {
	if c.proxyConnectHeader == nil {
		return nil
	}
	h, _ := c.proxyConnectHeader(context.Background(), &url.URL{Scheme: "http", Host: "proxy"}, "host:443")
	return h
}

//nolint:staticcheck // SA1019: deprecated fields too
func everyField() []takenOver {
	return []takenOver{
		{
			field:  "Proxy",
			set:    func(tr *http.Transport) { tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "proxy.example"}) },
			change: func(tr *http.Transport) { tr.Proxy = nil },
			has: func(c *config) bool {
				u, err := c.proxyFor(httptest.NewRequest(http.MethodGet, "http://host/", nil))
				return err == nil && u != nil && u.Host == "proxy.example"
			},
		},
		{
			field: "OnProxyConnectResponse",
			set: func(tr *http.Transport) {
				tr.OnProxyConnectResponse = func(context.Context, *url.URL, *http.Request, *http.Response) error { return errOfSource }
			},
			change: func(tr *http.Transport) { tr.OnProxyConnectResponse = nil },
			has: func(c *config) bool {
				f := c.onProxyConnectResponse
				return f != nil && errors.Is(f(context.Background(), nil, nil, nil), errOfSource)
			},
		},
		{
			field:  "DialContext",
			set:    func(tr *http.Transport) { tr.DialContext = dialNothing },
			change: func(tr *http.Transport) { tr.DialContext = nil },
			has:    func(c *config) bool { return isDialNothing(c.dialContext) },
		},
		{
			field: "Dial",
			set: func(tr *http.Transport) {
				tr.Dial = func(string, string) (net.Conn, error) { return nil, errOfSource }
			},
			change: func(tr *http.Transport) { tr.Dial = nil },
			has:    func(c *config) bool { return isDialNothing(c.dialContext) },
		},
		{
			field:  "DialTLSContext",
			set:    func(tr *http.Transport) { tr.DialTLSContext = dialNothing },
			change: func(tr *http.Transport) { tr.DialTLSContext = nil },
			has:    func(c *config) bool { return isDialNothing(c.dialTLSContext) },
		},
		{
			field: "DialTLS",
			set: func(tr *http.Transport) {
				tr.DialTLS = func(string, string) (net.Conn, error) { return nil, errOfSource }
			},
			change: func(tr *http.Transport) { tr.DialTLS = nil },
			has:    func(c *config) bool { return isDialNothing(c.dialTLSContext) },
		},
		{
			field:  "TLSClientConfig",
			set:    func(tr *http.Transport) { tr.TLSClientConfig = &tls.Config{ServerName: "name.example"} },
			change: func(tr *http.Transport) { tr.TLSClientConfig.ServerName = "other.example" },
			has:    func(c *config) bool { return c.tlsConfig != nil && c.tlsConfig.ServerName == "name.example" },
		},
		{
			field:  "TLSHandshakeTimeout",
			set:    func(tr *http.Transport) { tr.TLSHandshakeTimeout = 3 * time.Second },
			change: func(tr *http.Transport) { tr.TLSHandshakeTimeout = time.Hour },
			has:    func(c *config) bool { return c.tlsTimeout == 3*time.Second },
		},
		{
			field:  "DisableKeepAlives",
			set:    func(tr *http.Transport) { tr.DisableKeepAlives = true },
			change: func(tr *http.Transport) { tr.DisableKeepAlives = false },
			has:    func(c *config) bool { return c.disableKeepAlives },
		},
		{
			field:  "DisableCompression",
			set:    func(tr *http.Transport) { tr.DisableCompression = true },
			change: func(tr *http.Transport) { tr.DisableCompression = false },
			has:    func(c *config) bool { return c.disableCompression },
		},
		{
			field:  "MaxIdleConns",
			set:    func(tr *http.Transport) { tr.MaxIdleConns = 7 },
			change: func(tr *http.Transport) { tr.MaxIdleConns = 1 },
			has:    func(c *config) bool { return c.maxIdle == 7 },
		},
		{
			field:  "MaxIdleConnsPerHost",
			set:    func(tr *http.Transport) { tr.MaxIdleConnsPerHost = 5 },
			change: func(tr *http.Transport) { tr.MaxIdleConnsPerHost = 1 },
			has:    func(c *config) bool { return c.maxIdlePerHost == 5 && !c.keepNoneIdle },
		},
		{
			field:  "MaxConnsPerHost",
			set:    func(tr *http.Transport) { tr.MaxConnsPerHost = 6 },
			change: func(tr *http.Transport) { tr.MaxConnsPerHost = 1 },
			has:    func(c *config) bool { return c.maxConnsPerHost == 6 },
		},
		{
			field:  "IdleConnTimeout",
			set:    func(tr *http.Transport) { tr.IdleConnTimeout = 4 * time.Second },
			change: func(tr *http.Transport) { tr.IdleConnTimeout = time.Hour },
			has:    func(c *config) bool { return c.idleTimeout == 4*time.Second },
		},
		{
			field:  "ResponseHeaderTimeout",
			set:    func(tr *http.Transport) { tr.ResponseHeaderTimeout = 5 * time.Second },
			change: func(tr *http.Transport) { tr.ResponseHeaderTimeout = time.Hour },
			has:    func(c *config) bool { return c.responseHeader == 5*time.Second },
		},
		{
			field:  "ExpectContinueTimeout",
			set:    func(tr *http.Transport) { tr.ExpectContinueTimeout = 6 * time.Second },
			change: func(tr *http.Transport) { tr.ExpectContinueTimeout = time.Hour },
			has:    func(c *config) bool { return c.expectContinue == 6*time.Second },
		},
		{
			field: "TLSNextProto",
			set: func(tr *http.Transport) {
				tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
			},
			change: func(tr *http.Transport) {
				tr.TLSNextProto[protoHTTP2] = func(string, *tls.Conn) http.RoundTripper { return nil }
			},
			has: func(c *config) bool { return !c.protocols.HTTP2() },
		},
		{
			field:  "ProxyConnectHeader",
			set:    func(tr *http.Transport) { tr.ProxyConnectHeader = http.Header{"X-A": {"1"}} },
			change: func(tr *http.Transport) { tr.ProxyConnectHeader["X-A"][0] = "2" },
			has:    func(c *config) bool { return connectHeader(c).Get("X-A") == "1" },
		},
		{
			field: "GetProxyConnectHeader",
			set: func(tr *http.Transport) {
				tr.ProxyConnectHeader = http.Header{"X-A": {"1"}} // ignored
				tr.GetProxyConnectHeader = func(context.Context, *url.URL, string) (http.Header, error) {
					return http.Header{"X-B": {"1"}}, nil
				}
			},
			change: func(tr *http.Transport) { tr.GetProxyConnectHeader = nil },
			has:    func(c *config) bool { return reflect.DeepEqual(connectHeader(c), http.Header{"X-B": {"1"}}) },
		},
		{
			field:  "MaxResponseHeaderBytes",
			set:    func(tr *http.Transport) { tr.MaxResponseHeaderBytes = 12345 },
			change: func(tr *http.Transport) { tr.MaxResponseHeaderBytes = 1 },
			has:    func(c *config) bool { return c.maxHeaderBytes == 12345 },
		},
		{field: "WriteBufferSize", nowhere: true, set: func(tr *http.Transport) { tr.WriteBufferSize = 1234 }},
		{field: "ReadBufferSize", nowhere: true, set: func(tr *http.Transport) { tr.ReadBufferSize = 1234 }},
		{
			field: "ForceAttemptHTTP2",
			set: func(tr *http.Transport) {
				tr.DialContext, tr.ForceAttemptHTTP2 = dialNothing, true
			},
			change: func(tr *http.Transport) { tr.ForceAttemptHTTP2 = false },
			has:    func(c *config) bool { return c.dialContext != nil && c.protocols.HTTP2() },
		},
		{
			field:  "HTTP2",
			set:    func(tr *http.Transport) { tr.HTTP2 = &http.HTTP2Config{MaxReadFrameSize: 1 << 15} },
			change: func(tr *http.Transport) { tr.HTTP2.MaxReadFrameSize = 1 << 16 },
			has:    func(c *config) bool { return c.http2 != nil && c.http2.MaxReadFrameSize == 1<<15 },
		},
		{
			field: "Protocols",
			set: func(tr *http.Transport) {
				tr.Protocols = new(http.Protocols)
				tr.Protocols.SetUnencryptedHTTP2(true)
			},
			change: func(tr *http.Transport) { tr.Protocols.SetHTTP1(true) },
			has:    func(c *config) bool { return c.plainHTTP2() },
		},
	}
}

// of returns the configuration that is made of src.
func of(t *testing.T, src *http.Transport) *config {
	t.Helper()
	c, err := newConfig([]Option{FromTransport(src)})
	require.NoError(t, err)
	return c
}

// TestFromTransportTakesEveryField fails, with its name, when http.Transport
// has a field that FromTransport does not know.
func TestFromTransportTakesEveryField(t *testing.T) {
	known := make(map[string]bool)
	for _, f := range everyField() {
		known[f.field] = true
		t.Run(f.field, func(t *testing.T) {
			src := new(http.Transport)
			without := of(t, src)
			f.set(src)
			require.False(t, reflect.ValueOf(src).Elem().FieldByName(f.field).IsZero(), "the row sets another field")
			c := of(t, src)
			if f.nowhere {
				require.Equal(t, picture(reflect.ValueOf(without)), picture(reflect.ValueOf(c)))
				return
			}
			require.False(t, f.has(without), "the row is true without the field")
			require.True(t, f.has(c), "the value has not arrived")
			f.change(src)
			require.True(t, f.has(c), "the source still matters")
		})
	}
	for f := range reflect.TypeFor[http.Transport]().Fields() {
		require.True(t, !f.IsExported() || known[f.Name], "FromTransport does not know http.Transport.%s", f.Name)
	}
}

// TestFromTransportReadsAsNetHTTP: what zero and negative values mean.
func TestFromTransportReadsAsNetHTTP(t *testing.T) {
	c := of(t, &http.Transport{
		TLSHandshakeTimeout: -1, MaxIdleConns: -1, MaxConnsPerHost: -1, IdleConnTimeout: -1, ResponseHeaderTimeout: -1,
		ExpectContinueTimeout: -1, MaxResponseHeaderBytes: -1, MaxIdleConnsPerHost: -1,
	})
	require.Zero(t, c.maxIdle+c.maxConnsPerHost)
	require.Zero(t, c.tlsTimeout+c.idleTimeout+c.responseHeader+c.expectContinue)
	require.True(t, c.keepNoneIdle)
	require.Equal(t, 10<<20, c.maxHeaderBytes)

	c = of(t, &http.Transport{})
	require.Equal(t, http.DefaultMaxIdleConnsPerHost, c.maxIdlePerHost)
	require.False(t, c.keepNoneIdle)
	require.Zero(t, c.maxIdle+c.maxConnsPerHost)
	require.Zero(t, c.tlsTimeout+c.idleTimeout+c.responseHeader+c.expectContinue)
	require.False(t, c.keepAliveHeader)
	require.Nil(t, c.proxy, "the environment must not count")

	both := &http.Transport{DialContext: dialNothing, DialTLSContext: dialNothing}
	never := func(string, string) (net.Conn, error) { return nil, nil }
	both.Dial, both.DialTLS = never, never //nolint:staticcheck // SA1019: they must not win
	c = of(t, both)
	require.True(t, isDialNothing(c.dialContext))
	require.True(t, isDialNothing(c.dialTLSContext))

	_, err := newConfig([]Option{FromTransport(nil)})
	require.Error(t, err)
}

// picture returns everything that v holds, functions by their address.
func picture(v reflect.Value) any {
	switch v.Kind() { //nolint:exhaustive // the rest is text
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return picture(v.Elem())
	case reflect.Struct:
		fields := make(map[string]any)
		for f, value := range v.Fields() {
			if f.Name != "given" {
				fields[f.Name] = picture(value)
			}
		}
		return fields
	case reflect.Slice:
		var list []any
		for i := range v.Len() {
			list = append(list, picture(v.Index(i)))
		}
		return list
	case reflect.Map:
		fields := make(map[string]any)
		for _, k := range v.MapKeys() {
			fields[k.String()] = picture(v.MapIndex(k))
		}
		return fields
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return v.Pointer()
	}
	return fmt.Sprint(v) // even of what is not exported
}

// exported is picture of the exported fields.
func exported(tr *http.Transport) map[string]any {
	fields := make(map[string]any)
	for f, value := range reflect.ValueOf(tr).Elem().Fields() {
		if f.IsExported() {
			fields[f.Name] = picture(value)
		}
	}
	return fields
}

// TestFromTransportLeavesTheSourceAlone: it is what it was, also after requests,
// and nobody holds on to it.
func TestFromTransportLeavesTheSourceAlone(t *testing.T) {
	ts := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer ts.Close()
	trusting, ok := ts.Client().Transport.(*http.Transport)
	require.True(t, ok)
	for _, http2 := range []bool{false, true} {
		src := &http.Transport{
			TLSClientConfig: trusting.TLSClientConfig.Clone(), ForceAttemptHTTP2: http2, IdleConnTimeout: time.Minute,
			ProxyConnectHeader: http.Header{"X-A": {"1"}}, HTTP2: &http.HTTP2Config{MaxReadFrameSize: 1 << 15},
		}
		src.Clone() // as the first use does, it sets src up
		before := exported(src)
		tr, err := New(FromTransport(src))
		require.NoError(t, err)
		require.Equal(t, before, exported(src), "after New")
		for range 2 {
			resp, err := tr.Client().Get(ts.URL)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
		}
		require.NoError(t, tr.Close())
		require.Equal(t, before, exported(src), "after requests")
		src.TLSClientConfig.ServerName, src.ProxyConnectHeader["X-A"][0] = "x", "2"
		require.NotEqual(t, before, exported(src), "the comparison sees nothing")

		kept := weak.Make(src)
		require.Eventually(t, func() bool {
			runtime.GC()
			return kept.Value() == nil
		}, 10*time.Second, time.Millisecond, "the source is kept")
		runtime.KeepAlive(tr)
	}
}

// TestFromTransportOffersTheSameProtocols: what a TLS server is offered, for
// transports that are new, used, cloned, and set in all the ways there are.
func TestFromTransportOffersTheSameProtocols(t *testing.T) {
	offers := make(chan []string, 1)
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	ts.EnableHTTP2 = true
	ts.Config.ErrorLog = log.New(io.Discard, "", 0)
	ts.TLS = &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		offers <- i.SupportedProtos
		return nil, nil
	}}
	ts.StartTLS()
	defer ts.Close()
	offered := func(rt http.RoundTripper) []string {
		req, err := http.NewRequest(http.MethodGet, ts.URL, nil)
		require.NoError(t, err)
		resp, err := rt.RoundTrip(req)
		if err == nil { // it need not trust the server
			_ = resp.Body.Close()
		}
		return <-offers
	}
	protocols := func(set ...func(*http.Protocols, bool)) *http.Transport {
		tr := &http.Transport{Protocols: new(http.Protocols)}
		for _, f := range set {
			f(tr.Protocols, true)
		}
		return tr
	}
	for name, mk := range map[string]func() *http.Transport{
		"zero":          func() *http.Transport { return &http.Transport{} },
		"clone of zero": func() *http.Transport { return (&http.Transport{}).Clone() },
		"default": func() *http.Transport {
			tr, _ := http.DefaultTransport.(*http.Transport)
			return tr.Clone()
		},
		"clone of a clone of the default": func() *http.Transport {
			tr, _ := http.DefaultTransport.(*http.Transport)
			return tr.Clone().Clone()
		},
		"used": func() *http.Transport {
			tr := &http.Transport{}
			_ = offered(tr)
			tr.CloseIdleConnections()
			return tr
		},
		"clone of used": func() *http.Transport {
			tr := &http.Transport{}
			_ = offered(tr)
			tr.CloseIdleConnections()
			return tr.Clone()
		},
		"TLS configuration":          func() *http.Transport { return &http.Transport{TLSClientConfig: &tls.Config{}} },
		"clone of TLS configuration": func() *http.Transport { return (&http.Transport{TLSClientConfig: &tls.Config{}}).Clone() },
		"forced": func() *http.Transport {
			return &http.Transport{TLSClientConfig: &tls.Config{}, ForceAttemptHTTP2: true}
		},
		"DialContext": func() *http.Transport {
			return &http.Transport{DialContext: new(net.Dialer).DialContext}
		},
		"TLSNextProto": func() *http.Transport {
			return &http.Transport{ForceAttemptHTTP2: true, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}
		},
		"no protocol": func() *http.Transport { return protocols() },
		"HTTP1":       func() *http.Transport { return protocols((*http.Protocols).SetHTTP1) },
		"HTTP2":       func() *http.Transport { return protocols((*http.Protocols).SetHTTP2) },
		"both":        func() *http.Transport { return protocols((*http.Protocols).SetHTTP1, (*http.Protocols).SetHTTP2) },
	} {
		t.Run(name, func(t *testing.T) {
			tr, err := New(FromTransport(mk()))
			require.NoError(t, err)
			defer func() { require.NoError(t, tr.Close()) }()
			std := mk()
			defer std.CloseIdleConnections()
			want := offered(std)
			switch name {
			case "clone of zero", "clone of used":
				// It takes the list along that the original made, but not that
				// it may speak HTTP/2: with a server that does, it fails.
				want = nil
			}
			if len(want) == 0 {
				want = []string{protoHTTP1} // ours says so
			}
			require.Equal(t, want, offered(tr))
		})
	}
}

// TestFromTransportKeepsTheLimitsOfTheSource: an option behind it that does not fit
// yields, as the guide to migration has it.
func TestFromTransportKeepsTheLimitsOfTheSource(t *testing.T) {
	src := &http.Transport{MaxConnsPerHost: 5, MaxIdleConns: 100}
	c, err := newConfig([]Option{FromTransport(src), WithMaxIdleConnsPerHost(64)})
	require.NoError(t, err)
	require.Equal(t, []int{5, 100, 5}, []int{c.maxConnsPerHost, c.maxIdle, c.maxIdlePerHost})
	_, err = newConfig([]Option{FromTransport(src), WithMaxIdleConnsPerHost(64), WithMaxConnsPerHost(5)})
	require.ErrorContains(t, err, "WithMaxIdleConnsPerHost(64): want <= WithMaxConnsPerHost(5)")
}

// TestFromTransportWaitsForTheFirstUse: the source may be set up by its first use
// in that moment. For the race detector.
func TestFromTransportWaitsForTheFirstUse(t *testing.T) {
	ts := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer ts.Close()
	for range 10 {
		src := &http.Transport{ForceAttemptHTTP2: true}
		var both sync.WaitGroup
		both.Go(func() {
			resp, err := (&http.Client{Transport: src}).Get(ts.URL)
			if err == nil {
				_ = resp.Body.Close()
			}
		})
		both.Go(func() {
			tr, err := New(FromTransport(src))
			if err == nil {
				_ = tr.Close()
			}
		})
		both.Wait()
		src.CloseIdleConnections()
	}
}

// TestFromTransportLeavesTimeToDialFunctions: they have a limit of their own.
func TestFromTransportLeavesTimeToDialFunctions(t *testing.T) {
	slow := func(ctx context.Context, _, _ string) (net.Conn, error) {
		select {
		case <-time.After(time.Minute):
			return nil, errOfSource
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	for _, tt := range []struct {
		want error
		opts []Option
	}{
		{errOfSource, []Option{FromTransport(&http.Transport{DialTLSContext: slow})}},
		{errOfSource, []Option{FromTransport(&http.Transport{DialContext: slow})}},
		{ErrDialTimeout, []Option{FromTransport(&http.Transport{DialTLSContext: slow}), WithDialTimeout(time.Second)}},
		{ErrDialTimeout, []Option{FromTransport(&http.Transport{}), WithDialTLSContext(slow)}},
	} {
		synctest.Test(t, func(t *testing.T) {
			tr, err := New(tt.opts...)
			require.NoError(t, err)
			_, err = fetch(t.Context(), tr, http.MethodGet, "https://a/")
			require.ErrorIs(t, err, tt.want)
			require.NoError(t, tr.Close())
		})
	}
}

// TestHTTP2TurnedOff: where net/http has no HTTP/2, we have none.
func TestHTTP2TurnedOff(t *testing.T) {
	t.Setenv("GODEBUG", "http2client=0")
	var only, both http.Protocols
	only.SetHTTP2(true)
	both.SetHTTP1(true)
	both.SetHTTP2(true)
	for _, opts := range [][]Option{
		nil, {WithProtocols(both)}, {FromTransport(&http.Transport{Protocols: &both})}, {FromTransport(&http.Transport{ForceAttemptHTTP2: true})},
	} {
		tr, err := New(opts...)
		require.NoError(t, err)
		require.Equal(t, []string{protoHTTP1}, tr.dialer.tls.NextProtos)
		require.NoError(t, tr.Close())
	}
	_, err := New(WithProtocols(only))
	require.ErrorContains(t, err, "turned off")
}

// TestSessionCacheIsNotAddedForCertificates: a session that resumes presents, and
// checks, the certificates of the connection that it comes from.
func TestSessionCacheIsNotAddedForCertificates(t *testing.T) {
	own := tls.NewLRUClientSessionCache(1)
	ask := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
	verify := func([][]byte, [][]*x509.Certificate) error { return nil }
	for _, tt := range []struct {
		cfg  *tls.Config
		want bool
	}{
		{nil, true},
		{&tls.Config{VerifyConnection: func(tls.ConnectionState) error { return nil }}, true},
		{&tls.Config{GetClientCertificate: ask}, false},
		{&tls.Config{VerifyPeerCertificate: verify}, false},
		{&tls.Config{GetClientCertificate: ask, ClientSessionCache: own}, true},
	} {
		tr, err := New(WithTLSConfig(tt.cfg))
		require.NoError(t, err)
		for _, c := range []*tls.Config{tr.dialer.tls, tr.dialer.http1TLS, tr.dialer.proxyTLS} {
			require.Equal(t, tt.want, c.ClientSessionCache != nil)
		}
		require.NoError(t, tr.Close())
	}
}
