package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What is measured, with its unit.
const (
	metricCPU         = "CPU us/request"
	metricRate        = "requests/s"
	metricAllocs      = "allocations/request"
	metricBytes       = "bytes/request"
	metricLongestWait = "longest wait/median"
	metricLaterDials  = "dials after the burst"
	metricMemory      = "bytes/connection"
	metricGoroutines  = "goroutines/connection"
	metricIdleCPU     = "CPU ms in 10 s idle"
	metricNoticed     = "hang-ups noticed"
	metricNoticedP50  = "noticed after, median ms"
	metricNoticedLast = "noticed after, last ms"
)

// The environment of a process that does the work: its role, and its job.
const (
	envRole    = "KEEPALIVE_BENCH_ROLE"
	envJob     = "KEEPALIVE_BENCH_JOB"
	roleServer = "server"
	roleClient = "client"
)

// job is what the command asks a client process to do.
type job struct {
	Scenario    string
	Clients     []string
	First       int // number of the first round
	Rounds      int
	Slice, Idle time.Duration
	Small       bool
	Profile     string // where the CPU profile goes; empty: none
}

// sample is what came of one client's turn in one round.
type sample struct {
	Client string
	Round  int
	Values map[string]float64
}

// command is this program again, in a role.
func (j *job) command(ctx context.Context, role string) (*exec.Cmd, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self) //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), envRole+"="+role, envJob+"="+string(text))
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// play is the whole of a process with a role.
func play(role string) error {
	var j job
	if err := json.Unmarshal([]byte(os.Getenv(envJob)), &j); err != nil {
		return err
	}
	s, err := find(j.Scenario, j.Small)
	if err != nil {
		return err
	}
	if role == roleServer {
		return serve(s, os.Stdin, os.Stdout)
	}
	return j.run(background(), s, os.Stdout)
}

// lab is a client process.
type lab struct {
	*job
	s   *scenario
	srv *remote
	at  *place
	out *json.Encoder
}

