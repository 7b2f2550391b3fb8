//go:build unix

package keepalive_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
)

// big is the size of a large body: more than what sockets and servers hold.
const big = 2 << 20

// tooBig is more than a server wants.
const tooBig = 16 << 20

// pattern returns a body of n bytes, up to tooBig. It must not be changed.
func pattern(n int) []byte { return makePattern()[:n] }

var makePattern = sync.OnceValue(func() []byte {
	return bytes.Repeat([]byte("abcdefghijklmnopqrstuvw"), tooBig/23+1)[:tooBig]
})

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return strconv.Itoa(len(b)) + " " + hex.EncodeToString(h[:])
}

// backend is the Go server behind those that forward. Servers that do not
// forward do the same themselves, as far as they are asked for it:
//
//	/own      answers with X-Request-Id
//	/sum      answers with the length and the SHA-256 of what was sent
//	/big      big bytes, with their length; /chunked: without
//	/text     64 KiB of text, packed by the server if asked
//	/status   answers with the status that the query says
//	/trailer  answers with its path, and the trailer X-Sum
//	/hold     takes some time; answers with how many requests with the same
//	          query it has held at most
//	/upgrade  a WebSocket's handshake, then an echo
type backend struct {
	addr string

	mu       sync.Mutex
	seen     map[string]int // requests by X-Request-Id
	held     map[string]int
	mostHeld map[string]int
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{seen: make(map[string]int), held: make(map[string]int), mostHeld: make(map[string]int)}
	s := httptest.NewServer(b)
	t.Cleanup(s.Close)
	b.addr = s.Listener.Addr().String()
	return b
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/upgrade" {
		b.upgrade(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the answer would be taken for one to the whole body
	}
	id := r.Header.Get("X-Request-Id")
	b.mu.Lock()
	b.seen[id]++
	b.mu.Unlock()
	switch r.URL.Path {
	case "/own":
		_, _ = io.WriteString(w, id)
	case "/sum":
		_, _ = io.WriteString(w, sum(body))
	case "/big":
		w.Header().Set("Content-Type", "application/octet-stream") // nobody packs it
		w.Header().Set("Content-Length", strconv.Itoa(big))
		_, _ = w.Write(pattern(big))
	case "/chunked":
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(pattern(big))
	case "/text":
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write(pattern(64 << 10))
	case "/status":
		code, _ := strconv.Atoi(r.URL.RawQuery)
		w.WriteHeader(code)
	case "/trailer":
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, r.URL.Path)
		w.Header().Set("X-Sum", "1")
	case "/hold":
		_, _ = io.WriteString(w, strconv.Itoa(b.hold(r.URL.RawQuery)))
	default:
		http.NotFound(w, r)
	}
}

// holdTime is long enough for a crowd to come together, and no more than that
// depends on it.
const holdTime = 50 * time.Millisecond

// hold returns how many requests with the same key were held at a time so far.
func (b *backend) hold(key string) int {
	b.mu.Lock()
	b.held[key]++
	b.mostHeld[key] = max(b.mostHeld[key], b.held[key])
	b.mu.Unlock()
	elapse(holdTime)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held[key]--
	return b.mostHeld[key]
}

