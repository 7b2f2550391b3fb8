package keepalive

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/keepalive-http/keepalive/internal/wire"
)

// CloseReason says why a connection ended. Stats counts by it.
type CloseReason uint8

// The reasons. Text is what String returns.
const (
	// CloseNone is the zero value: the connection is open.
	CloseNone CloseReason = iota
	// CloseIdleTimeout: it was idle for WithIdleConnTimeout, for as long as the
	// server's Keep-Alive: timeout or learned limit allows, or for 5 s if it has
	// never served.
	CloseIdleTimeout
	// CloseLifetime: it reached WithMaxConnLifetime.
	CloseLifetime
	// CloseMaxRequests: it served WithMaxRequestsPerConn requests, or as many
	// as the server's Keep-Alive: max allows.
	CloseMaxRequests
	// CloseServerRequest: the server said Connection: close, or spoke HTTP/1.0
	// without Connection: keep-alive, or said GOAWAY in HTTP/2.
	CloseServerRequest
	// CloseClientRequest: the request said Connection: close, Request.Close
	// was set, or its context asked for no reuse.
	CloseClientRequest
	// CloseKeepAlivesDisabled: WithDisableKeepAlives, or FromTransport with a
	// negative MaxIdleConnsPerHost.
	CloseKeepAlivesDisabled
	// CloseDelimited: the body had no length, so its end is the connection's.
	CloseDelimited
	// CloseUnreadBody: the body was closed with too much of it unread.
	CloseUnreadBody
	// CloseRequestUnsent: the answer came before the request body was sent.
	CloseRequestUnsent
	// ClosePeerClosed: the server ended it unasked, while it was idle or in use;
	// if it hides its socket, also by bytes that nobody had asked for.
	ClosePeerClosed
	// CloseStale: it was found dead when a request was to use it, before anything
	// was written.
	CloseStale
	// CloseProtocolError: the answer broke HTTP's syntax or framing, was
	// ambiguous, or bytes came that nobody had asked for.
	CloseProtocolError
	// CloseSuspect: another connection to the same host was found dead, slow or
	// misbehaving, and this one had been idle at least as long; or its HTTP/2
	// peer was silent while a request timed out.
	CloseSuspect
	// CloseHostIdleLimit: WithMaxIdleConnsPerHost; the longest idle goes.
	CloseHostIdleLimit
	// CloseIdleLimit: WithMaxIdleConns; the longest idle of all hosts goes.
	CloseIdleLimit
	// CloseEvicted: another host needed its place under WithMaxConns, or a
	// request needed a new connection under WithMaxConnsPerHost.
	CloseEvicted
	// CloseCanceled: the request's context ended.
	CloseCanceled
	// CloseTimeout: one of our timeouts passed during an exchange.
	CloseTimeout
	// CloseReadError: reading the answer failed, the connection ended before it, or
	// an HTTP/2 peer reset a stream with PROTOCOL_ERROR.
	CloseReadError
	// CloseWriteError: sending the request failed.
	CloseWriteError
	// CloseStrategy: the ReuseStrategy refused it.
	CloseStrategy
	// CloseIdentity: the server may take it for authenticated (NTLM,
	// Negotiate), and the next request could be somebody else's.
	CloseIdentity
	// CloseUncheckable: the connection has neither a socket nor deadlines, so
	// that it cannot be told whether it is alive.
	CloseUncheckable
	// CloseIdleConns: CloseIdleConnections was called.
	CloseIdleConns
	// CloseTransportClosed: Close or Shutdown was called.
	CloseTransportClosed
	// CloseDetached: it was handed to the user by 101 Switching Protocols or
	// CONNECT, and the user closed it.
	CloseDetached

	numCloseReasons
)

var closeReasonText = [numCloseReasons]string{ //nolint:gochecknoglobals // a constant table
	CloseNone:               "open",
	CloseIdleTimeout:        "idle timeout",
	CloseLifetime:           "lifetime",
	CloseMaxRequests:        "max requests",
	CloseServerRequest:      "closed by the server's request",
	CloseClientRequest:      "closed by the client's request",
	CloseKeepAlivesDisabled: "keep-alives disabled",
	CloseDelimited:          "body delimited by close",
	CloseUnreadBody:         "body unread",
	CloseRequestUnsent:      "request body unsent",
	ClosePeerClosed:         "peer closed while idle",
	CloseStale:              "stale",
	CloseProtocolError:      "protocol error",
	CloseSuspect:            "suspect",
	CloseHostIdleLimit:      "host idle limit",
	CloseIdleLimit:          "idle limit",
	CloseEvicted:            "evicted",
	CloseCanceled:           "canceled",
	CloseTimeout:            "timeout",
	CloseReadError:          "read error",
	CloseWriteError:         "write error",
	CloseStrategy:           "refused by the reuse strategy",
	CloseIdentity:           "bound to an identity",
	CloseUncheckable:        "uncheckable",
	CloseIdleConns:          "idle connections closed",
	CloseTransportClosed:    "transport closed",
	CloseDetached:           "detached",
}

