package keepalive

import (
	"bytes"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	h2 "golang.org/x/net/http2"
)

// TestFramesAtEveryCut: what frames say does not depend on how they arrive.
func TestFramesAtEveryCut(t *testing.T) {
	maxStreams := func(n uint32) h2.Setting {
		return h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: n}
	}
	window := h2.Setting{ID: h2.SettingInitialWindowSize, Val: 3}
	for _, tt := range []struct {
		name  string
		write func(*h2.Framer)
		want  frames
	}{
		{"no limit", func(fr *h2.Framer) { _ = fr.WriteSettings() }, frames{limit: 1000, settled: true, news: true}},
		{"others", func(fr *h2.Framer) { _ = fr.WriteSettings(window, maxStreams(7), window) }, frames{limit: 7, settled: true, news: true}},
		{"none", func(fr *h2.Framer) { _ = fr.WriteSettings(maxStreams(0)) }, frames{settled: true, news: true}},
		{"huge", func(fr *h2.Framer) { _ = fr.WriteSettings(maxStreams(1<<32 - 1)) }, frames{limit: 1 << 30, settled: true, news: true}},
		{"changed", func(fr *h2.Framer) {
			_ = fr.WriteSettings(maxStreams(100))
			_ = fr.WriteData(1, false, make([]byte, 300))
			_ = fr.WriteSettings(maxStreams(10))
			_ = fr.WriteSettings(window)
			_ = fr.WritePing(true, [8]byte{})
		}, frames{limit: 10, settled: true, news: true, ponged: true}},
		{"pings", func(fr *h2.Framer) {
			_ = fr.WritePing(true, [8]byte{})
			_ = fr.WriteData(1, true, nil)
			_ = fr.WritePing(false, [8]byte{})
		}, frames{}},
		{"acknowledgement", func(fr *h2.Framer) { _ = fr.WriteSettingsAck() }, frames{}},
		{"data that looks like settings", func(fr *h2.Framer) {
			_ = fr.WriteData(1, false, []byte{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1})
		}, frames{}},
		{"go away", func(fr *h2.Framer) {
			_ = fr.WriteSettings(maxStreams(5))
			_ = fr.WriteGoAway(3, h2.ErrCodeNo, []byte("restart"))
			_ = fr.WriteRSTStream(5, h2.ErrCodeCancel)
		}, frames{limit: 5, settled: true, goAway: true, news: true}},
		{"objection", func(fr *h2.Framer) {
			_ = fr.WriteRSTStream(1, h2.ErrCodeRefusedStream)
			_ = fr.WriteRSTStream(3, h2.ErrCodeProtocol)
			_ = fr.WriteRSTStream(5, h2.ErrCodeCancel)
		}, frames{objected: true}},
		{"other resets", func(fr *h2.Framer) {
			_ = fr.WriteRSTStream(1, h2.ErrCodeNo)
			_ = fr.WriteRSTStream(1<<8+1, h2.ErrCodeInternal)
			_ = fr.WriteWindowUpdate(1, uint32(h2.ErrCodeProtocol))
		}, frames{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			tt.write(h2.NewFramer(&b, nil))
			for cut := range b.Len() + 1 {
				for _, size := range []int{1, 2, 5, b.Len()} {
					var f frames
					f.feed(b.Bytes()[:cut])
					for rest := b.Bytes()[cut:]; len(rest) > 0; {
						n := min(size, len(rest))
						f.feed(rest[:n])
						rest = rest[n:]
					}
					got := frames{limit: f.limit, settled: f.settled, goAway: f.goAway, news: f.news, ponged: f.ponged, objected: f.objected}
					require.Equal(t, tt.want, got, "cut at %d, then %d", cut, size)
					require.Zero(t, f.have)
				}
			}
		})
	}
}

// oneRead is a connection from which b arrives in one piece, then nothing.
type oneRead struct {
	net.Conn
	b []byte
}

func (c *oneRead) Read(p []byte) (int, error) {
	n := copy(p, c.b)
	c.b = c.b[n:]
	return n, nil
}

// TestFramesAreToldInTime: that the peer takes less is told at once, that it
// takes more not before net/http knows.
func TestFramesAreToldInTime(t *testing.T) {
	for _, tt := range []struct {
		name         string
		write        func(*h2.Framer)
		atOnce, then int32
		retired      CloseReason // at once
	}{
		{"less", func(fr *h2.Framer) {
			_ = fr.WriteSettings(h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: 5})
		}, 5, 5, CloseNone},
		{"more", func(fr *h2.Framer) {
			_ = fr.WriteSettings(h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: 500})
		}, initialStreams, 500, CloseNone},
		{"none", func(fr *h2.Framer) { _ = fr.WriteGoAway(1, h2.ErrCodeNo, nil) }, 0, 0, CloseServerRequest},
		{"objection, no stream", func(fr *h2.Framer) { _ = fr.WriteRSTStream(1, h2.ErrCodeProtocol) }, initialStreams, initialStreams, CloseNone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr, err := New()
			require.NoError(t, err)
			defer tr.Close()
			var b bytes.Buffer
			tt.write(h2.NewFramer(&b, nil))
			c := &conn{nc: &oneRead{b: b.Bytes()}, shares: true, capacity: initialStreams}
			s := newHTTP2Socket(tr, c)
			_, err = s.Read(make([]byte, 100))
			require.NoError(t, err)
			require.Equal(t, tt.atOnce, c.capacity)
			require.Equal(t, tt.retired, c.retired)
			_, err = s.Read(make([]byte, 100))
			require.NoError(t, err)
			require.Equal(t, tt.then, c.capacity)
		})
	}
}
