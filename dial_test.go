package keepalive

import (
	"context"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/hostkey"
)

func TestUserDials(t *testing.T) {
	dial := func(context.Context, string, string) (net.Conn, error) { return nil, nil }
	none, plain, secure := &config{}, &config{dialContext: dial}, &config{dialTLSContext: dial}
	for _, tt := range []struct {
		scheme, proxy string
		secure        bool
	}{
		{"http", "", false},
		{"https", "", true},
		{"https", "http://p:80", false},
		{"https", "socks5://p:1080", false},
		{"http", "https://p:443", true},
		{"https", "https://p:443", true},
	} {
		key := hostkey.Key{Scheme: tt.scheme, Proxy: tt.proxy}
		require.False(t, none.userDials(key))
		require.True(t, plain.userDials(key))
		require.Equal(t, tt.secure, secure.userDials(key), "%s through %q", tt.scheme, tt.proxy)
	}
}
