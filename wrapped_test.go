package keepalive

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// wrapping is a Transport on n whose connections are what wrap makes of them.
func wrapping(t *testing.T, n *netfake.Net, wrap func(net.Conn) net.Conn, opts ...Option) *Transport {
	t.Helper()
	tr, err := New(append(opts, WithDialContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := n.Dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return wrap(c), nil
	}))...)
	require.NoError(t, err)
	return tr
}

// post makes a POST, which is not repeated.
func post(t *testing.T, tr *Transport, url string, body []byte) error {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodPost, url, bytes.NewReader(body))
	require.NoError(t, err)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return err
}

// TestDeadlineOfADialFunction: one that it leaves behind is for its own work.
func TestDeadlineOfADialFunction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := netfake.New()
		reply(n, t, "a:80", connNumber)
		tr := wrapping(t, n, func(c net.Conn) net.Conn {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			return c
		})
		defer tr.Close()
		require.NoError(t, post(t, tr, "http://a/", nil))
		time.Sleep(2 * time.Second)
		require.NoError(t, post(t, tr, "http://a/", nil))
		require.EqualValues(t, 1, tr.Stats().Opened)
	})
}

// impatientConn gives each Read a deadline of its own.
type impatientConn struct {
	net.Conn
	patience time.Duration
}

func (c impatientConn) Read(p []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(c.patience))
	return c.Conn.Read(p)
}

// TestReadThatEndsByItself: nobody listens to an idle connection whose parked
// read the wrapper has ended, so it is not used again.
func TestReadThatEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := netfake.New()
		n.Serve(t, "a:80", func(c *netfake.Conn) {
			for range 2 {
				if _, err := c.Read(make([]byte, 1000)); err != nil {
					return
				}
				_, _ = io.WriteString(c, ok("fine"))
				_ = c.SetReadDeadline(time.Now().Add(60 * time.Millisecond))
			}
		})
		tr := wrapping(t, n, func(c net.Conn) net.Conn { return impatientConn{c, 30 * time.Millisecond} })
		defer tr.Close()
		for range 3 {
			require.NoError(t, post(t, tr, "http://a/", nil))
			time.Sleep(60 * time.Millisecond)
		}
		require.EqualValues(t, 3, tr.Stats().Opened)
	})
}

// deafConn shows its socket, and does nothing with deadlines.
type deafConn struct{ net.Conn }

func (c deafConn) NetConn() net.Conn              { return c.Conn }
func (deafConn) SetDeadline(time.Time) error      { return nil }
func (deafConn) SetReadDeadline(time.Time) error  { return nil }
func (deafConn) SetWriteDeadline(time.Time) error { return nil }

// TestWrapperThatIgnoresDeadlines: the look for a stale connection ends all the same.
func TestWrapperThatIgnoresDeadlines(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer s.Close()
	var d net.Dialer
	tr, err := New(WithDialContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		return deafConn{c}, err
	}))
	require.NoError(t, err)
	defer tr.Close()
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
		require.NoError(t, err)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		_ = resp.Body.Close()
		cancel()
	}
}

// slowConn takes its time to say that it has written.
type slowConn struct {
	net.Conn
	time time.Duration
}

func (c slowConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	time.Sleep(c.time)
	return n, err
}

// TestWriteThatReturnsLate: what it has written may all have arrived.
func TestWriteThatReturnsLate(t *testing.T) {
	for _, late := range []time.Duration{300 * time.Millisecond, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			n := netfake.New()
			ran := 0
			reply(n, t, "a:80", func(_, _ int, r *http.Request) string {
				if r.Method == http.MethodPost {
					ran++
					return ""
				}
				return ok("fine")
			})
			tr := wrapping(t, n, func(c net.Conn) net.Conn { return slowConn{c, late} })
			defer tr.Close()
			for range 3 {
				require.Equal(t, "fine", mustGet(t, tr, "http://a/"))
			}
			if late < writeGrace {
				require.EqualValues(t, 1, tr.Stats().Opened, "kept")
			}
			require.Error(t, post(t, tr, "http://a/", []byte("text")))
			require.Equal(t, 1, ran, "not repeated")
		})
	}
}

// countedConn counts how often it is closed.
type countedConn struct {
	net.Conn
	closes *atomic.Int32
}

func (c countedConn) Close() error {
	c.closes.Add(1)
	return c.Conn.Close()
}

