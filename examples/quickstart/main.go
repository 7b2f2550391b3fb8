// Command quickstart sends the same burst of requests through keepalive and
// through a default http.Transport, and prints what became of the connections.
//
//	go run ./examples/quickstart                      an embedded server
//	go run ./examples/quickstart http://127.0.0.1:80  a server of yours
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keepalive-http/keepalive"
)

const (
	maxRequests = 1_000_000
	maxParallel = 1_000
	maxTimeout  = time.Hour
	// maxReasons keeps the table short.
	maxReasons = 5
	// thinkTime is how long the embedded server takes for an answer, so that
	// the requests of a round do overlap.
	thinkTime = time.Millisecond
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	var usage usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "quickstart:", err)
	os.Exit(1)
}

// usageError is a mistake in the arguments.
type usageError struct{ msg string }

func (e usageError) Error() string { return e.msg }

// job is what the arguments ask for.
type job struct {
	url      string // "": the embedded server
	n, c     int
	timeout  time.Duration
	insecure bool
}

// run does the whole work and writes the table to out.
func run(ctx context.Context, args []string, out io.Writer) error {
	j, err := parse(args, out)
	if err != nil {
		return err
	}
	where := ""
	if j.url == "" {
		addr, stop, err := serve(ctx)
		if err != nil {
			return err
		}
		defer stop()
		j.url, where = "http://"+addr+"/", " (embedded server)"
	}
	title := fmt.Sprintf("%d requests in rounds of %d to %s%s\n\n", j.n, j.c, j.url, where)
	if _, err := io.WriteString(out, title); err != nil {
		return err
	}
	ours, err := j.keepalive(ctx)
	if err != nil {
		return err
	}
	theirs := j.netHTTP(ctx)
	if err := table(out, ours, theirs); err != nil {
		return err
	}
	if ours.answers == 0 {
		return fmt.Errorf("all requests failed, the first with: %w", ours.firstErr)
	}
	return nil
}

// parse reads the arguments. Help goes to out.
func parse(args []string, out io.Writer) (job, error) {
	var j job
	fs := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.IntVar(&j.n, "n", 1000, "number of requests")
	fs.IntVar(&j.c, "c", 10, "requests in parallel, one round")
	fs.DurationVar(&j.timeout, "timeout", 30*time.Second, "limit for the work of each client")
	fs.BoolVar(&j.insecure, "insecure", false, "accept any certificate of an https server")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			_, _ = io.WriteString(out, "usage: quickstart [flags] [http://host:port/path]\n")
			fs.SetOutput(out)
			fs.PrintDefaults()
			return j, err
		}
		return j, usageError{err.Error()}
	}
	switch {
	case j.n < 1 || j.n > maxRequests:
		return j, usageError{fmt.Sprintf("-n %d: want 1 to %d", j.n, maxRequests)}
	case j.c < 1 || j.c > maxParallel:
		return j, usageError{fmt.Sprintf("-c %d: want 1 to %d", j.c, maxParallel)}
	case j.timeout <= 0 || j.timeout > maxTimeout:
		return j, usageError{fmt.Sprintf("-timeout %v: want more than 0 and at most %v", j.timeout, maxTimeout)}
	case fs.NArg() > 1:
		return j, usageError{fmt.Sprintf("%d arguments, want one URL at most, behind the flags", fs.NArg())}
	case fs.NArg() == 0:
		return j, nil
	}
	var err error
	j.url, err = checkURL(fs.Arg(0))
	return j, err
}

// checkURL refuses what no request can be sent to.
func checkURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return "", usageError{fmt.Sprintf("bad URL: %v", err)}
	case u.Scheme != "http" && u.Scheme != "https":
		return "", usageError{fmt.Sprintf("bad URL %q: want http:// or https://", raw)}
	case u.Hostname() == "":
		return "", usageError{fmt.Sprintf("bad URL %q: no host", raw)}
	}
	return u.String(), nil
}

// serve starts the embedded server. stop ends it and returns when it has ended.
func serve(ctx context.Context) (addr string, stop func(), err error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			think := time.NewTimer(thinkTime)
			defer think.Stop()
			select {
			case <-think.C:
			case <-r.Context().Done():
			}
			_, _ = io.WriteString(w, "hello\n")
		}),
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	return ln.Addr().String(), func() {
		_ = srv.Close()
		wg.Wait()
	}, nil
}

