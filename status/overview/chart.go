package overview

import (
	"fmt"
	"math"
	"strings"
	"time"

	"appliance/status/figures"
	"appliance/status/history"
)

// The size of a chart in its own units. The picture is stretched to the place that it gets; vector-effect in the style
// sheet keeps the width of the lines.
const (
	chartWide = 600
	chartHigh = 80
)

// A chart is a picture of the last 15 minutes, and the same in words for those who cannot see it.
type chart struct {
	Title string
	// Words say what the picture shows.
	Words string
	// Top is the value at the upper edge.
	Top   string
	Lines []chartLine
}

// A chartLine is one SVG path; Class is its colour, Name its name in the legend.
type chartLine struct {
	Name  string
	Class string
	Path  string
	Now   string
}

// maxLines is how many lines of one chart a person can tell apart.
const maxLines = 6

// plot draws value over the points of each history. A negative value is a gap.
func plot(now time.Time, title, unit string, names []string, histories []history.History,
	value func(history.Point) float64) chart {
	c := chart{Title: title}
	top := 0.0
	for _, h := range histories {
		for _, p := range h.Points {
			top = max(top, value(p))
		}
	}
	ceiling := nice(top)
	c.Top = figures.Number(ceiling) + unit
	var words []string
	for i, h := range histories {
		if i >= maxLines {
			words = append(words, fmt.Sprintf("and %d more", len(histories)-i))
			break
		}
		path := trace(now, h.Points, ceiling, value)
		line := chartLine{Name: names[i], Class: fmt.Sprintf("line%d", i+1), Path: path, Now: "–"}
		if n := len(h.Points); n > 0 && value(h.Points[n-1]) >= 0 {
			line.Now = figures.Number(value(h.Points[n-1])) + unit
		}
		words = append(words, line.Name+" "+line.Now)
		c.Lines = append(c.Lines, line)
	}
	c.Words = fmt.Sprintf("%s over the last 15 minutes, at most %s; now %s",
		title, figures.Number(top)+unit, strings.Join(words, ", "))
	return c
}

// trace is the SVG path through the points.
func trace(now time.Time, points []history.Point, top float64, value func(history.Point) float64) string {
	var b strings.Builder
	pen, last := false, int64(0)
	for _, p := range points {
		v := value(p)
		x := chartWide * (1 - float64(now.UnixMilli()-p.At)/float64(history.Span.Milliseconds()))
		if v < 0 || x < 0 {
			pen = false
			continue
		}
		// A frozen process has a gap, not a straight line.
		if p.At-last > 3*history.Interval.Milliseconds() {
			pen = false
		}
		last = p.At
		op := byte('L')
		if !pen {
			op = 'M'
		}
		fmt.Fprintf(&b, "%c%.0f %.1f", op, x, chartHigh*(1-v/top))
		if !pen {
			b.WriteString("h1") // makes a single point visible
		}
		pen = true
	}
	return b.String()
}

// nice is the smallest number from v up that is easy to read: 1, 2 or 5 times a power of ten.
func nice(v float64) float64 {
	if v <= 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 1
	}
	step := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if v <= m*step {
			return m * step
		}
	}
	return 10 * step
}
