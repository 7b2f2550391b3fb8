package keepalive

import (
	"errors"
	"io"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/keepalive-http/keepalive/internal/wire"
)

// What is written beside the reading of the answer: a body, or a whole request.

const (
	// sentGrace is how long the end of an exchange waits for the request to be
	// sent: the answer may overtake the return of the last write.
	sentGrace  = 50 * time.Millisecond
	writeGrace = time.Second // the same without a body
	// stuckGrace is how long a sender that was told to stop may stay in the
	// user's Read before its body is closed, and after.
	stuckGrace = 10 * time.Millisecond
	// answerGrace is how long a request whose sending failed waits for what
	// the server had to say about it.
	answerGrace = 200 * time.Millisecond
)

// sender sends a request body, or a whole request, while the answer is already
// awaited. One goroutine runs it; the owner of the exchange starts and stops it.
type sender struct {
	ex   *exchange
	head []byte       // goes before the body; nil: it is sent
	body *requestBody // nil: none
	// trace is the call's when it was started: the call may be at another
	// attempt while this one hangs.
	trace *httptrace.ClientTrace
	done  chan struct{} // closed when the goroutine has ended, the body closed
	// stopped: the owner wants no more of it. No hook and no Read after that,
	// but for a Read under way.
	stopped atomic.Bool
	// finishing: the last write has begun.
	finishing atomic.Bool
	// Valid after done.
	err     error
	bodyErr bool // err is of the user's body
}

// startSender sends head, if there is one, and cl.body from a goroutine of its own.
func (ex *exchange) startSender(head []byte) {
	s := &sender{ex: ex, head: head, body: ex.cl.body, trace: ex.cl.trace, done: make(chan struct{})}
	if s.body != nil {
		s.body.touched = true
		ex.patience(true)
	}
	ex.sender = s
	ex.t.tasks.run(s.run)
}

// patience suspends TCP_USER_TIMEOUT, if our dialer has set it, or ends that. For
// Linux a reader that pauses, so that nothing more may be sent, counts as one that
// is gone: a long body, or a user's bytes, must be able to wait for it.
func (ex *exchange) patience(on bool) {
	c, cfg := ex.c, ex.t.cfg
	if c.patient == on || cfg.tcpUserTimeout <= 0 || cfg.userDials(c.host.key) {
		return
	}
	c.patient = on
	if on {
		c.sc.SetUserTimeout(0)
		return
	}
	c.sc.SetUserTimeout(cfg.tcpUserTimeout)
}

func (s *sender) run() {
	err := s.send()
	s.body.close()
	s.err = err
	ex := s.ex
	if !s.stopped.Load() { // else the call may be at another attempt
		if t := s.trace; t != nil && t.WroteRequest != nil {
			t.WroteRequest(httptrace.WroteRequestInfo{Err: err})
		}
	}
	close(s.done)
	switch {
	case s.stopped.Load():
	case s.bodyErr:
		ex.interrupt() // the server must not take what it has for the whole
	case err != nil:
		ex.setHeaderDeadline(answerGrace, err)
	default:
		ex.setHeaderDeadline(ex.cl.limit.responseHeader, ErrResponseHeaderTimeout)
	}
}

// send writes what is to be sent. Errors of the body itself set bodyErr.
func (s *sender) send() error {
	if s.head != nil {
		s.finishing.Store(s.body == nil)
		if _, err := s.ex.c.nc.Write(s.head); err != nil {
			return err
		}
		if t := s.trace; t != nil && t.WroteHeaders != nil && !s.stopped.Load() {
			t.WroteHeaders()
		}
	}
	if s.body == nil {
		return nil
	}
	cl := s.ex.cl
	begun := s.ex.begun
	if mem := inMemory(s.body.rc); mem != nil && cl.length > 0 && int64(mem.Len()) == cl.length-begun && s.body.first == nil {
		s.finishing.Store(true)
		_, err := mem.WriteTo(s.ex.c.nc)
		return err
	}
	buf := getBuffer()
	defer buf.free()
	if cl.length < 0 {
		return s.sendChunks(buf.b[:cap(buf.b)])
	}
	return s.sendLength(buf.b[:cap(buf.b)])
}

// read fills p from the body. It returns n > 0, or an error.
func (s *sender) read(p []byte) (n int, err error) {
	for {
		if s.stopped.Load() {
			return 0, errStopped
		}
		if n, err = s.body.read(p); n > 0 || err != nil {
			return n, err
		}
	}
}

var errStopped = errors.New("sending was stopped")

