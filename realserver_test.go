package keepalive_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

// These tests run against servers that people use: nginx, and http.server of
// Python 3. They are skipped where the program is missing, but not in CI.

// program returns the path of one of names.
func program(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" || os.Getenv("KEEPALIVE_REAL_SERVERS") == "1" {
		require.FailNowf(t, "a program is missing",
			"%s: install it, or unset CI and KEEPALIVE_REAL_SERVERS", strings.Join(names, " or "))
	}
	t.Skipf("%s is not installed", strings.Join(names, " or "))
	return ""
}

// lockedBuffer takes the output of a process. Safe for concurrent use.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs cmd until the test ends. exited is closed when it has ended.
func start(t *testing.T, cmd *exec.Cmd) (exited <-chan struct{}) {
	t.Helper()
	cmd.WaitDelay = time.Second
	require.NoError(t, cmd.Start())
	done := make(chan struct{})
	go func() { // ends with the process; Cleanup waits for it
		defer close(done)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
	return done
}

// pause lets real time pass: the server's idle timer is in another process,
// where no fake clock reaches it.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		require.FailNow(t, "the test ended in a pause")
	}
}

// realClient is a client of one server; it remembers which of the server's
// connections served its requests.
type realClient struct {
	t     *testing.T
	tr    *keepalive.Transport
	http  *http.Client
	url   string
	conns []string // the server's names for its connections, in order of first use
}

func newRealClient(t *testing.T, url string, opts ...keepalive.Option) *realClient {
	t.Helper()
	tr, err := keepalive.New(opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tr.Close()) })
	client := tr.Client()
	client.Timeout = 10 * time.Second
	return &realClient{t: t, tr: tr, http: client, url: url}
}

// do sends one request and reads the answer. A request with a body is a POST.
func (c *realClient) do(body string) *http.Response {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.url, http.NoBody)
	if body != "" {
		req, err = http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.url, strings.NewReader(body))
	}
	require.NoError(c.t, err)
	resp, err := c.http.Do(req)
	require.NoError(c.t, err)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	require.NoError(c.t, err)
	require.Equal(c.t, http.StatusOK, resp.StatusCode)
	require.Equal(c.t, "hello\n", string(got))
	name := resp.Header.Get("X-Conn")
	require.NotEmpty(c.t, name, "the server names its connections")
	if n := len(c.conns); n == 0 || c.conns[n-1] != name {
		require.NotContains(c.t, c.conns, name, "back to a connection that was left")
		c.conns = append(c.conns, name)
	}
	return resp
}

// used requires that both sides have seen n connections, and returns the
// statistics.
func (c *realClient) used(n int) keepalive.Stats {
	c.t.Helper()
	s := c.tr.Stats()
	require.Len(c.t, c.conns, n, "connections that the server saw")
	require.EqualValues(c.t, n, s.Opened, "connections that we opened: %+v", s)
	require.Zero(c.t, s.DialErrors)
	return s
}

const nginxConf = `daemon off; master_process off; pid nginx.pid; error_log stderr warn;
events { worker_connections 256; }
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	keepalive_requests 100; %s
	server {
		%s
		location / {
			add_header X-Conn $connection;
			return 200 "hello\n";
		}
	}
}
`

// startNginx starts nginx with the settings and returns its address. With a
// certificate it speaks TLS.
func startNginx(t *testing.T, settings string, cert *tls.Certificate) string {
	t.Helper()
	path := program(t, "nginx", "/usr/sbin/nginx")
	const attempts = 3 // another process may take the port before nginx does
	var out lockedBuffer
	for range attempts {
		addr := freeAddr(t)
		dir := t.TempDir()
		listen := "listen " + addr + ";"
		if cert != nil {
			writeCert(t, dir, cert)
			listen = "listen " + addr + " ssl; ssl_protocols TLSv1.3; ssl_certificate cert.pem; ssl_certificate_key key.pem;"
		}
		conf := filepath.Join(dir, "nginx.conf")
		require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, nginxConf, settings, listen), 0o600))
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), path, "-p", dir, "-c", conf, "-e", "stderr")
		cmd.Stdout, cmd.Stderr = &out, &out
		if answers(t, addr, start(t, cmd)) {
			return addr
		}
	}
	require.FailNow(t, "nginx did not start", out.String())
	return ""
}

