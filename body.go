package keepalive

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// body is the response body of an exchange that did not arrive whole with the
// head. It owns the connection until the last byte has been read.
//
// Read and Close may be called at the same time; Close ends a Read that waits.
type body struct{ ex *exchange }

// Read reads from the body. When the last byte has been read the connection
// has been given back before Read returns. Its errors are io.EOF,
// http.ErrBodyReadAfterClose, or an *Error with PhaseBody.
func (b body) Read(p []byte) (int, error) {
	ex := b.ex
	ex.readMu.Lock()
	defer ex.readMu.Unlock()
	switch {
	case ex.closed.Load():
		return 0, http.ErrBodyReadAfterClose
	case ex.bodyErr != nil:
		return 0, ex.bodyErr
	case len(p) == 0:
		return 0, nil
	}
	if d := ex.cl.limit.bodyRead; d > 0 {
		ex.setRead(after(time.Now(), d, ErrBodyReadTimeout))
	}
	n, err := ex.body.Read(p)
	switch {
	case err == nil:
		if ex.cl.limit.bodyRead > 0 {
			ex.unlimited()
		}
		return n, nil
	case ex.body.Complete():
		ex.complete()
		ex.bodyErr = io.EOF
	default:
		ex.bodyErr = ex.failBody(err)
	}
	return n, ex.bodyErr
}

