package keepalive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/keepalive-http/keepalive/internal/hostkey"
	"github.com/keepalive-http/keepalive/internal/wire"
)

// maxInlineBody is the largest request body that is sent together with the
// head, by the goroutine of RoundTrip itself, if it is in memory.
const maxInlineBody = 16 << 10

// call is one RoundTrip: the request in the form in which it will be sent, the
// same for all attempts, and what has become of it. It is used by the
// goroutine of RoundTrip, and afterwards read by the response body.
type call struct {
	t     *Transport
	req   *http.Request
	wire  *http.Request           // as it is sent: req, or a copy without Expect
	ctx   context.Context         //nolint:containedctx // of the request it stands for
	end   context.CancelCauseFunc // of ctx, when it is our own
	opts  *requestOptions         // never nil
	limit *timeouts
	key   hostkey.Key
	trace *httptrace.ClientTrace
	start time.Time
	hard  deadline // of the whole exchange

	host, target string
	proxyAuth    string // Proxy-Authorization for a proxy that passes it on
	// One of inline and body at most: a small body that was read already, or
	// one that is to be streamed.
	inline  *buffer
	body    *requestBody
	length  int64       // of the body; -1: unknown, in chunks
	expect  bool        // Expect: 100-continue
	tunnel  bool        // CONNECT: body is what goes through the tunnel
	gzip    bool        // ask for gzip, and unpack it
	counted bool        // the pool has counted it as under way
	spent   bool        // its response holds on to nothing of it
	unread  bool        // the body becomes inline when there is a connection to send it on
	last    CloseReason // why the connection ends with this request, if it does
	attempt int
	retries int
	// one is the exchange of the first attempt, so that a call and its
	// exchange are one allocation. Nothing of it is used for another attempt:
	// its sender may still be ending.
	one exchange
}

// newCall checks req and takes it apart. The request body is still the
// caller's to close when it fails.
func (t *Transport) newCall(req *http.Request) (*call, error) {
	if err := checkRequest(req); err != nil {
		return nil, err
	}
	user := ""
	if t.cfg.poolKey != nil {
		user = t.cfg.poolKey(req)
	}
	proxyURL, err := t.cfg.proxyFor(req)
	if err != nil {
		return nil, err
	}
	key, err := hostkey.Of(req.URL, proxyURL, user)
	if err != nil {
		return nil, fmt.Errorf("keepalive: %w", err)
	}
	// WithPoolKey says who it is: then connections are that user's anyway.
	auth := authenticatesConn(req.Header)
	key.Auth = user == "" && auth
	key.HTTP1 = (len(req.Header["Upgrade"]) > 0 || auth && t.cfg.protocols.HTTP1()) && t.cfg.mayShare(key)
	cl, _ := calls.Get().(*call)
	cl.t, cl.req, cl.wire, cl.ctx = t, req, req, req.Context()
	cl.key, cl.opts, cl.limit, cl.start = key, &noOptions, &t.cfg.timeouts, time.Now()
	if cl.host, cl.target, err = requestTarget(req, key.Forwarded()); err != nil {
		return nil, err
	}
	if key.Forwarded() {
		cl.proxyAuth = proxyAuth(proxyURL)
	}
	if err := cl.takeOptions(); err != nil {
		return nil, err
	}
	cl.trace = httptrace.ContextClientTrace(cl.ctx)
	cl.hard = after(cl.start, cl.limit.request, ErrRequestTimeout)
	cl.gzip = !t.cfg.disableCompression && req.Method != http.MethodHead &&
		!has(req.Header, "Accept-Encoding") && !has(req.Header, "Range")
	cl.expect = wire.HasToken(req.Header["Expect"], "100-continue")
	cl.last = cl.endsConn()
	return cl, nil
}

// takeOptions takes over the settings that the request's context carries.
func (cl *call) takeOptions() error {
	o, ok := cl.ctx.Value(requestOptionsKey{}).(*requestOptions)
	if !ok {
		return nil
	}
	limit := o.apply(cl.t.cfg.timeouts)
	cl.opts, cl.limit = o, &limit
	return errors.Join(slices.Concat(o.refused[:], o.errs)...)
}

