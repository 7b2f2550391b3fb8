package keepalive_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive"
	"github.com/keepalive-http/keepalive/internal/faultserver"
)

// tlsVersions are those that are spoken.
var tlsVersions = []struct {
	name    string
	version uint16
}{{"1.2", tls.VersionTLS12}, {"1.3", tls.VersionTLS13}}

func withVersion(v uint16) faultserver.Option {
	return faultserver.WithTLSConfig(func(c *tls.Config) { c.MinVersion, c.MaxVersion = v, v })
}

// streamed is a POST that cannot be sent twice.
func streamed(url, id string) question {
	return question{method: http.MethodPost, url: url, id: id, body: io.MultiReader(strings.NewReader("body"))}
}

// noSessions is a session cache that keeps nothing.
type noSessions struct{}

func (noSessions) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (noSessions) Put(string, *tls.ClientSessionState)        {}

// TestLateTickets: session tickets that come to an idle connection are no
// bytes that nobody asked for.
func TestLateTickets(t *testing.T) {
	hold, gate, tickets := make(chan struct{}), make(chan struct{}), make(chan struct{}, 10)
	srv := faultserver.NewTLS(t, func(x *faultserver.Exchange) {
		if x.Request.URL.Path == "/held" {
			<-hold
		}
		echoID(x)
	}, withVersion(tls.VersionTLS13), faultserver.WithTLSConfig(func(c *tls.Config) {
		// The tickets have to wait for the client's last flight then.
		c.ClientAuth = tls.RequestClientCert
		c.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
			defer func() { tickets <- struct{}{} }()
			return c.EncryptTicket(cs, ss)
		}
	}))
	dials := make(chan struct{}, 1)
	dials <- struct{}{}
	cfg := srv.ClientTLSConfig()
	cfg.ClientSessionCache = noSessions{} // a session that resumes has its tickets early
	tr := open(t, keepalive.WithTLSConfig(cfg), keepalive.WithDialContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
		select {
		case <-dials: // the first one
		case <-gate:
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}))
	first := make(chan error, 1)
	go func() { first <- question{url: srv.URL + "/held", id: "first"}.own(t.Context(), tr) }()
	srv.WaitRequests(1)
	second := make(chan error, 1)
	go func() { second <- question{url: srv.URL, id: "second"}.own(t.Context(), tr) }()
	eventually(t, func() bool { return tr.Stats().Waiting == 1 })
	close(hold)
	require.NoError(t, <-first)
	require.NoError(t, <-second, "on the first one's connection")
	require.Equal(t, 1, srv.Accepted())
	<-tickets
	close(gate)
	<-tickets
	elapse(arrivalWait)
	eventually(t, func() bool { return tr.Stats().Idle == 2 })

	for i := range 3 {
		require.NoError(t, streamed(srv.URL, fmt.Sprint(i)).own(t.Context(), tr))
	}
	require.Equal(t, 3, srv.RequestsOn(1), "on the connection that was idle with tickets in it")
	require.Zero(t, tr.Stats().StaleChecks)
	require.EqualValues(t, 2, tr.Stats().Opened)
}

// TestCloseNotifyWhileIdle: a server that ends TLS, but not TCP, cannot be told
// from the socket. The next request goes elsewhere before anything of it is
// sent.
func TestCloseNotifyWhileIdle(t *testing.T) {
	for _, v := range tlsVersions {
		for _, early := range []bool{true, false} {
			t.Run(fmt.Sprint(v.name, "/with the answer ", early), func(t *testing.T) {
				idle, said := make(chan struct{}), make(chan struct{})
				letGo := sync.OnceFunc(func() { close(idle) })
				defer letGo()
				srv := faultserver.NewTLS(t, func(x *faultserver.Exchange) {
					echoID(x)
					if x.Request.URL.Path != "/last" {
						return
					}
					if !early {
						<-idle
					}
					tc, ok := x.Conn.(*tls.Conn)
					if !ok || tc.CloseWrite() != nil {
						t.Error("no close_notify")
					}
					close(said)
					x.AwaitClose()
				}, withVersion(v.version))
				tr := open(t, trusting(srv)...)
				require.NoError(t, question{url: srv.URL, id: "one"}.own(t.Context(), tr))
				require.NoError(t, question{url: srv.URL + "/last", id: "last"}.own(t.Context(), tr))
				letGo()
				<-said
				elapse(10 * arrivalWait)
				require.NoError(t, streamed(srv.URL, "next").own(t.Context(), tr))
				s := tr.Stats()
				require.Equal(t, map[keepalive.CloseReason]uint64{keepalive.CloseStale: 1}, s.Closed)
				require.EqualValues(t, 1, s.StaleChecks)
				require.Zero(t, s.Retries)
				require.Equal(t, 2, srv.RequestsOn(0))
				srv.WaitOpen(1)
			})
		}
	}
}