// TestClosesOnce: whoever gives back something in Close gives it back once.
func TestClosesOnce(t *testing.T) {
	for name, run := range map[string]func(t *testing.T, n *netfake.Net, tr *Transport){
		"handshake timeout": func(t *testing.T, n *netfake.Net, tr *Transport) {
			n.Serve(t, "a:443", func(c *netfake.Conn) { _, _ = io.Copy(io.Discard, c) })
			_, err := fetch(t.Context(), tr, http.MethodGet, "https://a/")
			require.ErrorIs(t, err, ErrTLSHandshakeTimeout)
		},
		"closed in use": func(t *testing.T, n *netfake.Net, tr *Transport) {
			reply(n, t, "a:80", func(int, int, *http.Request) string { return halfBody })
			resp := open(t, tr, nil)
			require.NoError(t, tr.Close())
			require.NoError(t, resp.Body.Close())
		},
		"canceled": func(t *testing.T, n *netfake.Net, tr *Transport) {
			reply(n, t, "a:80", func(int, int, *http.Request) string { return halfBody })
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			_, err := fetch(ctx, tr, http.MethodGet, "http://a/")
			require.ErrorIs(t, err, context.Canceled)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := netfake.New()
				closes := new(atomic.Int32)
				tr := wrapping(t, n, func(c net.Conn) net.Conn { return countedConn{c, closes} })
				run(t, n, tr)
				require.NoError(t, tr.Close())
				require.EqualValues(t, 1, closes.Load())
			})
		})
	}
}

// unboundConn has deadlines that fail with err, or do nothing.
type unboundConn struct {
	net.Conn
	err error
}

func (c unboundConn) SetDeadline(time.Time) error      { return c.err }
func (c unboundConn) SetReadDeadline(time.Time) error  { return c.err }
func (c unboundConn) SetWriteDeadline(time.Time) error { return c.err }

// TestLimitsHoldWithoutDeadlines: on connections that have none, do nothing with
// them, or set their own. In real time: a bubble's stands still while a timer waits
// for a Read to let go of its lock.
func TestLimitsHoldWithoutDeadlines(t *testing.T) {
	t.Parallel()
	const limit, part = 100 * time.Millisecond, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin"
	read := func(t *testing.T, tr *Transport) error {
		t.Helper()
		_, err := fetch(t.Context(), tr, http.MethodGet, "http://a/")
		return err
	}
	closed := func(t *testing.T, tr *Transport) error {
		t.Helper()
		return open(t, tr, nil).Body.Close()
	}
	expect := func(t *testing.T, tr *Transport) error {
		t.Helper()
		ctx := ContextWithOptions(t.Context(), ExpectContinueTimeout(limit/2))
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://a/", strings.NewReader("body"))
		require.NoError(t, err)
		req.Header.Set("Expect", "100-continue")
		_, err = tr.RoundTrip(req)
		return err
	}
	for kind, wrap := range map[string]func(net.Conn) net.Conn{
		"none":    func(c net.Conn) net.Conn { return unboundConn{c, errOfSource} },
		"ignored": func(c net.Conn) net.Conn { return unboundConn{c, nil} },
		"own":     func(c net.Conn) net.Conn { return impatientConn{c, time.Hour} },
	} {
		for name, row := range map[string]struct {
			opt    Option
			answer string
			run    func(t *testing.T, tr *Transport) error
			want   error
		}{
			"head":                 {WithResponseHeaderTimeout(limit), "", read, ErrResponseHeaderTimeout},
			"request, in the head": {WithRequestTimeout(limit), "", read, ErrRequestTimeout},
			"request, in the body": {WithRequestTimeout(limit), part, read, ErrRequestTimeout},
			"request, Expect":      {WithRequestTimeout(limit), "", expect, ErrRequestTimeout},
			"body":                 {WithBodyReadTimeout(limit), part, read, ErrBodyReadTimeout},
			"rest of a body":       {WithDrainLimit(1000, limit), part, closed, nil},
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				n := netfake.New()
				n.Serve(t, "a:80", func(c *netfake.Conn) {
					_, _ = io.ReadFull(c, make([]byte, 1))
					_, _ = io.WriteString(c, row.answer)
					_, _ = io.Copy(io.Discard, c)
				})
				tr := wrapping(t, n, wrap, row.opt)
				require.ErrorIs(t, row.run(t, tr), row.want)
				require.Eventually(t, func() bool { return tr.Stats().Open == 0 }, 10*time.Second, time.Millisecond)
				require.NoError(t, tr.Close())
			})
		}
	}
}

