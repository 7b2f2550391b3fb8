package sock

import (
	"net"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// watch is a Watcher that passes its tokens on, and is gone after the test.
func watch(t testing.TB) (*Watcher, <-chan uint64) {
	t.Helper()
	fired := make(chan uint64, 1<<16)
	w := NewWatcher(func(token uint64) { fired <- token })
	t.Cleanup(func() {
		w.mu.Lock()
		if w.conns > 0 { // of a test that failed
			w.conns = 0
			w.closeIfEmptyLocked()
		}
		w.mu.Unlock()
		w.Wait()
	})
	return w, fired
}

// bigToken uses both halves of the event's data.
const bigToken = 0xfedcba9876543210

func TestWatcher(t *testing.T) {
	require.True(t, Watchable())
	ends := map[string]func(testing.TB, net.Conn){
		"FIN":        func(t testing.TB, nc net.Conn) { require.NoError(t, nc.Close()) },
		"RST":        reset,
		"half-close": func(t testing.TB, nc net.Conn) { require.NoError(t, nc.(*net.TCPConn).CloseWrite()) },
	}
	for name, end := range ends {
		t.Run(name+" after Add", func(t *testing.T) {
			w, fired := watch(t)
			c, server := pair(t, "tcp")
			require.NoError(t, w.Add(c, bigToken))
			end(t, server)
			require.EqualValues(t, uint64(bigToken), receive(t, fired))
			require.Equal(t, Ended, c.Peek())
			w.Remove(c)
		})
		t.Run(name+" before Add", func(t *testing.T) {
			w, fired := watch(t)
			c, server := pair(t, "tcp")
			end(t, server)
			await(t, c, Ended)
			require.NoError(t, w.Add(c, bigToken))
			require.EqualValues(t, uint64(bigToken), receive(t, fired))
			w.Remove(c)
		})
	}
	t.Run("unix", func(t *testing.T) {
		w, fired := watch(t)
		c, server := pair(t, "unix")
		require.NoError(t, w.Add(c, 7))
		require.NoError(t, server.Close())
		require.EqualValues(t, 7, receive(t, fired))
		w.Remove(c)
	})
	t.Run("closed before Add", func(t *testing.T) {
		w, _ := watch(t)
		c, _ := pair(t, "tcp")
		require.NoError(t, c.Close())
		require.ErrorIs(t, w.Add(c, 7), net.ErrClosed)
		w.Remove(c) // need not be called, may be
	})
}

// TestWatcherIgnoresData: data is not reported, and does not even wake the
// watcher: an epoll instance around the set stays silent.
func TestWatcherIgnoresData(t *testing.T) {
	w, fired := watch(t)
	c, server := pair(t, "tcp")
	other, otherServer := pair(t, "tcp")
	require.NoError(t, w.Add(c, 1))
	require.NoError(t, w.Add(other, 2))
	for range 100 {
		send(t, server, "data")
		await(t, c, Readable)
		expect(t, c, "data")
		send(t, c, "answer")
		expect(t, server, "answer")
	}
	require.NoError(t, otherServer.Close())
	require.EqualValues(t, 2, receive(t, fired))
	require.Empty(t, fired)
	w.Remove(c)
	w.Remove(other)

	set, err := newWatchSet()
	require.NoError(t, err)
	defer set.close()
	outer, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	require.NoError(t, err)
	defer syscall.Close(outer)
	require.NoError(t, set.raw.Control(func(fd uintptr) {
		err = syscall.EpollCtl(outer, syscall.EPOLL_CTL_ADD, int(fd),
			&syscall.EpollEvent{Events: syscall.EPOLLIN | epollET})
	}))
	require.NoError(t, err)
	require.NoError(t, set.add(c, 3))
	wakes := func() int {
		n, err := syscall.EpollWait(outer, make([]syscall.EpollEvent, 1), 0)
		require.NoError(t, err)
		return n
	}
	wakes() // whatever adding did
	for range 100 {
		send(t, server, "data")
		await(t, c, Readable)
		expect(t, c, "data")
		require.Zero(t, wakes(), "data woke the watcher")
	}
	require.NoError(t, server.Close())
	eventually(t, "the end", func() bool { return wakes() == 1 })
	tokens, ok := set.next(nil)
	require.True(t, ok)
	require.Equal(t, []uint64{3}, tokens)
	set.remove(c)
}

// TestWatcherRemoved: a connection that lives on after Remove is not reported.
func TestWatcherRemoved(t *testing.T) {
	w, fired := watch(t)
	c, server := pair(t, "tcp")
	other, otherServer := pair(t, "tcp")
	require.NoError(t, w.Add(c, 1))
	require.NoError(t, w.Add(other, 2))
	w.Remove(c)
	require.NoError(t, server.Close())
	await(t, c, Ended)
	require.NoError(t, otherServer.Close())
	require.EqualValues(t, 2, receive(t, fired))
	require.Empty(t, fired)
	w.Remove(other)
}

func TestWatcherManyAtOnce(t *testing.T) {
	const conns = 2000
	w, fired := watch(t)
	ln := listen(t, "tcp")
	clients, servers := make([]*Conn, conns), make([]net.Conn, conns)
	for i := range conns {
		client, server := connect(t, ln)
		clients[i], servers[i] = New(client), server
		require.NoError(t, w.Add(clients[i], uint64(i)))
	}
	var wg sync.WaitGroup
	for part := range 4 {
		wg.Go(func() {
			for i := part; i < conns; i += 4 {
				_ = servers[i].Close()
			}
		})
	}
	seen := make(map[uint64]bool)
	for len(seen) < conns {
		seen[receive(t, fired)] = true
	}
	wg.Wait()
	for _, c := range clients {
		w.Remove(c)
	}
	w.Wait()
	require.Len(t, seen, conns)
}

// TestWatcherChurn uses descriptors again and again: no token is reported
// whose peer did not hang up.
func TestWatcherChurn(t *testing.T) {
	var mu sync.Mutex
	alive := make(map[uint64]bool)
	var wrong []uint64
	w := NewWatcher(func(token uint64) {
		mu.Lock()
		defer mu.Unlock()
		if alive[token] {
			wrong = append(wrong, token)
		}
	})
	ln := listen(t, "tcp")
	keptClient, keptServer := connect(t, ln)
	defer keptServer.Close()
	kept := New(keptClient)
	alive[0] = true
	require.NoError(t, w.Add(kept, 0))
	for token := uint64(1); token <= 1000; token++ {
		client, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(t, err)
		server, err := ln.Accept()
		require.NoError(t, err)
		mu.Lock()
		alive[token] = true
		mu.Unlock()
		c := New(client)
		require.NoError(t, w.Add(c, token))
		if token%3 == 0 { // the peer first
			mu.Lock()
			delete(alive, token)
			mu.Unlock()
			_ = server.Close()
			w.Remove(c)
			_ = client.Close()
			continue
		}
		w.Remove(c)
		_ = client.Close()
		_ = server.Close()
	}
	w.Remove(kept)
	w.Wait()
	require.Empty(t, wrong)
}

// TestWatcherRestart ends and starts the goroutine from several sides.
func TestWatcherRestart(t *testing.T) {
	w, fired := watch(t)
	var wg sync.WaitGroup
	for g := range 4 {
		c, _ := pair(t, "tcp")
		wg.Go(func() {
			for i := range 500 {
				token := uint64(g)<<32 | uint64(i)
				if err := w.Add(c, token); err != nil {
					t.Errorf("got %v", err)
				}
				w.Remove(c)
				if i%100 == 0 {
					w.Wait()
				}
			}
		})
	}
	wg.Wait()
	w.Wait()
	require.Nil(t, w.set)
	require.Empty(t, fired)

	c, server := pair(t, "tcp")
	require.NoError(t, w.Add(c, 9))
	require.NoError(t, server.Close())
	require.EqualValues(t, 9, receive(t, fired))
	w.Remove(c)
	w.Remove(c)
}

// TestWatcherRemoveFromGone: gone may close what it hears of, also the last.
func TestWatcherRemoveFromGone(t *testing.T) {
	done := make(chan struct{})
	var w *Watcher
	c, server := pair(t, "tcp")
	w = NewWatcher(func(uint64) {
		w.Remove(c)
		_ = c.Close()
		close(done)
	})
	require.NoError(t, w.Add(c, 1))
	require.NoError(t, server.Close())
	receive(t, done)
	w.Wait()
}
