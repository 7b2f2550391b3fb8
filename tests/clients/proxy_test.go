package clients_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// front runs a reverse proxy whose transport is under test, in front of h, and
// returns it with a client of its own: only connections to h count.
func (s *subject) front(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	return proxyTo(t, s, s.serve(t, "http", h).URL, nil)
}

func proxyTo(t *testing.T, rt http.RoundTripper, to string, change func(*httputil.ReverseProxy)) *httptest.Server {
	t.Helper()
	target, err := url.Parse(to)
	require.NoError(t, err)
	p := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: rt,
		ErrorLog:  quietLog,
	}
	if change != nil {
		change(p)
	}
	return elsewhere(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Lets the request body go on behind the head of the answer.
		_ = http.NewResponseController(w).EnableFullDuplex()
		p.ServeHTTP(w, r)
	}))
}

// TestReverseProxyEvents: each event arrives before the next is sent.
func TestReverseProxyEvents(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		next := make(chan string)
		front := s.front(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for event := range next {
				_, _ = fmt.Fprintf(w, "data: %s\n\n", event)
				_ = http.NewResponseController(w).Flush()
			}
		}))
		got := make(chan string)
		go func() {
			defer close(got)
			resp, err := front.Client().Get(front.URL)
			if err != nil {
				got <- err.Error()
				return
			}
			defer resp.Body.Close()
			for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
				if lines.Text() != "" {
					got <- lines.Text()
				}
			}
		}()
		for i := range 20 {
			event := fmt.Sprint("event ", i)
			next <- event
			require.Equal(t, "data: "+event, receive(t, got, event))
		}
		close(next)
		require.Empty(t, receive(t, got, "the end"))
	})
}

// TestReverseProxyTrailers: of the request, and of the answer.
func TestReverseProxyTrailers(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		backend := s.serve(t, "http", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "Announced")
			_, _ = io.Copy(w, r.Body)
			w.Header().Set("Announced", "answer to "+r.Trailer.Get("Asked"))
			w.Header().Set(http.TrailerPrefix+"Surprise", "yes")
		}))
		front := proxyTo(t, s, backend.URL, func(p *httputil.ReverseProxy) {
			rewrite := p.Rewrite
			p.Rewrite = func(r *httputil.ProxyRequest) {
				rewrite(r)
				r.Out.Trailer = r.In.Trailer // the values come behind the body
			}
		})
		for range 2 {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, front.URL, stream{strings.NewReader("body")})
			require.NoError(t, err)
			req.Trailer = http.Header{"Asked": {"question"}}
			resp, err := front.Client().Do(req)
			require.Equal(t, "body", text(t, resp, err))
			require.Equal(t, http.Header{"Announced": {"answer to question"}, "Surprise": {"yes"}}, resp.Trailer)
		}
	})
}

// TestReverseProxyClientLeaves: when the client goes, so does the request to
// the backend, before and in the answer.
func TestReverseProxyClientLeaves(t *testing.T) {
	t.Parallel()
	for _, answered := range []bool{false, true} {
		t.Run(fmt.Sprint("answered: ", answered), func(t *testing.T) {
			t.Parallel()
			both(t, 1, func(t *testing.T, s *subject) {
				begun, ended := make(chan struct{}), make(chan error, 1)
				front := s.front(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if answered {
						_, _ = io.WriteString(w, "so far")
						_ = http.NewResponseController(w).Flush()
					}
					close(begun)
					<-r.Context().Done()
					ended <- r.Context().Err()
				}))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				left := make(chan error, 1)
				go func() {
					req, _ := http.NewRequestWithContext(ctx, http.MethodGet, front.URL, nil)
					resp, err := front.Client().Do(req)
					if err == nil {
						_, err = io.ReadAll(resp.Body)
						_ = resp.Body.Close()
					}
					left <- err
				}()
				receive(t, begun, "the request")
				cancel()
				require.ErrorIs(t, receive(t, left, "the client"), context.Canceled)
				require.ErrorIs(t, receive(t, ended, "the backend"), context.Canceled)
			})
		})
	}
}

