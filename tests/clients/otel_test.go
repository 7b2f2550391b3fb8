package clients_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/contrib/instrumentation/net/http/httptrace/otelhttptrace"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// telemetry is a client whose requests leave spans.
type telemetry struct {
	client *http.Client
	spans  *tracetest.SpanRecorder
}

func newTelemetry(t *testing.T, s *subject) telemetry {
	t.Helper()
	spans := tracetest.NewSpanRecorder()
	tp := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	t.Cleanup(func() { require.NoError(t, tp.Shutdown(context.WithoutCancel(t.Context()))) })
	return telemetry{
		client: &http.Client{Transport: otelhttp.NewTransport(s,
			otelhttp.WithTracerProvider(tp),
			otelhttp.WithPropagators(propagation.TraceContext{}),
			otelhttp.WithClientTrace(func(ctx context.Context) *httptrace.ClientTrace {
				return otelhttptrace.NewClientTrace(ctx)
			}),
		)},
		spans: spans,
	}
}

// take returns the spans since the last call by name, when all have ended.
func (o telemetry) take(t *testing.T) map[string]sdktrace.ReadOnlySpan {
	t.Helper()
	eventually(t, func() bool { return len(o.spans.Started()) == len(o.spans.Ended()) }, "spans that do not end")
	m := map[string]sdktrace.ReadOnlySpan{}
	for _, span := range o.spans.Ended() {
		m[span.Name()] = span
	}
	o.spans.Reset()
	return m
}

func names(m map[string]sdktrace.ReadOnlySpan) []string {
	var list []string
	for name := range m {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

func attribute(span sdktrace.ReadOnlySpan, key string) string {
	for _, a := range span.Attributes() {
		if string(a.Key) == key {
			return a.Value.String()
		}
	}
	return ""
}

// traced answers with the traceparent of the request and its body.
var traced = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	_, _ = io.WriteString(w, r.Header.Get("Traceparent")+" "+string(body))
})

// TestOtelSpans: the phases of a request are spans, each one ends, and those of
// the connection are there only for the request that opened it.
func TestOtelSpans(t *testing.T) {
	t.Parallel()
	reused := []string{"HTTP POST", "http.getconn", "http.headers", "http.receive", "http.send"}
	tests := []struct {
		scheme, host string
		first        []string
	}{
		{"http", "localhost", []string{
			"HTTP POST", "http.connect", "http.dns", "http.getconn", "http.headers", "http.receive", "http.send",
		}},
		{"https", "127.0.0.1", []string{
			"HTTP POST", "http.connect", "http.getconn", "http.headers", "http.receive", "http.send", "http.tls",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.scheme, func(t *testing.T) {
			t.Parallel()
			both(t, 1, func(t *testing.T, s *subject) {
				o := newTelemetry(t, s)
				url := strings.Replace(s.serve(t, tt.scheme, traced).URL, "127.0.0.1", tt.host, 1)
				for i, body := range []string{"short", strings.Repeat("long", 100_000)} {
					resp, err := o.client.Post(url, "text/plain", strings.NewReader(body))
					parent, rest, _ := strings.Cut(text(t, resp, err), " ")
					require.True(t, rest == body)
					spans := o.take(t)
					want := reused
					if i == 0 {
						want = tt.first
					}
					require.Equal(t, want, names(spans))
					root := spans["HTTP POST"]
					require.Contains(t, parent, root.SpanContext().SpanID().String())
					for _, span := range spans {
						require.Equal(t, root.SpanContext().TraceID(), span.SpanContext().TraceID())
						if span.Name() != "http.connect" { // localhost may have an address that refuses
							require.NotEqual(t, codes.Error, span.Status().Code, span.Name())
						}
					}
					require.Equal(t, i == 1, attribute(spans["http.getconn"], "http.conn.reused") == "true")
				}
			})
		})
	}
}

// TestOtelRefused: the span says why there was no connection.
func TestOtelRefused(t *testing.T) {
	t.Parallel()
	both(t, 0, func(t *testing.T, s *subject) {
		o := newTelemetry(t, s)
		_, err := o.client.Get("http://" + refusing(t))
		require.Error(t, err)
		eventually(t, func() bool {
			return slices.ContainsFunc(o.spans.Ended(), func(span sdktrace.ReadOnlySpan) bool {
				return span.Name() == "http.connect" && span.Status().Code == codes.Error
			})
		}, "the span of the failed connect")
	})
}
