package bgp

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jwhited/corebgp"
)

// A heard is what a router makes of an UPDATE message.
type heard struct {
	Announced, Withdrawn []netip.Prefix
	ASPath               []uint32
	NextHop              netip.Addr
	MED, LocalPref       *uint32
	Communities          []uint32
	Large                []corebgp.LargeCommunity
}

// decode reads an UPDATE message with corebgp's decoder, which checks flags and lengths.
func decode(t *testing.T, body []byte) (h heard) {
	t.Helper()
	v4 := func(to *[]netip.Prefix, nlri []byte) error {
		if len(nlri) != 5 || nlri[0] != 32 {
			t.Errorf("%x is no host route of IPv4", nlri)
			return nil
		}
		*to = append(*to, netip.PrefixFrom(netip.AddrFrom4([4]byte(nlri[1:])), 32))
		return nil
	}
	reach := corebgp.NewMPReachNLRIDecodeFn(func(h *heard, afi uint16, _ uint8, nh, nlri []byte) error {
		hops, err := corebgp.DecodeMPReachIPv6NextHops(nh)
		if err != nil {
			return err
		}
		h.NextHop = hops[0]
		if afi == afiIPv4 { // RFC 8950: a prefix as RFC 4271 has it
			return v4(&h.Announced, nlri)
		}
		routes, err := corebgp.DecodeMPIPv6Prefixes(nlri)
		h.Announced = append(h.Announced, routes...)
		return err
	})
	unreach := corebgp.NewMPUnreachNLRIDecodeFn(func(h *heard, afi uint16, _ uint8, gone []byte) error {
		if afi == afiIPv4 {
			return v4(&h.Withdrawn, gone)
		}
		routes, err := corebgp.DecodeMPIPv6Prefixes(gone)
		h.Withdrawn = append(h.Withdrawn, routes...)
		return err
	})
	decoder := corebgp.NewUpdateDecoder(
		corebgp.NewWithdrawnRoutesDecodeFn(func(h *heard, p []netip.Prefix) error {
			h.Withdrawn = append(h.Withdrawn, p...)
			return nil
		}),
		func(h *heard, code uint8, flags corebgp.PathAttrFlags, b []byte) error {
			switch code {
			case corebgp.PATH_ATTR_ORIGIN:
				var o corebgp.OriginPathAttr
				return o.Decode(flags, b)
			case corebgp.PATH_ATTR_AS_PATH:
				var a corebgp.ASPathAttr
				err := a.Decode(flags, b)
				h.ASPath = a.ASSequence
				return err
			case corebgp.PATH_ATTR_NEXT_HOP:
				var a corebgp.NextHopPathAttr
				err := a.Decode(flags, b)
				h.NextHop = netip.Addr(a)
				return err
			case corebgp.PATH_ATTR_MED:
				var a corebgp.MEDPathAttr
				err := a.Decode(flags, b)
				h.MED = new(uint32(a))
				return err
			case corebgp.PATH_ATTR_LOCAL_PREF:
				var a corebgp.LocalPrefPathAttr
				err := a.Decode(flags, b)
				h.LocalPref = new(uint32(a))
				return err
			case corebgp.PATH_ATTR_COMMUNITY:
				var a corebgp.CommunitiesPathAttr
				err := a.Decode(flags, b)
				h.Communities = a
				return err
			case corebgp.PATH_ATTR_LARGE_COMMUNITY:
				var a corebgp.LargeCommunitiesPathAttr
				err := a.Decode(flags, b)
				h.Large = a
				return err
			case corebgp.PATH_ATTR_MP_REACH_NLRI:
				return reach(h, flags, b)
			case corebgp.PATH_ATTR_MP_UNREACH_NLRI:
				return unreach(h, flags, b)
			}
			t.Errorf("attribute %d is unknown", code)
			return nil
		},
		corebgp.NewNLRIDecodeFn(func(h *heard, p []netip.Prefix) error {
			h.Announced = append(h.Announced, p...)
			return nil
		}),
	)
	if err := decoder.Decode(&h, body); err != nil {
		t.Fatalf("a router refuses %x: %v", body, err)
	}
	return h
}

var same = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty()}

