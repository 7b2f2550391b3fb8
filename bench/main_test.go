package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(envRole); role != "" {
		if err := play(role); err != nil {
			fmt.Fprintln(os.Stderr, role, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// quick runs the command in its quick mode.
func quick(t *testing.T, args ...string) (table string, r *report, svg []byte) {
	t.Helper()
	dir := t.TempDir()
	jsonFile, svgFile := filepath.Join(dir, "run.json"), filepath.Join(dir, "run.svg")
	var out, progress bytes.Buffer
	args = append([]string{"-quick", "-limit", "4m", "-json", jsonFile, "-svg", svgFile}, args...)
	require.NoError(t, run(t.Context(), args, &out, &progress), "progress:\n%s", &progress)
	text, err := os.ReadFile(jsonFile)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &r))
	svg, err = os.ReadFile(svgFile)
	require.NoError(t, err)
	return out.String(), r, svg
}

func TestQuickRunsEverything(t *testing.T) {
	table, r, svg := quick(t)
	require.Len(t, r.Results, len(scenarios()))
	for i, s := range scenarios() {
		res := r.Results[i]
		require.Equal(t, s.name, res.Name)
		require.Empty(t, res.Error, s.name)
		for _, c := range allClients() {
			require.Equal(t, s.has(c), len(res.Clients[c]) > 0, "%s %s: figures", s.name, c)
			for metric, f := range res.Clients[c] {
				require.False(t, math.IsNaN(f.Median) || math.IsInf(f.Median, 0), "%s %s %s", s.name, c, metric)
			}
			if s.has(c) && s.kind == kindExchange {
				require.Positive(t, res.Clients[c][metricRate].Median, "%s %s: requests", s.name, c)
			}
		}
		require.Contains(t, table, "| "+s.name+" |")
		_, costs := res.Clients[nameKeepalive][metricCPU]
		require.Equal(t, costs, bytes.Contains(svg, []byte(">"+s.name+"<")), "%s is in the plot", s.name)
	}
	requireTables(t, table)
	requireXML(t, svg)
}

func TestWithoutNetHTTPThereAreNoRatios(t *testing.T) {
	table, r, svg := quick(t, "-run", "^(get-c8|hosts-1000-lru-c32|hangup-1000)$", "-clients", "keepalive,floor")
	require.Nil(t, r.Results[0].Clients[nameKeepalive][metricCPU].Ratio)
	require.Positive(t, r.Results[0].Clients[nameFloor][metricRate].Median)
	require.NotContains(t, r.Results[1].Clients, nameFloor, "there is no floor for a limit on idle connections")
	require.Empty(t, r.Mean)
	require.Contains(t, table, " us |", "the times themselves")
	requireTables(t, table)
	requireXML(t, svg)
}

func TestCPUProfile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cpu.prof")
	quick(t, "-run", "^get-c8$", "-clients", "keepalive", "-cpuprofile", file)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NotEmpty(t, text)
}

// requireTables wants every line of a table to have as many cells as its first.
func requireTables(t *testing.T, text string) {
	t.Helper()
	cells, tables := 0, 0
	for line := range strings.Lines(text) {
		n := strings.Count(line, "|")
		switch {
		case n == 0:
			cells = 0
		case cells == 0:
			cells = n
			tables++
		default:
			require.Equal(t, cells, n, line)
		}
	}
	require.Equal(t, 2, tables)
}

func requireXML(t *testing.T, text []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(text)); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
	}
}

// samplesOf makes samples of a metric, one a round.
func samplesOf(client, metric string, values ...float64) (samples []sample) {
	for i, v := range values {
		samples = append(samples, sample{client, i, map[string]float64{metric: v}})
	}
	return samples
}

