package wire

import (
	"bytes"
	"io"
	"math"
	"net/http"
)

// Head is a parsed response head.
type Head struct {
	// Response has no Body and no Request; the rest of it is as
	// http.ReadResponse sets it.
	Response *http.Response
	// Framing says how the end of the body is found. It does not know of
	// 101 and of a 2xx answer to CONNECT, after which the connection is no
	// longer HTTP whatever the head says (RFC 9110 §9.3.6).
	Framing Framing
	// Length is the size of a FramingLength body, > 0; else 0.
	Length int64
	// Size is the number of bytes that the head had on the wire.
	Size int
	// Oddity is "", or why a connection that sent this head must not be used
	// again although the response is accepted.
	Oddity string

	mem *answer
}

const (
	protoPrefix = "HTTP/1."
	protoSize   = len(protoPrefix) + 1

	// A line costs us up to about 150 bytes (a field position, a map slot, a
	// value slot) however short it is. With one line for every 32 bytes of the
	// limit, what a head makes us hold stays under about eight times the limit;
	// real heads have about 35 to 60 bytes a line. The base is for small limits.
	bytesPerLine = 32
	baseLines    = 128
)

// ReadHead reads one response head, an interim (1xx) one too. limit is the most
// bytes it may have, > 0; it may have limit/32+128 lines, and one that exceeds
// either is [ErrHeadTooLarge]. method is the request's; "" means GET.
//
// The end of the connection is [io.EOF] before the first byte and
// [io.ErrUnexpectedEOF] after it. Other errors of the source come back untouched,
// and after one that passes, as a timeout does, ReadHead may be called again: it
// goes on where it stopped. Refusals are [MalformedError]; after one the
// connection has no future.
//
// What cannot become HTTP/1 is refused at its first byte that differs, so a peer
// of another protocol does not make us wait for a line that never ends.
func ReadHead(r *Reader, method string, limit int) (Head, error) {
	limit = min(limit, math.MaxInt32)
	maxLines := limit/bytesPerLine + baseLines
	for {
		data := r.buffered()
		size, err := r.parse(data, limit, maxLines)
		if err != nil {
			return Head{}, err
		}
		if size > 0 {
			h, err := r.last.head(method)
			r.discard(size)
			return h, err
		}
		if err := r.fill(); err != nil {
			if err == io.EOF && len(data) > 0 { //nolint:errorlint // a wrapped EOF is the source's own error
				err = io.ErrUnexpectedEOF
			}
			return Head{}, err
		}
	}
}

