package figures

import (
	"fmt"
	"time"
)

// Number writes v with as many digits as a person wants.
func Number(v float64) string {
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

// Bytes writes a number of bytes in decimal units, such as 1.2 GB.
func Bytes(n uint64) string {
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

// Rate is the growth of a counter per second. A counter that went back was reset, by another run or
// another data plane, and has no rate.
func Rate(then, now uint64, span time.Duration) float64 {
	if now < then || span <= 0 {
		return 0
	}
	return float64(now-then) / span.Seconds()
}

// Percent writes a part of one.
func Percent(part float64) string { return fmt.Sprintf("%.0f%%", 100*part) }

// Age writes a duration with as many digits as a person wants; a dash stands for none.
func Age(d time.Duration) string {
	switch {
	case d <= 0:
		return "-"
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		d = d.Round(time.Second)
		if d >= time.Hour {
			return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
		}
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	default:
		return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}
