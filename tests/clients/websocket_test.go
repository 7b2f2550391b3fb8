package clients_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
)

// websocketServer echoes every message; at "/close" it closes at once, at
// "/hold" it tells hold when the client reads and when its connection ends, at
// "/refuse" it has none.
func websocketServer(hold watch) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/refuse", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no", http.StatusForbidden)
	})
	mux.HandleFunc("/close", func(w http.ResponseWriter, r *http.Request) {
		if c, err := websocket.Accept(w, r, nil); err == nil {
			_ = c.Close(websocket.StatusPolicyViolation, "not today")
		}
	})
	mux.HandleFunc("/hold", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		ctx := c.CloseRead(context.WithoutCancel(r.Context()))
		if c.Ping(ctx) == nil { // answered by a Read
			hold.begun <- nil
		}
		<-ctx.Done()
		hold.ended <- ctx.Err()
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		c.SetReadLimit(-1)
		for {
			kind, p, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, p) != nil {
				return
			}
		}
	})
	return mux
}

// dial returns a WebSocket over rt. The context of the handshake ends with it.
func dial(t *testing.T, rt http.RoundTripper, url string, o *websocket.DialOptions) *websocket.Conn {
	t.Helper()
	if o == nil {
		o = &websocket.DialOptions{}
	}
	o.HTTPClient = &http.Client{Transport: rt}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, resp, err := websocket.Dial(ctx, url, o)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	c.SetReadLimit(-1)
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

func echo(t *testing.T, c *websocket.Conn, kind websocket.MessageType, p []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	wrote := make(chan error, 1)
	go func() { wrote <- c.Write(ctx, kind, p) }()
	gotKind, got, err := c.Read(ctx)
	require.NoError(t, err)
	require.NoError(t, receive(t, wrote, "the end of Write"))
	require.Equal(t, kind, gotKind)
	require.True(t, string(p) == string(got), "%d bytes came back of %d", len(got), len(p))
}

func detached(s *subject) int {
	if s.ours == nil {
		return 1
	}
	return s.ours.Stats().Detached
}

func TestWebSocketEcho(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			both(t, 1, func(t *testing.T, s *subject) {
				srv := s.serve(t, scheme, websocketServer(newWatch()))
				c := dial(t, s, srv.URL, &websocket.DialOptions{CompressionMode: websocket.CompressionContextTakeover})
				require.Equal(t, 1, detached(s))
				echo(t, c, websocket.MessageText, []byte("hello"))
				echo(t, c, websocket.MessageBinary, noise(300))
				echo(t, c, websocket.MessageText, []byte(strings.Repeat("squeeze me ", 1000)))
				echo(t, c, websocket.MessageBinary, noise(4<<20))
				require.NoError(t, c.Close(websocket.StatusNormalClosure, "bye"))
			})
		})
	}
}

func TestWebSocketPing(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		c := dial(t, s, s.serve(t, "http", websocketServer(newWatch())).URL, nil)
		c.CloseRead(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for range 3 {
			require.NoError(t, c.Ping(ctx))
		}
		require.NoError(t, c.Close(websocket.StatusNormalClosure, ""))
	})
}

func TestWebSocketServerCloses(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		c := dial(t, s, s.serve(t, "http", websocketServer(newWatch())).URL+"/close", nil)
		_, _, err := c.Read(t.Context())
		require.Equal(t, websocket.StatusPolicyViolation, websocket.CloseStatus(err), "%v", err)
	})
}

func TestWebSocketCancel(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		hold := newWatch()
		c := dial(t, s, s.serve(t, "http", websocketServer(hold)).URL+"/hold", nil)
		ctx, cancel := context.WithCancel(t.Context())
		read := make(chan error, 1)
		go func() {
			_, _, err := c.Read(ctx)
			read <- err
		}()
		receive(t, hold.begun, "the answer to a ping")
		cancel()
		// Read says net.ErrClosed when the cancellation comes between two frames.
		err := receive(t, read, "the end of Read")
		require.True(t, errors.Is(err, context.Canceled) || errors.Is(err, net.ErrClosed), "%v", err)
		require.Error(t, receive(t, hold.ended, "the end of the server's connection"))
	})
}

// TestWebSocketRefused: the connection of a refused handshake is an ordinary
// one.
func TestWebSocketRefused(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		srv := s.serve(t, "http", websocketServer(newWatch()))
		for range 2 {
			_, resp, err := websocket.Dial(t.Context(), srv.URL+"/refuse", &websocket.DialOptions{HTTPClient: s.client})
			require.Error(t, err)
			require.Equal(t, http.StatusForbidden, resp.StatusCode)
			require.Equal(t, "no\n", text(t, resp, nil))
		}
		c := dial(t, s, srv.URL, nil)
		echo(t, c, websocket.MessageText, []byte("after a refusal"))
		require.NoError(t, c.Close(websocket.StatusNormalClosure, ""))
	})
}

func TestWebSocketThroughReverseProxy(t *testing.T) {
	t.Parallel()
	both(t, 2, func(t *testing.T, s *subject) {
		hold := newWatch()
		front := s.front(t, websocketServer(hold))
		c := dial(t, front.Client().Transport, front.URL, nil)
		echo(t, c, websocket.MessageText, []byte("through"))
		echo(t, c, websocket.MessageBinary, noise(1<<20))
		require.NoError(t, c.Close(websocket.StatusNormalClosure, "bye"))
		s.quiet(t)

		c = dial(t, front.Client().Transport, front.URL+"/hold", nil)
		require.NoError(t, c.CloseNow())
		require.Error(t, receive(t, hold.ended, "the end of the server's connection"))
	})
}

// TestWebSocketOutlivesClose: a connection that was handed over is the user's;
// the transport's Close leaves it alone.
func TestWebSocketOutlivesClose(t *testing.T) {
	t.Parallel()
	both(t, -1, func(t *testing.T, s *subject) {
		c := dial(t, s, s.serve(t, "http", websocketServer(newWatch())).URL, nil)
		if s.ours != nil {
			require.NoError(t, s.ours.Close())
		} else {
			s.CloseIdleConnections()
		}
		echo(t, c, websocket.MessageText, []byte("still here"))
		require.NoError(t, c.Close(websocket.StatusNormalClosure, ""))
	})
}

// TestWebSocketNetConn: deadlines of the user's work on the handed-over
// connection.
func TestWebSocketNetConn(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		c := dial(t, s, s.serve(t, "http", websocketServer(newWatch())).URL, nil)
		nc := websocket.NetConn(t.Context(), c, websocket.MessageBinary)
		go func() { _, _ = nc.Write([]byte("0123456789")) }()
		got := make([]byte, 10)
		_, err := io.ReadFull(nc, got)
		require.NoError(t, err)
		require.Equal(t, "0123456789", string(got))
		require.NoError(t, nc.SetReadDeadline(time.Now().Add(-time.Second)))
		_, err = nc.Read(got)
		require.Error(t, err)
	})
}
