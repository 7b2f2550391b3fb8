package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The server is a process of its own, a loop that parses as little as it can.
// Its standard input takes commands, one a line; each is answered by a line on
// its standard output. It ends with its standard input.
const (
	cmdAccepted = "accepted" // how many connections were accepted
	cmdRelease  = "release"  // end all answers that are held back
	cmdHangup   = "hangup"   // send FIN on all connections, and tell when the other side's came
)

// hello is the server's first line.
type hello struct {
	Addrs []string // one for each host
	Cert  []byte   // TLS: what to trust
}

// hangups is the answer to cmdHangup.
type hangups struct {
	Noticed   int // peers that closed, too
	P50, Last time.Duration
}

// server is the state of the server process.
type server struct {
	s        *scenario
	head     []byte // all of the answer, or what comes before gate
	rest     []byte
	accepted atomic.Int64

	mu    sync.Mutex
	gate  chan struct{} // closed when answers are ended. Guarded by mu.
	peers map[*peer]bool
}

// peer is one connection of the server.
type peer struct {
	net.Conn
	hungUp atomic.Int64       // when FIN was sent; 0: not
	gone   chan time.Duration // how long after that the peer's came; capacity 1
}

// serve is the server process.
func serve(s *scenario, in io.Reader, out io.Writer) error {
	srv := &server{s: s, gate: make(chan struct{}), peers: make(map[*peer]bool)}
	srv.head, srv.rest = answer(s)
	var greeting hello
	var config *tls.Config
	if s.tls {
		cert, err := certificate()
		if err != nil {
			return err
		}
		config = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
		greeting.Cert = cert.Certificate[0]
	}
	listeners, err := listen(s.hosts)
	if err != nil {
		return err
	}
	for _, l := range listeners {
		greeting.Addrs = append(greeting.Addrs, l.Addr().String())
		go srv.accept(l, config) // ends with the process
	}
	lines := json.NewEncoder(out)
	if err := lines.Encode(greeting); err != nil {
		return err
	}
	for commands := bufio.NewScanner(in); commands.Scan(); {
		if err := lines.Encode(srv.obey(commands.Text())); err != nil {
			return err
		}
	}
	return nil
}

// listen returns a listener for each of n hosts, on one port.
func listen(n int) ([]net.Listener, error) {
	var config net.ListenConfig
	first, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil || n == 0 {
		return []net.Listener{first}, err
	}
	_, port, err := net.SplitHostPort(first.Addr().String())
	if err != nil {
		return nil, err
	}
	_ = first.Close()
	listeners := make([]net.Listener, n)
	for i := range listeners {
		addr := fmt.Sprintf("127.0.%d.%d:%s", 1+i/250, 1+i%250, port)
		if listeners[i], err = config.Listen(context.Background(), "tcp", addr); err != nil {
			return nil, err
		}
	}
	return listeners, nil
}

// answer returns the answer to every request of s, and what of it is held back.
func answer(s *scenario) (head, rest []byte) {
	const fields = "HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\n" +
		"Content-Type: text/plain; charset=utf-8\r\nVary: Accept-Encoding\r\nCache-Control: no-cache\r\n"
	var b bytes.Buffer
	b.WriteString(fields)
	size := bodySize(s)
	switch {
	case s.kind == kindIdle || s.kind == kindHangup:
		b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		fmt.Fprintf(&b, "%x\r\n%s\r\n", size, strings.Repeat("x", size))
		return b.Bytes(), []byte("0\r\n\r\n")
	case s.chunks > 0:
		b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		for range s.chunks {
			fmt.Fprintf(&b, "%x\r\n%s\r\n", size/s.chunks, strings.Repeat("x", size/s.chunks))
		}
		b.WriteString("0\r\n\r\n")
	default:
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size))
	}
	return b.Bytes(), nil
}

// bodySize is the size of a response body.
func bodySize(s *scenario) int {
	if s.download == 0 {
		return 128
	}
	return s.download
}

// accept accepts until the process ends.
func (srv *server) accept(l net.Listener, config *tls.Config) {
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench server:", err)
			return
		}
		srv.accepted.Add(1)
		if config != nil {
			c = tls.Server(c, config)
		}
		p := &peer{Conn: c, gone: make(chan time.Duration, 1)}
		srv.mu.Lock()
		srv.peers[p] = true
		srv.mu.Unlock()
		go srv.serve(p) // ends with the connection
	}
}

