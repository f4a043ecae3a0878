package draft

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"appliance/convert/syntax"
)

// An addrRange is addresses of one family, both ends included.
type addrRange struct{ low, high netip.Addr }

// An AddrSet is a set of addresses: ranges in order that neither touch nor overlap.
type AddrSet []addrRange

// AllAddrs is every address.
func AllAddrs() AddrSet { return slices.Clone(families) }

// families are all addresses of each family.
var families = AddrSet{
	{netip.AddrFrom4([4]byte{}), netip.AddrFrom4([4]byte{255, 255, 255, 255})},
	{netip.IPv6Unspecified(), lastOf(netip.PrefixFrom(netip.IPv6Unspecified(), 0))},
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	bytes := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(bytes); bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(bytes)
	return a
}

// and is the addresses in both r and other, if there are any.
func (r addrRange) and(other addrRange) addrRange {
	if r.low.Less(other.low) {
		r.low = other.low
	}
	if other.high.Less(r.high) {
		r.high = other.high
	}
	return r
}

// NewAddrSet is the set of the addresses in prefixes.
func NewAddrSet(prefixes []netip.Prefix) AddrSet {
	ranges := make(AddrSet, 0, len(prefixes))
	for _, p := range prefixes {
		ranges = append(ranges, addrRange{p.Masked().Addr(), lastOf(p)})
	}
	return ranges.normal()
}

