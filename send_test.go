package keepalive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// errWrappedEOF is what tells of the end of another stream than the one read.
var errWrappedEOF = fmt.Errorf("the source broke: %w", io.EOF)

// brokenReader ends with errWrappedEOF.
type brokenReader struct{ io.Reader }

func (b brokenReader) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil {
		err = errWrappedEOF
	}
	return n, err
}

// TestWrappedEOFIsNoEnd: a body that breaks off is never passed off as a whole
// one, neither to the server nor to the caller.
func TestWrappedEOFIsNoEnd(t *testing.T) {
	for _, method := range []string{http.MethodPost, http.MethodGet} {
		for _, text := range []string{"half of it", ""} {
			t.Run(fmt.Sprintf("request %s %q", method, text), func(t *testing.T) {
				bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
					reply(n, t, "a:80", connNumber)
					req, err := http.NewRequestWithContext(t.Context(), method, "http://a/", brokenReader{strings.NewReader(text)})
					require.NoError(t, err)
					resp, err := tr.RoundTrip(req)
					if err == nil {
						_ = resp.Body.Close()
					}
					require.ErrorIs(t, err, ErrRequestBody)
					require.ErrorIs(t, err, errWrappedEOF)
				})
			})
		}
	}
	t.Run("response", func(t *testing.T) {
		n := netfake.New()
		n.Serve(t, "a:80", func(c *netfake.Conn) {
			_, _ = c.Read(make([]byte, 1000))
			_, _ = io.WriteString(c, strings.TrimSuffix(ok("half of it"), "of it"))
		})
		tr, err := New(WithDialContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := n.Dial(ctx, network, addr)
			return brokenConn{c}, err
		}))
		require.NoError(t, err)
		defer tr.Close()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a/", nil)
		require.NoError(t, err)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		require.ErrorIs(t, err, errWrappedEOF)
	})
}

// brokenConn is a connection that ends with errWrappedEOF.
type brokenConn struct{ net.Conn }

func (c brokenConn) Read(p []byte) (int, error) { return brokenReader{c.Conn}.Read(p) }

// slowWriter takes its time to write what contains slow, and has no write
// deadlines.
type slowWriter struct {
	net.Conn
	slow string
	d    time.Duration
}

func (c *slowWriter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.slow) {
		time.Sleep(c.d)
	}
	return c.Conn.Write(p)
}

func (c *slowWriter) SetWriteDeadline(time.Time) error { return nil }
func (c *slowWriter) SetDeadline(at time.Time) error   { return c.SetReadDeadline(at) }

// TestStoppedSenderEndsConnection: the last write of a body may succeed just
// when it is stopped. The connection takes no more writes then, so the next
// request must not get it.
func TestStoppedSenderEndsConnection(t *testing.T) {
	var net0 *netfake.Net
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := net0.Dial(ctx, network, addr)
		return &slowWriter{c, "the body", sentGrace + stuckGrace/2}, err
	}
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		net0 = n
		n.Serve(t, "a:80", func(c *netfake.Conn) { // answers a head without its body
			br := bufio.NewReader(c)
			for {
				line, err := br.ReadString('\n')
				if err != nil {
					return
				}
				if line == "\r\n" {
					_, _ = io.WriteString(c, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
				}
			}
		})
		body := "the body\n"
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://a/", io.MultiReader(strings.NewReader(body)))
		require.NoError(t, err)
		req.ContentLength = int64(len(body))
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		_ = resp.Body.Close()
		_, err = fetch(t.Context(), tr, http.MethodGet, "http://a/")
		require.NoError(t, err)
		require.Equal(t, uint64(1), tr.Stats().Closed[CloseRequestUnsent])
	}, WithDialContext(dial))
}

// TestHalfHeadEndsConnection: what is left of a request whose writing failed
// must not become the beginning of the next one.
func TestHalfHeadEndsConnection(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		n.Serve(t, "a:80", func(c *netfake.Conn) { // answers whatever it hears
			buf := make([]byte, 4096)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
				_, _ = io.WriteString(c, ok("x"))
			}
		})
		mustGet(t, tr, "http://a/")
		n.Conns()[0].FailWrites(5, errors.New("busy"))
		require.Equal(t, "x", mustGet(t, tr, "http://a/"))
		require.Zero(t, tr.Stats().Idle)
		require.Equal(t, uint64(1), tr.Stats().Closed[CloseRequestUnsent])
	})
}

// hungBody is a body whose Read takes a while, and whose Close does not end it.
type hungBody struct{ d time.Duration }

func (b hungBody) Read([]byte) (int, error) {
	time.Sleep(b.d)
	return 0, io.EOF
}

func (hungBody) Close() error { return nil }

// TestHungSenderLeavesTheCallAlone: the sender of a first attempt may outlive
// it, and has no business with the second one (seen by the race detector).
func TestHungSenderLeavesTheCallAlone(t *testing.T) {
	for range 20 { // the race detector does not always see it
		bubble(t, hungSender)
	}
}

func hungSender(t *testing.T, n *netfake.Net, tr *Transport) {
	n.Serve(t, "a:80", func(c *netfake.Conn) {
		br := bufio.NewReader(c)
		for i := 0; ; i++ {
			_, err := http.ReadRequest(br)
			switch {
			case err != nil, c.Index() == 0 && i == 1:
				return
			case c.Index() == 0:
				_, _ = io.WriteString(c, ok("x"))
			default:
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
				_, _ = io.Copy(io.Discard, c)
				return
			}
		}
	})
	mustGet(t, tr, "http://a/")
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) {},
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://a/", hungBody{3 * time.Second})
	require.NoError(t, err)
	req.ContentLength = 4
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("body")), nil }
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	time.Sleep(10 * time.Second)
	require.Equal(t, uint64(1), tr.Stats().Retries)
}
