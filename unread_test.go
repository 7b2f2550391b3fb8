package keepalive_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

// endless is a server whose answer never ends. ended is told when it hears that
// its client is gone.
func endless(t *testing.T) (url string, ended <-chan struct{}) {
	t.Helper()
	gone := make(chan struct{}, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "x")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, gone
}

// A request that is over ends its connection although nobody reads its body, or
// closes it: the server hears of it, and the connection's place is free.
func TestUnreadBodyEndsWithItsRequest(t *testing.T) {
	for _, tt := range []struct {
		name  string
		opts  []keepalive.Option
		end   func(cancel context.CancelFunc)
		cause error
	}{
		{"cancel", nil, func(cancel context.CancelFunc) { cancel() }, context.Canceled},
		{
			"request timeout",
			[]keepalive.Option{keepalive.WithRequestTimeout(100 * time.Millisecond)},
			func(context.CancelFunc) {}, keepalive.ErrRequestTimeout,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url, ended := endless(t)
			tr := open(t, tt.opts...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			require.NoError(t, err)
			resp, err := tr.RoundTrip(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			_, err = resp.Body.Read(make([]byte, 1))
			require.NoError(t, err)
			tt.end(cancel)
			<-ended
			eventually(t, func() bool { return tr.Stats().InUse == 0 })
			_, err = resp.Body.Read(make([]byte, 1))
			require.ErrorIs(t, err, tt.cause)
			var e *keepalive.Error
			require.True(t, errors.As(err, &e))
			require.Equal(t, keepalive.PhaseBody, e.Phase)
		})
	}
}

// lockedBody is like the request bodies of some SDKs: Close waits for Read.
type lockedBody struct {
	mu sync.Mutex
	io.Reader
}

func (b *lockedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Reader.Read(p)
}

func (b *lockedBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return nil
}

// RoundTrip returns although neither Read nor Close of the request body do, as
// net/http's does not.
func TestCancelWithABodyThatHangs(t *testing.T) {
	tr := open(t)
	begun := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = r.Body.Read(make([]byte, 1))
		close(begun)
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	defer srv.Close()
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, srv.URL, &lockedBody{Reader: pr})
	require.NoError(t, err)
	failed := make(chan error, 1)
	go func() {
		_, err := tr.RoundTrip(req)
		failed <- err
	}()
	_, err = pw.Write([]byte("begin"))
	require.NoError(t, err)
	<-begun
	cancel()
	require.ErrorIs(t, <-failed, context.Canceled)
	require.Zero(t, tr.Stats().InUse)
	require.NoError(t, pw.Close()) // ends the Read, and with it the sender
}
