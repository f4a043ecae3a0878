package status

import (
	"fmt"
	"html/template"
	"strings"
	"time"
)

// templateFuncs are how values are written on the page. Nothing in them depends
// on the moment, so that a part changes only when what it says does: ages are
// counted by the script, from the times that stand here.
func templateFuncs() template.FuncMap {
	return template.FuncMap{
		"iso":   func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) },
		"clock": func(t time.Time) string { return t.UTC().Format("15:04:05") },
		// ago is a moment whose age matters, at one whose date does.
		"ago":     func(t time.Time) template.HTML { return moment(t, ` data-ago=""`, "2006-01-02 15:04:05") },
		"at":      func(t time.Time) template.HTML { return moment(t, "", "Jan _2 15:04:05") },
		"join":    func(list []string) string { return strings.Join(list, ", ") },
		"number":  number,
		"bytes":   amount,
		"percent": percent,
		"tens":    tens,
		"short":   age,
	}
}

// moment is a time element; t is no input of anybody's, so it needs no escaping.
func moment(t time.Time, attribute, layout string) template.HTML {
	t = t.UTC()
	return template.HTML(`<time datetime="` + t.Format(time.RFC3339) + `"` + attribute + `>` + t.Format(layout) + `</time>`)
}

// tens writes a span to two digits, so that it does not flicker, in the form in
// which the script counts ages.
func tens(d time.Duration) string {
	switch {
	case d <= 0:
		return "–"
	case d < 100*time.Millisecond:
		return age(d.Round(time.Millisecond))
	case d < time.Second:
		return age(d.Round(10 * time.Millisecond))
	case d < time.Minute:
		return age(d)
	case d < time.Hour:
		return fmt.Sprintf("%dm %02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh %02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd %dh", int(d.Hours())/24, int(d.Hours())%24)
}