// websocketAccept is the answer to websocketKey (RFC 6455 section 1.3).
const (
	websocketKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	websocketAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

func (*backend) upgrade(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", "websocket")
	h.Set("Sec-WebSocket-Accept", websocketAccept)
	w.WriteHeader(http.StatusSwitchingProtocols)
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer nc.Close()
	_, _ = io.Copy(nc, rw)
}

// times returns how often a request with id was seen.
func (b *backend) times(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen[id]
}

// door is a way into a server.
type door struct {
	name, url string
	proto     string // of its answers
	opts      []keepalive.Option
	// continues: it says 100 Continue. trailers: it sends them. announces: it
	// tells how long it keeps an idle connection.
	continues, trailers, announces bool
}

// doors returns the ways into r: without TLS, with it, and with HTTP/2.
func (r *running) doors() []door {
	secure := keepalive.WithTLSConfig(&tls.Config{RootCAs: r.roots})
	return []door{
		{name: "HTTP/1.1", url: "http://" + r.plain, proto: "HTTP/1.1"},
		{
			name: "TLS", url: "https://" + r.tls, proto: "HTTP/1.1",
			opts: []keepalive.Option{secure, keepalive.WithProtocols(http1Only())},
		},
		{name: "HTTP/2", url: "https://" + r.tls, proto: "HTTP/2.0", opts: []keepalive.Option{secure}},
	}
}

// h2cDoor is the way into r by HTTP/2 without TLS.
func (r *running) h2cDoor() door {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return door{
		name: "h2c", url: "http://" + r.h2c, proto: "HTTP/2.0",
		opts: []keepalive.Option{keepalive.WithProtocols(p)},
	}
}

// open returns a Transport for the door.
func (d door) open(t *testing.T, opts ...keepalive.Option) *keepalive.Transport {
	t.Helper()
	all := append([]keepalive.Option{keepalive.WithRequestTimeout(20 * time.Second)}, d.opts...)
	return open(t, append(all, opts...)...)
}

// visit sends requests through a door.
type visit struct {
	t  *testing.T
	tr http.RoundTripper
	d  door
}

// send sends req to path and returns the answer with its body, which was read.
func (v visit) send(method, path string, body io.Reader, change ...func(*http.Request)) (*http.Response, []byte) {
	v.t.Helper()
	req, err := http.NewRequestWithContext(v.t.Context(), method, v.d.url+path, body)
	require.NoError(v.t, err)
	for _, f := range change {
		f(req)
	}
	resp, err := v.tr.RoundTrip(req)
	require.NoError(v.t, err, "%s %s", method, path)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	require.NoError(v.t, err, "%s %s", method, path)
	require.Equal(v.t, v.d.proto, resp.Proto)
	return resp, got
}

// ok is send for an answer of 200.
func (v visit) ok(method, path string, body io.Reader, change ...func(*http.Request)) (*http.Response, []byte) {
	v.t.Helper()
	resp, got := v.send(method, path, body, change...)
	require.Equal(v.t, http.StatusOK, resp.StatusCode, "%s %s: %s", method, path, got)
	return resp, got
}

// stream hides what kind of reader it is, so that the body is not in memory.
type stream struct {
	r    io.Reader
	read atomic.Int64
}

func newStream(b []byte) *stream { return &stream{r: bytes.NewReader(b)} }

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.read.Add(int64(n))
	return n, err
}

func withLength(n int64) func(*http.Request) {
	return func(r *http.Request) { r.ContentLength = n }
}

// testExchanges sends requests of every kind through each door, all on one
// connection.
func testExchanges(t *testing.T, doors ...door) {
	t.Helper()
	for _, d := range doors {
		t.Run("exchanges, "+d.name, func(t *testing.T) {
			t.Parallel()
			tr := d.open(t)
			v := visit{t, tr, d}
			for range 2 {
				v.uploads()
				v.downloads()
				v.bodiless()
				v.expects()
			}
			s := tr.Stats()
			require.EqualValues(t, 1, s.Opened, "%+v", s)
			require.Empty(t, s.Closed)
			require.Zero(t, s.Retries)
		})
	}
}

func (v visit) uploads() {
	v.t.Helper()
	for _, n := range []int{0, 1000, big} {
		body := pattern(n)
		_, got := v.ok(http.MethodPost, "/sum", bytes.NewReader(body))
		require.Equal(v.t, sum(body), string(got), "in memory")
		_, got = v.ok(http.MethodPost, "/sum", newStream(body), withLength(int64(n)))
		require.Equal(v.t, sum(body), string(got), "with length")
		_, got = v.ok(http.MethodPost, "/sum", newStream(body))
		require.Equal(v.t, sum(body), string(got), "chunked")
	}
}

func (v visit) downloads() {
	v.t.Helper()
	resp, got := v.ok(http.MethodGet, "/big", nil)
	require.EqualValues(v.t, big, resp.ContentLength)
	require.True(v.t, bytes.Equal(pattern(big), got), "a body with length")
	resp, got = v.ok(http.MethodGet, "/chunked", nil)
	require.EqualValues(v.t, -1, resp.ContentLength)
	require.True(v.t, bytes.Equal(pattern(big), got), "a chunked body")
	resp, got = v.ok(http.MethodGet, "/text", nil)
	require.True(v.t, resp.Uncompressed)
	require.True(v.t, bytes.Equal(pattern(64<<10), got), "unpacked")
	resp, got = v.ok(http.MethodGet, "/text", nil, func(r *http.Request) { r.Header.Set("Accept-Encoding", "gzip") })
	require.Equal(v.t, "gzip", resp.Header.Get("Content-Encoding"))
	unpacked, err := gzip.NewReader(bytes.NewReader(got))
	require.NoError(v.t, err)
	got, err = io.ReadAll(unpacked)
	require.NoError(v.t, err)
	require.True(v.t, bytes.Equal(pattern(64<<10), got), "unpacked by the caller")
	if v.d.trailers {
		resp, got = v.ok(http.MethodGet, "/trailer", nil, func(r *http.Request) { r.Header.Set("Te", "trailers") })
		require.Equal(v.t, "/trailer", string(got))
		require.Equal(v.t, "1", resp.Trailer.Get("X-Sum"))
	}
}

