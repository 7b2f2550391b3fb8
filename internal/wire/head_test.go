package wire

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
)

func readHead(t *testing.T, data, method string) (Head, *Reader, error) {
	t.Helper()
	r := GetReader(strings.NewReader(data))
	t.Cleanup(r.Free)
	h, err := ReadHead(r, method, testLimit)
	return h, r, err
}

func TestReadHeadFraming(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tt := range []struct {
		name, head, method string
		framing            Framing
		length             int64 // of the framing
		contentLength      int64 // of the response
		closing            bool
	}{
		{"length", ok + "Content-Length: 5\r\n\r\n", "GET", FramingLength, 5, 5, false},
		{"length 0", ok + "Content-Length: 0\r\n\r\n", "GET", FramingNone, 0, 0, false},
		{"equal lengths", ok + "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", "GET", FramingLength, 5, 5, false},
		{"chunked", ok + "Transfer-Encoding: chunked\r\n\r\n", "GET", FramingChunked, 0, -1, false},
		{"Chunked in another case", ok + "transfer-encoding: cHuNkEd\r\n\r\n", "", FramingChunked, 0, -1, false},
		{"close", ok + "\r\n", "GET", FramingClose, 0, -1, true},
		{"length and close", ok + "Connection: close\r\nContent-Length: 5\r\n\r\n", "GET", FramingLength, 5, 5, true},
		{"HEAD with length", ok + "Content-Length: 5\r\n\r\n", "HEAD", FramingNone, 0, 5, false},
		{"HEAD chunked", ok + "Transfer-Encoding: chunked\r\n\r\n", "HEAD", FramingNone, 0, -1, false},
		{"HEAD with nothing", ok + "\r\n", "HEAD", FramingNone, 0, -1, false},
		{"304 with length", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "GET", FramingNone, 0, 0, false},
		{"204", "HTTP/1.1 204 No Content\r\n\r\n", "GET", FramingNone, 0, 0, false},
		{"101", "HTTP/1.1 101 Switching\r\n\r\n", "GET", FramingNone, 0, 0, false},
		{"205 without length", "HTTP/1.1 205 Reset\r\n\r\n", "GET", FramingClose, 0, -1, true},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "GET", FramingLength, 5, 5, true},
		{"HTTP/1.0 keep-alive", "HTTP/1.0 200 OK\r\nConnection: a, Keep-Alive\r\nContent-Length: 5\r\n\r\n", "GET", FramingLength, 5, 5, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, r, err := readHead(t, tt.head+"rest", tt.method)
			require.NoError(t, err)
			require.Equal(t, tt.framing, h.Framing)
			require.Equal(t, tt.length, h.Length)
			require.Equal(t, tt.contentLength, h.Response.ContentLength)
			require.Equal(t, tt.closing, h.Response.Close)
			require.Equal(t, len(tt.head), h.Size)
			require.Equal(t, len("rest"), r.Buffered())
			require.Empty(t, h.Oddity)
			require.Nil(t, h.Response.Body)
			require.Nil(t, h.Response.Request)
		})
	}
}