// TestExpectWithoutDeadlines: nobody could end the wait for 100 Continue.
func TestExpectWithoutDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := netfake.New()
		n.Serve(t, "a:80", func(c *netfake.Conn) {
			req, err := http.ReadRequest(bufio.NewReader(c))
			if err == nil {
				b, _ := io.ReadAll(req.Body) // without a word
				_, _ = io.WriteString(c, ok(string(b)))
			}
		})
		tr := wrapping(t, n, func(c net.Conn) net.Conn { return unboundConn{c, errOfSource} })
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/", strings.NewReader("body"))
		require.NoError(t, err)
		req.Header.Set("Expect", "100-continue")
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "body", string(b))
		require.NoError(t, tr.Close())
	})
}

// TestBodyReadTimeoutLeavesTheReaderTime: what it spends elsewhere does not count,
// whatever the connection does with deadlines.
func TestBodyReadTimeoutLeavesTheReaderTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := netfake.New()
		reply(n, t, "a:80", func(int, int, *http.Request) string { return ok(string(make([]byte, 100_000))) })
		tr := wrapping(t, n, func(c net.Conn) net.Conn { return unboundConn{c, nil} }, WithBodyReadTimeout(time.Second))
		resp := open(t, tr, nil)
		for range 3 {
			_, err := io.ReadFull(resp.Body, make([]byte, 10_000))
			require.NoError(t, err)
			time.Sleep(time.Minute)
		}
		_, err := io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		require.NoError(t, tr.Close())
	})
}

// TestWriteTimeoutWithoutDeadlines: it ends a write that nobody takes, and no other.
func TestWriteTimeoutWithoutDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := make(chan struct{})
		defer close(over)
		tr, err := New(WithWriteTimeout(time.Second), WithDialContext(func(context.Context, string, string) (net.Conn, error) {
			c, s := net.Pipe()
			go func() {
				defer s.Close()
				_, _ = io.ReadFull(s, make([]byte, 20_000))
				<-over
			}()
			return unboundConn{c, errOfSource}, nil
		}))
		require.NoError(t, err)
		err = post(t, tr, "http://a/", make([]byte, 100_000))
		require.ErrorIs(t, err, ErrWriteTimeout)
		require.NoError(t, tr.Close())
	})
}

// tardyConn ignores deadlines, and its Close takes its time: also that of a second
// caller.
type tardyConn struct {
	net.Conn
	begun  *atomic.Bool
	closed chan struct{}
	open   *atomic.Int32
}

func (tardyConn) SetDeadline(time.Time) error      { return nil }
func (tardyConn) SetReadDeadline(time.Time) error  { return nil }
func (tardyConn) SetWriteDeadline(time.Time) error { return nil }

func (c tardyConn) Close() error {
	if c.begun.Swap(true) {
		<-c.closed
		return nil
	}
	err := c.Conn.Close()
	time.Sleep(time.Second)
	c.open.Add(-1)
	close(c.closed)
	return err
}

// TestSlotOfATardyConn: it is free when the connection is closed, whoever began that.
func TestSlotOfATardyConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := netfake.New()
		reply(n, t, "a:80", func(conn, _ int, _ *http.Request) string {
			if conn == 0 {
				time.Sleep(time.Minute)
			}
			return ok("")
		})
		open := new(atomic.Int32)
		tr := wrapping(t, n, func(c net.Conn) net.Conn {
			require.EqualValues(t, 1, open.Add(1), "at a time")
			return tardyConn{c, new(atomic.Bool), make(chan struct{}), open}
		}, WithMaxConnsPerHost(1))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := fetch(ctx, tr, http.MethodGet, "http://a/")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		mustGet(t, tr, "http://a/")
		require.NoError(t, tr.Close())
		require.Zero(t, open.Load(), "Close has returned")
		time.Sleep(time.Minute)
	})
}

// lingeringConn shows its socket, and takes its time to set a deadline for both ways.
type lingeringConn struct{ net.Conn }

func (c lingeringConn) NetConn() net.Conn { return c.Conn }

func (c lingeringConn) SetDeadline(t time.Time) error {
	if t.IsZero() {
		timer := time.NewTimer(2 * lateGrace)
		defer timer.Stop()
		<-timer.C
	}
	return c.Conn.SetDeadline(t)
}

// TestLateTimerAndTheNextRequest: what enforces a limit may still look at an
// exchange that is over. For the race detector.
func TestLateTimerAndTheNextRequest(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "0")
	}))
	defer s.Close()
	var d net.Dialer
	tr, err := New(WithResponseHeaderTimeout(20*time.Millisecond), WithDialContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		return lingeringConn{c}, err
	}))
	require.NoError(t, err)
	defer tr.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 5 {
		_, _ = fetch(ctx, tr, http.MethodGet, s.URL) // it may come too late
	}
}