func (v visit) bodiless() {
	v.t.Helper()
	resp, got := v.ok(http.MethodHead, "/big", nil)
	require.EqualValues(v.t, big, resp.ContentLength)
	require.Empty(v.t, got)
	for _, code := range []int{http.StatusNoContent, http.StatusNotModified} {
		resp, got = v.send(http.MethodGet, fmt.Sprintf("/status?%d", code), nil)
		require.Equal(v.t, code, resp.StatusCode)
		require.Empty(v.t, got)
	}
	v.own()
}

func (v visit) own() {
	v.t.Helper()
	q := question{method: http.MethodGet, url: v.d.url + "/own", id: "id"}
	require.NoError(v.t, q.own(v.t.Context(), v.tr))
}

func (v visit) expects() {
	v.t.Helper()
	body, continued := pattern(100_000), false
	trace := &httptrace.ClientTrace{Got100Continue: func() { continued = true }}
	_, got := v.ok(http.MethodPost, "/sum", newStream(body), func(r *http.Request) {
		*r = *r.WithContext(httptrace.WithClientTrace(r.Context(), trace))
		r.Header.Set("Expect", "100-continue")
		r.ContentLength = int64(len(body))
	})
	require.Equal(v.t, sum(body), string(got))
	require.Equal(v.t, v.d.continues, continued, "100 Continue")
}

// testIdleLimit lets connections be idle for about as long as the server keeps
// them, a second, or as we do where that is announced, and then uses them. No
// request may fail, no POST either: where nothing is announced it has a key to
// be sent again.
func testIdleLimit(t *testing.T, doors ...door) {
	t.Helper()
	t.Run("idle limit", func(t *testing.T) {
		t.Parallel()
		var wg sync.WaitGroup
		defer wg.Wait()
		for _, d := range doors {
			tr := d.open(t, keepalive.WithPoolKey(func(r *http.Request) string { return r.Header.Get("X-Worker") }))
			wg.Go(func() {
				idle(t, d, tr)
				s := tr.Stats()
				t.Logf("%s: %d opened, %d retries, %d stale, closed %v", d.name, s.Opened, s.Retries, s.StaleChecks, s.Closed)
			})
		}
	})
}

func idle(t *testing.T, d door, tr *keepalive.Transport) {
	around := []time.Duration{time.Second}
	if d.announces {
		around = append(around, time.Second/2) // see keepAliveMargin
	}
	const perTime, rounds, step = 12, 2, 2 * time.Millisecond
	workers := perTime * len(around)
	crew(t, workers*rounds, workers, func(worker, i int) error {
		id := strconv.Itoa(worker)
		q := question{method: http.MethodGet, url: d.url + "/own", id: fmt.Sprint(d.name, " ", i), worker: id}
		if err := q.own(t.Context(), tr); err != nil {
			return fmt.Errorf("%s, first: %w", d.name, err)
		}
		elapse(around[worker%len(around)] + time.Duration(worker/len(around)-perTime/2)*step)
		if i%2 == 1 {
			q.method, q.body = http.MethodPost, strings.NewReader("body")
			if !d.announces {
				q.key = q.id
			}
		}
		if err := q.own(t.Context(), tr); err != nil {
			return fmt.Errorf("%s, %s after a pause: %w", d.name, q.method, err)
		}
		return nil
	})
}

// testReload lets the server take new configurations while requests go through
// its doors. None may be lost but POSTs, and of them none is sent twice; an answer
// that has begun may end with each reload.
func testReload(t *testing.T, r *running, b *backend, doors ...door) {
	t.Helper()
	t.Run("reload", func(t *testing.T) {
		t.Parallel()
		stop := make(chan struct{})
		var all sync.WaitGroup
		var flows []*flow
		for _, d := range doors {
			tr := d.open(t)
			for i, method := range []string{http.MethodGet, http.MethodGet, http.MethodPut, http.MethodPost} {
				f := &flow{method: method, door: d, tr: tr, name: fmt.Sprint(d.name, " ", i)}
				flows = append(flows, f)
				all.Go(func() { f.run(t, b, stop) })
			}
		}
		progress := func() {
			before := make([]int64, len(flows))
			for i, f := range flows {
				before[i] = f.done.Load()
			}
			for i, f := range flows {
				eventually(t, func() bool { return f.done.Load() > before[i]+20 || t.Failed() })
			}
		}
		for range 3 {
			progress()
			r.reload(t)
		}
		progress()
		close(stop)
		all.Wait()
		for _, f := range flows {
			if f.method == http.MethodPost {
				t.Logf("%s: %d POSTs, %d failed (%v); %v", f.door.name, f.done.Load(), f.failed, f.err, f.tr.Stats().Closed)
				require.Positive(t, f.tr.Stats().TotalClosed(), "the server ended connections")
			}
		}
	})
}

