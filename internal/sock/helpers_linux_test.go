package sock

import (
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// networks are what a Conn may be Direct on.
var networks = []string{"tcp", "unix"}

// listen listens on the loopback, or on a path of the test's own.
func listen(t testing.TB, network string) net.Listener {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// connect makes one connection to ln and returns its two ends.
func connect(t testing.TB, ln net.Listener) (client, server net.Conn) {
	t.Helper()
	client, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	require.NoError(t, err)
	server, err = ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
	})
	return client, server
}

// pair is a Conn and the other end of its connection.
func pair(t testing.TB, network string) (*Conn, net.Conn) {
	t.Helper()
	client, server := connect(t, listen(t, network))
	return New(client), server
}

// eventually waits for ok without sleeping.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			require.Fail(t, "waited in vain for "+what)
		}
	}
}

// await waits until Peek says want.
func await(t testing.TB, c *Conn, want State) {
	t.Helper()
	eventually(t, want.String(), func() bool { return c.Peek() == want })
}

// reset closes nc with a RST.
func reset(t testing.TB, nc net.Conn) {
	t.Helper()
	require.NoError(t, nc.(*net.TCPConn).SetLinger(0))
	require.NoError(t, nc.Close())
}
