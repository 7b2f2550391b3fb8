//go:build unix

package keepalive_test

import (
	"crypto/tls"
	"fmt"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

const nginxConf = `daemon off; %[1]s pid nginx.pid; error_log stderr error; worker_processes 2;
events { worker_connections 256; }
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	%[2]s
	ssl_protocols TLSv1.3; ssl_certificate cert.pem; ssl_certificate_key key.pem;
	server {
		listen %[3]s;
		listen %[4]s ssl http2;
		add_header X-Gen %[5]d always;
		location = /hello {
			add_header X-Conn $connection;
			return 200 "hello\n";
		}
		%[6]s
	}
}
`

// nginx runs with settings for all of it and locations besides /hello.
func nginx(settings, locations string) daemon {
	user := ""
	if os.Geteuid() == 0 {
		user = "user root root;" // another one could not write to our directory
	}
	return daemon{
		paths: []string{"nginx", "/usr/sbin/nginx"},
		args:  func(dir string) []string { return []string{"-p", dir, "-c", dir + "/nginx.conf", "-e", "stderr"} },
		conf: func(l listeners, gen int) map[string]string {
			return map[string]string{"nginx.conf": fmt.Sprintf(nginxConf, user, settings, l.plain, l.tls, gen, locations)}
		},
		reload: bySignal(syscall.SIGHUP),
	}
}

// nginxProxy runs nginx before b.
func nginxProxy(t *testing.T, b *backend, settings string) *running {
	t.Helper()
	return nginx("gzip on; gzip_types text/plain; gzip_min_length 1000; client_max_body_size 8m; "+settings, `
		location / { proxy_pass http://`+b.addr+`; }
		location = /text { proxy_pass http://`+b.addr+`; gzip_proxied any; }
		location = /small { client_max_body_size 1m; proxy_pass http://`+b.addr+`; }
		location = /trailer { add_trailer X-Sum 1; proxy_pass http://`+b.addr+`; }
		location = /upgrade {
			proxy_pass http://`+b.addr+`;
			proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection Upgrade;
		}`).run(t)
}

func TestRealNginx(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	r := nginxProxy(t, b, "keepalive_requests 100000; http2_max_concurrent_streams 8;")
	doors := r.doors()
	for i := range doors {
		doors[i].continues = doors[i].proto == "HTTP/1.1"
		doors[i].trailers = true
	}
	testExchanges(t, doors...)
	testEarly413(t, "/small", doors...)
	testStreams(t, 8, doors[2:]...)
	testColdBurst(t, 8, doors[2])
	testUpgrade(t, doors...)
}

func TestRealNginxIdleLimit(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	told := nginxProxy(t, b, "keepalive_timeout 1s 1s;").doors()[:2]
	for i := range told {
		told[i].name += ", announced"
		told[i].announces = true
	}
	testIdleLimit(t, append(told, nginxProxy(t, b, "keepalive_timeout 1s;").doors()...)...)
}

func TestRealNginxReload(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	r := nginxProxy(t, b, "keepalive_requests 100000;")
	testReload(t, r, b, r.doors()...)
}

// The limit on requests holds for HTTP/2 too.
func TestRealNginxStreamLimit(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	r := nginx("keepalive_requests 50;", "location / { proxy_pass http://"+b.addr+"; }").run(t)
	testStreamLimit(t, r.doors()[2], b, 50)
}

// A Go proxy before nginx, with a Transport to each side of it: what the client
// sends is streamed, and cannot be sent again.
func TestRealNginxReverseProxy(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	r := nginxProxy(t, b, "keepalive_timeout 1s 1s; keepalive_requests 50;")
	target, err := url.Parse("https://" + r.tls)
	require.NoError(t, err)
	tr := r.doors()[1].open(t)
	front := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(p *httputil.ProxyRequest) { p.SetURL(target) },
		Transport: tr,
	})
	t.Cleanup(front.Close)
	d := door{name: "ReverseProxy", url: front.URL, proto: "HTTP/1.1", continues: true, trailers: true, announces: true}
	t.Cleanup(func() {
		s := tr.Stats()
		require.Zero(t, s.Retries)
		require.Greater(t, s.Requests, 2*s.Opened, "connections were used again")
	})
	testExchanges(t, d)
	testUpgrade(t, d)
	testIdleLimit(t, d)
}

// nginx ends a connection after keepalive_requests requests and says so with
// "Connection: close" in the last answer.
func TestRealNginxRequestLimit(t *testing.T) {
	t.Parallel()
	c := newRealClient(t, "http://"+nginx("keepalive_requests 100; keepalive_timeout 1s;", "").run(t).plain+"/hello")
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
	r := nginx("keepalive_requests 100; keepalive_timeout 1s;", "").run(t)
	c := newRealClient(t, "https://"+r.tls+"/hello", r.doors()[1].opts...)
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
		{"announced", "keepalive_timeout 1s 1s;", "timeout=1", 3, keepalive.CloseIdleTimeout},
		{"not announced", "keepalive_timeout 1s;", "", 2, keepalive.ClosePeerClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newRealClient(t, "http://"+nginx(tt.settings, "").run(t).plain+"/hello")
			require.Equal(t, tt.announced, c.do("").Header.Get("Keep-Alive"))
			const within, beyond = 600 * time.Millisecond, 1300 * time.Millisecond
			for _, d := range []time.Duration{within, beyond} {
				pause(t, d)
				c.do("")
				c.do("POST")
			}
			s := c.used(tt.conns)
			require.EqualValues(t, map[keepalive.CloseReason]uint64{tt.reason: uint64(tt.conns - 1)}, s.Closed)
			require.Zero(t, s.Retries)
		})
	}
}
