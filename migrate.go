package keepalive

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"net/url"
)

// netHTTPMaxHeaderBytes is net/http's limit when MaxResponseHeaderBytes is 0.
const netHTTPMaxHeaderBytes = 10 << 20

// FromTransport takes over the settings of src with the meaning they have in
// net/http; options behind it refine them. What src has no setting for keeps
// the default of New, but "Connection: keep-alive" is not sent, as net/http
// never sends it. src is read at New, which counts as its first use, and not kept.
//
// Nothing becomes of WriteBufferSize and ReadBufferSize: buffers are pooled, and
// sized by use. Protocols of RegisterProtocol are not known: send such requests
// elsewhere.
//
// HTTP/2 is spoken when src would do so, by our own use of net/http's HTTP/2: of
// src.TLSNextProto only the presence of "h2" counts, and another protocol in it
// is refused. nil is refused.
func FromTransport(src *http.Transport) Option {
	return func(c *config) error {
		if src == nil {
			return &OptionError{"FromTransport", nil, "want a *http.Transport"}
		}
		src.Clone() // sets it up, or waits for its first use to do so: what that writes is read here
		c.takeLimits(src)
		c.takeDialers(src)
		c.takeProxy(src)
		if err := c.takeProtocols(src); err != nil {
			return err
		}
		c.keepAliveHeader = false
		c.disableKeepAlives = src.DisableKeepAlives
		c.disableCompression = src.DisableCompression
		c.idleTimeout = max(src.IdleConnTimeout, 0)
		c.tlsTimeout = max(src.TLSHandshakeTimeout, 0)
		c.responseHeader = max(src.ResponseHeaderTimeout, 0)
		c.expectContinue = max(src.ExpectContinueTimeout, 0)
		c.maxHeaderBytes = netHTTPMaxHeaderBytes
		if n := src.MaxResponseHeaderBytes; n > 0 {
			c.maxHeaderBytes = int(min(n, 1<<31-1))
		}
		c.tlsConfig = src.TLSClientConfig.Clone() // nil is cloned, too
		return nil
	}
}

// takeLimits takes over the limits; net/http reads MaxIdleConnsPerHost 0 as 2
// and a negative one as none.
func (c *config) takeLimits(src *http.Transport) {
	c.maxConnsPerHost = max(src.MaxConnsPerHost, 0)
	c.maxIdle = max(src.MaxIdleConns, 0)
	c.maxIdlePerHost = cmp.Or(max(src.MaxIdleConnsPerHost, 0), http.DefaultMaxIdleConnsPerHost)
	c.keepNoneIdle = src.MaxIdleConnsPerHost < 0
	c.takenOver = true
}

// takeProtocols takes over which protocols may be spoken, by net/http's rules:
// HTTP/2 is off by default for a Transport with a TLS configuration or dial
// function of its own.
func (c *config) takeProtocols(src *http.Transport) error {
	for name := range src.TLSNextProto {
		switch name {
		case protoHTTP2, protoHTTP1, "unencrypted_http2":
		default:
			return &OptionError{"FromTransport", "TLSNextProto: " + name, "want HTTP/1.1 or HTTP/2"}
		}
	}
	c.http2 = nil
	if src.HTTP2 != nil {
		h := *src.HTTP2
		c.http2 = &h
	}
	if src.Protocols != nil {
		c.protocols = *src.Protocols
		if c.protocols == (http.Protocols{}) {
			c.protocols.SetHTTP1(true) // what net/http makes of it
		}
		return nil
	}
	custom := src.TLSClientConfig != nil || src.DialContext != nil || src.DialTLSContext != nil ||
		src.Dial != nil || src.DialTLS != nil //nolint:staticcheck // SA1019: deprecated, and still in use
	c.protocols = http.Protocols{}
	c.protocols.SetHTTP1(true)
	switch {
	case src.TLSNextProto != nil:
		c.protocols.SetHTTP2(src.TLSNextProto[protoHTTP2] != nil)
	case src.ForceAttemptHTTP2 || !custom:
		c.protocols.SetHTTP2(true)
	}
	return nil
}

// takeProxy takes over what has to do with proxies.
func (c *config) takeProxy(src *http.Transport) {
	c.proxy = src.Proxy
	c.onProxyConnectResponse = src.OnProxyConnectResponse
	c.proxyConnectHeader = src.GetProxyConnectHeader
	if c.proxyConnectHeader == nil && src.ProxyConnectHeader != nil {
		header := src.ProxyConnectHeader.Clone()
		c.proxyConnectHeader = func(context.Context, *url.URL, string) (http.Header, error) {
			return header.Clone(), nil
		}
	}
}

// takeDialers takes over the dial functions, the deprecated ones without a
// context included. A function has its own idea of how long a dial may take;
// without one WithDialTimeout's default holds.
func (c *config) takeDialers(src *http.Transport) {
	plain := func(dial func(string, string) (net.Conn, error)) dialFunc {
		if dial == nil {
			return nil
		}
		return func(_ context.Context, network, addr string) (net.Conn, error) { return dial(network, addr) }
	}
	c.dialContext, c.dialTLSContext = src.DialContext, src.DialTLSContext
	if c.dialContext == nil {
		c.dialContext = plain(src.Dial) //nolint:staticcheck // SA1019: see above
	}
	if c.dialTLSContext == nil {
		c.dialTLSContext = plain(src.DialTLS) //nolint:staticcheck // SA1019: see above
	}
	if c.dialContext != nil {
		c.dialTimeout = 0
	}
	c.ownTLSDialTime = c.dialTLSContext != nil
}
