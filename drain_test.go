package keepalive_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// begin is the part of a body that is read before Close.
const begin = "begin"

// drainedFramings are ways to send a body: first has the head and begin, rest
// the n bytes that follow and the end.
var drainedFramings = []struct {
	name  string
	parts func(n int) (first, rest string)
}{
	{"content-length", func(n int) (first, rest string) {
		return lengthHead(len(begin)+n) + begin, strings.Repeat("r", n)
	}},
	{"chunked", func(n int) (first, rest string) {
		return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(begin), chunk(strings.Repeat("r", n)) + "0\r\n\r\n"
	}},
	{"chunked and trailer", func(n int) (first, rest string) {
		return "HTTP/1.1 200 OK\r\nTrailer: X-End\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(begin),
			chunk(strings.Repeat("r", n)) + "0\r\nX-End: yes\r\n\r\n"
	}},
	{"gzip", func(n int) (first, rest string) {
		// What is not read need not unpack.
		return lengthHead(len(packedBegin())+n, "Content-Encoding: gzip") + packedBegin(), strings.Repeat("r", n)
	}},
}

func lengthHead(n int, lines ...string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n", strings.Join(append(lines, ""), "\r\n"), n)
}

// chunk returns data as one chunk, nothing for none.
func chunk(data string) string {
	if data == "" {
		return ""
	}
	return fmt.Sprintf("%x\r\n%s\r\n", len(data), data)
}

// packedBegin is the start of a gzip stream that unpacks to begin.
var packedBegin = sync.OnceValue(func() string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, begin)
	_ = w.Flush()
	return b.String()
})

// schemes are the starters of a server, and what a client of it needs.
var schemes = []struct {
	name  string
	start func(testing.TB, func(*faultserver.Exchange), ...faultserver.Option) *faultserver.Server
}{{"plain", faultserver.New}, {"TLS", faultserver.NewTLS}}

// trusting returns the options for a client of srv.
func trusting(srv *faultserver.Server, opts ...keepalive.Option) []keepalive.Option {
	if strings.HasPrefix(srv.URL, "https:") {
		opts = append(opts, keepalive.WithTLSConfig(srv.ClientTLSConfig()))
	}
	return opts
}

// restArrival is when the rest of a closed body comes.
type restArrival uint8

const (
	restAfterClose restArrival = iota
	restBeforeClose
	// restSplit: the last five bytes after Close, the others before it.
	restSplit
	restNever
)

