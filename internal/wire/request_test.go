package wire

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http/httpguts"
)

type fieldWritten struct {
	key    string
	values []string
}

// viaTransport sends req through a real *http.Transport over a pipe, and returns
// the bytes that the server got and what httptrace was told.
func viaTransport(t *testing.T, tr *http.Transport, req *http.Request) (sent string, traced []fieldWritten) {
	t.Helper()
	client, server := net.Pipe()
	tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return client, nil }
	defer tr.CloseIdleConnections()
	var raw bytes.Buffer
	served := make(chan error, 1) // one send, at the end
	go func() {                   // ends with the exchange; the test waits for it
		got, err := http.ReadRequest(bufio.NewReader(io.TeeReader(server, &raw)))
		if err == nil {
			_, err = io.Copy(io.Discard, got.Body)
		}
		_, _ = io.WriteString(server, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		served <- errors.Join(err, server.Close())
	}()
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		WroteHeaderField: func(key string, values []string) {
			traced = append(traced, fieldWritten{key, values})
		},
	})
	resp, err := tr.RoundTrip(req.WithContext(ctx))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.NoError(t, <-served)
	return raw.String(), traced
}

func TestAppendRequestEqualsTransport(t *testing.T) {
	body := func() io.ReadCloser { return io.NopCloser(strings.NewReader("body")) }
	for _, tt := range []struct {
		name string
		tr   *http.Transport
		edit func(*http.Request)
		o    RequestOptions
	}{
		{"plain", &http.Transport{}, nil, RequestOptions{AcceptGzip: true}},
		{"no gzip", &http.Transport{DisableCompression: true}, nil, RequestOptions{}},
		{"many fields", &http.Transport{}, func(r *http.Request) {
			r.Header = http.Header{"Zeta": {"z"}, "Accept": {"a", " b "}, "X-Empty": {""}, "X-None": nil, "B": {"two\twords"}, "lower": {"case"}}
		}, RequestOptions{AcceptGzip: true}},
		{"excluded fields", &http.Transport{}, func(r *http.Request) {
			r.Header = http.Header{"Host": {"x"}, "Content-Length": {"9"}, "Transfer-Encoding": {"gzip"}, "Trailer": {"T"}, "User-Agent": {" mine ", "two"}}
		}, RequestOptions{AcceptGzip: true}},
		{"no user agent", &http.Transport{}, func(r *http.Request) { r.Header = http.Header{"User-Agent": {""}} }, RequestOptions{AcceptGzip: true}},
		{"user agent without values", &http.Transport{}, func(r *http.Request) { r.Header = http.Header{"User-Agent": nil} }, RequestOptions{AcceptGzip: true}},
		{"close", &http.Transport{}, func(r *http.Request) { r.Close = true }, RequestOptions{AcceptGzip: true}},
		{"close in both", &http.Transport{}, func(r *http.Request) {
			r.Close = true
			r.Header.Set("Connection", "x, Close")
		}, RequestOptions{AcceptGzip: true, Connection: "close"}},
		{"close on the second line", &http.Transport{}, func(r *http.Request) {
			r.Close = true
			r.Header["Connection"] = []string{"x", "close"}
		}, RequestOptions{AcceptGzip: true, Connection: "close"}},
		{"keep-alives disabled", &http.Transport{DisableKeepAlives: true}, nil, RequestOptions{AcceptGzip: true, Connection: "close"}},
		{"post with length", &http.Transport{}, func(r *http.Request) {
			r.Method, r.Body, r.ContentLength = "POST", body(), 4
		}, RequestOptions{AcceptGzip: true, ContentLength: 4}},
		{"post of nothing", &http.Transport{}, func(r *http.Request) { r.Method = "POST" }, RequestOptions{AcceptGzip: true}},
		{"post chunked", &http.Transport{}, func(r *http.Request) {
			r.Method, r.Body = "POST", body()
		}, RequestOptions{AcceptGzip: true, ContentLength: -1, Chunked: true}},
		{"post with trailer", &http.Transport{}, func(r *http.Request) {
			r.Method, r.Body = "POST", body()
			r.Trailer = http.Header{"X-Sum": {"1 "}, "x-a": {"2", "3"}}
		}, RequestOptions{AcceptGzip: true, ContentLength: -1, Chunked: true}},
		{"delete of nothing", &http.Transport{}, func(r *http.Request) { r.Method = "DELETE" }, RequestOptions{AcceptGzip: true}},
		{"identity", &http.Transport{}, func(r *http.Request) {
			r.Method, r.Body, r.TransferEncoding = "DELETE", http.NoBody, []string{"identity"}
		}, RequestOptions{AcceptGzip: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://host.example:81/path?q=1", nil)
			require.NoError(t, err)
			if tt.edit != nil {
				tt.edit(req)
			}
			before := maps.Clone(req.Header)
			o := tt.o
			o.Host, o.Target = "host.example:81", "/path?q=1"
			var traced []fieldWritten
			o.Trace = func(key string, values []string) { traced = append(traced, fieldWritten{key, values}) }
			got := AppendRequest(nil, req, &o)
			require.Equal(t, before, req.Header)
			switch {
			case o.Chunked:
				chunk := append(make([]byte, MaxChunkHeader, 64), "body.."...)
				got = append(got, PutChunk(chunk, 4)...)
				got = append(got, LastChunk...)
				got = AppendTrailer(got, req.Trailer)
			case o.ContentLength > 0:
				got = append(got, "body"...)
			}
			want, wantTraced := viaTransport(t, tt.tr, req)
			require.Equal(t, want, string(got))
			require.Equal(t, wantTraced, traced)
		})
	}
}

