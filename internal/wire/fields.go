package wire

import (
	"bytes"
	"encoding/binary"
	"net/http"
)

const (
	oddityBareLF = "bare LF"
	oddityFold   = "folded header line"
)

// field says where one field line's name and value stand in its block.
type field struct {
	name, nameEnd   int
	value, valueEnd int
}

// parseFields cuts block[start:], whose last line is empty and ends block, into
// fields, appended to dst. It changes block: names become canonical and folded
// values are joined in place, so that a string of the whole block holds all of
// them. oddity is one of the oddity constants or "".
//
// RFC 9112 §5: a name is a token and the colon follows it at once; §5.2: a
// recipient may join a folded line with a space.
func parseFields(dst []field, block []byte, start int) (fields []field, oddity string, err error) {
	fields = dst
	for pos := start; ; {
		end, next, bare := lineAt(block, pos)
		if bare {
			oddity = oddityBareLF
		}
		if end == pos {
			return fields, oddity, nil
		}
		colon, err := canonicalName(block[pos:end])
		if err != nil {
			return nil, "", err
		}
		f := field{name: pos, nameEnd: pos + colon, value: pos + colon + 1, valueEnd: end}
		if !isBlank(block[next]) {
			f.trimEnd(block)
		} else {
			next, bare = unfold(block, &f, next)
			if oddity == "" {
				oddity = oddityFold
			}
			if bare {
				oddity = oddityBareLF
			}
		}
		f.trimStart(block)
		if !validValue(block[f.value:f.valueEnd]) {
			return nil, "", malformedAt("control character in the value of", block[f.name:f.nameEnd])
		}
		fields = append(fields, f)
		pos = next
	}
}

// lineAt returns where the content of the line at pos ends, where the next line
// begins, and whether the line ends in LF without CR. There must be a line end.
func lineAt(block []byte, pos int) (end, next int, bare bool) {
	end = pos + bytes.IndexByte(block[pos:], '\n')
	next = end + 1
	if end > pos && block[end-1] == '\r' {
		return end - 1, next, false
	}
	return end, next, true
}

// unfold joins the continuation lines from next on to f's value in place, each
// behind one space, as net/textproto does. That only ever shortens: a line end
// and a blank become one space. It returns where the line after them begins.
//
// Every piece loses the blanks at its ends, the whole does not: empty
// continuation lines leave spaces at the end of the value.
func unfold(block []byte, f *field, next int) (after int, bare bool) {
	f.trimEnd(block)
	w := f.valueEnd
	for isBlank(block[next]) {
		end, following, noCR := lineAt(block, next)
		bare = bare || noCR
		block[w] = ' '
		w += 1 + copy(block[w+1:], trimBlanks(block[next:end]))
		next = following
	}
	f.valueEnd = w
	return next, bare
}

func (f *field) trimStart(block []byte) {
	for f.value < f.valueEnd && isBlank(block[f.value]) {
		f.value++
	}
}

func (f *field) trimEnd(block []byte) {
	for f.value < f.valueEnd && isBlank(block[f.valueEnd-1]) {
		f.valueEnd--
	}
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

func trimBlanks(b []byte) []byte {
	for len(b) > 0 && isBlank(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isBlank(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// canonicalName rewrites the name at the front of line to its canonical form
// (http.CanonicalHeaderKey) and returns where its colon is.
func canonicalName(line []byte) (colon int, err error) {
	shape := &nameStart
	for i, c := range line {
		if c == ':' && i > 0 {
			return i, nil
		}
		canon := shape[c]
		if canon == 0 {
			return 0, badName(line, i)
		}
		line[i] = canon
		shape = &nameRest
		if c == '-' {
			shape = &nameStart
		}
	}
	return 0, malformed("header line without a colon")
}

// badName says why line has no field name, where line[i] cannot be part of one.
// It quotes no more than that byte: the line may be a piece of a broken value.
func badName(line []byte, i int) error {
	colon := bytes.IndexByte(line, ':')
	switch {
	case colon < 0:
		return malformed("header line without a colon")
	case colon == 0:
		return malformed("header line without a name")
	case i == 0 && isBlank(line[0]):
		return malformed("first header line starts with a blank")
	case len(trimBlanks(line[i:colon])) == 0:
		return malformed("blank between a header field name and its colon")
	}
	return malformedAt("invalid byte in a header field name:", line[i:i+1])
}

// nameTable maps a byte of a field name to its canonical form, 0 when it is no
// token character (RFC 9110 §5.6.2).
type nameTable [256]byte

//nolint:gochecknoglobals // lookup tables, never changed
var (
	nameStart = makeNameTable('a', 'z') // first letter, or after a hyphen
	nameRest  = makeNameTable('A', 'Z')
)

// makeNameTable maps the letters from..to to their other case.
func makeNameTable(from, to byte) (t nameTable) {
	const caseBit = 'a' ^ 'A'
	const token = "!#$%&'*+-.^_`|~0123456789" +
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	for _, c := range []byte(token) {
		t[c] = c
		if from <= c && c <= to {
			t[c] = c ^ caseBit
		}
	}
	return t
}

// validValue reports whether b has only what RFC 9110 §5.5 allows in a value:
// visible characters, bytes over 0x7f, space and tab.
func validValue(b []byte) bool {
	const (
		ones  = 0x0101010101010101
		highs = 0x80 * ones
	)
	// Eight at a time: a bit of below or del is set when some byte is under
	// 0x20 or is 0x7f. A tab is under 0x20, so such a word is looked at singly.
	for len(b) >= 8 {
		w := binary.LittleEndian.Uint64(b)
		below := (w - 0x20*ones) & ^w
		del := w ^ 0x7f*ones
		del = (del - ones) & ^del
		if (below|del)&highs != 0 && !validBytes(b[:8]) {
			return false
		}
		b = b[8:]
	}
	return validBytes(b)
}

func validBytes(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// buildHeader makes a header of fields, whose positions are in text. Names and
// values are parts of text.
//
// values is room for the values; more is made if need be.
func buildHeader(text string, fields []field, values []string) http.Header {
	h := make(http.Header, len(fields))
	if len(fields) > cap(values) {
		values = make([]string, len(fields))
	}
	values = values[:len(fields)]
	for i, f := range fields {
		name := text[f.name:f.nameEnd]
		value := text[f.value:f.valueEnd]
		// Names are told apart by a map, but for few fields a look at the
		// ones before is quicker.
		if len(fields) > fewFields || seen(text, fields[:i], name) {
			if earlier := h[name]; earlier != nil {
				h[name] = append(earlier, value)
				continue
			}
		}
		// Capacity 1, so that appending to one name's values cannot
		// write over another's.
		values[i] = value
		h[name] = values[i : i+1 : i+1]
	}
	return h
}

// fewFields is up to how many fields are searched one by one.
const fewFields = 12

// seen reports whether one of fields has that name.
func seen(text string, fields []field, name string) bool {
	for _, f := range fields {
		if f.nameEnd-f.name == len(name) && text[f.name:f.nameEnd] == name {
			return true
		}
	}
	return false
}
