package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// report is everything that a run has found; its JSON is the -json file.
type report struct {
	Machine  string   `json:"machine"`
	System   string   `json:"system"`
	CPUs     int      `json:"cpus"`
	Go       string   `json:"go"`
	Versions []string `json:"versions"` // of the modules that are compared
	Date     string   `json:"date"`
	Rounds   int      `json:"rounds"`
	Slice    string   `json:"slice"`
	Idle     string   `json:"idle"`
	Small    bool     `json:"small,omitempty"` // -quick: the numbers mean nothing
	Clients  []string `json:"clients"`
	Results  []result `json:"results"`
	// Mean is the geometric mean of the CPU ratios of the scenarios in which
	// all clients took part, requests in flight all the time.
	Mean map[string]float64 `json:"mean,omitempty"`
}

// result is what came of one scenario.
type result struct {
	Name    string                       `json:"name"`
	Title   string                       `json:"title"`
	Error   string                       `json:"error,omitempty"`
	Clients map[string]map[string]figure `json:"clients"` // by name and metric
	Targets []verdict                    `json:"targets,omitempty"`
	steady  bool
}

// figure is one number with its spread over the rounds.
type figure struct {
	spread
	Ratio *spread `json:"ratio,omitempty"` // to net/http in the same round
}

type spread struct {
	Median float64 `json:"median"`
	Q1     float64 `json:"q1"`
	Q3     float64 `json:"q3"`
}

// verdict is a target and what was reached.
type verdict struct {
	Metric  string  `json:"metric"`
	Ratio   bool    `json:"ratio"`
	AtLeast bool    `json:"at_least"`
	Want    float64 `json:"want"`
	Got     float64 `json:"got"`
	Met     bool    `json:"met"`
}

func newReport(o *options) *report {
	r := &report{
		Machine: machine(), System: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version(),
		Date: time.Now().UTC().Format(time.DateOnly), Rounds: o.rounds, Slice: o.slice.String(), Idle: o.idle.String(),
		Small: o.quick, Clients: o.clients,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if name := path.Base(m.Path); name == nameFastHTTP || name == nameHertz {
				r.Versions = append(r.Versions, name+" "+m.Version)
			}
		}
	}
	return r
}

// add takes in the samples of a scenario.
func (r *report) add(s *scenario, samples []sample, err error) {
	res := result{Name: s.name, Title: s.title, Clients: make(map[string]map[string]figure), steady: s.kind == kindExchange}
	if err != nil {
		res.Error = err.Error()
	}
	base := make(map[int]map[string]float64)
	for _, sm := range samples {
		if sm.Client == nameNetHTTP {
			base[sm.Round] = sm.Values
		}
	}
	values, ratios := make(map[string]map[string][]float64), make(map[string]map[string][]float64)
	for _, sm := range samples {
		if values[sm.Client] == nil {
			values[sm.Client], ratios[sm.Client] = make(map[string][]float64), make(map[string][]float64)
		}
		for metric, v := range sm.Values {
			values[sm.Client][metric] = append(values[sm.Client][metric], v)
			if b := base[sm.Round][metric]; b > 0 {
				ratios[sm.Client][metric] = append(ratios[sm.Client][metric], v/b)
			}
		}
	}
	for client, metrics := range values {
		res.Clients[client] = make(map[string]figure)
		for metric, vs := range metrics {
			f := figure{spread: spreadOf(vs)}
			if rs := ratios[client][metric]; len(rs) > 0 {
				ratio := spreadOf(rs)
				f.Ratio = &ratio
			}
			res.Clients[client][metric] = f
		}
	}
	res.judge(s.targets)
	r.Results = append(r.Results, res)
	r.Mean = r.means()
}

// judge compares keepalive with its targets.
func (res *result) judge(targets []target) {
	for _, t := range targets {
		f, ok := res.Clients[nameKeepalive][t.metric]
		if !ok || t.ratio && f.Ratio == nil {
			continue
		}
		got := f.Median
		if t.ratio {
			got = f.Ratio.Median
		}
		met := got <= t.want
		if t.atLeast {
			met = got >= t.want
		}
		res.Targets = append(res.Targets, verdict{t.metric, t.ratio, t.atLeast, t.want, got, met})
	}
}

// spreadOf returns the median and the quartiles of vs, which it sorts.
func spreadOf(vs []float64) spread {
	slices.Sort(vs)
	at := func(part float64) float64 {
		where := part * float64(len(vs)-1)
		low := int(where)
		high := min(low+1, len(vs)-1)
		return vs[low] + (vs[high]-vs[low])*(where-float64(low))
	}
	return spread{Median: at(0.5), Q1: at(0.25), Q3: at(0.75)}
}

func (r *report) means() map[string]float64 {
	sums, n := make(map[string]float64), 0
	for _, res := range r.Results {
		if !res.steady || !r.complete(&res) {
			continue
		}
		n++
		for _, c := range r.Clients {
			sums[c] += math.Log(res.Clients[c][metricCPU].Ratio.Median)
		}
	}
	for c := range sums {
		sums[c] = math.Exp(sums[c] / float64(n))
	}
	return sums
}

// complete reports whether all clients have a CPU ratio.
func (r *report) complete(res *result) bool {
	for _, c := range r.Clients {
		if res.Clients[c][metricCPU].Ratio == nil {
			return false
		}
	}
	return true
}

// writeJSON writes r as JSON.
func (r *report) writeJSON(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "\t")
	return e.Encode(r)
}

