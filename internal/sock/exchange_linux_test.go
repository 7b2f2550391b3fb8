package sock

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNewFindsTheSocket(t *testing.T) {
	for _, network := range networks {
		c, _ := pair(t, network)
		require.True(t, c.Direct(), network)
		require.True(t, c.HasSocket(), network)

		over := New(tls.Client(c, &tls.Config{ServerName: "x"})) // through TLS and a Conn
		require.False(t, over.Direct(), network)
		require.True(t, over.HasSocket(), network)
		require.Equal(t, Quiet, over.Peek(), network)
		require.False(t, over.SetNonblock(true), network)

		// A wrapper that has the method but is not known to be honest.
		wrapped := New(struct{ *net.TCPConn }{})
		require.False(t, wrapped.Direct())
		require.False(t, wrapped.HasSocket())
	}
}

func TestPeek(t *testing.T) {
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			c, server := pair(t, network)
			require.Equal(t, Quiet, c.Peek())
			send(t, server, "ab")
			await(t, c, Readable)
			require.Equal(t, Readable, c.Peek(), "a look takes nothing")
			expect(t, c, "ab")
			require.Equal(t, Quiet, c.Peek())
			send(t, server, "c")
			require.NoError(t, server.Close())
			await(t, c, Readable)
			expect(t, c, "c")
			await(t, c, Ended)
			require.NoError(t, c.Close())
			require.Equal(t, Ended, c.Peek())
		})
	}
	t.Run("reset", func(t *testing.T) {
		c, server := pair(t, "tcp")
		reset(t, server)
		await(t, c, Ended)
	})
	t.Run("beside a reader", func(t *testing.T) {
		c, server := pair(t, "tcp")
		got := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			got <- err
		}()
		for range 1000 {
			require.Equal(t, Quiet, c.Peek())
			runtime.Gosched()
		}
		send(t, server, "x")
		require.NoError(t, receive(t, got))
	})
}

func TestPeekAllocs(t *testing.T) {
	c, _ := pair(t, "tcp")
	require.Zero(t, testing.AllocsPerRun(1000, func() { c.Peek() }))
}

// echo answers everything that comes, until the end.
func echo(nc net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := nc.Read(buf)
		if err != nil {
			return
		}
		if _, err := nc.Write(buf[:n]); err != nil {
			return
		}
	}
}

func TestWriteRead(t *testing.T) {
	for _, network := range networks {
		for _, fresh := range []bool{false, true} {
			c, server := pair(t, network)
			go echo(server)
			buf := make([]byte, 64)
			for range 100 {
				res := c.WriteRead([]byte("request"), buf, fresh)
				require.Equal(t, WriteReadResult{Wrote: 7, N: 7}, res)
				require.Equal(t, "request", string(buf[:res.N]))
			}
			require.EqualValues(t, 700, c.BytesRead())
			require.EqualValues(t, 700, c.BytesWritten())
			require.NoError(t, c.Close())
		}
	}
}

func TestWriteReadAllocs(t *testing.T) {
	c, server := pair(t, "tcp")
	go echo(server)
	p, buf := []byte("request"), make([]byte, 64)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		if res := c.WriteRead(p, buf, false); res.N != len(p) {
			t.Errorf("got %+v", res)
		}
	}))
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		if _, err := c.TryRead(buf); err != ErrWouldBlock {
			t.Errorf("got %v", err)
		}
	}))
	require.NoError(t, c.Close())
}

// TestWriteReadStale: what was there before the write is not an answer, and
// nothing is sent.
func TestWriteReadStale(t *testing.T) {
	for _, network := range networks {
		t.Run(network+" data", func(t *testing.T) {
			c, server := pair(t, network)
			send(t, server, "poison")
			await(t, c, Readable)
			res := c.WriteRead([]byte("request"), make([]byte, 64), false)
			require.Equal(t, WriteReadResult{Stale: true, Found: Readable}, res)
			require.Zero(t, c.BytesRead())
			require.Equal(t, Quiet, New(server).Peek(), "something was sent")
			require.Zero(t, c.BytesWritten())
		})
		t.Run(network+" end", func(t *testing.T) {
			c, server := pair(t, network)
			require.NoError(t, server.Close())
			await(t, c, Ended)
			res := c.WriteRead([]byte("request"), make([]byte, 64), false)
			require.Equal(t, WriteReadResult{Stale: true, Found: Ended}, res)
			require.Zero(t, c.BytesWritten())
		})
	}
	t.Run("reset", func(t *testing.T) {
		c, server := pair(t, "tcp")
		w, fired := watch(t)
		require.NoError(t, w.Add(c, 1))
		reset(t, server)
		receive(t, fired) // Peek would take the error away
		res := c.WriteRead([]byte("request"), make([]byte, 64), false)
		require.Equal(t, WriteReadResult{Stale: true, Found: Ended}, res)
		w.Remove(c)
	})
}

