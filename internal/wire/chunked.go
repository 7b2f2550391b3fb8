package wire

import (
	"bytes"
	"net/http"
)

const (
	// maxChunkLine bounds a chunk size line with its extensions and the CR, the
	// LF not counted; net/http has the same.
	maxChunkLine = 4096
	// maxChunkSurplus bounds what a body's chunk lines may have above the
	// allowance of 16 bytes and twice the data for each chunk. One byte to a chunk
	// stays within the allowance for ever; extensions that are there to be
	// paid for do not (CVE-2023-39326).
	maxChunkSurplus = 16 << 10
	// maxTrailer bounds the trailer section in bytes; its lines are bounded
	// like those of a head.
	maxTrailer = 16 << 10
)

type chunkPhase uint8

const (
	chunkSize    chunkPhase = iota // a size line comes next
	chunkData                      // left bytes of data come next
	chunkEnd                       // the CRLF behind the data comes next
	chunkTrailer                   // the trailer section, empty or not, comes next
	chunkDone                      // everything has been taken
)

// chunks is the state of reading a chunked body (RFC 9112 §7.1). It is a value: a
// copy of it can run ahead over buffered bytes and leave the original alone.
type chunks struct {
	phase   chunkPhase
	left    int64 // data bytes of this chunk still to come
	surplus int64 // bytes of framing above the allowance
}

// take takes the next piece of framing from the front of data and returns its
// size, 0 when it has not all arrived. It must not be called in chunkData. scan
// must be zero for data that begins at a new place, else what the last call left.
func (c *chunks) take(data []byte, scan *blockScan) (n int, err error) {
	switch c.phase {
	case chunkSize:
		return c.takeSize(data, scan)
	case chunkEnd:
		return c.takeEnd(data)
	case chunkTrailer:
		return c.takeTrailer(data, scan)
	case chunkData, chunkDone:
	}
	return 0, nil
}

func (c *chunks) takeSize(data []byte, scan *blockScan) (n int, err error) {
	i := bytes.IndexByte(data[scan.pos:], '\n')
	if i < 0 {
		scan.pos = len(data)
		if len(data) >= maxChunkLine+1 {
			return 0, malformed("chunk size line too long")
		}
		return 0, nil
	}
	n = scan.pos + i + 1
	line := data[:n-1]
	// First, as it would be said if the end of the line had not arrived.
	if len(line) > maxChunkLine {
		return 0, malformed("chunk size line too long")
	}
	// A bare LF, or a CR elsewhere, is where two parsers begin to differ
	// (CVE-2025-22871).
	switch cr := bytes.IndexByte(line, '\r'); {
	case cr < 0:
		return 0, malformedAt("chunk size line ends in a bare LF:", line)
	case cr != len(line)-1:
		return 0, malformedAt("CR inside chunk size line", line)
	}
	line = line[:len(line)-1]
	size, ok := parseChunkSize(line)
	if !ok {
		return 0, malformedAt("chunk size line", line)
	}
	c.left = size
	if size == 0 {
		c.phase = chunkTrailer
		return n, nil
	}
	c.phase = chunkData
	// The line's CRLF is not counted, the one behind the data is. A chunk of
	// this size pays for any surplus so far, and twice it could overflow.
	if size >= maxChunkSurplus+maxChunkLine {
		c.surplus = 0
		return n, nil
	}
	c.surplus = max(0, c.surplus+int64(len(line))+2-16-2*size)
	if c.surplus > maxChunkSurplus {
		return 0, malformed("more chunk extensions than data")
	}
	return n, nil
}

// parseChunkSize takes 1 to 16 hexadecimal digits that fit an int64, up to the
// end of line, to blanks that end it, or to an extension.
func parseChunkSize(line []byte) (size int64, ok bool) {
	digits, _, extended := bytes.Cut(line, []byte(";"))
	if !extended {
		// Some servers pad the size to a fixed width.
		for len(digits) > 0 && isBlank(digits[len(digits)-1]) {
			digits = digits[:len(digits)-1]
		}
	}
	if len(digits) == 0 || len(digits) > 16 {
		return 0, false
	}
	var n uint64
	for _, c := range digits {
		switch {
		case isDigit(c):
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		n = n<<4 | uint64(c)
	}
	return int64(n), n < 1<<63
}

func (c *chunks) takeEnd(data []byte) (n int, err error) {
	const crlf = "\r\n"
	seen := min(len(data), len(crlf))
	if string(data[:seen]) != crlf[:seen] {
		return 0, malformed("no CRLF behind the data of a chunk")
	}
	if seen < len(crlf) {
		return 0, nil
	}
	c.phase = chunkSize
	return seen, nil
}

func (c *chunks) takeTrailer(data []byte, scan *blockScan) (n int, err error) {
	n, tooLarge := scan.find(data, maxTrailer, maxTrailer/bytesPerLine+baseLines)
	if tooLarge {
		return 0, malformed("trailer section too large")
	}
	if n > 0 {
		c.phase = chunkDone
	}
	return n, nil
}

// emptyTrailer is the size of a trailer section without fields: the CRLF alone.
const emptyTrailer = 2

// parseTrailer parses a complete trailer section into a header that may be empty.
// It leaves block as it is.
//
// The rules are those of a head, but a bare LF is refused: no head is left to
// carry the oddity, and the end of a message must not be open to two readings.
// Fields that are about the connection or the framing are dropped: nobody
// may act on them here (RFC 9110 §6.5.1).
func parseTrailer(block []byte) (http.Header, error) {
	block = bytes.Clone(block)
	fields, oddity, err := parseFields(nil, block, 0)
	if err != nil {
		return nil, err
	}
	if oddity == oddityBareLF {
		return nil, malformed("bare LF in the trailer section")
	}
	h := buildHeader(string(block), fields, nil)
	for name := range h {
		switch name {
		case "Connection", "Content-Length", "Keep-Alive", "Trailer", "Transfer-Encoding", "Upgrade":
			delete(h, name)
		}
	}
	return h, nil
}
