package keepalive

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// ask makes a request, a POST if it has a body, with fields as "Name:value" and
// returns what came.
func ask(t *testing.T, tr *Transport, url, body string, fields ...string) string {
	t.Helper()
	method := http.MethodGet
	var rd io.Reader
	if body != "" {
		method, rd = http.MethodPost, strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, rd)
	require.NoError(t, err)
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ":")
		req.Header[name] = []string{value}
	}
	got, err := roundTrip(tr, req)
	require.NoError(t, err)
	return got
}

// TestIdentityAtTheProxy: an answer of the server's that refuses a request may be
// one that the proxy has authenticated, and the connection with it.
func TestIdentityAtTheProxy(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "proxy:1", func(conn, _ int, _ *http.Request) string {
			return strings.Replace(connNumber(conn, 0, nil), "200 OK", "401 Unauthorized", 1)
		})
		require.Equal(t, "0", ask(t, tr, "http://a/", "", "Proxy-Authorization:NTLM TlRMTVNTUAADalice"))
		require.Equal(t, "1", ask(t, tr, "http://a/", "", "Authorization:Negotiate YIIbob"))
		require.Equal(t, "1", ask(t, tr, "http://a/", "", "Authorization:Negotiate YIIbob"), "the next leg")
		require.Equal(t, uint64(1), tr.Stats().Closed[CloseIdentity])
	}, through("http"))
}

// TestIdentityWithBlanks: blanks before the credentials do not hide them, for
// they are not sent.
func TestIdentityWithBlanks(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		require.Equal(t, "0", ask(t, tr, "http://a/", "", "Authorization: \tNegotiate  YIIalice"))
		require.Equal(t, "1", ask(t, tr, "http://a/", ""))
		require.Equal(t, uint64(1), tr.Stats().Closed[CloseIdentity])
	})
}

// TestIdentityOfAnotherAttempt: one that begins a handshake needs a connection
// of its own, whatever attempt it is.
func TestIdentityOfAnotherAttempt(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", func(conn, _ int, r *http.Request) string {
			if r.Header.Get("Expect") != "" {
				return "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"
			}
			return strings.Replace(connNumber(conn, 0, nil), "200 OK", "401 Unauthorized", 1)
		})
		begin := "Authorization:NTLM TlRMTVNTUAABxx"
		require.Equal(t, "0", ask(t, tr, "http://a/", "", begin))
		require.Equal(t, "2", ask(t, tr, "http://a/", "body", begin, "Expect:100-continue"))
	})
}

// TestIdentityNeedsHTTP1: credentials for the connection mean nothing on one that
// is shared.
func TestIdentityNeedsHTTP1(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto+" "+r.RemoteAddr)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	_, roots := testCert()
	for name, opts := range map[string][]Option{
		"nobody": nil,
		"a user": {WithPoolKey(func(*http.Request) string { return "alice" })},
	} {
		t.Run(name, func(t *testing.T) {
			tr, err := New(append(opts, WithTLSConfig(&tls.Config{RootCAs: roots}))...)
			require.NoError(t, err)
			defer tr.Close()
			require.True(t, strings.HasPrefix(ask(t, tr, srv.URL, ""), "HTTP/2.0 "))
			first := ask(t, tr, srv.URL, "", "Authorization:Negotiate YIIalice")
			second := ask(t, tr, srv.URL, "", "Authorization:Negotiate YIIalice")
			require.True(t, strings.HasPrefix(first, "HTTP/1.1 "), first)
			require.Equal(t, name == "a user", first == second)
		})
	}
}
