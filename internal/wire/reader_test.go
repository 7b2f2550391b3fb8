package wire

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// freshReader is a Reader whose buffer has not grown in an earlier life.
func freshReader(src io.Reader) *Reader {
	return &Reader{src: src, buf: make([]byte, initialBuffer)}
}

func TestReaderSpaceAdvanceRead(t *testing.T) {
	r := GetReader(nil)
	defer r.Free()
	n := copy(r.Space(), "hello")
	r.Advance(n)
	require.Equal(t, 5, r.Buffered())
	require.EqualValues(t, 5, r.Total())

	p := make([]byte, 3)
	n, err := r.Read(p)
	require.NoError(t, err)
	require.Equal(t, "hel", string(p[:n]))
	require.Equal(t, 2, r.Buffered())
	require.EqualValues(t, 5, r.Total())
}

func TestReaderSpaceIsNeverEmpty(t *testing.T) {
	r := GetReader(nil)
	defer r.Free()
	var want strings.Builder
	for i := range 20_000 {
		space := r.Space()
		require.NotEmpty(t, space)
		space[0] = byte('a' + i%26)
		want.WriteByte(space[0])
		r.Advance(1)
	}
	got := make([]byte, 20_000)
	n, err := r.Read(got)
	require.NoError(t, err)
	require.Equal(t, want.String(), string(got[:n]))
}

func TestReaderSpaceMovesWhatIsBufferedToTheFront(t *testing.T) {
	r := GetReader(nil)
	defer r.Free()
	size := len(r.Space())
	r.Advance(size)
	_, err := r.Read(make([]byte, size-10))
	require.NoError(t, err)
	require.Len(t, r.Space(), size-10)
	require.Len(t, r.buf, size, "room at the front must be used before the buffer grows")
}

func TestReaderAdvanceTakesNoMoreThanTheSpace(t *testing.T) {
	r := GetReader(nil)
	defer r.Free()
	size := len(r.Space())
	r.Advance(-1)
	require.Zero(t, r.Buffered())
	r.Advance(size + 1)
	require.Equal(t, size, r.Buffered())
}

func TestReaderReadsLargePiecesStraightFromTheSource(t *testing.T) {
	src := strings.NewReader(strings.Repeat("x", 3*initialBuffer))
	r := freshReader(src)
	p := make([]byte, initialBuffer)
	n, err := r.Read(p)
	require.NoError(t, err)
	require.Equal(t, initialBuffer, n)
	require.Zero(t, r.Buffered())
	require.EqualValues(t, initialBuffer, r.Total())

	n, err = r.Read(p[:10])
	require.NoError(t, err)
	require.Equal(t, 10, n)
	require.Equal(t, initialBuffer-10, r.Buffered(), "a small read goes through the buffer")
	n, err = r.Read(nil)
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestReaderFreeDropsLargeBuffers(t *testing.T) {
	r := freshReader(detached{})
	for len(r.buf) <= maxPooledBuffer {
		r.Advance(len(r.Space()))
	}
	r.Free()
	require.Len(t, r.buf, initialBuffer)
	r = GetReader(strings.NewReader("x"))
	defer r.Free()
	require.Zero(t, r.Buffered())
	require.Zero(t, r.Total())
}

func TestReaderDetach(t *testing.T) {
	src := strings.NewReader("buffered and more")
	r := GetReader(io.LimitReader(src, 8))
	defer r.Free()
	require.NoError(t, r.fill())
	r.Detach()
	p := make([]byte, 100)
	n, err := r.Read(p)
	require.NoError(t, err)
	require.Equal(t, "buffered", string(p[:n]))
	_, err = r.Read(p)
	require.ErrorIs(t, err, errDetached)
	_, err = r.Read(make([]byte, 2*initialBuffer))
	require.ErrorIs(t, err, errDetached)
}

// An error that comes with bytes is shown after them, once.
func TestReaderErrorBesideBytes(t *testing.T) {
	reset := errors.New("reset")
	for _, tt := range []struct {
		beside error
		after  []error
	}{
		{reset, []error{reset, io.EOF}},
		{os.ErrDeadlineExceeded, []error{io.EOF}}, // the deadline may have been changed
	} {
		for _, size := range []int{10, 2 * initialBuffer} {
			calls := 0
			r := freshReader(sourceFunc(func(p []byte) (int, error) {
				if calls++; calls == 1 {
					return copy(p, "abc"), tt.beside
				}
				return 0, io.EOF
			}))
			p := make([]byte, size)
			n, err := r.Read(p)
			require.NoError(t, err)
			require.Equal(t, "abc", string(p[:n]))
			for _, want := range tt.after {
				_, err = r.Read(p)
				require.Equal(t, want, err)
			}
		}
	}
}

type sourceFunc func(p []byte) (int, error)

func (f sourceFunc) Read(p []byte) (int, error) { return f(p) }

func TestReaderBadSources(t *testing.T) {
	for _, tt := range []struct {
		name string
		src  sourceFunc
		want error
	}{
		{"never anything", func([]byte) (int, error) { return 0, nil }, io.ErrNoProgress},
		{"negative count", func([]byte) (int, error) { return -1, nil }, errBadCount},
		{"count beyond the slice", func(p []byte) (int, error) { return len(p) + 1, nil }, errBadCount},
		{"error", func([]byte) (int, error) { return 0, io.ErrClosedPipe }, io.ErrClosedPipe},
	} {
		for _, size := range []int{10, 2 * initialBuffer} {
			t.Run(tt.name, func(t *testing.T) {
				n, err := freshReader(tt.src).Read(make([]byte, size))
				require.Zero(t, n)
				require.True(t, errors.Is(err, tt.want), "%v", err)
			})
		}
	}
}
