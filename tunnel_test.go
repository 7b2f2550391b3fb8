package keepalive

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// through is a WithProxy for a proxy of netfake.
func through(scheme string) Option {
	return WithProxy(http.ProxyURL(&url.URL{Scheme: scheme, Host: "proxy:1"}))
}

// TestProxyConnectTimeoutDefault: a proxy that takes the connection and says
// nothing holds nobody for longer than a minute.
func TestProxyConnectTimeoutDefault(t *testing.T) {
	for scheme, target := range map[string]string{"http": "https://a/", "socks5": "http://a/"} {
		t.Run(scheme, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				n.Serve(t, "proxy:1", func(c *netfake.Conn) { _, _ = io.Copy(io.Discard, c) })
				start := time.Now()
				_, err := fetch(t.Context(), tr, http.MethodGet, target)
				require.ErrorIs(t, err, ErrProxyConnectTimeout)
				require.Equal(t, time.Minute, time.Since(start))
			}, through(scheme))
		})
	}
}

// TestForwardedRequestsShareConnections: over a connection that hides its
// socket, too.
func TestForwardedRequestsShareConnections(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "proxy:1", func(_, _ int, r *http.Request) string { return ok(r.RequestURI) })
		for _, u := range []string{"http://a/x", "http://b:81/", "http://a/x"} {
			require.Equal(t, u, mustGet(t, tr, u))
		}
		require.Equal(t, 1, n.Dials())
		require.Contains(t, tr.Stats().Hosts, "http via http://proxy:1")
		time.Sleep(51 * time.Second)
		require.Zero(t, n.Open())
	}, through("http"))
}

// TestProxyRoundTrip: the margin before a server's idle limit counts the way to
// the server, not that to the proxy.
func TestProxyRoundTrip(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.Serve(t, "proxy:1", func(c *netfake.Conn) {
			for _, part := range []string{
				"\x05\x00", "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00", ok("", "Keep-Alive: timeout=5"),
			} {
				_, _ = c.Read(make([]byte, 512))
				time.Sleep(time.Second)
				_, _ = io.WriteString(c, part)
			}
			_, _ = io.Copy(io.Discard, c)
		})
		tr.dialer.cfg.dialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			time.Sleep(time.Millisecond)
			return n.Dial(ctx, network, addr)
		}
		mustGet(t, tr, "http://a/")
		time.Sleep(3*time.Second - time.Millisecond)
		require.Equal(t, 1, n.Open())
		time.Sleep(time.Second / 2) // the timer may be late
		require.Zero(t, n.Open())   // 5 s less the margin of 1 s and 1 s of way
	}, through("socks5"))
}

// TestNoProxyCostsNothing: without one in the environment there is no function
// to ask.
func TestNoProxyCostsNothing(t *testing.T) {
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} {
		t.Setenv(name, "")
	}
	t.Setenv("NO_PROXY", "a")
	require.Nil(t, defaultConfig().proxy)
}
