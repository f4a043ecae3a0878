package bgp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A RoutePath is how a virtual address is announced: the path attributes that do not depend on the neighbour.
type RoutePath struct {
	// Communities are those of RFC 1997, as 64512:100 or by their names; LargeCommunities those of RFC 8092, as 64512:1:2.
	Communities, LargeCommunities []string
	// MED is for neighbours of another AS (RFC 4271, section 5.1.4), LocalPref for those of the same (section 5.1.5). Nil
	// means none; a neighbour of the same AS then gets DefaultLocalPref.
	MED, LocalPref *uint32
	// Prepend is how often the own AS number stands before the path once more, for neighbours of another AS.
	Prepend int
	// Leaving asks routers to prefer every other path, since this one is about to end (RFC 8326).
	Leaving bool
}

// DefaultLocalPref is what routers take for a path that says nothing. RFC 4271 has no number; FRR, BIRD and others
// agree on this one.
const DefaultLocalPref = 100

// equal reports whether two paths are announced in the same way.
func (p RoutePath) equal(o RoutePath) bool {
	same := func(a, b *uint32) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
	return slices.Equal(p.Communities, o.Communities) && slices.Equal(p.LargeCommunities, o.LargeCommunities) &&
		same(p.MED, o.MED) && same(p.LocalPref, o.LocalPref) && p.Prepend == o.Prepend && p.Leaving == o.Leaving
}

// Communities that have names (RFC 1997; RFC 8326, section 5).
const (
	noExport         = 0xffffff01
	noAdvertise      = 0xffffff02
	gracefulShutdown = 0xffff0000
)

// Codes of path attributes and their flags (RFC 4271, section 4.3 and 5; RFC 1997; RFC 4760; RFC 8092).
const (
	attrOrigin           = 1
	attrASPath           = 2
	attrNextHop          = 3
	attrMED              = 4
	attrLocalPref        = 5
	attrCommunities      = 8
	attrMPReach          = 14
	attrMPUnreach        = 15
	attrLargeCommunities = 32

	flagOptional   = 0x80
	flagTransitive = 0x40
	flagExtended   = 0x10

	originIGP  = 0
	asSequence = 2
)

// Address families (RFC 4760, section 6).
const (
	afiIPv4     = 1
	afiIPv6     = 2
	safiUnicast = 1
)

// An announcement is one route as one neighbour is told of it.
type announcement struct {
	RoutePath
	nextHop netip.Addr
}

func (a announcement) equal(o announcement) bool {
	return a.nextHop == o.nextHop && a.RoutePath.equal(o.RoutePath)
}

// attribute appends one path attribute.
func attribute(b []byte, flags, code byte, value []byte) []byte {
	if len(value) > 255 {
		b = append(b, flags|flagExtended, code)
		b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	} else {
		b = append(b, flags, code, byte(len(value)))
	}
	return append(b, value...)
}

// nlri is a host route as network layer reachability information (RFC 4271, section 4.3).
func nlri(vip netip.Addr) []byte { return append([]byte{byte(vip.BitLen())}, vip.AsSlice()...) }

func afi(a netip.Addr) uint16 {
	if a.Is4() {
		return afiIPv4
	}
	return afiIPv6
}