// result is what one client came to.
type result struct {
	answers, errors int
	firstErr        error
	proto           string
	took            time.Duration
	opened          uint64
	reuseRate       float64
	closed          map[keepalive.CloseReason]uint64 // nil: the client does not tell
}

// keepalive does the work through a keepalive.Transport.
func (j job) keepalive(ctx context.Context) (result, error) {
	var opts []keepalive.Option
	if j.insecure {
		opts = append(opts, keepalive.WithTLSConfig(anyCertificate()))
	}
	t, err := keepalive.New(opts...)
	if err != nil {
		return result{}, err
	}
	r := j.burst(ctx, t)
	if err := t.Close(); err != nil {
		return result{}, err
	}
	s := t.Stats()
	r.opened, r.reuseRate, r.closed = s.Opened, s.ReuseRate(), s.Closed
	return r, nil
}

// netHTTP does the same through a default http.Transport.
func (j job) netHTTP(ctx context.Context) result {
	t, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return result{firstErr: errors.New("http.DefaultTransport was replaced")}
	}
	t = t.Clone()
	t.Proxy = nil // keepalive goes to the host directly: so does this one
	if j.insecure {
		t.TLSClientConfig = anyCertificate()
	}
	var opened atomic.Uint64
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err == nil {
			opened.Add(1)
		}
		return c, err
	}
	r := j.burst(ctx, t)
	t.CloseIdleConnections()
	r.opened = opened.Load()
	if r.answers > 0 {
		r.reuseRate = max(0, 1-float64(r.opened)/float64(r.answers))
	}
	return r
}

// anyCertificate is asked for by -insecure.
func anyCertificate() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the user asked for it
}

// burst sends the requests in rounds: all of one round at once, and the next
// round when the last of them is done. It gives up after a round without a
// single answer, and at the timeout.
func (j job) burst(ctx context.Context, rt http.RoundTripper) result {
	ctx, cancel := context.WithTimeout(ctx, j.timeout)
	defer cancel()
	client := &http.Client{
		Transport:     rt,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var (
		r  result
		mu sync.Mutex // guards r
	)
	start := time.Now()
	for sent := 0; sent < j.n; {
		round, before := min(j.c, j.n-sent), r.answers
		var wg sync.WaitGroup
		for range round {
			wg.Go(func() {
				proto, err := get(ctx, client, j.url)
				mu.Lock()
				defer mu.Unlock()
				r.note(proto, err)
			})
		}
		wg.Wait()
		sent += round
		if r.answers == before {
			break
		}
	}
	r.took = time.Since(start)
	return r
}

// note counts one request.
func (r *result) note(proto string, err error) {
	if err != nil {
		r.errors++
		r.firstErr = cmp.Or(r.firstErr, err)
		return
	}
	r.answers++
	r.proto = proto
}

// get sends one request, and reads and closes the body.
func get(ctx context.Context, client *http.Client, url string) (proto string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody) //nolint:gosec // G704: the user names the URL
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req) //nolint:gosec // G704: the user names the URL
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.Proto, err
}

// table prints both results side by side.
func table(out io.Writer, ours, theirs result) error {
	var b strings.Builder
	row := func(name, a, b2 string) { fmt.Fprintf(&b, "%-36s %12s %12s\n", name, a, b2) }
	row("", "keepalive", "net/http")
	row("protocol", cmp.Or(ours.proto, "-"), cmp.Or(theirs.proto, "-"))
	row("requests answered", fmt.Sprint(ours.answers), fmt.Sprint(theirs.answers))
	row("errors", fmt.Sprint(ours.errors), fmt.Sprint(theirs.errors))
	row("connections opened", fmt.Sprint(ours.opened), fmt.Sprint(theirs.opened))
	row("reuse rate", percent(ours.reuseRate), percent(theirs.reuseRate))
	row("time", ours.took.Round(time.Millisecond).String(), theirs.took.Round(time.Millisecond).String())
	reasons := slices.SortedFunc(maps.Keys(ours.closed), func(x, y keepalive.CloseReason) int {
		return cmp.Or(cmp.Compare(ours.closed[y], ours.closed[x]), cmp.Compare(x, y))
	})
	for i, reason := range reasons {
		if i == maxReasons {
			row(fmt.Sprintf("and %d other reasons", len(reasons)-i), "", "")
			break
		}
		row("closed: "+reason.String(), fmt.Sprint(ours.closed[reason]), "not told")
	}
	for _, r := range []result{ours, theirs} {
		if r.firstErr != nil {
			fmt.Fprintf(&b, "first error: %v\n", r.firstErr)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }
