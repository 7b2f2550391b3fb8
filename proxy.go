package keepalive

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"

	"github.com/keepalive-http/keepalive/internal/hostkey"
	"github.com/keepalive-http/keepalive/internal/wire"
)

// What a request and its connection have to do with a proxy:
//
//	proxy     target   on the connection                       shared between
//	http(s)   http     requests in the absolute form           all http targets
//	http(s)   https    CONNECT, then TLS to the target         requests to it
//	socks5    any      SOCKS, then TLS or not                  requests to it
//
// An https proxy has TLS of its own below all that.

// proxyFromEnvironment returns the proxy function of the environment as it is
// now, nil if that names no proxy.
func proxyFromEnvironment() func(*http.Request) (*url.URL, error) {
	env := httpproxy.FromEnvironment()
	if env.HTTPProxy == "" && env.HTTPSProxy == "" {
		return nil
	}
	of := env.ProxyFunc()
	return func(req *http.Request) (*url.URL, error) { return of(req.URL) }
}

// proxyFor returns the proxy that req has to go through, nil for none.
func (c *config) proxyFor(req *http.Request) (*url.URL, error) {
	if c.proxy == nil {
		return nil, nil
	}
	u, err := c.proxy(req)
	if err != nil {
		return nil, fmt.Errorf("keepalive: proxy function: %w", err)
	}
	if u == nil {
		return nil, nil
	}
	switch u.Scheme {
	case "", "http", "https", "socks5", "socks5h":
	default:
		return nil, fmt.Errorf("keepalive: unsupported proxy scheme %q", u.Scheme)
	}
	if u.Hostname() == "" {
		return nil, errors.New("keepalive: no host in the proxy URL")
	}
	return u, nil
}

// proxyAuth returns the value of Proxy-Authorization that the credentials in u
// make, "" for none.
func proxyAuth(u *url.URL) string {
	if u.User == nil {
		return ""
	}
	password, _ := u.User.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
}

// throughProxy connects to the proxy of target, and lets it connect to target
// unless it is to pass requests on.
func (d *dialer) throughProxy(ctx context.Context, target hop) (*conn, error) {
	u, err := target.key.ProxyURL()
	if err != nil {
		return nil, target.fail(PhaseProxy, fmt.Errorf("proxy URL: %w", err))
	}
	host, port, err := hostkey.Authority(u)
	if err != nil {
		return nil, target.fail(PhaseProxy, fmt.Errorf("proxy URL: %w", err))
	}
	via := hop{key: target.key, host: host, addr: net.JoinHostPort(host, port), proxy: true}
	c, err := d.reachProxy(ctx, via, u.Scheme == "https")
	if err != nil {
		return nil, err
	}
	switch {
	case hostkey.IsSOCKS(u):
		err = d.negotiate(ctx, c, func(ctx context.Context) error { return socksConnect(ctx, c.nc, u, via.addr, target.addr) })
	case !target.key.Forwarded():
		err = d.negotiate(ctx, c, func(ctx context.Context) error { return d.tunnel(ctx, c.nc, u, target.addr) })
	}
	if err != nil {
		_ = c.sc.Close()
		return nil, target.fail(PhaseProxy, err)
	}
	return c, nil
}

// reachProxy connects to a proxy, with TLS if secure.
func (d *dialer) reachProxy(ctx context.Context, via hop, secure bool) (*conn, error) {
	if secure && d.cfg.dialTLSContext != nil {
		return d.dialUserTLS(ctx, via)
	}
	c, err := d.connect(ctx, via, d.cfg.dialContext, d.cfg.dialTimeout)
	if err != nil || !secure {
		return c, err
	}
	if err := d.startTLS(ctx, c, via, d.proxyTLS); err != nil {
		_ = c.sc.Close()
		return nil, err
	}
	return c, nil
}

// negotiate runs ask, which gets the proxy on c to connect to the target,
// within the time for that.
func (d *dialer) negotiate(ctx context.Context, c *conn, ask func(context.Context) error) error {
	start := time.Now()
	ctx, cancel := withTimeout(ctx, d.cfg.proxyConnectTimeout, ErrProxyConnectTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, c.sc.Interrupt)
	err := ask(ctx)
	if !stop() {
		return context.Cause(ctx)
	}
	if err != nil {
		return phaseError(ctx, err, ErrProxyConnectTimeout)
	}
	c.rtt = time.Since(start) // to the target, not to the proxy alone
	return nil
}