func TestReportPairsWithinARound(t *testing.T) {
	samples := append(samplesOf(nameNetHTTP, metricCPU, 10, 100, 20), samplesOf(nameKeepalive, metricCPU, 5, 40, 12)...)
	samples = append(samples, samplesOf(nameFastHTTP, metricCPU, 2.5, 25, 5)...)
	for _, tt := range []struct {
		want float64
		met  bool
	}{{0.51, true}, {0.49, false}} {
		r := &report{Clients: []string{nameNetHTTP, nameKeepalive, nameFastHTTP}}
		r.add(&scenario{name: "some", targets: cpu(tt.want)}, samples, nil)
		f := r.Results[0].Clients[nameKeepalive][metricCPU]
		require.InDelta(t, 12, f.Median, 1e-9)
		require.InDelta(t, 0.5, f.Ratio.Median, 1e-9, "the median of 0.5, 0.4 and 0.6")
		require.InDelta(t, 0.45, f.Ratio.Q1, 1e-9)
		require.InDelta(t, 0.55, f.Ratio.Q3, 1e-9)
		require.Equal(t, []verdict{{metricCPU, true, false, tt.want, f.Ratio.Median, tt.met}}, r.Results[0].Targets)
		require.InDelta(t, 0.25, r.Mean[nameFastHTTP], 1e-9)

		var table bytes.Buffer
		require.NoError(t, r.writeTable(&table))
		cell := "| 0.50 |"
		if !tt.met {
			cell = "| **0.50** |"
		}
		require.Contains(t, table.String(), "| some | 20 "+cell+" 0.25 |")
		require.Contains(t, table.String(), "| geometric mean | | **0.50** | 0.25 |", "more than fasthttp's")
	}
}

func TestReportTargets(t *testing.T) {
	for _, tt := range []struct {
		name   string
		target target
		values []float64
		met    bool
	}{
		{"at most, reached", atMost(metricMemory, 2048), []float64{2048, 1, 9000}, true},
		{"at most, missed", atMost(metricMemory, 2048), []float64{2049, 1, 9000}, false},
		{"at least, reached", target{metric: metricNoticed, atLeast: true, want: 1000}, []float64{1000}, true},
		{"at least, missed", target{metric: metricNoticed, atLeast: true, want: 1000}, []float64{999}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &report{Clients: allClients()}
			samples := samplesOf(nameKeepalive, tt.target.metric, tt.values...)
			r.add(&scenario{name: "some", kind: kindIdle, targets: []target{tt.target}}, samples, nil)
			require.Len(t, r.Results[0].Targets, 1)
			require.Equal(t, tt.met, r.Results[0].Targets[0].Met)
		})
	}
}

func TestMeanLeavesOutWhatNotAllHave(t *testing.T) {
	r := &report{Clients: []string{nameNetHTTP, nameKeepalive, nameFloor}}
	both := append(samplesOf(nameNetHTTP, metricCPU, 10), samplesOf(nameKeepalive, metricCPU, 2)...)
	r.add(&scenario{name: "without floor"}, both, nil)
	require.Empty(t, r.Mean)
	r.add(&scenario{name: "burst", kind: kindBurst}, append(both, samplesOf(nameFloor, metricCPU, 5)...), nil)
	require.Empty(t, r.Mean, "requests must be in flight all the time")
	for _, floor := range []float64{1, 4} {
		r.add(&scenario{name: "all"}, append(both, samplesOf(nameFloor, metricCPU, floor)...), nil)
	}
	require.InDelta(t, 0.2, r.Mean[nameFloor], 1e-9)
	require.InDelta(t, 1, r.Mean[nameNetHTTP], 1e-9)
}

func TestRunRefuses(t *testing.T) {
	for _, args := range []string{
		"-clients nobody", "-run nothing", "-run [", "-rounds 0", "-slice -1s", "-idle 2h", "-limit 0s",
		"-cpuprofile x", "some", "-run get-c1 -cpuprofile x",
	} {
		t.Run(args, func(t *testing.T) {
			err := run(t.Context(), append([]string{"-quick=false"}, strings.Fields(args)...), io.Discard, io.Discard)
			require.Error(t, err)
		})
	}
}

func TestLimitEndsTheRun(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), []string{"-run", "get", "-slice", "1m", "-limit", "50ms"}, &out, io.Discard)
	require.ErrorContains(t, err, "-limit 50ms is over")
	requireTables(t, out.String())
}

func TestList(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-list"}, &out, io.Discard))
	require.Equal(t, len(scenarios()), strings.Count(out.String(), "\n"))
}
