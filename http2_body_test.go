package keepalive

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/rawhttp2"
)

// onSockets runs f with a real server that speaks HTTP/2 over TLS, and one that
// does without, each with a Transport whose books must balance.
func onSockets(t *testing.T, h http.HandlerFunc, f func(t *testing.T, tr *Transport, url string), opts ...Option) {
	t.Helper()
	for _, secure := range []bool{true, false} {
		t.Run(map[bool]string{true: "TLS", false: "h2c"}[secure], func(t *testing.T) {
			srv := httptest.NewUnstartedServer(h)
			opt := onlyH2C()
			if secure {
				opt = withTestTLS()
				srv.EnableHTTP2 = true
				srv.StartTLS()
			} else {
				srv.Config.Protocols = new(http.Protocols)
				srv.Config.Protocols.SetUnencryptedHTTP2(true)
				srv.Start()
			}
			tr, err := New(append([]Option{opt}, opts...)...)
			require.NoError(t, err)
			defer srv.Close()
			defer func() {
				require.NoError(t, tr.Close())
				s := tr.Stats()
				require.Equal(t, s.Opened, s.TotalClosed())
				require.Empty(t, s.Hosts)
			}()
			f(t, tr, srv.URL)
			requireSoon(t, func() bool { return tr.Stats().InUse == 0 }, "every lease is given back")
		})
	}
}

func requireSoon(t *testing.T, cond func() bool, msg string) {
	t.Helper()
	require.Eventually(t, cond, 10*time.Second, time.Millisecond, msg)
}

// TestHTTP2LargeBodies: ten megabytes each way, four at a time.
func TestHTTP2LargeBodies(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 640<<10)
	want := sha256.Sum256(data)
	onSockets(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) },
		func(t *testing.T, tr *Transport, url string) {
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					var body io.Reader = bytes.NewReader(data)
					if i%2 == 0 {
						body = io.MultiReader(body) // of unknown length
					}
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
					if err != nil {
						t.Error(err)
						return
					}
					resp, err := tr.RoundTrip(req)
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					sum := sha256.New()
					n, err := io.Copy(sum, resp.Body)
					if err != nil || [32]byte(sum.Sum(nil)) != want {
						t.Errorf("%d: %d bytes, %v", i, n, err)
					}
				})
			}
			wg.Wait()
			require.Equal(t, uint64(1), tr.Stats().Dials)
		})
}

func TestHTTP2Trailers(t *testing.T) {
	onSockets(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Announced")
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("Announced", r.Trailer.Get("From-Client"))
		w.Header().Set(http.TrailerPrefix+"Unannounced", "too")
	}, func(t *testing.T, tr *Transport, url string) {
		for _, body := range []string{"x", big} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
			require.NoError(t, err)
			req.Trailer = http.Header{"From-Client": nil}
			req.Body = io.NopCloser(io.MultiReader(strings.NewReader(body), readerFunc(func([]byte) (int, error) {
				req.Trailer.Set("From-Client", "hello")
				return 0, io.EOF
			})))
			resp, err := tr.RoundTrip(req)
			require.NoError(t, err)
			require.Contains(t, resp.Trailer, "Announced")
			got, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.Equal(t, body, string(got))
			require.Equal(t, http.Header{"Announced": {"hello"}, "Unannounced": {"too"}}, resp.Trailer)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestHTTP2AnswersWithoutBody: they need no Close, and what belongs to the head
// is there.
func TestHTTP2AnswersWithoutBody(t *testing.T) {
	script := func(int) rawhttp2.Script {
		return rawhttp2.Script{Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
			switch r.Path {
			case "/head":
				c.Head(r.ID, "200", true, "Content-Length: 42")
			case "/204":
				c.Head(r.ID, "204", true)
			case "/304":
				c.Head(r.ID, "304", true, "Content-Length: 42")
			case "/empty":
				c.Head(r.ID, "200", true, "Content-Length: 0")
			case "/nothing":
				c.Head(r.ID, "200", true)
			case "/missing":
				c.Head(r.ID, "200", true, "Content-Length: 42")
			case "/short":
				c.Head(r.ID, "200", false, "Content-Length: 42")
				c.Data(r.ID, "short", true)
			}
		}}
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		for _, tt := range []struct {
			method, path string
			length       int64
		}{
			{"HEAD", "/head", 42},
			{"GET", "/204", 0},
			{"GET", "/304", 42},
			{"GET", "/empty", 0},
			{"GET", "/nothing", 0},
			{"POST", "/204", 0},
		} {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, w.url+tt.path, nil)
			require.NoError(t, err)
			resp, err := w.tr.RoundTrip(req)
			require.NoError(t, err, tt.path)
			require.Zero(t, w.tr.Stats().InUse, tt.path)
			require.Equal(t, http.NoBody, resp.Body, tt.path)
			require.Equal(t, tt.length, resp.ContentLength, tt.path)
		}
		for _, path := range []string{"/missing", "/short"} {
			_, err := w.get(path)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF, path)
		}
		require.Equal(t, 1, w.Dials())
	})
}

