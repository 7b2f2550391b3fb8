package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const testLimit = 64 << 10

// pieces is a source that hands out data in pieces whose sizes come from cuts, in
// turn and over again; a piece of no cuts is all there is.
type pieces struct {
	data []byte
	cuts []byte
	next int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := len(p.data)
	if len(p.cuts) > 0 {
		n = int(p.cuts[p.next%len(p.cuts)]) + 1
		p.next++
	}
	n = copy(b, p.data[:min(n, len(p.data))])
	p.data = p.data[n:]
	return n, nil
}

// outcome is what a reader made of the bytes of one response.
type outcome struct {
	headErr  error
	head     Head // ours only
	resp     *http.Response
	body     []byte
	bodyErr  error
	trailer  http.Header
	consumed int
	bufSize  int
}

// readOurs reads one response. With whole it takes the short way when the body
// has arrived with the head.
func readOurs(t *testing.T, data, cuts []byte, method string, whole bool) outcome {
	t.Helper()
	src := &pieces{data: data, cuts: cuts}
	r := GetReader(src)
	defer r.Free()
	var o outcome
	o.head, o.headErr = ReadHead(r, method, testLimit)
	o.bufSize = len(r.buf)
	if o.headErr != nil {
		require.Nil(t, o.head.Response)
		return o
	}
	o.resp = o.head.Response
	require.LessOrEqual(t, o.head.Size, testLimit)
	require.Equal(t, o.head.Size, int(r.Total())-r.Buffered())
	var b Body
	b.Reset(r, o.head, &o.resp.Trailer)
	leftover := -1
	if whole && b.Whole() {
		leftover = b.WholeLeftover()
		r.Detach()
	}
	// Small reads in the dribbled case, so that chunks and reads interleave.
	buf := make([]byte, 700)
	if len(cuts) > 0 {
		buf = buf[:int(cuts[0])%7+1]
	}
	o.body = []byte{}
	for o.bodyErr == nil {
		left, before := b.Left(), len(o.body)
		var n int
		n, o.bodyErr = b.Read(buf)
		o.body = append(o.body, buf[:n]...)
		if left >= 0 && b.Left() >= 0 {
			require.Equal(t, left, b.Left()+int64(len(o.body)-before))
		}
	}
	if errors.Is(o.bodyErr, io.EOF) {
		o.bodyErr = nil
		require.True(t, b.Complete())
		require.Zero(t, b.Left())
		n, err := b.Read(buf)
		require.Zero(t, n)
		require.Equal(t, io.EOF, err)
	} else {
		require.False(t, b.Complete())
	}
	o.consumed = int(r.Total()) - r.Buffered()
	o.trailer = o.resp.Trailer
	if leftover >= 0 {
		require.NoError(t, o.bodyErr, "a whole body must read without error")
		require.Equal(t, leftover, r.Buffered())
	}
	return o
}

func readTheirs(data []byte, method string) outcome {
	src := bytes.NewReader(data)
	br := bufio.NewReaderSize(src, 64<<10)
	var o outcome
	o.resp, o.headErr = http.ReadResponse(br, &http.Request{Method: method})
	if o.headErr != nil {
		return o
	}
	o.body, o.bodyErr = io.ReadAll(o.resp.Body)
	o.consumed = len(data) - src.Len() - br.Buffered()
	o.trailer = o.resp.Trailer
	return o
}

// stricterHead and stricterBody list why we refuse what net/http accepts. Any
// other refusal of ours must be one of theirs too.
var stricterHead = []string{
	"the server speaks ",
	"not an HTTP/1 response",
	"status code below 100",
	"status code in ", // strconv.Atoi takes a sign
	"control character in status line",
	"both Transfer-Encoding and Content-Length",
	"Transfer-Encoding in an HTTP/1.0 response",
	"blank between a header field name and its colon",
	`invalid byte in a header field name: " "`,
}

var stricterBody = []string{
	"trailer section too large",
	"bare LF in the trailer section",
	"blank between a header field name and its colon",
	`invalid byte in a header field name: " "`,
}

func requireKnown(t *testing.T, err error, known []string) {
	t.Helper()
	m, ok := errors.AsType[*MalformedError](err)
	require.True(t, ok, "only ours failed, with %v", err)
	for _, k := range known {
		if strings.HasPrefix(m.Reason, k) {
			return
		}
	}
	t.Fatalf("only ours failed, with %v", err)
}

