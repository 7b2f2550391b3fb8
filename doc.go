// Package keepalive is an http.RoundTripper built around its pool of
// persistent connections: a drop-in for *http.Transport in any http.Client,
// for services that talk to the same HTTP servers all day.
//
//	t, err := keepalive.New()
//	client := t.Client()
//
// HTTP/1.1 is its own. HTTP/2 is net/http's, on connections of the same pool.
// Both go directly or through HTTP and SOCKS proxies.
//
// # The road of a request
//
//	RoundTrip(req)
//	  prepare    check the request before a byte is sent; find its pool key:
//	             scheme, host, port, proxy, and what WithPoolKey adds
//	  acquire    the newest idle connection, or one that becomes free, or a
//	             dial: whichever comes first; the oldest waiter first
//	  exchange   look whether the connection still lives, write the request,
//	             read the head of the answer
//	  decide     keep the connection or not, for how long, and why (reuse.go);
//	             after a failure, send the request again or not (retry.go)
//	  hand over  Response.Body owns the connection until its last byte; a body
//	             that came whole with its head has none any more
//	  release    to the oldest waiter, to the idle ones, or closed with a
//	             CloseReason
//
// The goroutine of RoundTrip writes and reads itself. Goroutines of their own
// have: a dial; what is written beside the reading (sender.go); the rest of a
// body that was closed early; an idle connection that hides its socket, and the
// closing of a user's; an HTTP/2 connection, which is read all the time; a watch
// of Request.Cancel; and one watcher that hears of idle connections whose peer is
// gone. Close waits for all of them, but not for the copy of a request body into
// a tunnel (CONNECT), which is the user's with it.
//
// # Owners
//
// A connection has one owner at a time. The states and moves are drawn above
// connState (conn.go); pool.moveLocked makes every move, and one that is not
// in the picture panics.
//
//	state     owner                     reads and writes   closes the socket
//	leased    one exchange, then the    that exchange      that exchange, through
//	          response body; with       or body            release
//	          HTTP/2 several of them
//	idle      the pool                  nobody (below)     nobody, until removed
//	closing   whom the pool gave it to  nobody             that one, once, with
//	                                                       no lock held
//	detached  the user (101, CONNECT)   the user           the user
//	closed    nobody                    nobody             nobody
//
// An idle connection is looked at, not read, but for two: one that hides its
// socket has a read under way (conn.park), HTTP/2 reads all the time.
//
// A slot, one unit of the limits, is taken with the dial and given back when
// the socket is closed.
//
// # The lock
//
// pool.mu guards the pool, its hosts and waiters, and the fields of conn that
// say so. It is a leaf: nothing that blocks and no code of a caller runs while
// it is held, not even the Close of a socket. The pool decides and returns what
// is to be dialed, closed or interrupted as a todo; Transport.perform carries it
// out. Methods of pool that need the lock held end in Locked.
//
// # Files
//
//	transport.go         New, RoundTrip and its steps, Shutdown, Close
//	options.go           the options; migrate.go: FromTransport; config.go: their sum,
//	                     the defaults, and what contradicts what
//	pool.go, waiters.go  who may have a connection; sharing.go: who else;
//	                     lifecycle.go, expiry.go, learned.go: until when
//	conn.go              one connection
//	dial.go, proxy.go    how it comes to be: a stream, TLS, the protocol
//	request.go           a request in the form in which it is sent; requestbody.go
//	send.go              sending it: the first turn; sender.go: what is written
//	                     beside the reading of the answer
//	call.go              one request: its attempts; failure.go: what a failed
//	                     one means
//	exchange.go          one request and its answer on one connection
//	cancel.go            how its end reaches it from outside
//	http2.go             the same on an HTTP/2 connection; http2body.go: its bodies
//	http2socket.go       what the pool hears from there; frames.go: by which frames
//	body.go, gzip.go     the answer's body, and the connection of a 101 or CONNECT
//	identity.go          whose a connection is, if that counts (pure)
//	reuse.go             may it be used again, and for how long (pure)
//	retry.go             may the request be sent again (pure)
//	timeout.go           the limits of one request; ContextWithOptions
//	errors.go, stats.go  what went wrong, and what went on
//	trace.go, tasks.go   httptrace hooks; goroutines that Close waits for
//	internal/wire        bytes to net/http types and back
//	internal/sock        sockets: peek, write and wait in one, the watcher
//	internal/queue       the list of waiters and of idle connections
//	internal/hostkey     the pool key
//	internal/difftest, faultserver, netfake, rawhttp2   what tests are made of
package keepalive