// flow is a sequence of requests. Its plain fields are valid when run has
// returned.
type flow struct {
	method, name string
	door         door
	tr           *keepalive.Transport
	done         atomic.Int64
	failed       int
	err          error // the last
}

func (f *flow) run(t *testing.T, b *backend, stop <-chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		q := question{method: f.method, url: f.door.url + "/own", id: fmt.Sprint(f.name, ".", i)}
		if f.method != http.MethodGet {
			q.body = strings.NewReader("body")
		}
		err := q.own(t.Context(), f.tr)
		switch {
		case err == nil:
		case f.method == http.MethodPost && !errors.Is(err, errNotOwn), f.failed < 3 && wasCutOff(err):
			f.failed, f.err = f.failed+1, err
		default:
			t.Errorf("%s %s was lost: %v", f.method, q.id, err)
			return
		}
		if n := b.times(q.id); f.method == http.MethodPost && n > 1 || n == 0 && err == nil {
			t.Errorf("%s %s arrived %d times, error %v", f.method, q.id, n, err)
		}
		f.done.Add(1)
	}
}

// wasCutOff reports whether the server ended the connection within its answer,
// which no client can mend: Caddy does, on a loaded machine; or whether it failed
// by its own word, with an error code of its library's: Apache does, in a reload.
func wasCutOff(err error) bool {
	e, ok := errors.AsType[*keepalive.Error](err)
	return ok && (e.Phase == keepalive.PhaseBody || strings.Contains(e.Error(), `debug="The user callback function failed"`))
}

// reload gives the server its next configuration, and waits until it answers
// with it.
func (r *running) reload(t *testing.T) {
	t.Helper()
	r.configure(t)
	require.NoError(t, r.d.reload(r))
	ctx := keepalive.ContextWithOptions(t.Context(), keepalive.FreshConn())
	d := r.doors()[0]
	tr := d.open(t)
	const every = 20 * time.Millisecond
	answered := func() string {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url+"/own", nil)
		require.NoError(t, err)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return err.Error()
		}
		_ = resp.Body.Close()
		return resp.Header.Get("X-Gen")
	}
	for range 1000 {
		if answered() == strconv.Itoa(r.gen) {
			return
		}
		pause(t, every)
	}
	require.FailNow(t, "the configuration was not taken", answered())
}

// testEarly413 sends more than the server wants to path, which takes no more
// than a megabyte. It must be understood, every time.
func testEarly413(t *testing.T, path string, doors ...door) {
	t.Helper()
	for _, d := range doors {
		t.Run("413, "+d.name, func(t *testing.T) {
			t.Parallel()
			tr := d.open(t)
			v := visit{t, tr, d}
			body := pattern(tooBig)
			for range 10 {
				resp, _ := v.send(http.MethodPost, path, newStream(body), withLength(int64(len(body))))
				require.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
				resp, _ = v.send(http.MethodPost, path, bytes.NewReader(body))
				require.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
				unsent := newStream(body)
				resp, _ = v.send(http.MethodPost, path, unsent, withLength(int64(len(body))),
					func(r *http.Request) { r.Header.Set("Expect", "100-continue") })
				require.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
				require.Zero(t, unsent.read.Load(), "nothing of it was wanted")
				v.own()
			}
			require.Zero(t, tr.Stats().Retries)
		})
	}
}

