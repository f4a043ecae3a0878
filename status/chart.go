package status

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// The coordinates of a chart. The picture is stretched to the place that it
// gets; lines keep their width by vector-effect in the style sheet.
const (
	chartWide = 600
	chartHigh = 80
)

// A chart is a picture of the last 15 minutes, and the same in words for those
// who do not see it.
type chart struct {
	Title string
	// Words say what the picture shows.
	Words string
	// Top is the value at the upper edge.
	Top   string
	Lines []chartLine
}

// chartLine is one SVG path; Class is its colour, Name stands in the legend.
type chartLine struct {
	Name  string
	Class string
	Path  string
	Now   string
}

// maxLines is how many lines of one chart a person can tell apart.
const maxLines = 6

// plot draws value over the points of each history. Points for which it is
// negative are gaps.
func plot(now time.Time, title, unit string, names []string, histories []History, value func(Point) float64) chart {
	c := chart{Title: title}
	top := 0.0
	for _, h := range histories {
		for _, p := range h.Points {
			top = max(top, value(p))
		}
	}
	ceiling := nice(top)
	c.Top = number(ceiling) + unit
	var words []string
	for i, h := range histories {
		if i >= maxLines {
			words = append(words, fmt.Sprintf("and %d more", len(histories)-i))
			break
		}
		line := chartLine{Name: names[i], Class: fmt.Sprintf("line%d", i+1), Path: trace(now, h.Points, ceiling, value), Now: "–"}
		if n := len(h.Points); n > 0 && value(h.Points[n-1]) >= 0 {
			line.Now = number(value(h.Points[n-1])) + unit
		}
		words = append(words, line.Name+" "+line.Now)
		c.Lines = append(c.Lines, line)
	}
	c.Words = fmt.Sprintf("%s over the last 15 minutes, at most %s; now %s", title, number(top)+unit, strings.Join(words, ", "))
	return c
}

// trace is the SVG path through the points.
func trace(now time.Time, points []Point, top float64, value func(Point) float64) string {
	var b strings.Builder
	pen, last := false, int64(0)
	for _, p := range points {
		v := value(p)
		x := chartWide * (1 - float64(now.UnixMilli()-p.At)/float64(chartSpan.Milliseconds()))
		if v < 0 || x < 0 {
			pen = false
			continue
		}
		// A frozen process has a gap, not a straight line.
		if p.At-last > 3*sampleEvery.Milliseconds() {
			pen = false
		}
		last = p.At
		op := byte('L')
		if !pen {
			op = 'M'
		}
		fmt.Fprintf(&b, "%c%.0f %.1f", op, x, chartHigh*(1-v/top))
		if !pen {
			b.WriteString("h1") // a point alone is seen too
		}
		pen = true
	}
	return b.String()
}

// nice is the next number from v up that is easy to read.
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

// number writes v to the precision that a person wants.
func number(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.995:
		return fmt.Sprintf("%.2f", v)
	case v < 9.95:
		return fmt.Sprintf("%.1f", v)
	case v < 10_000:
		return fmt.Sprintf("%.0f", v)
	case v < 10_000_000:
		return fmt.Sprintf("%.0fk", v/1e3)
	case v < 1e10:
		return fmt.Sprintf("%.0fM", v/1e6)
	}
	return fmt.Sprintf("%.0fG", v/1e9)
}

// amount writes a number of bytes.
func amount(n uint64) string {
	const unit = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1000, 0
	for v >= 999.5 && i < len(unit)-1 {
		v, i = v/1000, i+1
	}
	if v < 10 {
		return fmt.Sprintf("%.1f %cB", v, unit[i])
	}
	return fmt.Sprintf("%.0f %cB", v, unit[i])
}
