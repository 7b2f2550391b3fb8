package keepalive

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"syscall"
	"time"

	"github.com/keepalive-http/keepalive/internal/hostkey"
	"github.com/keepalive-http/keepalive/internal/sock"
)

// dialer makes connections. Safe for concurrent use.
type dialer struct {
	cfg    *config
	dialer net.Dialer
	// All without a server name. They share their session cache. http1TLS is for
	// what needs HTTP/1.1, proxyTLS for proxies.
	tls, http1TLS, proxyTLS *tls.Config
	// speakHTTP2 makes a connection speak HTTP/2.
	speakHTTP2 func(context.Context, *conn) error
}

func newDialer(cfg *config, speakHTTP2 func(context.Context, *conn) error) *dialer {
	d := &dialer{
		cfg: cfg, speakHTTP2: speakHTTP2,
		dialer: net.Dialer{
			KeepAliveConfig: cfg.tcpKeepAlive,
			ControlContext: func(ctx context.Context, network, _ string, c syscall.RawConn) error {
				connecting(ctx)
				if cfg.tcpUserTimeout <= 0 {
					return nil
				}
				return sock.SetUserTimeout(network, c, cfg.tcpUserTimeout)
			},
		},
		tls: &tls.Config{},
	}
	if !cfg.tcpKeepAlive.Enable {
		d.dialer.KeepAlive = -1
	}
	if cfg.tlsConfig != nil {
		d.tls = cfg.tlsConfig.Clone()
	}
	// A session that resumes asks for no certificate and verifies no peer's: whose it
	// is, and whether it is still good, was decided for another connection.
	if d.tls.ClientSessionCache == nil && !d.tls.SessionTicketsDisabled &&
		d.tls.GetClientCertificate == nil && d.tls.VerifyPeerCertificate == nil {
		d.tls.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	d.tls.NextProtos = nil
	if cfg.protocols.HTTP2() {
		d.tls.NextProtos = append(d.tls.NextProtos, protoHTTP2)
	}
	if cfg.protocols.HTTP1() {
		d.tls.NextProtos = append(d.tls.NextProtos, protoHTTP1)
	}
	d.http1TLS = d.tls.Clone()
	d.http1TLS.NextProtos = []string{protoHTTP1}
	d.proxyTLS = d.http1TLS.Clone()
	return d
}

// Names of protocols in ALPN (RFC 7301).
const (
	protoHTTP1 = "http/1.1"
	protoHTTP2 = "h2"
)

// mayShare reports whether a connection for key may turn out to take several
// requests at a time.
func (c *config) mayShare(key hostkey.Key) bool {
	if key.Scheme == "https" {
		return c.protocols.HTTP2() && !key.HTTP1
	}
	return c.plainHTTP2()
}

// plainHTTP2 reports whether HTTP/2 is spoken without TLS, by prior knowledge
// (RFC 9113 section 3.3).
func (c *config) plainHTTP2() bool { return c.protocols.UnencryptedHTTP2() && !c.protocols.HTTP1() }

// choose chooses the protocol of c, a connection to h: what TLS has negotiated,
// or what is to be spoken without.
func (d *dialer) choose(ctx context.Context, c *conn, h hop) error {
	negotiated := ""
	if c.tls != nil {
		negotiated = c.tls.NegotiatedProtocol
	}
	allowed := &d.cfg.protocols
	var err error
	switch {
	case negotiated == protoHTTP2 && allowed.HTTP2() && !h.key.HTTP1, c.tls == nil && d.cfg.plainHTTP2():
		err = d.speakHTTP2(ctx, c)
	case negotiated != "" && negotiated != protoHTTP1 && negotiated != "http/1.0":
		err = fmt.Errorf("the connection speaks %q, want %v", negotiated, allowed)
	case !allowed.HTTP1():
		err = fmt.Errorf("the connection speaks HTTP/1, want %v", allowed)
	}
	if err != nil {
		return h.fail(PhaseTLS, err)
	}
	return nil
}

// hop is a peer to connect to: the target of a connection, or its proxy.
type hop struct {
	key        hostkey.Key // of the connection
	host, addr string
	proxy      bool
}

// fail makes the error of what failed at h. As in net/http, what keeps us from
// a proxy is a *net.OpError.
func (h hop) fail(phase Phase, err error) error {
	if h.proxy {
		err = &net.OpError{Op: "proxyconnect", Net: "tcp", Err: err}
	}
	return &Error{Phase: phase, Host: h.key.Peer(), Err: err}
}

// dial returns a connection for key, or an *Error that names the phase. It takes
// three steps: a stream to the target, TLS on it, the choice of the protocol.
func (d *dialer) dial(ctx context.Context, key hostkey.Key) (*conn, error) {
	target := hop{key: key, host: key.Host, addr: key.Addr()}
	c, secure, err := d.stream(ctx, target)
	if err != nil {
		return nil, err
	}
	if key.Scheme == "https" && !secure {
		cfg := d.tls
		if key.HTTP1 {
			cfg = d.http1TLS
		}
		err = d.startTLS(ctx, c, target, cfg)
	}
	if err == nil {
		err = d.choose(ctx, c, target)
	}
	if err != nil {
		_ = c.sc.Close()
		return nil, err
	}
	return c, nil
}

// stream returns a connection that carries bytes to the target, or to a proxy
// that passes requests on. secure: it is one of the user's, with TLS on it.
func (d *dialer) stream(ctx context.Context, target hop) (c *conn, secure bool, err error) {
	switch {
	case target.key.Proxy != "":
		c, err = d.throughProxy(ctx, target)
	case target.key.Scheme == "https" && d.cfg.dialTLSContext != nil:
		c, err = d.dialUserTLS(ctx, target)
		secure = true
	default:
		c, err = d.connect(ctx, target, d.cfg.dialContext, d.cfg.dialTimeout)
	}
	return c, secure, err
}

// userDials reports whether the first hop of a connection for key is dialed by a
// function of the user's.
func (c *config) userDials(key hostkey.Key) bool {
	secure := key.Scheme == "https"
	if key.Proxy != "" {
		secure = strings.HasPrefix(key.Proxy, "https:")
	}
	return secure && c.dialTLSContext != nil || c.dialContext != nil
}

// dialUserTLS connects with the user's dial function for TLS.
func (d *dialer) dialUserTLS(ctx context.Context, h hop) (*conn, error) {
	timeout := d.cfg.dialTimeout
	if d.cfg.ownTLSDialTime {
		timeout = 0
	}
	c, err := d.connect(ctx, h, d.cfg.dialTLSContext, timeout)
	if err != nil {
		return nil, err
	}
	nc := c.sc.NetConn()
	if tc, ok := nc.(*tls.Conn); ok {
		if err := d.handshake(ctx, h, tc); err != nil {
			_ = nc.Close()
			return nil, err
		}
	}
	if tc, ok := nc.(interface{ ConnectionState() tls.ConnectionState }); ok {
		cs := tc.ConnectionState()
		c.tls = &cs
	}
	return c, nil
}

// startTLS puts TLS on what c is so far.
func (d *dialer) startTLS(ctx context.Context, c *conn, h hop, cfg *tls.Config) error {
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		cfg.ServerName = h.host
	}
	below := c.nc
	if c.sc.Direct() && below == net.Conn(&c.sc) { // not for TLS within TLS
		below = sock.NewRecords(&c.sc)
	}
	tc := tls.Client(below, cfg)
	if err := d.handshake(ctx, h, tc); err != nil {
		return err
	}
	cs := tc.ConnectionState()
	c.nc, c.tls = tc, &cs
	return nil
}

