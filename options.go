package keepalive

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Option is a setting for New. Options apply in their order, later ones win.
type Option func(*config) error

// IdleOrder says which idle connection of a host is used next.
type IdleOrder uint8

const (
	// LIFO takes the one that was used last: the fewest connections stay in
	// use and the rest can expire. The default.
	LIFO IdleOrder = iota
	// FIFO takes the one that has been idle longest: requests spread evenly
	// over all connections, for layer-4 balancers. It also keeps every
	// connection from becoming idle for long, so combine it with
	// WithMaxConnLifetime.
	FIFO
)

// String returns "LIFO" or "FIFO".
func (o IdleOrder) String() string {
	switch o {
	case LIFO:
		return "LIFO"
	case FIFO:
		return "FIFO"
	}
	return fmt.Sprintf("IdleOrder(%d)", uint8(o))
}

// count makes an option for a number that is at least least.
func count(name string, n, least int, zero string, set func(*config)) Option {
	return func(c *config) error {
		if n < least {
			return &OptionError{name, n, fmt.Sprintf("want >= %d%s", least, zero)}
		}
		set(c)
		c.given[name] = n
		return nil
	}
}

// duration makes an option for a time that is not negative.
func duration(name string, d time.Duration, zero string, set func(*config)) Option {
	return func(c *config) error {
		if d < 0 {
			return &OptionError{name, d, "want >= 0" + zero}
		}
		set(c)
		c.given[name] = d
		return nil
	}
}

// WithMaxConns limits the connections to all hosts together: in use, idle, being
// dialed, and handed over (101, CONNECT). At the limit the longest idle connection
// of any host makes room; a request waits only when none is idle. A host that has
// no connection may always open its first, above the limit. Where connections go
// from request to request of one host, one of them is closed for another host that
// has fewer and has waited for 100 ms, ten a second at most. 0 means no limit, the
// default.
func WithMaxConns(n int) Option {
	return count("WithMaxConns", n, 0, " (0 means no limit)", func(c *config) { c.maxConns = n })
}

// WithMaxConnsPerHost limits the connections to one host: in use, idle, being
// dialed, and handed over (101, CONNECT). At the limit requests wait in order of
// arrival. A connection counts until its socket is closed. A host is what has connections of its own:
// scheme, host, port and proxy, with WithPoolKey each key, and requests whose
// credentials are the connection's. It may not be above WithMaxConns. 0 means no
// limit, the default.
func WithMaxConnsPerHost(n int) Option {
	return count("WithMaxConnsPerHost", n, 0, " (0 means no limit)", func(c *config) { c.maxConnsPerHost = n })
}

// WithMaxIdleConns limits the idle connections to all hosts together. When it
// is passed, the one that has been idle longest is closed. 0 means no limit.
// The default is 512. It may not be above WithMaxConns. Where it was not given,
// it yields to WithMaxConns, and to a larger WithMaxIdleConnsPerHost.
func WithMaxIdleConns(n int) Option {
	return count("WithMaxIdleConns", n, 0, " (0 means no limit)", func(c *config) { c.maxIdle = n })
}

// WithMaxIdleConnsPerHost limits the idle connections to one host. When it is
// passed, the one that has been idle longest is closed. 0 means no limit
// (unlike net/http, where 0 means 2; see WithDisableKeepAlives to keep none).
// The default is 64. It may not be above WithMaxIdleConns or WithMaxConnsPerHost.
// Where it was not given, it yields to them.
func WithMaxIdleConnsPerHost(n int) Option {
	return count("WithMaxIdleConnsPerHost", n, 0, " (0 means no limit)", func(c *config) {
		c.maxIdlePerHost, c.keepNoneIdle = n, false
	})
}

// WithMaxWaiters limits how many requests may wait for a connection to one
// host because a limit is reached; the next one fails at once with
// ErrTooManyWaiters. Requests that wait for a dial of their own do not count.
// 0 means no limit, the default.
func WithMaxWaiters(n int) Option {
	return count("WithMaxWaiters", n, 0, " (0 means no limit)", func(c *config) { c.maxWaiters = n })
}

// WithMaxRequestsPerConn limits how many requests one connection serves. The
// last one carries "Connection: close", so that the server closes first.
// 0 means no limit, the default.
func WithMaxRequestsPerConn(n int) Option {
	return count("WithMaxRequestsPerConn", n, 0, " (0 means no limit)", func(c *config) { c.maxRequestsPerConn = n })
}

// WithMaxResponseHeaderBytes limits the head of an answer. Interim (1xx)
// answers share the limit with the final one, unless an httptrace
// Got1xxResponse hook sees them; then it holds for each. Over HTTP/2 a larger
// head ends the connection. The default is 1 MiB.
func WithMaxResponseHeaderBytes(n int) Option {
	return count("WithMaxResponseHeaderBytes", n, 1, "", func(c *config) { c.maxHeaderBytes = n })
}

