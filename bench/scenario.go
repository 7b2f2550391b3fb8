package main

import (
	"fmt"
	"slices"
	"time"
)

// kind is how a scenario is measured.
type kind int

const (
	// kindExchange: so many requests in flight all the time, in slices of time.
	kindExchange kind = iota
	// kindBurst: many requests at once through a new client, then a few.
	kindBurst
	// kindHangup: the server closes all idle connections at once.
	kindHangup
	// kindIdle: what idle connections cost. Each client has a process to itself.
	kindIdle
)

// caller is how a request is made through a client with net/http's types.
type caller int

const (
	// callRoundTrip calls RoundTrip with a request that is made once.
	callRoundTrip caller = iota
	// callDeadline is callRoundTrip with a context that has a deadline.
	callDeadline
	// callDo makes a request and gives it to http.Client.Do.
	callDo
	// callDoTimeout is callDo with http.Client.Timeout.
	callDoTimeout
	// callDoRequestTimeout is callDo, here with WithRequestTimeout. net/http has
	// nothing of the kind and runs without a timeout.
	callDoRequestTimeout
)

// scenario is one line of the work to be measured.
type scenario struct {
	name, title string
	kind        kind
	caller      caller
	inFlight    int
	upload      int // size of the request body; 0: GET
	download    int // size of the response body; 0: 128
	chunks      int // 0: Content-Length
	tls         bool
	hosts       int           // 0: one
	maxIdle     int           // limit on idle connections to all hosts; 0: none
	maxPerHost  int           // limit on connections to one host; 0: none
	conns       int           // kindBurst, kindHangup, kindIdle
	restless    bool          // kindIdle: measure the CPU time of doing nothing, too
	patience    time.Duration // kindHangup: how long to wait for peers to notice
	clients     []string      // nil: all
	targets     []target
}

// target is what keepalive is to reach.
type target struct {
	metric  string
	ratio   bool // to net/http in the same round
	atLeast bool // else at most
	want    float64
}

// cpu is a target for CPU time per request, as a ratio to net/http.
func cpu(want float64) []target {
	return []target{{metric: metricCPU, ratio: true, want: want}}
}

func atMost(metric string, want float64) target { return target{metric: metric, want: want} }

// Names of the clients.
const (
	nameKeepalive = "keepalive"
	nameNetHTTP   = "nethttp"
	nameFastHTTP  = "fasthttp"
	nameHertz     = "hertz"
	nameTypes     = "types"
	nameFloor     = "floor"
)

// allClients are the names in the order of the table. The first is the
// measure of the others.
func allClients() []string {
	return []string{nameNetHTTP, nameKeepalive, nameFastHTTP, nameHertz, nameTypes, nameFloor}
}

// idleClients are all but types, whose idle connections are floor's.
func idleClients() []string {
	return []string{nameNetHTTP, nameKeepalive, nameFastHTTP, nameHertz, nameFloor}
}

// scenarios is the work, with its targets.
func scenarios() []scenario {
	return slices.Concat(exchangeScenarios(), poolScenarios(), idleScenarios())
}

