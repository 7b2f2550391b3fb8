package difftest

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
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
	// Scheme is "http" or "https".
	Scheme string
	// Arrived has a value for each request head that has arrived.
	Arrived chan struct{}

	t     testing.TB
	serve func(*Exchange)
	ln    net.Listener
	cert  *tls.Certificate
	root  *x509.Certificate
	done  chan struct{} // closed when the scenario is over
	watch *time.Timer
	wg    sync.WaitGroup

	mu    sync.Mutex // guards the rest
	conns []net.Conn
	facts [][2]string
}

func newServer(t testing.TB, scheme string, serve func(*Exchange)) *Server {
	t.Helper()
	if serve == nil {
		serve = answer(ok)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		Addr: ln.Addr().String(), Scheme: scheme, Arrived: make(chan struct{}, 100),
		t: t, serve: serve, ln: ln, done: make(chan struct{}),
	}
	s.cert, s.root = certificate()
	s.watch = time.AfterFunc(patience, func() {
		t.Error("the scenario hangs; its connections are cut")
		s.cut()
	})
	s.wg.Go(s.accept)
	return s
}

// certificate is that of httptest, for 127.0.0.1, ::1 and example.com.
var certificate = sync.OnceValues(func() (*tls.Certificate, *x509.Certificate) { //nolint:gochecknoglobals // a constant
	ts := httptest.NewUnstartedServer(nil)
	ts.StartTLS()
	defer ts.Close()
	return &ts.TLS.Certificates[0], ts.Certificate()
})

// ClientTLS returns the client's side of the server's certificate.
func (s *Server) ClientTLS() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.root)
	return &tls.Config{RootCAs: pool} //nolint:gosec // as net/http's default
}

// URL returns the URL of path on the server.
func (s *Server) URL(path string) string { return s.Scheme + "://" + s.Addr + path }

func (s *Server) accept() {
	for {
		nc, err := s.ln.Accept()
		if err != nil {
			return
		}
		if s.Scheme == "https" {
			nc = tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{*s.cert}}) //nolint:gosec // as net/http's default
		}
		s.mu.Lock()
		s.conns = append(s.conns, nc)
		n := len(s.conns)
		s.mu.Unlock()
		s.wg.Go(func() { s.talk(nc, n) })
	}
}

func (s *Server) talk(nc net.Conn, conn int) {
	defer func() { _ = nc.Close() }()
	br := bufio.NewReader(nc)
	for n := 1; ; n++ {
		x := &Exchange{s: s, nc: nc, br: br, Conn: conn, N: n}
		if !x.readHead() {
			return
		}
		s.Arrived <- struct{}{}
		s.serve(x)
		if x.over {
			return
		}
		x.Body()
	}
}

// cut ends all connections and the listener.
func (s *Server) cut() {
	_ = s.ln.Close()
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
	s.wg.Wait()
}

func (s *Server) note(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.facts = append(s.facts, [2]string{name, value})
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
	bodyRead bool
	over     bool
}

func (x *Exchange) name(what string) string {
	return fmt.Sprintf("server: connection %d request %d %s", x.Conn, x.N, what)
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
	x.Head = b.String()
	head := strings.ReplaceAll(x.Head, x.s.Addr, "ADDR")
	x.s.note(x.name("head"), fmt.Sprintf("%q", head))
	req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(x.Head), x.br)))
	if err != nil {
		x.s.note(x.name("refused"), err.Error())
		return false
	}
	// The buffer above would swallow what follows: parse the head alone, and
	// the body from the connection's own reader.
	req, err = http.ReadRequest(bufio.NewReader(strings.NewReader(x.Head)))
	if err != nil {
		x.s.note(x.name("refused"), err.Error())
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
		// Parse it behind a head that says no more than that.
		var resp *http.Response
		resp, err = http.ReadResponse(x.chunkedReader(), nil)
		if err == nil {
			data, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			x.s.note(x.name("trailer"), fmt.Sprintf("%q", resp.Trailer))
		}
	case x.Req.ContentLength > 0:
		data = make([]byte, x.Req.ContentLength)
		var n int
		n, err = io.ReadFull(x.br, data)
		data = data[:n]
	}
	if err != nil {
		// How much of a broken body arrives is not fixed.
		x.s.note(x.name("body"), "cut short")
		x.over = true
		return ""
	}
	x.s.note(x.name("body"), digest(data))
	return string(data)
}

// chunkedReader puts the head of a chunked response before the request body. It
// gives up no byte behind the body, as it reads single bytes.
func (x *Exchange) chunkedReader() *bufio.Reader {
	head := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
	if tr := x.Req.Trailer; len(tr) > 0 {
		for k := range tr {
			head += "Trailer: " + k + "\r\n"
		}
	}
	return bufio.NewReader(io.MultiReader(strings.NewReader(head+"\r\n"), x.br))
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
	h := fnv.New64a()
	_, _ = h.Write(b)
	return fmt.Sprintf("%d bytes, sum %x", len(b), h.Sum64())
}

var errPatience = errors.New("difftest: waited too long") //nolint:gochecknoglobals // a constant
