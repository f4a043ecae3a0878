package configs

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"appliance/mask"
)

// day bounds durations that are longer than anybody would wait.
const day = 24 * time.Hour

// A builder makes a Config of a rawConfig. Its readers return the value, or its
// default where there is none. After a problem they return the default or the zero
// value, so that building goes on and finds the rest.
type builder struct {
	*report
	*rawConfig
	file string
	src  Source
	cfg  *Config
	// vipOrigins has the place of each virtual address, for messages.
	vipOrigins map[netip.Addr]Origin
	// unknownKeys is set when the file has keys that were not understood: what
	// seems to be missing may be among them. peersUnsure says that of the peers.
	unknownKeys, peersUnsure bool
	// checkUnsure says that the check of the load balancer that is read has problems.
	checkUnsure bool
	// names allows a host's name where endpoint reads an address; host is the one that was read last.
	names bool
	host  string
}

// get is the value of key as written, or its default.
func (b *builder) get(key string) rawValue {
	if c, ok := b.values[key]; ok {
		return c
	}
	return rawValue{value: b.defaultOf(key)}
}

// defaultOf is the default of key.
func (b *builder) defaultOf(key string) string {
	s, _ := setting(key)
	return s.Default
}

// elements are the keys of the elements of a list.
func (b *builder) elements(list string) iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		for i := range b.lists[list] {
			if !yield(fmt.Sprintf("%s[%d]", list, i), i) {
				return
			}
		}
	}
}

// origin is where a problem with key is reported: its line, or the file.
func (b *builder) origin(key string) Origin {
	if o := b.originOf(key); !o.IsDefault() {
		return o
	}
	return Origin{File: b.file}
}

func (b *builder) bad(key, format string, args ...any) {
	b.problem(b.origin(key), key, format, args...)
}

// missing reports what should be there, unless it may be there but misspelt.
func (b *builder) missing(key, format string, args ...any) {
	if !b.unknownKeys {
		b.bad(key, format, args...)
	}
}

// show notes a value that is in force. It quotes what could disturb a terminal.
func (b *builder) show(key, value string, o Origin) { b.showMasked(key, mask.Text(value), value, o) }

// showMasked notes a value of which only a part is shown. A change of the rest is noticed all the same.
func (b *builder) showMasked(key, shown, value string, o Origin) {
	secret := ""
	if shown != value {
		secret = value
	}
	value = shown
	if strings.ContainsFunc(value, unicode.IsControl) {
		value = strconv.Quote(value)
	}
	b.cfg.values = append(b.cfg.values, Value{Key: key, Value: value, Origin: o, secret: secret})
}

// text reads a string and notes it.
func (b *builder) text(key string) string {
	c := b.get(key)
	v := b.choice(key, c.value)
	b.show(key, v, c.origin)
	return v
}

// choice checks value against the words that its setting allows.
func (b *builder) choice(key, value string) string {
	s, _ := setting(key)
	if value == "" || len(s.Choices) == 0 || slices.Contains(s.Choices, value) {
		return value
	}
	if near := nearest(value, s.Choices); near != "" {
		b.bad(key, "%s is not known; did you mean %s?", printable(value), near)
	} else {
		b.bad(key, "%s is not known; write %s", printable(value), orList(s.Choices))
	}
	return s.Default
}

func (b *builder) bool(key string) bool {
	c := b.get(key)
	v := c.value
	if v != "true" && v != "false" {
		b.bad(key, "%s is neither true nor false; write one of them", printable(v))
	}
	b.show(key, v, c.origin)
	return v == "true"
}

func (b *builder) int(key string, low, high int) int {
	c := b.get(key)
	b.show(key, c.value, c.origin)
	n, ok := decimal(c.value)
	if !ok || n < low || n > high {
		b.bad(key, "%s is not a number from %d to %d; write one", printable(c.value), low, high)
		n, _ = decimal(b.defaultOf(key))
	}
	return n
}

// port reads a port. It is 0 if the key is not set, or, with zero, if it is 0.
func (b *builder) port(key string, zero bool) uint16 {
	value := b.get(key).value
	if value == "" || zero && value == "0" {
		return 0
	}
	n, ok := decimal(value)
	if !ok || n < 1 || n > 65535 {
		b.bad(key, "%s is not a port; write a number from 1 to 65535", printable(value))
		return 0
	}
	return uint16(n)
}

// decimal reads digits only: YAML versions read 0x10, 1e3, +5 and 010 in different
// ways.
func decimal(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && strconv.Itoa(n) == s
}

