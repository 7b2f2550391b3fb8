package keepalive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/keepalive-http/keepalive/internal/wire"
)

// Sentinels for errors.Is. All but ErrClosed arrive inside an *Error.
var (
	// ErrClosed is returned for requests made after Close or Shutdown, and for
	// those that Close cut off.
	ErrClosed = errors.New("keepalive: transport closed")
	// ErrTooManyWaiters is returned at once when a request would have to wait
	// for a connection and WithMaxWaiters requests wait for that host already.
	ErrTooManyWaiters = errors.New("too many requests are waiting for a connection")
	// ErrServerClosedIdle marks the race that a keep-alive client cannot
	// exclude: a connection that came from the pool ended before the first byte
	// of this answer. Whether the server has seen the request is not known.
	ErrServerClosedIdle = errors.New("server closed idle connection")
	// ErrMalformedResponse marks an answer that breaks HTTP/1.1's syntax or
	// framing (RFC 9112).
	ErrMalformedResponse = errors.New("malformed response")
	// ErrResponseTooLarge marks an HTTP/1 answer whose head passed
	// WithMaxResponseHeaderBytes, or too many interim (1xx) answers.
	ErrResponseTooLarge = errors.New("response head too large")
	// ErrRequestBody marks an error that Request.Body (its Read or Close) or
	// Request.GetBody returned, a body that is shorter or longer than
	// Request.ContentLength says, or a trailer that cannot be sent.
	ErrRequestBody = errors.New("request body")
)

// Sentinels of the timeouts. Each one has Timeout() == true and matches
// os.ErrDeadlineExceeded and, as net/http's timeouts do,
// context.DeadlineExceeded; only a context that ended does not match them.
var (
	// ErrAcquireTimeout: no connection became free within WithAcquireTimeout.
	ErrAcquireTimeout error = timeoutError("timeout waiting for a free connection")
	// ErrDialTimeout: the connection was not set up within WithDialTimeout.
	ErrDialTimeout error = timeoutError("timeout dialing")
	// ErrProxyConnectTimeout: WithProxyConnectTimeout passed.
	ErrProxyConnectTimeout error = timeoutError("timeout waiting for the proxy to connect")
	// ErrTLSHandshakeTimeout: WithTLSHandshakeTimeout passed.
	ErrTLSHandshakeTimeout error = timeoutError("timeout in the TLS handshake")
	// ErrWriteTimeout: not a byte of the request could be sent for
	// WithWriteTimeout.
	ErrWriteTimeout error = timeoutError("timeout writing the request")
	// ErrResponseHeaderTimeout: no answer within WithResponseHeaderTimeout.
	ErrResponseHeaderTimeout error = timeoutError("timeout awaiting response headers")
	// ErrBodyReadTimeout: not a byte of the body came for WithBodyReadTimeout.
	ErrBodyReadTimeout error = timeoutError("timeout reading the response body")
	// ErrRequestTimeout: the whole exchange took longer than WithRequestTimeout.
	ErrRequestTimeout error = timeoutError("request timeout")
)

type timeoutError string

func (e timeoutError) Error() string   { return string(e) }
func (e timeoutError) Timeout() bool   { return true }
func (e timeoutError) Temporary() bool { return true }
func (e timeoutError) Is(target error) bool {
	return target == os.ErrDeadlineExceeded || target == context.DeadlineExceeded
}

// Phase says how far a request had come.
type Phase uint8

// The phases, in their order.
const (
	// PhaseAcquire: waiting for a connection.
	PhaseAcquire Phase = iota
	// PhaseDial: setting up the connection, to the host or its proxy, name
	// resolution included.
	PhaseDial
	// PhaseProxy: getting the proxy to connect to the host (CONNECT, SOCKS).
	PhaseProxy
	// PhaseTLS: the TLS handshake, with the host or its proxy, and the choice of
	// the protocol. A request whose context ends meanwhile says PhaseDial: the
	// dial is not its own.
	PhaseTLS
	// PhaseWrite: sending the request.
	PhaseWrite
	// PhaseHeader: waiting for and reading the head of the answer.
	PhaseHeader
	// PhaseBody: reading the body of the answer.
	PhaseBody
)

func (p Phase) String() string {
	switch p {
	case PhaseAcquire:
		return "acquire"
	case PhaseDial:
		return "dial"
	case PhaseProxy:
		return "proxy"
	case PhaseTLS:
		return "tls"
	case PhaseWrite:
		return "write"
	case PhaseHeader:
		return "header"
	case PhaseBody:
		return "body"
	}
	return "unknown"
}

