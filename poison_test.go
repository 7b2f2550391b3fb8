package keepalive_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// injected is the answer that nobody asked for.
const injected = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ninjected"

// firstAnswers are the answers behind which bytes are injected.
var firstAnswers = []struct {
	name   string
	method string
	header http.Header
	answer string
	body   string // what the client reads
}{
	{name: "204", answer: "HTTP/1.1 204 No Content\r\n\r\n"},
	{name: "204 with a length", answer: "HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\n"},
	{name: "304", answer: "HTTP/1.1 304 Not Modified\r\n\r\n"},
	{name: "304 with a length", answer: "HTTP/1.1 304 Not Modified\r\nContent-Length: 8\r\n\r\n"},
	{name: "length 0", answer: faultserver.Response(200, "")},
	{name: "HEAD", method: "HEAD", answer: "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"},
	{name: "length 2", answer: faultserver.Response(200, "ok"), body: "ok"},
	{name: "chunked", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", body: "ok"},
	{
		name: "upgrade refused", header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}},
		answer: faultserver.Response(200, "ok"), body: "ok",
	},
}

// arrival is when the injected bytes come.
type arrival uint8

const (
	// withAnswer: in the write of the answer.
	withAnswer arrival = iota
	// beforeRead: in a write (with TLS: a record) of their own, but before the
	// client reads the answer.
	beforeRead
	// whileIdle: when the client has read the answer.
	whileIdle
	// racing: while the client makes its next request.
	racing
)

// pauses are how much later than the answer the bytes are written.
var pauses = map[arrival]time.Duration{whileIdle: 20 * time.Millisecond, racing: time.Millisecond}

// arrivalWait is what bytes are given to cross the loopback interface.
const arrivalWait = 2 * time.Millisecond

// over is what HTTP is spoken over.
type over uint8

const (
	overTCP over = iota
	overTLS
	// overUserTLS: from a user's dial function, which keeps its socket to
	// itself but for looks.
	overUserTLS
)

// poisonWorkers is how many connections are poisoned at a time.
const poisonWorkers = 64

// poisoner is a server that injects behind the answer to /first, and says so.
// /next is answered with the request's id.
type poisoner struct {
	*faultserver.Server
	extra   string // what it injects
	when    arrival
	over    over
	written []chan struct{} // by worker: the bytes were written
}

func newPoisoner(t *testing.T, extra string, when arrival, over over) *poisoner {
	t.Helper()
	p := &poisoner{extra: extra, when: when, over: over, written: make([]chan struct{}, poisonWorkers)}
	for i := range p.written {
		p.written[i] = make(chan struct{}, 1)
	}
	start := faultserver.New
	if over != overTCP {
		start = faultserver.NewTLS
	}
	p.Server = start(t, p.script)
	return p
}

func (p *poisoner) script(x *faultserver.Exchange) {
	if x.Request.URL.Path == "/next" {
		x.Reply(200, x.Request.Header.Get("X-Request-Id"))
		return
	}
	first, _ := strconv.Atoi(x.Request.URL.RawQuery)
	worker, _ := strconv.Atoi(x.Request.Header.Get("X-Worker"))
	answer := firstAnswers[first].answer
	if p.when == withAnswer {
		x.Write(answer + p.extra)
	} else {
		x.WriteParts(faultserver.Part{Data: answer}, faultserver.Part{Pause: pauses[p.when], Data: p.extra})
	}
	p.written[worker] <- struct{}{}
}

// client returns a Transport that keeps the workers' connections apart.
func (p *poisoner) client(t *testing.T) *keepalive.Transport {
	t.Helper()
	opts := []keepalive.Option{
		keepalive.WithMaxIdleConns(0),
		keepalive.WithProtocols(http1Only()), // else an Upgrade has connections of its own
		keepalive.WithPoolKey(func(r *http.Request) string { return r.Header.Get("X-Worker") }),
	}
	switch p.over {
	case overTCP:
	case overTLS:
		opts = append(opts, keepalive.WithTLSConfig(p.ClientTLSConfig()))
	case overUserTLS:
		opts = append(opts, keepalive.WithDialTLSContext((&tls.Dialer{Config: p.ClientTLSConfig()}).DialContext))
	}
	return open(t, opts...)
}

func http1Only() (p http.Protocols) {
	p.SetHTTP1(true)
	return p
}

// wait returns when the injected bytes have arrived.
func (p *poisoner) wait(worker int) {
	<-p.written[worker]
	if p.when != withAnswer {
		elapse(arrivalWait)
	}
}

// first makes the request behind whose answer something is injected.
func (p *poisoner) first(ctx context.Context, tr *keepalive.Transport, first, worker int) error {
	f := firstAnswers[first]
	if p.when == beforeRead {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { p.wait(worker) }})
	}
	req, err := http.NewRequestWithContext(ctx, f.method, p.URL+"/first?"+strconv.Itoa(first), http.NoBody)
	if err != nil {
		return err
	}
	if f.header != nil {
		req.Header = f.header.Clone()
	}
	req.Header.Set("X-Worker", strconv.Itoa(worker))
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != f.body {
		err = fmt.Errorf("got the body %q, want %q", body, f.body)
	}
	return err
}

