package sock

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// narrow is a TCP connection whose receiver holds little. Its buffer is set
// before it is accepted, or the first window would be a large one.
func narrow(t *testing.T, sendBuffer int) (*Conn, net.Conn) {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096)
		})
		return errors.Join(err, cerr)
	}}
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	client, server := connect(t, ln)
	require.NoError(t, client.(*net.TCPConn).SetWriteBuffer(sendBuffer))
	return New(client), server
}

// drain takes size bytes from nc each tick until it ends.
func drain(nc net.Conn, tick time.Duration, size int64) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for range ticker.C {
		if _, err := io.CopyN(io.Discard, nc, size); err != nil {
			return
		}
	}
}

// TestWriteTimeoutProgress: a Write may take many timeouts while it moves.
func TestWriteTimeoutProgress(t *testing.T) {
	const timeout = 200 * time.Millisecond
	c, server := narrow(t, 4096)
	go drain(server, 20*time.Millisecond, 16<<10)
	c.SetWriteTimeout(timeout)
	p := make([]byte, 1<<20)
	start := time.Now()
	n, err := c.Write(p)
	require.NoError(t, err)
	require.Equal(t, len(p), n)
	require.Greater(t, time.Since(start), 2*timeout, "too fast to tell")
	require.NoError(t, c.Close())
}

// TestWriteTimeoutAcknowledged: the kernel takes nothing new for long, but the
// peer acknowledges: that is progress. (A full buffer that is then made small
// takes nothing until it is nearly empty.)
func TestWriteTimeoutAcknowledged(t *testing.T) {
	const timeout = 200 * time.Millisecond
	c, server := narrow(t, 200<<10)
	c.SetWriteTimeout(0)
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
	for {
		if _, err := c.Write(make([]byte, 64<<10)); err != nil {
			break
		}
	}
	require.NoError(t, c.SetWriteDeadline(time.Time{}))
	full := c.unacknowledged()
	require.Greater(t, full, 100<<10)
	require.NoError(t, c.NetConn().(*net.TCPConn).SetWriteBuffer(4096))

	c.SetWriteTimeout(timeout)
	go drain(server, 10*time.Millisecond, 4<<10)
	start := time.Now()
	_, err := c.Write(make([]byte, 128<<10))
	took := time.Since(start)
	t.Logf("queue of %d bytes; accepted after %v", full, took)
	require.NoError(t, err)
	require.Greater(t, took, 2*timeout, "too fast to tell")
	require.NoError(t, c.Close())
}

func TestWriteTimeoutStalled(t *testing.T) {
	for _, network := range networks {
		const timeout = 200 * time.Millisecond
		c, _ := pair(t, network)
		c.SetWriteTimeout(timeout)
		start := time.Now()
		n, err := c.Write(make([]byte, 64<<20))
		took := time.Since(start)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NotErrorIs(t, err, ErrInterrupted)
		require.Less(t, n, 64<<20)
		require.EqualValues(t, n, c.BytesWritten())
		require.GreaterOrEqual(t, took, timeout)
		require.Less(t, took, 10*timeout)
		require.NoError(t, c.Close())
	}
}

// TestWriteTimeoutDeadline: a deadline from outside holds beside the timeout,
// whether set before or meanwhile, and stays as it was.
func TestWriteTimeoutDeadline(t *testing.T) {
	c, server := pair(t, "tcp")
	c.SetWriteTimeout(time.Hour)
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
	_, err := c.Write(make([]byte, 64<<20))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)

	for _, set := range []func(time.Time) error{c.SetWriteDeadline, c.SetDeadline} {
		require.NoError(t, c.SetDeadline(time.Time{}))
		got := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, 64<<20))
			got <- err
		}()
		eventually(t, "a write under way", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.watching
		})
		require.NoError(t, set(time.Now()))
		require.ErrorIs(t, receive(t, got), os.ErrDeadlineExceeded)
	}
	c.SetWriteTimeout(0)
	_, err = c.Write([]byte("x"))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "the deadline is as it was set")
	require.NoError(t, c.SetDeadline(time.Time{}))
	go func() { _, _ = io.Copy(io.Discard, server) }()
	_, err = c.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, c.Close())
}

// TestWriteTimeoutInterrupt: the rounds do not set a deadline over it.
func TestWriteTimeoutInterrupt(t *testing.T) {
	for i, interrupt := range []func(*Conn){(*Conn).Interrupt, (*Conn).InterruptWrite} {
		c, _ := pair(t, "tcp")
		c.SetWriteTimeout(time.Hour)
		got := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, 64<<20))
			got <- err
		}()
		eventually(t, "a full window", func() bool { return c.unacknowledged() > 1<<16 })
		interrupt(c)
		require.Equal(t, ErrInterrupted, receive(t, got), i)
		require.NoError(t, c.Close())
	}
}