// encodeAnnounce is the body of an UPDATE message (RFC 4271, section 4.3) that announces vip to a neighbour. own and
// theirs are the AS numbers; both sides know four octets.
func encodeAnnounce(vip netip.Addr, a announcement, own, theirs uint32) ([]byte, error) {
	var attrs []byte
	attrs = attribute(attrs, flagTransitive, attrOrigin, []byte{originIGP})
	var path []byte
	if own != theirs { // RFC 4271, section 5.1.2: to neighbours of the same AS, what begins here has an empty path
		path = []byte{asSequence, byte(1 + a.Prepend)}
		for range 1 + a.Prepend {
			path = binary.BigEndian.AppendUint32(path, own)
		}
	}
	attrs = attribute(attrs, flagTransitive, attrASPath, path)
	classic := vip.Is4() && a.nextHop.Is4() // what RFC 4271 can say; all else is of RFC 4760
	if classic {
		attrs = attribute(attrs, flagTransitive, attrNextHop, a.nextHop.AsSlice())
	}
	if a.MED != nil && own != theirs {
		attrs = attribute(attrs, flagOptional, attrMED, binary.BigEndian.AppendUint32(nil, *a.MED))
	}
	if own == theirs {
		pref := uint32(DefaultLocalPref)
		if a.LocalPref != nil {
			pref = *a.LocalPref
		}
		if a.Leaving {
			pref = 0 // RFC 8326, section 4.2
		}
		attrs = attribute(attrs, flagTransitive, attrLocalPref, binary.BigEndian.AppendUint32(nil, pref))
	}
	communities, err := encodeCommunities(a.RoutePath)
	if err != nil {
		return nil, err
	}
	if len(communities) > 0 {
		attrs = attribute(attrs, flagOptional|flagTransitive, attrCommunities, communities)
	}
	if !classic {
		if !a.nextHop.Is6() {
			return nil, fmt.Errorf("bgp: %s needs a next hop of IPv6, not %s", vip, a.nextHop)
		}
		reach := binary.BigEndian.AppendUint16(nil, afi(vip)) // RFC 4760, section 3; of IPv4 RFC 8950, section 3
		reach = append(reach, safiUnicast, byte(a.nextHop.BitLen()/8))
		reach = append(reach, a.nextHop.AsSlice()...)
		reach = append(reach, 0) // reserved
		attrs = attribute(attrs, flagOptional, attrMPReach, append(reach, nlri(vip)...))
	}
	large, err := encodeLarge(a.LargeCommunities)
	if err != nil {
		return nil, err
	}
	if len(large) > 0 {
		attrs = attribute(attrs, flagOptional|flagTransitive, attrLargeCommunities, large)
	}
	body := []byte{0, 0} // no withdrawn routes
	body = binary.BigEndian.AppendUint16(body, uint16(len(attrs)))
	body = append(body, attrs...)
	if classic {
		body = append(body, nlri(vip)...)
	}
	return body, nil
}

// encodeWithdraw is the body of an UPDATE message that withdraws vip, which was announced as was, in the same form.
func encodeWithdraw(vip netip.Addr, was announcement) []byte {
	if vip.Is4() && was.nextHop.Is4() {
		route := nlri(vip)
		body := binary.BigEndian.AppendUint16(nil, uint16(len(route)))
		return append(append(body, route...), 0, 0)
	}
	gone := binary.BigEndian.AppendUint16(nil, afi(vip)) // RFC 4760, section 4
	gone = append(append(gone, safiUnicast), nlri(vip)...)
	attrs := attribute(nil, flagOptional, attrMPUnreach, gone)
	body := binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(attrs)))
	return append(body, attrs...)
}

func encodeCommunities(p RoutePath) (b []byte, err error) {
	if p.Leaving {
		b = binary.BigEndian.AppendUint32(b, gracefulShutdown)
	}
	for _, c := range p.Communities {
		switch c {
		case "no-export":
			b = binary.BigEndian.AppendUint32(b, noExport)
			continue
		case "no-advertise":
			b = binary.BigEndian.AppendUint32(b, noAdvertise)
			continue
		}
		n, err := numbers(c, 2, 16)
		if err != nil {
			return nil, err
		}
		b = binary.BigEndian.AppendUint32(b, n[0]<<16|n[1])
	}
	return b, nil
}

func encodeLarge(list []string) (b []byte, err error) {
	for _, c := range list {
		n, err := numbers(c, 3, 32)
		if err != nil {
			return nil, err
		}
		for _, v := range n {
			b = binary.BigEndian.AppendUint32(b, v)
		}
	}
	return b, nil
}

// numbers reads the parts of a community, which have at most so many bits.
func numbers(c string, parts, bits int) (n []uint32, err error) {
	for f := range strings.SplitSeq(c, ":") {
		v, err := strconv.ParseUint(f, 10, bits)
		if err != nil {
			return nil, fmt.Errorf("bgp: community %q: %w", c, err)
		}
		n = append(n, uint32(v))
	}
	if len(n) != parts {
		return nil, fmt.Errorf("bgp: community %q has %d parts, not %d", c, len(n), parts)
	}
	return n, nil
}