// String returns the reason in words.
func (r CloseReason) String() string {
	if r >= numCloseReasons {
		return "unknown"
	}
	return closeReasonText[r]
}

// ReuseStrategy can be stricter than the rules of HTTP about which
// connections are used again. Set by WithReuseStrategy.
type ReuseStrategy interface {
	// Reuse is called once for each answer after which the connection could be
	// used again, when its head has been read. v is what the rules say; the
	// result is combined with it, the stricter of both counts, so a strategy
	// can refuse or shorten but never extend. It must not keep or change
	// resp. It is called without locks, in the goroutine of RoundTrip,
	// concurrently; with HTTP/2 for one connection, too. It must not panic: the
	// connection would stay in use.
	Reuse(resp *http.Response, c ConnInfo, v ReuseVerdict) ReuseVerdict
}

// ConnInfo describes a connection to a ReuseStrategy.
type ConnInfo struct {
	// Host is that of Error.
	Host string
	// RemoteAddr is the peer's address.
	RemoteAddr string
	// DialedAt is when it was dialed.
	DialedAt time.Time
	// Served counts the requests it has answered, this one included.
	Served int
}

// ReuseVerdict says whether and for how long a connection may be used again.
type ReuseVerdict struct {
	// Keep: it may be used again.
	Keep bool
	// IdleTimeout is how long it may stay idle. 0 means no limit, less that it is
	// not kept: something was subtracted.
	IdleTimeout time.Duration
	// MaxRequests is how many more requests it may serve. 0 means no limit, less
	// that it is not kept.
	MaxRequests int
}

// answer is what reuse.go is told of an exchange when its head has been read.
type answer struct {
	resp    *http.Response
	framing wire.Framing
	oddity  string
	// last says why the request was the connection's last one, if it was.
	last CloseReason
	// rtt is the shortest round trip seen on this connection.
	rtt time.Duration
	// auth: the request had credentials for the connection, and the answer may
	// mean that they were accepted.
	auth bool
}

// verdict is the decision on one exchange.
type verdict struct {
	ReuseVerdict
	// reason is why it is not kept; CloseNone when it is.
	reason CloseReason
	// unused: it was dropped before anything of the request was written.
	unused bool
	// odd: the answer was odd, but clear: it says nothing of other connections.
	odd bool
}

func drop(r CloseReason) verdict { return verdict{reason: r} }

func dropUnused(r CloseReason) verdict { return verdict{reason: r, unused: true} }

// judge decides by the head of the answer, in this order:
//
//	evidence                                        decision
//	101 Switching Protocols                         not the pool's any more (not asked here)
//	accepted, but ambiguous or out of date          close, protocol error
//	close asked for by the request, or its last     close
//	body delimited by the end of the connection     close
//	"close" in any Connection line, any case        close
//	HTTP/1.0 without "keep-alive"                   close
//	credentials for the connection may be accepted  close, bound to an identity
//	Keep-Alive: timeout=n, max=m                    keep until n minus the margin, m more
//	otherwise                                       keep
//
// RFC 9112 section 9.3. What the end of the exchange adds (leftover bytes,
// unsent request, limits) is decided by judgeEnd and by the pool.
func judge(a answer) verdict {
	switch {
	case a.oddity != "":
		return verdict{reason: CloseProtocolError, odd: true}
	case a.last != CloseNone:
		return drop(a.last)
	case a.framing == wire.FramingClose:
		return drop(CloseDelimited)
	case a.resp.Close:
		// Set by the parser for a "close" token, which it then takes out of
		// the header as net/http does, and for HTTP/1.0 without "keep-alive".
		return drop(CloseServerRequest)
	case a.auth:
		return drop(CloseIdentity)
	}
	h := parseKeepAlive(a.resp.Header["Keep-Alive"])
	v := verdict{ReuseVerdict: ReuseVerdict{Keep: true}}
	if h.hasTimeout {
		v.IdleTimeout = h.timeout - keepAliveMargin(h.timeout, a.rtt)
		if v.IdleTimeout <= 0 {
			return drop(CloseServerRequest)
		}
	}
	if h.hasMax {
		if h.max == 0 {
			return drop(CloseMaxRequests)
		}
		v.MaxRequests = h.max
	}
	return v
}

