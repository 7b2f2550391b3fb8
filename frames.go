package keepalive

import "encoding/binary"

// frames follows the frames that arrive on an HTTP/2 connection (RFC 9113
// section 4.1) for what the pool has to know and a ClientConn does not tell:
// how many requests the peer takes at a time, and that it takes no more. Not
// safe for concurrent use.
type frames struct {
	// limit is how many requests the peer takes at a time, once settled: its
	// settings have come.
	limit   int
	settled bool
	goAway  bool // it takes no more
	news    bool // one of these has changed; whoever takes note of it clears it
	http1   bool // it speaks HTTP/1
	ponged  bool // it has answered a ping, and no request since
	// objected: it has reset a stream for an error in the protocol. Whoever takes
	// note of it clears it.
	objected bool

	head  [9]byte
	have  int     // bytes of head
	left  int     // bytes of the payload that are still to come
	entry [6]byte // of the settings, or the code of a reset
	had   int     // bytes of entry
}

// The parts of frames that count.
const (
	frameData       = 0
	frameHeaders    = 1
	frameReset      = 3
	frameSettings   = 4
	framePing       = 6
	frameGoAway     = 7
	flagAck         = 1
	settingMaxConns = 3 // SETTINGS_MAX_CONCURRENT_STREAMS
	protocolError   = 1 // PROTOCOL_ERROR
)

// defaultStreams is how many requests at a time a peer is given that sets no
// limit: what net/http gives it.
const defaultStreams = 1000

// feed takes what has arrived next.
func (f *frames) feed(p []byte) {
	for len(p) > 0 {
		if f.have < len(f.head) {
			n := copy(f.head[f.have:], p)
			f.have += n
			p = p[n:]
			if f.have < len(f.head) {
				return
			}
			f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
			f.had = 0
			f.http1 = f.http1 || string(f.head[:5]) == "HTTP/"
		}
		n := min(f.left, len(p))
		switch {
		case f.isSettings():
			f.settings(p[:n])
		case f.head[3] == frameReset:
			f.had += copy(f.entry[f.had:], p[:n])
		}
		p = p[n:]
		if f.left -= n; f.left == 0 {
			f.have = 0
			f.end()
		}
	}
}

func (f *frames) isSettings() bool { return f.head[3] == frameSettings && f.head[4]&flagAck == 0 }

// settings takes a piece of the settings.
func (f *frames) settings(p []byte) {
	for len(p) > 0 {
		n := copy(f.entry[f.had:], p)
		f.had += n
		p = p[n:]
		if f.had < len(f.entry) {
			return
		}
		f.had = 0
		if binary.BigEndian.Uint16(f.entry[:]) == settingMaxConns {
			f.limit = int(min(binary.BigEndian.Uint32(f.entry[2:]), 1<<30))
			f.settled = true
		}
	}
}

// end takes note of a frame that has arrived whole.
func (f *frames) end() {
	switch typ := f.head[3]; {
	case typ == frameData, typ == frameHeaders:
		f.ponged = false
	case typ == framePing && f.head[4]&flagAck != 0:
		f.ponged = true
	case f.isSettings():
		if !f.settled {
			f.limit, f.settled = defaultStreams, true
		}
		f.news = true
	case typ == frameReset:
		f.objected = f.objected || binary.BigEndian.Uint32(f.entry[:]) == protocolError
	case typ == frameGoAway:
		f.goAway, f.news = true, true
	}
}