// serve answers requests until the connection ends.
func (srv *server) serve(p *peer) {
	size := 4 << 10
	if srv.s.upload > 0 {
		size = 64 << 10
	}
	buf := make([]byte, size)
	for srv.readRequest(p, buf) == nil {
		gate := srv.currentGate()
		if _, err := p.Write(srv.head); err != nil {
			break
		}
		if srv.rest == nil {
			continue
		}
		<-gate
		if _, err := p.Write(srv.rest); err != nil {
			break
		}
	}
	if at := p.hungUp.Load(); at != 0 {
		p.gone <- time.Duration(time.Now().UnixNano() - at)
	}
	srv.mu.Lock()
	delete(srv.peers, p)
	srv.mu.Unlock()
	_ = p.Close()
}

func (srv *server) currentGate() chan struct{} {
	if srv.rest == nil {
		return nil
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return srv.gate
}

// readRequest reads one request. The size of its body is known.
func (srv *server) readRequest(c net.Conn, buf []byte) error {
	end := []byte("\r\n\r\n")
	for n := 0; n < len(buf); {
		m, err := c.Read(buf[n:])
		if err != nil {
			return err
		}
		n += m
		if srv.s.upload == 0 {
			if bytes.HasSuffix(buf[:n], end) {
				return nil
			}
			continue
		}
		head := bytes.Index(buf[:n], end)
		if head < 0 {
			continue
		}
		for left := srv.s.upload - (n - head - len(end)); left > 0; left -= m {
			if m, err = c.Read(buf); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.New("request too large")
}

// obey carries out a command and returns what there is to say.
func (srv *server) obey(command string) any {
	switch command {
	case cmdAccepted:
		return srv.accepted.Load()
	case cmdRelease:
		srv.mu.Lock()
		defer srv.mu.Unlock()
		close(srv.gate)
		srv.gate = make(chan struct{})
		return true
	case cmdHangup:
		return srv.hangup()
	}
	return "unknown command"
}

// hangup sends FIN to all peers and waits for theirs.
func (srv *server) hangup() (h hangups) {
	srv.mu.Lock()
	peers := make([]*peer, 0, len(srv.peers))
	for p := range srv.peers {
		peers = append(peers, p)
	}
	srv.mu.Unlock()
	for _, p := range peers {
		p.hungUp.Store(time.Now().UnixNano())
		if c, ok := p.Conn.(*net.TCPConn); ok {
			_ = c.CloseWrite()
		}
	}
	timeout := time.NewTimer(srv.s.patience)
	defer timeout.Stop()
	var after []time.Duration
	late := false
	for _, p := range peers {
		if !late {
			select {
			case d := <-p.gone:
				after = append(after, d)
				continue
			case <-timeout.C:
				late = true
			}
		}
		select {
		case d := <-p.gone:
			after = append(after, d)
		default:
			_ = p.Close()
		}
	}
	if len(after) > 0 {
		slices.Sort(after)
		h = hangups{Noticed: len(after), P50: after[len(after)/2], Last: after[len(after)-1]}
	}
	return h
}

// certificate makes one for the first host.
func certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "bench"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// remote is the server process, seen from the client's.
type remote struct {
	hello
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// startServer starts the server process for a job.
func startServer(ctx context.Context, j *job) (*remote, error) {
	cmd, err := j.command(ctx, roleServer)
	if err != nil {
		return nil, err
	}
	r := &remote{cmd: cmd}
	if r.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	r.out = json.NewDecoder(out)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if err := r.out.Decode(&r.hello); err != nil {
		r.stop()
		return nil, fmt.Errorf("server: %w", err)
	}
	return r, nil
}

// ask sends a command and reads its answer into v.
func (r *remote) ask(command string, v any) error {
	if _, err := io.WriteString(r.in, command+"\n"); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if err := r.out.Decode(v); err != nil {
		return fmt.Errorf("server: %s: %w", command, err)
	}
	return nil
}

// stop ends the server process and waits for it.
func (r *remote) stop() {
	_ = r.in.Close()
	_ = r.cmd.Wait()
}
