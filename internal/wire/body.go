package wire

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
)

// Body reads a response body by its framing. It is meant to be embedded by value
// and is ready after [Body.Reset]; before it, it reads as empty.
//
// Not safe for concurrent use.
type Body struct {
	r        *Reader
	trailer  *http.Header
	framing  Framing
	done     bool
	left     int64 // FramingLength: bytes still to come
	chunks   chunks
	leftover int
	err      error // ended the body for good
}

// Reset makes b the body that follows h on r. trailer is where trailer fields go
// at the end, beside the names that were announced; nil drops them.
func (b *Body) Reset(r *Reader, h Head, trailer *http.Header) {
	*b = Body{r: r, trailer: trailer, framing: h.Framing, left: h.Length}
	if h.Framing == FramingNone || h.Framing == FramingLength && h.Length <= 0 {
		b.done = true
	}
}

// DropTrailer makes b check trailer fields as before, but store them nowhere. For
// use once the caller's response must not change any more.
func (b *Body) DropTrailer() { b.trailer = nil }

// Complete reports whether everything of the body has been taken from the reader:
// its bytes, and of a chunked one the last chunk and the trailer section.
func (b *Body) Complete() bool { return b.done }

// Left returns how many bytes of the body are still to be read: 0 at its end, -1
// when nobody can know.
func (b *Body) Left() int64 {
	switch {
	case b.done:
		return 0
	case b.framing == FramingLength:
		return b.left
	}
	return -1
}

// Read reads body bytes. It returns [io.EOF] together with the last of them when it
// can tell without waiting. A body that the end of the connection cuts short
// is [io.ErrUnexpectedEOF], bad chunks and trailers are [MalformedError]; both
// stay. Other errors of the source come back untouched, and Read may be called
// again after one that passes.
func (b *Body) Read(p []byte) (int, error) {
	switch {
	case b.done || b.framing == FramingNone:
		return 0, io.EOF
	case b.err != nil:
		return 0, b.err
	case len(p) == 0:
		return 0, nil
	case b.framing == FramingChunked:
		return b.readChunked(p)
	case b.framing == FramingClose:
		n, err := b.r.Read(p)
		b.done = err == io.EOF //nolint:errorlint // a wrapped EOF is the source's own error
		return n, err
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if b.left == 0 {
		b.done = true
		return n, io.EOF
	}
	return n, b.fail(err)
}

// fail makes the errors that end a body for good stay.
func (b *Body) fail(err error) error {
	if err == io.EOF { //nolint:errorlint // a wrapped EOF is the source's own error
		err = io.ErrUnexpectedEOF
		b.err = err
	}
	if _, ok := errors.AsType[*MalformedError](err); ok {
		b.err = err
	}
	return err
}

// readChunked reads data into p and takes all framing that has arrived. It waits
// for bytes only while it has none to return.
func (b *Body) readChunked(p []byte) (n int, err error) {
	for !b.done {
		if b.chunks.phase == chunkData {
			if len(p) == 0 || n > 0 && b.r.Buffered() == 0 {
				return n, nil
			}
			got, err := b.r.Read(p[:min(int64(len(p)), b.chunks.left)])
			n, p = n+got, p[got:]
			if b.chunks.left -= int64(got); b.chunks.left == 0 {
				b.chunks.phase = chunkEnd
			}
			if err != nil {
				return n, b.fail(err)
			}
			continue
		}
		taken, err := b.takeFraming()
		if err == nil && !taken {
			if n > 0 {
				return n, nil
			}
			err = b.r.fill()
		}
		if err != nil {
			return n, b.fail(err)
		}
	}
	return n, io.EOF
}

// takeFraming takes the next piece of chunk framing, if it has all arrived.
func (b *Body) takeFraming() (taken bool, err error) {
	data := b.r.buffered()
	n, err := b.chunks.take(data, &b.r.scan)
	if err != nil || n == 0 {
		return false, err
	}
	if b.chunks.phase == chunkDone {
		if err := b.endChunked(data[:n]); err != nil {
			return false, err
		}
	}
	b.r.discard(n)
	return true, nil
}

// endChunked ends the body with a complete trailer section.
func (b *Body) endChunked(section []byte) error {
	if len(section) != emptyTrailer {
		fields, err := parseTrailer(section)
		if err != nil {
			return err
		}
		b.store(fields)
	}
	b.done = true
	return nil
}

func (b *Body) store(fields http.Header) {
	switch {
	case b.trailer == nil || len(fields) == 0:
	case *b.trailer == nil:
		*b.trailer = fields
	default:
		maps.Copy(*b.trailer, fields)
	}
}

// Whole reports whether all of the body has already been received, with the
// last chunk and the trailer section of a chunked one, and is well-formed. It
// consumes nothing. After true every Read is served from the buffer: the
// caller may take the source away with [Reader.Detach], and [Body.WholeLeftover]
// says how much was received beyond the end.
//
// False may also mean that looking closely did not seem worth it.
func (b *Body) Whole() bool {
	if b.err != nil {
		return false
	}
	data := b.r.buffered()
	if b.done {
		b.leftover = len(data)
		return true
	}
	switch b.framing {
	case FramingLength:
		if int64(len(data)) < b.left {
			return false
		}
		b.leftover = len(data) - int(b.left)
		return true
	case FramingChunked:
		size, ok := b.chunks.measure(data)
		b.leftover = len(data) - size
		return ok
	case FramingNone, FramingClose:
	}
	return false
}

// WholeLeftover returns how many bytes have been received beyond the end of the
// body. It is valid after [Body.Whole] returned true, before the next Read.
func (b *Body) WholeLeftover() int { return b.leftover }

// measure returns the size of the rest of a chunked body at the front of data; ok
// is false when it is not all there or malformed. A body ends in an empty line,
// so data that does not end in one is not looked at: it is cut short, or it has
// bytes behind the body, which are found when the body has been read.
func (c *chunks) measure(data []byte) (size int, ok bool) {
	if !bytes.HasSuffix(data, []byte("\r\n\r\n")) {
		return 0, false
	}
	ahead := *c
	for ahead.phase != chunkDone {
		if ahead.phase == chunkData {
			if ahead.left > int64(len(data)-size) {
				return 0, false
			}
			size += int(ahead.left)
			ahead.left, ahead.phase = 0, chunkEnd
			continue
		}
		n, err := ahead.take(data[size:], new(blockScan))
		if err != nil || n == 0 {
			return 0, false
		}
		if ahead.phase == chunkDone && n != emptyTrailer {
			if _, err := parseTrailer(data[size : size+n]); err != nil {
				return 0, false
			}
		}
		size += n
	}
	return size, true
}
