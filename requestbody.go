package keepalive

import (
	"bytes"
	"io"
	"reflect"
	"strings"
	"sync/atomic"
	"time"
)

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

// memReader is what bytes.Reader, bytes.Buffer and strings.Reader have in
// common.
type memReader interface {
	io.Reader
	io.WriterTo
	Len() int
}

// The types in which http.NewRequest hides a body in memory.
//
//nolint:gochecknoglobals // constants
var (
	nopCloserType   = reflect.TypeOf(io.NopCloser(nil))
	nopCloserToType = reflect.TypeOf(io.NopCloser(struct {
		io.Reader
		io.WriterTo
	}{nil, nil}))
)

// inMemory returns the reader in memory that body is, or nil: reading such a
// body does not wait.
func inMemory(body io.Reader) memReader {
	switch t := reflect.TypeOf(body); t {
	case nopCloserType, nopCloserToType:
		inner, ok := reflect.TypeAssert[io.Reader](reflect.ValueOf(body).Field(0))
		if !ok {
			return nil
		}
		body = inner
	}
	switch r := body.(type) {
	case *bytes.Reader:
		return r
	case *bytes.Buffer:
		return r
	case *strings.Reader:
		return r
	}
	return nil
}
