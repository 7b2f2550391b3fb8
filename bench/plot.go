package main

import (
	"fmt"
	"html"
	"io"
	"math"
)

// Sizes of the plot, in pixels.
const (
	plotLeft, plotWidth, plotRight = 190, 600, 24
	plotTop, plotRow, plotBottom   = 70, 22, 40
)

// plot is a drawing of the CPU ratios: a line for each scenario, on it a dot
// for each client, the quartiles of keepalive's as a bar, its target as a tick.
type plot struct {
	svg  []byte
	most float64 // the ratio at the right end
}

func (p *plot) add(format string, args ...any) { p.svg = fmt.Appendf(p.svg, format, args...) }

func (p *plot) x(ratio float64) float64 {
	return plotLeft + plotWidth*min(ratio, p.most)/p.most
}

func (p *plot) text(x, y float64, anchor, text string) {
	p.add("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, html.EscapeString(text))
}

func (p *plot) line(x1, y1, x2, y2 float64, style string) {
	p.add("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1, y1, x2, y2, style)
}

// dot draws the mark of a client.
func (p *plot) dot(x, y float64, client string) {
	r := 4.0
	if client == nameKeepalive {
		r = 6
	}
	p.add("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.0f\" fill=\"%s\"/>\n", x, y, r, colour(client))
}

func colour(client string) string {
	switch client {
	case nameKeepalive:
		return "#d62728"
	case nameFastHTTP:
		return "#1f77b4"
	case nameHertz:
		return "#9467bd"
	case nameFloor:
		return "#aaaaaa"
	}
	return "#000000"
}

// writeSVG draws r.
func (r *report) writeSVG(out io.Writer) error {
	var rows []result
	p := &plot{most: 1.1}
	for _, res := range r.Results {
		if res.Clients[nameKeepalive][metricCPU].Ratio == nil {
			continue
		}
		rows = append(rows, res)
		for _, metrics := range res.Clients {
			if f := metrics[metricCPU]; f.Ratio != nil {
				p.most = min(max(p.most, math.Ceil(f.Ratio.Median*10)/10), 2)
			}
		}
	}
	bottom := float64(plotTop + plotRow*len(rows))
	width, height := plotLeft+plotWidth+plotRight, int(bottom)+plotBottom
	p.add("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %[1]d %[2]d\" "+
		"font-family=\"sans-serif\" font-size=\"12\">\n", width, height)
	p.add("<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", width, height)
	p.text(plotLeft, 20, "start", "CPU time of the client process per request, net/http = 1 (less is better)")
	r.drawLegend(p)
	for tenth := 0; float64(tenth)/10 <= p.most; tenth += 2 {
		x := p.x(float64(tenth) / 10)
		p.line(x, plotTop-8, x, bottom, `stroke="#dddddd"`)
		p.text(x, bottom+18, "middle", fmt.Sprintf("%.1f", float64(tenth)/10))
	}
	p.line(p.x(1), plotTop-8, p.x(1), bottom, `stroke="#000000"`)
	for i, res := range rows {
		r.drawRow(p, &res, float64(plotTop+plotRow*i)+plotRow/2)
	}
	p.add("</svg>\n")
	_, err := out.Write(p.svg)
	return err
}

func (r *report) drawLegend(p *plot) {
	x := float64(plotLeft)
	for _, c := range r.Clients {
		if c == nameNetHTTP {
			continue
		}
		p.dot(x+6, 40, c)
		p.text(x+16, 44, "start", c)
		x += 95
	}
	p.line(x+6, 33, x+6, 47, `stroke="#d62728" stroke-width="2"`)
	p.text(x+14, 44, "start", "target of keepalive")
}

func (r *report) drawRow(p *plot, res *result, y float64) {
	p.text(plotLeft-10, y+4, "end", res.Name)
	p.line(plotLeft, y, plotLeft+plotWidth, y, `stroke="#eeeeee"`)
	for _, v := range res.Targets {
		if v.Metric == metricCPU {
			p.line(p.x(v.Want), y-8, p.x(v.Want), y+8, `stroke="#d62728" stroke-width="2"`)
		}
	}
	// The last is drawn on top.
	for _, c := range []string{nameFloor, nameHertz, nameFastHTTP, nameKeepalive} {
		f := res.Clients[c][metricCPU].Ratio
		if f == nil {
			continue
		}
		if c == nameKeepalive {
			p.line(p.x(f.Q1), y, p.x(f.Q3), y, `stroke="#d62728" stroke-width="2"`)
		}
		p.dot(p.x(f.Median), y, c)
	}
}
