package configs

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// noNames is why addresses are wanted where a name would be shorter.
const noNames = "is a name, not an address; write the address: names are not looked up, because the DNS may be what is down when this is needed"

// addr reads an address without a port. IPv4 in IPv6 clothes (::ffff:a.b.c.d,
// RFC 4291 section 2.5.5.2) is the IPv4 address that it means.
func (b *builder) addr(key, value string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(unbracket(value))
	if err != nil {
		b.bad(key, "%s", notAddress(value))
		return netip.Addr{}, false
	}
	return b.usable(key, a.Unmap())
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
		b.bad(key, "%s is link-local, which means nothing without its interface; write %s%%eth0 with the interface's name", a, a)
		return a, false
	case a.Zone() != "" && !a.IsLinkLocalUnicast():
		b.bad(key, "%s has a zone, which only link-local addresses have; write %s", a, a.WithZone(""))
		return a, false
	case strings.ContainsAny(a.Zone(), "%/ ") || len(a.Zone()) > maxInterface || printable(a.Zone()) != a.Zone() && a.Zone() != "":
		b.bad(key, "%s has a zone that is no interface's name; write fe80::1%%eth0", strconv.Quote(a.String()))
		return a, false
	}
	if what != "" {
		b.bad(key, "%s %s; write the address of one machine", a, what)
		return a, false
	}
	return a, true
}

// maxInterface is IFNAMSIZ without the final zero (linux/if.h).
const maxInterface = 15

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

// looksLikeName tells kube-1.example.org from 192.0.2.300: the last label of
// a host name is not a number (RFC 1123 section 2.1).
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

// endpoint reads an address with or without a port; the port is 0 if none.
func (b *builder) endpoint(key, value string) (netip.Addr, uint16, bool) {
	if host, port, ok := splitPort(value); ok {
		a, err := netip.ParseAddr(host)
		if err != nil {
			b.bad(key, "%s", notAddress(host))
			return netip.Addr{}, 0, false
		}
		n, ok := decimal(port)
		if !ok || n < 1 || n > 65535 {
			b.bad(key, "%s is not a port; write a number from 1 to 65535", printable(port))
			return netip.Addr{}, 0, false
		}
		a, ok = b.usable(key, a.Unmap())
		return a, uint16(n), ok
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

// fromURL reads scheme://address:port, kube-vip's other way to name a backend.
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
