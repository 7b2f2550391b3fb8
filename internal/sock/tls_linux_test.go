package sock

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// gatedConn holds its reader back once it has written, until the gate opens.
type gatedConn struct {
	net.Conn
	wrote atomic.Bool
	gate  chan struct{}
	// cut is how much of the next write goes out before rest is closed; 0: all.
	// Set while the reader is held back.
	cut  int
	rest chan struct{}
}

func (g *gatedConn) Read(p []byte) (int, error) {
	if g.wrote.Load() {
		<-g.gate
	}
	return g.Conn.Read(p)
}

func (g *gatedConn) Write(p []byte) (int, error) {
	g.wrote.Store(true)
	cut := g.cut
	if g.cut = 0; cut == 0 {
		return g.Conn.Write(p)
	}
	n, err := g.Conn.Write(p[:cut])
	if err != nil {
		return n, err
	}
	<-g.rest
	m, err := g.Conn.Write(p[cut:])
	return n + m, err
}

func tlsConfigs(t *testing.T) (client, server *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"peer"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	client = &tls.Config{ServerName: "peer", RootCAs: pool, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	server = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		// A server that asks for a certificate sends its tickets after the
		// client's last flight, as OpenSSL's do; Go's sends them before otherwise.
		ClientAuth: tls.RequestClientCert,
	}
	return client, server
}

// tlsEnds is what tlsPair makes.
type tlsEnds struct {
	c              *Conn
	r              *Records
	client, server *tls.Conn
	open           func() // lets the server go on
}

// tlsPair is a TLS client over Records, after its handshake. The server has not
// sent its tickets: that takes the client's last flight, which is held back
// until open is called.
func tlsPair(t *testing.T) tlsEnds {
	t.Helper()
	c, raw := pair(t, "tcp")
	clientConfig, serverConfig := tlsConfigs(t)
	gated := &gatedConn{Conn: raw, gate: make(chan struct{})}
	server := tls.Server(gated, serverConfig)
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	r := NewRecords(c)
	client := tls.Client(r, clientConfig)
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	require.NoError(t, client.Handshake())
	require.NoError(t, c.SetDeadline(time.Time{}))
	return tlsEnds{c, r, client, server, func() {
		t.Helper()
		close(gated.gate)
		require.NoError(t, receive(t, done))
	}}
}

// probe looks for data through TLS without waiting.
func probe(t *testing.T, c *Conn, client *tls.Conn) (string, error) {
	t.Helper()
	require.True(t, c.SetNonblock(true))
	defer c.SetNonblock(false)
	buf := make([]byte, 16)
	n, err := client.Read(buf)
	return string(buf[:n]), err
}

func requireTimeout(t *testing.T, err error) {
	t.Helper()
	var ne net.Error
	require.True(t, errors.As(err, &ne))
	require.True(t, ne.Timeout())
}

func TestTLSProbe(t *testing.T) {
	ends := tlsPair(t)
	c, client, server := ends.c, ends.client, ends.server
	require.Equal(t, Quiet, c.Peek())
	for range 3 {
		_, err := probe(t, c, client)
		requireTimeout(t, err)
	}

	// The tickets come late. Readable, but clean.
	ends.open()
	await(t, c, Readable)
	got, err := probe(t, c, client)
	requireTimeout(t, err)
	require.Empty(t, got)
	require.Equal(t, Quiet, c.Peek(), "the tickets were not read")

	// Normal use.
	for range 3 {
		send(t, client, "ping")
		expect(t, server, "ping")
		send(t, server, "pong")
		expect(t, client, "pong")
		_, err = probe(t, c, client)
		requireTimeout(t, err)
	}

	// Data that nobody asked for.
	send(t, server, "poison")
	await(t, c, Readable)
	got, err = probe(t, c, client)
	require.NoError(t, err)
	require.Equal(t, "poison", got)

	// The peer's end.
	require.NoError(t, server.Close())
	eventually(t, "the end", func() bool {
		_, err = probe(t, c, client)
		return errors.Is(err, io.EOF)
	})
}

// TestTLSProbeHalfRecord: a record that has come in part is kept.
func TestTLSProbeHalfRecord(t *testing.T) {
	ends := tlsPair(t)
	c, client, server := ends.c, ends.client, ends.server
	ends.open()
	await(t, c, Readable)
	_, err := probe(t, c, client)
	requireTimeout(t, err)

	record := recordOf(t, server, "whole")
	raw := server.NetConn().(*gatedConn).Conn
	for _, b := range record[:len(record)-1] {
		_, err := raw.Write([]byte{b})
		require.NoError(t, err)
		await(t, c, Readable)
		_, err = probe(t, c, client)
		requireTimeout(t, err)
		require.True(t, ends.r.Within())
	}
	_, err = raw.Write(record[len(record)-1:])
	require.NoError(t, err)
	await(t, c, Readable)
	got, err := probe(t, c, client)
	require.NoError(t, err)
	require.Equal(t, "whole", got)
	require.False(t, ends.r.Within())
}

// recordOf returns the bytes that server would send for s, unsent.
func recordOf(t *testing.T, server *tls.Conn, s string) []byte {
	t.Helper()
	gated := server.NetConn().(*gatedConn)
	raw := gated.Conn
	a, b := net.Pipe()
	gated.Conn = a
	defer func() { gated.Conn = raw }()
	got := make(chan []byte, 1)
	go func() {
		buf := make([]byte, 1024)
		n, _ := b.Read(buf)
		got <- buf[:n]
	}()
	send(t, server, s)
	return receive(t, got)
}

// TestTLSCloseNeverBlocks: crypto/tls would wait 5 s to send close_notify.
func TestTLSCloseNeverBlocks(t *testing.T) {
	ends := tlsPair(t)
	c, client := ends.c, ends.client
	ends.open()
	await(t, c, Readable)
	nc := c.NetConn()
	require.NoError(t, nc.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
	_, err := nc.Write(make([]byte, 64<<20))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, nc.SetWriteDeadline(time.Time{}))

	require.True(t, c.SetNonblock(true))
	start := time.Now()
	_ = client.Close()
	require.Less(t, time.Since(start), time.Second)
	require.Equal(t, Ended, c.Peek(), "not closed")
}

// TestTLSCloseNotify: where there is room, close_notify is sent.
func TestTLSCloseNotify(t *testing.T) {
	ends := tlsPair(t)
	c, client, server := ends.c, ends.client, ends.server
	ends.open()
	await(t, c, Readable)
	require.True(t, c.SetNonblock(true))
	require.NoError(t, client.Close())
	_, err := server.Read(make([]byte, 1))
	require.Equal(t, io.EOF, err) // a bare FIN would be io.ErrUnexpectedEOF
}

func TestTLSInterrupt(t *testing.T) {
	ends := tlsPair(t)
	c, client := ends.c, ends.client
	ends.open()
	got := make(chan error, 1)
	go func() {
		_, err := client.Read(make([]byte, 1))
		got <- err
	}()
	c.Interrupt()
	require.ErrorIs(t, receive(t, got), ErrInterrupted)
}
