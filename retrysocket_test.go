package keepalive_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// fate is what the server does with the request that is tried.
type fate uint8

const (
	fateClose    fate = iota // reads it and closes
	fateReset                // reads it and resets
	fateHalfLine             // half a status line, then it closes
	fateFail                 // 500
	fateStall                // never a byte
	numFates
)

func (f fate) String() string {
	return [numFates]string{"closes", "resets", "sends half a status line", "answers 500", "stalls"}[f]
}

// retryBody is a kind of request body.
type retryBody struct {
	name string
	// set gives the request its body.
	set        func(*http.Request, string)
	rewindable bool
	untouched  bool // the server is asked first, and does not ask for it
}

func (b retryBody) streams() bool { return b.name != "none" && b.name != "small" }

func retryBodies() []retryBody {
	stream := func(r *http.Request, data string) {
		r.Body, r.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader(data))), int64(len(data))
	}
	return []retryBody{
		{"none", func(*http.Request, string) {}, true, false},
		{"small", func(r *http.Request, data string) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(data[:100])), 100
		}, true, false},
		{"GetBody", func(r *http.Request, data string) {
			stream(r, data)
			r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(data)), nil }
		}, true, false},
		{"stream", stream, false, false},
		{"stream, untouched", func(r *http.Request, data string) {
			stream(r, data)
			r.Header.Set("Expect", "100-continue")
		}, true, true},
	}
}

// TestRetrySocket is the table at RetryPolicy over real sockets: how often the
// server sees a request, with which body, and what is known when it fails.
func TestRetrySocket(t *testing.T) {
	methods := []struct {
		name, key  string
		idempotent bool
	}{
		{"GET", "", true},
		{"HEAD", "", true},
		{"PUT", "", true},
		{"DELETE", "", true},
		{"QUERY", "", true},
		{"POST", "", false},
		{"PATCH", "", false},
		{"POST", "Idempotency-Key", true},
		{"PATCH", "X-Idempotency-Key", true},
	}
	for f := range numFates {
		for _, m := range methods {
			for _, b := range retryBodies() {
				for _, reused := range []bool{true, false} {
					name := fmt.Sprintf("%v/%s %s/%s/reused %v", f, m.name, m.key, b.name, reused)
					t.Run(name, func(t *testing.T) {
						r := retryTry{fate: f, body: b, reused: reused, head: m.name == http.MethodHead}
						r.run(t, m.name, m.key, m.idempotent)
					})
				}
			}
		}
	}
}

// retryTry is one row of the table.
type retryTry struct {
	fate         fate
	body         retryBody
	reused, head bool
}

func (r retryTry) run(t *testing.T, method, key string, idempotent bool) {
	t.Helper()
	data := strings.Repeat("0123456789abcdef", 40<<10/16)
	srv := faultserver.New(t, r.serve)
	expect := time.Minute
	if r.fate == fateStall {
		expect = time.Millisecond
	}
	tr := open(t, keepalive.WithExpectContinueTimeout(expect))
	warmed := 0
	if r.reused {
		warmed = 1
		require.NoError(t, question{url: srv.URL + "/warm", id: "warm"}.own(t.Context(), tr))
	}
	ctx := t.Context()
	if r.fate == fateStall {
		ctx = keepalive.ContextWithOptions(ctx, keepalive.ResponseHeaderTimeout(20*time.Millisecond))
	}
	req, err := http.NewRequestWithContext(ctx, method, srv.URL+"/try", http.NoBody)
	require.NoError(t, err)
	r.body.set(req, data)
	if key != "" {
		req.Header.Set(key, "k")
	}
	want := fnv.New64a()
	if sent := req.Body; sent != http.NoBody {
		_, _ = io.WriteString(want, data[:req.ContentLength])
	}
	resp, err := tr.RoundTrip(req)

	again := r.reused && (r.fate == fateClose || r.fate == fateReset) && idempotent && r.body.rewindable
	seen := 1
	if again {
		seen = 2
	}
	require.Equal(t, seen, srv.Times(method, "/try"), "times that the server saw it: %v", err)
	require.EqualValues(t, seen-1, tr.Stats().Retries)
	require.EqualValues(t, warmed+1, tr.Stats().Requests)
	switch {
	case again:
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.Equal(t, fmt.Sprint(want.Sum64()), resp.Header.Get("X-Sum"), "the body of the second attempt")
		require.NoError(t, resp.Body.Close())
	case r.fate == fateFail:
		require.NoError(t, err)
		require.Equal(t, http.StatusInternalServerError, resp.StatusCode)
		require.NoError(t, resp.Body.Close())
	default:
		require.Error(t, err)
		require.NoError(t, r.check(err))
		require.Zero(t, tr.Stats().Open)
	}
}

// serve answers a second attempt, and leaves the first to its fate.
func (r retryTry) serve(x *faultserver.Exchange) {
	expects := x.Request.Header.Get("Expect") != ""
	if x.Request.URL.Path == "/warm" {
		echoID(x)
		return
	}
	if x.ReqIndex == 0 && x.ConnIndex == 1 { // the attempt behind a reused one
		if expects {
			x.Write("HTTP/1.1 100 Continue\r\n\r\n")
		}
		body, _ := x.ReadBody()
		sum := fnv.New64a()
		_, _ = sum.Write(body)
		answer := faultserver.Response(http.StatusOK, "", fmt.Sprint("X-Sum: ", sum.Sum64()))
		x.Write(answer)
		return
	}
	if !expects {
		_, _ = x.ReadBody()
	}
	switch r.fate {
	case fateClose:
		x.Close()
	case fateReset:
		x.Reset()
	case fateHalfLine:
		x.Write(halfLine)
		x.CloseWrite()
		x.AwaitClose()
	case fateFail:
		x.Reply(http.StatusInternalServerError, "")
	case fateStall:
		x.AwaitClose()
	case numFates:
	}
}