// WriteTo copies the rest of the body to w, through a buffer larger than that
// of io.Copy: one system call does for four. What w did not take is lost.
func (b body) WriteTo(w io.Writer) (n int64, err error) {
	buf := getBuffer()
	defer buf.free()
	p := buf.b[:cap(buf.b)]
	for {
		got, err := b.Read(p)
		if got > 0 {
			put, werr := w.Write(p[:got])
			n += int64(min(max(put, 0), got))
			if werr == nil && put < got {
				werr = io.ErrShortWrite
			}
			if werr != nil {
				return n, werr
			}
		}
		if err == io.EOF { //nolint:errorlint // a wrapped EOF is an error
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// Close ends the body. The connection is kept if the rest is short and comes
// soon (WithDrainLimit); that is seen to in the background. Close does not
// wait for the peer, but for a request that is still being sent to end (some
// 70 ms at most; a second for a long head, or one on a connection that shows no
// socket), and always returns nil.
func (b body) Close() error {
	ex := b.ex
	if ex.closed.Swap(true) {
		return nil
	}
	if !ex.readMu.TryLock() {
		// A Read is under way. It ends with an error and gives the connection
		// back itself.
		ex.interrupt()
		ex.readMu.Lock()
	}
	defer ex.readMu.Unlock()
	if ex.bodyErr == nil {
		ex.bodyErr = http.ErrBodyReadAfterClose
		ex.closeEarly()
	}
	return nil
}

// complete ends the exchange: its body has been read to the end.
func (ex *exchange) complete() {
	ex.finish(time.Now(), ending{
		bodyDone: true, leftover: ex.rd.Buffered() > 0, requestSent: ex.requestSent(),
	})
	ex.rd.Free()
}

// failBody ends the exchange because reading its body failed with err, and
// returns the error for the user.
func (ex *exchange) failBody(err error) error {
	out := &outcome{gotByte: true}
	e := ex.error(PhaseBody, nil)
	var reason CloseReason
	reason, e.Err = ex.cause(err, CloseReadError, out)
	ex.requestStopped()
	ex.rd.Free()
	ex.giveBack(time.Now(), drop(reason), true)
	if ex.closed.Load() {
		return http.ErrBodyReadAfterClose
	}
	return e
}

// requestStopped ends the sending of the request, whatever has been sent.
func (ex *exchange) requestStopped() {
	if ex.sender == nil && ex.cl.body != nil {
		ex.cl.body.close()
		return
	}
	ex.sender.stopEarly()
}

// closeEarly ends the exchange although its body has not been read. What has
// arrived is taken at once, a short rest in the background.
func (ex *exchange) closeEarly() {
	ex.unwatch() // the user is done with it: its context ends soon, too
	limit := ex.t.cfg.drainBytes
	sending := ex.sender != nil && !ex.sender.isDone()
	if sending || !ex.verdict.Keep || limit == 0 || ex.t.cfg.drainTime == 0 || ex.body.Left() > limit || !ex.requestSent() {
		ex.abandon()
		return
	}
	ex.body.DropTrailer()
	if ex.c.sc.SetNonblock(true) {
		left, err := ex.drain(limit)
		ex.c.sc.SetNonblock(false)
		limit = left
		switch {
		case left >= 0 && ex.body.Complete():
			ex.drained()
			return
		case left < 0, !isTimeout(err):
			ex.abandon()
			return
		}
	}
	ex.cl.trace = nil // no hook is called after Close
	ex.t.tasks.run(func() {
		ex.setRead(after(time.Now(), ex.t.cfg.drainTime, ErrBodyReadTimeout))
		left, _ := ex.drain(limit)
		if left >= 0 && ex.body.Complete() {
			ex.drained()
			return
		}
		ex.abandon()
	})
}

// drain reads the rest of the body if it has limit bytes or fewer. left is what
// remains of the limit, -1 when the body is longer.
func (ex *exchange) drain(limit int64) (left int64, err error) {
	buf := getBuffer()
	defer buf.free()
	p := buf.b[:cap(buf.b)]
	for left = limit; left >= 0; {
		n, err := ex.body.Read(p)
		left -= int64(n)
		if err != nil {
			return left, err
		}
	}
	return left, nil
}

func (ex *exchange) drained() {
	ex.t.pool.noteDrained(ex.c.host)
	ex.complete()
}

// abandon ends the exchange with the body unread.
func (ex *exchange) abandon() {
	ex.requestStopped()
	ex.rd.Free()
	ex.finish(time.Now(), ending{requestSent: true})
}

// buffer is a pooled slice of bytes, for bodies.
type buffer struct{ b []byte }

const bufferSize = 32 << 10

var bufferPool = sync.Pool{ //nolint:gochecknoglobals // shared by nature
	New: func() any { return &buffer{make([]byte, 0, bufferSize)} },
}

// getBuffer returns an empty buffer of bufferSize.
func getBuffer() *buffer {
	b, _ := bufferPool.Get().(*buffer)
	b.b = b.b[:0]
	return b
}

// free gives b back; it must not be used after.
func (b *buffer) free() { bufferPool.Put(b) }

// upgraded is the body of a 101 answer, or of a 2xx one to CONNECT: the
// connection itself, which is the user's now. It begins with what had arrived
// behind the head.
//
// Reading, writing and closing may be concurrent, as for any net.Conn.
type upgraded struct {
	net.Conn
	closed func() // tells the pool
	once   sync.Once
	err    error
	// sending is the request body that goes through a tunnel; nil: none.
	sending *requestBody

	mu    sync.Mutex // guards ahead
	ahead []byte     // arrived already
}

func newUpgraded(ex *exchange) *upgraded {
	u := &upgraded{Conn: ex.c.nc, closed: func() { ex.t.perform(ex.t.pool.closed(ex.c)) }}
	if n := ex.rd.Buffered(); n > 0 {
		u.ahead = make([]byte, n)
		_, _ = io.ReadFull(ex.rd, u.ahead)
	}
	ex.rd.Free()
	return u
}

func (u *upgraded) Read(p []byte) (int, error) {
	u.mu.Lock()
	if len(u.ahead) > 0 {
		defer u.mu.Unlock()
		n := copy(p, u.ahead)
		u.ahead = u.ahead[n:]
		return n, nil
	}
	u.mu.Unlock()
	return u.Conn.Read(p)
}

// Close closes the connection and frees its place in the pool.
func (u *upgraded) Close() error {
	u.once.Do(func() {
		u.err = u.Conn.Close()
		u.closed()
		if u.sending != nil {
			u.sending.close()
		}
	})
	return u.err
}

// CloseWrite ends the writing side, if the connection can do that.
func (u *upgraded) CloseWrite() error {
	type writeCloser interface{ CloseWrite() error }
	below := u.Conn
	for {
		if w, ok := below.(writeCloser); ok {
			return w.CloseWrite()
		}
		n, ok := below.(interface{ NetConn() net.Conn })
		if !ok {
			return errors.New("keepalive: the connection cannot be half closed")
		}
		below = n.NetConn()
	}
}
