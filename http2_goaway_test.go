package keepalive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	h2 "golang.org/x/net/http2"

	"github.com/keepalive-http/keepalive/internal/rawhttp2"
)

// onceBody is a request body that cannot be sent again, and counts its closes.
type onceBody struct {
	io.Reader
	read   atomic.Int64
	closed atomic.Int64
	late   atomic.Int64 // reads after Close
}

func newOnceBody(s string) *onceBody { return &onceBody{Reader: strings.NewReader(s)} }

func (b *onceBody) Read(p []byte) (int, error) {
	if b.closed.Load() > 0 {
		b.late.Add(1)
		return 0, errors.New("read after Close")
	}
	b.read.Add(1)
	return b.Reader.Read(p)
}

func (b *onceBody) Close() error {
	b.closed.Add(1)
	return nil
}

// kinds are requests that differ in whether they can be sent again.
var kinds = []struct {
	name string
	make func(w *h2net) *http.Request
	// rewindable: the whole of it can be sent again when it has been sent.
	rewindable, idempotent bool
	body                   string
}{
	{"GET", func(w *h2net) *http.Request { return w.request(http.MethodGet, nil) }, true, true, ""},
	{"POST, small", func(w *h2net) *http.Request {
		return w.request(http.MethodPost, strings.NewReader("small"))
	}, true, false, "small"},
	{"POST with GetBody", func(w *h2net) *http.Request {
		return w.request(http.MethodPost, bytes.NewReader([]byte(big)))
	}, true, false, big},
	{"POST that cannot be rewound", func(w *h2net) *http.Request {
		return w.request(http.MethodPost, newOnceBody("once"))
	}, false, false, "once"},
	{"PUT that cannot be rewound", func(w *h2net) *http.Request {
		return w.request(http.MethodPut, newOnceBody("once"))
	}, false, true, "once"},
}

var big = strings.Repeat("0123456789abcdef", 2<<10)

// request makes a request for /.
func (w *h2net) request(method string, body io.Reader) *http.Request {
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+"/", body)
	require.NoError(w.t, err)
	return req
}

// closedOnce checks that the body of a request was closed once.
func closedOnce(t *testing.T, req *http.Request) {
	t.Helper()
	if b, ok := req.Body.(*onceBody); ok {
		require.Equal(t, int64(1), b.closed.Load(), "request body closes")
		require.Zero(t, b.late.Load(), "reads after that")
	}
}

// echo answers with the request's body.
func echo(c *rawhttp2.Conn, r *rawhttp2.Request) { c.Answer(r.ID, string(r.Body)) }

// TestHTTP2GoAway: what the server has not looked at is sent again, whatever
// its method; what it has goes on.
func TestHTTP2GoAway(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			script := notOnTheFirst(func(c *rawhttp2.Conn, r *rawhttp2.Request) { c.GoAway(r.ID-2, h2.ErrCodeNo) })
			overHTTP2(t, script, func(t *testing.T, w *h2net) {
				var below sync.WaitGroup
				below.Go(func() { w.want("/below") })
				synctest.Wait()
				req := kind.make(w)
				got, err := roundTrip(w.tr, req)
				if kind.rewindable {
					require.NoError(t, err)
					require.Equal(t, kind.body, got)
					require.Equal(t, 2, w.Dials())
				} else {
					var e *Error
					require.ErrorAs(t, err, &e)
					require.Equal(t, 1, e.Attempts)
					require.ErrorContains(t, err, "GOAWAY")
				}
				closedOnce(t, req)
				require.Equal(t, 1, w.tr.Stats().Hosts[w.url+port(w.url)].InUse, "the one below goes on")
				below.Wait()
				synctest.Wait()
				require.Equal(t, map[CloseReason]uint64{CloseServerRequest: 1}, w.tr.Stats().Closed)
			})
		})
	}
}

func port(url string) string {
	if strings.HasPrefix(url, "https") {
		return ":443"
	}
	return ":80"
}

