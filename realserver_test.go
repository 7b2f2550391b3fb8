//go:build unix

package keepalive_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

// These tests run against servers that people use: nginx, Apache, HAProxy,
// Tomcat, Node, Caddy and http.server of Python 3. They are skipped where the
// program is missing, but not in CI. Each file of a server has its
// configuration and what only that server does; what all of them must stand is
// in realserver_suite_test.go.

// program returns the path of one of names.
func program(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	missing(t, strings.Join(names, " or "))
	return ""
}

// missing skips the test for lack of what, or fails it where that must not be.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" || os.Getenv("KEEPALIVE_REAL_SERVERS") == "1" {
		require.FailNowf(t, "a program is missing",
			"%s: install it, or unset CI and KEEPALIVE_REAL_SERVERS", what)
	}
	t.Skipf("%s is not installed", what)
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

// endWait is how long a server may take to end when it is asked to. Those with
// processes of their own must be asked, or they leave them behind.
const endWait = 5 * time.Second

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
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(endWait, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		<-done
	})
	return done
}

// daemon is a program that serves on addresses that its configuration names.
type daemon struct {
	paths []string // of the program, the first that is there
	// args returns the arguments; dir is an empty directory, which is the
	// working directory too.
	args func(dir string) []string
	// conf returns the files of the configuration by name. gen counts the
	// configurations from 1; the server tells it in X-Gen.
	conf func(l listeners, gen int) map[string]string
	// reload makes it take the configuration that was written; nil: it cannot.
	reload func(*running) error
}

// listeners are the addresses of a daemon: plain for HTTP/1.1, tls for that
// and HTTP/2, h2c for HTTP/2 without TLS, and one more.
type listeners struct{ plain, tls, h2c, admin string }

// running is a daemon that runs.
type running struct {
	listeners
	d     daemon
	dir   string
	gen   int
	cmd   *exec.Cmd
	roots *x509.CertPool // of its certificate
}

// run starts d and waits until it answers.
func (d daemon) run(t *testing.T) *running {
	t.Helper()
	path := program(t, d.paths...)
	const attempts = 3 // another process may take a port before the daemon does
	var out lockedBuffer
	for range attempts {
		free := freeAddrs(t, 4)
		r := &running{
			listeners: listeners{free[0], free[1], free[2], free[3]},
			d:         d, dir: t.TempDir(),
		}
		r.roots = writeCert(t, r.dir)
		r.configure(t)
		r.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), path, d.args(r.dir)...)
		r.cmd.Dir, r.cmd.Env = r.dir, append(os.Environ(), "HOME="+r.dir)
		r.cmd.Stdout, r.cmd.Stderr = &out, &out
		// The others are listened to before one of these.
		if exited := start(t, r.cmd); answers(t, r.plain, exited) && answers(t, r.tls, exited) {
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("%s said:\n%s", path, out.String())
				}
			})
			return r
		}
	}
	require.FailNow(t, path+" did not start", out.String())
	return nil
}

// bySignal is a reload by a signal to the process that was started.
func bySignal(s syscall.Signal) func(*running) error {
	return func(r *running) error { return r.cmd.Process.Signal(s) }
}

// configure writes the next configuration.
func (r *running) configure(t *testing.T) {
	t.Helper()
	r.gen++
	for name, text := range r.d.conf(r.listeners, r.gen) {
		file := filepath.Join(r.dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
}

// freeAddrs returns n loopback addresses on which nobody listens.
func freeAddrs(t *testing.T, n int) (addrs []string) {
	t.Helper()
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer ln.Close()
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs
}

// answers dials addr until somebody accepts: false when the process has
// exited, or after twenty seconds.
func answers(t *testing.T, addr string, exited <-chan struct{}) bool {
	t.Helper()
	const every = 20 * time.Millisecond
	for range 1000 {
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

// writeCert writes a certificate for 127.0.0.1 to cert.pem and its key to
// key.pem in dir, and returns a pool with it.
func writeCert(t *testing.T, dir string) (roots *x509.CertPool) {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	s.Close()
	cert := s.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	for name, text := range map[string][]byte{
		"cert.pem": certPEM, "key.pem": keyPEM, "both.pem": append(certPEM, keyPEM...),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	roots = x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return roots
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
