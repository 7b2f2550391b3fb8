package keepalive

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// streamedBody is a request body as net/http reads it. net/http closes it when
// sending is over, whatever came of it, and may read on a little later.
type streamedBody struct {
	body *requestBody
	done chan struct{} // closed by Close
	once sync.Once

	mu      sync.Mutex
	touched bool
	ended   bool  // it was read to its end
	stopped bool  // the user's body is not read any more
	err     error // of the user's Read
}

func (b *streamedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	stopped := b.stopped
	b.touched = b.touched || !stopped
	b.mu.Unlock()
	if stopped {
		return 0, errStopped
	}
	n, err := b.body.read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		b.ended = true
	case !b.stopped:
		b.err = err // not of its Close
	}
	return n, err
}

// Close closes the user's body, unless another attempt may need it.
func (b *streamedBody) Close() error {
	if b.stop() {
		b.body.close()
	}
	b.once.Do(func() { close(b.done) })
	return nil
}

// stop ends the reading of the user's body, but for a Read under way, and
// reports whether there was any.
func (b *streamedBody) stop() (touched bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	return b.touched
}

// unsent reports whether sending has begun and is not over.
func (b *streamedBody) unsent() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.touched && !b.ended
}

// finish ends sending with the end of the answer, which may overtake it a
// little.
func (b *streamedBody) finish() {
	if b == nil {
		return
	}
	timer := time.NewTimer(sentGrace)
	defer timer.Stop()
	select {
	case <-b.done:
	case <-timer.C:
	}
	b.stop()
	b.body.close()
}

// streamBody is the response body of a stream.
type streamBody struct{ s *stream }

// Read reads from the body. Its errors are io.EOF, http.ErrBodyReadAfterClose,
// or an *Error with PhaseBody.
func (b streamBody) Read(p []byte) (int, error) {
	s := b.s
	if err := s.readErr(); err != nil {
		return 0, err
	}
	if d := s.cl.limit.bodyRead; d > 0 {
		timer := time.AfterFunc(d, func() { s.end(ErrBodyReadTimeout) })
		defer timer.Stop()
	}
	n, err := s.body.Read(p)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		s.finish()
	default:
		err = s.failBody(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return n, http.ErrBodyReadAfterClose
	}
	s.bodyErr = err
	return n, err
}

// readErr returns what reading the body has come to.
func (s *stream) readErr() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return http.ErrBodyReadAfterClose
	}
	return s.bodyErr
}

// failBody ends the stream because reading its body failed with err, and
// returns the error for the user.
func (s *stream) failBody(err error) error {
	e := s.error(PhaseBody, nil)
	switch cause := s.ownDoing(&outcome{}); {
	case cause != nil:
		e.Err = cause
	case isStreamError(err), s.h.cc.Err() == nil:
		e.Err = named(err)
	default:
		e.Err = s.lost(err, false, true)
	}
	s.mu.Lock()
	if s.bodyErr == nil { // endUnread and a Read may both be here
		s.bodyErr = e
	}
	err = s.bodyErr
	s.mu.Unlock()
	s.closeBody()
	s.listen(e)
	s.finish()
	return err
}

// closeBody closes net/http's body, once: what has come and was not read gives
// its place in the connection's window back, and a second time it would give it
// once more. ended is closed when that is done; nil: another call does it.
func (s *stream) closeBody() (ended chan struct{}) {
	s.closing.Do(func() {
		ended = make(chan struct{})
		s.h.t.tasks.run(func() {
			defer close(ended)
			_ = s.body.Close()
		})
	})
	return ended
}

// Close ends the body: the peer is told not to send the rest. It does not wait
// for the peer and always returns nil.
func (b streamBody) Close() error {
	s := b.s
	s.mu.Lock()
	closed, over := s.closed, s.over
	s.closed = true
	s.mu.Unlock()
	switch {
	case closed:
		return nil
	case over:
		s.closeBody() // gzip may have left something
		return nil
	}
	s.endOwn() // so that the next does not wait for more than a write under way
	timer := time.NewTimer(stuckGrace)
	defer timer.Stop()
	select {
	case <-s.closeBody():
	case <-timer.C:
	}
	if s.sent != nil {
		s.sent.stop()
	}
	s.finish()
	return nil
}

// endUnread ends a body whose context has ended, whether it is read or not: its
// place on the connection must not have to wait for the reader. A Read under
// way ends by itself. It runs in a goroutine of its own, for which Close waits.
func (s *stream) endUnread() {
	t := s.h.t
	t.tasks.add(1)
	defer t.tasks.add(-1)
	s.mu.Lock()
	over := s.over
	s.mu.Unlock()
	if over {
		return
	}
	_ = s.failBody(context.Cause(s.ctx))
}