// WithIdleConnTimeout is how long a connection may stay idle. Set it below the
// server's own limit; a Keep-Alive: timeout of the server shortens it for its
// connection, and so does a limit that the server has shown by ending idle
// connections after the same time again and again. 0 means no limit. The default is 50 s.
func WithIdleConnTimeout(d time.Duration) Option {
	return duration("WithIdleConnTimeout", d, " (0 means never)", func(c *config) { c.idleTimeout = d })
}

// WithMaxConnLifetime is how long after its dial a connection may still start
// a request. An exchange is never cut off by it. It makes clients see DNS
// changes and new backends. An HTTP/2 connection in use is shared on beyond it while
// a limit (WithMaxConnsPerHost, WithMaxConns) allows no other. 0 means no limit. The
// default is 15 minutes.
func WithMaxConnLifetime(d time.Duration) Option {
	return duration("WithMaxConnLifetime", d, " (0 means no limit)", func(c *config) { c.maxLifetime = d })
}

// WithLifetimeJitter shortens each connection's lifetime by a random part of
// at most this fraction, so that connections do not end together. It is drawn
// once per connection and never lengthens. From 0 (none) to 1. The default is
// 0.1. WithMaxConnLifetime(0) refuses it.
func WithLifetimeJitter(fraction float64) Option {
	return func(c *config) error {
		if math.IsNaN(fraction) || fraction < 0 || fraction > 1 {
			return &OptionError{"WithLifetimeJitter", fraction, "want a fraction from 0 to 1"}
		}
		c.lifetimeJitter = fraction
		c.given["WithLifetimeJitter"] = fraction
		return nil
	}
}

// WithIdleOrder says which idle connection of a host is used next. The default
// is LIFO.
func WithIdleOrder(o IdleOrder) Option {
	return func(c *config) error {
		if o != LIFO && o != FIFO {
			return &OptionError{"WithIdleOrder", o, "want LIFO or FIFO"}
		}
		c.idleOrder = o
		return nil
	}
}

// WithAcquireTimeout is how long a request may wait for a connection because a
// limit is reached; it fails with ErrAcquireTimeout then. It is asked when that
// time has passed since the wait began: one that waits for a dial then
// (WithDialTimeout) has the same time again. 0 means no limit but the context's,
// the default.
func WithAcquireTimeout(d time.Duration) Option {
	return duration("WithAcquireTimeout", d, " (0 means no limit)", func(c *config) { c.acquire = d })
}

// WithDialTimeout is how long name resolution and the TCP connection may take,
// also with a WithDialContext function, if that heeds its context. To open HTTP/2 on
// a connection may take as long again. 0 means no limit. The default is 10 s.
func WithDialTimeout(d time.Duration) Option {
	return duration("WithDialTimeout", d, " (0 means no limit)", func(c *config) {
		c.dialTimeout, c.ownTLSDialTime = d, false
	})
}

// WithTLSHandshakeTimeout is how long the TLS handshake may take. 0 means no
// limit. The default is 10 s.
func WithTLSHandshakeTimeout(d time.Duration) Option {
	return duration("WithTLSHandshakeTimeout", d, " (0 means no limit)", func(c *config) { c.tlsTimeout = d })
}

// WithResponseHeaderTimeout is how long the head of the answer may take after
// the request, with its body, was sent. 0 means no limit, the default.
func WithResponseHeaderTimeout(d time.Duration) Option {
	return duration("WithResponseHeaderTimeout", d, " (0 means no limit)", func(c *config) { c.responseHeader = d })
}

// WithExpectContinueTimeout is how long a request with "Expect: 100-continue"
// waits for the go-ahead before it sends its body anyway. 0 means not to wait.
// The default is 1 s.
func WithExpectContinueTimeout(d time.Duration) Option {
	return duration("WithExpectContinueTimeout", d, " (0 means not to wait)", func(c *config) { c.expectContinue = d })
}

// WithBodyReadTimeout is how long one read of the response body may wait for a
// byte: a limit on inactivity, not on the whole body. Time that the reader
// spends elsewhere does not count. 0 means no limit, the default.
func WithBodyReadTimeout(d time.Duration) Option {
	return duration("WithBodyReadTimeout", d, " (0 means no limit)", func(c *config) { c.bodyRead = d })
}

// WithWriteTimeout is how long sending may go without progress: not one byte
// accepted by the socket or acknowledged by the peer. Time that Request.Body
// takes to produce bytes does not count. 0 means no limit, the default.
//
// Over HTTP/2 all requests of the connection fail, and waiting for the peer to
// allow more of a body does not count; HTTP2Config.WriteByteTimeout replaces it.
func WithWriteTimeout(d time.Duration) Option {
	return duration("WithWriteTimeout", d, " (0 means no limit)", func(c *config) { c.write = d })
}

