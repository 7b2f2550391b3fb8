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
}

// Of returns the key of u, with user as the application's part.
// It fails for a URL without a host or with a host that is not a name.
func Of(u *url.URL, user string) (Key, error) {
	k := Key{Scheme: u.Scheme, User: user}
	host, port := split(u.Host)
	if host == "" {
		return Key{}, errors.New("no Host in request URL")
	}
	if port == "" {
		port = defaultPort(u.Scheme)
	}
	k.Port = port
	host, err := Canonical(host)
	if err != nil {
		return Key{}, err
	}
	k.Host = host
	return k, nil
}

// Addr returns the host:port to dial, with brackets round an IPv6 address.
func (k Key) Addr() string { return net.JoinHostPort(k.Host, k.Port) }

// String returns scheme://host:port, followed by the application's part in
// parentheses when there is one.
func (k Key) String() string {
	s := k.Scheme + "://" + k.Addr()
	if k.User != "" {
		s += " (" + k.User + ")"
	}
	return s
}

// Canonical returns host in lower case and ASCII. A name that is not ASCII is
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
	if lower {
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
	if scheme == "https" {
		return "443"
	}
	return "80"
}