// sendLength sends exactly the announced number of bytes, and reads the body to
// its end all the same: it may be longer, or have an error there.
func (s *sender) sendLength(buf []byte) error {
	want, ended := s.ex.cl.length, false
	for sent := s.ex.begun; sent < want; {
		// The last read asks for one byte more than is due: that shows a body
		// that is too long.
		room := int64(len(buf)) - 1
		if rest := want - sent; rest <= room {
			room = rest + 1
		}
		n, err := s.read(buf[:room])
		switch {
		case sent+int64(n) > want:
			return s.fail(&marked{bodyLengthText(want, sent+int64(n)) + " or more", []error{ErrRequestBody}})
		case err == io.EOF && sent+int64(n) < want: //nolint:errorlint // see sendChunks
			return s.fail(&marked{bodyLengthText(want, sent+int64(n)), []error{ErrRequestBody, io.ErrUnexpectedEOF}})
		case err != nil && err != io.EOF: //nolint:errorlint // see sendChunks
			return s.fail(bodyError(err))
		}
		sent, ended = sent+int64(n), err != nil
		if sent == want {
			s.finishing.Store(true)
		}
		if _, err := s.ex.c.nc.Write(buf[:n]); err != nil {
			return err
		}
	}
	if !ended {
		switch n, err := s.read(buf[:1]); {
		case n > 0:
			return s.fail(&marked{bodyLengthText(want, want+1) + " or more", []error{ErrRequestBody}})
		case err != io.EOF: //nolint:errorlint // see sendChunks
			return s.fail(bodyError(err))
		}
	}
	return s.endBody()
}

// endBody closes the body, which has been read. An error says that it was not
// the whole.
func (s *sender) endBody() error {
	if err := s.body.end(); err != nil {
		return s.fail(bodyError(err))
	}
	return nil
}

// sendChunks sends a body of unknown length and its trailer.
func (s *sender) sendChunks(buf []byte) error {
	room := buf[wire.MaxChunkHeader : len(buf)-2]
	for {
		n, err := s.read(room)
		if n > 0 {
			if _, werr := s.ex.c.nc.Write(wire.PutChunk(buf, n)); werr != nil {
				return werr
			}
		}
		// Only the bare EOF is an end: one that is wrapped tells of another
		// stream, and the server must not take what it has for the whole.
		if err == io.EOF { //nolint:errorlint // see above
			break
		}
		if err != nil {
			return s.fail(bodyError(err))
		}
	}
	if err := s.endBody(); err != nil {
		return err
	}
	// The values of a trailer are set while the body is read.
	trailer := s.ex.cl.req.Trailer
	if err := wire.CheckTrailer(trailer); err != nil {
		return s.fail(bodyError(err))
	}
	s.finishing.Store(true)
	_, err := s.ex.c.nc.Write(wire.AppendTrailer(append(buf[:0], wire.LastChunk...), trailer))
	return err
}

func (s *sender) fail(err error) error {
	s.bodyErr = !s.stopped.Load() // a body that we closed fails for that
	return err
}

// finish ends the sender at the end of the exchange and reports whether the
// whole request was sent. After it the user's body is closed and is not read any
// more, unless its Read hangs and Close does not end it. No sender means that
// everything was sent. One that was stopped counts as not sent even if it was
// quicker: the connection takes no more writes.
func (s *sender) finish() (sent bool) {
	if s == nil {
		return true
	}
	if !s.waitFor(s.grace()) {
		s.stop()
	}
	return s.isDone() && s.err == nil && !s.stopped.Load()
}

// stopEarly ends the sender because nobody wants the rest of the body, unless
// all of it is on its way already.
func (s *sender) stopEarly() {
	if s == nil || s.finishing.Load() && s.waitFor(s.grace()) {
		return
	}
	s.stop()
}

// grace is how long a sender may take whose peer has answered. With a body it may
// have to wait for the user, else only for a connection that is slow to say that
// it has taken all.
func (s *sender) grace() time.Duration {
	if s.body == nil {
		return writeGrace
	}
	return sentGrace
}

// stop makes the sender end, and waits for it as long as that can be expected.
func (s *sender) stop() {
	if s.isDone() {
		return
	}
	s.stopped.Store(true)
	s.ex.c.sc.InterruptWrite()
	if s.waitFor(stuckGrace) {
		return
	}
	if s.body == nil {
		return
	}
	s.ex.t.tasks.run(s.body.close) // its Read hangs: Close may end it, or hang with it
	s.waitFor(stuckGrace)
}

// failed returns why sending failed, nil if it has not, or not yet.
func (s *sender) failed() error {
	if s == nil || !s.isDone() {
		return nil
	}
	return s.err
}

func (s *sender) isDone() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *sender) waitFor(d time.Duration) bool {
	if s.isDone() {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-s.done:
		return true
	case <-timer.C:
		return false
	}
}