func TestAnnouncements(t *testing.T) {
	four, six := netip.MustParseAddr("198.51.100.10"), netip.MustParseAddr("2001:db8:1::10")
	hop4, hop6 := netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")
	host := func(a netip.Addr) []netip.Prefix { return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())} }
	const own, other = 4200000001, 64500
	many := make([]string, 100)
	for i := range many {
		many[i] = "64512:1"
	}
	manyHeard := slices.Repeat([]uint32{64512<<16 | 1}, 100)
	for name, tt := range map[string]struct {
		vip    netip.Addr
		path   RoutePath
		hop    netip.Addr
		theirs uint32
		want   heard
	}{
		"IPv4, another AS": {four, RoutePath{MED: new(uint32(7)), LocalPref: new(uint32(9)), Prepend: 2}, hop4, other,
			heard{Announced: host(four), ASPath: []uint32{own, own, own}, NextHop: hop4, MED: new(uint32(7))}},
		"IPv6, another AS": {six, RoutePath{}, hop6, other,
			heard{Announced: host(six), ASPath: []uint32{own}, NextHop: hop6}},
		"IPv4 by a next hop of IPv6": {four, RoutePath{MED: new(uint32(7))}, hop6, other,
			heard{Announced: host(four), ASPath: []uint32{own}, NextHop: hop6, MED: new(uint32(7))}},
		"IPv4, the same AS": {four, RoutePath{MED: new(uint32(7)), LocalPref: new(uint32(9)), Prepend: 2}, hop4, own,
			heard{Announced: host(four), NextHop: hop4, LocalPref: new(uint32(9))}},
		"IPv6, the same AS, no preference": {six, RoutePath{}, hop6, own,
			heard{Announced: host(six), NextHop: hop6, LocalPref: new(uint32(DefaultLocalPref))}},
		"communities": {four, RoutePath{Communities: []string{"64512:100", "no-export", "no-advertise"},
			LargeCommunities: []string{"4200000001:1:2"}}, hop4, other,
			heard{Announced: host(four), ASPath: []uint32{own}, NextHop: hop4,
				Communities: []uint32{64512<<16 | 100, 0xffffff01, 0xffffff02},
				Large:       []corebgp.LargeCommunity{{GlobalAdmin: own, LocalData1: 1, LocalData2: 2}}}},
		"more communities than one octet counts": {four, RoutePath{Communities: many}, hop4, other,
			heard{Announced: host(four), ASPath: []uint32{own}, NextHop: hop4, Communities: manyHeard}},
		"leaving, another AS": {six, RoutePath{Leaving: true}, hop6, other,
			heard{Announced: host(six), ASPath: []uint32{own}, NextHop: hop6, Communities: []uint32{0xffff0000}}},
		"leaving, the same AS": {four, RoutePath{Leaving: true, LocalPref: new(uint32(200))}, hop4, own,
			heard{Announced: host(four), NextHop: hop4, LocalPref: new(uint32(0)), Communities: []uint32{0xffff0000}}},
	} {
		body, err := encodeAnnounce(tt.vip, announcement{tt.path, tt.hop}, own, tt.theirs)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(tt.want, decode(t, body), same); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for _, was := range []struct{ vip, hop netip.Addr }{{four, hop4}, {four, hop6}, {six, hop6}} {
		body := encodeWithdraw(was.vip, announcement{nextHop: was.hop})
		if diff := cmp.Diff(heard{Withdrawn: host(was.vip)}, decode(t, body), same); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := encodeAnnounce(six, announcement{nextHop: hop4}, own, other); err == nil {
		t.Error("IPv6 is announced with a next hop of IPv4")
	}
}

// What is said is the difference, announcements first.
func TestDiff(t *testing.T) {
	a, b := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	c := netip.MustParseAddr("198.51.100.3")
	hop := netip.MustParseAddr("192.0.2.11")
	plain := announcement{nextHop: hop}
	ms, err := diff(
		map[netip.Addr]announcement{a: plain, b: plain, c: plain},
		map[netip.Addr]announcement{b: plain, c: {RoutePath: RoutePath{Leaving: true}, nextHop: hop}, hop: plain}, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, m := range ms {
		word := "withdraw "
		if m.is != nil {
			word = "announce "
		}
		said = append(said, word+m.vip.String())
	}
	want := []string{"announce 192.0.2.11", "announce 198.51.100.3", "withdraw 198.51.100.1"}
	if !slices.Equal(said, want) {
		t.Errorf("says %v, want %v", said, want)
	}
}
