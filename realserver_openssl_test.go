//go:build unix

package keepalive_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// opensslServer is openssl s_server: what is written to its standard input goes to
// the client, but for lines that begin with the letter of a command.
type opensslServer struct {
	addr   string
	client *tls.Config
	out    *lockedBuffer
	exited <-chan struct{}
	hears  func(what string)
	says   func(what string)
}

func startOpenSSL(t *testing.T, version string) opensslServer {
	path := program(t, "openssl")
	dir, addr := t.TempDir(), freeAddrs(t, 1)[0]
	roots := writeCert(t, dir)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), path,
		"s_server", "-accept", addr, "-cert", "cert.pem", "-key", "key.pem", version)
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	out := new(lockedBuffer)
	cmd.Stdout, cmd.Stderr = out, out
	s := opensslServer{
		addr: addr, client: &tls.Config{RootCAs: roots}, out: out, exited: start(t, cmd),
		hears: func(what string) {
			t.Helper()
			eventually(t, func() bool { return strings.Contains(out.String(), what) }, what)
		},
		says: func(what string) {
			t.Helper()
			_, err := io.WriteString(stdin, what)
			require.NoError(t, err)
		},
	}
	s.hears("ACCEPT")
	return s
}

// answers makes a request with a streamed body and answers it.
func (s opensslServer) answers(t *testing.T, rt http.RoundTripper, id string) {
	t.Helper()
	asked := make(chan error, 1)
	go func() { asked <- streamed("https://"+s.addr, id).own(t.Context(), rt) }()
	s.hears(id)
	s.says(faultserver.Response(http.StatusOK, id))
	require.NoError(t, <-asked, id)
}

// TestKeyUpdates: OpenSSL changes its keys while the connection is idle, and
// asks us to do so too.
func TestKeyUpdates(t *testing.T) {
	s := startOpenSSL(t, "-tls1_3")
	tr := open(t, keepalive.WithTLSConfig(s.client))
	for i, command := range []string{"k\n", "K\n", "K\n", "k\n", "k\n"} { // K: both sides
		s.answers(t, tr, fmt.Sprint("request ", i))
		s.says(command)
		elapse(10 * arrivalWait)
	}
	stats := tr.Stats()
	require.EqualValues(t, 1, stats.Opened, "%v", stats.Closed)
	require.EqualValues(t, 4, stats.Reuses)
	require.Zero(t, stats.StaleChecks)
	s.says("Q\n")
	<-s.exited
	require.Equal(t, 5, strings.Count(s.out.String(), "SSL_do_handshake -> 1"), "key updates: %s", s.out)
}

// TestRenegotiationWhileIdle: a handshake that begins in the look for a stale
// connection is cut off there, which TLS does not forgive.
func TestRenegotiationWhileIdle(t *testing.T) {
	s := startOpenSSL(t, "-tls1_2")
	s.client.Renegotiation = tls.RenegotiateFreelyAsClient
	tr := open(t, keepalive.WithTLSConfig(s.client))
	s.answers(t, tr, "request 1")
	s.says("r\n")
	elapse(10 * arrivalWait)
	s.answers(t, tr, "request 2")
	require.EqualValues(t, 2, tr.Stats().Opened)
	s.says("Q\n")
	<-s.exited
}