func TestAppendRequestAddedLines(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodConnect, "http://h", nil)
	require.NoError(t, err)
	req.Header = http.Header{"Proxy-Authorization": {"own"}, "A": {"1", "2"}}
	o := RequestOptions{
		Host: "h:443", Target: "h:443", Connection: "keep-alive", AcceptGzip: true, ContentLength: -1,
		ProxyAuthorization: "Basic x",
	}
	got := AppendRequest([]byte("before|"), req, &o)
	require.Equal(t, "before|CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\nUser-Agent: Go-http-client/1.1\r\n"+
		"A: 1\r\nA: 2\r\nProxy-Authorization: own\r\n"+
		"Accept-Encoding: gzip\r\nConnection: keep-alive\r\nProxy-Authorization: Basic x\r\n\r\n", string(got))
	require.Len(t, req.Header, 2)

	// A request that asks for close is not told to keep alive.
	req.Header.Set("Connection", "close")
	got = AppendRequest(nil, req, &o)
	require.NotContains(t, string(got), "keep-alive")

	got = AppendRequest(nil, &http.Request{}, &RequestOptions{})
	require.True(t, strings.HasPrefix(string(got), "GET "))
	require.NotContains(t, string(got), "Proxy-Authorization")
}

func TestAppendRequestReplacesLineEnds(t *testing.T) {
	req := &http.Request{Header: http.Header{"A": {"b\r\nC: d\n"}, "bad name": {"x"}, "User-Agent": {"a\nb"}}}
	got := AppendRequest(nil, req, &RequestOptions{Host: "h", Target: "/", ContentLength: -1})
	require.Equal(t, "GET / HTTP/1.1\r\nHost: h\r\nUser-Agent: a b\r\nA: b  C: d\r\n\r\n", string(got))
}

func TestSendsLength(t *testing.T) {
	for _, tt := range []struct {
		method string
		n      int64
		want   bool
	}{
		{"", 0, false},
		{"GET", 0, false},
		{"HEAD", 0, false},
		{"DELETE", 0, false},
		{"POST", 0, true},
		{"PUT", 0, true},
		{"PATCH", 0, true},
		{"GET", 1, true},
		{"POST", -1, false},
	} {
		require.Equal(t, tt.want, SendsLength(&http.Request{Method: tt.method}, tt.n), "%s %d", tt.method, tt.n)
	}
	identity := &http.Request{Method: http.MethodDelete, TransferEncoding: []string{"identity"}}
	require.False(t, SendsLength(identity, 0), "net/http forgets the coding of no body")
	identity.Body = http.NoBody
	require.True(t, SendsLength(identity, 0))
}

func TestCheckHeader(t *testing.T) {
	require.NoError(t, CheckHeader(nil))
	require.NoError(t, CheckHeader(http.Header{"A": {"b", "\t caf\xe9"}, "x-1": nil}))
	require.EqualError(t, CheckHeader(http.Header{"a b": {"x"}}), `invalid header field name "a b"`)
	require.EqualError(t, CheckHeader(http.Header{"": {"x"}}), `invalid header field name ""`)
	require.EqualError(t, CheckHeader(http.Header{"X": {"ok", "secret\n"}}), `invalid header field value for "X"`)
	require.EqualError(t, CheckHeader(http.Header{"X": {"secret\x00"}}), `invalid header field value for "X"`)
}

func TestCheckTrailer(t *testing.T) {
	require.NoError(t, CheckTrailer(http.Header{"X-Sum": nil, "x-a": {"1"}}))
	for _, name := range []string{"Trailer", "transfer-encoding", "Content-Length"} {
		require.EqualError(t, CheckTrailer(http.Header{name: nil}), `invalid trailer field "`+name+`"`)
	}
	require.EqualError(t, CheckTrailer(http.Header{"a:b": nil}), `invalid trailer field name "a:b"`)
	require.EqualError(t, CheckTrailer(http.Header{"A": {"secret\r"}}), `invalid trailer field value for "A"`)
}

func TestAppendTrailer(t *testing.T) {
	require.Equal(t, "x\r\n", string(AppendTrailer([]byte("x"), nil)))
	require.Equal(t, "A: 1\r\nA: 2\r\nB: c\r\n\r\n", string(AppendTrailer(nil, http.Header{"B": {" c"}, "A": {"1", "2"}, "Z": nil})))
}

