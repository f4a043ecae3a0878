package convert

import (
	"net/http"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// printable is s, quoted if it could disturb a terminal or a YAML comment.
func printable(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return s
}

// secret finds the words that are followed by one.
var secret = regexp.MustCompile(`(?i)\b(auth_pass|auth|authorization|password|insecure-password|packetapikey|token|secret|bearer)([ :=]+)\S.*`)

// secretless hides what should not be copied into another file.
func secretless(words string) string { return secret.ReplaceAllString(words, "$1$2****") }

// placeholder reports whether somebody still has to fill in a value: ${NAME}
// of a template or of the environment, {{ name }} of a template.
func placeholder(s string) bool {
	return strings.Contains(s, "$") || strings.Contains(s, "{{") || strings.Contains(s, "<") && strings.HasSuffix(s, ">")
}

// wrongAddr says what to write where an address was expected.
func wrongAddr(s string) string {
	switch {
	case placeholder(s):
		return "is still to be filled in; write the address, and convert again"
	case strings.HasPrefix(s, "/") || strings.HasPrefix(s, "unix"):
		return "is a unix socket; write the address of a TCP server"
	}
	return "is a name, and names are not looked up, because the DNS may be what is down when this is needed; write the address"
}

// readAddr reads the address of one machine.
func readAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	a = a.Unmap()
	if err != nil || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.Addr{}, false
	}
	zone := a.Zone()
	if a.Is6() && a.IsLinkLocalUnicast() != (zone != "") || len(zone) > 15 || strings.ContainsAny(zone, "%/ ") || printable(zone) != zone {
		return netip.Addr{}, false
	}
	return a, true
}

// readPrefix reads an address or a subnet.
func readPrefix(s string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), true
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	return netip.Prefix{}, false
}

func readPort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0
}

// splitPort cuts the port off at the last colon, as haproxy does: 10.0.0.1 and
// [::1] have none, and what is last in 2001:db8::1:6443 is one.
func splitPort(s string) (host, port string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return s, ""
	}
	return s[:i], s[i+1:]
}

// units of each program; the first is meant where none is written.
type units []struct {
	suffix string
	d      time.Duration
}

var (
	haproxyUnits = units{{"ms", time.Millisecond}, {"us", time.Microsecond}, {"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour}}
	nginxUnits   = units{{"s", time.Second}, {"ms", time.Millisecond}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour}, {"w", 7 * 24 * time.Hour}}
	secondUnits  = units{{"s", time.Second}}
)

// clock finds the parts of a duration.
var clock = regexp.MustCompile(`^([0-9]{1,9}(?:\.[0-9]{1,6})?)([a-z]*)`)

// read reads 5000, 1m30s or 0.5.
func (u units) read(s string) (time.Duration, bool) {
	var sum float64
	for rest := s; rest != ""; {
		m := clock.FindStringSubmatch(rest)
		if m == nil {
			return 0, false
		}
		rest = rest[len(m[0]):]
		unit := time.Duration(0)
		if m[2] == "" {
			unit = u[0].d
		}
		for _, one := range u {
			if one.suffix == m[2] {
				unit = one.d
			}
		}
		n, err := strconv.ParseFloat(m[1], 64)
		if err != nil || unit == 0 {
			return 0, false
		}
		sum += n * float64(unit)
	}
	if s == "" || sum > float64(10*365*24*time.Hour) {
		return 0, false
	}
	return time.Duration(sum).Round(time.Microsecond), true
}

// short is d without the zeros that time.Duration prints: 24h, not 24h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// span reads a duration of st into into, held between low and high.
func (d *draft) span(owner *service, st statement, u units, word string, low, high time.Duration, into *span) {
	v, ok := u.read(word)
	switch {
	case placeholder(word):
		d.note(owner, st, "%s is still to be filled in", word)
	case !ok:
		d.note(owner, st, "%s is no duration", word)
	case v == 0 && low > 0:
		d.note(owner, st, "0 is without end there; was left out, so that the default is in force")
	case v < low:
		d.advise(owner, st, "is less than is possible here; became %s", short(low))
		*into = span{low, true}
	case v > high:
		d.advise(owner, st, "is more than is possible here; became %s", short(high))
		*into = span{high, true}
	default:
		*into = span{v, true}
	}
}

// count reads a number of st into into, held between low and high.
func (d *draft) count(owner *service, st statement, word string, low, high int, into *count) {
	n, err := strconv.Atoi(word)
	switch {
	case placeholder(word):
		d.note(owner, st, "%s is still to be filled in", word)
	case err != nil:
		d.note(owner, st, "%s is no number", word)
	case n < low:
		d.advise(owner, st, "%d is less than is possible here; became %d", n, low)
		*into = count{low, true}
	case n > high:
		d.advise(owner, st, "%d is more than is possible here; became %d", n, high)
		*into = count{high, true}
	default:
		*into = count{n, true}
	}
}

// Bounds of what can be said; the loader has the same.
const (
	minInter   = 10 * time.Millisecond
	maxInter   = time.Hour
	maxConnect = 5 * time.Minute
	maxQueue   = 24 * time.Hour
	maxQuiet   = 365 * 24 * time.Hour
	maxSlow    = time.Hour
	maxFail    = 24 * time.Hour
	minFail    = 100 * time.Millisecond
	maxSticky  = 31 * 24 * time.Hour
	maxCount   = 1000
	maxConns   = 1_000_000
	maxWeight  = 256
)

// More bounds, and what haproxy and nginx mean where they say nothing.
const (
	minConnect       = time.Millisecond
	minPersistence   = time.Second
	minHello         = 10 * time.Millisecond
	maxHello         = time.Minute
	usualHello       = 5 * time.Second
	usualPersistence = 30 * time.Minute
	haproxyInter     = 2 * time.Second
	quietWatch       = time.Hour
)

// httpMethod holds a word against the methods that checks use.
func httpMethod(s string) bool {
	return slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPost}, s)
}

func itoa(port uint16) string { return strconv.Itoa(int(port)) }

func goRegexp(s string) bool { _, err := regexp.Compile(s); return err == nil }

func newDraft() *draft { return &draft{noted: map[string]bool{}, left: map[place]bool{}} }

// What keepalived means where it says nothing.
const (
	lvsPersistence = 6 * time.Minute
	lvsDelay       = time.Minute
	vrrpInterval   = time.Second
	minRun         = 100 * time.Millisecond
)

// sameCheck compares what is said about checks; a check has slices.
func sameCheck(a, b check) bool { return reflect.DeepEqual(a, b) }
