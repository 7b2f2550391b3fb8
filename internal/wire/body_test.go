package wire

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

const chunkedHead = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

// openBody reads the head of data and returns the body behind it.
func openBody(t *testing.T, src io.Reader) (*Body, *Reader, *http.Response) {
	t.Helper()
	r := freshReader(src)
	h, err := ReadHead(r, "GET", testLimit)
	require.NoError(t, err)
	b := new(Body)
	b.Reset(r, h, &h.Response.Trailer)
	return b, r, h.Response
}

func TestBodyChunkedRefuses(t *testing.T) {
	const end = "\r\nhello\r\n0\r\n\r\n"
	for _, tt := range []struct{ name, chunks, reason string }{
		{"bare LF behind size", "5\nhello\r\n0\r\n\r\n", `chunk size line ends in a bare LF: "5"`},
		{"bare LF in extension", "5;a\nb" + end, `chunk size line ends in a bare LF: "5;a"`},
		{"CR in extension", "5;a\rb" + end, `CR inside chunk size line "5;a\rb\r"`},
		{"CR CR LF", "5\r" + end, `CR inside chunk size line "5\r\r"`},
		{"no CRLF behind data", "5\r\nhello0\r\n\r\n", "no CRLF behind the data of a chunk"},
		{"bare LF behind data", "5\r\nhello\n0\r\n\r\n", "no CRLF behind the data of a chunk"},
		{"other bytes behind data", "5\r\nhelloXX0\r\n\r\n", "no CRLF behind the data of a chunk"},
		{"CR X behind data", "5\r\nhello\rX0\r\n\r\n", "no CRLF behind the data of a chunk"},
		{"no size", end, `chunk size line ""`},
		{"extension only", ";x" + end, `chunk size line ";x"`},
		{"prefix", "0x5" + end, `chunk size line "0x5"`},
		{"plus", "+5" + end, `chunk size line "+5"`},
		{"minus", "-5" + end, `chunk size line "-5"`},
		{"underscore", "0_5" + end, `chunk size line "0_5"`},
		{"no digit", "g" + end, `chunk size line "g"`},
		{"leading blank", " 5" + end, `chunk size line " 5"`},
		{"blank before extension", "5 ;x" + end, `chunk size line "5 ;x"`},
		{"17 digits", "00000000000000005" + end, `chunk size line "00000000000000005"`},
		{"over int64", "8000000000000000" + end, `chunk size line "8000000000000000"`},
		{"over uint64", "10000000000000005" + end, `chunk size line "10000000000000005"`},
		{"long line", "5;" + strings.Repeat("x", 4094) + end, "chunk size line too long"},
		{"endless line", strings.Repeat("5", 1<<20), "chunk size line too long"},
		{"extensions", strings.Repeat("1;"+strings.Repeat("x", 4000)+"\r\na\r\n", 10), "more chunk extensions than data"},
		{"trailer too large", "0\r\n" + strings.Repeat("A: b\r\n", 640) + "X: " + strings.Repeat("v", 16<<10) + "\r\n\r\n", "trailer section too large"},
		{"endless trailer", "0\r\nX: " + strings.Repeat("v", 1<<20), "trailer section too large"},
		{"trailer of many lines", "0\r\n" + strings.Repeat("A:b\r\n", 641) + "\r\n", "trailer section too large"},
		{"bare LF for the trailer", "0\r\n\n", "bare LF in the trailer section"},
		{"bare LF in trailer", "0\r\nA: b\n\r\n", "bare LF in the trailer section"},
		{"bare LF at the end of trailer", "0\r\nA: b\r\n\n", "bare LF in the trailer section"},
		{"trailer without colon", "0\r\nA\r\n\r\n", "header line without a colon"},
		{"trailer with blank before colon", "0\r\nA : b\r\n\r\n", "blank between a header field name and its colon"},
		{"trailer starts with a blank", "0\r\n A: b\r\n\r\n", "first header line starts with a blank"},
		{"control character in trailer", "0\r\nA: \x00\r\n\r\n", `control character in the value of "A"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, dribble := range []bool{false, true} {
				var src io.Reader = strings.NewReader(chunkedHead + tt.chunks)
				if dribble {
					src = iotest.OneByteReader(src)
				}
				b, r, resp := openBody(t, src)
				require.False(t, b.Whole())
				_, err := io.ReadAll(b)
				m, ok := errors.AsType[*MalformedError](err)
				require.True(t, ok, "got %v", err)
				require.Equal(t, tt.reason, m.Reason)
				require.False(t, b.Complete())
				require.False(t, b.Whole())
				require.Nil(t, resp.Trailer)
				require.LessOrEqual(t, len(r.buf), 2*maxTrailer)
				_, again := b.Read(make([]byte, 1))
				require.Equal(t, err, again, "a refusal stays")
			}
		})
	}
}

func TestBodyChunkedAccepts(t *testing.T) {
	for _, tt := range []struct {
		name, chunks, want string
		trailer            http.Header
	}{
		{"empty", "0\r\n\r\n", "", nil},
		{"some", "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", "hello world", nil},
		{"16 digits", "000000000000000A\r\n0123456789\r\n0000000000000000\r\n\r\n", "0123456789", nil},
		{"padded size", "5 \t\r\nhello\r\n0  \r\n\r\n", "hello", nil},
		{"extensions", "5;a=\"b\";c\r\nhello\r\n0;d\r\n\r\n", "hello", nil},
		{"longest line", "5;" + strings.Repeat("x", 4093) + "\r\nhello\r\n0\r\n\r\n", "hello", nil},
		{"one byte to a chunk", strings.Repeat("1\r\na\r\n", 20_000) + "0\r\n\r\n", strings.Repeat("a", 20_000), nil},
		{"data pays for extensions", strings.Repeat("400;"+strings.Repeat("x", 2000)+"\r\n"+strings.Repeat("a", 1024)+"\r\n", 50) + "0\r\n\r\n", strings.Repeat("a", 50*1024), nil},
		{"trailer", "0\r\nx-sum: 1\r\nX-Sum: 2\r\nY: z\r\n\r\n", "", http.Header{"X-Sum": {"1", "2"}, "Y": {"z"}}},
		{"folded trailer", "0\r\nX: a\r\n b\r\n\r\n", "", http.Header{"X": {"a b"}}},
		{
			"framing fields are dropped", "0\r\nContent-Length: 1\r\ntransfer-encoding: chunked\r\nTrailer: a\r\nConnection: close\r\n" +
				"Keep-Alive: timeout=1\r\nUpgrade: x\r\n\r\n", "", nil,
		},
		{"and others are not", "0\r\nContent-Length: 1\r\nX: y\r\n\r\n", "", http.Header{"X": {"y"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, r, resp := openBody(t, iotest.OneByteReader(strings.NewReader(chunkedHead+tt.chunks+"next")))
			got, err := io.ReadAll(b)
			require.NoError(t, err)
			require.Equal(t, tt.want, string(got))
			require.True(t, b.Complete())
			require.Equal(t, tt.trailer, resp.Trailer)
			require.EqualValues(t, len(chunkedHead+tt.chunks), r.Total()-int64(r.Buffered()))
		})
	}
}

func TestBodyTrailerStore(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A, B\r\n\r\n"
	const rest = "0\r\nA: 1\r\nC: 2\r\n\r\n"

	b, _, resp := openBody(t, strings.NewReader(head+rest))
	require.Equal(t, http.Header{"A": nil, "B": nil}, resp.Trailer)
	_, err := io.ReadAll(b)
	require.NoError(t, err)
	require.Equal(t, http.Header{"A": {"1"}, "B": nil, "C": {"2"}}, resp.Trailer)

	b, _, resp = openBody(t, strings.NewReader(head+rest))
	b.DropTrailer()
	_, err = io.ReadAll(b)
	require.NoError(t, err)
	require.True(t, b.Complete())
	require.Equal(t, http.Header{"A": nil, "B": nil}, resp.Trailer)

	b, _, _ = openBody(t, strings.NewReader(head+strings.Replace(rest, ":", "", 1)))
	b.DropTrailer()
	_, err = io.ReadAll(b)
	require.Error(t, err, "a trailer that is dropped is checked all the same")
}

func TestBodyCutShort(t *testing.T) {
	for _, data := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
		chunkedHead, chunkedHead + "5", chunkedHead + "5\r\n", chunkedHead + "5\r\nhell", chunkedHead + "5\r\nhello",
		chunkedHead + "5\r\nhello\r\n", chunkedHead + "0\r\n",
		chunkedHead + "6000000000000000\r\nhello", chunkedHead + "7fffffffffffffff;x\r\nhello", chunkedHead + "0\r\n\r", chunkedHead + "0\r\nA: b\r\n",
	} {
		b, _, _ := openBody(t, strings.NewReader(data))
		require.False(t, b.Whole())
		_, err := io.ReadAll(b)
		require.Equal(t, io.ErrUnexpectedEOF, err, "%q", data)
		require.False(t, b.Complete())
		_, err = b.Read(make([]byte, 1))
		require.Equal(t, io.ErrUnexpectedEOF, err)
	}
}

func TestBodyUntilClose(t *testing.T) {
	b, _, _ := openBody(t, strings.NewReader("HTTP/1.1 200 OK\r\n\r\nuntil the end"))
	require.False(t, b.Whole())
	require.EqualValues(t, -1, b.Left())
	got, err := io.ReadAll(b)
	require.NoError(t, err)
	require.Equal(t, "until the end", string(got))
	require.True(t, b.Complete())
}

func TestBodyNone(t *testing.T) {
	b, r, _ := openBody(t, strings.NewReader("HTTP/1.1 204 No Content\r\n\r\nrest"))
	require.True(t, b.Complete())
	require.Zero(t, b.Left())
	require.True(t, b.Whole())
	require.Equal(t, 4, b.WholeLeftover())
	n, err := b.Read(make([]byte, 10))
	require.Zero(t, n)
	require.Equal(t, io.EOF, err)
	require.Equal(t, 4, r.Buffered())
}

// The end comes with the last bytes wherever it is known then.
func TestBodyEndComesWithTheLastBytes(t *testing.T) {
	for _, data := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		chunkedHead + "5\r\nhello\r\n0\r\n\r\n",
		chunkedHead + "2\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n",
	} {
		b, _, _ := openBody(t, strings.NewReader(data))
		p := make([]byte, 5)
		n, err := b.Read(p)
		require.Equal(t, "hello", string(p[:n]))
		require.Equal(t, io.EOF, err)
	}
}

// What has arrived is returned without waiting for what has not.
func TestBodyDoesNotWaitWithBytesInHand(t *testing.T) {
	waits := sourceFunc(func([]byte) (int, error) { return 0, os.ErrDeadlineExceeded })
	for _, rest := range []string{"5\r\nhello", "5\r\nhello\r", "5\r\nhello\r\n", "5\r\nhello\r\n3", "5\r\nhello\r\n3\r\n", "5\r\nhello\r\n0\r\n", "9\r\nhello"} {
		b, _, _ := openBody(t, io.MultiReader(strings.NewReader(chunkedHead+rest), waits))
		p := make([]byte, 10)
		n, err := b.Read(p)
		require.NoError(t, err, "%q", rest)
		require.Equal(t, "hello", string(p[:n]))
		for range 2 {
			n, err = b.Read(p)
			require.Zero(t, n)
			require.Equal(t, os.ErrDeadlineExceeded, err, "other errors come back untouched and do not stay")
		}
	}
	b, _, _ := openBody(t, io.MultiReader(strings.NewReader(chunkedHead), waits))
	n, err := b.Read(nil)
	require.Zero(t, n)
	require.NoError(t, err)
	_, err = new(Body).Read(make([]byte, 1))
	require.Equal(t, io.EOF, err)
}

func TestBodyGoesOnAfterTimeouts(t *testing.T) {
	src, tick := strings.NewReader(chunkedHead+"5;x\r\nhello\r\n0\r\nA: b\r\n\r\n"), 0
	r := GetReader(sourceFunc(func(p []byte) (int, error) {
		if tick++; tick%2 == 0 && tick > 2*len(chunkedHead) {
			return 0, os.ErrDeadlineExceeded
		}
		return src.Read(p[:1])
	}))
	defer r.Free()
	h, err := ReadHead(r, "GET", testLimit)
	for err != nil {
		h, err = ReadHead(r, "GET", testLimit)
	}
	var b Body
	b.Reset(r, h, &h.Response.Trailer)
	var got []byte
	for p := make([]byte, 10); ; {
		n, err := b.Read(p)
		got = append(got, p[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			require.Equal(t, os.ErrDeadlineExceeded, err)
		}
	}
	require.Equal(t, "hello", string(got))
	require.Equal(t, http.Header{"A": {"b"}}, h.Response.Trailer)
}

func TestBodyWhole(t *testing.T) {
	const length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
	for _, tt := range []struct {
		name, data string
		want       bool
		leftover   int
	}{
		{"length", length + "hello", true, 0},
		{"length and more", length + "helloX", true, 1},
		{"length, cut short", length + "hell", false, 0},
		{"chunked", chunkedHead + "5\r\nhello\r\n0\r\n\r\n", true, 0},
		{"chunked, many", chunkedHead + strings.Repeat("5\r\nhello\r\n", 20) + "0\r\n\r\n", true, 0},
		{"chunked with trailer", chunkedHead + "5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n", true, 0},
		{"chunked and another response", chunkedHead + "5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", true, 19},
		{"chunked, data that looks like the end", chunkedHead + "20\r\n0\r\n\r\n", false, 0},
		{"chunked, no last chunk", chunkedHead + "2\r\n\r\n\r\n", false, 0},
		{"chunked, size beyond int", chunkedHead + "7fffffffffffffff\r\nx\r\n0\r\n\r\n", false, 0},
		{"chunked, malformed size", chunkedHead + "x\r\nhello\r\n0\r\n\r\n", false, 0},
		{"chunked, malformed end", chunkedHead + "5\r\nhelloXX0\r\n\r\n", false, 0},
		{"chunked, malformed trailer", chunkedHead + "0\r\nA\r\n\r\n", false, 0},
		{"chunked, trailer cut short", chunkedHead + "0\r\nA: b\r\n", false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, r, _ := openBody(t, strings.NewReader(tt.data))
			buffered := r.Buffered()
			require.Equal(t, tt.want, b.Whole())
			require.Equal(t, buffered, r.Buffered(), "Whole consumes nothing")
			if !tt.want {
				return
			}
			require.Equal(t, tt.leftover, b.WholeLeftover())
			r.Detach()
			got, err := io.ReadAll(iotest.OneByteReader(b))
			require.NoError(t, err, "after Whole the source is not needed")
			require.Contains(t, string(got), "hello")
			require.Equal(t, tt.leftover, r.Buffered())
		})
	}
}

// Whole in the middle of a body speaks of the rest.
func TestBodyWholeInTheMiddle(t *testing.T) {
	b, _, _ := openBody(t, strings.NewReader(chunkedHead+"5\r\nhello\r\n0\r\n\r\nX\r\n\r\n"))
	_, err := b.Read(make([]byte, 2))
	require.NoError(t, err)
	require.True(t, b.Whole())
	require.Equal(t, 5, b.WholeLeftover())
	got, err := io.ReadAll(b)
	require.NoError(t, err)
	require.Equal(t, "llo", string(got))
}

func TestBodyLeft(t *testing.T) {
	b, _, _ := openBody(t, strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
	require.EqualValues(t, 5, b.Left())
	_, err := b.Read(make([]byte, 2))
	require.NoError(t, err)
	require.EqualValues(t, 3, b.Left())
	b, _, _ = openBody(t, strings.NewReader(chunkedHead+"0\r\n\r\n"))
	require.EqualValues(t, -1, b.Left())
	_, err = b.Read(make([]byte, 2))
	require.Equal(t, io.EOF, err)
	require.Zero(t, b.Left())
}

// Large reads of a large body do not go through the buffer.
func TestBodyLargeReads(t *testing.T) {
	want := strings.Repeat("0123456789abcdef", 1<<14)
	r := freshReader(strings.NewReader(chunkedHead + "40000\r\n" + want + "\r\n0\r\n\r\n"))
	h, err := ReadHead(r, "GET", testLimit)
	require.NoError(t, err)
	var b Body
	b.Reset(r, h, nil)
	got, err := io.ReadAll(&b)
	require.NoError(t, err)
	require.True(t, want == string(got))
	require.True(t, len(r.buf) == initialBuffer)
}
