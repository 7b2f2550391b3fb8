package keepalive

import (
	"context"
	"slices"
	"time"
)

// timeouts are the limits that a request's context can replace. 0 means none,
// for expectContinue not to wait.
type timeouts struct {
	acquire, responseHeader, expectContinue, bodyRead, write, request time.Duration
}

// deadline is a moment at which a phase has to end, and the error it ends
// with. The zero value means never.
type deadline struct {
	at  time.Time
	err error
}

// after returns the deadline d after now; d <= 0 means never.
func after(now time.Time, d time.Duration, err error) deadline {
	if d <= 0 {
		return deadline{}
	}
	return deadline{now.Add(d), err}
}

// or returns the earlier of two deadlines.
func (d deadline) or(e deadline) deadline {
	if d.at.IsZero() || !e.at.IsZero() && e.at.Before(d.at) {
		return e
	}
	return d
}

// RequestOption is a setting for one request. See ContextWithOptions.
type RequestOption func(*requestOptions)

// requestOptions are a request's own settings, from its context.
type requestOptions struct {
	fresh, noReuse, noRetry bool
	replace                 [numTimeouts]*time.Duration
	refused                 [numTimeouts]error // why replace has none
	errs                    []error            // of other options
}

// The timeouts that a request can replace, as indexes of requestOptions.replace.
const (
	toAcquire = iota
	toResponseHeader
	toExpectContinue
	toBodyRead
	toWrite
	toRequest
	numTimeouts
)

type requestOptionsKey struct{}

// ContextWithOptions returns a context that carries settings for the requests
// made with it: they hold in place of the Transport's. Settings already in ctx
// stay, unless an option replaces them. A negative timeout, and a nil
// option, is refused by RoundTrip.
//
//	ctx = keepalive.ContextWithOptions(ctx, keepalive.FreshConn(), keepalive.NoRetry())
//	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
func ContextWithOptions(ctx context.Context, opts ...RequestOption) context.Context {
	var o requestOptions
	if outer, ok := ctx.Value(requestOptionsKey{}).(*requestOptions); ok {
		o = *outer
	}
	for _, opt := range opts {
		if opt == nil {
			o.errs = append(slices.Clip(o.errs), &OptionError{"ContextWithOptions", nil, "want a RequestOption"})
			continue
		}
		opt(&o)
	}
	return context.WithValue(ctx, requestOptionsKey{}, &o)
}

// FreshConn makes a request use a newly dialed connection. The connection may
// be used again afterwards; see NoReuse.
func FreshConn() RequestOption { return func(o *requestOptions) { o.fresh = true } }

// NoReuse makes the connection of a request end with it. "Connection: close"
// is sent.
func NoReuse() RequestOption { return func(o *requestOptions) { o.noReuse = true } }

// NoRetry makes a request be sent at most once. A connection that is found
// dead before anything was sent is still replaced.
func NoRetry() RequestOption { return func(o *requestOptions) { o.noRetry = true } }

// AcquireTimeout replaces WithAcquireTimeout for a request. 0 means no limit.
func AcquireTimeout(d time.Duration) RequestOption {
	return replaceTimeout("AcquireTimeout", toAcquire, d)
}

// ResponseHeaderTimeout replaces WithResponseHeaderTimeout for a request.
// 0 means no limit.
func ResponseHeaderTimeout(d time.Duration) RequestOption {
	return replaceTimeout("ResponseHeaderTimeout", toResponseHeader, d)
}

// ExpectContinueTimeout replaces WithExpectContinueTimeout for a request over
// HTTP/1. 0 means not to wait.
func ExpectContinueTimeout(d time.Duration) RequestOption {
	return replaceTimeout("ExpectContinueTimeout", toExpectContinue, d)
}

// BodyReadTimeout replaces WithBodyReadTimeout for a request. 0 means no limit.
func BodyReadTimeout(d time.Duration) RequestOption {
	return replaceTimeout("BodyReadTimeout", toBodyRead, d)
}

// WriteTimeout replaces WithWriteTimeout for a request over HTTP/1. 0 means no
// limit. An HTTP/2 connection is shared, and has one limit for all.
func WriteTimeout(d time.Duration) RequestOption {
	return replaceTimeout("WriteTimeout", toWrite, d)
}

// RequestTimeout replaces WithRequestTimeout for a request. 0 means no limit.
func RequestTimeout(d time.Duration) RequestOption {
	return replaceTimeout("RequestTimeout", toRequest, d)
}

func replaceTimeout(name string, which int, d time.Duration) RequestOption {
	return func(o *requestOptions) {
		o.replace[which], o.refused[which] = &d, nil
		if d < 0 {
			o.replace[which], o.refused[which] = nil, &OptionError{name, d, "want >= 0"}
		}
	}
}

// apply returns t with what o replaces.
func (o *requestOptions) apply(t timeouts) timeouts {
	for i, field := range [numTimeouts]*time.Duration{
		toAcquire: &t.acquire, toResponseHeader: &t.responseHeader, toExpectContinue: &t.expectContinue,
		toBodyRead: &t.bodyRead, toWrite: &t.write, toRequest: &t.request,
	} {
		if d := o.replace[i]; d != nil {
			*field = *d
		}
	}
	return t
}
