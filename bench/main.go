// Command bench compares keepalive with net/http, fasthttp, hertz and a bare
// socket: CPU time, throughput, allocations, memory, and how they notice that
// a server hangs up. README.md says what each scenario is.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	if role := os.Getenv(envRole); role != "" {
		if err := play(role); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", role, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are what the arguments ask for.
type options struct {
	scenarios   []scenario
	clients     []string
	rounds      int
	slice, idle time.Duration
	limit       time.Duration
	quick, list bool
	json, svg   string // files; empty: none
	profile     string // file; empty: none
}

// Bounds of what may be asked for.
const (
	maxRounds = 1000
	maxSlice  = time.Minute
)

func parse(args []string, progress io.Writer) (*options, error) {
	var o options
	var which, clients string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(progress)
	f.StringVar(&which, "run", "", "run only scenarios whose name matches this `regexp`")
	f.StringVar(&clients, "clients", strings.Join(allClients(), ","), "compare these; ratios need nethttp")
	f.IntVar(&o.rounds, "rounds", 11, "rounds, of which medians are taken; 5 at most where each takes long")
	f.DurationVar(&o.slice, "slice", 200*time.Millisecond, "time for one client in one round")
	f.DurationVar(&o.idle, "idle", 10*time.Second, "time to do nothing with idle connections")
	f.DurationVar(&o.limit, "limit", 30*time.Minute, "end after this time, with what there is")
	f.BoolVar(&o.quick, "quick", false, "see that everything runs, in seconds; the numbers mean nothing")
	f.BoolVar(&o.list, "list", false, "list the scenarios")
	f.StringVar(&o.json, "json", "", "write the results to this `file`, as JSON")
	f.StringVar(&o.svg, "svg", "", "draw the CPU ratios into this `file`")
	f.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile to this `file`; with one scenario and one client")
	f.Usage = func() {
		_, _ = fmt.Fprintln(progress, "usage: go run . [flags]   (from the repository's root: go -C bench run . [flags])")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.quick {
		o.rounds, o.slice, o.idle = 1, 5*time.Millisecond, 10*time.Millisecond
	}
	o.clients = strings.Split(clients, ",")
	matches, err := regexp.Compile(which)
	if err != nil {
		return nil, err
	}
	for _, s := range scenarios() {
		if matches.MatchString(s.name) {
			if o.quick {
				s.shrink()
			}
			o.scenarios = append(o.scenarios, s)
		}
	}
	return &o, o.check()
}

func (o *options) check() error {
	for _, c := range o.clients {
		if !slices.Contains(allClients(), c) {
			return fmt.Errorf("-clients: no client %q; there are %s", c, strings.Join(allClients(), ","))
		}
	}
	switch {
	case len(o.scenarios) == 0:
		return errors.New("-run: no scenario matches; see -list")
	case o.rounds < 1 || o.rounds > maxRounds:
		return fmt.Errorf("-rounds %d: want 1 to %d", o.rounds, maxRounds)
	case o.slice <= 0 || o.slice > maxSlice || o.idle <= 0 || o.idle > maxSlice:
		return fmt.Errorf("-slice %v, -idle %v: want more than 0, and %v at most", o.slice, o.idle, maxSlice)
	case o.limit <= 0:
		return fmt.Errorf("-limit %v: want more than 0", o.limit)
	case o.profile != "" && (len(o.scenarios) != 1 || len(o.clients) != 1):
		return errors.New("-cpuprofile: want -run with one scenario and -clients with one client")
	}
	return nil
}

// run does the whole work. It writes the table to out.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	o, err := parse(args, progress)
	if err != nil {
		return err
	}
	if o.list {
		for _, s := range o.scenarios {
			_, _ = fmt.Fprintf(out, "%-24s %s\n", s.name, s.title)
		}
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit, fmt.Errorf("-limit %v is over", o.limit))
	defer cancel()
	r := newReport(o)
	var failed []error
	for i := range o.scenarios {
		s := &o.scenarios[i]
		start := time.Now()
		_, _ = fmt.Fprintf(progress, "%2d/%d %-24s ", i+1, len(o.scenarios), s.name)
		samples, err := o.measure(ctx, s, progress)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		r.add(s, samples, err)
		_, _ = fmt.Fprintf(progress, " %.1f s\n", time.Since(start).Seconds())
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", s.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	failed = append(failed, r.writeTable(out), o.save(o.json, r.writeJSON), o.save(o.svg, r.writeSVG))
	return errors.Join(failed...)
}

// save writes a file, if one is asked for.
func (o *options) save(name string, write func(io.Writer) error) error {
	if name == "" {
		return nil
	}
	f, err := os.Create(name) //nolint:gosec // as the user says
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// measure runs the client processes of a scenario and returns their samples.
func (o *options) measure(ctx context.Context, s *scenario, progress io.Writer) ([]sample, error) {
	j := job{
		Scenario: s.name, Rounds: o.rounds, Slice: o.slice, Idle: o.idle, Small: o.quick, Profile: o.profile,
	}
	for _, c := range o.clients {
		if s.has(c) {
			j.Clients = append(j.Clients, c)
		}
	}
	if len(j.Clients) == 0 {
		return nil, nil
	}
	const few = 5 // rounds of what takes long
	if s.kind == kindHangup {
		j.Rounds = min(j.Rounds, few)
	}
	if s.kind != kindIdle {
		return j.start(ctx, progress)
	}
	var all []sample
	rounds, clients := min(j.Rounds, few), j.Clients
	for round := range rounds {
		for i := range clients {
			j.First, j.Rounds, j.Clients = round, 1, []string{clients[(i+round)%len(clients)]}
			samples, err := j.start(ctx, progress)
			all = append(all, samples...)
			if err != nil {
				return all, err
			}
		}
	}
	return all, nil
}

// start runs a client process and returns its samples. It shows a dot for each.
func (j *job) start(ctx context.Context, progress io.Writer) ([]sample, error) {
	cmd, err := j.command(ctx, roleClient)
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var samples []sample
	lines := json.NewDecoder(out)
	for {
		var s sample
		if err = lines.Decode(&s); err != nil {
			break
		}
		samples = append(samples, s)
		_, _ = io.WriteString(progress, ".")
	}
	if ended := cmd.Wait(); ended != nil {
		return samples, ended
	}
	if !errors.Is(err, io.EOF) {
		return samples, err
	}
	return samples, nil
}
