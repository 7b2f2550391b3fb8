package keepalive

import (
	"net/http"
	"strings"
)

// Whose a connection is: NTLM and Negotiate authenticate connections, not
// requests. Pure, as reuse.go is, which asks.

// authenticatesConn reports whether the request has credentials that servers take
// for the connection's (RFC 4559 section 6): NTLM, Negotiate.
func authenticatesConn(h http.Header) bool {
	return connAuth(h["Authorization"]) != "" || connAuth(h["Proxy-Authorization"]) != ""
}

// connAuth returns the credentials for the connection in the values of an
// Authorization field, or "".
func connAuth(values []string) string {
	for _, v := range values {
		v = strings.Trim(v, blanks) // as it is sent
		end := strings.IndexAny(v, blanks)
		if end < 0 {
			continue
		}
		if scheme := v[:end]; strings.EqualFold(scheme, "NTLM") || strings.EqualFold(scheme, "Negotiate") {
			return strings.TrimLeft(v[end:], blanks)
		}
	}
	return ""
}

const blanks = " \t"

// mayHaveBound reports whether an answer with that status may come from a peer
// that has taken credentials for the connection in h: the server, or the proxy
// that passes its answer on.
func mayHaveBound(h http.Header, status int) bool {
	switch status {
	case http.StatusProxyAuthRequired:
		return false
	case http.StatusUnauthorized:
		return connAuth(h["Proxy-Authorization"]) != ""
	}
	return authenticatesConn(h)
}

// beginsConnAuth reports whether the request begins a handshake for the
// connection: it must not get into that of another request. The text is the
// beginning of NTLM's first message.
func beginsConnAuth(h http.Header) bool {
	const negotiate = "TlRMTVNTUAAB"
	return strings.HasPrefix(connAuth(h["Authorization"]), negotiate) ||
		strings.HasPrefix(connAuth(h["Proxy-Authorization"]), negotiate)
}