// TestReverseProxyStreams: a request body passes piece by piece, and a full
// duplex answer comes back piece by piece while it does.
func TestReverseProxyStreams(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		pieces := make(chan string)
		front := s.front(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			duplex := r.URL.Path == "/duplex"
			if duplex {
				_ = http.NewResponseController(w).EnableFullDuplex()
				_ = http.NewResponseController(w).Flush()
			}
			for lines := bufio.NewScanner(r.Body); lines.Scan(); {
				if !duplex {
					pieces <- lines.Text()
					continue
				}
				_, _ = fmt.Fprintln(w, "echo", lines.Text())
				_ = http.NewResponseController(w).Flush()
			}
		}))
		begin := func(path string) (*io.PipeWriter, chan *http.Response) {
			pr, pw := io.Pipe()
			done := make(chan *http.Response, 1)
			go func() {
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, front.URL+path, pr)
				resp, err := front.Client().Do(req)
				if err != nil {
					_ = pr.CloseWithError(err)
				}
				done <- resp
			}()
			return pw, done
		}

		pw, done := begin("/")
		for i := range 10 {
			_, err := fmt.Fprintln(pw, "piece", i)
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint("piece ", i), receive(t, pieces, "the piece"))
		}
		require.NoError(t, pw.Close())
		resp := receive(t, done, "the answer")
		require.Empty(t, text(t, resp, nil))

		pw, done = begin("/duplex")
		resp = receive(t, done, "the head of the answer")
		defer resp.Body.Close()
		lines := bufio.NewReader(resp.Body)
		for i := range 10 {
			_, err := fmt.Fprintln(pw, "piece", i)
			require.NoError(t, err)
			line, err := lines.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("echo piece %d\n", i), line)
		}
		require.NoError(t, pw.Close())
		_, err := lines.ReadByte()
		require.ErrorIs(t, err, io.EOF)
	})
}

// TestReverseProxyEarlyHints: 103 passes, as often as it comes.
func TestReverseProxyEarlyHints(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		front := s.front(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for _, link := range []string{"</a.css>", "</b.css>"} {
				w.Header().Set("Link", link)
				w.WriteHeader(http.StatusEarlyHints)
			}
			w.Header().Del("Link")
			_, _ = io.WriteString(w, "final")
		}))
		for range 2 {
			var links []string
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
					links = append(links, fmt.Sprint(code, h["Link"]))
					return nil
				},
			})
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, front.URL, nil)
			require.NoError(t, err)
			resp, err := front.Client().Do(req)
			require.Equal(t, "final", text(t, resp, err))
			require.Equal(t, []string{"103 [</a.css>]", "103 [</b.css>]"}, links)
		}
	})
}

// TestReverseProxyDeadBackend: ErrorHandler hears of a backend that refuses
// connections; one that dies in its answer cuts the client's answer off.
func TestReverseProxyDeadBackend(t *testing.T) {
	t.Parallel()
	t.Run("refuses", func(t *testing.T) {
		t.Parallel()
		both(t, 0, func(t *testing.T, s *subject) {
			failed := make(chan error, 1)
			front := proxyTo(t, s, "http://"+refusing(t), func(p *httputil.ReverseProxy) {
				p.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
					failed <- err
					w.WriteHeader(http.StatusBadGateway)
				}
			})
			resp, err := front.Client().Post(front.URL, "text/plain", strings.NewReader("body"))
			require.Empty(t, text(t, resp, err))
			require.Equal(t, http.StatusBadGateway, resp.StatusCode)
			require.ErrorIs(t, receive(t, failed, "ErrorHandler"), syscall.ECONNREFUSED)
		})
	})
	t.Run("dies", func(t *testing.T) {
		t.Parallel()
		both(t, 2, func(t *testing.T, s *subject) {
			front := s.front(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, "so far")
				if r.URL.Path == "/die" {
					_ = http.NewResponseController(w).Flush()
					panic(http.ErrAbortHandler)
				}
			}))
			resp, err := front.Client().Get(front.URL + "/die")
			require.NoError(t, err)
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			require.Equal(t, "so far", string(got))
			resp, err = front.Client().Get(front.URL)
			require.Equal(t, "so far", text(t, resp, err))
		})
	})
}

// TestReverseProxyLargeBodies: both ways, of known and of unknown length.
func TestReverseProxyLargeBodies(t *testing.T) {
	t.Parallel()
	both(t, 1, func(t *testing.T, s *subject) {
		big := noise(16 << 20)
		front := s.front(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sum := sha256.New()
			n, _ := io.Copy(sum, r.Body)
			w.Header().Set("Sum", fmt.Sprintf("%d %x", n, sum.Sum(nil)))
			if r.ContentLength >= 0 {
				w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			}
			_, _ = w.Write(big)
		}))
		for _, body := range []io.Reader{bytes.NewReader(big), stream{bytes.NewReader(big)}} {
			resp, err := front.Client().Post(front.URL, "application/octet-stream", body)
			got := text(t, resp, err)
			require.True(t, got == string(big), "%d bytes came back of %d", len(got), len(big))
			require.Equal(t, fmt.Sprintf("%d %x", len(big), sha256.Sum256(big)), resp.Header.Get("Sum"))
		}
	})
}
