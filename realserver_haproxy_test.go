//go:build unix

package keepalive_test

import (
	"fmt"
	"syscall"
	"testing"
)

const haproxyConf = `global
	tune.h2.max-concurrent-streams 8
	stats socket unix@haproxy.sock mode 600 level admin expose-fd listeners
	hard-stop-after 5s
defaults
	mode http
	timeout connect 10s
	timeout client 30s
	timeout server 30s
	timeout tunnel 30s
	timeout http-request 10s
	timeout http-keep-alive %[1]s
frontend in
	bind %[2]s
	bind %[3]s ssl crt both.pem alpn h2,http/1.1
	bind %[4]s proto h2
	http-after-response set-header X-Gen %[5]d
	http-request deny deny_status 413 if { path /small } { req.hdr_val(content-length) gt 1000000 }
	compression algo gzip
	compression type text/plain
	default_backend go
backend go
	server go %[6]s
`

// haproxy runs HAProxy before b. It announces nothing.
func haproxy(t *testing.T, b *backend, keepAlive string) *running {
	t.Helper()
	return daemon{
		paths: []string{"haproxy", "/usr/sbin/haproxy"},
		args:  func(string) []string { return []string{"-W", "-db", "-f", "haproxy.cfg"} },
		conf: func(l listeners, gen int) map[string]string {
			return map[string]string{"haproxy.cfg": fmt.Sprintf(haproxyConf, keepAlive, l.plain, l.tls, l.h2c, gen, b.addr)}
		},
		reload: bySignal(syscall.SIGUSR2),
	}.run(t)
}

func TestRealHAProxy(t *testing.T) {
	t.Parallel()
	r := haproxy(t, newBackend(t), "30s")
	doors := append(r.doors(), r.h2cDoor())
	for i := range doors {
		doors[i].continues, doors[i].trailers = true, true
	}
	testExchanges(t, doors...)
	testEarly413(t, "/small", doors...)
	testStreams(t, 8, doors[2:]...)
	testUpgrade(t, doors[:3]...)
}

func TestRealHAProxyIdleLimit(t *testing.T) {
	t.Parallel()
	r := haproxy(t, newBackend(t), "1s")
	testIdleLimit(t, append(r.doors(), r.h2cDoor())...)
}

func TestRealHAProxyReload(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	r := haproxy(t, b, "30s")
	testReload(t, r, b, append(r.doors(), r.h2cDoor())...)
}
