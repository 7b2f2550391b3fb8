// Package wire turns bytes into net/http types and back: it writes request
// heads and chunks, and reads response heads and bodies.
//
// It knows no socket, no pool, no lock and no goroutine; it reads from an
// [io.Reader] and appends to byte slices.
//
// What it accepts is what net/http accepts, with the same result, or less (but for
// the answer that opens a tunnel, whose framing means nothing). Where
// a message leaves room for two readings it is refused (RFC 9112 §11), and
// what is accepted although a clean peer would not send it is named in
// [Head.Oddity], so that the connection is not used again.
//
// Nothing here is safe for concurrent use except the package's functions on
// arguments of their own.
package wire
