package sock

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// deafConn ignores deadlines; its Read and Write end with Close only.
type deafConn struct {
	net.Conn
	deadlineErr error
	once        sync.Once
	closed      chan struct{}
}

func newDeafConn() *deafConn { return &deafConn{closed: make(chan struct{})} }

func (c *deafConn) Read([]byte) (int, error) {
	<-c.closed
	return 0, net.ErrClosed
}
func (c *deafConn) Write([]byte) (int, error)        { return c.Read(nil) }
func (c *deafConn) SetDeadline(time.Time) error      { return c.deadlineErr }
func (c *deafConn) SetWriteDeadline(time.Time) error { return c.deadlineErr }
func (c *deafConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// closeCounter counts Close.
type closeCounter struct {
	net.Conn
	closes atomic.Int32
}

func (c *closeCounter) Close() error {
	c.closes.Add(1)
	return c.Conn.Close()
}

func TestConnWithoutSocket(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	c := New(a)
	defer c.Close()

	require.False(t, c.Direct())
	require.False(t, c.HasSocket())
	require.Equal(t, Unknown, c.Peek())
	require.False(t, c.SetNonblock(true))
	require.Same(t, a, c.NetConn())
	res := c.WriteRead([]byte("x"), make([]byte, 1), false)
	require.Equal(t, WriteReadResult{Err: ErrNoSocket}, res)
	_, err := c.TryRead(make([]byte, 1))
	require.Equal(t, ErrWouldBlock, err)
	require.ErrorIs(t, NewWatcher(nil).Add(c, 1), ErrNoSocket)

	go func() { _, _ = io.Copy(b, b) }()
	send(t, c, "ping")
	expect(t, c, "ping")
	require.EqualValues(t, 4, c.BytesRead())
	require.EqualValues(t, 4, c.BytesWritten())
}

func TestErrorsAreTimeouts(t *testing.T) {
	for _, tt := range []struct {
		err       error
		temporary bool
	}{{ErrWouldBlock, true}, {ErrInterrupted, false}} {
		ne, ok := tt.err.(net.Error) // as crypto/tls asks: no unwrapping
		require.True(t, ok)
		require.True(t, ne.Timeout())
		require.Equal(t, tt.temporary, ne.(interface{ Temporary() bool }).Temporary())
	}
	require.ErrorIs(t, ErrInterrupted, os.ErrDeadlineExceeded)
	require.NotErrorIs(t, ErrWouldBlock, os.ErrDeadlineExceeded)
}

// TestConnInterruptHeeded: a wrapped connection that ends by its deadline is
// not closed behind its owner's back.
func TestConnInterruptHeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		counter := &closeCounter{Conn: a}
		c := New(counter)
		got := make(chan error, 2)
		go func() {
			_, err := c.Read(make([]byte, 1))
			got <- err
		}()
		go func() {
			_, err := c.Write(make([]byte, 1))
			got <- err
		}()
		synctest.Wait()
		c.Interrupt()
		require.Equal(t, ErrInterrupted, <-got)
		require.Equal(t, ErrInterrupted, <-got)
		time.Sleep(time.Second)
		require.Zero(t, counter.closes.Load())
		require.NoError(t, c.Close())
	})
}

// TestConnInterruptUnheeded: one that ignores its deadline is closed.
func TestConnInterruptUnheeded(t *testing.T) {
	for _, deadlineErr := range []error{nil, os.ErrNoDeadline} {
		synctest.Test(t, func(t *testing.T) {
			deaf := newDeafConn()
			deaf.deadlineErr = deadlineErr
			c := New(deaf)
			got := make(chan error, 2)
			go func() {
				_, err := c.Read(make([]byte, 1))
				got <- err
			}()
			go func() {
				_, err := c.Write(make([]byte, 1))
				got <- err
			}()
			synctest.Wait()
			start := time.Now()
			c.Interrupt()
			require.Zero(t, time.Since(start), "Interrupt waited")
			require.Equal(t, ErrInterrupted, <-got)
			require.Equal(t, ErrInterrupted, <-got)
			want := interruptGrace
			if deadlineErr != nil {
				want = 0
			}
			require.Equal(t, want, time.Since(start))
		})
	}
}

func TestConnInterruptedForGood(t *testing.T) {
	deaf := newDeafConn()
	c := New(deaf)
	c.Interrupt()
	_, err := c.Read(make([]byte, 1))
	require.Equal(t, ErrInterrupted, err)
	_, err = c.Write(make([]byte, 1))
	require.Equal(t, ErrInterrupted, err)
	require.Equal(t, ErrInterrupted, c.SetDeadline(time.Time{}))
	require.Equal(t, ErrInterrupted, c.SetReadDeadline(time.Time{}))
	require.Equal(t, ErrInterrupted, c.SetWriteDeadline(time.Time{}))
	select {
	case <-deaf.closed:
		require.Fail(t, "closed although nothing was under way")
	default:
	}
}

func TestConnInterruptWriteLeavesReads(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	c := New(a)
	defer c.Close()
	got := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 1))
		got <- err
	}()
	c.InterruptWrite()
	require.Equal(t, ErrInterrupted, receive(t, got))
	require.Equal(t, ErrInterrupted, c.SetWriteDeadline(time.Time{}))
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	go func() { _, _ = b.Write([]byte("on")) }()
	expect(t, c, "on")
	_, err := c.Write(make([]byte, 1))
	require.Equal(t, ErrInterrupted, err)
}

// TestConnWritePieces: where progress cannot be seen, each piece has the time.
func TestConnWritePieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		c := New(a)
		c.SetWriteTimeout(time.Second)
		go func() {
			for range 4 {
				time.Sleep(900 * time.Millisecond)
				_, _ = io.CopyN(io.Discard, b, pieceSize)
			}
		}()
		n, err := c.Write(make([]byte, 5*pieceSize))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, 4*pieceSize, n)
		require.EqualValues(t, n, c.BytesWritten())
		require.NoError(t, errors.Join(c.Close(), b.Close()))
	})
}

func TestStateString(t *testing.T) {
	for s, want := range map[State]string{
		Unknown: "unknown", Quiet: "quiet", Readable: "readable", Ended: "ended", 99: "invalid",
	} {
		require.Equal(t, want, s.String())
	}
}

// shortConn accepts half of what it is given, and says nothing of it.
type shortConn struct{ net.Conn }

func (shortConn) Write(p []byte) (int, error) { return len(p) / 2, nil }

func TestShortWriteIsAnError(t *testing.T) {
	c := New(shortConn{})
	n, err := c.Write(make([]byte, 10))
	require.Equal(t, 5, n)
	require.Equal(t, io.ErrShortWrite, err)
}
