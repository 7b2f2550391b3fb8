package keepalive

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/keepalive-http/keepalive/internal/wire"
)

func TestJudge(t *testing.T) {
	const length = "Content-Length: 1"
	keep := verdict{ReuseVerdict: ReuseVerdict{Keep: true}}
	odd := verdict{reason: CloseProtocolError, odd: true}
	for _, tt := range []struct {
		name   string
		status string
		lines  []string
		last   CloseReason
		want   verdict
	}{
		{name: "length", lines: []string{length}, want: keep},
		{name: "chunked", lines: []string{"Transfer-Encoding: chunked"}, want: keep},
		{name: "no body", status: "HTTP/1.1 204 No Content", want: keep},
		{name: "delimited by close", want: drop(CloseDelimited)},
		{name: "folded line", lines: []string{length, "A: b\r\n c"}, want: odd},
		{name: "HTTP/1.2", status: "HTTP/1.2 200 OK", lines: []string{length}, want: odd},
		{name: "204 with a length", status: "HTTP/1.1 204 No Content", lines: []string{length}, want: odd},
		{name: "oddity beats all", lines: []string{length, "A: b\r\n c"}, last: CloseClientRequest, want: odd},
		{name: "request close", lines: []string{length}, last: CloseClientRequest, want: drop(CloseClientRequest)},
		{name: "last request", lines: []string{length}, last: CloseMaxRequests, want: drop(CloseMaxRequests)},
		{name: "close", lines: []string{length, "Connection: close"}, want: drop(CloseServerRequest)},
		{name: "close in a list", lines: []string{length, "Connection: foo, close"}, want: drop(CloseServerRequest)},
		{name: "close in any case", lines: []string{length, "Connection: CLOSE,foo"}, want: drop(CloseServerRequest)},
		{name: "close in the second line", lines: []string{length, "Connection: foo", "Connection: close"}, want: drop(CloseServerRequest)},
		{name: "close beats keep-alive", lines: []string{length, "Connection: keep-alive, close"}, want: drop(CloseServerRequest)},
		{name: "xclose is not close", lines: []string{length, "Connection: xclose"}, want: keep},
		{name: "1.0", status: "HTTP/1.0 200 OK", lines: []string{length}, want: drop(CloseServerRequest)},
		{name: "1.0 keep-alive", status: "HTTP/1.0 200 OK", lines: []string{length, "Connection: Keep-Alive"}, want: keep},
		{name: "1.0 keep-alive in a list", status: "HTTP/1.0 200 OK", lines: []string{length, "Connection: foo, keep-alive"}, want: keep},
		{name: "1.0 keep-alive and close", status: "HTTP/1.0 200 OK", lines: []string{length, "Connection: keep-alive, close"}, want: drop(CloseServerRequest)},
		{
			name: "1.0 keep-alive, delimited by close", status: "HTTP/1.0 200 OK",
			lines: []string{"Connection: keep-alive"}, want: drop(CloseDelimited),
		},
		{
			name: "hint", lines: []string{length, "Keep-Alive: timeout=5, max=100"},
			want: verdict{ReuseVerdict: ReuseVerdict{Keep: true, IdleTimeout: 4 * time.Second, MaxRequests: 100}},
		},
		{name: "timeout 0", lines: []string{length, "Keep-Alive: timeout=0"}, want: drop(CloseServerRequest)},
		{name: "max 0", lines: []string{length, "Keep-Alive: max=0"}, want: drop(CloseMaxRequests)},
		{name: "hint that says nothing", lines: []string{length, "Keep-Alive: foo"}, want: keep},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.status == "" {
				tt.status = "HTTP/1.1 200 OK"
			}
			raw := strings.Join(append([]string{tt.status}, tt.lines...), "\r\n") + "\r\n\r\n"
			rd := wire.GetReader(strings.NewReader(raw))
			defer rd.Free()
			head, err := wire.ReadHead(rd, "GET", 1<<20)
			require.NoError(t, err)
			got := judge(answer{
				resp: head.Response, framing: head.Framing, oddity: head.Oddity, last: tt.last,
			})
			require.Equal(t, tt.want, got)
		})
	}
}

