package keepalive

import (
	"context"
	"crypto/tls"
	"net/http/httptrace"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTraceGuardTellsTheEndOfWhatBegan: also after the request, and nothing else.
func TestTraceGuardTellsTheEndOfWhatBegan(t *testing.T) {
	var got []string
	note := func(s string) { got = append(got, s) }
	ctx, g := guardTrace(t.Context(), &httptrace.ClientTrace{
		DNSStart:          func(httptrace.DNSStartInfo) { note("DNSStart") },
		DNSDone:           func(httptrace.DNSDoneInfo) { note("DNSDone") },
		ConnectDone:       func(string, string, error) { note("ConnectDone") },
		TLSHandshakeStart: func() { note("TLSHandshakeStart") },
		TLSHandshakeDone:  func(tls.ConnectionState, error) { note("TLSHandshakeDone") },
	})
	h := httptrace.ContextClientTrace(ctx)
	h.DNSStart(httptrace.DNSStartInfo{})
	h.DNSDone(httptrace.DNSDoneInfo{})
	h.ConnectStart("tcp", "1") // two at once
	h.ConnectStart("tcp", "2")
	h.ConnectDone("tcp", "1", nil)
	g.end(context.Background())
	require.Equal(t, []string{"DNSStart", "DNSDone", "ConnectDone"}, got)
	h.ConnectDone("tcp", "2", nil)
	h.TLSHandshakeStart()
	h.TLSHandshakeDone(tls.ConnectionState{}, nil)
	h.DNSStart(httptrace.DNSStartInfo{})
	h.DNSDone(httptrace.DNSDoneInfo{})
	require.Equal(t, []string{"DNSStart", "DNSDone", "ConnectDone", "ConnectDone"}, got)
}
