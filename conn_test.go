package keepalive

import (
	"crypto/tls"
	"math/bits"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/sock"
)

// TestConnSize: connections have a size class of the memory allocator (352 to
// 384 bytes) to themselves. In one with what requests leave behind they would lie
// scattered between that: with the map of a header, which takes 352, an idle
// connection cost 290 bytes more, as a sock.Conn and a conn apart 560.
func TestConnSize(t *testing.T) {
	if bits.UintSize != 64 {
		t.Skip("for 64 bits")
	}
	require.Greater(t, unsafe.Sizeof(conn{}), uintptr(352))
	require.LessOrEqual(t, unsafe.Sizeof(conn{}), uintptr(384))
	// What a dial leaves behind must not lie between what is kept, either: in the
	// class of 128 bytes it cost an idle connection 70 bytes more.
	require.LessOrEqual(t, unsafe.Sizeof(dial{}), uintptr(112))
}

// TestMayRenegotiate: a deadline that passes in a handshake ends the connection, so
// the context is listened for at once where there may be one.
func TestMayRenegotiate(t *testing.T) {
	once := &tls.Config{Renegotiation: tls.RenegotiateOnceAsClient}
	below := tls.Client(sock.NewRecords(new(sock.Conn)), once)
	v12 := &conn{nc: below, tls: &tls.ConnectionState{Version: tls.VersionTLS12}}
	v13 := &conn{nc: below, tls: &tls.ConnectionState{Version: tls.VersionTLS13}}
	within := &conn{nc: tls.Client(below, once), tls: v13.tls}
	require.True(t, (&dialer{tls: once}).mayRenegotiate(within), "of the outer one")
	require.True(t, (&dialer{tls: once}).mayRenegotiate(v12))
	require.False(t, (&dialer{tls: once}).mayRenegotiate(v13))
	require.False(t, (&dialer{tls: once}).mayRenegotiate(new(conn)))
	require.False(t, (&dialer{tls: new(tls.Config)}).mayRenegotiate(v12))
}