func TestJudgeCountsTheRoundTrip(t *testing.T) {
	resp := &http.Response{ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Keep-Alive": {"timeout=1"}}}
	require.Equal(t, 480*time.Millisecond, judge(answer{resp: resp, rtt: 20 * time.Millisecond}).IdleTimeout)
	require.Equal(t, drop(CloseServerRequest), judge(answer{resp: resp, rtt: 500 * time.Millisecond}))
}

func TestJudgeEnd(t *testing.T) {
	keep := verdict{ReuseVerdict: ReuseVerdict{Keep: true}}
	done := ending{bodyDone: true, requestSent: true}
	for _, tt := range []struct {
		name string
		v    verdict
		e    ending
		want CloseReason
	}{
		{"complete", keep, done, CloseNone},
		{"head says no", drop(CloseServerRequest), done, CloseServerRequest},
		{"leftover", keep, ending{bodyDone: true, requestSent: true, leftover: true}, CloseProtocolError},
		{"leftover beats the head", drop(CloseServerRequest), ending{bodyDone: true, leftover: true}, CloseProtocolError},
		{"body unread", keep, ending{requestSent: true}, CloseUnreadBody},
		{"request unsent", keep, ending{bodyDone: true}, CloseRequestUnsent},
	} {
		t.Run(tt.name, func(t *testing.T) { require.Equal(t, tt.want, judgeEnd(tt.v, tt.e).reason) })
	}
}

func TestStricter(t *testing.T) {
	rules := verdict{ReuseVerdict: ReuseVerdict{Keep: true, IdleTimeout: time.Minute}}
	require.Equal(t, CloseStrategy, rules.stricter(ReuseVerdict{}).reason)
	require.Equal(t, time.Second, rules.stricter(ReuseVerdict{Keep: true, IdleTimeout: time.Second}).IdleTimeout)
	require.Equal(t, time.Minute, rules.stricter(ReuseVerdict{Keep: true, IdleTimeout: time.Hour}).IdleTimeout, "never longer")
	require.Equal(t, time.Minute, rules.stricter(ReuseVerdict{Keep: true}).IdleTimeout)
	require.Equal(t, 3, rules.stricter(ReuseVerdict{Keep: true, MaxRequests: 3}).MaxRequests)
}

func TestParseKeepAlive(t *testing.T) {
	timeout := func(d time.Duration) keepAliveHint { return keepAliveHint{timeout: d, hasTimeout: true} }
	maxOf := func(n int) keepAliveHint { return keepAliveHint{max: n, hasMax: true} }
	for _, tt := range []struct {
		in   string
		want keepAliveHint
	}{
		{"timeout=5", timeout(5 * time.Second)},
		{"timeout=5, max=100", keepAliveHint{5 * time.Second, 100, true, true}},
		{"max=100, timeout=5", keepAliveHint{5 * time.Second, 100, true, true}},
		{"max=100;timeout=5", keepAliveHint{5 * time.Second, 100, true, true}},
		{"Timeout = 5", timeout(5 * time.Second)},
		{`TIMEOUT="5"`, timeout(5 * time.Second)},
		{"timeout=2s", timeout(2 * time.Second)},
		{"timeout=1.5", timeout(1500 * time.Millisecond)},
		{"timeout=0", timeout(0)},
		{"timeout=7, timeout=5", timeout(5 * time.Second)},
		{"max=3, max=7", maxOf(3)},
		{"max=0", maxOf(0)},
		{"", keepAliveHint{}},
		{"timeout", keepAliveHint{}},
		{"timeout=", keepAliveHint{}},
		{"timeout=-1", keepAliveHint{}},
		{"timeout=abc", keepAliveHint{}},
		{"timeout=1e9", keepAliveHint{}},
		{"timeout=.", keepAliveHint{}},
		{"timeout=99999999999999999999999", keepAliveHint{}},
		{"max=99999999999999999999999", keepAliveHint{}},
		{"max=-1", keepAliveHint{}},
		{"max=1.5", keepAliveHint{}},
		{"xtimeout=5", keepAliveHint{}},
		{",,;,", keepAliveHint{}},
	} {
		t.Run(tt.in, func(t *testing.T) { require.Equal(t, tt.want, parseKeepAlive([]string{tt.in})) })
	}
	require.Equal(t, keepAliveHint{5 * time.Second, 9, true, true}, parseKeepAlive([]string{"timeout=5", "max=9"}), "two lines")
}

func FuzzParseKeepAlive(f *testing.F) {
	for _, s := range []string{"timeout=5, max=100", `TIMEOUT = "2s";max=1`, "timeout=1.5.2", "max=-0", "=,=;", "timeout=\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h := parseKeepAlive([]string{s})
		if h.timeout < 0 || h.timeout > maxHint || h.max < 0 {
			t.Fatalf("parseKeepAlive(%q) = %+v", s, h)
		}
		if !h.hasTimeout && h.timeout != 0 || !h.hasMax && h.max != 0 {
			t.Fatalf("parseKeepAlive(%q) has a value without saying so: %+v", s, h)
		}
	})
}

func TestKeepAliveMargin(t *testing.T) {
	for _, tt := range []struct{ timeout, want time.Duration }{
		{time.Second, 500 * time.Millisecond},
		{2 * time.Second, time.Second},
		{5 * time.Second, time.Second},
		{60 * time.Second, 6 * time.Second},
		{time.Hour, 10 * time.Second},
	} {
		require.Equal(t, tt.want, keepAliveMargin(tt.timeout, 0), tt.timeout)
		require.Equal(t, tt.want+time.Millisecond, keepAliveMargin(tt.timeout, time.Millisecond), tt.timeout)
	}
}

func TestCloseReasonsHaveWords(t *testing.T) {
	seen := map[string]bool{}
	for r := range numCloseReasons {
		s := r.String()
		require.NotEmpty(t, s)
		require.False(t, seen[s], s)
		seen[s] = true
	}
	require.Equal(t, "unknown", numCloseReasons.String())
}
