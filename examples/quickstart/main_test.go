package main

import (
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cells returns the columns of the row that begins with name.
func cells(t *testing.T, out, name string) (ours, theirs string) {
	t.Helper()
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			f := strings.Fields(strings.ReplaceAll(rest, " %", "%"))
			require.GreaterOrEqual(t, len(f), 2, "row %q", line)
			return f[0], f[1]
		}
	}
	require.Failf(t, "row missing", "no row %q in:\n%s", name, out)
	return "", ""
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	require.NoError(t, err)
	return n
}

func TestRunEmbedded(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(t.Context(), []string{"-n", "205", "-c", "10"}, &out))
	text := out.String()
	require.Less(t, strings.Count(text, "\n"), 20)

	ours, theirs := cells(t, text, "requests answered")
	require.Equal(t, []string{"205", "205"}, []string{ours, theirs})
	ours, theirs = cells(t, text, "errors")
	require.Equal(t, []string{"0", "0"}, []string{ours, theirs})
	ours, theirs = cells(t, text, "connections opened")
	require.LessOrEqual(t, number(t, ours), 10)
	require.Greater(t, number(t, theirs), 10, "net/http keeps two idle connections of a host")
	closed, _ := cells(t, text, "closed: transport closed")
	require.Equal(t, ours, closed)
}

func TestRunOwnServer(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hi") })
	plain, secure := httptest.NewServer(h), httptest.NewTLSServer(h)
	defer plain.Close()
	defer secure.Close()
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"http", []string{"-n", "20", "-c", "4", plain.URL}},
		{"https", []string{"-n", "20", "-c", "4", "-insecure", secure.URL + "/x?y=z"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			require.NoError(t, run(t.Context(), tt.args, &out))
			ours, theirs := cells(t, out.String(), "requests answered")
			require.Equal(t, []string{"20", "20"}, []string{ours, theirs})
			opened, _ := cells(t, out.String(), "connections opened")
			require.LessOrEqual(t, number(t, opened), 4)
			proto, _ := cells(t, out.String(), "protocol")
			require.Equal(t, "HTTP/1.1", proto)
		})
	}
}

// A server that closes each connection after its answer is shown as such.
func TestRunShowsCloseReasons(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
	}))
	defer srv.Close()
	var out strings.Builder
	require.NoError(t, run(t.Context(), []string{"-n", "10", "-c", "2", srv.URL}, &out))
	closed, _ := cells(t, out.String(), "closed: closed by the server's request")
	require.Equal(t, "10", closed)
	rate, _ := cells(t, out.String(), "reuse rate")
	require.Equal(t, "0.0%", rate)
}

func TestRunAllFail(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, ln.Close()) // nobody listens there any more
	var out strings.Builder
	err = run(t.Context(), []string{"http://" + ln.Addr().String()}, &out)
	require.ErrorContains(t, err, "all requests failed")
	var usage usageError
	require.False(t, errors.As(err, &usage))
	ours, theirs := cells(t, out.String(), "errors")
	require.Equal(t, []string{"10", "10"}, []string{ours, theirs}, "it gives up after one round")
	require.Contains(t, out.String(), "first error: ")
}

func TestRunTimeout(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}))
	defer srv.Close()
	var out strings.Builder
	err := run(t.Context(), []string{"-timeout", "50ms", "-n", "6", "-c", "3", srv.URL}, &out)
	require.ErrorContains(t, err, "all requests failed")
	ours, _ := cells(t, out.String(), "errors")
	require.Equal(t, "3", ours)
}

func TestRunRefusesArguments(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"foo", "want http:// or https://"},
		{"ftp://host/", "want http:// or https://"},
		{"http://", "no host"},
		{"http://:80/", "no host"},
		{"http://%zz/", "bad URL"},
		{"http://a/ http://b/", "one URL at most"},
		{"-n 0", "-n 0: want 1 to 1000000"},
		{"-n 1000001", "-n 1000001"},
		{"-c 0", "-c 0: want 1 to 1000"},
		{"-c 1001", "-c 1001"},
		{"-n x", "invalid value"},
		{"-timeout 0s", "-timeout 0s"},
		{"-timeout 2h", "-timeout 2h"},
		{"-unknown", "not defined"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			var out strings.Builder
			err := run(t.Context(), strings.Fields(tt.args), &out)
			require.ErrorContains(t, err, tt.want)
			var usage usageError
			require.ErrorAs(t, err, &usage)
			require.Empty(t, out.String())
		})
	}
}

func TestRunHelp(t *testing.T) {
	var out strings.Builder
	require.ErrorIs(t, run(t.Context(), []string{"-h"}, &out), flag.ErrHelp)
	require.Contains(t, out.String(), "usage: quickstart")
}
