package faultserver

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Exchange is one request with the means to answer it, or not to. Its methods
// are for the script's goroutine. Those that write ignore that the client may
// be gone: what the client sees is the test's affair.
type Exchange struct {
	// Conn is the connection, Raw the socket below TLS (Conn without TLS).
	Conn, Raw net.Conn
	// ConnIndex counts the server's connections, ReqIndex the requests on this
	// one, both from 0.
	ConnIndex, ReqIndex int
	// Request is the head as it was read. Its Body is read on demand.
	Request *http.Request
	// Reader is what requests are read from.
	Reader *bufio.Reader

	conn *conn
	over bool
}

// ReadBody reads the request's body to its end.
func (x *Exchange) ReadBody() ([]byte, error) { return io.ReadAll(x.Request.Body) }

// Write sends raw in one write.
func (x *Exchange) Write(raw string) { _, _ = io.WriteString(x.Conn, raw) }

// Part is a piece of a response and how long to wait before it.
type Part struct {
	Pause time.Duration
	Data  string
}

// WriteParts sends the parts, each in one write. It ends early when the server
// stops.
func (x *Exchange) WriteParts(parts ...Part) {
	for _, p := range parts {
		if p.Pause > 0 && !x.Pause(p.Pause) {
			return
		}
		if p.Data != "" {
			x.Write(p.Data)
		}
	}
}

// Reply sends a response with a Content-Length, in one write. Headers are
// whole lines: "Keep-Alive: timeout=5".
func (x *Exchange) Reply(status int, body string, headers ...string) {
	x.Write(Response(status, body, headers...))
}

// Response returns what [Exchange.Reply] sends.
func Response(status int, body string, headers ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(body), body)
	return b.String()
}

// Cut sends the first n bytes of raw and closes the connection.
func (x *Exchange) Cut(raw string, n int) {
	x.Write(raw[:n])
	x.Close()
}

// Close closes the connection; with TLS it says so first. When the client has
// sent what was not read, its system answers with a reset: see
// [Exchange.AwaitClose].
func (x *Exchange) Close() {
	x.over = true
	x.conn.close()
}

// Reset closes the connection with an RST.
func (x *Exchange) Reset() {
	x.over = true
	x.conn.reset()
}

// CloseWrite sends the end of the stream; with TLS close_notify before it. The
// connection goes on reading.
func (x *Exchange) CloseWrite() {
	if tc, ok := x.Conn.(*tls.Conn); ok {
		_ = tc.CloseWrite()
	}
	if half, ok := x.Raw.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

// Hang does nothing, not even read, until the server stops or ends the
// connection.
func (x *Exchange) Hang() {
	x.over = true
	<-x.conn.done
}

// AwaitClose reads and discards until the client or the server ends the
// connection.
func (x *Exchange) AwaitClose() {
	x.over = true
	_, _ = io.Copy(io.Discard, x.Reader)
}

// Pause waits for d. It is false when the connection was ended meanwhile.
func (x *Exchange) Pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-x.conn.done:
		return false
	}
}

// Take makes the connection the script's own, for what follows a 101 or a
// CONNECT. It is closed when the script returns.
func (x *Exchange) Take() (net.Conn, *bufio.Reader) {
	x.over = true
	return x.Conn, x.Reader
}
