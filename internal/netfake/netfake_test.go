package netfake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const addr = "a.test:80"

// both runs f outside a bubble and inside one.
func both(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Run("outside", f)
	t.Run("bubble", func(t *testing.T) { synctest.Test(t, f) })
}

// pair returns the two ends of a connection.
func pair(t *testing.T, n *Net) (client, server *Conn) {
	t.Helper()
	l := n.Listen(addr)
	defer func() { require.NoError(t, l.Close()) }()
	c, err := n.Dial(t.Context(), "tcp", addr)
	require.NoError(t, err)
	s, err := l.Accept()
	require.NoError(t, err)
	return c.(*Conn), s.(*Conn)
}

func readAll(t *testing.T, c *Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := io.ReadFull(c, got)
	require.NoError(t, err)
	require.Equal(t, want, string(got))
}

func write(t *testing.T, c *Conn, s string) {
	t.Helper()
	n, err := c.Write([]byte(s))
	require.NoError(t, err)
	require.Equal(t, len(s), n)
}

func readErr(c *Conn) error {
	n, err := c.Read(make([]byte, 1))
	if err == nil {
		return fmt.Errorf("%d bytes were read", n)
	}
	return err
}

func writeErr(c *Conn) error {
	_, err := c.Write([]byte("x"))
	return err
}

// isOp wants err to be target inside a *net.OpError.
func isOp(t *testing.T, err, target error) {
	t.Helper()
	require.ErrorIs(t, err, target)
	_, ok := errors.AsType[*net.OpError](err)
	require.True(t, ok, "%T is no *net.OpError", err)
}

func TestConnHidesItsSocket(t *testing.T) {
	var c any = &Conn{}
	_, tcp := c.(*net.TCPConn)
	_, sys := c.(syscall.Conn)
	_, inner := c.(interface{ NetConn() net.Conn })
	require.False(t, tcp || sys || inner)
}

func TestConnIsBuffered(t *testing.T) {
	both(t, func(t *testing.T) {
		n := New()
		client, server := pair(t, n)
		write(t, client, strings.Repeat("q", 1000)) // nobody reads yet
		write(t, server, "answer")                  // nor here
		readAll(t, client, "answer")
		readAll(t, server, strings.Repeat("q", 1000))
		require.EqualValues(t, 1000, client.BytesWritten())
		require.EqualValues(t, 6, client.BytesRead())
		require.EqualValues(t, 6, server.BytesWritten())
		require.EqualValues(t, 1000, server.BytesRead())
		require.Same(t, server, client.Peer())
		require.Equal(t, addr, client.RemoteAddr().String())
		require.Equal(t, client.LocalAddr(), server.RemoteAddr())
	})
}

func TestConnWriteWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		n.SetBufferSize(4)
		client, server := pair(t, n)
		done := make(chan error, 1)
		go func() {
			_, err := client.Write([]byte("123456"))
			done <- err
		}()
		synctest.Wait()
		require.EqualValues(t, 4, client.BytesWritten())
		require.Empty(t, done)
		readAll(t, server, "12")
		require.NoError(t, <-done)
		readAll(t, server, "3456")
		require.Zero(t, server.Unread())
	})
}

func TestConnDefaultBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := pair(t, New())
		require.NoError(t, client.SetWriteDeadline(time.Now().Add(time.Second)))
		n, err := client.Write(make([]byte, defaultBufferSize+1))
		require.Equal(t, defaultBufferSize, n)
		isOp(t, err, os.ErrDeadlineExceeded)
	})
}

func TestConnClose(t *testing.T) {
	both(t, func(t *testing.T) {
		client, server := pair(t, New())
		write(t, server, "last words")
		require.NoError(t, server.Close())
		readAll(t, client, "last words")
		require.Equal(t, io.EOF, readErr(client))
		require.NoError(t, writeErr(client), "the first write to a closed peer is lost, not refused")
		isOp(t, writeErr(client), syscall.EPIPE)
		require.Equal(t, io.EOF, readErr(client))

		require.False(t, client.Closed())
		require.NoError(t, client.Close())
		require.True(t, client.Closed())
		isOp(t, client.Close(), net.ErrClosed)
		require.Equal(t, 2, client.CloseCalls())
		isOp(t, readErr(client), net.ErrClosed)
		isOp(t, writeErr(client), net.ErrClosed)
		isOp(t, client.SetDeadline(time.Now()), net.ErrClosed)
	})
}

func TestConnCloseWrite(t *testing.T) {
	both(t, func(t *testing.T) {
		client, server := pair(t, New())
		write(t, server, "bye")
		require.NoError(t, server.CloseWrite())
		readAll(t, client, "bye")
		require.Equal(t, io.EOF, readErr(client))
		write(t, client, "one")
		write(t, client, "two")
		readAll(t, server, "onetwo")
		isOp(t, writeErr(server), syscall.EPIPE)
	})
}

