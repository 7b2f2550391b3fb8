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

// TestKeyUpdates: OpenSSL changes its keys while the connection is idle, and
// asks us to do so too.
func TestKeyUpdates(t *testing.T) {
	path := program(t, "openssl")
	dir, addr := t.TempDir(), freeAddrs(t, 1)[0]
	roots := writeCert(t, dir)
	// What is written to its standard input goes to the client, but for lines
	// that begin with the letter of a command.
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), path,
		"s_server", "-accept", addr, "-cert", "cert.pem", "-key", "key.pem", "-tls1_3")
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	exited := start(t, cmd)
	hears := func(what string) {
		t.Helper()
		eventually(t, func() bool { return strings.Contains(out.String(), what) }, what)
	}
	says := func(what string) {
		t.Helper()
		_, err := io.WriteString(stdin, what)
		require.NoError(t, err)
	}
	hears("ACCEPT")
	tr := open(t, keepalive.WithTLSConfig(&tls.Config{RootCAs: roots}))
	for i, command := range []string{"k\n", "K\n", "K\n", "k\n", "k\n"} { // K: both sides
		asked := make(chan error, 1)
		id := fmt.Sprint("request ", i)
		go func() { asked <- streamed("https://"+addr, id).own(t.Context(), tr) }()
		hears(id)
		says(faultserver.Response(http.StatusOK, id))
		require.NoError(t, <-asked, id)
		says(command)
		elapse(10 * arrivalWait)
	}
	s := tr.Stats()
	require.EqualValues(t, 1, s.Opened, "%v", s.Closed)
	require.EqualValues(t, 4, s.Reuses)
	require.Zero(t, s.StaleChecks)
	says("Q\n")
	<-exited
	require.Equal(t, 5, strings.Count(out.String(), "SSL_do_handshake -> 1"), "key updates: %s", &out)
}