// WithRequestTimeout limits the whole exchange, from the call of RoundTrip to
// the last byte of the response body. It does what http.Client.Timeout does
// for one round trip, and costs less. 0 means no limit, the default.
func WithRequestTimeout(d time.Duration) Option {
	return duration("WithRequestTimeout", d, " (0 means no limit)", func(c *config) { c.request = d })
}

// WithTCPKeepAlive sets the probes of idle and active TCP connections. The
// default is 15 s idle, 15 s apart, 3 probes. The zero value sends none; with
// Enable, a field that is 0 is Go's default (15 s, 15 s, 9). It has no effect
// with WithDialContext.
func WithTCPKeepAlive(k net.KeepAliveConfig) Option {
	return func(c *config) error {
		c.tcpKeepAlive = k
		c.given["WithTCPKeepAlive"] = k
		return nil
	}
}

// WithTCPUserTimeout is how long sent bytes may stay unacknowledged before the
// system gives the connection up (TCP_USER_TIMEOUT, Linux; ignored elsewhere). It
// does not hold while a body is streamed over HTTP/1.1, nor on a connection that is
// handed over: a peer that pauses counts as gone for it, see WithWriteTimeout.
// 0 means the system's default. The default is 30 s. It has no effect with
// WithDialContext.
func WithTCPUserTimeout(d time.Duration) Option {
	return duration("WithTCPUserTimeout", d, " (0 means the system's default)", func(c *config) { c.tcpUserTimeout = d })
}

// WithProtocols sets the protocols that may be spoken. HTTP/2 over TLS is chosen
// when the server offers it (ALPN); without TLS it is spoken only when HTTP1 is
// not in the set, as the server must be known to speak it. Requests with an
// Upgrade field go over HTTP/1.1, and fail without it in the set; those that
// authenticate their connection (WithPoolKey) do if it is in the set. HTTP2 has no
// effect where net/http's is turned off (GODEBUG http2client=0) or left out by a
// build tag. An empty set is refused. The default is HTTP/1, HTTP/2.
func WithProtocols(p http.Protocols) Option {
	return func(c *config) error {
		if !p.HTTP1() && !p.HTTP2() && !p.UnencryptedHTTP2() {
			return &OptionError{"WithProtocols", p, "want at least one protocol"}
		}
		c.protocols = p
		return nil
	}
}

// WithHTTP2Config sets the details of HTTP/2; see http.HTTP2Config. The default
// is its zero value.
func WithHTTP2Config(h http.HTTP2Config) Option {
	return func(c *config) error {
		c.http2 = &h
		return nil
	}
}

// WithProxy says which proxy a request goes through; a nil URL means none, and
// an error fails the request. It is called once per request, without locks.
// The proxy's scheme is http (or none), https, socks5 or socks5h. SOCKS proxies
// are given host names as they are. The credentials in the URL are sent to the
// proxy alone, and are part of what connections are kept apart by; errors and
// Stats do not show them.
//
// The default is the environment's. New reads it: HTTP_PROXY, HTTPS_PROXY and
// NO_PROXY, or their lower-case forms, with the rules of
// http.ProxyFromEnvironment. nil means no proxy.
func WithProxy(proxy func(*http.Request) (*url.URL, error)) Option {
	return func(c *config) error {
		c.proxy = proxy
		return nil
	}
}

// WithProxyConnectTimeout is how long a proxy may take to connect to the target
// (CONNECT, SOCKS) once it is connected itself. The dial then fails with
// ErrProxyConnectTimeout. 0 means no limit. The default is 60 s.
func WithProxyConnectTimeout(d time.Duration) Option {
	return duration("WithProxyConnectTimeout", d, " (0 means no limit)", func(c *config) { c.proxyConnectTimeout = d })
}

// WithProxyConnectHeader sets a function that returns header lines for the
// CONNECT request to a proxy; target is host:port. Its error fails the dial.
// Credentials in the proxy's URL replace a Proxy-Authorization that it returns.
// nil means no more lines than needed.
func WithProxyConnectHeader(
	get func(ctx context.Context, proxyURL *url.URL, target string) (http.Header, error),
) Option {
	return func(c *config) error {
		c.proxyConnectHeader = get
		return nil
	}
}

// WithOnProxyConnectResponse sets a function that sees the answer to a CONNECT
// request, before its status is checked. Its error fails the dial. The body
// can be read until the function returns, and there is none with status 200.
// nil means none.
func WithOnProxyConnectResponse(
	on func(ctx context.Context, proxyURL *url.URL, connectReq *http.Request, connectRes *http.Response) error,
) Option {
	return func(c *config) error {
		c.onProxyConnectResponse = on
		return nil
	}
}

