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
	// Setup changes the transport's settings.
	Setup func(*http.Transport, *Server)
	// Run is the client's side; nil is one GET.
	Run func(*Client)
	// Only is "http" or "https", or empty for both.
	Only string
	// Differs lists where net/http and ours are meant to differ.
	Differs []Difference
}

// Difference is a deliberate difference from net/http in the facts that match
// the pattern Fact (path.Match). A value of "*" stands for any.
type Difference struct {
	Fact    string
	NetHTTP string
	Ours    string
	Why     string
}

// Schemes returns the schemes that s is to be run with.
func (s Scenario) Schemes() []string {
	if s.Only != "" {
		return []string{s.Only}
	}
	return []string{"http", "https"}
}

// Seen is what a run of a scenario has shown: named facts in their order.
type Seen struct {
	names  []string
	values map[string]string
}

func (s *Seen) note(name, value string) {
	if _, ok := s.values[name]; !ok {
		s.names = append(s.names, name)
	}
	s.values[name] = value
}

// Get returns a fact, "" if it was not seen.
func (s *Seen) Get(name string) string { return s.values[name] }

// Run runs s with the RoundTripper that mk makes and returns what was seen.
func Run(t testing.TB, s Scenario, scheme string, mk Maker) *Seen {
	t.Helper()
	seen := &Seen{values: make(map[string]string)}
	srv := newServer(t, scheme, s.Serve)
	tr := &http.Transport{TLSClientConfig: srv.ClientTLS()}
	if s.Setup != nil {
		s.Setup(tr, srv)
	}
	rt, end := mk(t, tr)
	c := &Client{T: t, RT: rt, Server: srv, seen: seen}
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
		if d := s.difference(n); d != nil {
			if strings.HasSuffix(n, " error") && d.Ours == "error" && b != errNil {
				b = d.Ours // of any kind
			}
			if !matches(d.NetHTTP, a) || !matches(d.Ours, b) {
				wrong = append(wrong, fmt.Sprintf("%s: recorded difference is net/http %q ours %q, but\nnet/http %s\nours     %s",
					n, d.NetHTTP, d.Ours, a, b))
			}
			continue
		}
		if !same(n, a, b) {
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

func (s Scenario) difference(name string) *Difference {
	for i := range s.Differs {
		if hit, err := path.Match(s.Differs[i].Fact, name); hit && err == nil {
			return &s.Differs[i]
		}
	}
	return nil
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
	)
}
