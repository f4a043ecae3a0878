package draft

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"appliance/convert/syntax"
)

// A Range is of whole numbers, with both ends.
type Range struct{ From, To int }

// ReadRanges reads numbers, ranges such as 2-3, and lists of them. It does not look whether a range is one.
func ReadRanges(s string) (all []Range, ok bool) {
	for part := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		from, err := strconv.Atoi(low)
		to, err2 := strconv.Atoi(high)
		if err != nil || err2 != nil {
			return nil, false
		}
		all = append(all, Range{from, to})
	}
	return all, true
}

// Our loader's HTTP statuses.
const firstStatus, lastStatus = 200, 599

// ReadStatus reads HTTP statuses: 200, 200-299 and lists of them.
func ReadStatus(s string) (all []Range, ok bool) {
	all, ok = ReadRanges(s)
	wrong := func(r Range) bool { return r.From < firstStatus || r.To > lastStatus || r.To < r.From }
	return all, ok && !slices.ContainsFunc(all, wrong)
}

// InBoth are the numbers that are in one of a and in one of b.
func InBoth(a, b []Range) (all []Range) {
	for _, one := range a {
		for _, other := range b {
			if r := (Range{max(one.From, other.From), min(one.To, other.To)}); r.From <= r.To {
				all = append(all, r)
			}
		}
	}
	return all
}

// StatusesThat are the HTTP statuses, of those that our loader knows, that match.
func StatusesThat(match func(status int) bool) (all []Range) {
	for status := firstStatus; status <= lastStatus; status++ {
		last := len(all) - 1
		switch {
		case !match(status):
		case last >= 0 && all[last].To == status-1:
			all[last].To = status
		default:
			all = append(all, Range{status, status})
		}
	}
	return all
}

// Statuses are ranges as our loader reads them.
func Statuses(all []Range) (texts []string) {
	for _, r := range all {
		text := strconv.Itoa(r.From)
		if r.To > r.From {
			text += "-" + strconv.Itoa(r.To)
		}
		texts = append(texts, text)
	}
	return texts
}

// Placeholder reports whether somebody still has to fill in a value: ${NAME} of a template or of the environment,
// {{ name }} of a template.
func Placeholder(s string) bool {
	return strings.Contains(s, "$") || strings.Contains(s, "{{") || strings.Contains(s, "<") && strings.HasSuffix(s, ">")
}

// WrongAddr says what to write in place of s, which is not an address.
func WrongAddr(s string) string {
	switch {
	case Placeholder(s):
		return "is still to be filled in; write the address, and convert again"
	case strings.HasPrefix(s, "/") || strings.HasPrefix(s, "unix"):
		return "is a unix socket; write the address of a TCP server"
	}
	host, _, _ := strings.Cut(s, "/")
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return "is no address that one machine has for all others; write one"
	}
	return "is a name, and only the names of servers are looked up, because the DNS may be what is down when this is " +
		"needed; write the address"
}

// isHostName reports whether our loader takes s for a host's name.
func isHostName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	last := s[strings.LastIndexByte(s, '.')+1:]
	if _, err := strconv.Atoi(last); err == nil || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") ||
			strings.ContainsFunc(label, func(r rune) bool {
				return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
			}) {
			return false
		}
	}
	return true
}

// ReadAddr reads the address of one machine.
func ReadAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	a = a.Unmap()
	if err != nil || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.Addr{}, false
	}
	zone := a.Zone()
	if a.Is6() && a.IsLinkLocalUnicast() != (zone != "") || len(zone) > 15 || strings.ContainsAny(zone, "%/ ") ||
		syntax.Printable(zone) != zone {
		return netip.Addr{}, false
	}
	return a, true
}

// ReadPrefix reads an address or a subnet.
func ReadPrefix(s string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		return p.Masked(), !p.Addr().Is4In6()
	}
	if host, mask, ok := strings.Cut(s, "/"); ok {
		return readMasked(host, mask)
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	return netip.Prefix{}, false
}

// readMasked reads an IPv4 subnet whose length is written as a mask.
func readMasked(host, mask string) (netip.Prefix, bool) {
	a, err := netip.ParseAddr(host)
	m, err2 := netip.ParseAddr(mask)
	if err != nil || err2 != nil || !a.Is4() || !m.Is4() {
		return netip.Prefix{}, false
	}
	ones, width := net.IPMask(m.AsSlice()).Size()
	return netip.PrefixFrom(a, ones).Masked(), width == 32
}

// ReadPort reads a TCP port.
func ReadPort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, false // n is the largest port if s is beyond it
	}
	return uint16(n), n > 0
}

// SplitPort cuts off the port at the last colon, as haproxy does: 10.0.0.1 and [::1] have none, and 2001:db8::1:6443
// has port 6443.
func SplitPort(s string) (host, port string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return s, ""
	}
	return s[:i], s[i+1:]
}

// Units are the units of durations in one program.
type Units struct {
	// Bare is the unit of a number that is written without one.
	Bare  time.Duration
	Named map[string]time.Duration
}

// durationPart finds the first part of a duration: a number and a unit.
var durationPart = regexp.MustCompile(`^([0-9]{1,9}(?:\.[0-9]{1,6})?)([a-z]*)`)

// read reads 5000, 1m30s or 0.5.
func (u Units) read(s string) (time.Duration, bool) {
	var sum float64
	for rest := s; rest != ""; {
		m := durationPart.FindStringSubmatch(rest)
		if m == nil {
			return 0, false
		}
		rest = rest[len(m[0]):]
		unit := u.Named[m[2]]
		if m[2] == "" {
			unit = u.Bare
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

// Short is d without the zeros that time.Duration prints: 24h, not 24h0m0s.
func Short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// ReadRegexp reports whether a check can match the regular expression s.
func ReadRegexp(s string) bool {
	_, err := regexp.Compile(s)
	return err == nil
}

// TailRegexp is s as RE2 has it, where $ also stands before a last newline, as PCRE has it.
func TailRegexp(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		n := 1
		switch {
		case strings.HasPrefix(s, `\Q`):
			_, rest, _ := strings.Cut(s, `\E`)
			n = len(s) - len(rest)
		case s[0] == '\\':
			n = min(2, len(s))
		case s[0] == '[':
			n = classLength(s)
		case s[0] == '$' && len(s) > 1 && strings.ContainsRune("?*+{", rune(s[1])):
			b.WriteString(`(?:\n?$)`)
			s = s[1:]
			continue
		case s[0] == '$':
			b.WriteString(`\n?`)
		}
		b.WriteString(s[:n])
		s = s[n:]
	}
	return b.String()
}

// classLength is how many bytes of s are the class of characters, such as [^]$[:alpha:]], that it begins with.
func classLength(s string) int {
	i := len(s) - len(strings.TrimPrefix(strings.TrimPrefix(s[1:], "^"), "]"))
	for i < len(s) && s[i] != ']' {
		switch {
		case s[i] == '\\':
			i += 2
		case strings.HasPrefix(s[i:], "[:"):
			name, _, _ := strings.Cut(s[i+2:], ":]")
			i += len("[::]") + len(name)
		default:
			i++
		}
	}
	return min(i+1, len(s))
}

// ValidName reports whether our loader takes s as the name or id of something: at most most bytes, printable, without
// spaces around it.
func ValidName(s string, most int) bool {
	return len(s) <= most && strings.TrimSpace(s) == s && syntax.Printable(s) == s
}