// stricter combines the verdict of the rules with that of a user's strategy.
func (v verdict) stricter(u ReuseVerdict) verdict {
	if !u.Keep || u.IdleTimeout < 0 || u.MaxRequests < 0 {
		return drop(CloseStrategy)
	}
	if u.IdleTimeout > 0 && (v.IdleTimeout == 0 || u.IdleTimeout < v.IdleTimeout) {
		v.IdleTimeout = u.IdleTimeout
	}
	if u.MaxRequests > 0 && (v.MaxRequests == 0 || u.MaxRequests < v.MaxRequests) {
		v.MaxRequests = u.MaxRequests
	}
	return v
}

// ending is what is known when an exchange is over.
type ending struct {
	// bodyDone: the whole answer has been read.
	bodyDone bool
	// leftover: bytes beyond the answer had arrived.
	leftover bool
	// requestSent: the whole request was accepted by the socket.
	requestSent bool
}

// judgeEnd adds what the end of an exchange tells to the verdict v on its
// head. A framing error closes whatever v says.
func judgeEnd(v verdict, e ending) verdict {
	switch {
	case e.leftover:
		return drop(CloseProtocolError)
	case !v.Keep:
		return v
	case !e.bodyDone:
		return drop(CloseUnreadBody)
	case !e.requestSent:
		return drop(CloseRequestUnsent)
	}
	return v
}

// keepAliveMargin is how much earlier than the server's own idle timeout a
// connection is given up: a tenth, within a second and ten; half of a timeout
// of two seconds or less. The round trip is added because the server's clock
// starts before we see its last byte and stops after our next one arrives.
func keepAliveMargin(timeout, rtt time.Duration) time.Duration {
	m := min(max(timeout/10, time.Second), 10*time.Second)
	if timeout <= 2*time.Second {
		m = timeout / 2
	}
	return m + rtt
}

// keepAliveHint is the content of Keep-Alive response fields (RFC 2068 section
// 19.7.1.1; no longer in the standard, still sent by many servers).
type keepAliveHint struct {
	timeout    time.Duration
	max        int
	hasTimeout bool
	hasMax     bool
}

// parseKeepAlive reads timeout= and max= in any order, case and spacing,
// quoted or not. What it cannot read it ignores; of two values the smaller
// counts.
func parseKeepAlive(values []string) (h keepAliveHint) {
	for _, line := range values {
		for len(line) > 0 {
			var item string
			item, line = cutParam(line)
			name, value, ok := strings.Cut(item, "=")
			if !ok {
				continue
			}
			name = strings.TrimSpace(name)
			value = strings.Trim(strings.TrimSpace(value), `"`)
			switch {
			case strings.EqualFold(name, "timeout"):
				if d, ok := parseSeconds(value); ok && (!h.hasTimeout || d < h.timeout) {
					h.timeout, h.hasTimeout = d, true
				}
			case strings.EqualFold(name, "max"):
				if n, err := strconv.ParseUint(value, 10, 31); err == nil && (!h.hasMax || int(n) < h.max) {
					h.max, h.hasMax = int(n), true
				}
			}
		}
	}
	return h
}

// cutParam cuts the first parameter off line; a comma or a semicolon ends it.
func cutParam(line string) (item, rest string) {
	if i := strings.IndexAny(line, ",;"); i >= 0 {
		return line[:i], line[i+1:]
	}
	return line, ""
}

// maxHint is the longest timeout that is taken from a server: a longer one
// says nothing that our own limits do not.
const maxHint = 24 * time.Hour

// parseSeconds reads a number of seconds, with a fraction or a unit "s" as
// some servers write it.
func parseSeconds(s string) (time.Duration, bool) {
	s = strings.TrimSpace(strings.TrimSuffix(s, "s"))
	if s == "" || strings.Trim(s, "0123456789.") != "" {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f > maxHint.Seconds() {
		return 0, false
	}
	return time.Duration(f * float64(time.Second)), true
}
