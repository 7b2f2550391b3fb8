//go:build unix

package keepalive

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// cpuTime is the user and system time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peers returns the two transports to compare, each set up to keep its
// connections.
func peers(b *testing.B) map[string]http.RoundTripper {
	ours, err := New()
	if err != nil {
		b.Fatal(err)
	}
	theirs := &http.Transport{MaxIdleConnsPerHost: 1024}
	b.Cleanup(func() {
		_ = ours.Close()
		theirs.CloseIdleConnections()
	})
	return map[string]http.RoundTripper{"keepalive": ours, "nethttp": theirs}
}

// BenchmarkGet is a small GET through RoundTrip with the server in a process
// of its own. Both transports take turns within one run, in slices of 20,000
// requests, and the ratio of their CPU time per request is reported.
func BenchmarkGet(b *testing.B) {
	for _, inFlight := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("inflight=%d", inFlight), func(b *testing.B) {
			addr := startServer(b, 0)
			rts := peers(b)
			for _, rt := range rts {
				get(b, rt, addr, inFlight, 4*inFlight) // warm up
			}
			cpu := map[string]time.Duration{}
			allocs := map[string]uint64{}
			n := 0
			b.ResetTimer()
			for n < b.N {
				slice := min(20000, max(b.N-n, inFlight))
				for name, rt := range rts {
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					start := cpuTime()
					get(b, rt, addr, inFlight, slice)
					cpu[name] += cpuTime() - start
					runtime.ReadMemStats(&after)
					allocs[name] += after.Mallocs - before.Mallocs
				}
				n += slice
			}
			for name := range rts {
				b.ReportMetric(float64(cpu[name].Nanoseconds())/float64(n), name+"-cpu-ns/req")
				b.ReportMetric(float64(allocs[name])/float64(n), name+"-allocs/req")
			}
			b.ReportMetric(float64(cpu["keepalive"])/float64(cpu["nethttp"]), "cpu-ratio")
		})
	}
}

// get makes n requests, inFlight at a time.
func get(b *testing.B, rt http.RoundTripper, addr string, inFlight, n int) {
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range inFlight {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+addr+"/bench", nil)
			if err != nil {
				b.Error(err)
				return
			}
			for left.Add(-1) >= 0 {
				resp, err := rt.RoundTrip(req)
				if err != nil {
					b.Error(err)
					return
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					b.Error(err)
				}
				_ = resp.Body.Close()
			}
		})
	}
	wg.Wait()
}

// rss returns the resident memory of this process, in bytes.
func rss(b *testing.B) int64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip("needs /proc")
	}
	for line := range strings.Lines(string(data)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	b.Fatal("no VmRSS")
	return 0
}

// BenchmarkIdle opens idle connections and reports what each costs in resident
// memory and goroutines.
func BenchmarkIdle(b *testing.B) {
	const conns = 10000
	b.Run("keepalive", func(b *testing.B) {
		t, err := New(WithMaxIdleConns(0), WithMaxIdleConnsPerHost(0))
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = t.Close() }()
		benchIdle(b, t, conns)
	})
	b.Run("nethttp", func(b *testing.B) {
		t := &http.Transport{MaxIdleConnsPerHost: conns}
		defer t.CloseIdleConnections()
		benchIdle(b, t, conns)
	})
}

func benchIdle(b *testing.B, rt http.RoundTripper, conns int) {
	addr := startServer(b, 16<<10)
	settle()
	before, goroutines := rss(b), runtime.NumGoroutine()
	for b.Loop() {
		// Bodies that are not read yet keep their connections.
		resps := make([]*http.Response, conns)
		for i := range resps {
			req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+addr, nil)
			if err != nil {
				b.Fatal(err)
			}
			if resps[i], err = rt.RoundTrip(req); err != nil {
				b.Fatal(err)
			}
		}
		for _, resp := range resps {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
	settle()
	b.ReportMetric(float64(rss(b)-before)/float64(conns), "B/conn")
	b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/float64(conns), "goroutines/conn")
}

// settle gives back what is garbage; pools are emptied by the second turn.
func settle() {
	for range 3 {
		debug.FreeOSMemory()
	}
}
