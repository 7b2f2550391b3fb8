package wire

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// takeWhole reads a response that must arrive whole.
func takeWhole(t *testing.T, text string) *WholeBody {
	t.Helper()
	r := GetReader(strings.NewReader(text))
	h, err := ReadHead(r, http.MethodGet, 1<<20)
	require.NoError(t, err)
	var b Body
	b.Reset(r, h, &h.Response.Trailer)
	require.True(t, b.Whole())
	return h.TakeWhole(&b)
}

// wholeResponses are "hello world" in both framings.
var wholeResponses = map[string]string{
	"length":  "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
	"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n",
}

func TestWholeBodyReads(t *testing.T) {
	for name, text := range wholeResponses {
		t.Run(name, func(t *testing.T) {
			w := takeWhole(t, text)
			n, err := w.Read(nil)
			require.Zero(t, n)
			require.NoError(t, err)
			got, err := io.ReadAll(struct{ io.Reader }{w})
			require.NoError(t, err)
			require.Equal(t, "hello world", string(got))
			m, err := w.WriteTo(io.Discard)
			require.Zero(t, m)
			require.NoError(t, err, "as io.Copy at the end")
			require.NoError(t, w.Close())
			_, err = w.Read(make([]byte, 1))
			require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
			_, err = w.WriteTo(io.Discard)
			require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
		})
	}
}

func TestWholeBodyWritesTo(t *testing.T) {
	for name, text := range wholeResponses {
		t.Run(name, func(t *testing.T) {
			w := takeWhole(t, text)
			_, err := w.Read(make([]byte, 2))
			require.NoError(t, err)
			var sb strings.Builder
			n, err := io.Copy(&sb, w)
			require.NoError(t, err)
			require.EqualValues(t, 9, n)
			require.Equal(t, "llo world", sb.String())
			_, err = w.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF)
		})
	}
}

// writerFunc is an io.Writer.
type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestWholeBodyKeepsWhatWasNotTaken(t *testing.T) {
	w := takeWhole(t, wholeResponses["length"])
	full := errors.New("full")
	n, err := w.WriteTo(writerFunc(func([]byte) (int, error) { return 6, full }))
	require.EqualValues(t, 6, n)
	require.ErrorIs(t, err, full)
	n, err = w.WriteTo(writerFunc(func([]byte) (int, error) { return 1, nil }))
	require.EqualValues(t, 1, n)
	require.ErrorIs(t, err, io.ErrShortWrite)
	rest, err := io.ReadAll(w)
	require.NoError(t, err)
	require.Equal(t, "orld", string(rest))
}

// Close from inside the write must neither wait nor free what is being read.
func TestWholeBodyCloseDuringWriteTo(t *testing.T) {
	w := takeWhole(t, wholeResponses["length"])
	var got string
	n, err := w.WriteTo(writerFunc(func(p []byte) (int, error) {
		if err := w.Close(); err != nil {
			return 0, err
		}
		GetReader(strings.NewReader("x")).Free() // would be the same buffer
		got = string(p)
		return len(p), nil
	}))
	require.NoError(t, err)
	require.EqualValues(t, 11, n)
	require.Equal(t, "hello world", got)
	_, err = w.Read(make([]byte, 1))
	require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
}