// TestWriteReadFresh: on a connection never used, nobody looks first.
func TestWriteReadFresh(t *testing.T) {
	c, server := pair(t, "tcp")
	send(t, server, "503")
	await(t, c, Readable)
	buf := make([]byte, 64)
	res := c.WriteRead([]byte("request"), buf, true)
	require.Equal(t, WriteReadResult{Wrote: 7, N: 3}, res)
	require.Equal(t, "503", string(buf[:3]))
	expect(t, server, "request")

	require.NoError(t, server.Close())
	await(t, c, Ended)
	res = c.WriteRead([]byte("request"), buf, true)
	require.Equal(t, WriteReadResult{Wrote: 7, Err: io.EOF}, res)
}

func TestWriteReadErrors(t *testing.T) {
	t.Run("write to a reset connection", func(t *testing.T) {
		c, server := pair(t, "tcp")
		w, fired := watch(t)
		require.NoError(t, w.Add(c, 1))
		reset(t, server)
		receive(t, fired)
		res := c.WriteRead([]byte("request"), make([]byte, 64), true)
		require.True(t, res.WriteErr)
		require.Zero(t, res.Wrote)
		require.ErrorIs(t, res.Err, syscall.ECONNRESET)
		w.Remove(c)
	})
	t.Run("write to a closed unix socket", func(t *testing.T) {
		c, server := pair(t, "unix")
		require.NoError(t, server.Close())
		res := c.WriteRead([]byte("request"), make([]byte, 64), true)
		require.True(t, res.WriteErr)
		require.ErrorIs(t, res.Err, syscall.EPIPE)
		op, ok := res.Err.(*net.OpError)
		require.True(t, ok)
		require.Equal(t, "write", op.Op)
		require.Equal(t, "unix", op.Net)
	})
	t.Run("reset while waiting", func(t *testing.T) {
		c, server := pair(t, "tcp")
		go func() {
			_, _ = io.ReadFull(server, make([]byte, 7))
			_ = server.(*net.TCPConn).SetLinger(0)
			_ = server.Close()
		}()
		res := c.WriteRead([]byte("request"), make([]byte, 64), false)
		require.False(t, res.WriteErr)
		require.Equal(t, 7, res.Wrote)
		require.ErrorIs(t, res.Err, syscall.ECONNRESET)
	})
	t.Run("end while waiting", func(t *testing.T) {
		c, server := pair(t, "tcp")
		go func() {
			_, _ = io.ReadFull(server, make([]byte, 7))
			_ = server.Close()
		}()
		res := c.WriteRead([]byte("request"), make([]byte, 64), false)
		require.Equal(t, WriteReadResult{Wrote: 7, Err: io.EOF}, res)
	})
	t.Run("closed by us", func(t *testing.T) {
		c, _ := pair(t, "tcp")
		require.NoError(t, c.Close())
		res := c.WriteRead([]byte("request"), make([]byte, 64), false)
		require.ErrorIs(t, res.Err, net.ErrClosed)
		require.Zero(t, res.Wrote)
	})
}

func TestWriteReadShortWrite(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		c, server := pair(t, "tcp")
		require.NoError(t, c.NetConn().(*net.TCPConn).SetWriteBuffer(4096))
		p := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
		buf := make([]byte, 64)
		res := c.WriteRead(p, buf, fresh)
		require.NoError(t, res.Err)
		require.Zero(t, res.N)
		require.Positive(t, res.Wrote)
		require.Less(t, res.Wrote, len(p))

		// Nothing fits now.
		res2 := c.WriteRead(p[res.Wrote:], buf, fresh)
		require.NoError(t, res2.Err)
		require.Zero(t, res2.N)
		require.Less(t, res2.Wrote, len(p)/2)
		wrote := res.Wrote + res2.Wrote

		got := make(chan []byte, 1)
		go func() {
			all := make([]byte, len(p))
			_, _ = io.ReadFull(server, all)
			_, _ = io.WriteString(server, "done")
			got <- all
		}()
		n, err := c.Write(p[wrote:])
		require.NoError(t, err)
		require.Equal(t, len(p), wrote+n)
		expect(t, c, "done")
		require.True(t, bytes.Equal(p, receive(t, got)))
		require.EqualValues(t, len(p), c.BytesWritten())
	}
}