// TestHTTP2GoAwayBeforeTheBody: a body that has not been touched need not be
// rewound.
func TestHTTP2GoAwayBeforeTheBody(t *testing.T) {
	script := func(conn int) rawhttp2.Script {
		return rawhttp2.Script{
			Head: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
				if conn == 0 && r.Path == "/" {
					c.GoAway(r.ID-2, h2.ErrCodeNo)
				} else if r.Path == "/" {
					c.Head(r.ID, "100", false)
				}
			},
			Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
				if conn > 0 {
					echo(c, r)
				} else {
					c.Answer(r.ID, r.Path)
				}
			},
		}
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		w.want("/first")
		req := w.request(http.MethodPost, newOnceBody("once"))
		req.Header.Set("Expect", "100-continue")
		got, err := roundTrip(w.tr, req)
		require.NoError(t, err)
		require.Equal(t, "once", got)
		closedOnce(t, req)
	}, WithExpectContinueTimeout(time.Hour))
}

func TestHTTP2GoAwayWhileIdle(t *testing.T) {
	overHTTP2(t, plain(), func(t *testing.T, w *h2net) {
		w.want("/")
		w.conn(0).GoAway(1, h2.ErrCodeNo)
		synctest.Wait()
		require.Equal(t, map[CloseReason]uint64{CloseServerRequest: 1}, w.tr.Stats().Closed)
		require.Zero(t, w.Open())
		w.want("/")
		require.Equal(t, 2, w.Dials())
		require.Zero(t, w.tr.Stats().StaleChecks)
	})
}

// TestHTTP2GoAwayUnderLoad: a server that lets no connection have more than a
// hundred requests loses none, and no more connections are opened than needed.
func TestHTTP2GoAwayUnderLoad(t *testing.T) {
	const each = 100
	script := func(int) rawhttp2.Script {
		const last = 2*each - 1
		return rawhttp2.Script{
			Head: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
				if r.ID == last {
					c.GoAway(last, h2.ErrCodeNo)
				}
			},
			Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
				if r.ID <= last {
					time.AfterFunc(10*time.Millisecond, func() { c.Answer(r.ID, string(r.Body)) })
				}
			},
		}
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		var next atomic.Int64
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				for i := next.Add(1); i <= 2000; i = next.Add(1) {
					body := fmt.Sprint(i)
					if got, err := w.post("/", strings.NewReader(body)); err != nil || got != body {
						t.Errorf("%s: got %q, %v", body, got, err)
					}
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, w.Dials(), 2000/each+1)
		require.LessOrEqual(t, w.MaxOpen(), 3)
	})
}

// TestHTTP2GoAwayAndGone: a server on its way out ends a fresh connection without
// an answer, as Apache does in a reload. What may be repeated is, as it would not be
// had the server said nothing, or named an error.
func TestHTTP2GoAwayAndGone(t *testing.T) {
	ends := map[string]func(*rawhttp2.Conn){
		"NO_ERROR":       func(c *rawhttp2.Conn) { c.GoAway(1<<31-1, h2.ErrCodeNo) },
		"INTERNAL_ERROR": func(c *rawhttp2.Conn) { c.GoAway(1<<31-1, h2.ErrCodeInternal) },
		"nothing":        func(*rawhttp2.Conn) {},
	}
	for name, end := range ends {
		for _, kind := range kinds {
			t.Run(name+" "+kind.name, func(t *testing.T) {
				script := func(conn int) rawhttp2.Script {
					return rawhttp2.Script{Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
						if conn > 0 {
							echo(c, r)
							return
						}
						end(c)
						c.Close()
					}}
				}
				overHTTP2(t, script, func(t *testing.T, w *h2net) {
					req := kind.make(w)
					got, err := roundTrip(w.tr, req)
					if name == "NO_ERROR" && kind.idempotent && kind.rewindable {
						require.NoError(t, err)
						require.Equal(t, kind.body, got)
						require.Equal(t, 2, w.Dials())
						require.Equal(t, uint64(1), w.tr.Stats().Retries)
					} else {
						require.Error(t, err)
						require.Equal(t, 1, w.Dials())
					}
					closedOnce(t, req)
				})
			})
		}
	}
}

// TestHTTP2GoAwayAtOnce: a server that takes nothing is not dialed for ever.
func TestHTTP2GoAwayAtOnce(t *testing.T) {
	script := func(int) rawhttp2.Script {
		return rawhttp2.Script{Head: func(c *rawhttp2.Conn, _ *rawhttp2.Request) { c.GoAway(0, h2.ErrCodeNo) }, Request: nothing}
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := w.get("/"); err == nil {
					t.Error("no error")
				}
			})
		}
		wg.Wait()
		require.LessOrEqual(t, w.Dials(), 30)
	})
}

