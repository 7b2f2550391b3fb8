package difftest

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"hash/crc32"
	"io"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// patience bounds every wait of a scenario. No scenario needs it to pass.
const patience = 15 * time.Second

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// Server is a raw server: it notes what it receives, byte by byte, and says
// what its scenario tells it.
type Server struct {
	// Addr is host:port.
	Addr string
	// Scheme is "http" or "https": what the first hop speaks.
	Scheme string
	// Origin is what the URLs of the target begin with.
	Origin string
	// Arrived has a value for each time that a scenario's server says so.
	Arrived chan struct{}

	turn  chan struct{} // for server and client to take turns
	t     testing.TB
	serve func(*Exchange)
	real  *realServer // behind greet, in place of serve
	lns   []net.Listener
	cert  *tls.Certificate
	done  chan struct{} // closed when the scenario is over
	// cutOff is closed when the scenario has hung for too long.
	cutOff chan struct{}
	watch  *time.Timer
	wg     sync.WaitGroup
	step   atomic.Int64 // of the client

	mu    sync.Mutex // guards the rest
	conns []net.Conn
	facts [][2]string
	noted map[string]int
	greet func(nc net.Conn) (net.Conn, bool) // what comes before HTTP
}

func newServer(t testing.TB, scenario Scenario, road Road) *Server {
	t.Helper()
	serve := scenario.Serve
	if serve == nil {
		serve = answer(ok)
	}
	ln := listen(t, "tcp", "127.0.0.1:0")
	s := &Server{
		Addr: ln.Addr().String(), Scheme: road.firstHop(), Arrived: make(chan struct{}, 100),
		turn: make(chan struct{}, 10),
		t:    t, serve: serve, lns: []net.Listener{ln}, done: make(chan struct{}), cutOff: make(chan struct{}), noted: make(map[string]int),
	}
	s.Origin = road.origin(s.Addr)
	var err error
	if s.cert, err = certificate(); err != nil {
		t.Fatal(err)
	}
	if scenario.Handle != nil {
		s.real = newRealServer(s, road, scenario.Handle)
	}
	s.watch = time.AfterFunc(patience, func() {
		t.Error("the scenario hangs; its connections are cut")
		close(s.cutOff)
		s.cut()
	})
	s.wg.Go(func() { s.accept(ln) })
	return s
}

func listen(t testing.TB, network, addr string) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// certificate is for 127.0.0.1, ::1 and example.com.
var certificate = sync.OnceValues(func() (*tls.Certificate, error) { //nolint:gochecknoglobals // a constant
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
		DNSNames: []string{"example.com"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
})

// ClientTLS returns the client's side of the server's certificate.
func (s *Server) ClientTLS() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.cert.Leaf)
	return &tls.Config{RootCAs: pool}
}

// URL returns the URL of path on the server.
func (s *Server) URL(path string) string { return s.Origin + path }

// greetWith runs f before HTTP on each connection.
func (s *Server) greetWith(f func(net.Conn) (net.Conn, bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.greet = f
}

func (s *Server) accept(ln net.Listener) {
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		if s.real == nil && s.Scheme == "https" {
			nc = s.secure(nc)
		}
		s.mu.Lock()
		s.conns = append(s.conns, nc)
		n := len(s.conns)
		s.mu.Unlock()
		s.wg.Go(func() { s.talk(nc, n) })
	}
}

func (s *Server) talk(nc net.Conn, conn int) {
	s.mu.Lock()
	greet := s.greet
	s.mu.Unlock()
	behind := nc
	if greet != nil {
		var ok bool
		if behind, ok = greet(nc); !ok {
			_ = nc.Close()
			return
		}
	}
	if s.real != nil {
		s.real.take(behind)
		return
	}
	defer func() { _ = nc.Close() }()
	s.serveOn(behind, conn)
}

func (s *Server) serveOn(nc net.Conn, conn int) {
	br := bufio.NewReader(nc)
	for n := 1; ; n++ {
		x := &Exchange{s: s, nc: nc, br: br, Conn: conn, N: n}
		if !x.readHead() {
			return
		}
		s.serve(x)
		if x.over {
			return
		}
		x.Body()
	}
}

// Unix makes the server listen on a Unix socket, too, and returns its path.
func (s *Server) Unix() string {
	path := filepath.Join(s.t.TempDir(), "s")
	ln := listen(s.t, "unix", path)
	s.lns = append(s.lns, ln)
	s.wg.Go(func() { s.accept(ln) })
	return path
}

// cut ends all connections and the listener.
func (s *Server) cut() {
	for _, ln := range s.lns {
		_ = ln.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if tc, ok := c.(*tls.Conn); ok {
			c = tc.NetConn()
		}
		_ = c.Close()
	}
}

func (s *Server) close() {
	s.watch.Stop()
	close(s.done)
	s.cut()
	if s.real != nil {
		s.real.close()
	}
	s.wg.Wait()
}

func (s *Server) note(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.facts = append(s.facts, [2]string{name + strings.Repeat(" again", s.noted[name]), value})
	s.noted[name]++
}

