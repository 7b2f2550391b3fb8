//go:build unix

package keepalive_test

import (
	"fmt"
	"os/exec"
	"testing"
)

const caddyConf = `{
	admin %[1]s
	auto_https off
	default_bind 127.0.0.1
	grace_period 5s
	servers {
		protocols h1 h2 h2c
		timeouts {
			idle %[2]s
		}
	}
	log {
		level ERROR
	}
}
(all) {
	header X-Gen %[3]d
	@big {
		path /small
		header_regexp Content-Length ^[0-9]{7,}$
	}
	respond @big 413
	encode gzip
	reverse_proxy %[4]s
}
http://%[5]s {
	import all
}
http://%[6]s {
	import all
}
https://%[7]s {
	tls cert.pem key.pem
	import all
}
`

// caddy runs Caddy before b. It announces nothing.
func caddy(t *testing.T, b *backend, idle string) *running {
	t.Helper()
	return daemon{
		paths: []string{"caddy"},
		args:  func(string) []string { return []string{"run", "--config", "Caddyfile"} },
		conf: func(l listeners, gen int) map[string]string {
			return map[string]string{"Caddyfile": fmt.Sprintf(caddyConf, l.admin, idle, gen, b.addr, l.plain, l.h2c, l.tls)}
		},
		reload: func(r *running) error {
			cmd := exec.CommandContext(t.Context(), r.cmd.Path, "reload", "--config", "Caddyfile", "--address", r.admin)
			cmd.Dir, cmd.Env = r.dir, r.cmd.Env
			return cmd.Run()
		},
	}.run(t)
}

func TestRealCaddy(t *testing.T) {
	t.Parallel()
	r := caddy(t, newBackend(t), "30s")
	doors := append(r.doors(), r.h2cDoor())
	for i := range doors {
		doors[i].continues, doors[i].trailers = true, true
	}
	testExchanges(t, doors...)
	testEarly413(t, "/small", doors...)
	testUpgrade(t, doors[:3]...)
}

func TestRealCaddyIdleLimit(t *testing.T) {
	t.Parallel()
	r := caddy(t, newBackend(t), "1s")
	testIdleLimit(t, append(r.doors(), r.h2cDoor())...)
}

func TestRealCaddyReload(t *testing.T) {
	t.Parallel()
	b := newBackend(t)
	r := caddy(t, b, "30s")
	testReload(t, r, b, r.doors()...) // it does not end an h2c connection
}