// TestHTTP2NotTaken: a connection that takes no more before the first request
// is on it. Such attempts are counted until it has brought an answer.
func TestHTTP2NotTaken(t *testing.T) {
	for _, served := range []bool{false, true} {
		t.Run(fmt.Sprint("served ", served), func(t *testing.T) {
			script := func(conn int) rawhttp2.Script {
				s := rawhttp2.Script{}
				if !served {
					s.Start = func(c *rawhttp2.Conn) { c.GoAway(0, h2.ErrCodeNo) }
				}
				return s
			}
			overHTTP2(t, script, func(t *testing.T, w *h2net) {
				if served {
					w.want("/")
				}
				leased := 0
				ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) {
					if leased++; served && leased == 1 {
						w.conn(0).GoAway(1, h2.ErrCodeNo)
					}
					synctest.Wait()
				}})
				_, err := fetch(ctx, w.tr, http.MethodPost, w.url+"/")
				s := w.tr.Stats()
				if served {
					require.NoError(t, err)
					require.Equal(t, uint64(1), s.StaleChecks)
					require.Zero(t, s.Retries)
					require.Equal(t, map[CloseReason]uint64{CloseServerRequest: 1}, s.Closed)
					return
				}
				require.ErrorContains(t, err, "not usable")
				require.Equal(t, 3, w.Dials())
				require.Equal(t, uint64(2), s.Retries)
				require.Equal(t, map[CloseReason]uint64{CloseServerRequest: 3}, s.Closed)
			})
		})
	}
}

// TestHTTP2NotTakenByOneThatLives: what another request did to a connection is no
// attempt of those that share it, though it has brought no answer.
func TestHTTP2NotTakenByOneThatLives(t *testing.T) {
	script := func(int) rawhttp2.Script {
		return rawhttp2.Script{Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
			if r.Path != "/bad" {
				time.AfterFunc(time.Second, func() { c.Answer(r.ID, r.Path) })
			}
		}}
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		var first sync.WaitGroup
		first.Go(func() { w.want("/first") })
		synctest.Wait()
		first.Go(func() {
			if _, err := w.post("/bad", nil); err == nil {
				t.Error("no error")
			}
		})
		synctest.Wait()
		leased := 0
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) {
			if leased++; leased == 1 {
				w.conn(0).Reset(3, h2.ErrCodeProtocol)
			}
			synctest.Wait()
		}})
		_, err := fetch(ContextWithOptions(ctx, NoRetry()), w.tr, http.MethodPost, w.url+"/")
		require.NoError(t, err)
		require.Equal(t, 2, leased)
		require.Equal(t, uint64(1), w.tr.Stats().StaleChecks)
		first.Wait()
	})
}

// TestHTTP2RequestThatCannotBeSent: nothing is wrong with the connection.
func TestHTTP2RequestThatCannotBeSent(t *testing.T) {
	overHTTP2(t, plain(h2.Setting{ID: h2.SettingMaxHeaderListSize, Val: 400}), func(t *testing.T, w *h2net) {
		w.want("/")
		synctest.Wait()
		req := w.request(http.MethodGet, nil)
		req.Header.Set("X-Large", strings.Repeat("x", 1000))
		_, err := roundTrip(w.tr, req)
		require.ErrorContains(t, err, "header list larger")
		require.Zero(t, w.tr.Stats().Retries)
		w.want("/")
		require.Equal(t, 1, w.Dials())
	})
}

func nothing(*rawhttp2.Conn, *rawhttp2.Request) {}

// TestHTTP2RefusedStream: a stream that is refused is tried again, whatever its
// method, and not for ever.
func TestHTTP2RefusedStream(t *testing.T) {
	for _, kind := range kinds {
		for _, times := range []int{1, 2, 100} {
			t.Run(fmt.Sprint(kind.name, " ", times), func(t *testing.T) {
				var refused atomic.Int64
				script := func(int) rawhttp2.Script {
					return rawhttp2.Script{Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
						if refused.Add(1) <= int64(times) {
							c.Reset(r.ID, h2.ErrCodeRefusedStream)
							return
						}
						echo(c, r)
					}}
				}
				overHTTP2(t, script, func(t *testing.T, w *h2net) {
					refused.Store(0)
					req := kind.make(w)
					got, err := roundTrip(w.tr, req)
					closedOnce(t, req)
					if kind.rewindable && times <= 2 {
						require.NoError(t, err)
						require.Equal(t, kind.body, got)
						require.Equal(t, 1, w.Dials(), "nothing is wrong with the connection")
						return
					}
					var e *Error
					require.ErrorAs(t, err, &e)
					require.True(t, isRefused(err), "%v", err)
					want := 3
					if !kind.rewindable {
						want = 1
					}
					require.Equal(t, want, e.Attempts)
					require.Equal(t, int64(want), refused.Load())
				})
			})
		}
	}
}