// requireSameOrStricter holds ours against http.ReadResponse.
func requireSameOrStricter(t *testing.T, data []byte, method string, ours, theirs outcome) {
	t.Helper()
	if ours.headErr != nil {
		if theirs.headErr == nil && !errors.Is(ours.headErr, ErrHeadTooLarge) {
			requireKnown(t, ours.headErr, stricterHead)
		}
		return
	}
	if method == http.MethodConnect && ours.resp.StatusCode/100 == 2 && theirs.headErr != nil {
		return // fields that say how long a body is mean nothing there
	}
	require.NoError(t, theirs.headErr, "accepted what net/http refuses: %q", data)
	a, b := ours.resp, theirs.resp
	require.Equal(t, b.Status, a.Status)
	require.Equal(t, b.StatusCode, a.StatusCode)
	require.Equal(t, b.Proto, a.Proto)
	require.Equal(t, b.ProtoMajor, a.ProtoMajor)
	require.Equal(t, b.ProtoMinor, a.ProtoMinor)
	require.Equal(t, b.Header, a.Header)
	require.Equal(t, b.TransferEncoding, a.TransferEncoding)
	require.Equal(t, b.ContentLength, a.ContentLength)
	require.Equal(t, b.Close, a.Close)
	require.Equal(t, b.Uncompressed, a.Uncompressed)
	requireFraming(t, ours.head, b)
	if ours.bodyErr != nil {
		if theirs.bodyErr == nil {
			requireKnown(t, ours.bodyErr, stricterBody)
		}
		return
	}
	require.NoError(t, theirs.bodyErr, "read a body that net/http refuses: %q", data)
	require.True(t, bytes.Equal(theirs.body, ours.body), "ours %q theirs %q", ours.body, theirs.body)
	require.Equal(t, theirs.consumed, ours.consumed)
	for name := range theirs.trailer {
		switch name {
		case "Connection", "Content-Length", "Keep-Alive", "Trailer", "Transfer-Encoding", "Upgrade":
			// Ours keeps such a name only where it was announced.
			if len(ours.trailer[name]) == 0 {
				delete(theirs.trailer, name)
				delete(ours.trailer, name)
			}
		}
	}
	if len(theirs.trailer)+len(ours.trailer) > 0 {
		require.Equal(t, theirs.trailer, ours.trailer)
	}
}

func requireFraming(t *testing.T, h Head, theirs *http.Response) {
	t.Helper()
	want := FramingClose
	switch {
	case theirs.Body == http.NoBody:
		want = FramingNone
	case len(theirs.TransferEncoding) > 0:
		want = FramingChunked
	case theirs.ContentLength > 0:
		want = FramingLength
		require.Equal(t, theirs.ContentLength, h.Length)
	}
	require.Equal(t, want, h.Framing)
}

// requireSameOutcome holds two ways of feeding us the same bytes against each other.
func requireSameOutcome(t *testing.T, a, b outcome) {
	t.Helper()
	if a.headErr != nil || b.headErr != nil {
		requireSameError(t, a.headErr, b.headErr)
		return
	}
	require.Equal(t, a.resp.Header, b.resp.Header)
	require.Equal(t, a.resp.Status, b.resp.Status)
	require.Equal(t, a.head.Framing, b.head.Framing)
	require.Equal(t, a.head.Length, b.head.Length)
	require.Equal(t, a.head.Size, b.head.Size)
	require.Equal(t, a.head.Oddity, b.head.Oddity)
	require.True(t, bytes.Equal(a.body, b.body), "%q %q", a.body, b.body)
	requireSameError(t, a.bodyErr, b.bodyErr)
	if a.bodyErr == nil {
		require.Equal(t, a.consumed, b.consumed)
		require.Equal(t, a.trailer, b.trailer)
	}
}

// requireSameError: both fail or neither does, and with the same text unless the
// text depends on how much had arrived.
func requireSameError(t *testing.T, a, b error) {
	t.Helper()
	require.Equal(t, a == nil, b == nil, "%v, %v", a, b)
	if a == nil || strings.Contains(a.Error()+b.Error(), "the server speaks") ||
		strings.Contains(a.Error(), "not an HTTP/1 response") {
		return
	}
	require.Equal(t, a.Error(), b.Error())
}

func compareAll(t *testing.T, data, cuts []byte, method string) {
	t.Helper()
	theirs := readTheirs(data, method)
	plain := readOurs(t, data, nil, method, false)
	requireSameOrStricter(t, data, method, plain, theirs)
	require.LessOrEqual(t, plain.bufSize, 2*max(testLimit, initialBuffer))
	whole := readOurs(t, data, nil, method, true)
	requireSameOutcome(t, plain, whole)
	if len(cuts) == 0 {
		cuts = []byte{0}
	}
	requireSameOutcome(t, plain, readOurs(t, data, cuts, method, false))
	requireSameOutcome(t, plain, readOurs(t, data, cuts, method, true))
	requireSameOutcome(t, plain, readOurs(t, data, []byte{0}, method, false))
}

var fuzzMethods = []string{"GET", "HEAD", "", "POST", "CONNECT"}

func FuzzResponse(f *testing.F) {
	for _, s := range responseSeeds {
		f.Add([]byte(s), []byte{3, 0, 11}, uint8(0))
		f.Add([]byte(s), []byte{}, uint8(1))
	}
	f.Fuzz(func(t *testing.T, data, cuts []byte, method uint8) {
		if len(data) > 32<<10 {
			return
		}
		compareAll(t, data, cuts, fuzzMethods[int(method)%len(fuzzMethods)])
	})
}

func FuzzChunked(f *testing.F) {
	for _, s := range chunkedSeeds {
		f.Add([]byte(s), []byte{3, 0, 11})
	}
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
	f.Fuzz(func(t *testing.T, body, cuts []byte) {
		if len(body) > 32<<10 {
			return
		}
		compareAll(t, append([]byte(head), body...), cuts, "GET")
	})
}

func TestResponseSeedsAgainstNetHTTP(t *testing.T) {
	for _, s := range responseSeeds {
		for _, m := range fuzzMethods {
			for _, cuts := range [][]byte{{0}, {1}, {2, 0, 5}, {40}} {
				compareAll(t, []byte(s), cuts, m)
			}
		}
	}
}

func TestChunkedSeedsAgainstNetHTTP(t *testing.T) {
	for _, s := range chunkedSeeds {
		for _, cuts := range [][]byte{{0}, {1}, {2, 0, 5}, {40}} {
			compareAll(t, []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+s), cuts, "GET")
		}
	}
}
