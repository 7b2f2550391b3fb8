package keepalive

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// config is the sum of the options. Set in New; never changed after.
type config struct {
	maxConns, maxConnsPerHost int // 0: no limit
	maxIdle, maxIdlePerHost   int // 0: no limit
	keepNoneIdle              bool
	maxWaiters                int // 0: no limit
	idleOrder                 IdleOrder
	maxRequestsPerConn        int // 0: no limit

	idleTimeout, maxLifetime time.Duration // 0: never
	lifetimeJitter           float64       // fraction of maxLifetime

	timeouts
	dialTimeout, tlsTimeout time.Duration // 0: none
	ownTLSDialTime          bool          // dialTLSContext is not bounded by dialTimeout

	tcpKeepAlive   net.KeepAliveConfig
	tcpUserTimeout time.Duration // 0: the system's

	dialContext    dialFunc
	dialTLSContext dialFunc
	tlsConfig      *tls.Config

	protocols http.Protocols
	http2     *http.HTTP2Config // nil: net/http's defaults

	proxy                  func(*http.Request) (*url.URL, error)
	proxyConnectTimeout    time.Duration // 0: none
	proxyConnectHeader     func(ctx context.Context, proxyURL *url.URL, target string) (http.Header, error)
	onProxyConnectResponse func(ctx context.Context, proxyURL *url.URL, req *http.Request, resp *http.Response) error

	disableKeepAlives  bool
	keepAliveHeader    bool
	disableCompression bool
	maxHeaderBytes     int
	maxInterim         int
	reuse              ReuseStrategy
	retry              RetryPolicy
	drainBytes         int64
	drainTime          time.Duration
	poolKey            func(*http.Request) string
	given              map[string]any // options that the caller gave, for cross-checks
	takenOver          bool           // what was not given is of FromTransport
}

// Defaults that New uses; the table in README repeats them.
const (
	defaultMaxIdle        = 512
	defaultMaxIdlePerHost = 64
	defaultMaxInterim     = 100
)

func defaultConfig() *config {
	return &config{
		maxIdle:        defaultMaxIdle,
		maxIdlePerHost: defaultMaxIdlePerHost,
		idleTimeout:    50 * time.Second,
		maxLifetime:    15 * time.Minute,
		lifetimeJitter: 0.1,
		timeouts:       timeouts{expectContinue: time.Second},
		dialTimeout:    10 * time.Second,
		tlsTimeout:     10 * time.Second,
		tcpKeepAlive: net.KeepAliveConfig{
			Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 3,
		},
		tcpUserTimeout:      30 * time.Second,
		protocols:           defaultProtocols(),
		proxy:               proxyFromEnvironment(),
		proxyConnectTimeout: 60 * time.Second,
		keepAliveHeader:     true,
		maxHeaderBytes:      1 << 20,
		maxInterim:          defaultMaxInterim,
		retry:               DefaultRetryPolicy(),
		drainBytes:          64 << 10,
		drainTime:           100 * time.Millisecond,
		given:               make(map[string]any),
	}
}

// newConfig applies opts to the defaults and returns all refusals at once.
func newConfig(opts []Option) (*config, error) {
	c := defaultConfig()
	var errs []error
	for i, o := range opts {
		if o == nil {
			errs = append(errs, &OptionError{"New", fmt.Sprintf("option %d", i+1), "want an Option, got nil"})
			continue
		}
		if err := o(c); err != nil {
			errs = append(errs, err)
		}
	}
	if c.protocols.HTTP2() && http2Disabled() {
		if c.protocols.SetHTTP2(false); c.protocols == (http.Protocols{}) {
			errs = append(errs, &OptionError{"WithProtocols", "HTTP2", "want another one, too: net/http's is turned off"})
		}
	}
	errs = append(errs, c.validate()...)
	return c, errors.Join(errs...)
}

// validate refuses contradictions between options that the caller gave. A
// default yields to an explicit neighbour.
func (c *config) validate() (errs []error) {
	idle, idlePerHost := limit{"WithMaxIdleConns", &c.maxIdle}, limit{"WithMaxIdleConnsPerHost", &c.maxIdlePerHost}
	conns, perHost := limit{"WithMaxConns", &c.maxConns}, limit{"WithMaxConnsPerHost", &c.maxConnsPerHost}
	for _, pair := range [][2]limit{{idlePerHost, perHost}, {idle, conns}, {idlePerHost, idle}, {perHost, conns}} {
		if err := c.fit(pair[0], pair[1]); err != nil {
			errs = append(errs, err)
		}
	}
	if c.disableKeepAlives {
		for _, name := range []string{"WithMaxIdleConns", "WithMaxIdleConnsPerHost", "WithMaxRequestsPerConn"} {
			if v, ok := c.given[name]; ok && v != 0 {
				errs = append(errs, &OptionError{name, v, "contradicts WithDisableKeepAlives(true)"})
			}
		}
	}
	if v, ok := c.given["WithLifetimeJitter"]; ok && c.lifetimeJitter > 0 && c.maxLifetime == 0 {
		errs = append(errs, &OptionError{"WithLifetimeJitter", v, "contradicts WithMaxConnLifetime(0), which means no lifetime"})
	}
	return errs
}

// limit is a number of connections with the option that sets it; 0 means none.
type limit struct {
	option string
	n      *int
}

// fit makes sure that small is not above large:
//
//	given by the caller   too large a small one
//	both                  is refused
//	small                 raises large if that is a default, not of FromTransport
//	otherwise             is lowered
func (c *config) fit(small, large limit) error {
	if *large.n == 0 || *small.n == 0 || *small.n <= *large.n {
		return nil
	}
	_, smallGiven := c.given[small.option]
	_, largeGiven := c.given[large.option]
	switch {
	case smallGiven && largeGiven:
		return &OptionError{small.option, *small.n, fmt.Sprintf("want <= %s(%d)", large.option, *large.n)}
	case smallGiven && !c.takenOver:
		*large.n = *small.n
	default:
		*small.n = *large.n
	}
	return nil
}

func defaultProtocols() (p http.Protocols) {
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	return p
}

// http2Disabled reports whether net/http has no HTTP/2: a GODEBUG setting or a
// build tag turns it off.
func http2Disabled() bool {
	t := new(http.Transport)
	t.Clone() // sets it up, as its first use would
	return t.TLSNextProto[protoHTTP2] == nil
}
