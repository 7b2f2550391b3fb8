package keepalive_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// TestEndInEveryPhase ends requests in every phase in every way, with a
// sibling in flight to the same host. It is done by both transports, and what
// http.Client returns must mean the same.
func TestEndInEveryPhase(t *testing.T) {
	t.Parallel()
	for _, p := range phases() {
		for _, e := range endings() {
			t.Run(p.name+"/"+e.name, func(t *testing.T) {
				t.Parallel()
				ours := until(t, p, e, true)
				require.NoError(t, ours.checkOurs(p, e))
				if !e.oursOnly {
					theirs := until(t, p, e, false)
					require.Subset(t, ours.classes(), theirs.classes(), "net/http: %v\nours: %v", theirs.err, ours.err)
					require.Equal(t, theirs.timeout(), ours.timeout(), "Timeout(): net/http: %v\nours: %v", theirs.err, ours.err)
				}
			})
		}
	}
}

// endPhase is where a request is when it ends.
type endPhase struct {
	name string
	want keepalive.Phase
	// script is the server's; nil where it does not come to a request.
	script func(r *phaseRun, x *faultserver.Exchange)
	// trace says by its hooks when the phase is reached; nil where another does.
	trace func(reached func()) *httptrace.ClientTrace
	// settings change the transport.
	settings func(r *phaseRun, tr *http.Transport)
	// silent is a TLS server that accepts and says nothing; body: the request's
	// has no end; expect: the server is asked first; reading: it is in the
	// response's.
	silent, body, expect, reading bool
}

func phases() []endPhase {
	read := func(then string) func(*phaseRun, *faultserver.Exchange) {
		return func(r *phaseRun, x *faultserver.Exchange) {
			_, _ = x.ReadBody()
			x.Write(then)
			if then == "" {
				r.reach()
			}
			x.AwaitClose()
		}
	}
	return []endPhase{
		{
			name: "waiting for a slot", want: keepalive.PhaseAcquire,
			settings: func(_ *phaseRun, tr *http.Transport) { tr.MaxConnsPerHost = 1 },
			trace: func(reached func()) *httptrace.ClientTrace {
				return &httptrace.ClientTrace{GetConn: func(string) { reached() }}
			},
		},
		{
			name: "dialing", want: keepalive.PhaseDial,
			settings: func(r *phaseRun, tr *http.Transport) { tr.DialContext = r.dialOnce },
		},
		{name: "TLS handshake", want: keepalive.PhaseDial, silent: true},
		{
			name: "sending the body", want: keepalive.PhaseWrite, body: true,
			script: func(r *phaseRun, x *faultserver.Exchange) {
				for was := int64(-1); x.Pause(10 * time.Millisecond); {
					now := r.sent.Load()
					if now > 1<<16 && now == was {
						break // nothing moves any more
					}
					was = now
				}
				r.reach()
				x.Hang()
			},
		},
		{
			name: "waiting for 100 Continue", want: keepalive.PhaseHeader, expect: true,
			script: func(_ *phaseRun, x *faultserver.Exchange) { x.AwaitClose() },
			trace: func(reached func()) *httptrace.ClientTrace {
				return &httptrace.ClientTrace{Wait100Continue: reached}
			},
		},
		{name: "waiting for the head", want: keepalive.PhaseHeader, script: read("")},
		{
			name: "inside the head", want: keepalive.PhaseHeader, script: read("HTTP/1.1 200 OK\r\nX-Half: "),
			trace: func(reached func()) *httptrace.ClientTrace {
				return &httptrace.ClientTrace{GotFirstResponseByte: reached}
			},
		},
		{name: "reading the body", want: keepalive.PhaseBody, script: read(lengthHead(1000) + begin), reading: true},
	}
}

// ending is a way to end a request.
type ending struct {
	name string
	// set arms it: end ends the request; nil if that comes by itself.
	set               func(r *phaseRun) (end func())
	is                []error
	timeout, oursOnly bool
}

var errOwnCause = errors.New("a cause of the test's own")

