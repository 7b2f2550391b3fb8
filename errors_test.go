package keepalive

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/netfake"
)

// TestErrorsOfTheBodyAreErrors: as all that come of a request which was begun.
func TestErrorsOfTheBodyAreErrors(t *testing.T) {
	short := func(r *http.Request) { r.ContentLength = 20 }
	for _, tt := range []struct {
		name, method string
		body         io.Reader
		change       func(*http.Request)
		attempts     int
	}{
		{"small, in memory", http.MethodPost, strings.NewReader("0123456789"), short, 1},
		{"large, in memory", http.MethodPost, bytes.NewReader(make([]byte, 2*maxInlineBody)), short, 1},
		{"streamed", http.MethodPost, io.MultiReader(strings.NewReader("0123456789")), short, 1},
		{"of unknown length", http.MethodGet, failingEnd{strings.NewReader("")}, func(*http.Request) {}, 1},
		{"GetBody", http.MethodPut, strings.NewReader("0123456789"), func(r *http.Request) {
			r.Body, r.GetBody = io.NopCloser(io.MultiReader(r.Body)), func() (io.ReadCloser, error) { return nil, errAtEnd }
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
				reply(n, t, "a:80", func(_, _ int, r *http.Request) string {
					if r.Method == http.MethodPut {
						return ""
					}
					return ok("")
				})
				require.Equal(t, "", mustGet(t, tr, "http://a/"))
				time.Sleep(time.Second)
				req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://a/", tt.body)
				require.NoError(t, err)
				tt.change(req)
				_, err = tr.RoundTrip(req)
				e, ok := errors.AsType[*Error](err)
				require.True(t, ok, "%T %v", err, err)
				require.Equal(t, tt.attempts, e.Attempts)
				require.ErrorIs(t, err, ErrRequestBody)
			})
		})
	}
}

// TestPoolKeyStaysOutOfTexts: it may be a secret.
func TestPoolKeyStaysOutOfTexts(t *testing.T) {
	hosts := []string{}
	strategy := strategyFunc(func(_ *http.Response, c ConnInfo, v ReuseVerdict) ReuseVerdict {
		hosts = append(hosts, c.Host)
		return v
	})
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		mustGet(t, tr, "http://a/")
		_, err := fetch(t.Context(), tr, http.MethodGet, "http://nowhere/")
		e, ok := errors.AsType[*Error](err)
		require.True(t, ok)
		require.Equal(t, "http://nowhere:80", e.Host)
		require.Equal(t, []string{"http://a:80"}, hosts)
		require.Contains(t, tr.Stats().Hosts, "http://a:80 (secret)", "it is needed there")
	}, WithPoolKey(func(*http.Request) string { return "secret" }), WithReuseStrategy(strategy))
}

func TestFromTransportReplacesWhatCameBefore(t *testing.T) {
	cfg, err := newConfig([]Option{
		WithTLSConfig(&tls.Config{InsecureSkipVerify: true}),
		WithHTTP2Config(http.HTTP2Config{MaxConcurrentStreams: 7}),
		FromTransport(new(http.Transport)),
	})
	require.NoError(t, err)
	require.False(t, cfg.tlsConfig != nil && cfg.tlsConfig.InsecureSkipVerify)
	require.Nil(t, cfg.http2)
}

func TestRequestOptionsThatAreRefused(t *testing.T) {
	bubble(t, func(t *testing.T, n *netfake.Net, tr *Transport) {
		reply(n, t, "a:80", connNumber)
		_, err := fetch(ContextWithOptions(t.Context(), nil), tr, http.MethodGet, "http://a/")
		require.ErrorContains(t, err, "ContextWithOptions")
		bad := ContextWithOptions(t.Context(), RequestTimeout(-1), WriteTimeout(-2))
		_, err = fetch(bad, tr, http.MethodGet, "http://a/")
		require.ErrorContains(t, err, "RequestTimeout")
		require.ErrorContains(t, err, "WriteTimeout")
		for _, good := range []context.Context{
			ContextWithOptions(bad, RequestTimeout(time.Second), WriteTimeout(0)),
			ContextWithOptions(t.Context(), RequestTimeout(-1), RequestTimeout(time.Second)),
		} {
			_, err = fetch(good, tr, http.MethodGet, "http://a/")
			require.NoError(t, err)
		}
	})
}

func TestStrategyThatSubtractsTooMuch(t *testing.T) {
	for _, v := range []ReuseVerdict{{Keep: true, IdleTimeout: -1}, {Keep: true, MaxRequests: -1}} {
		require.Equal(t, CloseStrategy, keptVerdict.stricter(v).reason)
	}
}