func TestHTTP2Gzip(t *testing.T) {
	onSockets(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") != "gzip" {
			_, _ = io.WriteString(w, "plain")
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, "packed")
		_ = z.Close()
	}, func(t *testing.T, tr *Transport, url string) {
		resp, err := tr.Client().Get(url)
		require.NoError(t, err)
		got, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "packed", string(got))
		require.True(t, resp.Uncompressed)
		require.Zero(t, tr.Stats().InUse)
		require.NoError(t, resp.Body.Close())
		_, err = resp.Body.Read(make([]byte, 1))
		require.Error(t, err)
	})
	onSockets(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("Accept-Encoding"))
	},
		func(t *testing.T, tr *Transport, url string) {
			got, err := fetch(t.Context(), tr, http.MethodGet, url)
			require.NoError(t, err)
			require.Empty(t, got)
		}, WithDisableCompression(true))
}

// TestHTTP2Interim: 1xx answers are told, 100 starts the body.
func TestHTTP2Interim(t *testing.T) {
	script := func(int) rawhttp2.Script {
		return rawhttp2.Script{
			Head: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
				c.Head(r.ID, "103", false, "Link: </style.css>")
				if r.Path == "/refuse" {
					c.Head(r.ID, "417", true)
				} else {
					c.Head(r.ID, "100", false)
				}
			},
			Request: echo,
		}
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		tr, url := w.tr, w.url
		var got []int
		continued := false
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
				got = append(got, code)
				return nil
			},
			Got100Continue: func() { continued = true },
		})
		body := newOnceBody("the body")
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
		require.NoError(t, err)
		req.Header.Set("Expect", "100-continue")
		answer, err := roundTrip(tr, req)
		require.NoError(t, err)
		require.Equal(t, "the body", answer)
		require.Equal(t, []int{103, 100}, got)
		require.True(t, continued)
		closedOnce(t, req)

		req, err = http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/refuse", newOnceBody("the body"))
		require.NoError(t, err)
		req.Header.Set("Expect", "100-continue")
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusExpectationFailed, resp.StatusCode)
		refused, _ := req.Body.(*onceBody)
		require.Zero(t, refused.read.Load(), "the server has refused it")
		closedOnce(t, req)
		require.Equal(t, uint64(1), tr.Stats().Dials)
	}, WithExpectContinueTimeout(time.Hour))
}

// TestHTTP2EarlyAnswer: the server answers before it has the body, and does not
// want the rest.
func TestHTTP2EarlyAnswer(t *testing.T) {
	for _, code := range []int{http.StatusOK, http.StatusRequestEntityTooLarge} {
		onSockets(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.CopyN(io.Discard, r.Body, 1<<10)
			w.WriteHeader(code)
			_, _ = io.WriteString(w, r.Header.Get("X-Id"))
		}, func(t *testing.T, tr *Transport, url string) {
			for i := range 15 {
				body := &onceBody{Reader: strings.NewReader(strings.Repeat("x", 8<<20))}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
				require.NoError(t, err)
				req.Header.Set("X-Id", fmt.Sprint(i))
				resp, err := tr.RoundTrip(req)
				require.NoError(t, err)
				require.Equal(t, code, resp.StatusCode)
				got, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				require.Equal(t, fmt.Sprint(i), string(got))
				closedOnce(t, req)
				reads := body.read.Load()
				runtime.Gosched()
				require.Equal(t, reads, body.read.Load(), "it is not read any more")
			}
			require.Equal(t, uint64(1), tr.Stats().Dials)
		})
	}
}

