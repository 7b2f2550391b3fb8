package keepalive

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// traced collects what the hooks are told, in order. wrote is closed by
// WroteRequest, waits by Wait100Continue: the server must not be faster.
type traced struct {
	wrote, waits chan struct{}

	mu     sync.Mutex
	events []string
}

func (tr *traced) add(format string, args ...any) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.events = append(tr.events, fmt.Sprintf(format, args...))
}

func (tr *traced) hooks() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn: func(hostPort string) { tr.add("GetConn %s", hostPort) },
		GotConn: func(i httptrace.GotConnInfo) {
			_, secure := i.Conn.(*tls.Conn)
			tr.add("GotConn reused=%v idle=%v idle time=%v TLS=%v", i.Reused, i.WasIdle, i.IdleTime > 0, secure)
		},
		PutIdleConn:          func(err error) { tr.add("PutIdleConn %v", err) },
		GotFirstResponseByte: func() { tr.add("GotFirstResponseByte") },
		Got100Continue:       func() { tr.add("Got100Continue") },
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			tr.add("Got1xxResponse %d %v", code, h)
			return nil
		},
		DNSStart:          func(i httptrace.DNSStartInfo) { tr.add("DNSStart %s", i.Host) },
		DNSDone:           func(i httptrace.DNSDoneInfo) { tr.add("DNSDone %v", i.Err) },
		ConnectStart:      func(network, addr string) { tr.add("ConnectStart %s %s", network, addr) },
		ConnectDone:       func(network, addr string, err error) { tr.add("ConnectDone %s %s %v", network, addr, err) },
		TLSHandshakeStart: func() { tr.add("TLSHandshakeStart") },
		TLSHandshakeDone: func(cs tls.ConnectionState, err error) {
			tr.add("TLSHandshakeDone %s %v", cs.NegotiatedProtocol, err)
		},
		WroteHeaderField: func(key string, value []string) { tr.add("WroteHeaderField %s %q", key, value) },
		WroteHeaders:     func() { tr.add("WroteHeaders") },
		Wait100Continue: func() {
			tr.add("Wait100Continue")
			close(tr.waits)
		},
		WroteRequest: func(i httptrace.WroteRequestInfo) {
			tr.add("WroteRequest %v", i.Err)
			close(tr.wrote)
		},
	}
}

// TestHTTP2Trace: the hooks are called as net/http calls them.
func TestHTTP2Trace(t *testing.T) {
	var mu sync.Mutex
	var now *traced // of the request under way
	onSockets(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		tr := now
		mu.Unlock()
		switch r.URL.Path {
		case "/expect":
			<-tr.waits
		case "/hints":
			<-tr.wrote
			w.Header().Set("Link", "</style.css>")
			w.WriteHeader(http.StatusEarlyHints)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		<-tr.wrote
		_, _ = io.WriteString(w, "ok")
	}, func(t *testing.T, ours *Transport, url string) {
		theirs := &http.Transport{ExpectContinueTimeout: time.Hour, Protocols: new(http.Protocols)}
		if strings.HasPrefix(url, "https") {
			_, roots := testCert()
			theirs.TLSClientConfig = &tls.Config{RootCAs: roots, ServerName: "example.com"}
			theirs.Protocols.SetHTTP2(true)
		} else {
			theirs.Protocols.SetUnencryptedHTTP2(true)
		}
		defer theirs.CloseIdleConnections()
		for _, tt := range []struct {
			name string
			make func() (*http.Request, error)
		}{
			{"first", func() (*http.Request, error) { return http.NewRequest(http.MethodGet, url+"/first", nil) }},
			{"second", func() (*http.Request, error) { return http.NewRequest(http.MethodGet, url+"/second", nil) }},
			{"small body", func() (*http.Request, error) {
				return http.NewRequest(http.MethodPost, url+"/post", strings.NewReader("body"))
			}},
			{"large body", func() (*http.Request, error) {
				return http.NewRequest(http.MethodPost, url+"/post", strings.NewReader(big))
			}},
			{"hints", func() (*http.Request, error) { return http.NewRequest(http.MethodGet, url+"/hints", nil) }},
			{"expect", func() (*http.Request, error) {
				req, err := http.NewRequest(http.MethodPost, url+"/expect", strings.NewReader("body"))
				req.Header.Set("Expect", "100-continue")
				return req, err
			}},
		} {
			var want []string
			for _, rt := range []http.RoundTripper{theirs, ours} {
				req, err := tt.make()
				require.NoError(t, err)
				tr := &traced{wrote: make(chan struct{}), waits: make(chan struct{})}
				mu.Lock()
				now = tr
				mu.Unlock()
				if len(req.Header) == 0 { // more than one have no order
					req.Header.Set("X-Field", "value")
				}
				got, err := roundTrip(rt, req.WithContext(httptrace.WithClientTrace(t.Context(), tr.hooks())))
				require.NoError(t, err)
				require.Equal(t, "ok", got)
				tr.mu.Lock()
				events := tr.events
				tr.mu.Unlock()
				if want == nil {
					want = slices.Compact(events) // without TLS it says GetConn twice
					require.NotEmpty(t, want)
					continue
				}
				require.Equal(t, want, events, tt.name)
			}
		}
	}, WithExpectContinueTimeout(time.Hour), WithResponseHeaderTimeout(time.Hour))
}

// TestHTTP2TraceOfFailures: a handshake that fails is told.
func TestHTTP2TraceOfFailures(t *testing.T) {
	srv := httptest.NewUnstartedServer(nil)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{NextProtos: []string{"http/1.1"}}
	srv.StartTLS()
	defer srv.Close()
	var p http.Protocols
	p.SetHTTP2(true)
	tr, err := New(withTestTLS(), WithProtocols(p))
	require.NoError(t, err)
	defer tr.Close()
	var done error
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) { done = err },
	})
	_, err = fetch(ctx, tr, http.MethodGet, srv.URL)
	require.ErrorContains(t, err, "no application protocol")
	require.ErrorContains(t, done, "no application protocol")
}