func endings() []ending {
	return []ending{
		{name: "context canceled", is: []error{context.Canceled}, set: func(r *phaseRun) func() {
			ctx, cancel := context.WithCancel(r.ctx)
			r.ctx = ctx
			return cancel
		}},
		{name: "context canceled with cause", is: []error{context.Canceled, errOwnCause}, set: func(r *phaseRun) func() {
			ctx, cancel := context.WithCancelCause(r.ctx)
			r.ctx = ctx
			return func() { cancel(errOwnCause) }
		}},
		{name: "context deadline", is: []error{context.DeadlineExceeded}, timeout: true, set: func(r *phaseRun) func() {
			ctx, cancel := context.WithTimeout(r.ctx, r.limit)
			r.ctx = ctx
			r.t.Cleanup(cancel)
			return nil
		}},
		{name: "Client.Timeout", is: []error{context.DeadlineExceeded}, timeout: true, set: func(r *phaseRun) func() {
			r.client.Timeout = r.limit
			return nil
		}},
		{name: "Request.Cancel", is: []error{context.Canceled}, set: func(r *phaseRun) func() {
			ch := make(chan struct{})
			r.cancel = ch
			return func() { close(ch) }
		}},
		{
			name: "WithRequestTimeout", is: []error{keepalive.ErrRequestTimeout, context.DeadlineExceeded}, timeout: true,
			oursOnly: true, set: func(r *phaseRun) func() {
				r.requestTimeout = r.limit
				return nil
			},
		},
	}
}

// phaseRun is one request that is ended.
type phaseRun struct {
	t     *testing.T
	limit time.Duration // of endings that come by themselves

	reached chan struct{} // closed when the phase is reached
	reach   func()
	over    chan struct{} // closed at the end of the run

	// Set by an ending.
	ctx            context.Context //nolint:containedctx // of one run
	cancel         chan struct{}
	requestTimeout time.Duration

	client *http.Client
	dials  atomic.Int64
	sent   atomic.Int64 // bytes taken from the request body
}

// ended is what came of it.
type ended struct {
	err error
}

// until runs a request with time enough to reach its phase.
func until(t *testing.T, p endPhase, e ending, ours bool) ended {
	t.Helper()
	for limit := 100 * time.Millisecond; limit < 10*time.Second; limit *= 2 {
		r := &phaseRun{
			t: t, limit: limit, reached: make(chan struct{}), over: make(chan struct{}),
			ctx: t.Context(), client: &http.Client{},
		}
		r.reach = sync.OnceFunc(func() { close(r.reached) })
		if got, ok := r.run(p, e, ours); ok {
			return got
		}
	}
	require.FailNow(t, "the phase was never reached")
	return ended{}
}

// dialOnce dials for the sibling; the next one never ends by itself.
func (r *phaseRun) dialOnce(ctx context.Context, network, addr string) (net.Conn, error) {
	if r.dials.Add(1) == 1 {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	r.reach()
	select {
	case <-ctx.Done():
	case <-r.over:
	}
	return nil, errors.New("never")
}

// phaseBody is a request body that counts, without an end or with one.
type phaseBody struct {
	r       *phaseRun
	endless bool
}

func (b phaseBody) Read(p []byte) (int, error) {
	if !b.endless && b.r.sent.Load() > 0 {
		return 0, io.EOF
	}
	n := min(len(p), 1<<10)
	b.r.sent.Add(int64(n))
	return n, nil
}

// loose is closeOnce that may be read after Close, as net/http does.
type loose struct {
	io.Reader
	closed atomic.Int32
}

func (b *loose) Close() error {
	b.closed.Add(1)
	return nil
}

// run makes the request. It is false if it ended before its phase.
func (r *phaseRun) run(p endPhase, e ending, ours bool) (ended, bool) {
	t := r.t
	defer close(r.over)
	end := e.set(r)
	hold := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(hold) })
	defer letGo()
	srv := r.serve(p, hold)

	std := &http.Transport{ExpectContinueTimeout: time.Minute}
	if p.silent {
		std.TLSClientConfig = srv.ClientTLSConfig()
	}
	if p.settings != nil {
		p.settings(r, std)
	}
	var rt http.RoundTripper = std
	var own *keepalive.Transport
	if ours {
		own = open(t, keepalive.FromTransport(std), keepalive.WithRequestTimeout(r.requestTimeout))
		rt = own
	} else {
		t.Cleanup(std.CloseIdleConnections)
	}
	r.client.Transport = rt

	patient := keepalive.ContextWithOptions(t.Context(), keepalive.RequestTimeout(0))
	sibling := make(chan error, 1)
	go func() { sibling <- question{url: srv.URL + "/sibling", id: "sibling"}.own(patient, rt) }()
	srv.WaitRequests(1)

	req, closes := r.request(p, srv.URL, ours)
	done := make(chan error, 1)
	go func() { done <- r.do(req, p.reading) }()
	err, inPhase := r.await(end, done)
	if !inPhase {
		return ended{}, false
	}
	if ours {
		require.EqualValues(t, 1, closes(), "the request body is closed once")
		require.True(t, !p.expect || r.sent.Load() == 0, "nobody asked for the request body")
		s := own.Stats()
		require.Equal(t, 1, s.Open, "only the sibling: %+v", s)
		require.Zero(t, s.Waiting)
		require.Equal(t, p.want == keepalive.PhaseDial, s.Dialing == 1, "a dial is the pool's: %+v", s)
	} else {
		eventually(t, func() bool { return closes() > 0 }, "net/http closes the request body")
	}
	if p.script != nil && !p.body {
		srv.WaitOpen(1)
	}
	letGo()
	require.NoError(t, <-sibling)
	if ours {
		require.NoError(t, question{url: srv.URL + "/after", id: "after"}.own(patient, rt))
		log := srv.Log()
		require.Zero(t, log[len(log)-1].Conn, "the sibling's connection is of use")
	}
	return ended{err}, true
}

func (r *phaseRun) serve(p endPhase, hold <-chan struct{}) *faultserver.Server {
	script := func(x *faultserver.Exchange) {
		switch x.Request.URL.Path {
		case "/sibling":
			<-hold
			echoID(x)
		case "/after":
			echoID(x)
		default:
			if p.script == nil {
				x.AwaitClose() // it should not have come here
				return
			}
			p.script(r, x)
		}
	}
	if !p.silent {
		return faultserver.New(r.t, script)
	}
	return faultserver.NewTLS(r.t, script, faultserver.WithOnAccept(func(index int, raw net.Conn) bool {
		if index == 0 {
			return true
		}
		_, _ = io.ReadFull(raw, make([]byte, 1))
		r.reach()
		_, _ = io.Copy(io.Discard, raw)
		return false
	}))
}

