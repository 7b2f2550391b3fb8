//go:build unix

package keepalive_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

// nodeServer does what backend does. HTTP/2 sessions end when they have been
// idle for as long as HTTP/1.1 connections may be, or have had perConn streams.
const nodeServer = `
const crypto = require('crypto'), fs = require('fs'), http = require('http')
const http2 = require('http2'), https = require('https'), zlib = require('zlib')

const ports = %s, keepAlive = %d, perConn = %d, tooMuch = 1000000
const cert = {cert: fs.readFileSync('cert.pem'), key: fs.readFileSync('key.pem')}
const big = Buffer.from('abcdefghijklmnopqrstuvw'.repeat(1 << 17))
const held = {}, most = {}

function handle(req, res) {
  res.setHeader('X-Conn', req.socket.remotePort)
  const [path, query] = req.url.split('?')
  if (path === '/small' && req.headers['content-length'] > tooMuch) {
    if (req.httpVersion === '1.1') res.setHeader('Connection', 'close')
    res.writeHead(413)
    res.end('too large') // and nothing reads the rest
    return
  }
  const hash = crypto.createHash('sha256')
  let n = 0
  req.on('data', b => { hash.update(b); n += b.length })
  req.on('end', () => {
    switch (path) {
    case '/hello': return res.end('hello\n')
    case '/own': return res.end(req.headers['x-request-id'])
    case '/sum': return res.end(n + ' ' + hash.digest('hex'))
    case '/big': res.setHeader('Content-Length', 2 << 20) // fallthrough
    case '/chunked':
      res.write(big.subarray(0, 1000))
      return res.end(big.subarray(1000, 2 << 20))
    case '/text':
      if (!/gzip/.test(req.headers['accept-encoding'])) return res.end(big.subarray(0, 64 << 10))
      res.setHeader('Content-Encoding', 'gzip')
      return res.end(zlib.gzipSync(big.subarray(0, 64 << 10)))
    case '/status': res.writeHead(+query); return res.end()
    case '/trailer':
      res.setHeader('Trailer', 'X-Sum')
      res.write(path)
      res.addTrailers({'X-Sum': '1'})
      return res.end()
    case '/hold':
      held[query] = (held[query] || 0) + 1
      most[query] = Math.max(most[query] || 0, held[query])
      return setTimeout(() => { held[query]--; res.end(String(most[query])) }, 50)
    }
    res.writeHead(404)
    res.end()
  })
}

function serve(server, port) {
  server.keepAliveTimeout = keepAlive
  server.maxRequestsPerSocket = perConn
  server.on('request', handle)
  server.on('checkContinue', (req, res) => {
    if (!req.url.startsWith('/small')) res.writeContinue()
    handle(req, res)
  })
  server.on('session', session => {
    let streams = 0
    session.setTimeout(keepAlive, () => session.close())
    // goaway, not close: with that Node 20 corrupts its heap now and then.
    session.on('stream', () => { if (++streams === perConn) session.goaway() })
  })
  server.listen(port, '127.0.0.1')
}

const settings = {settings: {maxConcurrentStreams: perConn ? 100 : 8}}
serve(https.createServer(cert), ports.tls)
serve(http2.createSecureServer({...cert, ...settings}), ports.h2)
serve(http2.createServer(settings), ports.h2c)
serve(http.createServer(), ports.plain)
`

// node runs nodeServer. perConn 0 means no limit.
func node(t *testing.T, keepAlive time.Duration, perConn int) (r *running, doors []door) {
	t.Helper()
	r = daemon{
		paths: []string{"node", "nodejs"},
		args:  func(string) []string { return []string{"server.js"} },
		conf: func(l listeners, _ int) map[string]string {
			ports := fmt.Sprintf("{plain: %s, tls: %s, h2: %s, h2c: %s}", port(l.plain), port(l.tls), port(l.admin), port(l.h2c))
			return map[string]string{"server.js": fmt.Sprintf(nodeServer, ports, keepAlive.Milliseconds(), perConn)}
		},
	}.run(t)
	doors = append(r.doors(), r.h2cDoor())
	doors[2].url = "https://" + r.admin
	for i := range doors {
		doors[i].continues, doors[i].trailers = true, true
	}
	return r, doors
}

func port(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

func TestRealNode(t *testing.T) {
	t.Parallel()
	_, doors := node(t, time.Minute, 0)
	testExchanges(t, doors...)
	testEarly413(t, "/small", doors...)
	testStreams(t, 8, doors[2:]...)
	testColdBurst(t, 8, doors[2])
}

// Node announces keepAliveTimeout in whole seconds.
func TestRealNodeIdleLimit(t *testing.T) {
	t.Parallel()
	_, doors := node(t, time.Second, 0)
	doors[0].announces, doors[1].announces = true, true
	testIdleLimit(t, doors...)
}

func TestRealNodeRequestLimit(t *testing.T) {
	t.Parallel()
	r, doors := node(t, 5*time.Second, 50)
	c := newRealClient(t, "http://"+r.plain+"/hello")
	require.Equal(t, "timeout=5, max=50", c.do("").Header.Get("Keep-Alive"))
	for range 499 {
		c.do("")
	}
	s := c.used(10)
	require.EqualValues(t, map[keepalive.CloseReason]uint64{keepalive.CloseServerRequest: 10}, s.Closed)
	require.Zero(t, s.Retries+s.StaleChecks)
	testStreamLimit(t, doors[2], nil, 50)
	testStreamLimit(t, doors[3], nil, 50)
}