// WithDialContext replaces the dialer for unencrypted connections and for the
// TCP part of TLS, to hosts and to proxies. Connections that are no *net.TCPConn or *net.UnixConn, and
// do not lead to one through a NetConn method, are kept alive too, but each
// costs a goroutine while idle, and one per request. nil means the default dialer.
//
// The context carries the request's values, not its cancellation: a dial
// belongs to the pool, and another request may use its connection. It ends with
// the dial, so the connection must not depend on it. A deadline that dial leaves
// on the connection is taken back.
func WithDialContext(dial func(ctx context.Context, network, addr string) (net.Conn, error)) Option {
	return func(c *config) error {
		c.dialContext = dial
		return nil
	}
}

// WithDialTLSContext replaces the dialer for https requests without a proxy, and
// for https proxies. It returns a connection on which the handshake is done or
// is done by itself; WithTLSConfig is not applied to it, and
// WithTLSHandshakeTimeout only to a *tls.Conn. nil means to dial and to
// handshake as usual.
func WithDialTLSContext(dial func(ctx context.Context, network, addr string) (net.Conn, error)) Option {
	return func(c *config) error {
		c.dialTLSContext, c.ownTLSDialTime = dial, false
		return nil
	}
}

// WithTLSConfig sets the TLS configuration. It is cloned. Without a
// ClientSessionCache of its own an LRU cache is added, so that later connections
// resume; not with GetClientCertificate or VerifyPeerCertificate, which a
// connection that resumes does not ask. nil means the default configuration.
func WithTLSConfig(cfg *tls.Config) Option {
	return func(c *config) error {
		c.tlsConfig = cfg.Clone()
		return nil
	}
}

// WithDisableKeepAlives uses each connection for one request only and says
// "Connection: close" with it. The default is false.
func WithDisableKeepAlives(disable bool) Option {
	return func(c *config) error {
		c.disableKeepAlives = disable
		return nil
	}
}

// WithDisableCompression stops the transport from asking for gzip by itself.
// It asks, and unpacks, only when the request names neither Accept-Encoding nor
// Range and is no HEAD. The default is false.
func WithDisableCompression(disable bool) Option {
	return func(c *config) error {
		c.disableCompression = disable
		return nil
	}
}

// WithKeepAliveHeader says whether "Connection: keep-alive" is sent with the
// first request of a connection, and with every one to a server that answers
// in HTTP/1.0. Such servers keep a connection only for those who ask, and some
// HTTP/1.1 servers announce their idle timeout only then. The default is true.
func WithKeepAliveHeader(send bool) Option {
	return func(c *config) error {
		c.keepAliveHeader = send
		return nil
	}
}

// WithReuseStrategy adds a stricter opinion on which connections are used
// again. nil means the rules of HTTP alone, the default.
func WithReuseStrategy(s ReuseStrategy) Option {
	return func(c *config) error {
		c.reuse = s
		return nil
	}
}

// WithRetryPolicy replaces the retry policy. The default is
// DefaultRetryPolicy(); the zero RetryPolicy never retries.
func WithRetryPolicy(p RetryPolicy) Option {
	return func(c *config) error {
		if p.MaxRetries < 0 {
			return &OptionError{"WithRetryPolicy", p.MaxRetries, "MaxRetries: want >= 0 (0 means none)"}
		}
		if math.IsNaN(p.Budget) || p.Budget < 0 {
			return &OptionError{"WithRetryPolicy", p.Budget, "Budget: want >= 0 (0 means no bound)"}
		}
		c.retry = p
		return nil
	}
}

// WithDrainLimit is how much of a response body that was closed early is read,
// and for how long, to keep the connection: what has arrived is read in Close,
// the rest in the background. A body that is known to be longer is not read.
// 0 for either means to read nothing. The default is 64 KiB and 100 ms.
func WithDrainLimit(bytes int64, d time.Duration) Option {
	return func(c *config) error {
		if bytes < 0 {
			return &OptionError{"WithDrainLimit", bytes, "bytes: want >= 0 (0 means none)"}
		}
		if d < 0 {
			return &OptionError{"WithDrainLimit", d, "time: want >= 0 (0 means none)"}
		}
		c.drainBytes, c.drainTime = bytes, d
		return nil
	}
}

// WithPoolKey divides the pool further: requests share a connection only if
// key returns the same for both, for tenants, identities or priorities. It is
// called once per request, without locks. nil means scheme, host, port and
// proxy alone, the default.
//
// NTLM and Negotiate authenticate connections, not requests (RFC 4559 section
// 6). Where key names nobody, requests with such credentials have connections
// of their own, which end once they are authenticated. A key that names the
// user lets that user keep them.
func WithPoolKey(key func(*http.Request) string) Option {
	return func(c *config) error {
		c.poolKey = key
		return nil
	}
}