// freeAddr returns a loopback address on which nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	return ln.Addr().String()
}

// answers dials addr until somebody accepts: false when the process has
// exited, or after five seconds.
func answers(t *testing.T, addr string, exited <-chan struct{}) bool {
	t.Helper()
	const every = 20 * time.Millisecond
	for range 250 {
		if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			_ = c.Close()
			return true
		}
		select {
		case <-exited:
			return false
		default:
			pause(t, every)
		}
	}
	return false
}

func writeCert(t *testing.T, dir string, cert *tls.Certificate) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
}

// nginx ends a connection after keepalive_requests requests and says so with
// "Connection: close" in the last answer.
func TestRealNginxRequestLimit(t *testing.T) {
	t.Parallel()
	c := newRealClient(t, "http://"+startNginx(t, "keepalive_timeout 1s;", nil))
	for range 1000 {
		c.do("")
	}
	s := c.used(10)
	require.EqualValues(t, 1000, s.Requests)
	require.EqualValues(t, 990, s.Reuses)
	require.EqualValues(t, map[keepalive.CloseReason]uint64{keepalive.CloseServerRequest: 10}, s.Closed)
	require.Zero(t, s.Retries)
	require.Zero(t, s.StaleChecks)
}

// The same over TLS 1.3, where OpenSSL sends session tickets behind the
// handshake: bytes that nobody asked for and that mean no harm.
func TestRealNginxTLS(t *testing.T) {
	t.Parallel()
	ca := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	ca.Close()
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	addr := startNginx(t, "keepalive_timeout 1s;", &ca.TLS.Certificates[0])
	c := newRealClient(t, "https://"+addr, keepalive.WithTLSConfig(&tls.Config{RootCAs: roots}))
	for i := range 250 {
		resp := c.do(strings.Repeat("x", i%2*1000))
		require.Equal(t, uint16(tls.VersionTLS13), resp.TLS.Version)
		require.Equal(t, len(c.conns) > 1, resp.TLS.DidResume, "later connections resume the session")
	}
	s := c.used(3)
	require.EqualValues(t, 2, s.Closed[keepalive.CloseServerRequest])
	pause(t, 1300*time.Millisecond) // beyond keepalive_timeout
	c.do("x")
	s = c.used(4)
	require.EqualValues(t, 1, s.Closed[keepalive.ClosePeerClosed])
	require.Zero(t, s.Retries)
}

// nginx closes idle connections after a second. With the second value of
// keepalive_timeout it announces that.
func TestRealNginxIdleTimeout(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, settings string
		announced      string
		conns          int // after the pauses below
		reason         keepalive.CloseReason
	}{
		// Half of an announced second is ours: see keepAliveMargin.
		{"announced", "keepalive_timeout 1s 1s;", "timeout=1", 5, keepalive.CloseIdleTimeout},
		{"not announced", "keepalive_timeout 1s;", "", 3, keepalive.ClosePeerClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newRealClient(t, "http://"+startNginx(t, tt.settings, nil))
			require.Equal(t, tt.announced, c.do("").Header.Get("Keep-Alive"))
			const within, beyond = 600 * time.Millisecond, 1300 * time.Millisecond
			for i, d := range []time.Duration{within, beyond, within, beyond} {
				pause(t, d)
				c.do(strings.Repeat("x", i%2*100)) // by turns a GET and a POST
				c.do("POST")
			}
			s := c.used(tt.conns)
			require.EqualValues(t, map[keepalive.CloseReason]uint64{tt.reason: uint64(tt.conns - 1)}, s.Closed)
			require.Zero(t, s.Retries)
		})
	}
}

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
