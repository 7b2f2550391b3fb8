package keepalive

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// wrapping is a Transport on n whose connections are what wrap makes of them.
func wrapping(t *testing.T, n *netfake.Net, wrap func(net.Conn) net.Conn) *Transport {
	t.Helper()
	tr, err := New(WithDialContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := n.Dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return wrap(c), nil
	}))
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