// writeTable writes r as Markdown: what a request costs, then the rest.
func (r *report) writeTable(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d CPUs, %s, %s, %s; %s.\n", cmp.Or(r.Machine, "unknown machine"), r.CPUs, r.System, r.Go,
		strings.Join(r.Versions, ", "), r.Date)
	fmt.Fprintf(&b, "Medians of %d rounds, slices of %s.", r.Rounds, r.Slice)
	if r.Small {
		b.WriteString(" A quick run: these numbers mean nothing.")
	}
	b.WriteString("\n\n")
	r.writeCosts(&b)
	r.writeOthers(&b)
	for _, res := range r.Results {
		if res.Error != "" {
			fmt.Fprintf(&b, "%s: %s\n", res.Name, res.Error)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// writeCosts writes the table of what a request costs.
func (r *report) writeCosts(b *strings.Builder) {
	b.WriteString("| CPU per request, of net/http's | us |")
	others := slices.DeleteFunc(slices.Clone(r.Clients), func(c string) bool { return c == nameNetHTTP })
	for _, c := range others {
		fmt.Fprintf(b, " %s |", c)
	}
	b.WriteString(" target | requests/s | allocations |\n|---|--:|" + strings.Repeat("--:|", len(others)+3) + "\n")
	for _, res := range r.Results {
		if !res.measured(metricCPU) {
			continue
		}
		us, ok := res.Clients[nameNetHTTP][metricCPU]
		fmt.Fprintf(b, "| %s | %s |", res.Name, number(us.Median, ok))
		for _, c := range others {
			fmt.Fprintf(b, " %s |", emphasis(c == nameKeepalive && !res.met(metricCPU), res.cost(c)))
		}
		fmt.Fprintf(b, " %s | %s | %s |\n", res.target(metricCPU),
			emphasis(!res.met(metricRate), ratio(res.Clients[nameKeepalive][metricRate].Ratio)), res.allocations())
	}
	if mean, ok := r.Mean[nameKeepalive]; ok && r.Mean[nameNetHTTP] > 0 {
		b.WriteString("| geometric mean | |")
		for _, c := range others {
			worse := c == nameKeepalive && (mean > wantMean || mean > cmp.Or(r.Mean[nameFastHTTP], mean))
			fmt.Fprintf(b, " %s |", emphasis(worse, fmt.Sprintf("%.2f", r.Mean[c])))
		}
		fmt.Fprintf(b, " %.2f, fasthttp's | | |\n", wantMean)
	}
	b.WriteString("\n")
}

// wantMean is the target for keepalive's geometric mean.
const wantMean = 0.38

// writeOthers writes the table of everything else.
func (r *report) writeOthers(b *strings.Builder) {
	fmt.Fprintf(b, "| other figures | | %s | target |\n|---|---|%s--:|\n",
		strings.Join(r.Clients, " | "), strings.Repeat("--:|", len(r.Clients)))
	for _, res := range r.Results {
		for _, metric := range []string{
			metricLongestWait, metricLaterDials, metricMemory, metricGoroutines, metricIdleCPU,
			metricNoticed, metricNoticedP50, metricNoticedLast,
		} {
			if !res.measured(metric) {
				continue
			}
			fmt.Fprintf(b, "| %s | %s |", res.Name, metric)
			for _, c := range r.Clients {
				f, ok := res.Clients[c][metric]
				fmt.Fprintf(b, " %s |", emphasis(c == nameKeepalive && !res.met(metric), number(f.Median, ok)))
			}
			fmt.Fprintf(b, " %s |\n", res.target(metric))
		}
	}
	b.WriteString("\n")
}

// measured reports whether any client has a figure of that metric.
func (res *result) measured(metric string) bool {
	for _, metrics := range res.Clients {
		if _, ok := metrics[metric]; ok {
			return true
		}
	}
	return false
}

// met reports whether no target of that metric was missed.
func (res *result) met(metric string) bool {
	return !slices.ContainsFunc(res.Targets, func(v verdict) bool { return v.Metric == metric && !v.Met })
}

// target is the text of the target for that metric.
func (res *result) target(metric string) string {
	for _, v := range res.Targets {
		if v.Metric == metric {
			return number(v.Want, true)
		}
	}
	return ""
}

// allocations is the text of keepalive's and net/http's.
func (res *result) allocations() string {
	ours, ok := res.Clients[nameKeepalive][metricAllocs]
	if !ok {
		return ""
	}
	text := fmt.Sprintf("%.0f", ours.Median)
	if theirs, ok := res.Clients[nameNetHTTP][metricAllocs]; ok {
		text += fmt.Sprintf(" of %.0f", theirs.Median)
	}
	return text
}

// cost is the text of a client's CPU ratio, or of the time itself where there
// is no net/http to compare with.
func (res *result) cost(client string) string {
	f, ok := res.Clients[client][metricCPU]
	if ok && f.Ratio == nil {
		return number(f.Median, true) + " us"
	}
	return ratio(f.Ratio)
}

func ratio(s *spread) string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf("%.2f", s.Median)
}

// emphasis marks what missed its target.
func emphasis(missed bool, text string) string {
	if missed && text != "" {
		return "**" + text + "**"
	}
	return text
}

// number is v with as many digits as it deserves.
func number(v float64, ok bool) string {
	switch {
	case !ok:
		return ""
	case v == math.Trunc(v) || v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
