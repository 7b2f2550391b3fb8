package sock

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// opened is tlsPair whose tickets have been read: a connection as it is after
// its first exchange.
func opened(t *testing.T) tlsEnds {
	t.Helper()
	ends := tlsPair(t)
	ends.open()
	await(t, ends.c, Readable)
	_, err := probe(t, ends.c, ends.client)
	requireTimeout(t, err)
	return ends
}

// requireNothingSent: what was held back does not go out, not even with the end
// of the connection.
func requireNothingSent(t *testing.T, ends tlsEnds, sent int64) {
	t.Helper()
	_ = ends.client.Close()
	require.Equal(t, sent, ends.c.BytesWritten())
}

func TestWriteReadOver(t *testing.T) {
	ends := opened(t)
	go echo(ends.server)
	buf := make([]byte, 64)
	for range 100 {
		res := ends.r.WriteReadOver(ends.client, []byte("request"), buf)
		require.Equal(t, WriteReadResult{Wrote: 7, N: 7}, res)
		require.Equal(t, "request", string(buf[:res.N]))
	}
	send(t, ends.client, "other") // what comes after is as usual
	expect(t, ends.client, "other")
	require.NoError(t, ends.client.Close())
}

// TestWriteReadOverManyRecords: what TLS makes of a long request is more than one
// record, and goes out at once.
func TestWriteReadOverManyRecords(t *testing.T) {
	ends := opened(t)
	request := make([]byte, 40<<10)
	go func() {
		_, _ = io.ReadFull(ends.server, make([]byte, len(request)))
		send(t, ends.server, "answer")
	}()
	res := ends.r.WriteReadOver(ends.client, request, make([]byte, 64))
	require.Equal(t, WriteReadResult{Wrote: len(request), N: 6}, res)
	require.Zero(t, len(roomOf(ends.r)))
}

func roomOf(r *Records) []byte {
	if r.held == nil {
		return nil
	}
	return r.held.b
}

// TestWriteReadOverLateTicket: a ticket that comes before the request is no data.
func TestWriteReadOverLateTicket(t *testing.T) {
	ends := tlsPair(t)
	ends.open()
	await(t, ends.c, Readable)
	go echo(ends.server)
	res := ends.r.WriteReadOver(ends.client, []byte("request"), make([]byte, 64))
	require.Equal(t, WriteReadResult{Wrote: 7, N: 7}, res)
}

// TestWriteReadOverTicketInPieces: of a ticket that TLS has in part already, the
// rest is read before anything is said of it.
func TestWriteReadOverTicketInPieces(t *testing.T) {
	ends := tlsPair(t)
	gated, _ := ends.server.NetConn().(*gatedConn)
	gated.cut, gated.rest = 7, make(chan struct{})
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		ends.open()
	}()
	await(t, ends.c, Readable)
	_, err := probe(t, ends.c, ends.client)
	requireTimeout(t, err)
	require.True(t, ends.r.Within())
	close(gated.rest)
	receive(t, opened)
	await(t, ends.c, Readable)
	go echo(ends.server)
	res := ends.r.WriteReadOver(ends.client, []byte("request"), make([]byte, 64))
	require.Equal(t, WriteReadResult{Wrote: 7, N: 7}, res)
}

// TestWriteReadOverStale: what the peer has said before is no answer, wherever it
// stands: in the socket, in TLS, or in part here and there.
func TestWriteReadOverStale(t *testing.T) {
	whole := func(t *testing.T, ends tlsEnds) {
		t.Helper()
		send(t, ends.server, "poison")
		await(t, ends.c, Readable)
	}
	readAhead := func(t *testing.T, ends tlsEnds) { // with a record that was wanted
		t.Helper()
		raw := ends.server.NetConn().(*gatedConn).Conn
		both := string(recordOf(t, ends.server, "answer")) + string(recordOf(t, ends.server, "poison"))
		send(t, raw, both)
		expect(t, ends.client, "answer")
		require.Equal(t, Quiet, ends.c.Peek())
	}
	half := func(t *testing.T, ends tlsEnds) {
		t.Helper()
		record := recordOf(t, ends.server, "poison")
		send(t, ends.server.NetConn().(*gatedConn).Conn, string(record[:7]))
		await(t, ends.c, Readable)
	}
	halfRead := func(t *testing.T, ends tlsEnds) {
		t.Helper()
		half(t, ends)
		_, err := probe(t, ends.c, ends.client)
		requireTimeout(t, err)
		require.Equal(t, Quiet, ends.c.Peek())
	}
	closeNotify := func(t *testing.T, ends tlsEnds) { // TLS ends, the connection does not
		t.Helper()
		require.NoError(t, ends.server.CloseWrite())
		await(t, ends.c, Readable)
	}
	hangUp := func(t *testing.T, ends tlsEnds) {
		t.Helper()
		require.NoError(t, ends.server.NetConn().Close())
		await(t, ends.c, Ended)
	}
	for _, tt := range []struct {
		name  string
		said  func(*testing.T, tlsEnds)
		found State
	}{
		{"data", whole, Readable},
		{"data in TLS", readAhead, Readable},
		{"half a record", half, Readable},
		{"half a record in TLS", halfRead, Readable},
		{"close_notify", closeNotify, Ended},
		{"hang-up", hangUp, Ended},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ends := opened(t)
			tt.said(t, ends)
			sent := ends.c.BytesWritten()
			res := ends.r.WriteReadOver(ends.client, []byte("request"), make([]byte, 64))
			require.Equal(t, WriteReadResult{Stale: true, Found: tt.found}, res)
			requireNothingSent(t, ends, sent)
		})
	}
}