// TestHTTP2Duplex: both bodies flow at the same time.
func TestHTTP2Duplex(t *testing.T) {
	onSockets(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		p := make([]byte, 100)
		for {
			n, err := r.Body.Read(p)
			_, _ = w.Write(p[:n])
			_ = http.NewResponseController(w).Flush()
			if err != nil {
				return
			}
		}
	}, func(t *testing.T, tr *Transport, url string) {
		pr, pw := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, pr)
		require.NoError(t, err)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		for i := range 100 {
			msg := fmt.Sprintf("message %2d", i)
			_, err := io.WriteString(pw, msg)
			require.NoError(t, err)
			got := make([]byte, len(msg))
			_, err = io.ReadFull(resp.Body, got)
			require.NoError(t, err)
			require.Equal(t, msg, string(got))
		}
		require.NoError(t, pw.Close())
		_, err = resp.Body.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
	})
}

// TestHTTP2CloseEarly: the stream ends, the connection is kept.
func TestHTTP2CloseEarly(t *testing.T) {
	ended := make(chan error, 1)
	onSockets(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			_, _ = io.WriteString(w, r.URL.Path)
			return
		}
		p := make([]byte, 32<<10)
		for {
			if _, err := w.Write(p); err != nil {
				ended <- err
				return
			}
		}
	}, func(t *testing.T, tr *Transport, url string) {
		for range 20 {
			resp, err := tr.Client().Get(url)
			require.NoError(t, err)
			_, err = io.ReadFull(resp.Body, make([]byte, 100))
			require.NoError(t, err)
			require.Equal(t, 1, tr.Stats().InUse)
			require.NoError(t, resp.Body.Close())
			require.NoError(t, resp.Body.Close())
			require.Zero(t, tr.Stats().InUse, "given back at once")
			_, err = resp.Body.Read(make([]byte, 1))
			require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
			require.Error(t, <-ended, "the handler is told")
			require.Equal(t, "/small", mustGet(t, tr, url+"/small"))
		}
		require.Equal(t, uint64(1), tr.Stats().Dials)
	})
}

// TestHTTP2CloseWhileReading: Close ends a Read that waits.
func TestHTTP2CloseWhileReading(t *testing.T) {
	onSockets(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, func(t *testing.T, tr *Transport, url string) {
		for range 50 {
			resp, err := tr.Client().Get(url)
			require.NoError(t, err)
			read := make(chan error)
			go func() {
				_, err := resp.Body.Read(make([]byte, 1))
				read <- err
			}()
			require.NoError(t, resp.Body.Close())
			require.ErrorIs(t, <-read, http.ErrBodyReadAfterClose)
		}
		require.Equal(t, uint64(1), tr.Stats().Dials)
	})
}

// TestHTTP2ErrorsStay: a Read after one that failed fails alike.
func TestHTTP2ErrorsStay(t *testing.T) {
	overHTTP2(t, hanging, func(t *testing.T, w *h2net) {
		resp, err := w.tr.Client().Get(w.url + "/body")
		require.NoError(t, err)
		_, err = io.ReadAll(resp.Body)
		require.ErrorIs(t, err, ErrBodyReadTimeout)
		_, again := resp.Body.Read(make([]byte, 1))
		require.Equal(t, err, again)
		require.NoError(t, resp.Body.Close())
		_, err = resp.Body.Read(make([]byte, 1))
		require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	}, WithBodyReadTimeout(time.Second))
}

// TestHTTP2BodyOfTheUserFails: its error is the request's, the connection is
// kept, and nothing is tried again.
func TestHTTP2BodyOfTheUserFails(t *testing.T) {
	overHTTP2(t, plain(), func(t *testing.T, w *h2net) {
		w.want("/")
		req := w.request(http.MethodPut, io.MultiReader(strings.NewReader(big), readerFunc(func([]byte) (int, error) { return 0, errOurs })))
		_, err := roundTrip(w.tr, req)
		require.ErrorIs(t, err, ErrRequestBody)
		require.ErrorIs(t, err, errOurs)
		w.want("/")
		require.Equal(t, 1, w.Dials())
		require.Zero(t, w.tr.Stats().Retries)
	})
}

