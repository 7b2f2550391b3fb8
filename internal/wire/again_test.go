package wire

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// again reads a head with a Reader that has read others before.
func again(r *Reader, text, method string, limit int) (Head, error) {
	*r = Reader{buf: r.buf, last: r.last.kept(), src: strings.NewReader(text)}
	return ReadHead(r, method, limit)
}

// A head that was read before is not parsed again, and nothing of the first
// response is in the second.
func TestReadHeadAgain(t *testing.T) {
	r := &Reader{buf: make([]byte, initialBuffer)}
	const text = "HTTP/1.1 200 OK\r\nServer: x\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 5\r\n\r\nhello"
	first, err := again(r, text, http.MethodGet, 1000)
	require.NoError(t, err)
	want := first.Response.Header.Clone()
	for _, values := range first.Response.Header {
		values[0] = "changed"
	}
	first.Response.Header.Add("X-A", "3")
	first.Response.Header.Del("Server")
	require.True(t, r.last.begins([]byte(text)), "it would be parsed again")

	second, err := again(r, text, http.MethodGet, 1000)
	require.NoError(t, err)
	require.Equal(t, want, second.Response.Header)
	require.Equal(t, FramingLength, second.Framing)
	require.EqualValues(t, 5, second.Length)
	require.Equal(t, first.Size, second.Size)
	require.Equal(t, 5, r.Buffered(), "the body is behind it")

	head, err := again(r, text, http.MethodHead, 1000)
	require.NoError(t, err)
	require.Equal(t, FramingNone, head.Framing, "the method counts")
	_, err = again(r, text, http.MethodGet, first.Size-1)
	require.ErrorIs(t, err, ErrHeadTooLarge, "so does the limit")
	_, err = again(r, text, http.MethodGet, 1000)
	require.NoError(t, err)

	other, err := again(r, strings.Replace(text, "X-A: 1", "X-A: 9", 1), http.MethodGet, 1000)
	require.NoError(t, err)
	require.Equal(t, []string{"9", "2"}, other.Response.Header["X-A"])
	longer, err := again(r, "HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", http.MethodGet, 1000)
	require.NoError(t, err)
	require.Equal(t, http.Header{"Server": {"x"}}, longer.Response.Header)
}

// What was refused, or is large, is not kept.
func TestReadHeadKeepsLittle(t *testing.T) {
	r := &Reader{buf: make([]byte, initialBuffer)}
	_, err := again(r, "HTTP/1.1 200 OK\r\nbad line\r\n\r\n", http.MethodGet, 1000)
	require.Error(t, err)
	require.Empty(t, r.last.kept())
	for range 2 { // folding changes the bytes in place
		h, err := again(r, "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", http.MethodGet, 1000)
		require.NoError(t, err)
		require.Equal(t, "b c", h.Response.Header.Get("A"))
		require.Equal(t, oddityFold, h.Oddity)
	}
	for _, line := range []string{"A: " + strings.Repeat("x", maxKept), strings.Repeat("A:\r\n", 2*keptFields)} {
		_, err = again(r, "HTTP/1.1 200 OK\r\n"+strings.TrimSuffix(line, "\r\n")+"\r\n\r\n", http.MethodGet, 1<<20)
		require.NoError(t, err)
		require.Empty(t, r.last.kept())
	}
}