// Error is how a request can fail that passed the checks of its form. It says what is known;
// the cause is reached through errors.Is and errors.As: one of the sentinels
// above, a syscall.Errno, io.EOF or io.ErrUnexpectedEOF (the connection
// ended), a *tls.CertificateVerificationError, context.Canceled,
// context.DeadlineExceeded or context.Cause.
//
// An Error is not changed after it was returned.
type Error struct {
	// Phase is where it happened.
	Phase Phase
	// Host is scheme://host:port, without user information or path; with a
	// proxy followed by " via " and the same of the proxy.
	Host string
	// RemoteAddr is the peer's address, "" without a connection.
	RemoteAddr string
	// Reused reports whether the connection came from the pool: it had served
	// an earlier request, or had been idle.
	Reused bool
	// IdleTime is how long the connection had been idle before this request.
	IdleTime time.Duration
	// Age is the time since the connection was dialed.
	Age time.Duration
	// Served is how many requests the connection had answered before; over
	// HTTP/2, had begun to serve.
	Served int
	// BytesWritten is how much of the request the socket had accepted, with
	// TLS overhead. 0 proves that the server has not seen it. Over HTTP/2 this
	// and BytesRead count what went over the connection in that time.
	BytesWritten int64
	// BytesRead is how much of the answer had arrived, after TLS.
	BytesRead int64
	// Attempts is the number of times the request was tried, this one included.
	Attempts int
	// Elapsed is the time since RoundTrip was called.
	Elapsed time.Duration
	// Err is the cause.
	Err error
}

// Error returns "keepalive: <phase> <host>: <cause>", followed by what is
// known of the connection. It holds no URL, header or body content.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "keepalive: %s %s: %v", e.Phase, e.Host, e.Err)
	var notes []string
	if e.Reused {
		notes = append(notes, fmt.Sprintf("reused connection, idle for %v", e.IdleTime.Round(time.Millisecond)))
	}
	if e.Phase >= PhaseWrite {
		notes = append(notes, fmt.Sprintf("%d bytes written, %d read", e.BytesWritten, e.BytesRead))
	}
	if e.Attempts > 1 {
		notes = append(notes, fmt.Sprintf("attempt %d", e.Attempts))
	}
	if len(notes) > 0 {
		b.WriteString(" (" + strings.Join(notes, ", ") + ")")
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Timeout reports whether the cause is a timeout of any kind; url.Error passes
// it on.
func (e *Error) Timeout() bool { return isTimeout(e.Err) }

// Temporary reports whether the cause says of itself that it is temporary, as
// timeouts do. With it, an Error is a net.Error.
func (e *Error) Temporary() bool {
	t, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](e.Err)
	return ok && t.Temporary()
}

var _ net.Error = (*Error)(nil)

func isTimeout(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}

// OptionError says which option was refused, and why: by New, which joins all of
// them, or by RoundTrip (ContextWithOptions).
type OptionError struct {
	// Option is the name of the option function.
	Option string
	// Value is what it was given.
	Value any
	// Reason says what is wanted.
	Reason string
}

func (e *OptionError) Error() string {
	return fmt.Sprintf("keepalive: %s(%v): %s", e.Option, e.Value, e.Reason)
}

// marked is an error with a message of its own that is also all of its causes.
// It keeps texts like a bare "EOF" from the user.
type marked struct {
	msg    string
	causes []error
}

func (m *marked) Error() string   { return m.msg }
func (m *marked) Unwrap() []error { return m.causes }

// endError names what it means that reading an answer ended with err.
func endError(err error, reused, gotByte bool) error {
	switch {
	case errors.Is(err, wire.ErrHeadTooLarge):
		return &marked{"response head too large", []error{ErrResponseTooLarge, err}}
	case isMalformed(err):
		return &marked{err.Error(), []error{ErrMalformedResponse, err}}
	case reused && !gotByte && isEnd(err):
		return &marked{ErrServerClosedIdle.Error() + resetNote(err), []error{ErrServerClosedIdle, err}}
	}
	return named(err)
}

// named puts words in the place of a bare EOF.
func named(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &marked{"connection ended inside the response", []error{err}}
	case errors.Is(err, io.EOF):
		return &marked{"server closed the connection without an answer", []error{err}}
	}
	return err
}

func resetNote(err error) string {
	if errors.Is(err, io.EOF) {
		return ""
	}
	return ": " + err.Error()
}

func isMalformed(err error) bool {
	_, ok := errors.AsType[*wire.MalformedError](err)
	return ok
}

// isEnd reports whether err says that the peer is gone, rather than that we
// gave up or could not understand it.
func isEnd(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return true
	}
	_, isErrno := errors.AsType[syscall.Errno](err)
	return isErrno && !isTimeout(err)
}

// bugf reports a broken invariant of ours: going on could give one caller's
// answer to another.
func bugf(format string, args ...any) {
	panic("keepalive: bug: " + fmt.Sprintf(format, args...)) //nolint:forbidigo // a lost owner
}
