package hostkey

import (
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOf(t *testing.T) {
	for _, tt := range []struct {
		name, url string
		want      Key
		addr      string
	}{
		{"default port", "http://example.com/", Key{Scheme: "http", Host: "example.com", Port: "80"}, "example.com:80"},
		{"default TLS port", "https://example.com", Key{Scheme: "https", Host: "example.com", Port: "443"}, "example.com:443"},
		{"empty port", "http://example.com:/", Key{Scheme: "http", Host: "example.com", Port: "80"}, "example.com:80"},
		{"case", "HTTP://EXAMPLE.com:80/x", Key{Scheme: "http", Host: "example.com", Port: "80"}, "example.com:80"},
		{"IPv4", "http://127.0.0.1:8080", Key{Scheme: "http", Host: "127.0.0.1", Port: "8080"}, "127.0.0.1:8080"},
		{"IPv6", "http://[::1]:8080", Key{Scheme: "http", Host: "::1", Port: "8080"}, "[::1]:8080"},
		{"IPv6 without port", "https://[2001:DB8::1]", Key{Scheme: "https", Host: "2001:db8::1", Port: "443"}, "[2001:db8::1]:443"},
		{"IPv6 zone keeps its case", "http://[FE80::1%25En0]:80", Key{Scheme: "http", Host: "fe80::1%En0", Port: "80"}, "[fe80::1%En0]:80"},
		{"IDNA", "http://bücher.example", Key{Scheme: "http", Host: "xn--bcher-kva.example", Port: "80"}, "xn--bcher-kva.example:80"},
		{"trailing dot is another host", "http://example.com.", Key{Scheme: "http", Host: "example.com.", Port: "80"}, "example.com.:80"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := url.Parse(tt.url)
			require.NoError(t, err)
			got, err := Of(u, nil, "")
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
			require.Equal(t, tt.addr, got.Addr())
		})
	}
}

func TestOfRefuses(t *testing.T) {
	for _, host := range []string{"", ":80", "a\u2028b.example"} {
		_, err := Of(&url.URL{Scheme: "http", Host: host}, nil, "")
		require.Error(t, err, host)
	}
}

func TestKeyString(t *testing.T) {
	require.Equal(t, "http://a:80", Key{Scheme: "http", Host: "a", Port: "80"}.String())
	require.Equal(t, "https://[::1]:443 (tenant 1)", Key{Scheme: "https", Host: "::1", Port: "443", User: "tenant 1"}.String())
}

func TestOfDoesNotAllocate(t *testing.T) {
	u := &url.URL{Scheme: "https", Host: "api.example.com:8443"}
	n := testing.AllocsPerRun(100, func() { _, _ = Of(u, nil, "tenant") })
	require.Zero(t, n)
}

func mustParse(t *testing.T, s string) *url.URL {
	t.Helper()
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	require.NoError(t, err)
	return u
}

// theirs is net/http's connectMethodKey, as its documentation draws it:
//
//	|http|foo.com                     http directly to server, no proxy
//	http://proxy.com|https|foo.com    http to proxy, then CONNECT to foo.com
//	http://proxy.com|http             http to proxy, http to anywhere after that
//	socks5://proxy.com|http|foo.com   socks5 to proxy, then http to foo.com
func theirs(u, proxy *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	addr := u.Hostname() + ":" + port
	if proxy == nil {
		return "|" + u.Scheme + "|" + addr
	}
	if u.Scheme == "http" && (proxy.Scheme == "http" || proxy.Scheme == "https") {
		addr = ""
	}
	return proxy.String() + "|" + u.Scheme + "|" + addr
}

// TestKeysAreEqualAsInNetHTTP: two requests share a connection exactly when
// net/http would share it, and their users are the same.
func TestKeysAreEqualAsInNetHTTP(t *testing.T) {
	type request struct {
		key    Key
		theirs string
		text   string
	}
	var all []request
	for _, target := range []string{
		"http://a", "http://a:80/x", "https://a:80", "https://a", "https://a:443/?q", "http://b", "http://a:443", "http://[::1]", "https://[::1]:80",
	} {
		for _, proxy := range []string{
			"", "http://p", "https://p", "socks5://p", "socks5h://p", "http://p:81", "http://q", "http://me@p", "http://me:@p",
			"http://me:1@p", "http://me:2@p", "https://me:1@p", "socks5://me:1@p", "socks5://me:2@p", "http://p/path", "http://a",
		} {
			for _, user := range []string{"", "u"} {
				u, p := mustParse(t, target), mustParse(t, proxy)
				key, err := Of(u, p, user)
				require.NoError(t, err)
				all = append(all, request{key, theirs(u, p) + "|" + user, target + " " + proxy + " " + user})
			}
		}
	}
	equal := 0
	for i, a := range all {
		for _, b := range all[:i] {
			require.Equal(t, a.theirs == b.theirs, a.key == b.key, "%s, %s", a.text, b.text)
			if a.key == b.key {
				equal++
			}
		}
		require.Equal(t, a.key.Forwarded(), strings.HasSuffix(a.theirs, "|http||") || strings.HasSuffix(a.theirs, "|http||u"), a.text)
	}
	require.Greater(t, equal, 100)
}

func TestProxyKeyText(t *testing.T) {
	for _, tt := range []struct{ target, proxy, want string }{
		{"http://a", "http://me:secret@p", "http via http://p:80"},
		{"https://a", "http://me:secret@P:81/path?me", "https://a:443 via http://p:81"},
		{"https://a", "https://secret@p", "https://a:443 via https://p:443"},
		{"http://a", "socks5://secret:@[::1]", "http://a:80 via socks5://[::1]:1080"},
		{"http://a", "socks5h://p", "http://a:80 via socks5h://p:1080"},
		{"https://a", "//secret@p:81", "https://a:443 via http://p:81"},
	} {
		key, err := Of(mustParse(t, tt.target), mustParse(t, tt.proxy), "")
		require.NoError(t, err)
		require.Equal(t, tt.want, key.String())
		key.User = "u"
		require.Equal(t, tt.want+" (u)", key.String())
	}
}

// TestProxyURLSurvives: the proxy's URL can be had back from the key as it was.
func TestProxyURLSurvives(t *testing.T) {
	for _, u := range []*url.URL{
		{Scheme: "http", Host: "p"},
		{Host: "p:1"},
		{Scheme: "https", Host: "[fe80::1%en0]:1", User: url.User("a:/@%b")},
		{Scheme: "socks5", Host: "p:1", User: url.UserPassword("\u00fc ", ":@/?#%")},
		{Scheme: "http", Host: "p", Path: "/x", RawQuery: "q", User: url.UserPassword("", "")},
	} {
		key, err := Of(&url.URL{Scheme: "https", Host: "a"}, u, "")
		require.NoError(t, err)
		got, err := key.ProxyURL()
		require.NoError(t, err)
		require.Equal(t, *u, *got)
	}
	_, err := Key{Proxy: "http://me:secret@a b"}.ProxyURL()
	require.Error(t, err)
	require.NotContains(t, err.Error(), "secret")
}
