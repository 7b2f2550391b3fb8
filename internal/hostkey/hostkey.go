// Package hostkey says which requests may share a connection.
package hostkey

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"golang.org/x/net/idna"
)

// Key identifies a set of interchangeable connections: two requests may share
// a connection exactly when their keys are equal. It is comparable, and making
// one for a host that is already in canonical form allocates nothing.
type Key struct {
	// Scheme is "http" or "https".
	Scheme string
	// Host is the canonical host: lower case, ASCII, an IPv6 address without
	// brackets but with its zone.
	Host string
	// Port is the decimal port, the scheme's own when the URL has none.
	Port string
	// User is what the application's own key function returned.
	User string
	// Proxy is the URL of the proxy, with its credentials; "" for none.
	Proxy string
	// Auth is set for requests with credentials that a server takes for the
	// connection's, not the request's.
	Auth bool
	// HTTP1 is set for requests that need HTTP/1.1 where others may get another
	// protocol: an upgrade, or credentials for the connection.
	HTTP1 bool
}

// Of returns the key of a request for u through proxy, nil for none, with user
// as the application's part. It fails for a URL without a host or with a host
// that is not a name.
//
// An HTTP proxy takes plain requests for any host on one connection: their key
// has neither Host nor Port.
func Of(u, proxy *url.URL, user string) (Key, error) {
	host, port, err := Authority(u)
	if err != nil {
		return Key{}, err
	}
	k := Key{Scheme: u.Scheme, Host: host, Port: port, User: user}
	if proxy == nil {
		return k, nil
	}
	k.Proxy = proxy.String()
	if u.Scheme == "http" && !IsSOCKS(proxy) {
		k.Host, k.Port = "", ""
	}
	return k, nil
}

// IsSOCKS reports whether proxy is a SOCKS proxy, not an HTTP one.
func IsSOCKS(proxy *url.URL) bool { return proxy.Scheme == "socks5" || proxy.Scheme == "socks5h" }

// Forwarded reports whether requests go to an HTTP proxy in the absolute form,
// to be passed on.
func (k Key) Forwarded() bool { return k.Proxy != "" && k.Host == "" }

// ProxyURL returns the URL that Proxy is the text of. Its error has nothing of
// the credentials.
func (k Key) ProxyURL() (*url.URL, error) {
	u, err := url.Parse(k.Proxy)
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err // without the URL
	}
	return u, err
}

// Addr returns the host:port of the target, with brackets round an IPv6
// address.
func (k Key) Addr() string { return net.JoinHostPort(k.Host, k.Port) }

// String returns scheme://host:port, without the host when the key has none;
// behind it the proxy, never with its credentials, and the application's part
// in parentheses when there is one.
func (k Key) String() string {
	s := k.Scheme
	if !k.Forwarded() {
		s += "://" + k.Addr()
	}
	if k.Proxy != "" {
		s += " via " + k.proxyName()
	}
	if k.User != "" {
		s += " (" + k.User + ")"
	}
	return s
}

// Peer is String without the application's part, which may be a secret.
func (k Key) Peer() string {
	k.User = ""
	return k.String()
}

func (k Key) proxyName() string {
	u, err := k.ProxyURL()
	if err != nil {
		return "an invalid proxy"
	}
	host, port, err := Authority(u)
	if err != nil {
		return "an invalid proxy"
	}
	scheme := u.Scheme
	if scheme == "" {
		scheme = "http"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

// Authority returns the canonical host of u, and its port or that of its
// scheme. It allocates nothing for a host that is canonical.
func Authority(u *url.URL) (host, port string, err error) {
	host, port = split(u.Host)
	if host == "" {
		return "", "", errors.New("no Host in URL")
	}
	if port == "" {
		port = defaultPort(u.Scheme)
	}
	host, err = Canonical(host)
	return host, port, err
}

// Canonical returns host in lower case and ASCII, but a path as it is. A name that is not ASCII is
// converted as RFC 5891 says (IDNA, lookup profile).
func Canonical(host string) (string, error) {
	lower := true
	for i := 0; i < len(host); i++ {
		c := host[i]
		if c >= 0x80 {
			a, err := idna.Lookup.ToASCII(host)
			if err != nil {
				return "", fmt.Errorf("invalid host name %q: %w", host, err)
			}
			return a, nil
		}
		if 'A' <= c && c <= 'Z' {
			lower = false
		}
	}
	if lower || strings.IndexByte(host, '/') >= 0 { // a path there is a socket's, for a dial function
		return host, nil
	}
	// The zone of an IPv6 address is an interface name: its case counts.
	if i := strings.IndexByte(host, '%'); i >= 0 && strings.IndexByte(host, ':') >= 0 {
		return strings.ToLower(host[:i]) + host[i:], nil
	}
	return strings.ToLower(host), nil
}

// split cuts a URL's host into host and port without allocating. The brackets
// of an IPv6 address are dropped.
func split(hostport string) (host, port string) {
	if strings.HasPrefix(hostport, "[") {
		end := strings.IndexByte(hostport, ']')
		if end < 0 {
			return hostport, ""
		}
		return hostport[1:end], strings.TrimPrefix(hostport[end+1:], ":")
	}
	if i := strings.LastIndexByte(hostport, ':'); i >= 0 {
		return hostport[:i], hostport[i+1:]
	}
	return hostport, ""
}

func defaultPort(scheme string) string {
	switch scheme {
	case "https":
		return "443"
	case "socks5", "socks5h":
		return "1080"
	}
	return "80"
}
