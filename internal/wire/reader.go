package wire

import (
	"bytes"
	"io"
	"sync"
)

const (
	initialBuffer = 8 << 10
	// maxPooledBuffer keeps one large head from staying in the pool for good.
	maxPooledBuffer = 64 << 10
	// maxEmptyReads bounds a source that keeps returning (0, nil).
	maxEmptyReads = 100
)

var readers = sync.Pool{ //nolint:gochecknoglobals // a pool is shared by nature
	New: func() any { return &Reader{buf: make([]byte, initialBuffer)} },
}

// Reader buffers what one connection sends during one exchange.
//
// Get one with [GetReader] and give it back with [Reader.Free]. Not safe for
// concurrent use.
type Reader struct {
	src   io.Reader
	buf   []byte // buf[start:end] has been received and not consumed
	start int
	end   int
	total int64
	late  error     // came from src together with bytes; reported after them
	scan  blockScan // how far the search in buf[start:end] has come
	last  parsed    // the last head that was read
}

// GetReader returns an empty Reader on src, from a pool. src may be nil when
// every byte comes in through [Reader.Advance].
func GetReader(src io.Reader) *Reader {
	r, ok := readers.Get().(*Reader)
	if !ok {
		r = &Reader{buf: make([]byte, initialBuffer)}
	}
	if src == nil {
		src = detached{}
	}
	r.src = src
	return r
}

// Free gives r back to the pool. Neither r nor a slice from [Reader.Space] may
// be used after it.
func (r *Reader) Free() {
	buf := r.buf
	if len(buf) > maxPooledBuffer {
		buf = make([]byte, initialBuffer)
	}
	*r = Reader{buf: buf, last: r.last.kept()}
	readers.Put(r)
}

// Detach parts r from its source: what is buffered can still be read, and a
// read beyond that is an internal error instead of a read from a source that
// may already serve another exchange. See [Body.Whole].
func (r *Reader) Detach() {
	r.src = detached{}
	r.late = nil
}

// detached stands in for a source that is no longer ours.
type detached struct{}

func (detached) Read([]byte) (int, error) { return 0, errDetached }

// Buffered returns how many received bytes have not been consumed.
func (r *Reader) Buffered() int { return r.end - r.start }

// Total returns how many bytes have been received through r so far.
func (r *Reader) Total() int64 { return r.total }

// Space returns the free tail of the buffer, at least one byte of it. The caller
// may fill it from the front and says so with [Reader.Advance].
//
// Space moves what is buffered to the front, or grows the buffer, as it fills. [ReadHead] and [Body] stop
// asking for more at their limits; a caller that fills Space on its own has to.
func (r *Reader) Space() []byte {
	switch {
	case r.start > 0 && r.end > len(r.buf)/2:
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start = 0
	case r.end < len(r.buf):
	default:
		grown := make([]byte, 2*len(r.buf))
		copy(grown, r.buf)
		r.buf = grown
	}
	return r.buf[r.end:]
}

// Advance says that the first n bytes of the last [Reader.Space] were filled.
// An n beyond that space counts as the whole of it.
func (r *Reader) Advance(n int) {
	n = min(max(n, 0), len(r.buf)-r.end)
	r.end += n
	r.total += int64(n)
}

// Read returns buffered bytes. When there are none it reads from the source:
// straight into p when p is at least as large as the buffer, else into the buffer.
// It is an [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.start == r.end {
		if len(p) >= len(r.buf) && r.late == nil {
			return r.readDirect(p)
		}
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf[r.start:r.end])
	r.discard(n)
	return n, nil
}

func (r *Reader) readDirect(p []byte) (int, error) {
	for range maxEmptyReads {
		n, err := r.src.Read(p)
		if n < 0 || n > len(p) {
			return 0, errBadCount
		}
		r.total += int64(n)
		if n > 0 {
			r.late = lasting(err)
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, io.ErrNoProgress
}

// lasting returns err unless it is a timeout: one that still holds comes again,
// and one of a deadline that was changed since must not.
func lasting(err error) error {
	if e, ok := err.(interface{ Timeout() bool }); ok && e.Timeout() {
		return nil
	}
	return err
}

// fill receives at least one byte into the buffer, or returns why it cannot.
// An error leaves everything as it was, so fill may be called again.
func (r *Reader) fill() error {
	if err := r.late; err != nil {
		r.late = nil
		return err
	}
	for range maxEmptyReads {
		space := r.Space()
		n, err := r.src.Read(space)
		if n < 0 || n > len(space) {
			return errBadCount
		}
		r.Advance(n)
		if n > 0 {
			r.late = lasting(err)
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// buffered returns the received bytes. They are valid until the next call that
// receives.
func (r *Reader) buffered() []byte { return r.buf[r.start:r.end] }

// discard consumes n buffered bytes and forgets how far the search had come.
func (r *Reader) discard(n int) {
	r.start += n
	if r.start == r.end {
		r.start, r.end = 0, 0
	}
	r.scan = blockScan{}
}

// blockScan remembers how far the search for the end of a line, or of a block of
// lines, has come, so that a peer that sends byte by byte costs linear time. Its
// numbers count from the first byte that has not been consumed.
type blockScan struct {
	pos   int // no line end before this that is not accounted for
	line  int // where the line that pos is in begins
	lines int // complete lines before that
}

// find looks for the first empty line of data, where data is what it was at the
// last call with more at its end. It returns the size of the block through that
// line, or 0 while the line has not arrived; tooLarge is set as soon as the block
// must have more than maxBytes bytes or maxLines lines.
func (s *blockScan) find(data []byte, maxBytes, maxLines int) (size int, tooLarge bool) {
	for {
		i := bytes.IndexByte(data[s.pos:], '\n')
		if i < 0 {
			s.pos = len(data)
			return 0, len(data) >= maxBytes
		}
		line := data[s.line : s.pos+i]
		s.pos += i + 1
		s.line = s.pos
		if s.line > maxBytes {
			return 0, true
		}
		if len(line) == 0 || len(line) == 1 && line[0] == '\r' {
			return s.line, false
		}
		if s.lines++; s.lines > maxLines {
			return 0, true
		}
	}
}