func TestReadHeadRefuses(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tt := range []struct{ name, head, reason string }{
		{"TLS alert", "\x15\x03\x01\x00\x02\x02\x46", "the server speaks TLS on this port"},
		{"TLS handshake", "\x16\x03\x03\x00", "the server speaks TLS on this port"},
		{"HTTP/2", "\x00\x00\x12\x04\x00\x00\x00\x00\x00", "the server speaks HTTP/2"},
		{"SSH", "SSH-2.0-OpenSSH_9.6\r\n", `not an HTTP/1 response: "SSH-2.0-OpenSSH_9.6\r"`},
		{"HTTP/2.0 status line", "HTTP/2.0 200 OK\r\n\r\n", `not an HTTP/1 response: "HTTP/2.0 200 OK\r"`},
		{"lower case", "http/1.1 200 OK\r\n\r\n", `not an HTTP/1 response: "http/1.1 200 OK\r"`},
		{"leading empty line", "\r\n" + ok + "\r\n", `not an HTTP/1 response: "\r"`},
		{"long line is cut", strings.Repeat("x", 100), `not an HTTP/1 response: "` + strings.Repeat("x", 64) + `"...`},
		{"version without digit", "HTTP/1.x 200 OK\r\n\r\n", `status line "HTTP/1.x 200 OK"`},
		{"version of two digits", "HTTP/1.10 200 OK\r\n\r\n", `status line "HTTP/1.10 200 OK"`},
		{"version only", "HTTP/1.1\r\n\r\n", `status line "HTTP/1.1"`},
		{"tab after version", "HTTP/1.1\t200 OK\r\n\r\n", `status line "HTTP/1.1\t200 OK"`},
		{"no code", "HTTP/1.1 \r\n\r\n", `status code in "HTTP/1.1 "`},
		{"short code", "HTTP/1.1 20 OK\r\n\r\n", `status code in "HTTP/1.1 20 OK"`},
		{"long code", "HTTP/1.1 2000 OK\r\n\r\n", `status code in "HTTP/1.1 2000 OK"`},
		{"code with sign", "HTTP/1.1 +20 OK\r\n\r\n", `status code in "HTTP/1.1 +20 OK"`},
		{"code 099", "HTTP/1.1 099 OK\r\n\r\n", `status code below 100 in "HTTP/1.1 099 OK"`},
		{"NUL in reason", "HTTP/1.1 200 \x00\r\n\r\n", `control character in status line "HTTP/1.1 200 \x00"`},
		{"CR in reason", "HTTP/1.1 200 a\rb\r\n\r\n", `control character in status line "HTTP/1.1 200 a\rb"`},
		{"length and chunked", ok + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "both Transfer-Encoding and Content-Length"},
		{"coding list on 304", "HTTP/1.1 304 x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "a Transfer-Encoding other than chunked"},
		{"coding in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding in an HTTP/1.0 response"},
		{"two codings", ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "more than one Transfer-Encoding line"},
		{"coding list", ok + "Transfer-Encoding: gzip, chunked\r\n\r\n", "a Transfer-Encoding other than chunked"},
		{"identity", ok + "Transfer-Encoding: identity\r\n\r\n", "a Transfer-Encoding other than chunked"},
		{"lengths differ", ok + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", "Content-Length lines that differ"},
		{"length list", ok + "Content-Length: 5, 5\r\n\r\n", "invalid Content-Length"},
		{"length with sign", ok + "Content-Length: +5\r\n\r\n", "invalid Content-Length"},
		{"negative length", ok + "Content-Length: -5\r\n\r\n", "invalid Content-Length"},
		{"hexadecimal length", ok + "Content-Length: 0x5\r\n\r\n", "invalid Content-Length"},
		{"empty length", ok + "Content-Length:\r\n\r\n", "invalid Content-Length"},
		{"length over int64", ok + "Content-Length: 9223372036854775808\r\n\r\n", "invalid Content-Length"},
		{"length wraps", ok + "Content-Length: 18446744073709551621\r\n\r\n", "invalid Content-Length"},
		{"framing field as trailer", ok + "Transfer-Encoding: chunked\r\nTrailer: content-length\r\n\r\n", "framing field announced as a trailer"},
		{"blank before colon", ok + "Content-Length : 5\r\n\r\n", "blank between a header field name and its colon"},
		{"tab before colon", ok + "Content-Length\t: 5\r\n\r\n", "blank between a header field name and its colon"},
		{"blank in name", ok + "A b: c\r\n\r\n", `invalid byte in a header field name: " "`},
		{"byte over 0x7f in name", ok + "caf\xe9: c\r\n\r\n", `invalid byte in a header field name: "\xe9"`},
		{"no name", ok + ": c\r\n\r\n", "header line without a name"},
		{"no colon", ok + "secret\r\n\r\n", "header line without a colon"},
		{"no colon, no token", ok + "a secret\r\n\r\n", "header line without a colon"},
		{"first line folded", ok + " A: b\r\n\r\n", "first header line starts with a blank"},
		{"NUL in value", ok + "A: secret\x00\r\n\r\n", `control character in the value of "A"`},
		{"DEL in value", ok + "A: sec\x7fret and more\r\n\r\n", `control character in the value of "A"`},
		{"CR in value", ok + "A: sec\rret\r\n\r\n", `control character in the value of "A"`},
		{"CR CR LF", ok + "A: secret\r\r\n\r\n", `control character in the value of "A"`},
		{"control character in fold", ok + "A: b\r\n secret\x01\r\n\r\n", `control character in the value of "A"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := readHead(t, tt.head, "GET")
			m, ok := errors.AsType[*MalformedError](err)
			require.True(t, ok, "got %v", err)
			require.Equal(t, tt.reason, m.Reason)
			require.Equal(t, "malformed response: "+tt.reason, err.Error())
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

func TestReadHeadOddities(t *testing.T) {
	const (
		both = "Content-Length or Transfer-Encoding with status 1xx or 204"
		moot = "contradictory framing fields, though no body follows"
	)
	for _, tt := range []struct{ name, head, want string }{
		{"clean", "HTTP/1.1 200 OK\r\nA: b\r\n\r\n", ""},
		{"bare LF in status line", "HTTP/1.1 200 OK\nA: b\r\n\r\n", "bare LF"},
		{"bare LF in header", "HTTP/1.1 200 OK\r\nA: b\n\r\n", "bare LF"},
		{"bare LF at the end", "HTTP/1.1 200 OK\r\nA: b\r\n\n", "bare LF"},
		{"bare LF in fold", "HTTP/1.1 200 OK\r\nA: b\r\n c\n\r\n", "bare LF"},
		{"fold", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "folded header line"},
		{"version", "HTTP/1.7 200 OK\r\n\r\n", "HTTP version 1.7"},
		{"space", "HTTP/1.1  200 OK\r\n\r\n", "extra space in the status line"},
		{"204 with length", "HTTP/1.1 204 x\r\nContent-Length: 5\r\n\r\n", both},
		{"204 with length 0", "HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n", ""},
		{"204 chunked", "HTTP/1.1 204 x\r\nTransfer-Encoding: chunked\r\n\r\n", both},
		{"103 with length", "HTTP/1.1 103 x\r\nContent-Length: 5\r\n\r\n", both},
		{"304 with length", "HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n", ""},
		{"both on 304", "HTTP/1.1 304 x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", moot},
		{"coding in HTTP/1.0 on 304", "HTTP/1.0 304 x\r\nTransfer-Encoding: chunked\r\n\r\n", moot},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, _, err := readHead(t, tt.head, "GET")
			require.NoError(t, err)
			require.Equal(t, tt.want, h.Oddity)
		})
	}
}

// The answer to HEAD has no body whatever it says, and a tunnel's is no answer to
// be measured (RFC 9110 section 9.3.6).
func TestReadHeadWithoutBody(t *testing.T) {
	const coding = "Transfer-Encoding: chunked\r\n"
	for _, lines := range []string{
		coding + "Content-Length: 5\r\n", "Content-Length:\r\n", "Transfer-Encoding: gzip, chunked\r\n",
		coding + coding, "Content-Length: 1\r\nContent-Length: 2\r\n",
	} {
		for _, proto := range []string{"HTTP/1.1", "HTTP/1.0"} {
			h, _, err := readHead(t, proto+" 200 OK\r\n"+lines+"\r\n", http.MethodConnect)
			require.NoError(t, err)
			require.Empty(t, h.Response.Header["Transfer-Encoding"])
			_, _, err = readHead(t, proto+" 300 OK\r\n"+lines+"\r\n", http.MethodConnect)
			require.Error(t, err, "no tunnel")
		}
	}
	for _, head := range []string{"HTTP/1.1 200 OK\r\n" + coding + "Content-Length: 5\r\n\r\n", "HTTP/1.0 200 OK\r\n" + coding + "\r\n"} {
		h, _, err := readHead(t, head, http.MethodHead)
		require.NoError(t, err)
		require.Equal(t, FramingNone, h.Framing)
		require.NotEmpty(t, h.Oddity)
	}
}

func TestReadHeadUnfolds(t *testing.T) {
	for _, tt := range []struct{ name, lines, want string }{
		{"once", "A: b\r\n c\r\n", "b c"},
		{"many blanks", "A:  b \t\r\n \t c \r\n", "b c"},
		{"twice", "A: b\r\n c\r\n\td\r\n", "b c d"},
		{"empty first piece", "A:\r\n c\r\n", "c"},
		{"empty continuation stays as a space", "A: b\r\n \r\n", "b "},
		{"nothing at all", "A:\n \n \n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, _, err := readHead(t, "HTTP/1.1 200 OK\r\n"+tt.lines+"Z: z\r\n\r\n", "GET")
			require.NoError(t, err)
			require.Equal(t, http.Header{"A": {tt.want}, "Z": {"z"}}, h.Response.Header)
		})
	}
}

// A peer of another protocol must not make us wait for a line end.
func TestReadHeadRefusesAtTheFirstByteThatDiffers(t *testing.T) {
	for i := range len(protoPrefix) {
		blocks := sourceFunc(func([]byte) (int, error) {
			t.Error("waited for more")
			return 0, io.EOF
		})
		r := GetReader(io.MultiReader(strings.NewReader(protoPrefix[:i]+"\x16"), blocks))
		_, err := ReadHead(r, "GET", testLimit)
		_, ok := errors.AsType[*MalformedError](err)
		require.True(t, ok, "got %v", err)
		r.Free()
	}
}

func TestReadHeadEnd(t *testing.T) {
	_, _, err := readHead(t, "", "GET")
	require.Equal(t, io.EOF, err)
	for _, s := range []string{"H", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nA: b\r\n\r"} {
		_, _, err := readHead(t, s, "GET")
		require.Equal(t, io.ErrUnexpectedEOF, err, "%q", s)
	}
}

// A timeout between any two bytes loses nothing and comes back untouched.
func TestReadHeadGoesOnAfterTimeouts(t *testing.T) {
	const data = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
	src, tick := strings.NewReader(data), 0
	r := GetReader(sourceFunc(func(p []byte) (int, error) {
		if tick++; tick%2 == 1 {
			return 0, os.ErrDeadlineExceeded
		}
		return src.Read(p[:1])
	}))
	defer r.Free()
	head := func() Head {
		for {
			h, err := ReadHead(r, "GET", testLimit)
			if err == nil {
				return h
			}
			require.Equal(t, os.ErrDeadlineExceeded, err)
		}
	}
	require.Equal(t, 100, head().Response.StatusCode)
	h := head()
	require.Equal(t, 200, h.Response.StatusCode)

	var b Body
	b.Reset(r, h, nil)
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
	require.Equal(t, "body", string(got))
}

func TestReadHeadLimit(t *testing.T) {
	const start, end = "HTTP/1.1 200 OK\r\nX: ", "\r\n\r\n"
	for _, limit := range []int{100, 4096, 100_000} {
		exact := start + strings.Repeat("v", limit-len(start)-len(end)) + end
		r := GetReader(strings.NewReader(exact + "body"))
		h, err := ReadHead(r, "GET", limit)
		require.NoError(t, err)
		require.Equal(t, limit, h.Size)
		r.Free()

		for _, over := range []string{
			strings.Replace(exact, "v", "vv", 1),
			strings.TrimSuffix(exact, "\r\n") + "vv",
			strings.Repeat("HTTP/1.1 200 ", limit),
		} {
			r = freshReader(iotest.OneByteReader(strings.NewReader(over)))
			_, err = ReadHead(r, "GET", limit)
			require.ErrorIs(t, err, ErrHeadTooLarge)
			require.LessOrEqual(t, len(r.buf), 2*max(limit, initialBuffer))
			require.LessOrEqual(t, int(r.Total()), limit+1, "must stop at the limit")

			_, err = ReadHead(freshReader(strings.NewReader(over)), "GET", limit)
			require.ErrorIs(t, err, ErrHeadTooLarge)
		}
	}
}

func TestReadHeadLineLimit(t *testing.T) {
	const limit = 64 << 10
	lines := func(n int) string {
		var b strings.Builder
		b.WriteString("HTTP/1.1 200 OK\r\n")
		for i := range n {
			fmt.Fprintf(&b, "H%d:\r\n", i)
		}
		return b.String() + "\r\n"
	}
	most := limit/bytesPerLine + baseLines - 1 // beside the status line
	h, _, err := readHead(t, lines(most), "GET")
	require.NoError(t, err)
	require.Len(t, h.Response.Header, most)
	_, _, err = readHead(t, lines(most+1), "GET")
	require.ErrorIs(t, err, ErrHeadTooLarge)
}

// The worst head that is accepted makes us hold a small factor of the limit.
func TestReadHeadMemory(t *testing.T) {
	const limit = 1 << 20
	var b strings.Builder
	b.WriteString("HTTP/1.1 200 OK\r\n")
	for i := range limit/bytesPerLine + baseLines - 1 {
		fmt.Fprintf(&b, "%x:\r\n", i)
	}
	b.WriteString("\r\n")
	data := b.String()

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	h, err := ReadHead(freshReader(strings.NewReader(data)), "GET", limit)
	runtime.ReadMemStats(&after)
	require.NoError(t, err)
	require.NotEmpty(t, h.Response.Header)
	allocated := after.TotalAlloc - before.TotalAlloc
	t.Logf("allocated %.1f times the limit in all", float64(allocated)/limit)
	require.Less(t, allocated, uint64(10*limit))
}

// A peer that sends byte by byte costs linear time: the scan state moves on with
// every byte instead of starting again.
func TestReadHeadScansOnce(t *testing.T) {
	data := "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("v", 1<<20)
	r := GetReader(iotest.OneByteReader(strings.NewReader(data)))
	defer r.Free()
	start := time.Now()
	_, err := ReadHead(r, "GET", 2<<20)
	require.Equal(t, io.ErrUnexpectedEOF, err)
	require.Equal(t, len(data), r.scan.pos)
	// A scan from the start each time would look at 5 * 10^11 bytes.
	require.Less(t, time.Since(start), 10*time.Second)
}

func TestReadHeadHeaderDetails(t *testing.T) {
	h, _, err := readHead(t, "HTTP/1.1 200 OK\r\nset-cookie: a\r\nX-ODD-name: 1\r\nSET-COOKIE:\tb \r\nPragma: no-cache\r\nConnection: keep-alive, CLOSE\r\n"+
		"Transfer-Encoding: Chunked\r\nTrailer: x-a,, X-B ,\r\nTrailer: x-c\r\n\r\n", "GET")
	require.NoError(t, err)
	require.Equal(t, http.Header{
		"Set-Cookie":    {"a", "b"},
		"X-Odd-Name":    {"1"},
		"Pragma":        {"no-cache"},
		"Cache-Control": {"no-cache"},
	}, h.Response.Header)
	require.Equal(t, []string{"chunked"}, h.Response.TransferEncoding)
	require.Equal(t, http.Header{"X-A": nil, "X-B": nil, "X-C": nil}, h.Response.Trailer)
	require.True(t, h.Response.Close)
	require.Equal(t, "200 OK", h.Response.Status)
	require.Equal(t, "HTTP/1.1", h.Response.Proto)

	h, _, err = readHead(t, "HTTP/1.1 200 OK\r\nPragma: other\r\n\r\n", "GET")
	require.NoError(t, err)
	require.Equal(t, http.Header{"Pragma": {"other"}}, h.Response.Header)
}

func TestReadHeadValuesDoNotShareRoom(t *testing.T) {
	h, _, err := readHead(t, "HTTP/1.1 200 OK\r\nX-Odd-Name: 1\r\nPragma: no-cache\r\n\r\n", "GET")
	require.NoError(t, err)
	h.Response.Header["X-Odd-Name"] = append(h.Response.Header["X-Odd-Name"], "2")
	require.Equal(t, []string{"no-cache"}, h.Response.Header["Pragma"])
}

// The response must not change when the buffer that it came from serves again.
func TestReadHeadKeepsNothingOfTheBuffer(t *testing.T) {
	r := GetReader(strings.NewReader("HTTP/1.1 200 OK\r\nA-B: value\r\n\r\n"))
	h, err := ReadHead(r, "GET", testLimit)
	require.NoError(t, err)
	clear(r.buf)
	require.Equal(t, http.Header{"A-B": {"value"}}, h.Response.Header)
	require.Equal(t, "200 OK", h.Response.Status)
	r.Free()
}

func TestValidValueAtEveryPosition(t *testing.T) {
	for size := 1; size <= 20; size++ {
		for at := range size {
			for c := range 256 {
				b := []byte(strings.Repeat("a", size))
				b[at] = byte(c)
				want := c >= 0x20 && c != 0x7f || c == '\t'
				require.Equal(t, want, validValue(b), "%q", b)
			}
		}
	}
}

func TestHasToken(t *testing.T) {
	for _, tt := range []struct {
		values []string
		want   bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{"close"}, true},
		{[]string{"Close"}, true},
		{[]string{"keep-alive", "a,\tcLOSE ,b"}, true},
		{[]string{"xclose"}, false},
		{[]string{"closed"}, false},
		{[]string{"close x"}, false},
		{[]string{",,close,"}, true},
	} {
		require.Equal(t, tt.want, HasToken(tt.values, "close"), "%q", tt.values)
	}
}
