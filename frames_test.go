package keepalive

import (
	"bytes"
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
		}, frames{limit: 10, settled: true, news: true}},
		{"acknowledgement", func(fr *h2.Framer) { _ = fr.WriteSettingsAck() }, frames{}},
		{"data that looks like settings", func(fr *h2.Framer) {
			_ = fr.WriteData(1, false, []byte{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1})
		}, frames{}},
		{"go away", func(fr *h2.Framer) {
			_ = fr.WriteSettings(maxStreams(5))
			_ = fr.WriteGoAway(3, h2.ErrCodeNo, []byte("restart"))
			_ = fr.WriteRSTStream(5, h2.ErrCodeCancel)
		}, frames{limit: 5, settled: true, goAway: true, news: true}},
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
					got := frames{limit: f.limit, settled: f.settled, goAway: f.goAway, news: f.news}
					require.Equal(t, tt.want, got, "cut at %d, then %d", cut, size)
					require.Zero(t, f.have)
				}
			}
		})
	}
}
