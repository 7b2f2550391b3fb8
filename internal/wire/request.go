package wire

import (
	"errors"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

const defaultUserAgent = "Go-http-client/1.1"

// RequestOptions says what of the request line and of the added header lines is
// not in the *http.Request itself.
type RequestOptions struct {
	// Host is the value of the Host line. The caller has made it ASCII and
	// checked it.
	Host string
	// Target is the request target as it stands on the request line. The
	// caller has chosen its form and checked it for control characters.
	Target string
	// Connection is "", "close" or "keep-alive": a Connection line that we add.
	// It is left out when the request asks for close itself, by its Close
	// field or by its header.
	Connection string
	// AcceptGzip adds "Accept-Encoding: gzip".
	AcceptGzip bool
	// ContentLength >= 0 is announced where net/http does so (see SendsLength);
	// -1 is not.
	ContentLength int64
	// Chunked announces chunks, and the names in the request's Trailer.
	Chunked bool
	// ProxyAuthorization is the value of such a line that we add, for a proxy;
	// "" for none. One in the request's own header stays beside it.
	ProxyAuthorization string
	// Trace is told each field as it is written, like
	// httptrace.ClientTrace.WroteHeaderField. It may be nil.
	Trace func(key string, values []string)
}

// SendsLength reports whether a request says "Content-Length: n": always for
// n > 0, and for 0 with the methods whose servers wait for it, or when the
// request asks for the identity coding.
func SendsLength(req *http.Request, n int64) bool {
	if n != 0 {
		return n > 0
	}
	switch req.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		return true
	case "", http.MethodGet, http.MethodHead:
		return false
	}
	coding := req.TransferEncoding
	return req.Body != nil && len(coding) == 1 && coding[0] == "identity"
}

// AppendRequest appends the head of req, through the empty line, to dst. The bytes
// and their order are those of net/http: request line, Host, User-Agent, a
// Connection: close that req.Close asks for, the framing fields, the header
// sorted by name, and then the added lines sorted by name.
//
// It does not change req and does not check it: see [CheckHeader] and
// [CheckTrailer]. Line ends in values become spaces all the same.
func AppendRequest(dst []byte, req *http.Request, o *RequestOptions) []byte {
	w := headWriter{dst: dst, trace: o.Trace}
	method := req.Method
	if method == "" {
		method = http.MethodGet
	}
	w.dst = append(w.dst, method...)
	w.dst = append(w.dst, ' ')
	w.dst = append(w.dst, o.Target...)
	w.dst = append(w.dst, " HTTP/1.1\r\n"...)

	w.one("Host", o.Host)
	w.userAgent(req.Header)
	closing := saysClose(req.Header)
	if req.Close && !closing {
		w.one("Connection", "close")
	}
	w.framing(req, o)

	var room [16]keyValues // on the stack; larger headers pay for their own
	w.fields(collect(room[:0], req.Header, true))
	w.fields(collectAdded(room[:0], o, req.Close || closing))
	return append(w.dst, '\r', '\n')
}

// saysClose reports whether net/http would see the close option in h: it looks
// at the first Connection line and takes spaces for commas.
func saysClose(h http.Header) bool {
	lines := h["Connection"]
	if len(lines) == 0 {
		return false
	}
	rest := lines[0]
	for rest != "" {
		word := rest
		if i := strings.IndexAny(rest, ", \t"); i >= 0 {
			word, rest = rest[:i], rest[i+1:]
		} else {
			rest = ""
		}
		if len(word) == len("close") && strings.EqualFold(word, "close") {
			return true
		}
	}
	return false
}

// headWriter appends header lines and tells trace, if there is one.
type headWriter struct {
	dst   []byte
	trace func(key string, values []string)
}

// one writes a line of a value that needs no cleaning.
func (w *headWriter) one(key, value string) {
	w.dst = append(w.dst, key...)
	w.dst = append(w.dst, ':', ' ')
	w.dst = append(w.dst, value...)
	w.dst = append(w.dst, '\r', '\n')
	if w.trace != nil {
		w.trace(key, []string{value})
	}
}

// userAgent writes the user's value, nothing when that is empty, or ours when
// there is none.
func (w *headWriter) userAgent(h http.Header) {
	values, ok := h["User-Agent"]
	switch {
	case !ok:
		w.one("User-Agent", defaultUserAgent)
	case len(values) > 0 && values[0] != "":
		w.one("User-Agent", cleanValue(values[0]))
	}
}

func (w *headWriter) framing(req *http.Request, o *RequestOptions) {
	switch {
	case o.Chunked:
		w.one("Transfer-Encoding", "chunked")
		w.announceTrailer(req.Trailer)
	case SendsLength(req, o.ContentLength):
		start := len("Content-Length: ") + len(w.dst)
		w.dst = append(w.dst, "Content-Length: "...)
		w.dst = strconv.AppendInt(w.dst, o.ContentLength, 10)
		if w.trace != nil {
			w.trace("Content-Length", []string{string(w.dst[start:])})
		}
		w.dst = append(w.dst, '\r', '\n')
	}
}

func (w *headWriter) announceTrailer(trailer http.Header) {
	if len(trailer) == 0 {
		return
	}
	names := make([]string, 0, len(trailer))
	for name := range trailer {
		names = append(names, http.CanonicalHeaderKey(name))
	}
	slices.Sort(names)
	w.dst = append(w.dst, "Trailer: "...)
	for i, name := range names {
		if i > 0 {
			w.dst = append(w.dst, ',')
		}
		w.dst = append(w.dst, name...)
	}
	w.dst = append(w.dst, '\r', '\n')
	if w.trace != nil {
		w.trace("Trailer", names)
	}
}