func TestWriteReadOverErrors(t *testing.T) {
	t.Run("end while waiting", func(t *testing.T) {
		ends := opened(t)
		go func() {
			_, _ = io.ReadFull(ends.server, make([]byte, 7))
			_ = ends.server.Close()
		}()
		res := ends.r.WriteReadOver(ends.client, []byte("request"), make([]byte, 64))
		require.Equal(t, WriteReadResult{Wrote: 7, Err: io.EOF}, res)
	})
	t.Run("an answer after a write has failed", func(t *testing.T) {
		ends := opened(t)
		ends.c.InterruptWrite()
		res := ends.r.WriteReadOver(ends.client, []byte("request"), make([]byte, 64))
		require.True(t, res.WriteErr)
		require.Equal(t, ErrInterrupted, res.Err)
		require.Zero(t, res.Wrote)
		send(t, ends.server, "503")
		expect(t, ends.client, "503")
	})
	t.Run("stale after a deadline that has passed", func(t *testing.T) {
		ends := opened(t)
		buf, sent := make([]byte, 64), ends.c.BytesWritten()
		require.NoError(t, ends.c.SetReadDeadline(longAgo()))
		res := ends.r.WriteReadOver(ends.client, []byte("request"), buf)
		require.ErrorIs(t, res.Err, os.ErrDeadlineExceeded)
		require.NoError(t, ends.c.SetReadDeadline(time.Time{}))
		require.NoError(t, ends.server.CloseWrite())
		await(t, ends.c, Readable)
		res = ends.r.WriteReadOver(ends.client, []byte("request"), buf)
		require.Equal(t, WriteReadResult{Stale: true, Found: Ended}, res)
		requireNothingSent(t, ends, sent)
	})
	t.Run("a deadline that has passed", func(t *testing.T) {
		ends := opened(t)
		go echo(ends.server)
		buf, sent := make([]byte, 64), ends.c.BytesWritten()
		require.NoError(t, ends.c.SetReadDeadline(longAgo()))
		res := ends.r.WriteReadOver(ends.client, []byte("request"), buf)
		require.ErrorIs(t, res.Err, os.ErrDeadlineExceeded)
		require.False(t, res.WriteErr)
		require.Zero(t, res.Wrote)
		require.Equal(t, sent, ends.c.BytesWritten())
		require.NoError(t, ends.c.SetReadDeadline(time.Time{}))
		res = ends.r.WriteReadOver(ends.client, []byte("request"), buf)
		require.Equal(t, WriteReadResult{Wrote: 7, N: 7}, res)
	})
	t.Run("a deadline while waiting", func(t *testing.T) {
		ends := opened(t)
		require.NoError(t, ends.c.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
		res := ends.r.WriteReadOver(ends.client, []byte("request"), make([]byte, 64))
		require.ErrorIs(t, res.Err, os.ErrDeadlineExceeded)
		require.Equal(t, 7, res.Wrote)
		require.NoError(t, ends.c.SetReadDeadline(time.Time{}))
		send(t, ends.server, "late")
		expect(t, ends.client, "late")
	})
	t.Run("interrupted", func(t *testing.T) {
		ends := opened(t)
		got := make(chan WriteReadResult, 1)
		go func() {
			got <- ends.r.WriteReadOver(ends.client, []byte("request"), make([]byte, 64))
		}()
		expect(t, ends.server, "request")
		ends.c.Interrupt()
		res := receive(t, got)
		require.ErrorIs(t, res.Err, ErrInterrupted)
		require.Equal(t, 7, res.Wrote)
	})
	t.Run("closed by us", func(t *testing.T) {
		ends := opened(t)
		require.NoError(t, ends.client.Close())
		res := ends.r.WriteReadOver(ends.client, []byte("request"), make([]byte, 64))
		require.True(t, res.WriteErr)
		require.Error(t, res.Err)
	})
}

// TestWriteReadOverShort: what does not fit is written by Flush, which waits.
func TestWriteReadOverShort(t *testing.T) {
	ends := opened(t)
	require.NoError(t, ends.c.NetConn().(*net.TCPConn).SetWriteBuffer(4<<10))
	request := make([]byte, 1<<20)
	res := ends.r.WriteReadOver(ends.client, request, make([]byte, 64))
	require.Equal(t, WriteReadResult{}, res)
	read := make(chan int, 1)
	go func() {
		n, _ := io.ReadFull(ends.server, make([]byte, len(request)))
		read <- n
		send(t, ends.server, "answer")
	}()
	require.NoError(t, ends.r.Flush())
	require.Equal(t, len(request), receive(t, read))
	expect(t, ends.client, "answer")
}

// TestRecords: the end of a record is found however the stream is cut.
func TestRecords(t *testing.T) {
	stream := []byte{23, 3, 3, 0, 2, 'a', 'b', 21, 3, 3, 0, 0, 23, 3, 3, 1, 0}
	stream = append(stream, make([]byte, 256)...)
	ends := map[int]bool{0: true, 7: true, 12: true, len(stream): true}
	for cut := range stream {
		var r records
		r.add(stream[:cut])
		require.Equal(t, !ends[cut], r.within(), "%d", cut)
		r.add(stream[cut:])
		require.False(t, r.within(), "%d", cut)
	}
	var r records
	for i, b := range stream {
		r.add([]byte{b})
		require.Equal(t, !ends[i+1], r.within(), "%d", i+1)
	}
}
