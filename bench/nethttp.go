package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/keepalive-http/keepalive"
)

// nethttp is a client with net/http's types: net/http's own, or keepalive.
type nethttp struct {
	*place
	rt    http.RoundTripper
	http  *http.Client
	urls  []*url.URL
	texts []string
	stop  func()
}

func newNetHTTP(p *place) (client, error) {
	t := &http.Transport{
		MaxIdleConns:        p.maxIdle,
		MaxIdleConnsPerHost: plenty,
		MaxConnsPerHost:     p.maxPerHost,
		IdleConnTimeout:     never,
		TLSClientConfig:     p.trust,
	}
	return withTypes(p, t, t.CloseIdleConnections)
}

func newKeepalive(p *place) (client, error) {
	opts := []keepalive.Option{
		keepalive.WithMaxIdleConns(p.maxIdle),
		keepalive.WithMaxIdleConnsPerHost(0),
		keepalive.WithMaxConnsPerHost(p.maxPerHost),
		keepalive.WithIdleConnTimeout(never),
		keepalive.WithTLSConfig(p.trust),
		keepalive.WithProxy(nil),
	}
	if p.caller == callDoRequestTimeout {
		opts = append(opts, keepalive.WithRequestTimeout(deadline))
	}
	t, err := keepalive.New(opts...)
	if err != nil {
		return nil, err
	}
	return withTypes(p, t, func() { _ = t.Close() })
}

func withTypes(p *place, rt http.RoundTripper, stop func()) (client, error) {
	c := &nethttp{place: p, rt: rt, http: &http.Client{Transport: rt}, texts: p.urls(), stop: stop}
	if p.caller == callDoTimeout {
		c.http.Timeout = deadline
	}
	for _, text := range c.texts {
		u, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		c.urls = append(c.urls, u)
	}
	return c, nil
}

func (c *nethttp) close() { c.stop() }

// request makes a request to the first host.
func (c *nethttp) request(ctx context.Context) (*http.Request, error) {
	if c.body == nil {
		return http.NewRequestWithContext(ctx, http.MethodGet, c.texts[0], nil)
	}
	return http.NewRequestWithContext(ctx, http.MethodPost, c.texts[0], bytes.NewReader(c.body))
}

func (c *nethttp) worker(pick func() int) (func() error, error) {
	req, err := c.request(background())
	if err != nil {
		return nil, err
	}
	buf := c.buffer()
	switch c.caller {
	case callDeadline:
		return func() error {
			ctx, cancel := context.WithTimeout(background(), deadline)
			defer cancel()
			return c.roundTrip(req.WithContext(ctx), buf)
		}, nil
	case callDo, callDoTimeout, callDoRequestTimeout:
		return func() error { return c.do(buf) }, nil
	case callRoundTrip:
	}
	switch {
	case len(c.urls) > 1:
		return func() error {
			other := *req
			other.URL = c.urls[pick()]
			other.Host = other.URL.Host
			return c.roundTrip(&other, buf)
		}, nil
	case c.body != nil:
		return func() error { // the old body may still be in use
			other := *req
			other.Body = io.NopCloser(bytes.NewReader(c.body))
			return c.roundTrip(&other, buf)
		}, nil
	}
	return func() error { return c.roundTrip(req, buf) }, nil
}

// read reads the answer to its end.
func (c *nethttp) read(resp *http.Response, buf []byte) error {
	err := c.readBody(resp.Body, buf)
	_ = resp.Body.Close()
	return err
}

// roundTrip makes one request by RoundTrip.
func (c *nethttp) roundTrip(req *http.Request, buf []byte) error {
	resp, err := c.rt.RoundTrip(req)
	if err != nil {
		return err
	}
	return c.read(resp, buf)
}

// do makes one request by http.Client.Do.
func (c *nethttp) do(buf []byte) error {
	req, err := c.request(background())
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	return c.read(resp, buf)
}

func (c *nethttp) hold() (finish func() error, err error) {
	req, err := c.request(background())
	if err != nil {
		return nil, err
	}
	resp, err := c.rt.RoundTrip(req) //nolint:bodyclose // finish closes it
	if err != nil {
		return nil, err
	}
	return func() error { return c.read(resp, make([]byte, 512)) }, nil
}