func (b *builder) duration(key string, low, high time.Duration) time.Duration {
	c := b.get(key)
	b.show(key, c.value, c.origin)
	d, err := time.ParseDuration(c.value)
	switch {
	case err != nil:
		b.bad(key, "%s is not a duration; write a number and its unit, such as %s", printable(c.value), b.defaultOf(key))
		d, _ = time.ParseDuration(b.defaultOf(key))
	case d < low || d > high:
		b.bad(key, "%s is out of range; write a duration from %s to %s", c.value, formatDuration(low), formatDuration(high))
		d, _ = time.ParseDuration(b.defaultOf(key))
	}
	return d
}

// optionalDuration reads a duration that may be left out. Then it is zero.
func (b *builder) optionalDuration(key string, low, high time.Duration) time.Duration {
	if b.get(key).value == "" {
		return 0
	}
	return b.duration(key, low, high)
}

// formatDuration is d without the zeros that time.Duration prints: 24h, not 24h0m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// path reads an absolute path: the program does not run in the directory in which
// the operator writes.
func (b *builder) path(key string) string {
	c := b.get(key)
	b.show(key, c.value, c.origin)
	if c.value == "" {
		return ""
	}
	if !filepath.IsAbs(c.value) || strings.ContainsRune(c.value, 0) {
		b.bad(key, "%s is not an absolute path; begin it with /", printable(c.value))
		return ""
	}
	return filepath.Clean(c.value)
}

// maxSocket is how many bytes the path of a unix socket may have: sun_path of unix(7) without its last byte.
const maxSocket = 107

// socketPath reads the path of a unix socket.
func (b *builder) socketPath(key string) string {
	path := b.path(key)
	b.checkSocket(key, path)
	return path
}

func (b *builder) checkSocket(key, path string) {
	if len(path) > maxSocket {
		b.bad(key, "is a path of %d bytes, and the kernel takes %d for a socket; write a shorter one", len(path), maxSocket)
	}
}

// name reads a name for people, which appears in logs, metrics and status.
func (b *builder) name(key, defaultName string) string {
	c := b.get(key)
	v := cmp.Or(c.value, defaultName)
	b.show(key, v, c.origin)
	switch {
	case printable(c.value) != c.value && c.value != "", strings.TrimSpace(v) != v:
		b.bad(key, "%s has characters that a name cannot have; use letters, digits, spaces, - and .",
			strconv.Quote(v))
	case len(v) > 64:
		b.bad(key, "is longer than 64 characters; write a shorter name")
	}
	return v
}

// noNames says why a name is refused.
const noNames = "is a name, not an address; write the address: only the names of servers are looked up, " +
	"because the DNS may be what is down when this is needed"

// addr reads an address without a port. An IPv4-mapped address (::ffff:a.b.c.d,
// RFC 4291 section 2.5.5.2) becomes the IPv4 address that it means.
func (b *builder) addr(key, value string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(unbracket(value))
	if err != nil {
		b.bad(key, "%s", notAddress(value))
		return netip.Addr{}, false
	}
	return b.usable(key, a.Unmap())
}

// addrs reads a list of addresses. An address is a problem if it is there twice, or
// among taken.
func (b *builder) addrs(list string, taken []netip.Addr, problem string) []netip.Addr {
	var addrs []netip.Addr
	for key := range b.elements(list) {
		a, ok := b.addr(key, b.get(key).value)
		if !ok {
			continue
		}
		b.show(key, a.String(), b.origin(key))
		switch {
		case slices.Contains(addrs, a):
			b.bad(key, "%s is there twice; remove one of the two", a)
		case slices.Contains(taken, a):
			b.bad(key, "%s %s", a, problem)
		default:
			addrs = append(addrs, a)
		}
	}
	return addrs
}

func unbracket(s string) string {
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		return s[1 : len(s)-1]
	}
	return s
}

// usable refuses what no machine can have as its own unicast address.
func (b *builder) usable(key string, a netip.Addr) (netip.Addr, bool) {
	what := ""
	switch {
	case a.IsUnspecified():
		what = "means no address at all"
	case a.IsMulticast():
		what = "is a multicast address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		what = "is the broadcast address"
	case a.Is6() && a.IsLinkLocalUnicast() && a.Zone() == "":
		b.bad(key, "%s is link-local, which means nothing without its interface; "+
			"write %s%%eth0 with the interface's name", a, a)
		return a, false
	case a.Zone() != "" && !a.IsLinkLocalUnicast():
		b.bad(key, "%s has a zone, which only link-local addresses have; write %s", a, a.WithZone(""))
		return a, false
	case a.Zone() != "" && !isInterfaceName(a.Zone()):
		b.bad(key, "%s has a zone that is no interface's name; write fe80::1%%eth0", strconv.Quote(a.String()))
		return a, false
	}
	if what != "" {
		b.bad(key, "%s %s; write the address of one machine", a, what)
		return a, false
	}
	return a, true
}

