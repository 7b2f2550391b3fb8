package main

import (
	"time"

	"github.com/valyala/fasthttp"
)

// fastHTTP is fasthttp's client.
type fastHTTP struct {
	*place
	c     *fasthttp.Client
	texts []string
}

func newFastHTTP(p *place) client {
	return &fastHTTP{place: p, texts: p.urls(), c: &fasthttp.Client{
		MaxConnsPerHost:     p.perHost(),
		MaxConnWaitTimeout:  never,
		MaxIdleConnDuration: never,
		TLSConfig:           p.trust,
		StreamResponseBody:  p.holds(),
	}}
}

func (c *fastHTTP) close() { c.c.CloseIdleConnections() }

func (c *fastHTTP) prepare(req *fasthttp.Request) {
	req.SetRequestURI(c.texts[0])
	if c.body != nil {
		req.Header.SetMethod(fasthttp.MethodPost)
		req.SetBodyRaw(c.body)
	}
}

func (c *fastHTTP) worker(pick func() int) (func() error, error) {
	req, resp := new(fasthttp.Request), new(fasthttp.Response)
	c.prepare(req)
	switch c.caller {
	case callDeadline:
		return func() error {
			err := c.c.DoDeadline(req, resp, time.Now().Add(deadline))
			return c.check(resp, err)
		}, nil
	case callDo, callDoTimeout, callDoRequestTimeout:
		return c.do, nil
	case callRoundTrip:
	}
	return func() error {
		if len(c.texts) > 1 {
			req.SetRequestURI(c.texts[pick()])
		}
		return c.check(resp, c.c.Do(req, resp))
	}, nil
}

// do makes one request with a request and a response of its own.
func (c *fastHTTP) do() error {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	c.prepare(req)
	if c.caller == callDo {
		return c.check(resp, c.c.Do(req, resp))
	}
	return c.check(resp, c.c.DoTimeout(req, resp, deadline))
}

func (c *fastHTTP) check(resp *fasthttp.Response, err error) error {
	if err != nil {
		return err
	}
	return c.wantSize(len(resp.Body()))
}

func (c *fastHTTP) hold() (finish func() error, err error) {
	req, resp := new(fasthttp.Request), new(fasthttp.Response)
	c.prepare(req)
	if err := c.c.Do(req, resp); err != nil {
		return nil, err
	}
	return func() error {
		err := c.readBody(resp.BodyStream(), make([]byte, 512))
		_ = resp.CloseBodyStream()
		return err
	}, nil
}