// endsConn returns why any connection ends with this request, or CloseNone.
func (cl *call) endsConn() CloseReason {
	connection := cl.req.Header["Connection"]
	switch {
	case cl.req.Close || cl.opts.noReuse || wire.HasToken(connection, "close"):
		return CloseClientRequest
	case cl.t.cfg.disableKeepAlives && !wire.HasToken(connection, "upgrade"):
		// An upgrade needs its Connection: upgrade (net/http does the same).
		return CloseKeepAlivesDisabled
	}
	return CloseNone
}

// calls keeps calls that are spent, for most responses arrive whole: without
// it a small GET allocates 40 % more, and at 64 in flight costs 10 % more CPU.
var calls = sync.Pool{New: func() any { return new(call) }} //nolint:gochecknoglobals // shared by nature

// recycle gives cl back when RoundTrip returns, if nobody can hold on to it or
// its exchange any more: the response does not, no sender was started, no hook
// knows of it, and neither the watch of the context nor overdue has begun to end it.
func (cl *call) recycle() {
	if !cl.spent || cl.end != nil || cl.trace != nil {
		return
	}
	*cl = call{}
	calls.Put(cl)
}

// noOptions are those of a request whose context carries none.
var noOptions requestOptions //nolint:gochecknoglobals // never changed

// has reports whether the first value of a field is there and not empty.
func has(h http.Header, name string) bool {
	v := h[name]
	return len(v) > 0 && v[0] != ""
}

// checkRequest refuses what must not be sent, before anything is dialed.
func checkRequest(req *http.Request) error {
	switch {
	case req.URL == nil:
		return errors.New("keepalive: nil Request.URL")
	case req.Header == nil:
		return errors.New("keepalive: nil Request.Header")
	case req.URL.Scheme != "http" && req.URL.Scheme != "https":
		return fmt.Errorf("keepalive: unsupported protocol scheme %q", req.URL.Scheme)
	case req.URL.Host == "":
		return errors.New("keepalive: no Host in request URL")
	case req.ContentLength > 0 && req.Body == nil:
		return fmt.Errorf("keepalive: Request.ContentLength=%d with nil Body", req.ContentLength)
	case req.Method != "" && !httpguts.ValidHeaderFieldName(req.Method):
		return fmt.Errorf("keepalive: invalid method %q", req.Method)
	}
	if err := wire.CheckHeader(req.Header); err != nil {
		return fmt.Errorf("keepalive: %w", err)
	}
	if err := wire.CheckTrailer(req.Trailer); err != nil {
		return fmt.Errorf("keepalive: %w", err)
	}
	return nil
}

// requestTarget returns the value of the Host line and the request target, in
// the absolute form for a proxy (RFC 9112 section 3.2.2).
func requestTarget(req *http.Request, forwarded bool) (host, target string, err error) {
	host = req.Host
	if host == "" {
		host = req.URL.Host
	}
	if host, err = httpguts.PunycodeHostPort(host); err != nil {
		return "", "", fmt.Errorf("keepalive: invalid Host: %w", err)
	}
	if !httpguts.ValidHostHeader(host) {
		if forwarded {
			return "", "", errors.New("keepalive: invalid Host")
		}
		host = "" // as net/http: clients of Unix sockets put a path there (golang/go#61431)
	}
	host = removeZone(host)
	target = req.URL.RequestURI()
	switch {
	case forwarded && req.URL.Opaque == "":
		target = req.URL.Scheme + "://" + host + target
	case req.Method == http.MethodConnect && req.URL.Path == "":
		target = cmp.Or(req.URL.Opaque, host)
	}
	for i := 0; i < len(target); i++ {
		if target[i] <= ' ' || target[i] == 0x7f {
			return "", "", errors.New("keepalive: the request URL has a space or a control character")
		}
	}
	return host, target, nil
}

// removeZone takes the zone out of an IPv6 literal: it means nothing to the
// peer (RFC 6874 section 4).
func removeZone(host string) string {
	if !strings.HasPrefix(host, "[") {
		return host
	}
	end := strings.LastIndexByte(host, ']')
	if end < 0 {
		return host
	}
	if zone := strings.LastIndexByte(host[:end], '%'); zone >= 0 {
		return host[:zone] + host[end:]
	}
	return host
}

