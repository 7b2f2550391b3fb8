//go:build unix

package keepalive_test

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

// pythonServer is http.server with a body and a number for each connection.
// Its argument is the protocol version, and "ask" if it keeps the connection
// of an HTTP/1.0 client that asks for it. It prints its port.
const pythonServer = `
import itertools, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

numbers = itertools.count(1)

class Handler(BaseHTTPRequestHandler):
    protocol_version = sys.argv[1]

    def setup(self):
        super().setup()
        self.number = next(numbers)

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b"hello\n"
        self.send_response(200)
        if sys.argv[2:] == ["ask"] and self.headers.get("Connection", "").lower() == "keep-alive":
            self.send_header("Connection", "keep-alive")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Conn", str(self.number))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
`

// startPython starts pythonServer and returns its address.
func startPython(t *testing.T, args ...string) string {
	t.Helper()
	path := program(t, "python3")
	script := filepath.Join(t.TempDir(), "server.py")
	require.NoError(t, os.WriteFile(script, []byte(pythonServer), 0o600))
	// Should it never print its port, the end of the context ends the wait.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, append([]string{script}, args...)...)
	var errs lockedBuffer
	cmd.Stderr = &errs
	pr, pw := io.Pipe()
	cmd.Stdout = pw
	exited := start(t, cmd)
	go func() { // ends with the process
		<-exited
		_ = pw.Close()
	}()
	port, err := bufio.NewReader(pr).ReadString('\n')
	_ = pr.Close() // it prints nothing more
	require.NoError(t, err, "python: %s", errs.String())
	return "127.0.0.1:" + strings.TrimSpace(port)
}

func TestRealPython(t *testing.T) {
	t.Parallel()
	const requests = 20 // on a kept connection each costs 40 ms: http.server and Nagle
	for _, tt := range []struct {
		name  string
		args  []string
		opts  []keepalive.Option
		conns int
	}{
		{"HTTP/1.0", []string{"HTTP/1.0"}, nil, requests},
		{"HTTP/1.0, keeps for who asks", []string{"HTTP/1.0", "ask"}, nil, 1},
		{
			"HTTP/1.0, keeps for who asks, not asked",
			[]string{"HTTP/1.0", "ask"},
			[]keepalive.Option{keepalive.WithKeepAliveHeader(false)},
			requests,
		},
		{"HTTP/1.1", []string{"HTTP/1.1"}, nil, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newRealClient(t, "http://"+startPython(t, tt.args...), tt.opts...)
			for i := range requests {
				resp := c.do(strings.Repeat("x", i%2*100))
				require.Equal(t, tt.args[0], resp.Proto)
			}
			s := c.used(tt.conns)
			require.EqualValues(t, requests-tt.conns, s.Reuses)
			require.Zero(t, s.Retries)
			if tt.conns == requests {
				require.EqualValues(t, requests, s.Closed[keepalive.CloseServerRequest])
			}
		})
	}
}
