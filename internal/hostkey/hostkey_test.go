package hostkey

import (
	"net/url"
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
		{"default port", "http://example.com/", Key{"http", "example.com", "80", ""}, "example.com:80"},
		{"default TLS port", "https://example.com", Key{"https", "example.com", "443", ""}, "example.com:443"},
		{"empty port", "http://example.com:/", Key{"http", "example.com", "80", ""}, "example.com:80"},
		{"case", "HTTP://EXAMPLE.com:80/x", Key{"http", "example.com", "80", ""}, "example.com:80"},
		{"IPv4", "http://127.0.0.1:8080", Key{"http", "127.0.0.1", "8080", ""}, "127.0.0.1:8080"},
		{"IPv6", "http://[::1]:8080", Key{"http", "::1", "8080", ""}, "[::1]:8080"},
		{"IPv6 without port", "https://[2001:DB8::1]", Key{"https", "2001:db8::1", "443", ""}, "[2001:db8::1]:443"},
		{"IPv6 zone keeps its case", "http://[FE80::1%25En0]:80", Key{"http", "fe80::1%En0", "80", ""}, "[fe80::1%En0]:80"},
		{"IDNA", "http://bücher.example", Key{"http", "xn--bcher-kva.example", "80", ""}, "xn--bcher-kva.example:80"},
		{"trailing dot is another host", "http://example.com.", Key{"http", "example.com.", "80", ""}, "example.com.:80"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := url.Parse(tt.url)
			require.NoError(t, err)
			got, err := Of(u, "")
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
			require.Equal(t, tt.addr, got.Addr())
		})
	}
}

func TestOfRefuses(t *testing.T) {
	for _, host := range []string{"", ":80", "a\u2028b.example"} {
		_, err := Of(&url.URL{Scheme: "http", Host: host}, "")
		require.Error(t, err, host)
	}
}

func TestKeyString(t *testing.T) {
	require.Equal(t, "http://a:80", Key{"http", "a", "80", ""}.String())
	require.Equal(t, "https://[::1]:443 (tenant 1)", Key{"https", "::1", "443", "tenant 1"}.String())
}

func TestOfDoesNotAllocate(t *testing.T) {
	u := &url.URL{Scheme: "https", Host: "api.example.com:8443"}
	n := testing.AllocsPerRun(100, func() { _, _ = Of(u, "tenant") })
	require.Zero(t, n)
}
