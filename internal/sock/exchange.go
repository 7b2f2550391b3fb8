package sock

// WriteReadResult is what came of a WriteRead. One of these holds, in this
// order:
//
//	Stale                  something was there before the write; nothing was sent
//	Err != nil, WriteErr   the write failed; Wrote bytes were accepted before
//	Err != nil             the read failed, the peer ended (io.EOF) or a deadline
//	                       passed; Wrote says whether before or after the write
//	Wrote < len(p)         the rest did not fit; go on with Write, then Read
//	N > 0                  the first N bytes of the answer are in buf
type WriteReadResult struct {
	// Stale: bytes or an end were there before anything was written. Wrote is
	// 0 and Err is nil.
	Stale bool
	// Found is Readable or Ended when Stale, else Unknown.
	Found State
	// WriteErr: Err is of the write. What the peer had said before may still
	// be read.
	WriteErr bool
	// Wrote is how many bytes of p the kernel accepted.
	Wrote int
	// N is how many bytes were read into buf.
	N int
	// Err is a *net.OpError that wraps the errno or the deadline, io.EOF,
	// ErrInterrupted, or ErrNoSocket on a Conn that is not Direct.
	Err error
}