// TestHTTP2LostWithAPipe: a body that says something when it is closed has not
// failed.
func TestHTTP2LostWithAPipe(t *testing.T) {
	script := func(int) rawhttp2.Script {
		return rawhttp2.Script{Head: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
			if r.Method == http.MethodPost {
				c.Close()
			}
		}}
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		w.want("/")
		pr, pw := io.Pipe()
		defer pw.Close()
		_, err := w.post("/", pr)
		require.ErrorIs(t, err, ErrServerClosedIdle)
		require.NotErrorIs(t, err, ErrRequestBody)
	})
}

// TestHTTP2BodyThatHangs: a cancelled request does not wait for a body whose
// Read does not end.
func TestHTTP2BodyThatHangs(t *testing.T) {
	overHTTP2(t, plain(), func(t *testing.T, w *h2net) {
		hang := make(chan struct{})
		defer func() {
			close(hang)
			synctest.Wait()
		}()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		req := w.request(http.MethodPost, readerFunc(func([]byte) (int, error) {
			<-hang
			return 0, io.EOF
		})).WithContext(ctx)
		start := time.Now()
		_, err := roundTrip(w.tr, req)
		require.ErrorIs(t, err, context.Canceled)
		require.Less(t, time.Since(start), 1100*time.Millisecond)
	})
}

// TestHTTP2OwnAnswers: the answer to one request never reaches another one,
// whatever is cancelled and closed meanwhile.
func TestHTTP2OwnAnswers(t *testing.T) {
	n := 7000
	if os.Getenv("KEEPALIVE_LONG") != "" {
		n = 100000
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, procs := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(procs), func(t *testing.T) {
			runtime.GOMAXPROCS(procs)
			onSockets(t, func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err == nil {
					_, _ = fmt.Fprintf(w, "%s %s%s", r.Header.Get("X-Id"), body, strings.Repeat(".", len(body)*20))
				}
			}, func(t *testing.T, tr *Transport, url string) {
				var next, canceled atomic.Int64
				var wg sync.WaitGroup
				for range 32 {
					wg.Go(func() {
						for i := next.Add(1); i <= int64(n)/2; i = next.Add(1) {
							if !ownAnswer(t, tr, url, i) {
								canceled.Add(1)
							}
						}
					})
				}
				wg.Wait()
				s := tr.Stats()
				t.Logf("%d canceled, %d connections, %d retries, %d stale, closed %v", canceled.Load(), s.Opened, s.Retries,
					s.StaleChecks, maps.Collect(maps.All(s.Closed)))
				require.Positive(t, canceled.Load())
				require.LessOrEqual(t, s.Opened, uint64(20))
			})
		})
	}
}

// ownAnswer makes the i-th request and reports whether it was let go on.
func ownAnswer(t *testing.T, tr *Transport, url string, i int64) bool {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if i%3 == 0 {
		timer := time.AfterFunc(time.Duration(i%97)*20*time.Microsecond, cancel)
		defer timer.Stop()
	}
	id := fmt.Sprint(i)
	want := id + " "
	var body io.Reader
	if i%2 == 0 {
		body = strings.NewReader(id)
		want += id + strings.Repeat(".", 20*len(id))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		t.Error(err)
		return true
	}
	req.Header.Set("X-Id", id)
	resp, err := tr.RoundTrip(req)
	if err == nil {
		defer resp.Body.Close()
		if i%7 == 0 {
			return true
		}
		var got []byte
		got, err = io.ReadAll(resp.Body)
		if err == nil && string(got) != want {
			t.Errorf("%s: got %q", id, got)
		}
	}
	switch {
	case err == nil:
		return true
	case i%3 != 0 || !errors.Is(err, context.Canceled):
		t.Errorf("%s: %v", id, err)
	}
	return false
}
