package keepalive

import (
	"bytes"
	"errors"
	"io"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/keepalive-http/keepalive/internal/sock"
	"github.com/keepalive-http/keepalive/internal/wire"
)

// send writes what goes out in the first turn: the head, and a small body with
// it. On our own socket the look for a stale connection, the write and the first
// read are one step. It starts the sender of what is written beside the reading of
// the answer. stale says why the connection is of no use; nothing was written then.
func (ex *exchange) send(fresh bool) (stale CloseReason, phase Phase, err error) {
	cl, c := ex.cl, ex.c
	oneStep := c.canWriteRead(fresh) && cl.body == nil && cl.trace == nil
	if !oneStep {
		if stale = ex.look(fresh); stale != CloseNone {
			return stale, PhaseWrite, nil
		}
	}
	// What is written is made in the buffer for the answer, which is empty
	// until all of it has been written.
	head := cl.appendHead(ex.rd.Space()[:0], c)
	mayWait, beside := ex.mayWait(len(head)), ex.beside(len(head))
	switch {
	case oneStep && beside:
		if oneStep, stale = false, ex.look(fresh); stale != CloseNone {
			return stale, PhaseWrite, nil
		}
	case oneStep && !ex.unwatched:
		c.calm()
	}
	ex.arm()
	ex.inHeader = true
	switch {
	case oneStep:
		return ex.writeRead(head, fresh)
	case beside:
		ex.watch()
		ex.startSender(bytes.Clone(head))
		return CloseNone, PhaseHeader, nil
	case mayWait:
		ex.watch()
	}
	phase, err = ex.writeHead(head)
	return CloseNone, phase, err
}

// look is the look for a stale connection, where it is a step of its own.
func (ex *exchange) look(fresh bool) (stale CloseReason) {
	ex.c.calm()
	if fresh {
		return CloseNone
	}
	return ex.c.check()
}

// writeHead writes head, and begins what follows it.
func (ex *exchange) writeHead(head []byte) (phase Phase, err error) {
	cl := ex.cl
	head = ex.appendBegin(head)
	_, err = ex.c.nc.Write(head)
	ex.traceWrote(err)
	if err != nil {
		return PhaseWrite, ex.earlyAnswer(err)
	}
	switch {
	case cl.body == nil || cl.tunnel:
		ex.setHeaderDeadline(cl.limit.responseHeader, ErrResponseHeaderTimeout)
	case !ex.waitsForContinue():
		ex.startSender(nil)
	}
	return PhaseHeader, nil
}

// maxHeadAhead is the largest head that is written before the answer is read. A
// socket takes it, or most of it, at once.
const maxHeadAhead = 64 << 10

// beside reports whether a head of n bytes is written beside the reading of the
// answer: the peer may answer before it has read all, and read no more until
// somebody takes the answer (RFC 9112 section 9.5). What has no socket may hold
// nothing on the way (net.Pipe).
func (ex *exchange) beside(n int) bool {
	return (n > maxHeadAhead || !ex.c.sc.HasSocket()) && !ex.cl.tunnel && !ex.waitsForContinue()
}

// appendBegin appends the beginning of a large body in memory to head, which
// has some room behind it: a long write behind a short one takes nearly twice
// the CPU of one behind 4 KB (1 MB over loopback).
func (ex *exchange) appendBegin(head []byte) []byte {
	cl := ex.cl
	if cl.body == nil || cl.tunnel || ex.waitsForContinue() || cl.req.GetBody == nil {
		return head
	}
	mem := inMemory(cl.body.rc)
	if mem == nil || cl.body.touched || cl.length < 0 || int64(mem.Len()) != cl.length {
		return head
	}
	cl.body.touched = true
	n, _ := mem.Read(head[len(head):cap(head)])
	ex.begun = int64(n)
	return head[:len(head)+n]
}

// waitsForContinue reports whether the body is to be sent only when the server
// says so, or takes its time to say anything (RFC 9110 section 10.1.1).
func (ex *exchange) waitsForContinue() bool {
	return ex.cl.body != nil && !ex.cl.tunnel && ex.cl.expect && ex.cl.limit.expectContinue > 0
}

// maxQuickHead is the largest head that is written with nobody listening for the
// end of the context: the buffer of an idle socket takes it at once.
const maxQuickHead = 4 << 10

// mayWait reports whether writing a head of n bytes may wait for the peer: it is
// a long one, or more than short heads went there before, which the peer may
// have answered without reading it.
func (ex *exchange) mayWait(n int) bool {
	before, long := ex.c.loaded, n > maxQuickHead
	ex.c.loaded = before || long || ex.cl.body != nil
	return before || long
}