func (s *Server) report(seen *Seen) {
	for _, f := range s.facts {
		seen.note(f[0], f[1])
	}
	seen.note("connections", fmt.Sprint(len(s.conns)))
}

// Exchange is one request as the server sees it.
type Exchange struct {
	// Conn and N count connections, and requests on one, from 1.
	Conn, N int
	// Head is the request's head, as it came.
	Head string
	// Req is the request, parsed.
	Req *http.Request

	s        *Server
	nc       net.Conn
	br       *bufio.Reader
	step     int64 // of the client, when the request arrived
	bodyRead bool
	over     bool
}

// note notes a fact of the client's step; once more for each time that the
// request was sent again.
func (x *Exchange) note(what, value string) {
	x.s.note(fmt.Sprintf("%d sent %s", x.step, what), value)
}

func (x *Exchange) readHead() bool {
	var b strings.Builder
	for !strings.HasSuffix(b.String(), "\r\n\r\n") {
		line, err := x.br.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			return false
		}
	}
	x.Head, x.step = b.String(), x.s.step.Load()
	head := strings.ReplaceAll(x.Head, x.s.Addr, "ADDR")
	_, port, _ := strings.Cut(x.s.Addr, ":")
	head = strings.ReplaceAll(head, "localhost:"+port, "localhost:PORT")
	on := "a new connection"
	if x.N > 1 {
		on = "a used connection"
	}
	x.note("on", on)
	x.note("head", fmt.Sprintf("%q", head))
	req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(x.Head)))
	if err != nil {
		x.note("refused", err.Error())
		return false
	}
	x.Req = req
	return true
}

// Body reads the request body, once.
func (x *Exchange) Body() string {
	if x.bodyRead {
		return ""
	}
	x.bodyRead = true
	var data []byte
	var err error
	switch {
	case len(x.Req.TransferEncoding) > 0:
		var trailer string
		data, trailer, err = readChunked(x.br)
		if err == nil {
			x.note("trailer", fmt.Sprintf("%q", trailer))
		}
	case x.Req.ContentLength > 0:
		data = make([]byte, x.Req.ContentLength)
		var n int
		n, err = io.ReadFull(x.br, data)
		data = data[:n]
	}
	if err != nil {
		// How much of a broken body arrives is not fixed.
		x.note("body", "cut short")
		x.over = true
		return ""
	}
	x.note("body", digest(data))
	return string(data)
}

// readChunked reads a chunked body, and its trailer section as it stands.
func readChunked(br *bufio.Reader) (data []byte, trailer string, err error) {
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return data, "", err
		}
		size, err := strconv.ParseUint(strings.TrimSuffix(line, "\r\n"), 16, 31)
		if err != nil {
			return data, "", err
		}
		if size == 0 {
			break
		}
		chunk := make([]byte, size+2)
		if _, err := io.ReadFull(br, chunk); err != nil {
			return data, "", err
		}
		data = append(data, chunk[:size]...)
	}
	for !strings.HasSuffix("\r\n"+trailer, "\r\n\r\n") {
		line, err := br.ReadString('\n')
		trailer += line
		if err != nil {
			return data, trailer, err
		}
	}
	return data, trailer, nil
}

// Write sends raw bytes.
func (x *Exchange) Write(raw string) { _, _ = io.WriteString(x.nc, raw) }

// Close ends the connection.
func (x *Exchange) Close() {
	x.over = true
	_ = x.nc.Close()
}

// Reset ends the connection with a RST.
func (x *Exchange) Reset() {
	x.over = true
	nc := x.nc
	if tc, ok := nc.(*tls.Conn); ok {
		nc = tc.NetConn()
	}
	if tc, ok := nc.(*net.TCPConn); ok {
		_ = tc.SetLinger(0)
	}
	_ = nc.Close()
}

// Hang waits until the peer hangs up, or the scenario is over.
func (x *Exchange) Hang() {
	x.over = true
	_, _ = io.Copy(io.Discard, x.br)
}

// answer reads the request and writes raw.
func answer(raw string) func(*Exchange) {
	return func(x *Exchange) {
		x.Body()
		x.Write(raw)
	}
}

// answerOnce answers the first request with raw, others with ok.
func answerOnce(raw string) func(*Exchange) {
	return func(x *Exchange) {
		x.Body()
		if x.Conn == 1 && x.N == 1 {
			x.Write(raw)
			return
		}
		x.Write(ok)
	}
}

// answerClose is answerOnce that closes the connection behind raw.
func answerClose(raw string) func(*Exchange) {
	return func(x *Exchange) {
		x.Body()
		if x.Conn == 1 && x.N == 1 {
			x.Write(raw)
			x.Close()
			return
		}
		x.Write(ok)
	}
}

// digest shows short data, and sums up long data.
func digest(b []byte) string {
	if len(b) <= 64 {
		return fmt.Sprintf("%q", b)
	}
	return fmt.Sprintf("%d bytes, sum %x", len(b), crc32.ChecksumIEEE(b))
}
