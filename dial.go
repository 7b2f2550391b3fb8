package keepalive

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"syscall"
	"time"

	"github.com/keepalive-http/keepalive/internal/hostkey"
	"github.com/keepalive-http/keepalive/internal/sock"
)

// dialer makes connections. Safe for concurrent use.
type dialer struct {
	cfg    *config
	dialer net.Dialer
	tls    *tls.Config // without a server name
}

func newDialer(cfg *config) *dialer {
	d := &dialer{
		cfg: cfg,
		dialer: net.Dialer{
			KeepAliveConfig: cfg.tcpKeepAlive,
			ControlContext: func(ctx context.Context, network, _ string, c syscall.RawConn) error {
				connecting(ctx)
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
	// HTTP/1.1 is what we speak, so it is all that we offer.
	d.tls.NextProtos = []string{"http/1.1"}
	if d.tls.ClientSessionCache == nil && !d.tls.SessionTicketsDisabled {
		d.tls.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	return d
}

// dial returns a connection for key on which HTTP/1.1 can be spoken, or an
// *Error that names the phase.
func (d *dialer) dial(ctx context.Context, key hostkey.Key) (*conn, error) {
	if key.Scheme == "https" && d.cfg.dialTLSContext != nil {
		return d.dialUserTLS(ctx, key)
	}
	nc, took, err := d.connect(ctx, key, d.cfg.dialContext)
	if err != nil {
		return nil, err
	}
	c := newConn(nc, took)
	if key.Scheme != "https" {
		return c, nil
	}
	cfg := d.tls
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		cfg.ServerName = key.Host
	}
	tc := tls.Client(c.sc, cfg)
	if err := d.handshake(ctx, key, tc); err != nil {
		_ = nc.Close()
		return nil, err
	}
	c.nc = tc
	return c, c.speakHTTP1(key, tc)
}

// dialUserTLS uses the user's dial function for https.
func (d *dialer) dialUserTLS(ctx context.Context, key hostkey.Key) (*conn, error) {
	nc, took, err := d.connect(ctx, key, d.cfg.dialTLSContext)
	if err != nil {
		return nil, err
	}
	if tc, ok := nc.(*tls.Conn); ok {
		if err := d.handshake(ctx, key, tc); err != nil {
			_ = nc.Close()
			return nil, err
		}
	}
	c := newConn(nc, took)
	if tc, ok := nc.(interface{ ConnectionState() tls.ConnectionState }); ok {
		return c, c.speakHTTP1(key, tc)
	}
	return c, nil
}

func newConn(nc net.Conn, rtt time.Duration) *conn {
	sc := sock.New(nc)
	c := &conn{sc: sc, nc: sc, rtt: rtt}
	c.checkable = sc.HasSocket() || sc.SetReadDeadline(time.Time{}) == nil
	return c
}

// speakHTTP1 takes over the TLS state; it fails, and closes c, when another
// protocol was negotiated.
func (c *conn) speakHTTP1(key hostkey.Key, tc interface{ ConnectionState() tls.ConnectionState }) error {
	cs := tc.ConnectionState()
	c.tls = &cs
	if p := cs.NegotiatedProtocol; p != "" && p != "http/1.1" && p != "http/1.0" {
		_ = c.nc.Close()
		return dialError(PhaseTLS, key, fmt.Errorf("the connection speaks %q, want HTTP/1.1", p))
	}
	return nil
}

// connect runs dial, the standard dialer when it is nil, and returns how long
// the round trip took.
func (d *dialer) connect(ctx context.Context, key hostkey.Key, dial dialFunc) (net.Conn, time.Duration, error) {
	if dial == nil {
		dial = d.dialer.DialContext
	}
	ctx, cancel := withTimeout(ctx, d.cfg.dialTimeout, ErrDialTimeout)
	defer cancel()
	timer := &connectTimer{Context: ctx, start: time.Now()}
	nc, err := dial(timer, "tcp", key.Addr())
	switch {
	case err != nil:
		return nil, 0, dialError(PhaseDial, key, phaseError(ctx, err, ErrDialTimeout))
	case nc == nil:
		return nil, 0, dialError(PhaseDial, key, errors.New("the dial function returned no connection"))
	}
	return nc, timer.sample(), nil
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// handshake runs the TLS handshake.
func (d *dialer) handshake(ctx context.Context, key hostkey.Key, tc *tls.Conn) error {
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
		err = dialError(PhaseTLS, key, named(err))
	}
	if trace != nil && trace.TLSHandshakeDone != nil {
		trace.TLSHandshakeDone(tc.ConnectionState(), err)
	}
	return err
}

func dialError(phase Phase, key hostkey.Key, err error) error {
	return &Error{Phase: phase, Host: key.String(), Err: err}
}

// withTimeout is context.WithTimeoutCause, where d <= 0 means none.
func withTimeout(ctx context.Context, d time.Duration, cause error) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, cause)
}

// phaseError returns err, or the timeout of our own that caused it; err itself
// would look like the end of the user's context then.
func phaseError(ctx context.Context, err, timeout error) error {
	if errors.Is(context.Cause(ctx), timeout) {
		return timeout
	}
	return err
}