// checkStart refuses data that is not the beginning of an HTTP/1 response.
func checkStart(data []byte) error {
	n := min(len(data), len(protoPrefix))
	if string(data[:n]) == protoPrefix[:n] {
		return nil
	}
	switch {
	case looksLikeTLS(data):
		return malformed("the server speaks TLS on this port")
	case looksLikeHTTP2(data):
		return malformed("the server speaks HTTP/2")
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	return malformedAt("not an HTTP/1 response:", line)
}

// looksLikeTLS knows an alert or handshake record (RFC 8446 §5.1).
func looksLikeTLS(data []byte) bool {
	return len(data) >= 2 && (data[0] == 0x15 || data[0] == 0x16) && data[1] == 0x03
}

// looksLikeHTTP2 knows a SETTINGS frame on stream 0 (RFC 9113 §3.4, §6.5).
func looksLikeHTTP2(data []byte) bool {
	const settings = 4
	return len(data) >= 4 && data[0] == 0 && data[1] == 0 && data[3] == settings
}

// parse parses the head at the front of data into r.last and returns its size, 0
// when it is not all there. It changes data.
func (r *Reader) parse(data []byte, limit, maxLines int) (size int, err error) {
	if r.last.begins(data) && r.last.fits(limit, maxLines) {
		return len(r.last.raw), nil
	}
	if err := checkStart(data); err != nil {
		return 0, err
	}
	size, tooLarge := r.scan.find(data, limit, maxLines)
	if tooLarge {
		return 0, ErrHeadTooLarge
	}
	if size == 0 {
		return 0, nil
	}
	err = r.last.parse(data[:size], r.scan.lines)
	if err != nil {
		r.discard(size)
	}
	return size, err
}

// parsed is a head taken apart. A Reader keeps its last one: servers say the
// same again and again, but for the second in their Date, and what has the
// same bytes need not be looked at twice. That spares a small GET 8 % of its
// CPU, with the copy of the text.
type parsed struct {
	raw    []byte // as it came; empty: not to be used again
	text   string // the same with canonical names and joined lines
	fields []field
	lines  int
	status statusLine
	set    frameSet
	oddity string
}

const (
	// maxKept and keptFields bound what a Reader keeps of a head.
	maxKept    = 4 << 10
	keptFields = 64
)

// kept returns p for a Reader that goes back to the pool: without what is large.
func (p *parsed) kept() parsed {
	if len(p.raw) == 0 || cap(p.fields) > keptFields {
		return parsed{}
	}
	return *p
}

// begins reports whether data begins with the same head.
func (p *parsed) begins(data []byte) bool {
	n := len(p.raw)
	return n > 0 && len(data) >= n && string(data[:n]) == string(p.raw)
}

// fits reports whether the head is within these limits.
func (p *parsed) fits(limit, maxLines int) bool { return len(p.raw) <= limit && p.lines <= maxLines }

// parse takes a complete head of the given number of lines apart. It changes
// head.
func (p *parsed) parse(head []byte, lines int) (err error) {
	raw := p.raw[:0]
	p.raw, p.lines = nil, lines
	if len(head) <= maxKept {
		raw = append(raw, head...)
	}
	if p.status, err = parseStatusLine(head); err != nil {
		return err
	}
	if cap(p.fields) < lines || cap(p.fields) > keptFields {
		p.fields = make([]field, 0, max(lines, keptFields/2))
	}
	if p.fields, p.oddity, err = parseFields(p.fields[:0], head, p.status.next); err != nil {
		return err
	}
	if p.status.oddity != "" {
		p.oddity = p.status.oddity
	}
	p.text = string(head)
	p.set = frameFields(p.text, p.fields)
	p.raw = raw
	return nil
}

// head makes a response of it.
func (p *parsed) head(method string) (Head, error) {
	text, st, mem := p.text, &p.status, new(answer)
	mem.resp = http.Response{
		Status:     text[st.status:st.end],
		StatusCode: st.code,
		Proto:      text[:protoSize],
		ProtoMajor: 1,
		ProtoMinor: st.minor,
		Header:     buildHeader(text, p.fields, mem.values[:0]),
	}
	h := Head{Response: &mem.resp, Size: len(text), Oddity: p.oddity, mem: mem}
	if err := h.frame(p.set, method); err != nil {
		return Head{}, err
	}
	return h, nil
}

// answer is a response, the values of its header if they are few, and its body
// if that arrives with the head: one allocation.
type answer struct {
	resp   http.Response
	values [6]string
	whole  WholeBody
}

// statusLine says what the first line holds and where.
type statusLine struct {
	minor  int
	code   int
	status int // where "200 OK" begins
	end    int // and ends
	next   int // where the next line begins
	oddity string
}

// parseStatusLine parses the first line of head, whose beginning checkStart has
// seen. Like net/http it takes more than one space before the code, and no reason.
func parseStatusLine(head []byte) (statusLine, error) {
	end, next, bare := lineAt(head, 0)
	line := head[:end]
	if len(line) <= protoSize || line[protoSize] != ' ' || !isDigit(line[protoSize-1]) {
		return statusLine{}, malformedAt("status line", line)
	}
	st := statusLine{minor: int(line[protoSize-1] - '0'), end: end, next: next}
	st.status = protoSize + 1
	for st.status < end && line[st.status] == ' ' {
		st.status++
	}
	code, _, _ := bytes.Cut(line[st.status:], []byte(" "))
	if len(code) != 3 || !isDigit(code[0]) || !isDigit(code[1]) || !isDigit(code[2]) {
		return statusLine{}, malformedAt("status code in", line)
	}
	st.code = int(code[0]-'0')*100 + int(code[1]-'0')*10 + int(code[2]-'0')
	if st.code < 100 {
		return statusLine{}, malformedAt("status code below 100 in", line)
	}
	if !validValue(line) {
		return statusLine{}, malformedAt("control character in status line", line)
	}
	switch {
	case bare:
		st.oddity = oddityBareLF
	case st.minor > 1:
		st.oddity = "HTTP version 1." + string(line[protoSize-1])
	case st.status > protoSize+1:
		st.oddity = "extra space in the status line"
	}
	return st, nil
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