// TestDrain closes bodies early, with a rest of every size: a short one keeps
// the connection, a long or late one ends it, and Close waits for neither.
func TestDrain(t *testing.T) {
	for _, rest := range []struct {
		name  string
		bytes int
		when  restArrival
		kept  bool
	}{
		{"nothing", 0, restAfterClose, true},
		{"few bytes that are there", 100, restBeforeClose, true},
		{"65 KB that are there", 65 << 10, restBeforeClose, false},
		{"the limit, in two parts", 64 << 10, restSplit, true},
		{"more than the limit, in two parts", 64<<10 + 6, restSplit, false},
		{"60 KB", 60 << 10, restAfterClose, true},
		{"the limit", 64 << 10, restAfterClose, true},
		{"one byte more than the limit", 64<<10 + 1, restAfterClose, false},
		{"65 KB", 65 << 10, restAfterClose, false},
		{"1 MB", 1 << 20, restAfterClose, false},
		{"never comes", 100, restNever, false},
	} {
		for _, f := range drainedFramings {
			for _, s := range schemes {
				t.Run(rest.name+"/"+f.name+"/"+s.name, func(t *testing.T) {
					first, tail := f.parts(rest.bytes)
					begun, sent, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
					letGo := sync.OnceFunc(func() { close(closed) })
					defer letGo()
					srv := s.start(t, func(x *faultserver.Exchange) {
						if x.Request.URL.Path == "/next" {
							echoID(x)
							return
						}
						x.Write(first)
						early := len(tail)
						switch rest.when {
						case restBeforeClose:
						case restAfterClose:
							early = 0
						case restSplit:
							early -= 5
						case restNever:
							x.AwaitClose()
							return
						}
						if early > 0 {
							<-begun
							x.Write(tail[:early])
							close(sent)
						}
						<-closed
						x.Write(tail[early:])
					})
					opts := trusting(srv)
					if rest.when != restNever {
						// The time limit is not what is tried: the rest may take long to be
						// scheduled, but it does not come before Close has returned.
						opts = append(opts, keepalive.WithDrainLimit(64<<10, 10*time.Second))
					}
					tr := open(t, opts...)
					resp := beginGet(t, tr, srv.URL+"/first")
					if rest.when == restBeforeClose || rest.when == restSplit {
						close(begun)
						<-sent
					}
					start := time.Now()
					require.NoError(t, resp.Body.Close())
					letGo()
					eventually(t, func() bool { return tr.Stats().InUse == 0 })
					took := time.Since(start)
					stats := tr.Stats()
					if rest.kept {
						require.Equal(t, 1, stats.Idle, "%v", stats.Closed)
						require.Empty(t, stats.Closed)
						require.Equal(t, len(tail) > 0, stats.Drained == 1)
					} else {
						require.Equal(t, map[keepalive.CloseReason]uint64{keepalive.CloseUnreadBody: 1}, stats.Closed)
						require.Zero(t, stats.Drained)
					}
					if rest.when == restNever {
						require.GreaterOrEqual(t, took, 100*time.Millisecond, "the rest was given its time")
					}
					require.Empty(t, resp.Trailer.Get("X-End"), "the response does not change after Close")
					require.NoError(t, question{url: srv.URL + "/next", id: t.Name()}.own(t.Context(), tr))
					require.Equal(t, map[bool]int{true: 1, false: 2}[rest.kept], srv.Accepted())
				})
			}
		}
	}
}

// beginGet reads begin, and no more, of the answer to a GET.
func beginGet(t *testing.T, tr http.RoundTripper, url string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	require.NoError(t, err)
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	got := make([]byte, len(begin))
	_, err = io.ReadFull(resp.Body, got)
	require.NoError(t, err)
	require.Equal(t, begin, string(got))
	return resp
}

// TestBodyAfterClose: a closed body says so, however often and whatever was
// left of it, and its connection is given back once.
func TestBodyAfterClose(t *testing.T) {
	for _, f := range drainedFramings {
		for _, s := range schemes {
			for _, whole := range []bool{true, false} {
				t.Run(fmt.Sprint(f.name, "/", s.name, "/whole ", whole), func(t *testing.T) {
					first, rest := f.parts(10)
					begun := make(chan struct{}, 1)
					srv := s.start(t, func(x *faultserver.Exchange) {
						if whole {
							x.Write(first + rest)
							return
						}
						x.Write(first)
						<-begun
						x.Write(rest)
					})
					defer func() { begun <- struct{}{} }() // should the test end early
					tr := open(t, trusting(srv, keepalive.WithDrainLimit(64<<10, 10*time.Second))...)
					resp := beginGet(t, tr, srv.URL)
					for range 3 {
						require.NoError(t, resp.Body.Close())
						n, err := resp.Body.Read(make([]byte, 10))
						require.Zero(t, n)
						require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
					}
					if !whole {
						begun <- struct{}{}
					}
					eventually(t, func() bool { return tr.Stats().Idle == 1 })
					require.NoError(t, resp.Body.Close())
					require.Equal(t, 1, tr.Stats().Idle)
				})
			}
		}
	}
}