// takeBody decides how the request body is sent. A small one in memory is left
// alone until there is a connection, so that a request that was not sent can be
// made again; another one becomes cl.body, which is closed by whoever ends its
// sending.
func (cl *call) takeBody() error {
	req := cl.req
	// Chunks that were asked for are sent though there are none: a trailer follows.
	chunked := len(req.TransferEncoding) > 0 && req.TransferEncoding[0] == "chunked"
	if req.Body == nil || req.Body == http.NoBody && !chunked {
		return nil
	}
	cl.length = req.ContentLength
	if cl.length == 0 || chunked {
		cl.length = -1
	}
	cl.tunnel = req.Method == http.MethodConnect && cl.length < 0
	mem := inMemory(req.Body)
	if mem != nil && cl.length > 0 && cl.length <= maxInlineBody && int64(mem.Len()) == cl.length && !cl.expect {
		cl.unread = true
		return nil
	}
	cl.watchCancel()
	cl.body = newRequestBody(req.Body)
	switch {
	case cl.tunnel, chunked:
		return nil
	case mem == nil:
		return cl.probeBody()
	}
	return cl.takeMemory(mem)
}

// takeMemory decides how a body in memory is sent.
func (cl *call) takeMemory(mem memReader) error {
	switch n := int64(mem.Len()); {
	case cl.length < 0 && n == 0 && usuallyLacksBody(cl.req.Method):
		cl.length = 0
		cl.dropBody()
		return nil
	case cl.length >= 0 && n != cl.length:
		return &marked{bodyLengthText(cl.length, n), []error{ErrRequestBody}}
	}
	return nil
}

// takeInline reads a small body in memory, to be sent with the head.
func (cl *call) takeInline() error {
	defer cl.dropBody()
	mem := inMemory(cl.req.Body)
	cl.inline = getBuffer()
	for int64(len(cl.inline.b)) < cl.length {
		b := cl.inline.b
		n, err := mem.Read(b[len(b):cl.length])
		cl.inline.b = b[:len(b)+n]
		if err != nil && int64(len(cl.inline.b)) < cl.length {
			return &marked{bodyLengthText(cl.length, int64(len(cl.inline.b))), []error{ErrRequestBody, err}}
		}
	}
	return nil
}

func bodyLengthText(want, got int64) string {
	return fmt.Sprintf("request ContentLength=%d with Body length %d", want, got)
}

// emptyWait is how long a body of unknown length is given to show whether
// it is empty.
const emptyWait = 200 * time.Millisecond

// probeBody finds out whether a body of unknown length is empty, for methods
// that usually have none: servers may refuse an empty chunked body there. The
// body is not touched when the server is asked to look at the head first.
func (cl *call) probeBody() error {
	if cl.length >= 0 || cl.expect || !usuallyLacksBody(cl.req.Method) {
		return nil
	}
	return cl.body.probe(cl)
}

func usuallyLacksBody(method string) bool {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodDelete, http.MethodOptions, "PROPFIND", "SEARCH":
		return true
	}
	return false
}

// tunnelTo sends the body through the tunnel that is open now, from a goroutine
// that ends with the body or the tunnel.
func (cl *call) tunnelTo(u *upgraded) {
	if !cl.tunnel {
		return
	}
	b := cl.body
	cl.body = nil
	u.sending = b
	go func() { // not the Transport's: the tunnel outlives it
		defer b.close()
		_, _ = io.Copy(u.Conn, b.rc)
	}()
}

// dropBody closes the request body, which is not needed any more.
func (cl *call) dropBody() {
	if cl.unread {
		cl.unread = false
		_ = cl.req.Body.Close()
	}
	if cl.body != nil {
		cl.body.close()
		cl.body = nil
	}
}

// rewindable reports whether the request can be sent from its start (again).
func (cl *call) rewindable() bool {
	return cl.body == nil || !cl.body.touched || cl.req.GetBody != nil
}

// rewind makes the request ready for another attempt.
func (cl *call) rewind() error {
	if cl.body == nil || !cl.body.touched {
		return nil
	}
	rc, err := cl.req.GetBody()
	if err != nil {
		return &marked{"request body: GetBody: " + err.Error(), []error{ErrRequestBody, err}}
	}
	if rc == nil {
		return &marked{"request body: GetBody returned nothing", []error{ErrRequestBody}}
	}
	cl.body.close() // unless its sender has
	cl.body = newRequestBody(rc)
	return nil
}