// TestHTTP2RefusedAtTheLimit: where no other connection may be dialed a request
// that was refused goes over the one that there is, to its last attempt.
func TestHTTP2RefusedAtTheLimit(t *testing.T) {
	var refused atomic.Int64
	script := func(conn int) rawhttp2.Script {
		s := hanging(conn)
		answer := s.Request
		s.Request = func(c *rawhttp2.Conn, r *rawhttp2.Request) {
			if r.Path == "/refused" && refused.Add(1) <= 2 {
				c.Reset(r.ID, h2.ErrCodeRefusedStream)
				return
			}
			answer(c, r)
		}
		return s
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		refused.Store(0)
		w.want("/")
		stop := w.hang()
		w.want("/refused")
		require.Equal(t, uint64(2), w.tr.Stats().Retries)
		stop()
	}, WithMaxConnsPerHost(1), WithAcquireTimeout(time.Minute))
}

// TestHTTP2StreamErrors: any other reset is the answer, and nothing is wrong
// with the connection.
func TestHTTP2StreamErrors(t *testing.T) {
	for _, code := range []h2.ErrCode{h2.ErrCodeInternal, h2.ErrCodeCancel, h2.ErrCodeEnhanceYourCalm, h2.ErrCodeNo} {
		t.Run(code.String(), func(t *testing.T) {
			script := func(int) rawhttp2.Script {
				return rawhttp2.Script{Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
					switch r.Path {
					case "/reset":
						c.Reset(r.ID, code)
					case "/body":
						c.Head(r.ID, "200", false)
						c.Data(r.ID, "begin", false)
						c.Reset(r.ID, code)
					default:
						c.Answer(r.ID, r.Path)
					}
				}}
			}
			overHTTP2(t, script, func(t *testing.T, w *h2net) {
				w.want("/")
				for _, tt := range []struct {
					path  string
					phase Phase
				}{{"/reset", PhaseHeader}, {"/body", PhaseBody}} {
					_, err := w.get(tt.path)
					var e *Error
					require.ErrorAs(t, err, &e)
					require.Equal(t, tt.phase, e.Phase)
					require.Equal(t, 1, e.Attempts)
					require.False(t, e.Timeout())
					got, ok := errors.AsType[streamError](err)
					require.True(t, ok, "%v", err)
					require.Equal(t, uint32(code), got.Code)
					w.want("/")
				}
				require.Equal(t, 1, w.Dials())
				require.Zero(t, w.tr.Stats().Retries)
			})
		})
	}
}

// notOnTheFirst makes a server that answers "/below" after 10 s, and whose first
// connection does refuse with any other request.
func notOnTheFirst(refuse func(c *rawhttp2.Conn, r *rawhttp2.Request)) func(conn int) rawhttp2.Script {
	return func(conn int) rawhttp2.Script {
		return rawhttp2.Script{Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
			switch {
			case r.Path == "/below":
				time.AfterFunc(10*time.Second, func() { c.Answer(r.ID, r.Path) })
			case conn == 0:
				refuse(c, r)
			default:
				echo(c, r)
			}
		}}
	}
}

// TestHTTP2Objection: a peer that saw an error in the protocol gets no more on that
// connection, for net/http would refuse it. What is under way there goes on, and
// what is idempotent is sent again (golang/go#47635).
func TestHTTP2Objection(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			script := notOnTheFirst(func(c *rawhttp2.Conn, r *rawhttp2.Request) { c.Reset(r.ID, h2.ErrCodeProtocol) })
			overHTTP2(t, script, func(t *testing.T, w *h2net) {
				var below sync.WaitGroup
				below.Go(func() { w.want("/below") })
				synctest.Wait()
				req := kind.make(w)
				got, err := roundTrip(w.tr, req)
				if kind.rewindable && kind.idempotent {
					require.NoError(t, err)
					require.Equal(t, kind.body, got)
				} else {
					var e *Error
					require.ErrorAs(t, err, &e)
					require.Equal(t, 1, e.Attempts)
				}
				closedOnce(t, req)
				_, err = fetch(ContextWithOptions(t.Context(), NoRetry()), w.tr, http.MethodGet, w.url)
				require.NoError(t, err)
				require.Equal(t, 2, w.Dials())
				below.Wait()
				synctest.Wait()
				require.Equal(t, map[CloseReason]uint64{CloseReadError: 1}, w.tr.Stats().Closed)
			})
		})
	}
}