// testStreams checks that HTTP/2 requests share a connection as far as the
// server allows: most at a time.
func testStreams(t *testing.T, most int, doors ...door) {
	t.Helper()
	for _, d := range doors {
		t.Run("streams, "+d.name, func(t *testing.T) {
			t.Parallel()
			tr := d.open(t, keepalive.WithMaxConnsPerHost(1))
			visit{t, tr, d}.own() // the server's settings are known now
			n := 4 * most
			crew(t, n, n, func(_, _ int) error {
				_, body, err := question{method: http.MethodGet, url: d.url + "/hold?" + d.url[:5]}.ask(t.Context(), tr)
				if err != nil {
					return err
				}
				if atOnce, err := strconv.Atoi(body); err != nil || atOnce > most {
					return fmt.Errorf("%q at once: %w", body, errNotOwn)
				}
				return nil
			})
			s := tr.Stats()
			require.EqualValues(t, 1, s.Opened, "%+v", s)
			require.Zero(t, s.Retries, "a stream was refused")
		})
	}
}

// testColdBurst checks that many requests at once to a server that nobody has
// spoken to yet keep to what it allows, most at a time on a connection, as soon
// as it has said so.
func testColdBurst(t *testing.T, most int, d door) {
	t.Helper()
	t.Run("cold burst, "+d.name, func(t *testing.T) {
		t.Parallel()
		for i, opts := range [][]keepalive.Option{nil, {keepalive.WithMaxConnsPerHost(1)}} {
			tr := d.open(t, opts...)
			n := 5 * most
			crew(t, n, n, func(_, _ int) error {
				_, _, err := question{method: http.MethodGet, url: d.url + "/hold?cold"}.ask(t.Context(), tr)
				return err
			})
			s := tr.Stats()
			require.LessOrEqual(t, s.Opened, []uint64{10, 1}[i], "%+v", s)
		}
	})
}

// testStreamLimit checks that the end of an HTTP/2 connection after perConn
// requests (GOAWAY) loses none. With a backend that counts no POST arrives
// twice.
func testStreamLimit(t *testing.T, d door, b *backend, perConn int) {
	t.Helper()
	t.Run("GOAWAY, "+d.name, func(t *testing.T) {
		t.Parallel()
		tr := d.open(t)
		for i := range 5 * perConn {
			q := question{method: http.MethodGet, url: d.url + "/own", id: fmt.Sprint("sequence ", d.name, i)}
			require.NoError(t, q.own(t.Context(), tr))
		}
		require.EqualValues(t, 5, tr.Stats().Opened)
		crew(t, 20*perConn, 16, func(_, i int) error {
			q := question{method: http.MethodGet, url: d.url + "/own", id: fmt.Sprint("crowd ", d.name, i)}
			if i%3 == 1 {
				q.method, q.body = http.MethodPost, strings.NewReader("body")
			}
			err := q.own(t.Context(), tr)
			if b == nil || err != nil {
				return err
			}
			if n := b.times(q.id); q.method == http.MethodPost && n != 1 {
				return fmt.Errorf("arrived %d times", n)
			}
			return nil
		})
		require.LessOrEqual(t, tr.Stats().Opened, uint64(2*(5+20)), "each serves most of its requests")
	})
}

// testUpgrade opens WebSockets while other requests go through the same door.
func testUpgrade(t *testing.T, doors ...door) {
	t.Helper()
	for _, d := range doors {
		t.Run("upgrade, "+d.name, func(t *testing.T) {
			t.Parallel()
			tr := d.open(t)
			const sockets, workers = 3, 6
			crew(t, 60, workers, func(worker, i int) error {
				if worker < sockets {
					return echo(t.Context(), tr, d.url, i)
				}
				q := question{method: http.MethodGet, url: d.url + "/own", id: strconv.Itoa(i)}
				return q.own(t.Context(), tr)
			})
			visit{t, tr, d}.own()
			s := tr.Stats()
			require.Zero(t, s.Detached)
			require.Positive(t, s.Closed[keepalive.CloseDetached])
			require.Zero(t, s.Retries)
		})
	}
}

// echo opens a WebSocket, and sends bytes through it that must come back.
func echo(ctx context.Context, tr http.RoundTripper, url string, i int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/upgrade", nil)
	if err != nil {
		return err
	}
	req.Header = http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"},
		"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {websocketKey},
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	rw, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		return fmt.Errorf("%s, body %T", resp.Status, resp.Body)
	}
	for _, n := range []int{1, 100, 50_000} {
		want := append([]byte(strconv.Itoa(i)+":"), pattern(n)...)
		got := make([]byte, len(want))
		if _, err := rw.Write(want); err != nil {
			return err
		}
		if _, err := io.ReadFull(rw, got); err != nil {
			return err
		}
		if !bytes.Equal(want, got) {
			return fmt.Errorf("%d bytes came back wrong: %w", n, errNotOwn)
		}
	}
	return nil
}