// appendHead appends the head of the request as it goes over c, and the body
// if that goes with it.
func (cl *call) appendHead(dst []byte, c *conn) []byte {
	o := wire.RequestOptions{
		Host: cl.host, Target: cl.target, AcceptGzip: cl.gzip, ContentLength: cl.length,
		Chunked: cl.length < 0 && !cl.tunnel, ProxyAuthorization: cl.proxyAuth,
	}
	switch cfg := cl.t.cfg; {
	case cl.lastOn(c) != CloseNone:
		if !wire.HasToken(cl.req.Header["Connection"], "close") {
			o.Connection = "close"
		}
	case cfg.keepAliveHeader && (c.served == 1 || c.peer10) && len(cl.req.Header["Connection"]) == 0:
		o.Connection = "keep-alive"
	}
	if cl.trace != nil {
		o.Trace = cl.trace.WroteHeaderField
	}
	dst = wire.AppendRequest(dst, cl.wire, &o)
	if cl.inline != nil {
		dst = append(dst, cl.inline.b...)
	}
	return dst
}

// firstHop returns the host:port that a connection for cl is made to.
func (cl *call) firstHop() string {
	if cl.key.Proxy == "" {
		return cl.key.Addr()
	}
	u, err := cl.key.ProxyURL()
	if err != nil {
		return ""
	}
	host, port, _ := hostkey.Authority(u)
	return net.JoinHostPort(host, port)
}

// hostName names the host of cl, and its proxy, for errors.
func (cl *call) hostName() string {
	key := cl.key
	if key.Forwarded() {
		host, port, err := hostkey.Authority(cl.req.URL)
		if err == nil {
			key.Host, key.Port = host, port
		}
	}
	return key.Peer()
}

// lastOn returns why this request is the last one on c, or CloseNone.
func (cl *call) lastOn(c *conn) CloseReason {
	if n := cl.t.cfg.maxRequestsPerConn; cl.last == CloseNone && n > 0 && c.served >= n {
		return CloseMaxRequests
	}
	return cl.last
}

// withoutExpect makes the next attempt send its body without asking.
func (cl *call) withoutExpect() {
	plain := *cl.req
	plain.Header = plain.Header.Clone()
	plain.Header.Del("Expect")
	cl.wire, cl.expect = &plain, false
}

// mayEnd reports whether the request can be cancelled. Done is asked last: a
// context makes its channel for who asks first.
func (cl *call) mayEnd() bool {
	if cl.req.Cancel != nil { //nolint:staticcheck // SA1019: see watchCancel
		return true
	}
	_, limited := cl.ctx.Deadline()
	return limited || cl.ctx.Done() != nil
}

// watchCancel makes cl.ctx end with the request's deprecated Cancel channel,
// too. finish ends the goroutine.
func (cl *call) watchCancel() {
	ch := cl.req.Cancel //nolint:staticcheck // SA1019: net/http's Client still uses it
	if ch == nil || cl.end != nil {
		return
	}
	cl.ctx, cl.end = context.WithCancelCause(cl.ctx)
	ctx, end := cl.ctx, cl.end
	cl.t.tasks.run(func() {
		select {
		case <-ch:
			end(canceledRequest())
		case <-ctx.Done():
		case <-cl.t.pool.ended:
		}
	})
}

// contextEnded returns why the request's context ended, nil if it has not: its
// cause, which is also the context's own error.
func (cl *call) contextEnded() error {
	if cl.end == nil && cl.req.Cancel != nil { //nolint:staticcheck // SA1019: see watchCancel
		select {
		case <-cl.req.Cancel: //nolint:staticcheck // SA1019: see watchCancel
			return canceledRequest()
		default:
		}
	}
	err, cause := cl.ctx.Err(), context.Cause(cl.ctx)
	if err == nil || errors.Is(cause, err) {
		return cause
	}
	return &marked{cause.Error(), []error{cause, err}}
}

// finish gives back what the call holds of its own: not the connection. The
// request is over.
func (cl *call) finish() {
	if cl.inline != nil {
		cl.inline.free()
		cl.inline = nil
	}
	if cl.end != nil {
		cl.end(nil)
	}
}

func canceledRequest() error {
	return &marked{"request canceled", []error{context.Canceled}}
}

// remote returns the address of the peer, as text.
func remote(c net.Conn) string { return addrString(c.RemoteAddr()) }