// mayRenegotiate reports whether TLS may shake hands again on c (not since TLS
// 1.3), which for crypto/tls is over for good when a deadline passes meanwhile. Of
// TLS within TLS only the version of the inner one is known.
func (d *dialer) mayRenegotiate(c *conn) bool {
	return c.tls != nil && d.tls.Renegotiation != tls.RenegotiateNever &&
		(c.tls.Version < tls.VersionTLS13 || c.records() == nil)
}

// newConn makes a connection of nc. TLS, and TLS within TLS, goes on top: the
// socket below stays ours to look at.
func newConn(nc net.Conn, rtt time.Duration) *conn {
	c := &conn{rtt: rtt, protocol: http1{}, capacity: 1}
	c.sc.Init(nc)
	c.nc = &c.sc
	// A deadline of the dial function's has no say in requests.
	heeds := c.sc.SetDeadline(time.Time{}) == nil
	c.checkable = heeds || c.sc.HasSocket()
	return c
}

// connect runs dial, the standard dialer when it is nil, for at most timeout (0:
// any time).
func (d *dialer) connect(ctx context.Context, h hop, dial dialFunc, timeout time.Duration) (*conn, error) {
	if dial == nil {
		dial = d.dialer.DialContext
	}
	ctx, cancel := withTimeout(ctx, timeout, ErrDialTimeout)
	defer cancel()
	timer := &connectTimer{Context: ctx, start: time.Now()}
	nc, err := dial(timer, "tcp", h.addr)
	switch {
	case err != nil:
		return nil, h.fail(PhaseDial, phaseError(ctx, err, ErrDialTimeout))
	case nc == nil:
		return nil, h.fail(PhaseDial, errors.New("the dial function returned no connection"))
	}
	return newConn(nc, timer.sample()), nil
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// handshake runs the TLS handshake.
func (d *dialer) handshake(ctx context.Context, h hop, tc *tls.Conn) error {
	trace := httptrace.ContextClientTrace(ctx)
	if trace != nil && trace.TLSHandshakeStart != nil {
		trace.TLSHandshakeStart()
	}
	ctx, cancel := withTimeout(ctx, d.cfg.tlsTimeout, ErrTLSHandshakeTimeout)
	defer cancel()
	err := tc.HandshakeContext(ctx)
	if err != nil {
		err = phaseError(ctx, err, ErrTLSHandshakeTimeout)
		// A server that answers TLS with HTTP does not speak TLS there.
		if re, ok := errors.AsType[tls.RecordHeaderError](err); ok && string(re.RecordHeader[:]) == "HTTP/" {
			err = &marked{http.ErrSchemeMismatch.Error(), []error{http.ErrSchemeMismatch, err}}
		}
		err = h.fail(PhaseTLS, named(err))
	}
	if trace != nil && trace.TLSHandshakeDone != nil {
		trace.TLSHandshakeDone(tc.ConnectionState(), err)
	}
	return err
}

// withTimeout is context.WithTimeoutCause, where d <= 0 means none.
func withTimeout(ctx context.Context, d time.Duration, cause error) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, cause)
}

// phaseError returns err, or the timeout of our own that caused it; err itself
// would look like the end of the user's context then. ctx is of a dial: it has
// no deadline but ours.
func phaseError(ctx context.Context, err, timeout error) error {
	if at, ok := ctx.Deadline(); ok && isTimeout(err) && !time.Now().Before(at) {
		<-ctx.Done() // a socket may be faster than the context's timer
	}
	if errors.Is(context.Cause(ctx), timeout) {
		return timeout
	}
	return err
}