func TestConnReset(t *testing.T) {
	both(t, func(t *testing.T) {
		client, server := pair(t, New())
		write(t, server, "arrived")
		client.Reset()
		isOp(t, writeErr(client), syscall.ECONNRESET)
		readAll(t, client, "arrived")
		isOp(t, readErr(client), syscall.ECONNRESET)
		isOp(t, readErr(client), syscall.ECONNRESET)
		isOp(t, readErr(server), syscall.ECONNRESET)
		isOp(t, writeErr(server), syscall.ECONNRESET)
		require.False(t, client.Closed(), "a reset does not close the descriptor")
		require.NoError(t, client.Close())
	})
}

// TestConnWakesTheWaiting has a reader and a writer that wait, and each event
// that must end their waiting.
func TestConnWakesTheWaiting(t *testing.T) {
	tests := []struct {
		name        string
		do          func(client, server *Conn)
		read, write error
	}{
		{"own close", func(c, _ *Conn) { _ = c.Close() }, net.ErrClosed, net.ErrClosed},
		{"peer's close", func(_, s *Conn) { _ = s.Close() }, io.EOF, syscall.ECONNRESET},
		{"reset", func(c, _ *Conn) { c.Reset() }, syscall.ECONNRESET, syscall.ECONNRESET},
		{
			"deadline in the past", func(c, _ *Conn) { _ = c.SetDeadline(time.Unix(1, 0)) },
			os.ErrDeadlineExceeded, os.ErrDeadlineExceeded,
		},
		{
			"deadline to come", func(c, _ *Conn) { _ = c.SetDeadline(time.Now().Add(time.Minute)) },
			os.ErrDeadlineExceeded, os.ErrDeadlineExceeded,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := New()
				n.SetBufferSize(1)
				client, server := pair(t, n)
				write(t, client, "x") // now it is full
				reads, writes := make(chan error, 1), make(chan error, 1)
				go func() { reads <- readErr(client) }()
				go func() { writes <- writeErr(client) }()
				synctest.Wait()
				require.Empty(t, reads)
				require.Empty(t, writes)
				tt.do(client, server)
				require.ErrorIs(t, <-reads, tt.read)
				isOp(t, <-writes, tt.write)
			})
		})
	}
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t, New())
		start := time.Now()
		require.NoError(t, client.SetReadDeadline(start.Add(3*time.Second)))
		err := readErr(client)
		isOp(t, err, os.ErrDeadlineExceeded)
		require.True(t, err.(net.Error).Timeout())
		require.Equal(t, 3*time.Second, time.Since(start))

		write(t, server, "late")
		isOp(t, readErr(client), os.ErrDeadlineExceeded) // as a socket: bytes or not
		write(t, client, "writes are not concerned")

		require.NoError(t, client.SetReadDeadline(time.Time{}))
		readAll(t, client, "late")
	})
}

func TestDeadlineThatWasMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t, New())
		require.NoError(t, client.SetDeadline(time.Now().Add(time.Second)))
		require.NoError(t, client.SetDeadline(time.Now().Add(time.Minute)))
		time.AfterFunc(30*time.Second, func() { _, _ = server.Write([]byte("x")) })
		readAll(t, client, "x") // 1 s had passed and did not count
		r, w := client.Deadlines()
		require.False(t, r.IsZero() || w.IsZero())
		require.NoError(t, client.SetDeadline(time.Time{}))
		r, w = client.Deadlines()
		require.True(t, r.IsZero() && w.IsZero())
		require.NoError(t, client.Close())
	})
}

func TestBlockClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		client, server := pair(t, n)
		release := client.BlockClose()
		done := make(chan error, 1)
		go func() { done <- client.Close() }()
		synctest.Wait()
		require.Empty(t, done)
		require.False(t, client.Closed())
		require.Equal(t, 1, client.CloseCalls())
		require.Equal(t, 1, n.Open())
		write(t, client, "still open")
		readAll(t, server, "still open")
		release()
		release() // once is enough
		require.NoError(t, <-done)
		require.Equal(t, io.EOF, readErr(server))
		require.Zero(t, n.Open())
	})
}

func TestStallReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t, New())
		client.StallReads(true)
		write(t, server, "x")
		require.NoError(t, server.Close())
		require.NoError(t, client.SetReadDeadline(time.Now().Add(time.Minute)))
		isOp(t, readErr(client), os.ErrDeadlineExceeded)
		write(t, client, "no news of the close")
		client.StallReads(false)
		require.NoError(t, client.SetReadDeadline(time.Time{}))
		readAll(t, client, "x")
		require.Equal(t, io.EOF, readErr(client))
	})
}

func TestStallHidesReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := pair(t, New())
		client.StallReads(true)
		client.Reset()
		require.NoError(t, writeErr(client))
		require.NoError(t, client.SetReadDeadline(time.Now().Add(time.Minute)))
		isOp(t, readErr(client), os.ErrDeadlineExceeded)
		client.StallReads(false)
		isOp(t, writeErr(client), syscall.ECONNRESET)
	})
}

func TestStallWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t, New())
		client.StallWrites(true)
		write(t, client, "x")
		require.NoError(t, server.SetReadDeadline(time.Now().Add(time.Minute)))
		isOp(t, readErr(server), os.ErrDeadlineExceeded)
		write(t, server, "the other way is open")
		readAll(t, client, "the other way is open")
		client.StallWrites(false)
		require.NoError(t, server.SetReadDeadline(time.Time{}))
		readAll(t, server, "x")
	})
}

func TestBlockWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t, New())
		client.BlockWrites(true)
		require.NoError(t, client.SetWriteDeadline(time.Now().Add(time.Second)))
		isOp(t, writeErr(client), os.ErrDeadlineExceeded)
		require.Zero(t, client.BytesWritten())
		require.NoError(t, client.SetWriteDeadline(time.Time{}))
		client.BlockWrites(false)
		write(t, client, "x")
		readAll(t, server, "x")
	})
}

func TestFailWrites(t *testing.T) {
	both(t, func(t *testing.T) {
		client, server := pair(t, New())
		client.FailWrites(3, syscall.ETIMEDOUT)
		n, err := client.Write([]byte("12345"))
		require.Equal(t, 3, n)
		isOp(t, err, syscall.ETIMEDOUT)
		client.FailWrites(0, nil)
		write(t, client, "67")
		readAll(t, server, "12367")
	})
}

func TestDialWithoutListener(t *testing.T) {
	both(t, func(t *testing.T) {
		n := New()
		_, err := n.Dial(t.Context(), "tcp", addr)
		isOp(t, err, syscall.ECONNREFUSED)
		l := n.Listen(addr)
		require.Panics(t, func() { n.Listen(addr) })
		c, err := n.Dial(t.Context(), "tcp", addr)
		require.NoError(t, err)
		require.NoError(t, l.Close())
		isOp(t, readErr(c.(*Conn)), syscall.ECONNRESET) // it was never accepted
		_, err = n.Dial(t.Context(), "tcp", addr)
		isOp(t, err, syscall.ECONNREFUSED)
		_, err = l.Accept()
		isOp(t, err, net.ErrClosed)
		isOp(t, l.Close(), net.ErrClosed)
		require.Equal(t, 3, n.Dials())
		require.NoError(t, n.Listen(addr).Close())
	})
}

func TestDialDelayAndError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		defer func() { require.NoError(t, n.Listen("x:1").Close()) }()
		n.SetDialDelay(addr, time.Second)
		n.SetDialError(addr, syscall.EHOSTUNREACH)
		start := time.Now()
		_, err := n.Dial(t.Context(), "tcp", addr)
		isOp(t, err, syscall.EHOSTUNREACH)
		require.Equal(t, time.Second, time.Since(start))

		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err = n.Dial(ctx, "tcp", addr)
		isOp(t, err, context.DeadlineExceeded)
		require.True(t, err.(net.Error).Timeout())
		require.Equal(t, time.Second+time.Millisecond, time.Since(start))

		n.SetDialError(addr, nil)
		n.SetDialDelay(addr, 0)
		_, _ = pair(t, n)
	})
}

func TestBlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		l := n.Listen(addr)
		n.BlackHole(AnyAddr, true)
		n.BlackHole(AnyAddr, true)
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 3)
		dial := func(ctx context.Context) {
			_, err := n.Dial(ctx, "tcp", addr)
			errs <- err
		}
		go dial(ctx)
		go dial(t.Context())
		synctest.Wait()
		require.Equal(t, 2, n.Dialing())
		time.Sleep(time.Hour)
		require.Empty(t, errs)
		cancel()
		isOp(t, <-errs, context.Canceled)
		require.Equal(t, 1, n.Dialing())
		n.BlackHole(AnyAddr, false)
		require.NoError(t, <-errs)
		require.NoError(t, l.Close())
		require.Zero(t, n.Dialing())
		require.Equal(t, 2, n.MaxDialing())
		require.Equal(t, 2, n.DialsTo(addr))
		require.Zero(t, n.DialsTo("b.test:80"))
	})
}

