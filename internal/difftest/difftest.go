// Package difftest has scenarios that run on any http.RoundTripper. A test runs
// each on *http.Transport and on another one, and compares what was seen on
// both sides of the connection. For tests only.
package difftest

import (
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Maker makes the RoundTripper under test with the settings of tr. end releases
// it.
type Maker func(t testing.TB, tr *http.Transport) (rt http.RoundTripper, end func())

// Scenario is a server that behaves in some way, and a client that talks to it.
type Scenario struct {
	Name string
	// Serve answers one request; nil reads it and says ok.
	Serve func(*Exchange)
	// Handle is what a real server does in its place. The scenario runs on all
	// roads then, or on those that On chooses.
	Handle http.HandlerFunc
	On     func(Road) bool
	// Setup changes the transport's settings.
	Setup func(*http.Transport, *Server)
	// Run is the client's side; nil is one GET.
	Run func(*Client)
	// Only is "http" or "https", or empty for both.
	Only string
	// Differs lists where net/http and ours are meant to differ. DiffersHTTP2
	// is for HTTP/2, and comes first there.
	Differs, DiffersHTTP2 []Difference
}

// Difference is a deliberate difference from net/http in the facts that match
// the pattern Fact (path.Match). A value of "*" stands for any.
type Difference struct {
	Fact    string
	NetHTTP string
	Ours    string
	Why     string
}

// Roads returns the roads that s is to be run on.
func (s Scenario) Roads() (list []Road) {
	for _, r := range roads() {
		if s.runsOn(r) {
			list = append(list, r)
		}
	}
	return list
}

func (s Scenario) runsOn(r Road) bool {
	switch {
	case s.Handle == nil:
		return r.Plain() && (s.Only == "" || s.Only == r.Name)
	case s.On != nil:
		return s.On(r)
	}
	return true
}

// Seen is what a run of a scenario has shown: named facts in their order.
type Seen struct {
	road Road

	mu     sync.Mutex // guards the rest until the run is over
	names  []string
	values map[string]string
}

func (s *Seen) note(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.values[name]; !ok {
		s.names = append(s.names, name)
	}
	s.values[name] = value
}

// Get returns a fact, "" if it was not seen.
func (s *Seen) Get(name string) string { return s.values[name] }

// Run runs s on road with the RoundTripper that mk makes and returns what was
// seen.
func Run(t testing.TB, s Scenario, road Road, mk Maker) *Seen {
	t.Helper()
	seen := &Seen{road: road, values: make(map[string]string)}
	srv := newServer(t, s, road)
	tr := &http.Transport{TLSClientConfig: srv.ClientTLS()}
	road.setup(tr, srv)
	if s.Setup != nil {
		s.Setup(tr, srv)
	}
	rt, end := mk(t, tr)
	c := &Client{T: t, RT: rt, Server: srv, Road: road, seen: seen}
	run := s.Run
	if run == nil {
		run = func(c *Client) { c.Do(c.Request(http.MethodGet, "/", nil)) }
	}
	run(c)
	end()
	srv.close()
	c.noteBodies()
	srv.report(seen)
	return seen
}

// Compare returns in what ours differs from theirs other than s allows, and
// which of the differences that s names are not there.
func (s Scenario) Compare(theirs, ours *Seen) (wrong []string) {
	names := theirs.names
	for _, n := range ours.names {
		if _, ok := theirs.values[n]; !ok {
			names = append(names, n)
		}
	}
	for _, n := range names {
		if !answeredAlike(n, theirs, ours) {
			continue
		}
		a, aok := theirs.values[n]
		b, bok := ours.values[n]
		if !aok {
			a = "absent"
		}
		if !bok {
			b = "absent"
		}
		if d := s.difference(n, theirs.road); d != nil {
			if strings.HasSuffix(n, " error") && d.Ours == "error" && b != errNil {
				b = d.Ours // of any kind
			}
			if !matches(d.NetHTTP, a) || !matches(d.Ours, b) {
				wrong = append(wrong, fmt.Sprintf("%s: recorded difference is net/http %q ours %q, but\nnet/http %s\nours     %s",
					n, d.NetHTTP, d.Ours, a, b))
			}
			continue
		}
		if !same(n, a, b) && !everywhere(n, a, b) {
			wrong = append(wrong, fmt.Sprintf("%s:\nnet/http %s\nours     %s", n, a, b))
		}
	}
	return wrong
}

// answeredAlike reports whether the step of a fact came to a response in both
// or in neither. Of a step that did not, only the error is compared.
func answeredAlike(name string, theirs, ours *Seen) bool {
	step, fact, _ := strings.Cut(name, " ")
	a, b := theirs.values[step+" error"], ours.values[step+" error"]
	return fact == "error" || (a == errNil) == (b == errNil)
}

func (s Scenario) difference(name string, road Road) *Difference {
	list := s.Differs
	if road.HTTP2 {
		list = slices.Concat(s.DiffersHTTP2, s.Differs)
	}
	for i := range list {
		if hit, err := path.Match(list[i].Fact, name); hit && err == nil {
			return &list[i]
		}
	}
	return nil
}

// everywhere reports whether a and b differ as they are meant to in every
// scenario.
func everywhere(name, a, b string) bool {
	for _, d := range []Difference{
		{"* alpn", `""`, `"http/1.1"`, "ALPN names the protocol that is wanted, also where there is only one (RFC 9325 section 3.8)"},
		{"* resp.Request", "false", "true", "it is the request that was given; over HTTP/2 net/http returns a copy"},
		{"* trace answer", "GotFirstResponseByte", "GotFirstResponseByte; PutIdleConn failed=true", "PutIdleConn is told of each connection that is not kept; net/http does so only if it has tried to"},
	} {
		if hit, err := path.Match(d.Fact, name); hit && err == nil && d.NetHTTP == a && d.Ours == b {
			return true
		}
	}
	return false
}

func matches(want, got string) bool { return want == "*" || want == got }

// same reports whether two values of a fact are alike. An error may match more
// than net/http's, but not less.
func same(name, theirs, ours string) bool {
	if !strings.HasSuffix(name, " error") || theirs == errNil || ours == errNil {
		return theirs == ours
	}
	have := strings.Fields(ours)
	for class := range strings.FieldsSeq(theirs) {
		if !slices.Contains(have, class) {
			return false
		}
	}
	return slices.Contains(have, classTimeout) == strings.Contains(theirs, classTimeout)
}

// All returns all scenarios.
func All() []Scenario {
	return slices.Concat(
		methods(), bodies(), brokenBodies(), fields(), targets(), hosts(), invalid(),
		framings(), noBodies(), unasked(), interims(), expects(), gzips(), reuse(), duplex(), malformed(), odd(),
		earlyCloses(), cancels(), timeouts(), dials(), handshakes(), limits(),
		traces(), failedTraces(), redirects(), proxies(), streams(), upgrades(),
		forwarded(), tunnels(), refusedTunnels(), socksProxies(), choices(),
		asked(), askedFields(), answered(), trailers(), unpacked(), asksFirst(), streamed(), upgradedRoads(),
		ended(), outOfTime(), pooled(), registered(), dialed(),
		clients(), behind(), watched(), versions(), counted(),
	)
}
