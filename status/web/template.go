package web

import (
	"fmt"
	"html/template"
	"strings"
	"time"

	"appliance/status/figures"
)

// templateFuncs write values on the page. None depends on the time of rendering, so that a part changes only when its
// content does: the script counts ages from the times that are written here.
func templateFuncs() template.FuncMap {
	return template.FuncMap{
		"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) },
		"clock": func(t time.Time) string { return t.UTC().Format("15:04:05") },
		// ago is for a moment whose age matters, at for one whose date matters.
		"ago":     func(t time.Time) template.HTML { return moment(t, ` data-ago=""`, "2006-01-02 15:04:05") },
		"at":      func(t time.Time) template.HTML { return moment(t, "", "Jan _2 15:04:05") },
		"join":    func(list []string) string { return strings.Join(list, ", ") },
		"number":  figures.Number,
		"bytes":   figures.Bytes,
		"percent": figures.Percent,
		"tens":    tens,
		"short":   figures.Age,
	}
}

// moment is a time element. It needs no escaping, because no part of it comes from outside.
func moment(t time.Time, attribute, layout string) template.HTML {
	t = t.UTC()
	return template.HTML(fmt.Sprintf(`<time datetime="%s"%s>%s</time>`, t.Format(time.RFC3339), attribute,
		t.Format(layout)))
}

// tens writes a duration with two digits, so that it does not flicker, in the form in which the script counts ages.
func tens(d time.Duration) string {
	switch {
	case d <= 0:
		return "–"
	case d < 100*time.Millisecond:
		return figures.Age(d.Round(time.Millisecond))
	case d < time.Second:
		return figures.Age(d.Round(10 * time.Millisecond))
	case d < time.Minute:
		return figures.Age(d)
	case d < time.Hour:
		return fmt.Sprintf("%dm %02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh %02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd %dh", int(d.Hours())/24, int(d.Hours())%24)
}
