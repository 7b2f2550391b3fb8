package keepalive_test

import (
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// ntlmServer authenticates connections: the first message is challenged, the
// third makes the connection that user's. It answers with the user's name.
func ntlmServer(t *testing.T) *faultserver.Server {
	t.Helper()
	type state struct {
		challenged bool
		user       string
	}
	var mu sync.Mutex
	conns := map[net.Conn]*state{}
	return faultserver.New(t, func(x *faultserver.Exchange) {
		mu.Lock()
		defer mu.Unlock()
		c := conns[x.Conn]
		if c == nil {
			c = &state{}
			conns[x.Conn] = c
		}
		switch auth := x.Request.Header.Get("Authorization"); {
		case auth == "NTLM TlRMTVNTUAABxx":
			c.challenged = true
			x.Reply(http.StatusUnauthorized, "", "WWW-Authenticate: NTLM TlRMTVNTUAACxx")
		case auth != "" && c.challenged:
			c.user, c.challenged = auth[len("NTLM TlRMTVNTUAAD"):], false
			x.Reply(http.StatusOK, c.user)
		case auth != "" || c.user == "":
			x.Reply(http.StatusUnauthorized, "", "WWW-Authenticate: NTLM")
		default:
			x.Reply(http.StatusOK, c.user)
		}
	})
}

// TestConnectionIdentity: a connection that one user has authenticated is
// nobody else's, and a handshake stays on its connection.
func TestConnectionIdentity(t *testing.T) {
	s := ntlmServer(t)
	tr := open(t)
	ask := func(auth, user string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
		require.NoError(t, err)
		if auth != "" {
			req.Header.Set("Authorization", "NTLM "+auth)
		}
		if user != "" {
			req.Header.Set("X-User", user)
		}
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	login := func(name string) {
		code, _ := ask("TlRMTVNTUAABxx", name)
		require.Equal(t, http.StatusUnauthorized, code)
		code, body := ask("TlRMTVNTUAAD"+name, name)
		require.Equal(t, http.StatusOK, code, "the handshake was torn apart")
		require.Equal(t, name, body)
	}
	for range 5 {
		code, _ := ask("", "")
		require.Equal(t, http.StatusUnauthorized, code)
		login("alice")
		code, body := ask("", "")
		require.Equal(t, http.StatusUnauthorized, code, "authenticated as %q", body)
		login("bob")
	}
	require.Equal(t, uint64(10), tr.Stats().Closed[keepalive.CloseIdentity])

	// With a pool of its own for each user, the connection stays theirs.
	tr = open(t, keepalive.WithPoolKey(func(r *http.Request) string { return r.Header.Get("X-User") }))
	login("alice")
	for range 3 {
		code, body := ask("", "alice")
		require.Equal(t, http.StatusOK, code)
		require.Equal(t, "alice", body)
	}
	code, _ := ask("", "bob")
	require.Equal(t, http.StatusUnauthorized, code)
	require.Equal(t, 2, tr.Stats().Idle)
}
