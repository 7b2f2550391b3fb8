package difftest

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// Road is a way from the client to the server that answers.
type Road struct {
	Name string
	// Scheme is that of the target.
	Scheme string
	// HTTP2: the server speaks it, and the client may.
	HTTP2 bool
	// Proxy is the scheme of the proxy, empty for none. It has a password.
	Proxy string
}

func roads() []Road {
	return []Road{
		{Name: "http", Scheme: "http"},
		{Name: "https", Scheme: "https"},
		{Name: "http2", Scheme: "https", HTTP2: true},
		{Name: "h2c", Scheme: "http", HTTP2: true},
		{Name: "http via http proxy", Scheme: "http", Proxy: "http"},
		{Name: "https via http proxy", Scheme: "https", Proxy: "http"},
		{Name: "http2 via http proxy", Scheme: "https", HTTP2: true, Proxy: "http"},
		{Name: "https via https proxy", Scheme: "https", Proxy: "https"},
		{Name: "http via socks5", Scheme: "http", Proxy: "socks5"},
	}
}

// Plain reports whether it is HTTP/1 without a proxy.
func (r Road) Plain() bool { return !r.HTTP2 && r.Proxy == "" }

// The roads of scenarios that are not for all.
func overHTTP1(r Road) bool { return !r.HTTP2 }
func direct(r Road) bool    { return r.Proxy == "" }

// basic is for what does not depend on how the connection came to be: one road
// for each way to write a request.
func basic(r Road) bool { return r.Scheme == "http" && r.Proxy != "socks5" }

// forwarded reports whether the proxy gets the requests, in the absolute form.
func (r Road) forwarded() bool { return r.Proxy != "" && r.Proxy != "socks5" && r.Scheme == "http" }

func (r Road) firstHop() string {
	if r.Proxy != "" {
		return r.Proxy
	}
	return r.Scheme
}

// origin returns what the URLs of the target begin with: through a proxy a name
// that only that can know.
func (r Road) origin(addr string) string {
	if r.Proxy != "" {
		addr = "example.com"
	}
	return r.Scheme + "://" + addr
}

// setup makes tr, and what is at the first hop of s, take this road.
func (r Road) setup(tr *http.Transport, s *Server) {
	if r.HTTP2 {
		tr.Protocols = new(http.Protocols)
		tr.Protocols.SetUnencryptedHTTP2(r.Scheme == "http")
		tr.Protocols.SetHTTP2(r.Scheme == "https")
		tr.Protocols.SetHTTP1(r.Scheme == "https")
	}
	if r.Proxy == "" {
		return
	}
	tr.Proxy = http.ProxyURL(&url.URL{Scheme: r.Proxy, Host: s.Addr, User: url.UserPassword("me", "secret")})
	switch {
	case r.Proxy == "socks5":
		socksProxy(2, 0, socksGranted, false)(tr, s)
	case !r.forwarded():
		s.greetWith(func(nc net.Conn) (net.Conn, bool) { return s.connect(nc, r.Proxy == "https") })
	}
}

// connect answers CONNECT on nc, with TLS if secure, and returns the tunnel.
func (s *Server) connect(nc net.Conn, secure bool) (net.Conn, bool) {
	if secure {
		nc = s.secure(nc)
	}
	br := bufio.NewReader(nc)
	var head strings.Builder
	for !strings.HasSuffix(head.String(), "\r\n\r\n") {
		line, err := br.ReadString('\n')
		if err != nil {
			return nc, false
		}
		head.WriteString(line)
	}
	s.note(fmt.Sprint(s.step.Load(), " sent to the proxy"), fmt.Sprintf("%q", head.String()))
	if br.Buffered() > 0 {
		s.note(fmt.Sprint(s.step.Load(), " sent too early"), "yes")
	}
	_, err := io.WriteString(nc, connected)
	return nc, err == nil
}

// realServer is an http.Server behind the first hop of a Server.
type realServer struct {
	s      *Server
	handle http.HandlerFunc
	srv    *http.Server
	conns  chan net.Conn
	done   chan struct{}
	served chan struct{} // closed when nothing is accepted any more

	// gone has a value when the last connection has been closed.
	gone chan struct{}

	mu       sync.Mutex // guards the rest
	closing  bool
	open     int
	requests map[net.Conn]int
	wg       sync.WaitGroup // of handlers
}

