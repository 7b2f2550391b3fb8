// Package rawhttp2 is the server's end of an HTTP/2 connection, frame by frame:
// it says what a test tells it to, and nothing else. For tests only.
//
// It never waits for anything but its connection, so it works in a bubble of
// testing/synctest over an in-memory network.
package rawhttp2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Request is one request as it has arrived so far.
type Request struct {
	ID     uint32 // of its stream
	Method string
	Path   string
	Header http.Header
	// Body is what has come of the body; Done says that it is all.
	Body []byte
	Done bool
	// Trailer came behind the body.
	Trailer http.Header
}

// Script says how a connection behaves. All its functions are called by the
// goroutine of Serve, one at a time.
type Script struct {
	// Delay is how long the settings take.
	Delay time.Duration
	// Settings are sent first.
	Settings []http2.Setting
	// Head is called for the head of a request; nil: nothing.
	Head func(*Conn, *Request)
	// Request is called when a request has arrived; nil: it is answered with
	// its path.
	Request func(*Conn, *Request)
	// Reset is called when the client has reset a stream; nil: nothing.
	Reset func(c *Conn, id uint32, code http2.ErrCode)
	// Ping answers a ping; nil: it is acknowledged.
	Ping func(c *Conn, data [8]byte)
	// KeepWindow withholds the window of the bodies that arrive.
	KeepWindow bool
}

// Conn is a connection. Its methods may be called by any goroutine; they do
// nothing when it is closed.
type Conn struct {
	// Index counts the connections of a server, if it says so.
	Index  int
	nc     net.Conn
	script Script

	mu  sync.Mutex // guards writing
	fr  *http2.Framer
	buf bytes.Buffer
	enc *hpack.Encoder
}

// New returns the connection on nc.
func New(nc net.Conn, index int, s Script) *Conn {
	c := &Conn{Index: index, nc: nc, script: s, fr: http2.NewFramer(nc, nc)}
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.enc = hpack.NewEncoder(&c.buf)
	return c
}

// Serve plays the script until the connection ends.
func (c *Conn) Serve() error {
	defer c.Close()
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c.nc, preface); err != nil {
		return err
	}
	if string(preface) != http2.ClientPreface {
		return errors.New("rawhttp2: no HTTP/2 preface")
	}
	time.Sleep(c.script.Delay)
	c.Settings(c.script.Settings...)
	requests := map[uint32]*Request{}
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				c.write(func() { _ = c.fr.WriteSettingsAck() })
			}
		case *http2.PingFrame:
			c.ping(f)
		case *http2.MetaHeadersFrame:
			c.headers(requests, f)
		case *http2.DataFrame:
			c.data(requests, f)
		case *http2.RSTStreamFrame:
			delete(requests, f.StreamID)
			if c.script.Reset != nil {
				c.script.Reset(c, f.StreamID, f.ErrCode)
			}
		}
	}
}

func (c *Conn) ping(f *http2.PingFrame) {
	switch {
	case f.IsAck():
	case c.script.Ping != nil:
		c.script.Ping(c, f.Data)
	default:
		c.Pong(f.Data)
	}
}

func (c *Conn) headers(requests map[uint32]*Request, f *http2.MetaHeadersFrame) {
	h := http.Header{}
	for _, field := range f.RegularFields() {
		h.Add(field.Name, field.Value)
	}
	r := requests[f.StreamID]
	if r != nil {
		r.Trailer = h
	} else {
		r = &Request{ID: f.StreamID, Method: f.PseudoValue("method"), Path: f.PseudoValue("path"), Header: h}
		requests[f.StreamID] = r
		if c.script.Head != nil {
			c.script.Head(c, r)
		}
	}
	if f.StreamEnded() {
		c.done(requests, r)
	}
}

func (c *Conn) data(requests map[uint32]*Request, f *http2.DataFrame) {
	r := requests[f.StreamID]
	if n := f.Length; n > 0 && !c.script.KeepWindow {
		c.write(func() {
			_ = c.fr.WriteWindowUpdate(0, n)
			if r != nil && !f.StreamEnded() {
				_ = c.fr.WriteWindowUpdate(f.StreamID, n)
			}
		})
	}
	if r == nil {
		return
	}
	r.Body = append(r.Body, f.Data()...)
	if f.StreamEnded() {
		c.done(requests, r)
	}
}

func (c *Conn) done(requests map[uint32]*Request, r *Request) {
	r.Done = true
	delete(requests, r.ID)
	if c.script.Request != nil {
		c.script.Request(c, r)
		return
	}
	c.Answer(r.ID, r.Path)
}

// write runs f alone. Errors of a connection that has ended are nobody's.
func (c *Conn) write(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// Settings sends settings.
func (c *Conn) Settings(s ...http2.Setting) { c.write(func() { _ = c.fr.WriteSettings(s...) }) }

// Window allows n more bytes on a stream, 0: on the connection.
func (c *Conn) Window(id, n uint32) { c.write(func() { _ = c.fr.WriteWindowUpdate(id, n) }) }

// Pong answers a ping.
func (c *Conn) Pong(data [8]byte) { c.write(func() { _ = c.fr.WritePing(true, data) }) }

// Head sends a head: a status, and fields as "Name: value". It may also be that
// of an interim answer, or with status "" a trailer.
func (c *Conn) Head(id uint32, status string, end bool, fields ...string) {
	c.write(func() {
		c.buf.Reset()
		if status != "" {
			_ = c.enc.WriteField(hpack.HeaderField{Name: ":status", Value: status})
		}
		for _, f := range fields {
			name, value, _ := strings.Cut(f, ": ")
			_ = c.enc.WriteField(hpack.HeaderField{Name: strings.ToLower(name), Value: value})
		}
		_ = c.fr.WriteHeaders(http2.HeadersFrameParam{
			StreamID: id, BlockFragment: c.buf.Bytes(), EndStream: end, EndHeaders: true,
		})
	})
}

// Data sends a piece of a body. It does not look at the client's windows.
func (c *Conn) Data(id uint32, data string, end bool) {
	const maxFrame = 16 << 10
	for len(data) > maxFrame {
		c.write(func() { _ = c.fr.WriteData(id, false, []byte(data[:maxFrame])) })
		data = data[maxFrame:]
	}
	c.write(func() { _ = c.fr.WriteData(id, end, []byte(data)) })
}

// Answer sends 200 and body.
func (c *Conn) Answer(id uint32, body string) {
	c.Head(id, "200", false)
	c.Data(id, body, true)
}

// Reset ends a stream.
func (c *Conn) Reset(id uint32, code http2.ErrCode) {
	c.write(func() { _ = c.fr.WriteRSTStream(id, code) })
}

// GoAway says that no stream above last is looked at.
func (c *Conn) GoAway(last uint32, code http2.ErrCode) {
	c.write(func() { _ = c.fr.WriteGoAway(last, code, nil) })
}

// Raw sends bytes as they are.
func (c *Conn) Raw(b []byte) { c.write(func() { _, _ = c.nc.Write(b) }) }

// Close ends the connection.
func (c *Conn) Close() { _ = c.nc.Close() }

// Limit is the setting of how many streams there may be at a time.
func Limit(n uint32) http2.Setting {
	return http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: n}
}