// socksConnect asks a SOCKS proxy at addr for a connection to target. The
// proxy resolves its name.
func socksConnect(ctx context.Context, nc net.Conn, u *url.URL, addr, target string) error {
	var auth *proxy.Auth
	if u.User != nil {
		auth = &proxy.Auth{User: u.User.Username()}
		auth.Password, _ = u.User.Password()
	}
	d, err := proxy.SOCKS5("tcp", addr, auth, doneDialer{nc})
	if err != nil {
		return err
	}
	cd, ok := d.(proxy.ContextDialer)
	if !ok {
		bugf("%T has no DialContext", d)
	}
	// What it returns only hides nc: it has read no byte too many.
	_, err = cd.DialContext(ctx, "tcp", target)
	return err
}

// doneDialer stands in for a dialer: the connection is there.
type doneDialer struct{ nc net.Conn }

func (d doneDialer) Dial(string, string) (net.Conn, error) { return d.nc, nil }

func (d doneDialer) DialContext(context.Context, string, string) (net.Conn, error) { return d.nc, nil }

// tunnel asks an HTTP proxy for a tunnel to target (RFC 9110 section 9.3.6).
func (d *dialer) tunnel(ctx context.Context, nc net.Conn, u *url.URL, target string) error {
	req, err := d.connectRequest(ctx, u, target)
	if err != nil {
		return err
	}
	head := wire.AppendRequest(nil, req, &wire.RequestOptions{Host: removeZone(target), Target: target})
	if _, err := nc.Write(head); err != nil {
		return err
	}
	a := connectAnswer{rd: wire.GetReader(nc)}
	if err := a.read(d.cfg); err != nil {
		a.rd.Free()
		return answerError(err)
	}
	if f := d.cfg.onProxyConnectResponse; f != nil {
		if err := f(ctx, u, req, a.response(req)); err != nil { //nolint:bodyclose // the connection is closed
			return err // the reader is not freed: the function may have kept the body
		}
	}
	if resp := a.head.Response; resp.StatusCode != http.StatusOK {
		_, text, ok := strings.Cut(resp.Status, " ")
		if !ok {
			text = "unknown status code"
		}
		return errors.New(text)
	}
	defer a.rd.Free()
	if a.rd.Buffered() > 0 {
		// A TLS server waits to be spoken to: these bytes are not its own.
		return &marked{"the proxy sent more than its answer to CONNECT", []error{ErrMalformedResponse}}
	}
	return nil
}

// connectRequest makes the request for a tunnel to target.
func (d *dialer) connectRequest(ctx context.Context, u *url.URL, target string) (*http.Request, error) {
	for i := 0; i < len(target); i++ {
		if target[i] <= ' ' || target[i] == 0x7f {
			return nil, errors.New("the host has a space or a control character")
		}
	}
	header := make(http.Header)
	if f := d.cfg.proxyConnectHeader; f != nil {
		h, err := f(ctx, u, target)
		if err != nil {
			return nil, err
		}
		if h != nil {
			header = h
		}
	}
	if auth := proxyAuth(u); auth != "" {
		header = header.Clone()
		header.Set("Proxy-Authorization", auth)
	}
	return &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: header}, nil
}

// connectAnswer is what a proxy says to CONNECT.
type connectAnswer struct {
	rd   *wire.Reader
	head wire.Head
	body wire.Body
}

// read reads up to the head of the final answer.
func (a *connectAnswer) read(cfg *config) (err error) {
	limit := cfg.maxHeaderBytes
	for interim := 0; ; interim++ {
		if limit <= 0 || interim > cfg.maxInterim {
			return wire.ErrHeadTooLarge
		}
		a.head, err = wire.ReadHead(a.rd, http.MethodConnect, limit)
		if err != nil || isFinal(a.head) {
			return err
		}
		limit -= a.head.Size
	}
}

// response returns the answer as the user's function gets it. What follows
// a 200 is the tunnel, no body.
func (a *connectAnswer) response(req *http.Request) *http.Response {
	resp := a.head.Response
	resp.Request, resp.Body = req, http.NoBody
	if resp.StatusCode != http.StatusOK {
		a.body.Reset(a.rd, a.head, &resp.Trailer)
		resp.Body = io.NopCloser(&a.body)
	}
	return resp
}

// answerError is endError for the answer to CONNECT.
func answerError(err error) error {
	if errors.Is(err, io.EOF) {
		return &marked{"the proxy closed the connection without an answer", []error{io.ErrUnexpectedEOF, err}}
	}
	return endError(err, false, false)
}
