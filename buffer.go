package keepalive

import (
	"bytes"
	"io"
	"reflect"
	"strings"
	"sync"
)

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
