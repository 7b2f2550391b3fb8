package wire

import (
	"errors"
	"strconv"
)

// ErrHeadTooLarge says that a response head has more bytes than the limit, or
// more lines than a limit of that size allows (see [ReadHead]).
var ErrHeadTooLarge = errors.New("response head too large")

var (
	errDetached = errors.New("wire: internal error: read from a detached source")
	errBadCount = errors.New("wire: source returned an impossible byte count")
)

// MalformedError says that what arrived is not a response that we accept: it
// breaks the syntax, or its framing is ambiguous. The connection has no future.
type MalformedError struct {
	// Reason says what is wrong. It may quote up to 64 bytes of a status
	// line, a chunk size line or a field name, never a field value.
	Reason string
}

// Error returns the reason with a fixed prefix.
func (e *MalformedError) Error() string { return "malformed response: " + e.Reason }

func malformed(reason string) error { return &MalformedError{Reason: reason} }

// malformedAt quotes the piece of structure that was refused.
func malformedAt(reason string, at []byte) error {
	return &MalformedError{Reason: reason + " " + excerpt(at)}
}

// maxExcerpt bounds what an error may quote from the wire.
const maxExcerpt = 64

func excerpt(b []byte) string {
	if len(b) > maxExcerpt {
		return strconv.Quote(string(b[:maxExcerpt])) + "..."
	}
	return strconv.Quote(string(b))
}
