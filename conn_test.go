package keepalive

import (
	"math/bits"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// TestConnSize: connections have a size class of the memory allocator (352 to
// 384 bytes) to themselves. In one with what requests leave behind they would lie
// scattered between that: with the map of a header, which takes 352, an idle
// connection cost 290 bytes more, as a sock.Conn and a conn apart 680.
func TestConnSize(t *testing.T) {
	if bits.UintSize != 64 {
		t.Skip("for 64 bits")
	}
	require.Greater(t, unsafe.Sizeof(conn{}), uintptr(352))
	require.LessOrEqual(t, unsafe.Sizeof(conn{}), uintptr(384))
}
