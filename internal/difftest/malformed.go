package difftest

import "strings"

// malformed: what is accepted and what is refused. The connection ends behind
// each of them, so that nobody waits for more.
func malformed() (list []Scenario) {
	const (
		te       = "Transfer-Encoding: chunked\r\n"
		smuggle  = "two readings of where the body ends: how responses are smuggled (RFC 9112 section 11.2)"
		notHTTP1 = "only HTTP/1.x is spoken here, whatever the first line claims"
		name     = "no blank in or before the end of a field name (RFC 9112 section 5.1)"
	)
	for _, r := range []struct{ name, raw, why string }{
		{"length and chunks", head + "Content-Length: 2\r\n" + te + "\r\n2\r\nok\r\n0\r\n\r\n", smuggle},
		{"chunks on 1.0", "HTTP/1.0 200 OK\r\n" + te + "\r\n2\r\nok\r\n0\r\n\r\n", smuggle},
		{"chunked twice", head + te + te + "\r\n2\r\nok\r\n0\r\n\r\n", ""},
		{"gzip, chunked", head + "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", ""},
		{"identity", head + "Transfer-Encoding: identity\r\n\r\nok", ""},
		{"lengths that differ", head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nokk", ""},
		{"length list", head + "Content-Length: 2, 2\r\n\r\nok", ""},
		{"length +2", head + "Content-Length: +2\r\n\r\nok", ""},
		{"length -2", head + "Content-Length: -2\r\n\r\nok", ""},
		{"length 0x2", head + "Content-Length: 0x2\r\n\r\nok", ""},
		{"empty length", head + "Content-Length:\r\n\r\nok", ""},
		{"huge length", head + "Content-Length: 99999999999999999999\r\n\r\nok", ""},
		{"blank before colon", head + "Content-Length : 2\r\n\r\nok", name},
		{"blank in name", head + "X A: 2\r\nContent-Length: 2\r\n\r\nok", name},
		{"no colon", head + "Content\r\n\r\nok", ""},
		{"empty name", head + ": x\r\n\r\nok", ""},
		{"first line folded", head + " X: y\r\nContent-Length: 2\r\n\r\nok", ""},
		{"fold", head + "X: y\r\n z\r\nContent-Length: 2\r\n\r\nok", ""},
		{"NUL in value", head + "X: \x00\r\nContent-Length: 2\r\n\r\nok", ""},
		{"CR in value", head + "X: a\rb\r\nContent-Length: 2\r\n\r\nok", ""},
		{"DEL in value", head + "X: \x7f\r\nContent-Length: 2\r\n\r\nok", ""},
		{"bare LF in head", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", ""},
		{"leading CRLF", "\r\n" + ok, ""},
		{"HTTP/0.9", "hello", ""},
		{"HTTP/2.0", strings.Replace(ok, "1.1", "2.0", 1), notHTTP1},
		{"HTTP/1.2", strings.Replace(ok, "1.1", "1.2", 1), ""},
		{"HTTP/1", strings.Replace(ok, "1.1", "1", 1), ""},
		{"http/1.1", strings.Replace(ok, "HTTP", "http", 1), ""},
		{"status 99", strings.Replace(ok, "200", "099", 1), "no such status (RFC 9110 section 15)"},
		{"status 20", strings.Replace(ok, "200", "20", 1), ""},
		{"status 2000", strings.Replace(ok, "200", "2000", 1), ""},
		{"status +20", strings.Replace(ok, "200", "+20", 1), "a status is three digits (RFC 9112 section 4)"},
		{"status abc", strings.Replace(ok, "200", "abc", 1), ""},
		{"NUL in reason", strings.Replace(ok, "OK", "O\x00K", 1), "no control characters in the status line"},
		{"two blanks before status", strings.Replace(ok, " 200", "  200", 1), ""},
		{"no status", "HTTP/1.1\r\n\r\n", ""},
		{"chunk size 0x2", head + te + "\r\n0x2\r\nok\r\n0\r\n\r\n", ""},
		{"chunk size +2", head + te + "\r\n+2\r\nok\r\n0\r\n\r\n", ""},
		{"chunk size empty", head + te + "\r\n\r\nok\r\n0\r\n\r\n", ""},
		{"chunk size overflow", head + te + "\r\nfffffffffffffffff\r\nok\r\n0\r\n\r\n", ""},
		{"chunk size with blanks", head + te + "\r\n2  \r\nok\r\n0\r\n\r\n", ""},
		{"chunk bare LF", head + te + "\r\n2\nok\r\n0\r\n\r\n", ""},
		{"chunk data too long", head + te + "\r\n2\r\nokk\r\n0\r\n\r\n", ""},
		{"chunk extensions without end", head + te + "\r\n" + strings.Repeat("1;"+strings.Repeat("x", 3000)+"\r\na\r\n", 20) + "0\r\n\r\n", ""},
		{"trailer without colon", head + te + "\r\n2\r\nok\r\n0\r\nX-A\r\n\r\n", ""},
		{"framing trailer announced", head + "Trailer: Content-Length\r\n" + te + "\r\n2\r\nok\r\n0\r\n\r\n", ""},
		{"bare LF behind the last chunk", head + te + "\r\n2\r\nok\r\n0\r\n\n", ""},
		{"TLS alert", "\x15\x03\x01\x00\x02\x02\x46", ""},
		{"101 not asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "nobody asked for it (RFC 9110 section 7.8)"},
	} {
		s := Scenario{Name: "malformed " + r.name, Serve: answerClose(r.raw)}
		if r.why != "" {
			s.Differs = []Difference{{"1 error", "nil", "error", r.why}}
		}
		list = append(list, s)
	}
	return list
}

// odd: what is accepted, but after which nothing is certain.
func odd() (list []Scenario) {
	const accepts = "accepted, but its connection is not kept"
	for _, r := range []struct{ name, raw string }{
		{"fold", head + "X: y\r\n z\r\nContent-Length: 2\r\n\r\nok"},
		{"bare LF in head", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"},
		{"HTTP/1.2", strings.Replace(ok, "1.1", "1.2", 1)},
		{"204 with length", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"},
		{"204 with chunks", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"},
	} {
		list = append(list, Scenario{Name: "odd " + r.name, Serve: answerOnce(r.raw), Run: twice, Differs: []Difference{
			{"2 sent on", "a used connection", "a new connection", accepts},
			{"connections", "1", "2", accepts},
		}})
	}
	return list
}