// writeRead is send and the first read in one step, on our own socket.
func (ex *exchange) writeRead(p []byte, fresh bool) (stale CloseReason, phase Phase, err error) {
	ex.setHeaderDeadline(ex.cl.limit.responseHeader, ErrResponseHeaderTimeout)
	ex.watchSoon()
	r := ex.c.writeRead(p, ex.rd.Space(), fresh)
	if ex.watchNow(r.Err) {
		if r.Wrote == len(p) {
			return CloseNone, PhaseHeader, nil
		}
		r = ex.c.writeRead(p, ex.rd.Space(), fresh) // it had not begun
	}
	switch {
	case r.Stale && r.Found == sock.Readable:
		return CloseProtocolError, PhaseWrite, nil
	case r.Stale:
		return CloseStale, PhaseWrite, nil
	case r.WriteErr:
		return CloseNone, PhaseWrite, ex.earlyAnswer(r.Err)
	case r.Err != nil && r.Wrote < len(p):
		return CloseNone, PhaseWrite, r.Err
	case r.Err != nil:
		return CloseNone, PhaseHeader, r.Err
	case r.N > 0:
		ex.rd.Advance(r.N)
		return CloseNone, PhaseHeader, nil
	}
	ex.watch()
	if err := ex.c.writeRest(p, r.Wrote); err != nil {
		return CloseNone, PhaseWrite, ex.earlyAnswer(err)
	}
	return CloseNone, PhaseHeader, nil
}

// earlyAnswer is called when writing failed with err: the server may have
// answered before it hung up, and that answer says more. It returns nil when
// one has begun to arrive.
func (ex *exchange) earlyAnswer(err error) error {
	ex.cutShort = true
	if isTimeout(err) {
		return err
	}
	ex.setHeaderDeadline(answerGrace, err)
	n, _ := ex.c.nc.Read(ex.rd.Space())
	ex.rd.Advance(n)
	if n > 0 {
		return nil
	}
	return err
}

// traceWrote tells the hooks how writing the head went. A body that follows
// tells of itself.
func (ex *exchange) traceWrote(err error) {
	t := ex.cl.trace
	if t == nil {
		return
	}
	if t.WroteHeaders != nil && err == nil {
		t.WroteHeaders()
	}
	if t.WroteRequest != nil && (ex.cl.body == nil || ex.cl.tunnel || err != nil) {
		t.WroteRequest(httptrace.WroteRequestInfo{Err: err})
	}
}

// traceSent tells the hook that nothing more will be written.
func (ex *exchange) traceSent() {
	if t := ex.cl.trace; t != nil && t.WroteRequest != nil {
		t.WroteRequest(httptrace.WroteRequestInfo{})
	}
}

// requestBody is a request body that is streamed. It is closed exactly once. nil
// is none.
type requestBody struct {
	rc      io.ReadCloser
	closed  atomic.Bool
	touched bool // bytes of it may have been sent
	// first is what a probe has read already, with its error.
	first    []byte
	firstErr error
	// late is where a probe that took too long leaves its result.
	late chan struct{}
}

func newRequestBody(rc io.ReadCloser) *requestBody { return &requestBody{rc: rc} }

// close closes the body unless that was done, or is being done. Safe for
// concurrent use.
func (b *requestBody) close() { _ = b.end() }

// end is close that returns the error of Close.
func (b *requestBody) end() error {
	if b == nil || b.closed.Swap(true) {
		return nil
	}
	return b.rc.Close()
}

// read is Read of the body, behind what a probe has read.
func (b *requestBody) read(p []byte) (int, error) {
	if b.late != nil {
		<-b.late
		b.late = nil
	}
	if len(b.first) > 0 || b.firstErr != nil {
		n := copy(p, b.first)
		b.first = b.first[n:]
		if len(b.first) > 0 {
			return n, nil
		}
		err := b.firstErr
		b.firstErr = nil
		return n, err
	}
	return b.rc.Read(p)
}

// probe reads the first byte of a body of unknown length. One that is empty is
// dropped from the call; one that takes its time is sent in chunks.
func (b *requestBody) probe(cl *call) error {
	done := make(chan struct{})
	cl.t.tasks.run(func() {
		defer close(done)
		p := make([]byte, 1)
		n, err := b.rc.Read(p)
		b.first, b.firstErr = p[:n], err
	})
	timer := time.NewTimer(emptyWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		b.late = done
		return nil
	case <-cl.ctx.Done():
		b.late = done
		return nil // the acquire that follows reports it
	}
	switch {
	case len(b.first) > 0:
		return nil
	case b.firstErr == io.EOF: //nolint:errorlint // a wrapped EOF is an error of the body's
		cl.length = 0
		cl.dropBody()
		return nil
	case b.firstErr != nil:
		return bodyError(b.firstErr)
	}
	return nil
}

// bodyError marks an error of the user's own body.
func bodyError(err error) error {
	return &marked{"request body: " + err.Error(), []error{ErrRequestBody, err}}
}

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
	}
	ex.sender = s
	ex.t.tasks.run(s.run)
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
// whole body was sent. After it the user's body is closed and is not read any
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