func TestPutChunk(t *testing.T) {
	for _, n := range []int{1, 9, 15, 16, 255, 256, 4095, 4096, 65_535, 1 << 20} {
		buf := make([]byte, MaxChunkHeader+n+2)
		data := buf[MaxChunkHeader : MaxChunkHeader+n]
		for i := range data {
			data[i] = 'x'
		}
		chunk := PutChunk(buf, n)
		var b chunks
		took, err := b.take(chunk, new(blockScan))
		require.NoError(t, err)
		require.EqualValues(t, n, b.left)
		require.Equal(t, strings.Repeat("x", n)+"\r\n", string(chunk[took:]))
		require.NotEqual(t, byte('0'), chunk[0])
	}
	require.Empty(t, PutChunk(make([]byte, 64), 0), "no data makes no chunk: it would end the body")
}

// FuzzRequest: what is written equals Request.Write for the same request, and parses
// to the same fields.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/a?b", "Accept: x\nUser-Agent: me", "", uint8(0))
	f.Add("POST", "/", "A: b\nA: c\nx-lower: 1", "body", uint8(1))
	f.Add("PUT", "*", "Connection: keep-alive\nHost: h", "body", uint8(2))
	f.Add("DELETE", "/", "Connection: x,Close\nContent-Length: 3", "", uint8(4))
	f.Add("PATCH", "/", "bad name: x\nB:  two\twords \nC", "x", uint8(7))
	f.Add("POST", "/p%20q", "User-Agent:\nTrailer: x\nTransfer-Encoding: gzip", "xyz", uint8(3))
	f.Fuzz(func(t *testing.T, method, target, lines, body string, flags uint8) {
		req, o := requestOf(t, target, lines, body, flags)
		if req == nil || strings.ContainsAny(method, " \r\n") {
			return
		}
		req.Method = method
		compareRequest(t, req, o)
	})
}

// headerOf turns lines of "name: value" into a header. Names stay as they are.
func headerOf(lines string) http.Header {
	h := http.Header{}
	for line := range strings.SplitSeq(lines, "\n") {
		name, value, ok := strings.Cut(line, ":")
		if ok {
			h[name] = append(h[name], value)
		}
	}
	return h
}

// requestOf returns nil when target makes no URL.
func requestOf(t *testing.T, target, lines, body string, flags uint8) (*http.Request, *RequestOptions) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://host.example/"+target, nil)
	if err != nil {
		return nil, nil
	}
	req.Header = headerOf(lines)
	o := &RequestOptions{Host: "host.example", Target: req.URL.RequestURI()}
	if body != "" {
		req.Body = io.NopCloser(strings.NewReader(body))
		req.ContentLength, o.ContentLength = int64(len(body)), int64(len(body))
		if flags&1 != 0 {
			req.ContentLength, o.ContentLength = -1, -1
			o.Chunked = true
			req.TransferEncoding = []string{"chunked"} // without it, Write probes the body
			req.Trailer = http.Header{"X-Sum": {"1"}}
		}
	}
	req.Close = flags&2 != 0
	return req, o
}

func compareRequest(t *testing.T, req *http.Request, o *RequestOptions) {
	t.Helper()
	before := req.Header.Clone()
	got := AppendRequest(nil, req, o)
	require.Equal(t, before, req.Header, "the request must not change")
	var want bytes.Buffer
	if req.Write(&want) != nil {
		return
	}
	head, _, _ := bytes.Cut(want.Bytes(), []byte("\r\n\r\n"))
	require.Equal(t, string(head)+"\r\n\r\n", string(got))
	// A blank in the query goes out as it is, with net/http too: the target is the
	// caller's to check.
	if strings.Contains(o.Target, " ") {
		return
	}
	if CheckHeader(req.Header) == nil && httpguts.ValidHeaderFieldName(req.Method) {
		requireParses(t, got, req)
	}
}

// requireParses: a checked header arrives as it is, nothing added and nothing lost.
func requireParses(t *testing.T, head []byte, req *http.Request) {
	t.Helper()
	got, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	for name := range req.Header {
		canonical := http.CanonicalHeaderKey(name)
		if canonical != name && (canonical == "Host" || canonical == "Content-Length" || canonical == "Transfer-Encoding" || canonical == "Trailer") {
			return // a second framing line by a name that net/http does not know; sent as is
		}
	}
	require.NoError(t, err, "%q", head)
	require.Equal(t, req.Method, got.Method)
	require.Equal(t, "host.example", got.Host)
	for name, values := range req.Header {
		switch canonical := http.CanonicalHeaderKey(name); canonical {
		case "Host", "User-Agent", "Content-Length", "Transfer-Encoding", "Trailer", "Connection", "Pragma", "Cache-Control":
		default:
			require.True(t, httpguts.ValidHeaderFieldName(name))
			for _, v := range values {
				require.Contains(t, got.Header[canonical], textproto.TrimString(v))
			}
		}
	}
}