func TestCounts(t *testing.T) {
	both(t, func(t *testing.T) {
		n := New()
		var seen []*Conn
		n.OnDial(func(c *Conn) { seen = append(seen, c) })
		l := n.Serve(t, addr, func(c *Conn) { _, _ = io.Copy(c, c) })
		for range 3 {
			_, err := n.Dial(t.Context(), "tcp", addr)
			require.NoError(t, err)
		}
		require.Equal(t, n.Conns(), seen)
		for i, c := range n.Conns() {
			require.Equal(t, i, c.Index())
			write(t, c, "echo")
			readAll(t, c, "echo")
		}
		require.Equal(t, 3, l.Accepted())
		require.NoError(t, n.Conns()[1].Close())
		require.Equal(t, []int{2, 3, 1}, []int{n.Open(), n.MaxOpen(), n.Closed()})
		require.NoError(t, n.Conns()[0].Peer().Close()) // a server end does not count
		require.Equal(t, 2, n.Open())
	})
}

// TestServeEnds has functions that only wait for their connection: the end of
// the listener must be theirs.
func TestServeEnds(t *testing.T) {
	both(t, func(t *testing.T) {
		n := New()
		l := n.Listen(addr)
		var ended sync.WaitGroup
		ended.Add(2)
		served := make(chan struct{})
		go func() {
			defer close(served)
			l.Serve(func(c *Conn) {
				defer ended.Done()
				write(t, c, "hello")
				_, _ = io.Copy(io.Discard, c)
			})
		}()
		for range 2 {
			c, err := n.Dial(t.Context(), "tcp", addr)
			require.NoError(t, err)
			readAll(t, c.(*Conn), "hello")
		}
		require.NoError(t, l.Close())
		ended.Wait()
		<-served
		for _, c := range n.Conns() {
			require.Equal(t, io.EOF, readErr(c))
		}
	})
}

// TestHTTP serves net/http's server to net/http's transport, and lets the idle
// time of 90 s pass.
func TestHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		srv := n.Handle(t, addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				<-r.Context().Done()
				return
			}
			body, _ := io.ReadAll(r.Body)
			_, _ = w.Write(body)
		}))
		require.NotNil(t, srv)
		tr := &http.Transport{DialContext: n.Dial, IdleConnTimeout: 90 * time.Second}
		defer tr.CloseIdleConnections()
		client := &http.Client{Transport: tr}
		post := func(size int) {
			body := bytes.Repeat([]byte("b"), size)
			resp, err := client.Post("http://"+addr+"/", "text/plain", bytes.NewReader(body))
			require.NoError(t, err)
			got, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, len(body), len(got))
		}
		post(10)
		post(3 << 20) // more than the buffers hold, both ways
		time.Sleep(89 * time.Second)
		post(10)
		require.Equal(t, 1, n.Dials())
		time.Sleep(91 * time.Second)
		require.Zero(t, n.Open())
		post(10)
		require.Equal(t, 2, n.Dials())

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/slow", nil)
		require.NoError(t, err)
		_, err = client.Do(req)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// TestHandleEndsWhileServerSleeps refuses a body, so that the server closes
// with its half second of delay while the test ends.
func TestHandleEndsWhileServerSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New()
		n.Handle(t, addr, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		}))
		c, err := n.Dial(t.Context(), "tcp", addr)
		require.NoError(t, err)
		write(t, c.(*Conn), "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\nx")
		readAll(t, c.(*Conn), "HTTP/1.1 413 ")
	})
}

// TestConnUnderLoad moves bytes both ways with deadlines that move all the
// time: for the race detector.
func TestConnUnderLoad(t *testing.T) {
	n := New()
	n.SetBufferSize(64)
	n.Serve(t, addr, func(c *Conn) { _, _ = io.Copy(c, c) })
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			c, err := n.Dial(t.Context(), "tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			want := bytes.Repeat([]byte{byte(i)}, 10_000)
			var writer sync.WaitGroup
			writer.Go(func() {
				for rest := want; len(rest) > 0; rest = rest[100:] {
					_ = c.SetDeadline(time.Now().Add(time.Hour))
					_, _ = c.Write(rest[:100])
				}
			})
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(want, got) {
				t.Errorf("echo: %v, equal: %v", err, bytes.Equal(want, got))
			}
			writer.Wait()
			_ = c.Close()
		})
	}
	all.Wait()
	if n.Open() != 0 || n.MaxOpen() == 0 {
		t.Errorf("open %d, at most %d", n.Open(), n.MaxOpen())
	}
}

// TestDeadlineThatWasMovedTooLate moves a deadline while its timer, which has
// fired, waits for the lock.
func TestDeadlineThatWasMovedTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := pair(t, New())
		require.NoError(t, client.SetReadDeadline(time.Now().Add(time.Second)))
		client.link.mu.Lock()
		time.Sleep(time.Second)
		client.readLimit.set(time.Time{}, client.link)
		client.link.mu.Unlock()
		synctest.Wait()
		require.False(t, client.readLimit.expired)
	})
}