func newRealServer(s *Server, road Road, handle http.HandlerFunc) *realServer {
	r := &realServer{
		s: s, handle: handle, conns: make(chan net.Conn), done: make(chan struct{}), served: make(chan struct{}), gone: make(chan struct{}, 100),
		requests: make(map[net.Conn]int),
	}
	r.srv = &http.Server{
		Handler: r, ErrorLog: quiet(), Protocols: new(http.Protocols), ReadHeaderTimeout: 2 * patience,
		TLSConfig:   &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*s.cert}},
		ConnState:   r.state,
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context { return context.WithValue(ctx, connKey{}, nc) },
	}
	r.srv.Protocols.SetHTTP1(true)
	r.srv.Protocols.SetHTTP2(road.HTTP2)
	r.srv.Protocols.SetUnencryptedHTTP2(road.HTTP2)
	go func() {
		defer close(r.served)
		if road.Scheme == "https" {
			_ = r.srv.ServeTLS(r, "", "")
		} else {
			_ = r.srv.Serve(r)
		}
	}()
	return r
}

// state counts connections.
func (r *realServer) state(_ net.Conn, state http.ConnState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch state {
	case http.StateNew:
		r.open++
	case http.StateClosed, http.StateHijacked:
		if r.open--; r.open == 0 {
			r.gone <- struct{}{}
		}
	case http.StateActive, http.StateIdle:
	}
}

type (
	connKey   struct{}
	serverKey struct{}
)

// serverOf returns the Server of a handler's request.
func serverOf(r *http.Request) *Server {
	s, _ := r.Context().Value(serverKey{}).(*Server)
	return s
}

// take makes the server answer on nc.
func (r *realServer) take(nc net.Conn) {
	select {
	case r.conns <- nc:
	case <-r.done:
	}
}

// Accept makes realServer the net.Listener of its http.Server.
func (r *realServer) Accept() (net.Conn, error) {
	select {
	case nc := <-r.conns:
		return nc, nil
	case <-r.done:
		return nil, errors.New("difftest: closed")
	}
}

// Close does nothing: close does.
func (r *realServer) Close() error { return nil }

// Addr returns the address of the first hop.
func (r *realServer) Addr() net.Addr { return r.s.lns[0].Addr() }

// close returns when nothing is running any more. The connections have been
// cut.
func (r *realServer) close() {
	close(r.done)
	<-r.served
	_ = r.srv.Close()
	r.mu.Lock()
	r.closing = true
	r.mu.Unlock()
	r.wg.Wait()
}

// ServeHTTP runs the scenario's handler and notes what it was given.
func (r *realServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	nc, _ := req.Context().Value(connKey{}).(net.Conn)
	r.mu.Lock()
	if r.closing {
		r.mu.Unlock()
		return
	}
	r.wg.Add(1)
	r.requests[nc]++
	used := r.requests[nc] > 1
	r.mu.Unlock()
	defer r.wg.Done()

	s, step := r.s, r.s.step.Load()
	note := func(what, value string) {
		if step == 0 {
			return // many at once
		}
		s.note(fmt.Sprint(step, " sent ", what), replace(value, s.Addr))
	}
	note("used connection", fmt.Sprint(used))
	note("request", fmt.Sprintf("%s %s %s %s", req.Method, req.RequestURI, req.Host, req.Proto))
	note("header", fmt.Sprintf("%q", req.Header))
	note("length", fmt.Sprint(req.ContentLength, req.TransferEncoding, req.Close, req.TLS != nil))
	note("announced trailer", fmt.Sprintf("%q", req.Trailer))
	body := &givenBody{ReadCloser: req.Body}
	req = req.WithContext(context.WithValue(req.Context(), serverKey{}, s))
	req.Body = body
	w.Header()["Date"] = nil
	defer func() {
		note("body", body.String())
		note("trailer", fmt.Sprintf("%q", req.Trailer))
	}()
	r.handle(w, req)
}

// replace puts a name in the place of an address.
func replace(s, addr string) string { return strings.ReplaceAll(s, addr, "ADDR") }

// givenBody is a request body that tells what a handler has read of it.
type givenBody struct {
	io.ReadCloser

	mu   sync.Mutex
	data []byte
	err  error
}

func (b *givenBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p[:n]...)
	if err != nil {
		b.err = err
	}
	return n, err
}

func (b *givenBody) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case errors.Is(b.err, io.EOF):
		return digest(b.data)
	case b.err != nil:
		return "cut short" // how much arrives is not fixed
	}
	return "not read to its end"
}
