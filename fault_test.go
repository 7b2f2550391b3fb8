package keepalive_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

// counts returns normal, or long if KEEPALIVE_LONG is set.
func counts(normal, long int) int {
	if os.Getenv("KEEPALIVE_LONG") != "" {
		return long
	}
	return normal
}

// elapse lets real time pass: what is waited for is in the kernel, or on the
// other side of a socket, and gives no sign.
func elapse(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// open returns a Transport whose books must balance at the end of the test.
func open(t *testing.T, opts ...keepalive.Option) *keepalive.Transport {
	t.Helper()
	tr, err := keepalive.New(opts...)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, tr.Close())
		s := tr.Stats()
		require.Zero(t, s.Gauges, "after Close")
		require.Equal(t, s.Opened, s.TotalClosed())
		require.Equal(t, s.Dials, s.Opened+s.DialErrors)
	})
	return tr
}

// question is a request whose answer should be its id.
type question struct {
	method, url, id string
	key             string // Idempotency-Key
	worker          string // X-Worker, for WithPoolKey
	body            io.Reader
}

func (q question) request(ctx context.Context) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, q.method, q.url, q.body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Request-Id", q.id)
	if q.key != "" {
		req.Header.Set("Idempotency-Key", q.key)
	}
	if q.worker != "" {
		req.Header.Set("X-Worker", q.worker)
	}
	return req, nil
}

// ask returns the status and the body of the answer.
func (q question) ask(ctx context.Context, tr http.RoundTripper) (int, string, error) {
	req, err := q.request(ctx)
	if err != nil {
		return 0, "", err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// own fails if the answer is not the question's own.
func (q question) own(ctx context.Context, tr http.RoundTripper) error {
	_, body, err := q.ask(ctx, tr)
	if err == nil && body != q.id {
		err = fmt.Errorf("the answer is %q: %w", body, errNotOwn)
	}
	return err
}

var errNotOwn = errors.New("not the request's own")

// crew calls f for 0 to n-1 with as many workers; none of them may fail. A
// worker ends with its first failure.
func crew(t *testing.T, n, workers int, f func(worker, i int) error) {
	t.Helper()
	var next atomic.Int64
	var all sync.WaitGroup
	errs := make(chan error, workers)
	for w := range workers {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := f(w, i); err != nil {
					errs <- fmt.Errorf("%d: %w", i, err)
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	failed := len(errs)
	for err := range errs {
		t.Errorf("%d of %d workers failed, one with: %v", failed, workers, err)
		return
	}
}

// eventually fails the test if f is not true within ten seconds.
func eventually(t *testing.T, f func() bool, why ...any) {
	t.Helper()
	require.Eventually(t, f, 10*time.Second, time.Millisecond, why...)
}
