package sock

import "sync"

// Watcher hears when the peer of a registered socket hangs up: one goroutine
// for all. It starts with the first Add and ends with the last Remove; an Add
// after that starts another.
//
// What it reports are hints. On Linux they are exact for the token, but the
// connection may be in use or on its way out; with kqueue a token may now and
// then be reported whose peer is well. Whoever would act on one looks first
// (Conn.Peek).
//
// Safe for concurrent use.
type Watcher struct {
	gone func(token uint64) // set in NewWatcher; never changed

	// mu guards every field below. It is a leaf; only the system calls that
	// register and remove run under it, none of which waits.
	mu      sync.Mutex
	ended   sync.Cond
	set     *watchSet // nil while nothing is registered
	conns   int       // how many are registered
	running int       // goroutines: at most one has a set, older ones are ending
}

// NewWatcher returns a Watcher that calls gone with the token of each
// connection whose peer has hung up, at least once. gone is called from the
// watcher's goroutine with no lock held, one call after the other: it should be
// quick, and may call Add and Remove, but not Wait.
func NewWatcher(gone func(token uint64)) *Watcher {
	w := &Watcher{gone: gone}
	w.ended.L = &w.mu
	return w
}

// Add registers c, once in its life. From then on, and also if it has happened
// already, FIN, RST or an error of the socket leads to gone(token). Data does
// not. The token must be unique and never used again. On error c is not
// watched, and Remove need not be called: ErrNoSocket, or what the system said.
func (w *Watcher) Add(c *Conn, token uint64) error {
	if c.raw == nil {
		return ErrNoSocket
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.set == nil {
		set, err := newWatchSet()
		if err != nil {
			return err
		}
		w.set = set
		w.running++
		go w.run(set) // ends when the set is closed; Wait waits for it
	}
	if err := w.set.add(c, token); err != nil {
		w.closeIfEmptyLocked()
		return err
	}
	c.watched = true
	w.conns++
	return nil
}

// Remove ends the watch. It must be called before the connection is closed,
// because its descriptor's number may be given to another at once. When it
// returns, a gone(token) may still be under way; the caller tolerates tokens
// that it does not know. It does nothing if c is not registered.
func (w *Watcher) Remove(c *Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !c.watched {
		return
	}
	c.watched = false
	w.conns--
	w.set.remove(c)
	w.closeIfEmptyLocked()
}

// Wait waits until no goroutine of the watcher is left, which is soon after
// everything was removed. Not to be called from gone.
func (w *Watcher) Wait() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.running > 0 {
		w.ended.Wait()
	}
}

// closeIfEmptyLocked ends the goroutine when there is nothing to watch.
func (w *Watcher) closeIfEmptyLocked() {
	if w.conns == 0 {
		w.set.close()
		w.set = nil
	}
}

// run is the goroutine of one set.
func (w *Watcher) run(set *watchSet) {
	defer func() {
		w.mu.Lock()
		w.running--
		w.ended.Broadcast()
		w.mu.Unlock()
	}()
	tokens := make([]uint64, 0, watchBatch)
	for {
		var ok bool
		if tokens, ok = set.next(tokens[:0]); !ok {
			return
		}
		for _, token := range tokens {
			w.gone(token)
		}
	}
}

// watchBatch is how many events are taken at a time.
const watchBatch = 128