func exchangeScenarios() []scenario {
	get := func(n int, want float64) scenario {
		return scenario{name: fmt.Sprintf("get-c%d", n), title: "small GET", inFlight: n, targets: cpu(want)}
	}
	fast := get(64, 0.33)
	fast.targets = append(fast.targets, target{metric: metricRate, ratio: true, atLeast: true, want: 2.3})
	return []scenario{
		get(1, 0.36), get(8, 0.40), fast, get(512, 0.34),
		{
			name: "get-deadline-c64", title: "small GET, context with a deadline",
			caller: callDeadline, inFlight: 64, targets: cpu(0.38),
		},
		{
			name: "do-c64", title: "small GET by http.Client.Do",
			caller: callDo, inFlight: 64, targets: cpu(0.42),
		},
		{
			name: "do-request-timeout-c64", title: "the same, WithRequestTimeout",
			caller: callDoRequestTimeout, inFlight: 64, targets: cpu(0.42),
		},
		{
			name: "do-client-timeout-c64", title: "the same, http.Client.Timeout",
			caller: callDoTimeout, inFlight: 64, targets: cpu(0.60),
		},
		{name: "post-1k-c8", title: "POST of 1 KB", inFlight: 8, upload: 1 << 10, targets: cpu(0.31)},
		{name: "post-1m-c4", title: "POST of 1 MB", inFlight: 4, upload: 1 << 20, targets: cpu(0.50)},
		{name: "get-4k-chunked-c8", title: "GET of 4 KB in four chunks", inFlight: 8, download: 4 << 10, chunks: 4, targets: cpu(0.41)},
		{name: "get-64k-c8", title: "GET of 64 KB", inFlight: 8, download: 64 << 10, targets: cpu(0.50)},
		{name: "get-1m-c4", title: "GET of 1 MB", inFlight: 4, download: 1 << 20, targets: cpu(0.80)},
		{name: "tls-c8", title: "small GET over TLS", inFlight: 8, tls: true, targets: cpu(0.40)},
		{name: "tls-c64", title: "small GET over TLS", inFlight: 64, tls: true, targets: cpu(0.34)},
	}
}

func poolScenarios() []scenario {
	return []scenario{
		{
			name: "hosts-1000-c32", title: "1,000 hosts at random",
			inFlight: 32, hosts: 1000, targets: cpu(0.40),
		},
		{
			name: "hosts-1000-lru-c32", title: "the same, 500 idle connections at most",
			inFlight: 32, hosts: 1000, maxIdle: 500,
			clients: []string{nameNetHTTP, nameKeepalive}, targets: cpu(0.85),
		},
		{
			name: "limit-4-c256", title: "4 connections, 256 goroutines",
			inFlight: 256, maxPerHost: 4, targets: append(cpu(0.34), atMost(metricLongestWait, 3)),
		},
		{
			name: "burst-200", title: "200 at once through a new client, then 10",
			kind: kindBurst, inFlight: 10, conns: 200, targets: append(cpu(0.50), atMost(metricLaterDials, 0)),
		},
	}
}

func idleScenarios() []scenario {
	return []scenario{
		{
			name: "idle-10000", title: "10,000 idle connections",
			kind: kindIdle, conns: 10000, restless: true, clients: idleClients(),
			targets: []target{atMost(metricMemory, 2048), atMost(metricGoroutines, 0), atMost(metricIdleCPU, 2)},
		},
		{
			name: "idle-tls-2000", title: "2,000 idle TLS connections",
			kind: kindIdle, conns: 2000, tls: true, clients: idleClients(),
			targets: []target{atMost(metricMemory, 14<<10), atMost(metricGoroutines, 0)},
		},
		{
			name: "hangup-1000", title: "1,000 idle peers hang up at once",
			kind: kindHangup, conns: 1000, patience: time.Second,
			clients: []string{nameNetHTTP, nameKeepalive, nameFastHTTP, nameHertz},
			targets: []target{
				{metric: metricNoticed, atLeast: true, want: 1000}, atMost(metricNoticedLast, 100),
			},
		},
	}
}

// has reports whether the client takes part in s.
func (s *scenario) has(client string) bool {
	return s.clients == nil || slices.Contains(s.clients, client)
}

// shrink makes s a matter of milliseconds, to see that it works.
func (s *scenario) shrink() {
	const few = 50
	s.conns, s.hosts, s.inFlight = min(s.conns, few), min(s.hosts, few), min(s.inFlight, few)
	s.maxIdle = min(s.maxIdle, few/2)
	s.patience = min(s.patience, 50*time.Millisecond)
	s.targets = nil // they hold for the real size
}

// find returns the scenario with that name.
func find(name string, small bool) (*scenario, error) {
	all := scenarios()
	i := slices.IndexFunc(all, func(s scenario) bool { return s.name == name })
	if i < 0 {
		return nil, fmt.Errorf("no scenario %q", name)
	}
	if small {
		all[i].shrink()
	}
	return &all[i], nil
}
