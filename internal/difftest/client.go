package difftest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Client is the client's side of a scenario.
type Client struct {
	T      testing.TB
	RT     http.RoundTripper
	Server *Server
	Road   Road

	seen   *Seen
	step   int
	bodies []*Body
}

// Note notes a fact.
func (c *Client) Note(name, value string) { c.seen.note(name, value) }

// next begins a step and returns the name of its facts.
func (c *Client) next() func(fact string) string {
	c.step++
	c.Server.step.Store(int64(c.step))
	n := c.step
	return func(fact string) string { return fmt.Sprintf("%d %s", n, fact) }
}

// Request makes a request for path on the server.
func (c *Client) Request(method, path string, body io.Reader, edit ...func(*http.Request)) *http.Request {
	return c.RequestURL(method, c.Server.URL(path), body, edit...)
}

// RequestURL makes a request for any URL.
func (c *Client) RequestURL(method, u string, body io.Reader, edit ...func(*http.Request)) *http.Request {
	c.T.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, u, body)
	if err != nil {
		c.T.Fatal(err)
	}
	for _, f := range edit {
		f(req)
	}
	return req
}

// Get is Do of a GET.
func (c *Client) Get(path string, edit ...func(*http.Request)) *http.Response {
	c.T.Helper()
	return c.Do(c.Request(http.MethodGet, path, nil, edit...))
}

// Do sends req, reads the whole response and notes everything about it.
func (c *Client) Do(req *http.Request) *http.Response {
	c.T.Helper()
	name := c.next()
	resp := c.begin(req, name)
	if resp == nil {
		return nil
	}
	body, err := io.ReadAll(resp.Body)
	c.Note(name("body"), digest(body))
	c.Note(name("body error"), classes(err))
	c.noteEnd(req, resp, name)
	return resp
}

// Via is Do through an http.Client, which may close a request body once more.
func (c *Client) Via(hc *http.Client, req *http.Request) {
	c.T.Helper()
	name := c.next()
	resp, err := hc.Do(req)
	c.noteError(name("error"), err)
	if err == nil {
		c.noteHead(resp, name)
		body, err := io.ReadAll(resp.Body)
		c.Note(name("body"), digest(body))
		c.Note(name("body error"), classes(err))
		c.Note(name("close error"), classes(resp.Body.Close()))
		c.Note(name("trailer"), fmt.Sprintf("%q", resp.Trailer))
	}
	c.noteBody(req, name)
}

// noteEnd closes resp and notes what is only known at the end.
func (c *Client) noteEnd(req *http.Request, resp *http.Response, name func(string) string) {
	c.Note(name("close error"), classes(resp.Body.Close()))
	c.Note(name("second close error"), classes(resp.Body.Close()))
	c.Note(name("trailer"), fmt.Sprintf("%q", resp.Trailer))
	c.noteBody(req, name)
}

// begin sends req and notes everything about the response but its body.
func (c *Client) begin(req *http.Request, name func(string) string) *http.Response {
	c.T.Helper()
	if b, ok := req.Body.(*Body); ok {
		c.bodies = append(c.bodies, b)
	}
	before := snapshot(req)
	resp, err := c.RT.RoundTrip(req)
	c.noteError(name("error"), err)
	c.Note(name("request unchanged"), fmt.Sprint(reflect.DeepEqual(before, snapshot(req))))
	if err != nil {
		c.Note(name("response on error"), fmt.Sprint(resp != nil))
		c.noteBody(req, name)
		return nil
	}
	c.noteHead(resp, name)
	c.Note(name("resp.Request"), fmt.Sprint(resp.Request == req))
	return resp
}

func (c *Client) noteHead(resp *http.Response, name func(string) string) {
	c.Note(name("status"), fmt.Sprintf("%d %q", resp.StatusCode, resp.Status))
	c.Note(name("proto"), fmt.Sprint(resp.Proto, " ", resp.ProtoMajor, " ", resp.ProtoMinor))
	c.Note(name("header"), strings.ReplaceAll(fmt.Sprintf("%q", resp.Header), c.Server.Addr, "ADDR"))
	c.Note(name("length"), fmt.Sprint(resp.ContentLength))
	c.Note(name("encoding"), fmt.Sprintf("%q nil=%v", resp.TransferEncoding, resp.TransferEncoding == nil))
	c.Note(name("announced trailer"), fmt.Sprintf("%q nil=%v", resp.Trailer, resp.Trailer == nil))
	c.Note(name("uncompressed"), fmt.Sprint(resp.Uncompressed))
	c.Note(name("close"), fmt.Sprint(resp.Close))
	c.Note(name("tls"), describeTLS(resp.TLS))
	if resp.TLS != nil {
		c.Note(name("alpn"), fmt.Sprintf("%q", resp.TLS.NegotiatedProtocol))
	}
	c.Note(name("body nil"), fmt.Sprint(resp.Body == nil))
}

// describeTLS says what does not change from one run to the next.
func describeTLS(cs *tls.ConnectionState) string {
	if cs == nil {
		return "none"
	}
	return fmt.Sprintf("%s %v %q %d", tls.VersionName(cs.Version), cs.HandshakeComplete, cs.ServerName, len(cs.PeerCertificates))
}

// noteBody notes that the request body has been closed. net/http may do so a
// little late.
func (c *Client) noteBody(req *http.Request, name func(string) string) {
	b, ok := req.Body.(*Body)
	if !ok {
		return
	}
	if b.hang != nil {
		state := "open"
		select {
		case <-b.closed:
			state = "closed"
		default:
		}
		c.Note(name("request body at the end"), state)
		close(b.hang)
	}
	state := "closed"
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-b.closed:
	case <-timer.C:
		state = "never closed"
	}
	c.Note(name("request body"), state)
}