// normal is s in order, with ranges that touch joined.
func (s AddrSet) normal() AddrSet {
	slices.SortFunc(s, func(a, b addrRange) int { return cmp.Or(a.low.Compare(b.low), a.high.Compare(b.high)) })
	var out AddrSet
	for _, r := range s {
		if n := len(out); n > 0 && out[n-1].low.BitLen() == r.low.BitLen() {
			if next := out[n-1].high.Next(); !next.IsValid() || r.low.Compare(next) <= 0 {
				if r.high.Compare(out[n-1].high) > 0 {
					out[n-1].high = r.high
				}
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// Or is the addresses in s or t.
func (s AddrSet) Or(t AddrSet) AddrSet { return slices.Concat(s, t).normal() }

// Not is the addresses that are not in s.
func (s AddrSet) Not() AddrSet {
	var out AddrSet
	i := 0
	for _, f := range families {
		low, open := f.low, true
		for ; i < len(s) && s[i].low.BitLen() == f.low.BitLen(); i++ {
			if low.Less(s[i].low) {
				out = append(out, addrRange{low, s[i].low.Prev()})
			}
			low = s[i].high.Next()
			open = low.IsValid()
		}
		if open {
			out = append(out, addrRange{low, f.high})
		}
	}
	return out
}

// And is the addresses in both s and t.
func (s AddrSet) And(t AddrSet) AddrSet {
	if len(t) < len(s) {
		s, t = t, s
	}
	var out AddrSet
	if len(s) < len(t)/16 { // look up each of the few among the many
		for _, r := range s {
			i, _ := slices.BinarySearchFunc(t, r.low, func(r addrRange, a netip.Addr) int { return r.high.Compare(a) })
			for ; i < len(t) && t[i].low.Compare(r.high) <= 0; i++ {
				out = append(out, r.and(t[i]))
			}
		}
		return out
	}
	for i, j := 0, 0; i < len(s) && j < len(t); {
		if both := s[i].and(t[j]); both.low.BitLen() == both.high.BitLen() && !both.high.Less(both.low) {
			out = append(out, both)
		}
		if s[i].high.Less(t[j].high) {
			i++
		} else {
			j++
		}
	}
	return out
}

// overlaps reports whether any address of p is in s.
func (s AddrSet) overlaps(p netip.Prefix) bool {
	i, _ := slices.BinarySearchFunc(s, p.Addr(), func(r addrRange, a netip.Addr) int { return r.high.Compare(a) })
	return i < len(s) && s[i].low.Compare(lastOf(p)) <= 0
}

// misses reports whether no address of p is in s.
func (s AddrSet) misses(p netip.Prefix) bool { return !s.overlaps(p) }

// Equal reports whether s and t have the same addresses.
func (s AddrSet) Equal(t AddrSet) bool { return slices.Equal(s, t) }

// Prefixes is s as the fewest prefixes, or the first most+1 of them.
func (s AddrSet) Prefixes(most int) (list []netip.Prefix) {
	for _, r := range s {
		for low := r.low; low.IsValid() && !r.high.Less(low) && len(list) <= most; {
			p := netip.PrefixFrom(low, low.BitLen())
			for p.Bits() > 0 {
				wider := netip.PrefixFrom(low, p.Bits()-1)
				if wider.Masked().Addr() != low || r.high.Less(lastOf(wider)) {
					break
				}
				p = wider
			}
			list = append(list, p)
			low = lastOf(p).Next()
		}
	}
	return list
}

// An AccessRule lets clients in or refuses them. Of a list of rules the first that fits decides.
type AccessRule struct {
	syntax.Statement
	Accept bool
	// From are the clients that it is about, named as the file names them, and Except means all others.
	From   []netip.Prefix
	Except bool
	// Set are the same clients, if they are no list of prefixes.
	Set AddrSet
}

func (r AccessRule) set() AddrSet {
	s := r.Set
	if s == nil {
		s = NewAddrSet(r.From)
	}
	if r.Except {
		return s.Not()
	}
	return s
}

// maxAccessWork is how many ranges of addresses may be compared while access rules are read, which takes less than a
// second.
const maxAccessWork = 4_000_000

// Access turns lists of rules, all of which a client has to pass, into the allow and deny lists of ours, of which deny
// wins. A client whom no rule of a list fits passes it. refused says why there are no such lists.
func Access(stages ...[]AccessRule) (allow, deny []netip.Prefix, refused string) {
	allowed := families
	work := 0
	var accepted, rejected []netip.Prefix // as the files write them
	for _, rules := range stages {
		undecided, passes := families, AddrSet(nil)
		for len(rules) > 0 {
			n := 1 // rules side by side that do the same are one
			for n < len(rules) && rules[n].Accept == rules[0].Accept {
				n++
			}
			var fits AddrSet
			for _, r := range rules[:n] {
				fits = append(fits, r.set()...)
				if r.Accept != r.Except {
					accepted = append(accepted, r.From...)
				} else {
					rejected = append(rejected, r.From...)
				}
			}
			fits = fits.normal()
			if work += len(fits) + len(undecided) + len(passes); work > maxAccessWork {
				return nil, nil, fmt.Sprintf("%s: its access rules need more than %d comparisons of addresses; "+
					"write one list of who may come in", rules[0].Place, maxAccessWork)
			}
			if rules[0].Accept {
				passes = passes.Or(fits.And(undecided))
			}
			undecided = undecided.And(fits.Not())
			rules = rules[n:]
		}
		allowed = allowed.And(passes.Or(undecided))
	}
	return lists(allowed, Once(accepted), Once(rejected))
}

// lists says with prefixes who is in allowed, if possible with those that the files have.
func lists(allowed AddrSet, accepted, rejected []netip.Prefix) (allow, deny []netip.Prefix, refused string) {
	if len(allowed) == 0 {
		return nil, nil, "it refuses everybody"
	}
	if !allowed.Equal(families) {
		deny = slices.DeleteFunc(slices.Clone(rejected), allowed.overlaps)
		if NewAddrSet(deny).Not().Equal(allowed) {
			accepted = nil
		} else if accepted = slices.DeleteFunc(accepted, allowed.misses); len(accepted) > 0 {
			allow = accepted
			deny = slices.DeleteFunc(deny, NewAddrSet(allow).misses)
		}
		said := families
		if len(allow) > 0 {
			said = NewAddrSet(allow)
		}
		if !said.And(NewAddrSet(deny).Not()).Equal(allowed) {
			allow, deny = allowed.Prefixes(MaxList), nil
			if other := allowed.Not().Prefixes(MaxList); len(other) < len(allow) {
				allow, deny = nil, other
			}
		}
	}
	for _, list := range [][]netip.Prefix{allow, deny} {
		if len(list) > MaxList {
			return nil, nil, fmt.Sprintf("its access list has more than %d entries, the most of a list; "+
				"write wider prefixes", MaxList)
		}
	}
	return allow, deny, ""
}

// Once is list without duplicates and without what another entry contains.
func Once(list []netip.Prefix) (out []netip.Prefix) {
	sorted := slices.Clone(list)
	for i, p := range sorted {
		sorted[i] = p.Masked()
	}
	slices.SortStableFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	within := map[netip.Prefix]bool{}
	var last netip.Prefix
	for _, p := range sorted {
		if last.IsValid() && last.Contains(p.Addr()) && last.Bits() <= p.Bits() {
			within[p] = last != p
			continue
		}
		last = p
	}
	seen := map[netip.Prefix]bool{}
	for _, p := range list {
		if p = p.Masked(); !within[p] && !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}