// TestCloseWhileReading: Close from several goroutines ends a Read, whether it
// waits or has just got something.
func TestCloseWhileReading(t *testing.T) {
	for _, s := range schemes {
		for _, silent := range []bool{true, false} {
			t.Run(fmt.Sprint(s.name, "/silent ", silent), func(t *testing.T) {
				srv := s.start(t, func(x *faultserver.Exchange) {
					x.Write(lengthHead(1<<30) + begin)
					for !silent {
						if _, err := io.WriteString(x.Conn, strings.Repeat("r", 1000)); err != nil {
							break
						}
					}
					x.AwaitClose()
				})
				tr := open(t, trusting(srv)...)
				const n = 30
				for range n {
					resp := beginGet(t, tr, srv.URL)
					var all sync.WaitGroup
					reading, ended := make(chan struct{}), make(chan error, 1)
					all.Go(func() {
						if !silent {
							_, _ = resp.Body.Read(make([]byte, 10))
						}
						close(reading)
						_, err := io.Copy(io.Discard, resp.Body)
						ended <- err
					})
					<-reading
					for range 3 {
						all.Go(func() {
							if err := resp.Body.Close(); err != nil {
								t.Error(err)
							}
						})
					}
					all.Wait()
					require.ErrorIs(t, <-ended, http.ErrBodyReadAfterClose)
				}
				eventually(t, func() bool { return tr.Stats().Open == 0 })
				require.Equal(t, map[keepalive.CloseReason]uint64{keepalive.CloseUnreadBody: n}, tr.Stats().Closed)
			})
		}
	}
}

// TestNoBodyGivesTheConnectionBack: where no body can be, nothing has to be
// read or closed.
func TestNoBodyGivesTheConnectionBack(t *testing.T) {
	for _, tt := range []struct{ method, answer string }{
		{http.MethodHead, lengthHead(1 << 30)},
		{http.MethodHead, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{http.MethodHead, "HTTP/1.1 200 OK\r\n\r\n"},
		{http.MethodGet, "HTTP/1.1 204 No Content\r\n\r\n"},
		{http.MethodGet, "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"},
		{http.MethodGet, lengthHead(0)},
	} {
		for _, s := range schemes {
			t.Run(fmt.Sprintf("%s %.40q %s", tt.method, tt.answer, s.name), func(t *testing.T) {
				srv := s.start(t, func(x *faultserver.Exchange) { x.Write(tt.answer) })
				tr := open(t, trusting(srv)...)
				for range 3 {
					req, err := http.NewRequestWithContext(t.Context(), tt.method, srv.URL, http.NoBody)
					require.NoError(t, err)
					resp, err := tr.RoundTrip(req)
					require.NoError(t, err)
					require.Equal(t, 1, tr.Stats().Idle, "when RoundTrip returns")
					require.NoError(t, resp.Body.Close())
					require.NoError(t, resp.Body.Close())
					_, err = resp.Body.Read(make([]byte, 1))
					require.True(t, errors.Is(err, io.EOF) || errors.Is(err, http.ErrBodyReadAfterClose), err)
				}
				require.Equal(t, 1, srv.Accepted())
				require.Zero(t, tr.Stats().Drained)
			})
		}
	}
}

// TestLastByteGivesTheConnectionBack: nobody has to see the end to release a
// body that was read whole.
func TestLastByteGivesTheConnectionBack(t *testing.T) {
	for _, f := range drainedFramings[:3] {
		for _, s := range schemes {
			t.Run(f.name+"/"+s.name, func(t *testing.T) {
				first, rest := f.parts(1000)
				begun := make(chan struct{}, 1)
				srv := s.start(t, func(x *faultserver.Exchange) {
					x.Write(first)
					<-begun
					x.Write(rest)
				})
				defer func() { begun <- struct{}{} }()
				tr := open(t, trusting(srv)...)
				resp := beginGet(t, tr, srv.URL)
				require.Equal(t, 1, tr.Stats().InUse)
				begun <- struct{}{}
				_, err := io.ReadFull(resp.Body, make([]byte, 1000))
				require.NoError(t, err)
				require.Equal(t, 1, tr.Stats().Idle, "with the last byte")
				_, err = resp.Body.Read(make([]byte, 1))
				require.Equal(t, io.EOF, err)
				require.NoError(t, resp.Body.Close())
				require.Zero(t, tr.Stats().Drained)
			})
		}
	}
}