// noteBodies checks at the end what net/http does not promise.
func (c *Client) noteBodies() {
	_, std := c.RT.(*http.Transport)
	for i, b := range c.bodies {
		b.mu.Lock()
		closes, late := b.closes, b.late
		b.mu.Unlock()
		if !std && (closes != 1 || late > 0) {
			c.Note(fmt.Sprintf("request body %d", i+1), fmt.Sprintf("closed %d times, %d reads after that", closes, late))
		}
	}
}

// snapshot returns what a transport must not change in req.
func snapshot(req *http.Request) any {
	type copied struct {
		http.Request
		HasGetBody bool
		URLCopy    url.URL
	}
	s := copied{HasGetBody: req.GetBody != nil}
	//nolint:staticcheck // SA1019: deprecated fields too
	s.Request = http.Request{
		Method: req.Method, URL: req.URL, Proto: req.Proto, ProtoMajor: req.ProtoMajor, ProtoMinor: req.ProtoMinor,
		Header: req.Header.Clone(), ContentLength: req.ContentLength, Close: req.Close, Host: req.Host,
		TransferEncoding: slices.Clone(req.TransferEncoding), Trailer: req.Trailer.Clone(),
		RemoteAddr: req.RemoteAddr, RequestURI: req.RequestURI, TLS: req.TLS, Cancel: req.Cancel, Response: req.Response,
	}
	if req.URL != nil {
		s.URLCopy = *req.URL
	}
	return s
}

// Body is a request body that counts what is done to it. It hides what it
// reads from.
type Body struct {
	r io.Reader
	// hang makes Read wait for Close, or for hang, once r is at its end.
	hang chan struct{}

	mu     sync.Mutex
	closes int
	late   int
	closed chan struct{}
}

// NewBody returns a body that reads r.
func NewBody(r io.Reader) *Body { return &Body{r: r, closed: make(chan struct{})} }

func (b *Body) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.closes > 0 {
		b.late++
	}
	b.mu.Unlock()
	n, err := b.r.Read(p)
	if b.hang != nil && errors.Is(err, io.EOF) {
		select {
		case <-b.closed:
		case <-b.hang:
		}
		return 0, errBody
	}
	return n, err
}

// Close counts.
func (b *Body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closes++; b.closes == 1 {
		close(b.closed)
	}
	return nil
}

var (
	errBody  = errors.New("difftest: the body fails")
	errCause = errors.New("difftest: a cause of our own")
)

// noteError notes the classes of err. Passwords are no part of any text of
// ours; net/http puts them in URLs of proxies, for one.
func (c *Client) noteError(name string, err error) {
	c.Note(name, classes(err))
	if _, std := c.RT.(*http.Transport); std || err == nil {
		return
	}
	for _, secret := range []string{"secret", base64.StdEncoding.EncodeToString([]byte("me:secret"))} {
		if strings.Contains(err.Error(), secret) {
			c.T.Errorf("the error %q has a password", err)
		}
	}
}

const (
	errNil       = "nil"
	classTimeout = "Timeout()"
)

// classes says which well-known errors err is.
func classes(err error) string {
	if err == nil {
		return errNil
	}
	list := []string{"error"}
	for _, k := range []struct {
		name   string
		target error
	}{
		{"EOF", io.EOF},
		{"UnexpectedEOF", io.ErrUnexpectedEOF},
		{"Canceled", context.Canceled},
		{"DeadlineExceeded", context.DeadlineExceeded},
		{"os.DeadlineExceeded", os.ErrDeadlineExceeded},
		{"ECONNREFUSED", syscall.ECONNREFUSED},
		{"SchemeMismatch", http.ErrSchemeMismatch},
		{"ReadAfterClose", http.ErrBodyReadAfterClose},
		{"errBody", errBody},
		{"errCause", errCause},
	} {
		if errors.Is(err, k.target) {
			list = append(list, k.name)
		}
	}
	for name, is := range map[string]bool{
		"tls.CertificateVerificationError": as[*tls.CertificateVerificationError](err),
		"x509.UnknownAuthorityError":       as[x509.UnknownAuthorityError](err),
		"x509.HostnameError":               as[x509.HostnameError](err),
		"tls.RecordHeaderError":            as[tls.RecordHeaderError](err),
		"net.DNSError":                     as[*net.DNSError](err),
		"proxyconnect":                     opError(err) == "proxyconnect",
		"socks":                            opError(err) == "socks connect",
		"says:Forbidden":                   says(err, "Forbidden"),
		"says:Proxy-Auth":                  says(err, "Proxy Authentication Required"),
		classTimeout:                       (&url.Error{Err: err}).Timeout(),
	} {
		if is {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func as[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// opError returns what the outermost *net.OpError in err says failed.
func opError(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Op
	}
	return ""
}

func says(err error, end string) bool { return strings.HasSuffix(err.Error(), end) }

// text returns n bytes that do not repeat too soon. They must not be changed.
func text(n int) []byte { return longText()[:n:n] }

var longText = sync.OnceValue(func() []byte { //nolint:gochecknoglobals // a constant
	b := make([]byte, 4<<20)
	for i := range b {
		b[i] = byte('a' + (i*7+i/26)%26)
	}
	return b
})

func reader(n int) io.Reader { return bytes.NewReader(text(n)) }