// request makes the request. closes counts how often its body was closed.
func (r *phaseRun) request(p endPhase, url string, ours bool) (req *http.Request, closes func() int32) {
	var body io.ReadCloser
	from := phaseBody{r, p.body}
	if ours {
		strict := &closeOnce{Reader: from, t: r.t}
		body, closes = strict, strict.closed.Load
	} else {
		lax := &loose{Reader: from}
		body, closes = lax, lax.closed.Load
	}
	ctx := r.ctx
	if p.trace != nil {
		ctx = httptrace.WithClientTrace(ctx, p.trace(r.reach))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	require.NoError(r.t, err)
	if p.expect {
		req.Header.Set("Expect", "100-continue")
	}
	if r.cancel != nil {
		req.Cancel = r.cancel //nolint:staticcheck // SA1019: it has to work
	}
	return req, closes
}

// do returns the error of the request, or of its response body.
func (r *phaseRun) do(req *http.Request, reading bool) error {
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if reading {
		if _, err = io.ReadFull(resp.Body, make([]byte, len(begin))); err == nil {
			r.reach()
		}
	}
	_, err = io.ReadAll(resp.Body)
	return err
}

// await waits for the phase, ends the request and waits for it. inPhase is
// false if it had not come so far.
func (r *phaseRun) await(end func(), done <-chan error) (err error, inPhase bool) {
	const watchdog = 5 * time.Second
	timer := time.NewTimer(watchdog)
	defer timer.Stop()
	if end != nil {
		select {
		case <-r.reached:
		case err := <-done:
			require.FailNow(r.t, "the request ended before its phase", "%v", err)
		case <-timer.C:
			require.FailNow(r.t, "the phase was not reached")
		}
		end()
		timer.Reset(watchdog)
	} else {
		timer.Reset(r.limit + watchdog)
	}
	select {
	case err = <-done:
	case <-timer.C:
		require.FailNow(r.t, "the request did not end")
	}
	require.Error(r.t, err)
	select {
	case <-r.reached:
		return err, true
	default:
		return err, false
	}
}

// timeout is what url.Error, or the body's error, says of itself.
func (e ended) timeout() bool {
	t, ok := e.err.(interface{ Timeout() bool })
	return ok && t.Timeout()
}

func (e ended) classes() (list []string) {
	for name, target := range map[string]error{
		"Canceled": context.Canceled, "DeadlineExceeded": context.DeadlineExceeded,
		"os.ErrDeadlineExceeded": os.ErrDeadlineExceeded, "own cause": errOwnCause,
		"EOF": io.EOF, "UnexpectedEOF": io.ErrUnexpectedEOF,
	} {
		if errors.Is(e.err, target) {
			list = append(list, name)
		}
	}
	if _, ok := e.err.(*url.Error); ok {
		list = append(list, "*url.Error")
	}
	slices.Sort(list)
	return list
}

// checkOurs checks what is to be said of the ending.
func (e ended) checkOurs(p endPhase, with ending) error {
	for _, target := range with.is {
		if !errors.Is(e.err, target) {
			return fmt.Errorf("%w: is no %w", e.err, target)
		}
	}
	if e.timeout() != with.timeout {
		return fmt.Errorf("%w: Timeout() is %v", e.err, e.timeout())
	}
	if _, ok := e.err.(*url.Error); ok == p.reading {
		return fmt.Errorf("%w: is a %T", e.err, e.err)
	}
	if with.name == "Client.Timeout" { // which may keep the text only
		return nil
	}
	ke, ok := errors.AsType[*keepalive.Error](e.err)
	switch {
	case !ok:
		return fmt.Errorf("%w: is no *Error", e.err)
	case ke.Phase != p.want:
		return fmt.Errorf("%w: is in phase %v, want %v", e.err, ke.Phase, p.want)
	case (ke.BytesRead > 0) != (p.reading || p.name == "inside the head"):
		return fmt.Errorf("%w: has read %d", e.err, ke.BytesRead)
	case (ke.BytesWritten > 0) != (ke.Phase >= keepalive.PhaseWrite):
		return fmt.Errorf("%w: has written %d", e.err, ke.BytesWritten)
	case ke.Attempts != 1 || ke.Reused:
		return fmt.Errorf("%w: %d attempts, reused %v", e.err, ke.Attempts, ke.Reused)
	}
	return nil
}

// TestWriteTimeoutWithinRequestTimeout: a head that nobody reads is not taken
// for a request that took too long.
func TestWriteTimeoutWithinRequestTimeout(t *testing.T) {
	for _, s := range schemes {
		t.Run(s.name, func(t *testing.T) {
			srv := s.start(t, func(x *faultserver.Exchange) { x.AwaitClose() })
			relay := faultserver.NewRelay(t, srv.Addr)
			scheme, _, _ := strings.Cut(srv.URL, ":")
			tr := open(t, trusting(srv, keepalive.WithWriteTimeout(50*time.Millisecond), keepalive.WithRequestTimeout(time.Minute))...)
			req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				GotConn: func(httptrace.GotConnInfo) { relay.Freeze() },
			}), http.MethodGet, scheme+"://"+relay.Addr, http.NoBody)
			require.NoError(t, err)
			req.Header.Set("X-Big", strings.Repeat("x", 32<<20))
			_, err = tr.RoundTrip(req)
			require.ErrorIs(t, err, keepalive.ErrWriteTimeout)
			require.NotErrorIs(t, err, keepalive.ErrRequestTimeout)
			ke, ok := errors.AsType[*keepalive.Error](err)
			require.True(t, ok)
			require.Equal(t, keepalive.PhaseWrite, ke.Phase)
		})
	}
}
