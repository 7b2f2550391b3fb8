package main

import (
	hertz "github.com/cloudwego/hertz/pkg/app/client"
	"github.com/cloudwego/hertz/pkg/common/config"
	"github.com/cloudwego/hertz/pkg/network/standard"
	"github.com/cloudwego/hertz/pkg/protocol"
)

// hertzClient is hertz's client, on netpoll; over TLS, which that lacks, on
// the standard library's sockets.
type hertzClient struct {
	*place
	c     *hertz.Client
	texts []string
}

func newHertz(p *place) (client, error) {
	opts := []config.ClientOption{
		hertz.WithMaxConnsPerHost(p.perHost()),
		hertz.WithMaxConnWaitTimeout(never),
		hertz.WithMaxIdleConnDuration(never),
		hertz.WithResponseBodyStream(p.holds()),
	}
	if p.trust != nil {
		opts = append(opts, hertz.WithTLSConfig(p.trust), hertz.WithDialer(standard.NewDialer()))
	}
	c, err := hertz.NewClient(opts...)
	return &hertzClient{place: p, c: c, texts: p.urls()}, err
}

func (c *hertzClient) close() { c.c.CloseIdleConnections() }

func (c *hertzClient) prepare(req *protocol.Request) {
	req.SetRequestURI(c.texts[0])
	if c.body != nil {
		req.SetMethod("POST")
		req.SetBodyRaw(c.body)
	}
}

func (c *hertzClient) worker(pick func() int) (func() error, error) {
	req, resp := new(protocol.Request), new(protocol.Response)
	c.prepare(req)
	switch c.caller {
	case callDeadline:
		return func() error {
			return c.check(resp, c.c.DoTimeout(background(), req, resp, deadline))
		}, nil
	case callDo, callDoTimeout, callDoRequestTimeout:
		return c.do, nil
	case callRoundTrip:
	}
	return func() error {
		if len(c.texts) > 1 {
			req.SetRequestURI(c.texts[pick()])
		}
		return c.check(resp, c.c.Do(background(), req, resp))
	}, nil
}

// do makes one request with a request and a response of its own.
func (c *hertzClient) do() error {
	req, resp := protocol.AcquireRequest(), protocol.AcquireResponse()
	defer protocol.ReleaseRequest(req)
	defer protocol.ReleaseResponse(resp)
	c.prepare(req)
	if c.caller == callDo {
		return c.check(resp, c.c.Do(background(), req, resp))
	}
	return c.check(resp, c.c.DoTimeout(background(), req, resp, deadline))
}

func (c *hertzClient) check(resp *protocol.Response, err error) error {
	if err != nil {
		return err
	}
	return c.wantSize(len(resp.Body()))
}

func (c *hertzClient) hold() (finish func() error, err error) {
	req, resp := new(protocol.Request), new(protocol.Response)
	c.prepare(req)
	if err := c.c.Do(background(), req, resp); err != nil {
		return nil, err
	}
	return func() error {
		err := c.readBody(resp.BodyStream(), make([]byte, 512))
		_ = resp.CloseBodyStream()
		return err
	}, nil
}