func TestWriteReadDeadline(t *testing.T) {
	c, server := pair(t, "tcp")
	go func() {
		_, _ = io.ReadFull(server, make([]byte, 7))
		_ = c.SetReadDeadline(time.Now()) // while it is parked
	}()
	res := c.WriteRead([]byte("request"), make([]byte, 64), false)
	require.Equal(t, 7, res.Wrote)
	require.False(t, res.WriteErr)
	require.ErrorIs(t, res.Err, os.ErrDeadlineExceeded)
	ne, ok := res.Err.(net.Error)
	require.True(t, ok)
	require.True(t, ne.Timeout())
	require.NotErrorIs(t, res.Err, ErrInterrupted)

	// A deadline that has passed: nothing is sent.
	res = c.WriteRead([]byte("request"), make([]byte, 64), false)
	require.ErrorIs(t, res.Err, os.ErrDeadlineExceeded)
	require.Zero(t, res.Wrote)

	// Without it, all is well again.
	require.NoError(t, c.SetReadDeadline(time.Time{}))
	go echo(server)
	res = c.WriteRead([]byte("request"), make([]byte, 64), false)
	require.Equal(t, WriteReadResult{Wrote: 7, N: 7}, res)
	require.NoError(t, c.Close())
}

// TestWriteReadInterrupt interrupts at all moments: before, during and after
// the write, and while the owner sets deadlines.
func TestWriteReadInterrupt(t *testing.T) {
	ln := listen(t, "tcp")
	for i := range 1000 {
		client, server := connect(t, ln)
		c := New(client)
		done := make(chan WriteReadResult, 1)
		go func() { done <- c.WriteRead([]byte("request"), make([]byte, 64), false) }()
		stop := make(chan struct{})
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
					_ = c.SetDeadline(time.Now().Add(time.Hour))
				}
			}
		}()
		if i%2 == 0 {
			expect(t, server, "request")
		}
		for range i % 7 {
			runtime.Gosched()
		}
		c.Interrupt()
		res := receive(t, done)
		require.Equal(t, ErrInterrupted, res.Err)
		require.Zero(t, res.N)
		close(stop)
		<-stopped
		require.NoError(t, c.Close())
		require.NoError(t, server.Close())
	}
}

func TestWriteReadAfterInterruptWrite(t *testing.T) {
	c, _ := pair(t, "tcp")
	c.InterruptWrite()
	res := c.WriteRead([]byte("request"), make([]byte, 64), false)
	require.Equal(t, WriteReadResult{WriteErr: true, Err: ErrInterrupted}, res)
}

// TestWriteReadParkedOutlivesInterruptWrite: reads go on.
func TestWriteReadParkedOutlivesInterruptWrite(t *testing.T) {
	c, server := pair(t, "tcp")
	go func() {
		_, _ = io.ReadFull(server, make([]byte, 7))
		c.InterruptWrite()
		_, _ = io.WriteString(server, "413")
	}()
	res := c.WriteRead([]byte("request"), make([]byte, 64), false)
	require.Equal(t, WriteReadResult{Wrote: 7, N: 3}, res)
}

func TestTryRead(t *testing.T) {
	for _, network := range networks {
		c, server := pair(t, network)
		buf := make([]byte, 4)
		n, err := c.TryRead(buf)
		require.Zero(t, n)
		require.Equal(t, ErrWouldBlock, err)
		send(t, server, "abcdef")
		await(t, c, Readable)
		n, err = c.TryRead(buf)
		require.NoError(t, err)
		require.Equal(t, "abcd", string(buf[:n]))
		n, err = c.TryRead(buf)
		require.NoError(t, err)
		require.Equal(t, "ef", string(buf[:n]))
		require.EqualValues(t, 6, c.BytesRead())
		n, err = c.TryRead(nil)
		require.NoError(t, err)
		require.Zero(t, n)

		// A waiting Read afterwards misses nothing.
		got := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(c, buf[:1])
			got <- err
		}()
		send(t, server, "x")
		require.NoError(t, receive(t, got))

		require.NoError(t, server.Close())
		await(t, c, Ended)
		_, err = c.TryRead(buf)
		require.Equal(t, io.EOF, err)
		c.Interrupt()
		_, err = c.TryRead(buf)
		require.Equal(t, ErrInterrupted, err)
	}
}

func TestSetNonblock(t *testing.T) {
	c, server := pair(t, "tcp")
	require.NoError(t, c.NetConn().(*net.TCPConn).SetWriteBuffer(4096))
	require.True(t, c.SetNonblock(true))
	_, err := c.Read(make([]byte, 1))
	require.Equal(t, ErrWouldBlock, err)
	n, err := c.Write([]byte("all"))
	require.NoError(t, err)
	require.Equal(t, 3, n)
	n, err = c.Write(make([]byte, 8<<20))
	require.Equal(t, ErrWouldBlock, err)
	require.Less(t, n, 8<<20)
	require.EqualValues(t, 3+n, c.BytesWritten())
	n, err = c.Write(nil)
	require.NoError(t, err)
	require.Zero(t, n)

	require.True(t, c.SetNonblock(false))
	go func() { _, _ = io.Copy(io.Discard, server) }()
	_, err = c.Write(make([]byte, 1<<20))
	require.NoError(t, err)
	require.True(t, c.SetNonblock(true))
	c.InterruptWrite()
	_, err = c.Write([]byte("x"))
	require.Equal(t, ErrInterrupted, err)
	require.NoError(t, c.Close())
}
