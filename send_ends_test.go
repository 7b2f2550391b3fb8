package keepalive

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

var errAtEnd = errors.New("the checksum does not match")

// failingEnd has an error where its end should be.
type failingEnd struct{ io.Reader }

func (f failingEnd) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err == io.EOF {
		err = errAtEnd
	}
	return n, err
}

// failingClose cannot be closed without an error.
type failingClose struct{ io.Reader }

func (failingClose) Close() error { return errAtEnd }

// TestBodyIsReadAndClosedForItsErrors: what follows the last announced byte, and
// Close, may say that the body was not the right one.
func TestBodyIsReadAndClosedForItsErrors(t *testing.T) {
	text := func() io.Reader { return strings.NewReader("0123456789") }
	for _, tt := range []struct {
		name   string
		body   io.Reader
		length int64
		want   error
	}{
		{"an error at the end", failingEnd{text()}, 10, errAtEnd},
		{"longer by another read", io.MultiReader(text(), text()), 10, ErrRequestBody},
		{"an error of Close", failingClose{text()}, 10, errAtEnd},
		{"an error of Close, in chunks", failingClose{text()}, -1, errAtEnd},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				whole := false
				n.Serve(t, "a:80", func(c *netfake.Conn) {
					p, err := io.ReadAll(c)
					whole = strings.HasSuffix(string(p), "\r\n0\r\n\r\n")
					require.NoError(t, err)
				})
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://a/", tt.body)
				require.NoError(t, err)
				req.ContentLength = tt.length
				_, err = tr.RoundTrip(req)
				require.ErrorIs(t, err, tt.want)
				require.ErrorIs(t, err, ErrRequestBody)
				synctest.Wait()
				require.False(t, whole, "the server must not take it for the whole")
			})
		})
	}
}

// pollingBody has nothing to give at first.
type pollingBody struct {
	empty int
	io.Reader
}

func (b *pollingBody) Read(p []byte) (int, error) {
	if b.empty--; b.empty >= 0 {
		return 0, nil
	}
	return b.Reader.Read(p)
}

func TestBodyMayHaveNothingToGiveForAWhile(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://a/", &pollingBody{1000, strings.NewReader("text")})
		require.NoError(t, err)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		_ = resp.Body.Close()
	})
}

const refusal = "HTTP/1.1 431 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

// TestAnswerBeforeTheHeadWasRead: on a connection that holds nothing the server
// reads no more until its answer is taken.
func TestAnswerBeforeTheHeadWasRead(t *testing.T) {
	for name, body := range map[string]string{"GET": "", "POST": strings.Repeat("x", 1000)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr, err := New(WithDialContext(func(context.Context, string, string) (net.Conn, error) {
					client, server := net.Pipe()
					go func() {
						_, _ = io.ReadFull(server, make([]byte, 16))
						_, _ = io.WriteString(server, refusal)
						_ = server.Close()
					}()
					return client, nil
				}))
				require.NoError(t, err)
				defer tr.Close()
				req, err := http.NewRequestWithContext(t.Context(), name, "http://a/", strings.NewReader(body))
				require.NoError(t, err)
				resp, err := tr.RoundTrip(req)
				require.NoError(t, err)
				require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, resp.StatusCode)
				_ = resp.Body.Close()
			})
		})
	}
}

// TestAnswerBeforeALargeHeadWasRead is the same on a socket, which holds some.
func TestAnswerBeforeALargeHeadWasRead(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	defer func() {
		_ = l.Close()
		<-done
	}()
	answered := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.ReadFull(c, make([]byte, 1000))
		_, _ = io.WriteString(c, refusal)
		<-answered
	}()
	tr, err := New()
	require.NoError(t, err)
	defer tr.Close()
	defer close(answered)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Addr().String(), nil)
	require.NoError(t, err)
	req.Header.Set("X-Large", strings.Repeat("x", 32<<20))
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, resp.StatusCode)
	_ = resp.Body.Close()
}

func TestHookOfADialThatHangs(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		release := make(chan struct{})
		defer close(release)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		g := &traceGuard{running: make(chan struct{}, 1)}
		go g.begin(&g.dns, func() { <-release })
		synctest.Wait()
		start := time.Now()
		g.end(ctx)
		require.Equal(t, time.Second, time.Since(start))
	})
}

// TestWroteRequestWhenTheBodyStaysHere: once for each attempt.
func TestWroteRequestWhenTheBodyStaysHere(t *testing.T) {
	for status, want := range map[string]int{"401 Unauthorized": 1, "417 Expectation Failed": 2, "": 1} {
		t.Run(status, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				reply(n, t, "a:80", func(_, _ int, r *http.Request) string {
					if r.Header.Get("Expect") == "" {
						return ok("")
					}
					if status == "" {
						return ""
					}
					return "HTTP/1.1 " + status + "\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
				})
				wrote := 0
				ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
					WroteRequest: func(i httptrace.WroteRequestInfo) {
						require.NoError(t, i.Err)
						wrote++
					},
				})
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://a/", strings.NewReader("text"))
				require.NoError(t, err)
				req.Header.Set("Expect", "100-continue")
				resp, err := tr.RoundTrip(req)
				require.Equal(t, status == "", err != nil)
				if err == nil {
					_ = resp.Body.Close()
				}
				synctest.Wait()
				require.Equal(t, want, wrote)
			})
		})
	}
}

func TestErrorIsANetError(t *testing.T) {
	for _, tt := range []struct {
		cause     error
		temporary bool
	}{
		{context.DeadlineExceeded, true},
		{ErrResponseHeaderTimeout, true},
		{&net.DNSError{IsTemporary: true}, true},
		{io.EOF, false},
		{context.Canceled, false},
	} {
		var err error = &Error{Err: tt.cause}
		ne, ok := err.(net.Error)
		require.True(t, ok)
		require.Equal(t, tt.temporary, ne.Temporary(), "%v", tt.cause) //nolint:staticcheck // SA1019: in use
		require.Equal(t, tt.temporary, (&url.Error{Err: err}).Temporary())
	}
}