// next makes the request that must get its own answer.
func (p *poisoner) next(ctx context.Context, tr *keepalive.Transport, worker, i int) error {
	q := question{url: p.URL + "/next", id: strconv.Itoa(i), worker: strconv.Itoa(worker)}
	return q.own(ctx, tr)
}

// TestPoison injects an answer behind another one: if it has arrived before
// the first byte of the next request is written, that never gets it. What
// arrives later cannot be told from its answer: see TestPoisonRace.
func TestPoison(t *testing.T) {
	for _, tt := range []struct {
		name  string
		extra string
		when  arrival
		over  over
		procs int
	}{
		{"plain, same write", injected, withAnswer, overTCP, 1},
		{"plain, same write", injected, withAnswer, overTCP, 2},
		{"plain, same write", injected, withAnswer, overTCP, 4},
		{"plain, before the answer is read", injected, beforeRead, overTCP, 2},
		{"plain, while idle", injected, whileIdle, overTCP, 1},
		{"plain, while idle", injected, whileIdle, overTCP, 2},
		{"plain, while idle", injected, whileIdle, overTCP, 4},
		{"plain, no answer but bytes", "EXTRA", withAnswer, overTCP, 2},
		{"TLS, same record", injected, withAnswer, overTLS, 2},
		{"TLS, before the answer is read", injected, beforeRead, overTLS, 2},
		{"TLS, while idle", injected, whileIdle, overTLS, 2},
		{"user's TLS, before the answer is read", injected, beforeRead, overUserTLS, 2},
		{"user's TLS, while idle", injected, whileIdle, overUserTLS, 2},
	} {
		t.Run(fmt.Sprintf("%s, GOMAXPROCS %d", tt.name, tt.procs), func(t *testing.T) {
			old := runtime.GOMAXPROCS(tt.procs)
			defer runtime.GOMAXPROCS(old)
			n := counts(300, 1300)
			if tt.over != overTCP {
				n = counts(100, 1300) // a handshake each
			}
			newPoisoner(t, tt.extra, tt.when, tt.over).run(t, n*len(firstAnswers))
		})
	}
}

// run makes n pairs of requests.
func (p *poisoner) run(t *testing.T, n int) {
	t.Helper()
	tr := p.client(t)
	var tried, taken atomic.Int64
	crew(t, n, poisonWorkers, func(worker, i int) error {
		kind := i % len(firstAnswers)
		if err := p.first(t.Context(), tr, kind, worker); err != nil {
			return fmt.Errorf("%s: first: %w", firstAnswers[kind].name, err)
		}
		if p.when != beforeRead {
			p.wait(worker)
		}
		tried.Add(1)
		err := p.next(t.Context(), tr, worker, i)
		if errors.Is(err, errNotOwn) {
			taken.Add(1)
		}
		if err != nil {
			return fmt.Errorf("%s: next: %w", firstAnswers[kind].name, err)
		}
		return nil
	})
	s := tr.Stats()
	t.Logf("%d injections: %d got through, %d connections closed for it", tried.Load(), taken.Load(), s.Closed[keepalive.CloseProtocolError])
	require.EqualValues(t, n, s.Closed[keepalive.CloseProtocolError], "%+v", s.Closed)
}

// TestPoisonRace injects while the next request is on its way. What arrives
// after its first byte was written passes for its answer with any client of
// HTTP/1.1, so there is nothing to want of the answers: only that we survive.
func TestPoisonRace(t *testing.T) {
	p := newPoisoner(t, injected, racing, overTCP)
	tr := p.client(t)
	n := counts(30, 300) * len(firstAnswers)
	taken := 0
	crew(t, n, 1, func(worker, i int) error {
		if p.first(t.Context(), tr, i%len(firstAnswers), worker) == nil && p.next(t.Context(), tr, worker, i) != nil {
			taken++
		}
		<-p.written[worker]
		return nil
	})
	t.Logf("%d injections: %d were taken for answers", n, taken)
}

// TestPoisonGarbage has what follows a whole answer come in pieces of any
// size; nothing of it is ever part of a body.
func TestPoisonGarbage(t *testing.T) {
	s := faultserver.New(t, func(x *faultserver.Exchange) {
		id := x.Request.Header.Get("X-Request-Id")
		n, _ := strconv.Atoi(id)
		x.Write(faultserver.Response(200, id) + string(bytes.Repeat([]byte{"\r\n\x00H"[n%4]}, n)))
	})
	tr := open(t)
	n := counts(1000, 10_000)
	for i := range n {
		q := question{url: s.URL, id: strconv.Itoa(i%100 + 1)}
		require.NoError(t, q.own(t.Context(), tr))
	}
	require.EqualValues(t, n, tr.Stats().Closed[keepalive.CloseProtocolError])
	require.Equal(t, n, s.Accepted())
}