// run does the job and writes its samples.
func (j *job) run(ctx context.Context, s *scenario, out io.Writer) error {
	if most, err := fileLimit(); err == nil && most < s.conns+s.hosts+100 {
		return fmt.Errorf("needs %d open files, the limit is %d", s.conns+s.hosts+100, most)
	}
	srv, err := startServer(ctx, j)
	if err != nil {
		return err
	}
	defer srv.stop()
	at, err := newPlace(s, srv.hello)
	if err != nil {
		return err
	}
	if j.Profile != "" {
		f, err := os.Create(j.Profile)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	l := &lab{job: j, s: s, srv: srv, at: at, out: json.NewEncoder(out)}
	switch s.kind {
	case kindExchange:
		return l.exchanges()
	case kindBurst:
		return l.turns(l.burst)
	case kindHangup:
		return l.turns(l.hangup)
	case kindIdle:
		return l.turns(l.idle)
	}
	return errors.New("unknown kind")
}

// turns lets the clients take turns in each round; who begins moves on.
func (l *lab) turns(turn func(name string) (map[string]float64, error)) error {
	for round := l.First; round < l.First+l.Rounds; round++ {
		for i := range l.Clients {
			name := l.Clients[(i+round)%len(l.Clients)]
			values, err := turn(name)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if err := l.out.Encode(sample{name, round, values}); err != nil {
				return err
			}
		}
	}
	return nil
}

// exchanges measures clients that are all alive at once, in slices.
func (l *lab) exchanges() error {
	clients := make(map[string]client)
	for _, name := range l.Clients {
		c, err := newClient(name, l.at)
		if err != nil {
			return err
		}
		defer c.close()
		clients[name] = c
		if _, err := l.load(c, l.Slice/2); err != nil { // dial
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return l.turns(func(name string) (map[string]float64, error) {
		if _, err := l.load(clients[name], l.Slice/10); err != nil { // warm up
			return nil, err
		}
		return l.slice(clients[name])
	})
}

// slice measures one slice of load.
func (l *lab) slice(c client) (map[string]float64, error) {
	var before, after runtime.MemStats
	runtime.GC() // of the others' garbage
	runtime.ReadMemStats(&before)
	start := time.Now()
	cpu, err := cpuSince(0)
	if err != nil {
		return nil, err
	}
	done, err := l.load(c, l.Slice)
	if err != nil {
		return nil, err
	}
	if cpu, err = cpuSince(cpu); err != nil {
		return nil, err
	}
	elapsed := time.Since(start)
	runtime.ReadMemStats(&after)
	n := float64(done.requests)
	values := map[string]float64{
		metricCPU:    micros(cpu) / n,
		metricRate:   n / elapsed.Seconds(),
		metricAllocs: float64(after.Mallocs-before.Mallocs) / n,
		metricBytes:  float64(after.TotalAlloc-before.TotalAlloc) / n,
	}
	if waits := done.waits; len(waits) > 0 {
		slices.Sort(waits)
		values[metricLongestWait] = float64(waits[len(waits)-1]) / float64(waits[len(waits)/2])
	}
	return values, nil
}

func cpuSince(start time.Duration) (time.Duration, error) {
	now, err := cpuTime()
	return now - start, err
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// work is what load has done.
type work struct {
	requests int
	waits    []time.Duration // how long each request took, where there is a limit
}

// load keeps the scenario's number of requests in flight for a time. Every
// goroutine makes one request at least.
func (l *lab) load(c client, d time.Duration) (work, error) {
	var stop atomic.Bool
	timer := time.AfterFunc(d, func() { stop.Store(true) })
	defer timer.Stop()
	var mu sync.Mutex
	var total work
	err := together(l.s.inFlight, func(i int) error {
		request, err := c.worker(l.pick(i))
		if err != nil {
			return err
		}
		var mine work
		for again := true; again; again = !stop.Load() {
			if l.s.maxPerHost > 0 {
				start := time.Now()
				err = request()
				mine.waits = append(mine.waits, time.Since(start))
			} else {
				err = request()
			}
			if err != nil {
				stop.Store(true)
				return err
			}
			mine.requests++
		}
		mu.Lock()
		defer mu.Unlock()
		total.requests += mine.requests
		total.waits = append(total.waits, mine.waits...)
		return nil
	})
	return total, err
}

// together runs n goroutines and returns when all have ended, with the first
// error.
func together(n int, f func(i int) error) error {
	errs := make(chan error, n) // one for each
	for i := range n {
		go func() { errs <- f(i) }()
	}
	var first error
	for range n {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// pick returns how a goroutine chooses its next host.
func (l *lab) pick(i int) func() int {
	n := len(l.at.addrs)
	if n == 1 {
		return func() int { return 0 }
	}
	r := rand.New(rand.NewPCG(rand.Uint64(), uint64(i))) //nolint:gosec // no secret
	return func() int { return r.IntN(n) }
}

// burst lets a new client make many requests at once, as often as a slice
// allows, each time followed by a few at a time, which must not dial.
func (l *lab) burst(name string) (map[string]float64, error) {
	var cpu time.Duration
	var before, after runtime.MemStats
	allocs, requests, dials := uint64(0), 0, 0
	runtime.GC()
	for start := time.Now(); requests == 0 || time.Since(start) < l.Slice; {
		c, err := newClient(name, l.at)
		if err != nil {
			return nil, err
		}
		runtime.ReadMemStats(&before)
		used, err := cpuSince(0)
		if err != nil {
			return nil, err
		}
		if err := l.allAtOnce(c); err != nil {
			return nil, err
		}
		if used, err = cpuSince(used); err != nil {
			return nil, err
		}
		runtime.ReadMemStats(&after)
		cpu, allocs, requests = cpu+used, allocs+after.Mallocs-before.Mallocs, requests+l.s.conns
		later, err := l.laterDials(c)
		if err != nil {
			return nil, err
		}
		dials = max(dials, later)
		c.close()
	}
	return map[string]float64{
		metricCPU:        micros(cpu) / float64(requests),
		metricAllocs:     float64(allocs) / float64(requests),
		metricLaterDials: float64(dials),
	}, nil
}

// allAtOnce makes the burst.
func (l *lab) allAtOnce(c client) error {
	return together(l.s.conns, func(i int) error {
		request, err := c.worker(l.pick(i))
		if err != nil {
			return err
		}
		return request()
	})
}

// laterDials counts the connections that a few requests at a time open.
func (l *lab) laterDials(c client) (int, error) {
	var before, after int
	if err := l.srv.ask(cmdAccepted, &before); err != nil {
		return 0, err
	}
	if _, err := l.load(c, l.Slice/10); err != nil {
		return 0, err
	}
	err := l.srv.ask(cmdAccepted, &after)
	return after - before, err
}

// open gives c n idle connections: by requests whose answers are held back
// until all have a connection.
func (l *lab) open(c client, n int) error {
	finish := make([]func() error, n)
	for i := range finish {
		var err error
		if finish[i], err = c.hold(); err != nil {
			return err
		}
	}
	var ok bool
	if err := l.srv.ask(cmdRelease, &ok); err != nil {
		return err
	}
	for _, f := range finish {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// hangup lets the server close all idle connections at once.
func (l *lab) hangup(name string) (map[string]float64, error) {
	c, err := newClient(name, l.at)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := l.open(c, l.s.conns); err != nil {
		return nil, err
	}
	var h hangups
	if err := l.srv.ask(cmdHangup, &h); err != nil {
		return nil, err
	}
	values := map[string]float64{metricNoticed: float64(h.Noticed)}
	if h.Noticed > 0 {
		values[metricNoticedP50], values[metricNoticedLast] = millis(h.P50), millis(h.Last)
	}
	return values, nil
}

// rehearse makes a few requests through a client that is thrown away, so that
// what is measured afterwards is not the program itself being paged in.
func (l *lab) rehearse(name string) error {
	c, err := newClient(name, l.at)
	if err != nil {
		return err
	}
	defer c.close()
	return l.open(c, min(20, l.s.conns))
}

// idle opens idle connections and measures what each costs.
func (l *lab) idle(name string) (map[string]float64, error) {
	goroutines := runtime.NumGoroutine()
	if err := l.rehearse(name); err != nil {
		return nil, err
	}
	memory, err := residentMemory()
	if err != nil {
		return nil, err
	}
	c, err := newClient(name, l.at)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := l.open(c, l.s.conns); err != nil {
		return nil, err
	}
	memoryAfter, err := residentMemory()
	if err != nil {
		return nil, err
	}
	n := float64(l.s.conns)
	values := map[string]float64{
		metricMemory:     float64(memoryAfter-memory) / n,
		metricGoroutines: float64((runtime.NumGoroutine()-goroutines)*10/l.s.conns) / 10,
	}
	if l.s.restless {
		start, err := cpuSince(0)
		if err != nil {
			return nil, err
		}
		time.Sleep(l.Idle)
		used, err := cpuSince(start)
		if err != nil {
			return nil, err
		}
		values[metricIdleCPU] = millis(used) * float64(10*time.Second) / float64(l.Idle)
	}
	return values, nil
}