// TestHTTP2ConnectionLost: with requests in flight, some of which may be sent
// again.
func TestHTTP2ConnectionLost(t *testing.T) {
	for _, how := range []string{"close", "reset"} {
		for _, kind := range kinds {
			for _, fresh := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, fresh %v", how, kind.name, fresh), func(t *testing.T) {
					var served []*rawhttp2.Request
					script := func(conn int) rawhttp2.Script {
						return rawhttp2.Script{Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
							switch {
							case r.Path != "/" || conn > 0:
								echo(c, r)
							default:
								served = append(served, r)
							}
						}}
					}
					overHTTP2(t, script, func(t *testing.T, w *h2net) {
						served = nil
						if !fresh {
							_, err := w.get("/first")
							require.NoError(t, err)
							time.Sleep(time.Second)
						}
						req := kind.make(w)
						type result struct {
							got string
							err error
						}
						done := make(chan result)
						go func() {
							got, err := roundTrip(w.tr, req)
							done <- result{got, err}
						}()
						synctest.Wait()
						require.Len(t, served, 1)
						if how == "close" {
							w.conn(0).Close()
						} else {
							w.Conns()[0].Peer().Reset()
						}
						r := <-done
						closedOnce(t, req)
						synctest.Wait()
						s := w.tr.Stats()
						require.Equal(t, s.Opened, uint64(s.Open)+s.TotalClosed())
						require.Zero(t, s.InUse)
						require.Equal(t, uint64(1), s.Closed[CloseReadError], "%v", s.Closed)
						if !fresh && kind.idempotent && kind.rewindable {
							require.NoError(t, r.err)
							require.Equal(t, kind.body, r.got)
							return
						}
						var e *Error
						require.ErrorAs(t, r.err, &e)
						require.Equal(t, 1, e.Attempts)
						require.Equal(t, !fresh, e.Reused)
						require.Equal(t, !fresh, errors.Is(r.err, ErrServerClosedIdle), "%v", r.err)
						if how == "close" {
							require.ErrorIs(t, r.err, io.ErrUnexpectedEOF)
						} else {
							require.ErrorIs(t, r.err, syscall.ECONNRESET)
						}
						require.Equal(t, 1, w.Dials())
					})
				})
			}
		}
	}
}

// TestHTTP2LostAfterAnInterimAnswer: whatever the policy says, a request is not
// repeated of whose answer something was read.
func TestHTTP2LostAfterAnInterimAnswer(t *testing.T) {
	var sent atomic.Int64
	script := func(int) rawhttp2.Script {
		return rawhttp2.Script{
			Head: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
				if r.Method == http.MethodPost {
					c.Head(r.ID, "100", false)
				}
			},
			Request: func(c *rawhttp2.Conn, r *rawhttp2.Request) {
				if r.Method != http.MethodPost {
					c.Answer(r.ID, r.Path)
					return
				}
				sent.Add(1)
				c.Close()
			},
		}
	}
	overHTTP2(t, script, func(t *testing.T, w *h2net) {
		sent.Store(0)
		w.want("/")
		req := w.request(http.MethodPost, strings.NewReader("pay"))
		req.Header.Set("Expect", "100-continue")
		_, err := roundTrip(w.tr, req)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.NotErrorIs(t, err, ErrServerClosedIdle)
		require.Equal(t, int64(1), sent.Load())
	}, WithRetryPolicy(RetryPolicy{MaxRetries: 2, Retry: func(RetryInfo) bool { return true }}))
}

// TestHTTP2LostBeforeTheFirstRequest: the cause is named, and nobody dials for
// ever.
func TestHTTP2LostBeforeTheFirstRequest(t *testing.T) {
	overHTTP2(t, func(int) rawhttp2.Script {
		return rawhttp2.Script{Head: func(c *rawhttp2.Conn, _ *rawhttp2.Request) { c.Close() }, Request: nothing}
	}, func(t *testing.T, w *h2net) {
		_, err := w.get("/")
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.NotErrorIs(t, err, ErrServerClosedIdle)
		require.Equal(t, 1, w.Dials())
	})
}