// isInterfaceName reports whether a network interface can have that name: 15 bytes
// are IFNAMSIZ without the final zero (linux/if.h).
func isInterfaceName(s string) bool {
	return len(s) <= 15 && printable(s) == s && !strings.ContainsAny(s, "%/ ")
}

// notAddress says what is wrong with something that should be an address.
func notAddress(value string) string {
	quoted := printable(value)
	if _, err := netip.ParsePrefix(value); err == nil {
		return quoted + " is a subnet; write one address, without the /"
	}
	if _, err := netip.ParseAddrPort(value); err == nil {
		return quoted + " has a port; write the address alone"
	}
	if looksLikeName(value) {
		return quoted + " " + noNames
	}
	return quoted + " is not an IP address; write one such as 192.0.2.10 or 2001:db8::10"
}

// looksLikeName tells kube-1.example.org from 192.0.2.300: the last label of a host
// name is not a number (RFC 1123 section 2.1).
func looksLikeName(s string) bool {
	last := s[strings.LastIndexByte(s, '.')+1:]
	if strings.ContainsAny(s, ":/ ") || last == "" {
		return false
	}
	if _, err := strconv.Atoi(last); err == nil {
		return false
	}
	for _, r := range s {
		if r != '-' && r != '.' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return false
		}
	}
	return true
}

// IsHostName reports whether s can be a host's name in the DNS (RFC 1123, section 2.1): labels of 1 to 63 letters,
// digits, - and _, 253 characters in all (RFC 1035, section 2.3.4), and a last label that is no number.
func IsHostName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if !looksLikeName(s) || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
	}
	return true
}

// endpoint reads an address with or without a port; without one the port is 0.
func (b *builder) endpoint(key, value string) (netip.Addr, uint16, bool) {
	b.host = ""
	if host, port, ok := splitPort(value); ok {
		a, err := netip.ParseAddr(host)
		if err != nil && b.names && IsHostName(host) {
			a, err, b.host = netip.Addr{}, nil, strings.ToLower(strings.TrimSuffix(host, "."))
		}
		if err != nil {
			b.bad(key, "%s", notAddress(host))
			return netip.Addr{}, 0, false
		}
		n, ok := decimal(port)
		if !ok || n < 1 || n > 65535 {
			b.bad(key, "%s is not a port; write a number from 1 to 65535", printable(port))
			return netip.Addr{}, 0, false
		}
		if b.host != "" {
			return a, uint16(n), true
		}
		a, ok = b.usable(key, a.Unmap())
		return a, uint16(n), ok
	}
	if b.names && IsHostName(value) {
		b.host = strings.ToLower(strings.TrimSuffix(value, "."))
		return netip.Addr{}, 0, true
	}
	a, ok := b.addr(key, value)
	return a, 0, ok
}

// splitPort cuts host:port and [host]:port; a bare IPv6 address has none.
func splitPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.Count(s, ":") > 1 && !strings.HasPrefix(s, "[") || strings.HasSuffix(s, "]") {
		return "", "", false
	}
	return unbracket(s[:i]), s[i+1:], true
}

// fromURL reads scheme://address:port, kube-vip's other form of a backend.
func (b *builder) fromURL(key, value string) (netip.Addr, uint16, bool) {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || u.Opaque != "" {
		b.bad(key, "%s is not a URL; write https://192.0.2.11:6443, or address and port instead", printable(value))
		return netip.Addr{}, 0, false
	}
	if u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		b.bad(key, "%s says more than an address and a port, and TCP can carry no more; write %s://%s",
			printable(u.Redacted()), u.Scheme, printable(u.Host))
		return netip.Addr{}, 0, false
	}
	ports := map[string]uint16{"http": 80, "https": 443, "tcp": 0}
	port, known := ports[strings.ToLower(u.Scheme)]
	if !known {
		b.bad(key, "%s is not a scheme of TCP servers; write https://%s", printable(u.Scheme), printable(u.Host))
		return netip.Addr{}, 0, false
	}
	a, own, ok := b.endpoint(key, u.Host)
	if own != 0 {
		port = own
	}
	return a, port, ok
}
