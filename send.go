package keepalive

import (
	"bytes"
	"net/http/httptrace"

	"github.com/keepalive-http/keepalive/internal/sock"
)

// send writes what goes out in the first turn: the head, and a small body with
// it. On our own socket the look for a stale connection, the write and the first
// read are one step. It starts the sender of what is written beside the reading of
// the answer. stale says why the connection is of no use; nothing was written then.
// phase is where err happened.
func (ex *exchange) send() (stale CloseReason, phase Phase, err error) {
	cl, c := ex.cl, ex.c
	oneStep := c.canWriteRead(!ex.reused) && cl.body == nil && cl.trace == nil
	if !oneStep { // before the head: its trace hooks must not hear of a connection that is of no use
		if stale = ex.look(); stale != CloseNone {
			return stale, PhaseWrite, nil
		}
	}
	// What is written is made in the buffer for the answer, which is empty
	// until all of it has been written.
	head := cl.appendHead(ex.rd.Space()[:0], c)
	mayWait, beside := ex.mayWait(len(head)), ex.beside(len(head))
	c.loaded = mayWait || cl.body != nil
	switch {
	case oneStep && beside: // not in one step after all
		oneStep = false
		if stale = ex.look(); stale != CloseNone {
			return stale, PhaseWrite, nil
		}
	case oneStep && !ex.unwatched:
		c.calm()
	}
	ex.inHeader = true
	ex.arm()
	switch {
	case oneStep:
		return ex.writeRead(head)
	case beside:
		ex.watch()
		ex.startSender(bytes.Clone(head))
		return CloseNone, PhaseHeader, nil
	case mayWait:
		ex.watch()
	}
	phase, err = ex.writeHead(head)
	return CloseNone, phase, err
}

// look is the look for a stale connection, where it is a step of its own.
func (ex *exchange) look() (stale CloseReason) {
	ex.c.calm()
	if !ex.reused {
		return CloseNone
	}
	return ex.c.check()
}

// writeHead writes head, and begins what follows it.
func (ex *exchange) writeHead(head []byte) (phase Phase, err error) {
	cl := ex.cl
	head = ex.appendBegin(head)
	_, err = ex.c.nc.Write(head)
	ex.traceWrote(err)
	if err != nil {
		return PhaseWrite, ex.earlyAnswer(err)
	}
	switch {
	case cl.body == nil || cl.tunnel:
		ex.setHeaderDeadline(cl.limit.responseHeader, ErrResponseHeaderTimeout)
	case !ex.waitsForContinue():
		ex.startSender(nil)
	}
	return PhaseHeader, nil
}

// maxHeadAhead is the largest head that is written before the answer is read. A
// socket takes it, or most of it, at once.
const maxHeadAhead = 64 << 10

// beside reports whether a head of n bytes is written beside the reading of the
// answer: the peer may answer before it has read all, and read no more until
// somebody takes the answer (RFC 9112 section 9.5). What has no socket may hold
// nothing on the way (net.Pipe).
func (ex *exchange) beside(n int) bool {
	return (n > maxHeadAhead || !ex.c.sc.HasSocket()) && !ex.cl.tunnel && !ex.waitsForContinue()
}

// appendBegin appends the beginning of a large body in memory to head, which
// has some room behind it: a long write behind a short one takes nearly twice
// the CPU of one behind 4 KB (1 MB over loopback).
func (ex *exchange) appendBegin(head []byte) []byte {
	cl := ex.cl
	if cl.body == nil || cl.tunnel || ex.waitsForContinue() || cl.req.GetBody == nil {
		return head
	}
	mem := inMemory(cl.body.rc)
	if mem == nil || cl.body.touched || cl.length < 0 || int64(mem.Len()) != cl.length {
		return head
	}
	cl.body.touched = true
	n, _ := mem.Read(head[len(head):cap(head)])
	ex.begun = int64(n)
	return head[:len(head)+n]
}

// waitsForContinue reports whether the body is to be sent only when the server
// says so, or takes its time to say anything (RFC 9110 section 10.1.1), which takes
// a connection that has deadlines.
func (ex *exchange) waitsForContinue() bool {
	return ex.cl.body != nil && !ex.cl.tunnel && ex.cl.expect && ex.cl.limit.expectContinue > 0 && ex.c.checkable
}

// maxQuickHead is the largest head that is written with nobody listening for the
// end of the context: the buffer of an idle socket takes it at once.
const maxQuickHead = 4 << 10

// mayWait reports whether writing a head of n bytes may wait for the peer: it is
// a long one, or more than short heads went there before, which the peer may
// have answered without reading it.
func (ex *exchange) mayWait(n int) bool {
	return ex.c.loaded || n > maxQuickHead
}

// writeRead is send and the first read in one step, on our own socket.
func (ex *exchange) writeRead(p []byte) (stale CloseReason, phase Phase, err error) {
	ex.setHeaderDeadline(ex.cl.limit.responseHeader, ErrResponseHeaderTimeout)
	ex.watchSoon()
	r := ex.c.writeRead(p, ex.rd.Space(), !ex.reused)
	if ex.watchNow(r.Err) {
		if r.Wrote == len(p) {
			return CloseNone, PhaseHeader, nil
		}
		r = ex.c.writeRead(p, ex.rd.Space(), !ex.reused) // it had not begun
	}
	switch {
	case r.Stale && r.Found == sock.Readable:
		return CloseProtocolError, PhaseWrite, nil
	case r.Stale:
		return CloseStale, PhaseWrite, nil
	case r.WriteErr:
		return CloseNone, PhaseWrite, ex.earlyAnswer(r.Err)
	case r.Err != nil && r.Wrote < len(p):
		return CloseNone, PhaseWrite, r.Err
	case r.Err != nil:
		return CloseNone, PhaseHeader, r.Err
	case r.N > 0:
		ex.rd.Advance(r.N)
		return CloseNone, PhaseHeader, nil
	}
	ex.watch()
	if err := ex.c.writeRest(p, r.Wrote); err != nil {
		return CloseNone, PhaseWrite, ex.earlyAnswer(err)
	}
	return CloseNone, PhaseHeader, nil
}

// earlyAnswer is called when writing failed with err: the server may have
// answered before it hung up, and that answer says more. It returns nil when
// one has begun to arrive.
func (ex *exchange) earlyAnswer(err error) error {
	ex.cutShort = true
	if isTimeout(err) {
		return err
	}
	ex.setHeaderDeadline(answerGrace, err)
	n, _ := ex.c.nc.Read(ex.rd.Space())
	ex.rd.Advance(n)
	if n > 0 {
		return nil
	}
	return err
}

// traceWrote tells the hooks how writing the head went. A body that follows
// tells of itself.
func (ex *exchange) traceWrote(err error) {
	t := ex.cl.trace
	if t == nil {
		return
	}
	if t.WroteHeaders != nil && err == nil {
		t.WroteHeaders()
	}
	if t.WroteRequest != nil && (ex.cl.body == nil || ex.cl.tunnel || err != nil) {
		t.WroteRequest(httptrace.WroteRequestInfo{Err: err})
	}
}

// traceSent tells the hook that nothing more will be written.
func (ex *exchange) traceSent() {
	if t := ex.cl.trace; t != nil && t.WroteRequest != nil {
		t.WroteRequest(httptrace.WroteRequestInfo{})
	}
}
