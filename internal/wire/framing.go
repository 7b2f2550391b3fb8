package wire

import (
	"net/http"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Framing says how the end of a body is found.
type Framing uint8

const (
	// FramingNone means that no body bytes follow.
	FramingNone Framing = iota
	// FramingLength means that a known number of bytes follows.
	FramingLength
	// FramingChunked means that chunks, the last chunk and a trailer section
	// follow.
	FramingChunked
	// FramingClose means that the body goes on until the connection ends.
	FramingClose
)

// HasToken reports whether one of the lists in values has token as an element,
// in any case. "xclose" is not "close".
func HasToken(values []string, token string) bool {
	return httpguts.HeaderValuesContainsToken(values, token)
}

// frameSet notes which fields that decide framing a head has, so that the common
// head costs no look-up for the others.
type frameSet uint8

const (
	hasConnection frameSet = 1 << iota
	hasLength
	hasEncoding
	hasTrailer
	hasPragma
)

func frameFields(text string, fields []field) (set frameSet) {
	for _, f := range fields {
		switch text[f.name:f.nameEnd] {
		case "Connection":
			set |= hasConnection
		case "Content-Length":
			set |= hasLength
		case "Transfer-Encoding":
			set |= hasEncoding
		case "Trailer":
			set |= hasTrailer
		case "Pragma":
			set |= hasPragma
		}
	}
	return set
}

// frame decides how the body is delimited (RFC 9112 §6.3) and sets what follows
// from that in the response, in the way http.ReadResponse does.
func (h *Head) frame(set frameSet, method string) error {
	resp := h.Response
	if set&hasPragma != 0 {
		mirrorPragma(resp.Header)
	}
	resp.Close = wantsClose(resp, set)
	tunnel := method == http.MethodConnect && resp.StatusCode/100 == 2
	moot := tunnel || method == http.MethodHead || !statusAllowsBody(resp.StatusCode)
	chunked, err := takeEncoding(resp, set, moot)
	length := int64(-1)
	switch {
	case tunnel && (chunked || err != nil): // what is left means nothing (RFC 9110 §9.3.6)
		delete(resp.Header, "Transfer-Encoding")
		delete(resp.Header, "Content-Length")
		err = nil
	case err == nil:
		length, err = takeLength(resp.Header, set)
	}
	if err != nil && !tunnel {
		return err
	}
	if chunked && set&hasTrailer != 0 {
		if resp.Trailer, err = announcedTrailer(resp.Header); err != nil {
			return err
		}
	}
	h.delimit(chunked, length, method)
	if h.Oddity == "" {
		h.Oddity = framingOddity(resp, set, chunked, length, moot)
	}
	return nil
}

// delimit applies RFC 9112 §6.3 in order; length is -1 for none.
func (h *Head) delimit(chunked bool, length int64, method string) {
	resp := h.Response
	switch {
	case method == http.MethodHead:
		resp.ContentLength = length
	case !statusAllowsBody(resp.StatusCode):
		resp.ContentLength = 0
	case chunked:
		h.Framing = FramingChunked
		resp.ContentLength = -1
	case length > 0:
		h.Framing, h.Length = FramingLength, length
		resp.ContentLength = length
	case length < 0:
		h.Framing = FramingClose
		resp.ContentLength = -1
		resp.Close = true
	}
}

// framingOddity names what is odd about the framing of a head that is accepted, if
// anything is. moot: no body follows, whatever it says.
//
// A server must not announce a body with 1xx and 204 (RFC 9112 §6.1, RFC 9110
// §8.6). One that does may well send it too. 304 may (RFC 9110 §15.4.5).
func framingOddity(resp *http.Response, set frameSet, chunked bool, length int64, moot bool) string {
	code := resp.StatusCode
	switch {
	case (code < 200 || code == http.StatusNoContent) && (chunked || length > 0):
		return "Content-Length or Transfer-Encoding with status 1xx or 204"
	case moot && set&hasEncoding != 0 && (resp.ProtoMinor == 0 || set&hasLength != 0):
		return "contradictory framing fields, though no body follows"
	}
	return ""
}

// statusAllowsBody: RFC 9112 §6.3, rule 1.
func statusAllowsBody(code int) bool {
	return code >= 200 && code != http.StatusNoContent && code != http.StatusNotModified
}

// mirrorPragma adds the Cache-Control that an old Pragma stands for.
func mirrorPragma(h http.Header) {
	if h["Pragma"][0] != "no-cache" {
		return
	}
	if _, ok := h["Cache-Control"]; !ok {
		h["Cache-Control"] = []string{"no-cache"}
	}
}

// wantsClose reads the Connection fields. From HTTP/1.1 on, "close" moves from
// the header to Response.Close.
func wantsClose(resp *http.Response, set frameSet) bool {
	if set&hasConnection == 0 {
		return resp.ProtoMinor == 0
	}
	options := resp.Header["Connection"]
	closing := HasToken(options, "close")
	if resp.ProtoMinor == 0 {
		return closing || !HasToken(options, "keep-alive")
	}
	if closing {
		delete(resp.Header, "Connection")
	}
	return closing
}

// takeEncoding moves Transfer-Encoding from the header to the response. Chunked,
// alone and once, is all we know, and any doubt about it is how responses are
// smuggled (RFC 9112 §6.1, §6.3, §11.2), so nothing beside it is let through. moot
// says that no body follows, whatever the head says: then there is no doubt.
func takeEncoding(resp *http.Response, set frameSet, moot bool) (chunked bool, err error) {
	if set&hasEncoding == 0 {
		return false, nil
	}
	codings := resp.Header["Transfer-Encoding"]
	switch {
	case moot && resp.ProtoMinor == 0:
		delete(resp.Header, "Transfer-Encoding")
		return false, nil
	case set&hasLength != 0 && !moot:
		return false, malformed("both Transfer-Encoding and Content-Length")
	case resp.ProtoMinor == 0:
		return false, malformed("Transfer-Encoding in an HTTP/1.0 response")
	case len(codings) != 1:
		return false, malformed("more than one Transfer-Encoding line")
	case len(codings[0]) != len("chunked") || !strings.EqualFold(codings[0], "chunked"):
		return false, malformed("a Transfer-Encoding other than chunked")
	}
	delete(resp.Header, "Transfer-Encoding")
	codings[0] = "chunked" // in whatever case it came
	resp.TransferEncoding = codings
	return true, nil
}

// takeLength returns the Content-Length, -1 when there is none. Lines that say
// the same become one (RFC 9112 §6.3, rule 5).
func takeLength(h http.Header, set frameSet) (int64, error) {
	if set&hasLength == 0 {
		return -1, nil
	}
	lengths := h["Content-Length"]
	first := textproto.TrimString(lengths[0])
	if len(lengths) > 1 {
		for _, other := range lengths[1:] {
			if textproto.TrimString(other) != first {
				return 0, malformed("Content-Length lines that differ")
			}
		}
		h["Content-Length"] = []string{first}
	}
	n, ok := parseLength(first)
	if !ok {
		return 0, malformed("invalid Content-Length")
	}
	return n, nil
}

// parseLength takes one or more digits and nothing else (RFC 9110 §8.6).
func parseLength(s string) (n int64, ok bool) {
	const maxBeforeDigit = (1<<63 - 1) / 10
	for i := range len(s) {
		if !isDigit(s[i]) || n > maxBeforeDigit {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
		if n < 0 {
			return 0, false
		}
	}
	return n, len(s) > 0
}

// announcedTrailer moves the names in the Trailer fields to a trailer without
// values, nil when there are none.
func announcedTrailer(h http.Header) (http.Header, error) {
	lists := h["Trailer"]
	delete(h, "Trailer")
	var trailer http.Header
	for _, list := range lists {
		for name := range strings.SplitSeq(list, ",") {
			name = http.CanonicalHeaderKey(textproto.TrimString(name))
			switch name {
			case "":
				continue
			case "Transfer-Encoding", "Trailer", "Content-Length":
				return nil, malformed("framing field announced as a trailer")
			}
			if trailer == nil {
				trailer = make(http.Header)
			}
			trailer[name] = nil
		}
	}
	return trailer, nil
}