const halfLine = "HTTP/1.1 20"

// check returns what is wrong with the error of a request that was sent once.
func (r retryTry) check(err error) error {
	ke, ok := errors.AsType[*keepalive.Error](err)
	if !ok {
		return fmt.Errorf("%w: is no *Error", err)
	}
	ended := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
	idle := errors.Is(err, keepalive.ErrServerClosedIdle)
	var right bool
	switch r.fate {
	case fateClose, fateReset:
		right = ended && idle == r.reused && ke.BytesRead == 0 && !ke.Timeout()
	case fateHalfLine:
		right = errors.Is(err, io.ErrUnexpectedEOF) && !idle && ke.BytesRead == int64(len(halfLine)) && !ke.Timeout()
	case fateStall:
		right = errors.Is(err, keepalive.ErrResponseHeaderTimeout) && !idle && ke.BytesRead == 0 && ke.Timeout()
	case fateFail, numFates:
	}
	switch {
	case !right:
		return fmt.Errorf("%w: is wrong for a server that %v: %d bytes read", err, r.fate, ke.BytesRead)
	case ke.Phase != keepalive.PhaseHeader && (!r.body.streams() || ke.Phase != keepalive.PhaseWrite):
		// The end may overtake the goroutine that has sent the body.
		return fmt.Errorf("%w: is in phase %v", err, ke.Phase)
	case ke.Reused != r.reused, ke.Served != map[bool]int{true: 1}[r.reused], (ke.IdleTime > 0) != r.reused:
		return fmt.Errorf("%w: reused %v, served %d, idle for %v", err, ke.Reused, ke.Served, ke.IdleTime)
	case ke.Attempts != 1:
		return fmt.Errorf("%w: %d attempts", err, ke.Attempts)
	case ke.BytesWritten == 0, ke.Age < ke.IdleTime, ke.RemoteAddr == "":
		return fmt.Errorf("%w: %d bytes written, age %v, to %q", err, ke.BytesWritten, ke.Age, ke.RemoteAddr)
	}
	return nil
}

// TestRetrySocketIsBounded: a server that swallows a request on connections that
// had all been idle as long sees it once more on a fresh one, not on each of
// them; and a policy that always says yes has an end too.
func TestRetrySocketIsBounded(t *testing.T) {
	for _, tt := range []struct {
		name, method string
		always       bool
		seen         int
	}{
		{"idempotent", http.MethodGet, false, 2},
		{"other", http.MethodPost, false, 1},
		{"always", http.MethodPost, true, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const warm = 5
			hold := make(chan struct{})
			srv := faultserver.New(t, func(x *faultserver.Exchange) {
				if x.ReqIndex == 0 && x.ConnIndex < warm {
					<-hold
					echoID(x)
					return
				}
				_, _ = x.ReadBody()
				x.Close() // fresh connections too
			})
			policy := keepalive.DefaultRetryPolicy()
			if tt.always {
				policy.Retry = func(keepalive.RetryInfo) bool { return true }
			}
			tr := open(t, keepalive.WithRetryPolicy(policy))
			warming := make(chan error, warm)
			for i := range warm {
				go func() { warming <- question{url: srv.URL + "/warm", id: fmt.Sprint(i)}.own(t.Context(), tr) }()
			}
			srv.WaitRequests(warm)
			close(hold)
			for range warm {
				require.NoError(t, <-warming)
			}
			// Idle all alike, they are all dropped with the first one.
			eventually(t, func() bool { return tr.Stats().Idle == warm })
			_, _, err := question{method: tt.method, url: srv.URL + "/try"}.ask(t.Context(), tr)
			require.Error(t, err)
			ke, ok := errors.AsType[*keepalive.Error](err)
			require.True(t, ok)
			require.Equal(t, tt.seen, ke.Attempts)
			require.Equal(t, tt.seen == 1, ke.Reused)
			require.Equal(t, tt.seen, srv.Times(tt.method, "/try"))
		})
	}
}

// TestRetrySocketWithinTheDeadline: what is left of the request's time holds
// for the second attempt too.
func TestRetrySocketWithinTheDeadline(t *testing.T) {
	second := make(chan struct{})
	srv := faultserver.New(t, func(x *faultserver.Exchange) {
		switch {
		case x.Request.URL.Path == "/warm":
			echoID(x)
		case x.ConnIndex == 0:
			x.Close()
		default:
			close(second)
			x.AwaitClose()
		}
	})
	tr := open(t)
	require.NoError(t, question{url: srv.URL + "/warm", id: "warm"}.own(t.Context(), tr))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-second
		cancel()
	}()
	_, _, err := question{url: srv.URL + "/try"}.ask(ctx, tr)
	require.ErrorIs(t, err, context.Canceled)
	ke, ok := errors.AsType[*keepalive.Error](err)
	require.True(t, ok)
	require.Equal(t, 2, ke.Attempts)
	require.False(t, ke.Reused)
	require.Equal(t, 2, srv.Times(http.MethodGet, "/try"))
}
