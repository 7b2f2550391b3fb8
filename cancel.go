package keepalive

import (
	"context"
	"errors"
	"os"
	"time"
)

// How the end of a request reaches its exchange from outside: the end of its
// context, its Cancel channel, Close.

// interrupt cuts the connection off, if it is still ours. Safe for concurrent
// use: it is how a context, Close and a failing request body end an exchange.
func (ex *exchange) interrupt() {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if !ex.released {
		ex.interrupted = true
		ex.c.sc.Interrupt()
	}
}

// cancel is called when the request's context has ended.
func (ex *exchange) cancel() {
	ex.interrupt()
	ex.endUnread()
}

// endUnread ends a response body that was cut off, whether it is read or not:
// the server, and whoever waits for the connection, must not have to wait for
// the reader. A Read under way ends by itself. It may run in a goroutine of its
// own, for which Close waits.
func (ex *exchange) endUnread() {
	t := ex.t
	t.tasks.add(1)
	defer t.tasks.add(-1)
	ex.mu.Lock()
	handedOver := ex.handedOver
	ex.mu.Unlock()
	if !handedOver {
		return
	}
	ex.readMu.Lock()
	defer ex.readMu.Unlock()
	if ex.bodyErr == nil {
		ex.bodyErr = ex.failBody(os.ErrDeadlineExceeded)
	}
}

// lateGrace is how long a Read may take to notice its deadline.
const lateGrace = 50 * time.Millisecond

// enforceLocked sees to it that readEnd holds on a connection of the user's that
// has no deadlines, ignores them or sets its own. Not the end of a wait for 100
// Continue: the request goes on after it.
func (ex *exchange) enforceLocked() {
	if ex.late != nil {
		ex.watchRan = !ex.late.Stop() || ex.watchRan
		ex.late = nil
	}
	if ex.released || ex.c.sc.Direct() {
		return
	}
	end := ex.readEnd.at
	if errors.Is(ex.readEnd.err, errExpectTimeout) {
		end = ex.cl.hard.at
	}
	if !end.IsZero() {
		ex.late = time.AfterFunc(time.Until(end)+lateGrace, ex.overdue)
	}
}

// unlimited ends what enforceLocked has begun for one Read, which is over.
func (ex *exchange) unlimited() {
	if ex.c.sc.Direct() {
		return
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	ex.readEnd = ex.cl.hard
	ex.enforceLocked()
}

// overdue interrupts a Read that goes on although its time is over.
func (ex *exchange) overdue() {
	unread := !ex.closed.Load() && ex.readMu.TryLock() // no Read of the body is under way
	if unread {
		defer ex.readMu.Unlock()
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	end := ex.readEnd.at
	if !ex.released && (ex.inHeader || !unread) && !end.IsZero() && !time.Now().Before(end) {
		ex.interrupted = true
		ex.c.sc.Interrupt()
	}
}

// watchAfter is how long an exchange waits before it listens for the end of its
// request's context.
const watchAfter = 5 * time.Millisecond

// watchSoon makes the next read end after watchAfter or sooner, if the request's
// context is not watched yet: whoever reads calls watch then, and goes on. Most
// answers are there before, and a deadline on the socket costs a fifth of a watch.
// It stays there for the next exchange, which spares one with a deadline some 3 %
// of its CPU.
func (ex *exchange) watchSoon() {
	if !ex.unwatched {
		return
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	c, at := ex.c, ex.start.Add(watchAfter)
	if end := ex.readEnd.at; !end.IsZero() && !at.Before(end) {
		return
	}
	ex.armed = true
	soon := at.Sub(c.dialedAt)
	if c.soon == 0 || c.soon < soon-watchAfter/2 {
		_ = c.setReadDeadline(at)
		c.soon = soon
	}
}

// watchNow reports whether err is only the end of what watchSoon began, and
// watches the context then.
func (ex *exchange) watchNow(err error) bool {
	if !ex.unwatched || !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	ex.watch()
	return true
}

// watch cuts the exchange off when the request's context ends, from now on.
func (ex *exchange) watch() {
	if !ex.unwatched {
		return
	}
	ex.unwatched = false
	ex.mu.Lock()
	if ex.armed {
		_ = ex.c.setReadDeadline(ex.readEnd.at)
	}
	ex.mu.Unlock()
	ex.cl.watchCancel()
	ex.stopWatch = context.AfterFunc(ex.cl.ctx, ex.cancel)
}

func (ex *exchange) unwatch() {
	if ex.stopWatch != nil {
		ex.watchRan = !ex.stopWatch() || ex.watchRan
		ex.stopWatch = nil
	}
	if ex.hardTimer != nil {
		ex.hardTimer.Stop()
	}
}