type keyValues struct {
	key    string
	values []string
}

// collect appends the fields of h to kvs, without those that AppendRequest writes
// itself when skipOwn is set.
func collect(kvs []keyValues, h http.Header, skipOwn bool) []keyValues {
	for key, values := range h {
		if skipOwn {
			switch key {
			case "Host", "User-Agent", "Content-Length", "Transfer-Encoding", "Trailer":
				continue
			}
		}
		kvs = append(kvs, keyValues{key, values})
	}
	return kvs
}

//nolint:gochecknoglobals // constant values as slices, never changed
var (
	valueGzip      = []string{"gzip"}
	valueClose     = []string{"close"}
	valueKeepAlive = []string{"keep-alive"}
)

// collectAdded appends the lines that o adds to kvs.
func collectAdded(kvs []keyValues, o *RequestOptions, closing bool) []keyValues {
	var connection []string
	switch {
	case closing || o.Connection == "":
	case o.Connection == "close":
		connection = valueClose
	case o.Connection == "keep-alive":
		connection = valueKeepAlive
	}
	if o.AcceptGzip {
		kvs = append(kvs, keyValues{"Accept-Encoding", valueGzip})
	}
	if connection != nil {
		kvs = append(kvs, keyValues{"Connection", connection})
	}
	if o.ProxyAuthorization != "" {
		kvs = append(kvs, keyValues{"Proxy-Authorization", []string{o.ProxyAuthorization}})
	}
	return kvs
}

// fields sorts kvs and writes them. A name that is no token is left out, as
// net/http does; CheckHeader refuses it before.
func (w *headWriter) fields(kvs []keyValues) {
	slices.SortFunc(kvs, func(a, b keyValues) int { return strings.Compare(a.key, b.key) })
	for _, kv := range kvs {
		if !httpguts.ValidHeaderFieldName(kv.key) {
			continue
		}
		var traced []string
		for _, value := range kv.values {
			value = cleanValue(value)
			w.dst = append(w.dst, kv.key...)
			w.dst = append(w.dst, ':', ' ')
			w.dst = append(w.dst, value...)
			w.dst = append(w.dst, '\r', '\n')
			if w.trace != nil {
				traced = append(traced, value)
			}
		}
		if w.trace != nil {
			w.trace(kv.key, traced)
		}
	}
}

// cleanValue returns what of a value goes on its line: no blanks at the ends, and
// no line ends.
func cleanValue(v string) string {
	v = textproto.TrimString(v)
	if strings.IndexByte(v, '\n') < 0 && strings.IndexByte(v, '\r') < 0 {
		return v
	}
	clean := []byte(v)
	for i, c := range clean {
		if c == '\n' || c == '\r' {
			clean[i] = ' '
		}
	}
	return string(clean)
}

// CheckHeader refuses names that are no tokens and values that cannot stand on a
// line. The error never has a value in it.
func CheckHeader(h http.Header) error {
	for name, values := range h {
		if !httpguts.ValidHeaderFieldName(name) {
			return errors.New("invalid header field name " + excerpt([]byte(name)))
		}
		for _, value := range values {
			if !httpguts.ValidHeaderFieldValue(value) {
				return errors.New("invalid header field value for " + excerpt([]byte(name)))
			}
		}
	}
	return nil
}

// CheckTrailer refuses what CheckHeader refuses, and fields that decide framing.
// A trailer gets its values while the body is sent: check it before the request
// and again before [AppendTrailer].
func CheckTrailer(h http.Header) error {
	for name, values := range h {
		if !httpguts.ValidHeaderFieldName(name) {
			return errors.New("invalid trailer field name " + excerpt([]byte(name)))
		}
		switch http.CanonicalHeaderKey(name) {
		case "Transfer-Encoding", "Trailer", "Content-Length":
			return errors.New("invalid trailer field " + strconv.Quote(name))
		}
		for _, value := range values {
			if !httpguts.ValidHeaderFieldValue(value) {
				return errors.New("invalid trailer field value for " + excerpt([]byte(name)))
			}
		}
	}
	return nil
}

// LastChunk goes before the trailer section at the end of a chunked body.
const LastChunk = "0\r\n"

// AppendTrailer appends a trailer section: its lines sorted by name, and the empty
// line that ends the message. It does not write [LastChunk].
func AppendTrailer(dst []byte, trailer http.Header) []byte {
	w := headWriter{dst: dst}
	if len(trailer) > 0 {
		var room [4]keyValues
		w.fields(collect(room[:0], trailer, false))
	}
	return append(w.dst, '\r', '\n')
}

// MaxChunkHeader is the room that [PutChunk] needs before the data.
const MaxChunkHeader = 16 + 2

// PutChunk makes a chunk around buf[MaxChunkHeader:MaxChunkHeader+n], in place,
// and returns the part of buf that is the chunk: size line, data, CRLF. buf must
// have two bytes of room behind the data. For n <= 0 the result is empty: a
// chunk without data would end the body.
func PutChunk(buf []byte, n int) []byte {
	if n <= 0 {
		return buf[:0]
	}
	const digits = "0123456789abcdef"
	end := MaxChunkHeader + n
	buf[end], buf[end+1] = '\r', '\n'
	start := MaxChunkHeader - 2
	buf[start], buf[start+1] = '\r', '\n'
	for size := n; size > 0; size >>= 4 {
		start--
		buf[start] = digits[size&0xf]
	}
	return buf[start : end+2]
}
