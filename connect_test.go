package keepalive_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// tunnelServer answers CONNECT with the given head and then says everything
// twice, until its client ends its side.
func tunnelServer(t *testing.T, head string, opts ...faultserver.Option) *faultserver.Server {
	t.Helper()
	return faultserver.New(t, func(x *faultserver.Exchange) {
		if x.Request.Method != http.MethodConnect {
			x.Reply(http.StatusOK, x.Request.Method)
			return
		}
		nc, br := x.Take()
		defer nc.Close()
		_, _ = io.WriteString(nc, head)
		buf := make([]byte, 100)
		for {
			n, err := br.Read(buf)
			if err != nil {
				_, _ = io.WriteString(nc, "bye")
				return
			}
			_, _ = nc.Write(append(buf[:n:n], buf[:n]...))
		}
	}, opts...)
}

func connectRequest(ctx context.Context, t *testing.T, addr string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodConnect, "http://"+addr, body)
	require.NoError(t, err)
	req.URL.Opaque = "target.example:443"
	return req
}

// TestConnectTunnel: a 2xx answer to CONNECT gives the connection as its body,
// with what had come behind the head, whatever the head says of a body (RFC
// 9110 section 9.3.6).
func TestConnectTunnel(t *testing.T) {
	for _, head := range []string{
		"HTTP/1.1 200 Connection established\r\n\r\nahead",
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nahead",
		"HTTP/1.1 204 x\r\nTransfer-Encoding: chunked\r\n\r\nahead",
	} {
		s := tunnelServer(t, head)
		tr := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		resp, err := tr.RoundTrip(connectRequest(ctx, t, s.Addr, nil))
		require.NoError(t, err)
		require.Equal(t, 2, resp.StatusCode/100)
		require.EqualValues(t, -1, resp.ContentLength)
		rw, ok := resp.Body.(io.ReadWriteCloser)
		require.True(t, ok)
		buf := make([]byte, 5)
		_, err = io.ReadFull(rw, buf)
		require.NoError(t, err)
		require.Equal(t, "ahead", string(buf))
		cancel() // the tunnel is the user's
		require.Equal(t, 1, tr.Stats().Detached)
		require.NoError(t, tr.Close())

		_, err = io.WriteString(rw, "ab")
		require.NoError(t, err)
		_, err = io.ReadFull(rw, buf[:4])
		require.NoError(t, err)
		require.Equal(t, "abab", string(buf[:4]))
		cw, ok := resp.Body.(interface{ CloseWrite() error })
		require.True(t, ok)
		require.NoError(t, cw.CloseWrite())
		rest, err := io.ReadAll(rw)
		require.NoError(t, err)
		require.Equal(t, "bye", string(rest))
		require.NoError(t, rw.Close())
		st := tr.Stats()
		require.Equal(t, uint64(1), st.Closed[keepalive.CloseDetached])
		require.Zero(t, st.Open)
	}
}

// TestConnectBody: a body of unknown length is what goes through the tunnel, as
// in net/http, but not before there is one.
func TestConnectBody(t *testing.T) {
	s := tunnelServer(t, "HTTP/1.1 200 OK\r\n\r\n")
	tr := open(t)
	pr, pw := io.Pipe()
	resp, err := tr.RoundTrip(connectRequest(t.Context(), t, s.Addr, pr))
	require.NoError(t, err)
	_, err = io.WriteString(pw, "xy")
	require.NoError(t, err)
	buf := make([]byte, 4)
	_, err = io.ReadFull(resp.Body, buf)
	require.NoError(t, err)
	require.Equal(t, "xyxy", string(buf))
	require.NoError(t, resp.Body.Close())
	_, err = io.WriteString(pw, "z")
	require.ErrorIs(t, err, io.ErrClosedPipe, "the body was closed with the tunnel")
}

// TestConnectRefused: without a tunnel it is an ordinary answer, and the
// connection is kept.
func TestConnectRefused(t *testing.T) {
	s := faultserver.New(t, func(x *faultserver.Exchange) {
		if x.Request.Method == http.MethodConnect {
			x.Reply(http.StatusForbidden, "no way")
			return
		}
		x.Reply(http.StatusOK, "ok")
	})
	tr := open(t)
	pr, pw := io.Pipe()
	resp, err := tr.RoundTrip(connectRequest(t.Context(), t, s.Addr, pr))
	require.NoError(t, err)
	require.Equal(t, http.StatusForbidden, resp.StatusCode)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "no way", string(text))
	_, err = io.WriteString(pw, "z")
	require.ErrorIs(t, err, io.ErrClosedPipe, "the body was closed unread")
	got, err := tr.Client().Post(s.URL, "text/plain", strings.NewReader("x"))
	require.NoError(t, err)
	require.NoError(t, got.Body.Close())
	require.Equal(t, 1, s.Accepted())
}

// TestUpgradeBeforeTheBody: a connection on which the request is still to be
// sent cannot be the user's: its rest would come between (RFC 9110 section 7.8).
func TestUpgradeBeforeTheBody(t *testing.T) {
	s := faultserver.New(t, func(x *faultserver.Exchange) {
		nc, _ := x.Take()
		defer nc.Close()
		_, _ = io.WriteString(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		_, _ = io.Copy(io.Discard, nc)
	})
	tr := open(t)
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, pr)
	require.NoError(t, err)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "x")
	_, err = tr.RoundTrip(req)
	require.ErrorContains(t, err, "101 Switching Protocols before the request was sent")
	_, err = io.WriteString(pw, "z")
	require.ErrorIs(t, err, io.ErrClosedPipe)
	require.Equal(t, uint64(1), tr.Stats().Closed[keepalive.CloseRequestUnsent])
}
