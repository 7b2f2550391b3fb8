package faultserver

import (
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// echo answers each request with its path.
func echo(x *Exchange) { x.Reply(200, x.Request.URL.Path) }

func silent(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Millisecond)))
	_, err := c.Read(make([]byte, 1))
	require.True(t, err.(net.Error).Timeout(), "%v", err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(waitLimit)))
}

func TestRelayForwards(t *testing.T) {
	s := New(t, func(x *Exchange) {
		body, _ := x.ReadBody()
		x.Reply(200, string(body))
	})
	r := NewRelay(t, s.Addr)
	c := dial(t, r.Addr)
	body := strings.Repeat("0123456789", 300_000) // more than the queue holds
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\n"+body)
		sent <- err
	}()
	expect(t, c, "HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n"+body)
	require.NoError(t, <-sent)
	require.Equal(t, []int{1, 1}, []int{r.Accepted(), r.Open()})

	require.NoError(t, c.CloseWrite()) // an end is forwarded, and comes back
	ended(t, c, nil)
	s.WaitOpen(0)
	r.Stop()
	require.Zero(t, r.Open())
	up, down := r.Bytes()
	require.Greater(t, up, int64(len(body)))
	require.Greater(t, down, int64(len(body)))
}

func TestRelayForwardsEnds(t *testing.T) {
	s := New(t, func(x *Exchange) {
		if x.ConnIndex == 0 {
			x.Reset()
		}
		x.Cut("abcdef", 3)
	})
	r := NewRelay(t, s.Addr)
	c := dial(t, r.Addr)
	send(t, c, get)
	ended(t, c, syscall.ECONNRESET)
	c = dial(t, r.Addr)
	send(t, c, get)
	expect(t, c, "abc")
	ended(t, c, nil)

	s.Stop() // nobody listens: the relay refuses too
	late, err := net.Dial("tcp", r.Addr)
	if err == nil {
		defer func() { require.NoError(t, late.Close()) }()
		_, err = late.Read(make([]byte, 1))
	}
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

// TestRelayDelays sends ten pieces: each is late by the delay, and all by
// little more, because delays do not add up.
func TestRelayDelays(t *testing.T) {
	const delay = 100 * time.Millisecond
	s := New(t, func(x *Exchange) {
		x.Write("0")
		for i := range 9 {
			x.WriteParts(Part{Pause: time.Millisecond, Data: string(rune('1' + i))})
		}
	})
	r := NewRelay(t, s.Addr)
	r.SetDelay(delay, delay)
	c := dial(t, r.Addr)
	start := time.Now()
	send(t, c, get)
	s.WaitRequests(1)
	up := time.Since(start)
	require.GreaterOrEqual(t, up, delay)
	expect(t, c, "0123456789")
	both := time.Since(start)
	require.GreaterOrEqual(t, both, 2*delay)
	require.Less(t, both-up, 8*delay, "ten delays in series would be more")

	r.SetDelay(0, 0)
	send(t, c, get)
	expect(t, c, "0123456789")
}

func TestRelayFreeze(t *testing.T) {
	s := New(t, echo)
	r := NewRelay(t, s.Addr)
	old := dial(t, r.Addr)
	send(t, old, get)
	expect(t, old, Response(200, "/a"))

	r.FreezeExisting()
	send(t, old, get)
	silent(t, old)
	c := dial(t, r.Addr)
	send(t, c, get)
	expect(t, c, Response(200, "/a"))

	r.Freeze()
	send(t, c, get)
	silent(t, c)
	fresh := dial(t, r.Addr)
	send(t, fresh, get)
	silent(t, fresh)

	s.CloseAll() // not even this gets through
	silent(t, c)

	require.Equal(t, 2, s.Requests())
	r.Thaw()
	for _, conn := range []net.Conn{old, c} { // both have an unanswered request
		rest, err := io.ReadAll(conn)
		require.Empty(t, rest)
		if err != nil {
			require.ErrorIs(t, err, syscall.ECONNRESET) // it met the closed server
		}
	}
}

func TestRelayThawForwardsWhatWasHeld(t *testing.T) {
	s := New(t, echo)
	r := NewRelay(t, s.Addr)
	r.Freeze()
	c := dial(t, r.Addr)
	send(t, c, get)
	silent(t, c)
	r.Thaw()
	expect(t, c, Response(200, "/a"))
	r.ResetAll()
	ended(t, c, syscall.ECONNRESET)
	s.WaitOpen(0)
}
