package sock

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// receive takes one value from ch, in time.
func receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case v := <-ch:
		return v
	case <-timer.C:
		require.Fail(t, "nothing came")
	}
	panic("not reached")
}

// send writes s to nc.
func send(t testing.TB, nc net.Conn, s string) {
	t.Helper()
	_, err := io.WriteString(nc, s)
	require.NoError(t, err)
}

// expect reads exactly want from nc.
func expect(t testing.TB, nc net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := io.ReadFull(nc, got)
	require.NoError(t, err)
	require.Equal(t, want, string(got))
}
