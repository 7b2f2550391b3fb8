//go:build unix

package keepalive_test

import (
	"fmt"
	"net/http"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

const apacheConf = `ServerRoot .
ServerName localhost
DefaultRuntimeDir .
PidFile apache.pid
ErrorLog /dev/stderr
LogLevel error
LoadModule mpm_event_module %[1]s/mod_mpm_event.so
LoadModule authz_core_module %[1]s/mod_authz_core.so
LoadModule headers_module %[1]s/mod_headers.so
LoadModule rewrite_module %[1]s/mod_rewrite.so
LoadModule filter_module %[1]s/mod_filter.so
LoadModule deflate_module %[1]s/mod_deflate.so
LoadModule mime_module %[1]s/mod_mime.so
LoadModule socache_shmcb_module %[1]s/mod_socache_shmcb.so
LoadModule ssl_module %[1]s/mod_ssl.so
LoadModule http2_module %[1]s/mod_http2.so
LoadModule proxy_module %[1]s/mod_proxy.so
LoadModule proxy_http_module %[1]s/mod_proxy_http.so
%[2]s
Listen %[3]s
Listen %[4]s
Listen %[5]s
StartServers 2
ThreadLimit 100
ThreadsPerChild 100
MaxRequestWorkers 400
H2MinWorkers 16
H2MaxSessionStreams 8
MinSpareThreads 100
MaxSpareThreads 400
AddOutputFilterByType DEFLATE text/plain
TypesConfig /dev/null
Header always set X-Gen %[6]d
Header always set X-Conn %%{REMOTE_PORT}s
RewriteEngine On
RewriteOptions InheritDown
RewriteCond expr "%%{HTTP:Content-Length} -gt 1000000"
RewriteRule ^/small - [R=413]
ProxyPass / http://%[7]s/ upgrade=websocket
<VirtualHost %[4]s>
	SSLEngine on
	SSLCertificateFile cert.pem
	SSLCertificateKeyFile key.pem
	Protocols h2 http/1.1
	RewriteEngine On
</VirtualHost>
<VirtualHost %[5]s>
	Protocols h2c http/1.1
	RewriteEngine On
</VirtualHost>
%[8]s
`

// apache runs Apache's httpd before b, with settings.
func apache(t *testing.T, b *backend, settings string) *running {
	t.Helper()
	const modules = "/usr/lib/apache2/modules" // Debian's place
	user := ""
	if os.Geteuid() == 0 {
		user = "User www-data\nGroup www-data" // it refuses to serve as root
	}
	return daemon{
		paths: []string{"apache2", "/usr/sbin/apache2"},
		args: func(dir string) []string {
			return []string{"-DFOREGROUND", "-d", dir, "-f", "apache.conf"}
		},
		conf: func(l listeners, gen int) map[string]string {
			text := fmt.Sprintf(apacheConf, modules, user, l.plain, l.tls, l.h2c, gen, b.addr, settings)
			return map[string]string{"apache.conf": text}
		},
		reload: bySignal(syscall.SIGUSR1),
	}.run(t)
}

func TestRealApache(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	r := apache(t, b, "KeepAliveTimeout 60\nMaxKeepAliveRequests 0")
	doors := append(r.doors(), r.h2cDoor())
	for i := range doors {
		doors[i].continues = true
	}
	testExchanges(t, doors...)
	testEarly413(t, "/small", doors...)
	testStreams(t, 8, doors[2:]...)
	testUpgrade(t, doors[:3]...)
}

func TestRealApacheIdleLimit(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	r := apache(t, b, "KeepAliveTimeout 1\nMaxKeepAliveRequests 0")
	doors := append(r.doors(), r.h2cDoor())
	doors[0].announces, doors[1].announces = true, true
	testIdleLimit(t, doors...)
}

func TestRealApacheReload(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	r := apache(t, b, "")
	testReload(t, r, b, append(r.doors(), r.h2cDoor())...)
}

// Apache counts down, and announces its limits only to who asks for keep-alive.
func TestRealApacheRequestLimit(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	r := apache(t, b, "KeepAliveTimeout 5\nMaxKeepAliveRequests 50")
	for _, d := range r.doors()[:2] {
		tr := d.open(t)
		v := visit{t, tr, d}
		resp, _ := v.ok(http.MethodGet, "/own", nil)
		require.Equal(t, "timeout=5, max=50", resp.Header.Get("Keep-Alive"))
		for range 499 {
			v.own()
		}
		s := tr.Stats()
		require.EqualValues(t, 10, s.Opened)
		require.EqualValues(t, 490, s.Reuses)
		require.Zero(t, s.Retries+s.StaleChecks)
	}
	theirs := &http.Transport{}
	defer theirs.CloseIdleConnections()
	resp, _ := visit{t, theirs, r.doors()[0]}.ok(http.MethodGet, "/own", nil)
	require.Empty(t, resp.Header.Get("Keep-Alive"), "net/http does not ask")
}

// It announces its limits with the first answer of a connection, when it is
// asked, and they hold for all that follow.
func TestRealApacheHintLasts(t *testing.T) {
	t.Parallel()
	r := apache(t, newBackend(t), "KeepAliveTimeout 1")
	d := r.doors()[0]
	tr := d.open(t)
	v := visit{t, tr, d}
	for i := range 3 {
		resp, _ := v.ok(http.MethodGet, "/own", nil)
		require.Equal(t, i == 0, resp.Header.Get("Keep-Alive") != "")
	}
	eventually(t, func() bool { return tr.Stats().Open == 0 })
	require.EqualValues(t, map[keepalive.CloseReason]uint64{keepalive.CloseIdleTimeout: 1}, tr.Stats().Closed)
}