// resumes makes a request on a new connection and reports whether that resumed
// a session. Server and client must agree.
func resumes(t *testing.T, tr *keepalive.Transport, url string) bool {
	t.Helper()
	req, err := http.NewRequestWithContext(keepalive.ContextWithOptions(t.Context(), keepalive.FreshConn()), http.MethodGet, url, http.NoBody)
	require.NoError(t, err)
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, fmt.Sprint(resp.TLS.DidResume), string(got), "what the server says")
	return resp.TLS.DidResume
}

// resuming answers whether the connection resumed a session.
func resuming(x *faultserver.Exchange) {
	tc, _ := x.Conn.(*tls.Conn)
	x.Reply(http.StatusOK, fmt.Sprint(tc.ConnectionState().DidResume))
}

// TestResumption: later connections of a Transport resume the TLS session, by
// default; no other Transport does.
func TestResumption(t *testing.T) {
	for _, v := range tlsVersions {
		t.Run(v.name, func(t *testing.T) {
			srv := faultserver.NewTLS(t, resuming, withVersion(v.version))
			other := faultserver.NewTLS(t, resuming, withVersion(v.version))
			cfg := srv.ClientTLSConfig()
			tr := open(t, keepalive.WithTLSConfig(cfg))
			require.False(t, resumes(t, tr, srv.URL))
			for range 3 {
				require.True(t, resumes(t, tr, srv.URL))
			}

			t.Run("the same configuration, another Transport", func(t *testing.T) {
				second := open(t, keepalive.WithTLSConfig(cfg))
				require.False(t, resumes(t, second, srv.URL))
				require.True(t, resumes(t, second, srv.URL))
			})
			t.Run("trust is not passed on", func(t *testing.T) {
				careless := open(t, keepalive.WithTLSConfig(&tls.Config{InsecureSkipVerify: true}))
				require.False(t, resumes(t, careless, srv.URL))
				require.True(t, resumes(t, careless, srv.URL))
				careful := open(t, keepalive.WithTLSConfig(other.ClientTLSConfig())) // trusts another one
				_, _, err := question{url: srv.URL}.ask(t.Context(), careful)
				_, ok := errors.AsType[*tls.CertificateVerificationError](err)
				require.True(t, ok, err)
			})
			t.Run("a cache of the user's", func(t *testing.T) {
				shared := srv.ClientTLSConfig()
				shared.ClientSessionCache = tls.NewLRUClientSessionCache(1)
				require.False(t, resumes(t, open(t, keepalive.WithTLSConfig(shared)), srv.URL))
				require.True(t, resumes(t, open(t, keepalive.WithTLSConfig(shared)), srv.URL))
			})
			t.Run("turned off", func(t *testing.T) {
				off := srv.ClientTLSConfig()
				off.SessionTicketsDisabled = true
				tr := open(t, keepalive.WithTLSConfig(off))
				require.False(t, resumes(t, tr, srv.URL))
				require.False(t, resumes(t, tr, srv.URL))
			})
		})
	}
}

// shred starts a relay to addr that passes on what the server says in small
// odd pieces, with a pause behind each. It returns its own address.
func shred(t *testing.T, addr string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", addr)
			if err != nil {
				_ = client.Close()
				return
			}
			all.Go(func() { // ends with the client
				_, _ = io.Copy(server, client)
				_ = server.Close()
			})
			all.Go(func() {
				pieces(client, server)
				_ = client.Close()
			})
		}
	})
	t.Cleanup(func() { // after the Transport's, so its connections are closed
		_ = l.Close()
		all.Wait()
	})
	return l.Addr().String()
}

// pieces copies in pieces of 1, 2, 3, 5, 7 ... bytes.
func pieces(to io.Writer, from io.Reader) {
	sizes := []int{1, 2, 3, 5, 7, 11, 13, 61, 127, 251}
	buf := make([]byte, sizes[len(sizes)-1])
	for i := 0; ; i++ {
		n, err := io.ReadFull(from, buf[:1])
		if err != nil {
			return
		}
		m, _ := from.Read(buf[n:sizes[i%len(sizes)]])
		if _, err := to.Write(buf[:n+m]); err != nil {
			return
		}
		elapse(50 * time.Microsecond)
	}
}

// TestShreddedRecords: TLS records that come in pieces are the same answers on
// the same connection.
func TestShreddedRecords(t *testing.T) {
	for _, v := range tlsVersions {
		t.Run(v.name, func(t *testing.T) {
			srv := faultserver.NewTLS(t, func(x *faultserver.Exchange) {
				id := x.Request.Header.Get("X-Request-Id")
				if len(id)%2 == 0 {
					x.Reply(http.StatusOK, id)
					return
				}
				x.Write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(id[:len(id)/2]))
				x.Write(chunk(id[len(id)/2:]) + "0\r\n\r\n")
			}, withVersion(v.version))
			tr := open(t, trusting(srv)...)
			url := strings.Replace(srv.URL, srv.Addr, shred(t, srv.Addr), 1)
			t.Cleanup(func() { require.NoError(t, tr.Close()) }) // before the relay's end
			for _, n := range []int{1, 100, 101, 2000, 2001, 0} {
				require.NoError(t, question{url: url, id: strings.Repeat("i", n)}.own(t.Context(), tr), n)
			}
			require.Equal(t, 1, srv.Accepted())
			require.Zero(t, tr.Stats().StaleChecks)
		})
	}
}

// gatherConn sends what is written when it reads next: what a TLS server says
// behind its handshake leaves with that.
type gatherConn struct {
	net.Conn
	out []byte
}

func (c *gatherConn) Write(p []byte) (int, error) {
	c.out = append(c.out, p...)
	return len(p), nil
}

// SetWriteDeadline does nothing: crypto/tls sets one behind close_notify, which
// has not gone out then.
func (*gatherConn) SetWriteDeadline(time.Time) error { return nil }

func (c *gatherConn) Read(p []byte) (int, error) {
	if len(c.out) > 0 {
		_, err := c.Conn.Write(c.out)
		c.out = nil
		if err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(p)
}

// TestServerSpeaksFirst: what a server says before the first request is the answer
// to it, also if TLS has read it with the handshake. One that hangs up is not
// dialed for ever.
func TestServerSpeaksFirst(t *testing.T) {
	t.Parallel()
	const busy = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbusy"
	for _, v := range tlsVersions {
		for name, says := range map[string]func(*tls.Conn){
			"503": func(c *tls.Conn) { _, _ = io.WriteString(c, busy) }, "close_notify": func(c *tls.Conn) { _ = c.CloseWrite() },
		} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				t.Run(v.name+" "+name+" "+method, func(t *testing.T) {
					t.Parallel()
					var server *tls.Config
					certified := faultserver.NewTLS(t, nil, withVersion(v.version), faultserver.WithTLSConfig(func(c *tls.Config) { server = c }))
					l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
					require.NoError(t, err)
					var accepted atomic.Int64
					var all sync.WaitGroup
					all.Go(func() {
						for {
							nc, err := l.Accept()
							if err != nil {
								return
							}
							accepted.Add(1)
							all.Go(func() {
								defer nc.Close()
								c := tls.Server(&gatherConn{Conn: nc}, server)
								if c.Handshake() != nil {
									return
								}
								says(c)
								_, _ = io.Copy(io.Discard, c)
							})
						}
					})
					defer all.Wait()
					defer l.Close()
					tr := open(t, keepalive.WithTLSConfig(certified.ClientTLSConfig()))
					status, body, err := question{method: method, url: "https://" + l.Addr().String()}.ask(t.Context(), tr)
					if name == "503" {
						require.NoError(t, err)
						require.Equal(t, http.StatusServiceUnavailable, status)
						require.Equal(t, "busy", body)
					} else {
						require.ErrorIs(t, err, io.EOF)
					}
					require.EqualValues(t, 1, accepted.Load())
				})
			}
		}
	}
}
