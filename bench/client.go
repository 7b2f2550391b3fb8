package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"time"
)

const (
	// never is a time that no scenario reaches.
	never = 10 * time.Minute
	// plenty is a limit that no scenario reaches.
	plenty = 1 << 15
	// deadline is how long a request may take where it has a limit.
	deadline = 10 * time.Second
)

// client is one of the clients that are compared. Safe for concurrent use.
type client interface {
	// worker returns a function that makes one request and reads the answer to
	// its end. It is for one goroutine; pick says which host is next.
	worker(pick func() int) (func() error, error)
	// hold makes a request whose answer the server holds back, and returns when
	// its head has come; finish reads the rest.
	hold() (finish func() error, err error)
	close()
}

// place is what a client is told of the work and where it is done.
type place struct {
	*scenario
	addrs []string
	trust *tls.Config // nil: not over TLS
	body  []byte      // of requests; nil: GET
}

func newPlace(s *scenario, h hello) (*place, error) {
	p := &place{scenario: s, addrs: h.Addrs}
	if s.upload > 0 {
		p.body = bytes.Repeat([]byte("y"), s.upload)
	}
	if s.tls {
		cert, err := x509.ParseCertificate(h.Cert)
		if err != nil {
			return nil, err
		}
		p.trust = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS13}
		p.trust.RootCAs.AddCert(cert)
	}
	return p, nil
}

func (p *place) urls() []string {
	scheme := "http"
	if p.tls {
		scheme = "https"
	}
	urls := make([]string, len(p.addrs))
	for i, addr := range p.addrs {
		urls[i] = scheme + "://" + addr + "/bench"
	}
	return urls
}

// perHost is the limit on connections to one host, for clients that must have
// one.
func (p *place) perHost() int {
	if p.maxPerHost > 0 {
		return p.maxPerHost
	}
	return plenty
}

// holds reports whether answers are held back.
func (p *place) holds() bool { return p.kind == kindIdle || p.kind == kindHangup }

// newClient returns the client with that name.
func newClient(name string, p *place) (client, error) {
	switch name {
	case nameNetHTTP:
		return newNetHTTP(p)
	case nameKeepalive:
		return newKeepalive(p)
	case nameFastHTTP:
		return newFastHTTP(p), nil
	case nameHertz:
		return newHertz(p)
	case nameTypes:
		return newTypes(p)
	case nameFloor:
		return newFloor(p), nil
	}
	return nil, fmt.Errorf("no client %q", name)
}

// wantSize refuses an answer of another size than the server's.
func (p *place) wantSize(n int) error {
	if want := bodySize(p.scenario); n != want {
		return fmt.Errorf("got a body of %d bytes, want %d", n, want)
	}
	return nil
}

// buffer returns what a goroutine reads bodies with: with a large one for each
// of many goroutines, making them would be part of the figures.
func (p *place) buffer() []byte { return make([]byte, min(bodySize(p.scenario)+512, 32<<10)) }

// readBody reads a response body to its end.
func (p *place) readBody(body io.Reader, buf []byte) error {
	for n := 0; ; {
		m, err := body.Read(buf)
		n += m
		if err == io.EOF {
			return p.wantSize(n)
		}
		if err != nil {
			return err
		}
	}
}

// background is the context of all requests: what they do is bounded by the
// process, which the command ends.
func background() context.Context { return context.Background() }
