package wire

import (
	"io"
	"net/http"
	"sync"
)

// WholeBody is a response body that arrived whole with its head. It owns a
// [Reader] and nothing else, so nothing in it waits, but for the destination of
// WriteTo. Its methods may be called at the same time.
type WholeBody struct {
	mu   sync.Mutex
	r    *Reader // nil: given back, or lent to WriteTo
	left int     // bytes of the body in r, when chunked is nil
	// chunked reads what is framed by chunks.
	chunked *Body
	err     error // what Read returns when nothing is left
}

// TakeWhole makes b, whose [Body.Whole] has just returned true, the WholeBody
// of h, which belongs to h.Response. b's reader is parted from its source and
// freed at the end of the body.
func (h *Head) TakeWhole(b *Body) *WholeBody {
	w := &h.mem.whole
	w.r, w.left = b.r, int(b.left)
	b.r.Detach()
	if b.framing == FramingChunked {
		w.chunked = new(Body)
		*w.chunked = *b
	}
	return w
}

// Read reads from the body. Its errors are [io.EOF] and
// [http.ErrBodyReadAfterClose].
func (w *WholeBody) Read(p []byte) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.r == nil || len(p) == 0:
		return 0, w.err
	case w.chunked != nil:
		n, err = w.chunked.Read(p)
	default:
		n = copy(p, w.r.buffered()[:w.left])
		w.r.discard(n)
		if w.left -= n; w.left == 0 {
			err = io.EOF
		}
	}
	if err != nil {
		w.endLocked(err)
	}
	return n, err
}

// WriteTo writes the rest of the body to dst: one write where Read would need
// two calls and a buffer. What dst did not take can still be read.
func (w *WholeBody) WriteTo(dst io.Writer) (int64, error) {
	w.mu.Lock()
	if w.r == nil || w.chunked != nil {
		chunked, err := w.r != nil, w.err
		w.mu.Unlock()
		switch {
		case chunked:
			return io.Copy(dst, struct{ io.Reader }{w})
		case err == io.EOF: //nolint:errorlint // our own
			err = nil
		}
		return 0, err
	}
	// The buffer is lent to dst: Close does not wait for it.
	r := w.r
	w.r = nil
	w.mu.Unlock()
	n, err := dst.Write(r.buffered()[:w.left])
	w.mu.Lock()
	defer w.mu.Unlock()
	n = min(max(n, 0), w.left)
	r.discard(n)
	if w.left -= n; w.left > 0 && err == nil {
		err = io.ErrShortWrite
	}
	w.r = r
	switch {
	case w.err != nil: // closed meanwhile
		w.endLocked(w.err)
	case w.left == 0:
		w.endLocked(io.EOF)
	}
	return int64(n), err
}

// Close ends the body. It always returns nil.
func (w *WholeBody) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endLocked(http.ErrBodyReadAfterClose)
	return nil
}

// endLocked gives the buffer back, once.
func (w *WholeBody) endLocked(err error) {
	w.err = err
	if w.r != nil {
		w.r.Free()
		w.r = nil
	}
}
