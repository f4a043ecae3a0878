package direct

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

func testMembers(n int) []member {
	ms := make([]member, n)
	for i := range ms {
		ms[i] = member{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 6443), 1}
	}
	return ms
}

func everyone(netip.AddrPort) bool { return true }

func nobody(netip.AddrPort) bool { return false }

func except(gone ...netip.AddrPort) func(netip.AddrPort) bool {
	return func(a netip.AddrPort) bool { return !slices.Contains(gone, a) }
}

// slotsOf are all slots of a table, by number.
func slotsOf(t table) (all []slot) {
	for i := range t.len() {
		all = append(all, t.at(i))
	}
	return all
}

func shares(t table) map[netip.AddrPort]int {
	n := make(map[netip.AddrPort]int)
	for _, s := range slotsOf(t) {
		if s.owner.IsValid() {
			n[s.owner]++
		}
	}
	return n
}

// Section 5.3: with a table of more than a hundred slots for each backend the
// shares differ by at most 1 % of the table's fair share; the first table's
// turns even keep them within one slot of each other.
func TestMaglevBalance(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 10, 11, 40, 41, 100} {
		p := prefer(testMembers(n))
		got := shares(p.table(everyone, everyone))
		fair := len(p.kind) / n
		for _, m := range p.members {
			if s := got[m.addr]; s < fair || s > fair+1 {
				t.Errorf("%d members: %v owns %d of %d slots, want %d or one more", n, m.addr, s, len(p.kind), fair)
			}
		}
	}
}

func TestMaglevOrderDoesNotMatter(t *testing.T) {
	ms := testMembers(7)
	ms[2].weight = 3
	want := slotsOf(prefer(ms).table(everyone, everyone))
	rand.Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
	got := slotsOf(prefer(ms).table(everyone, everyone))
	if !slices.EqualFunc(got, want, func(a, b slot) bool { return a.owner == b.owner && slices.Equal(a.ring, b.ring) }) {
		t.Error("another order of the same members made another table")
	}
}

// If another release computed another table, open connections would break while the
// nodes are upgraded one by one.
func TestMaglevStaysTheSame(t *testing.T) {
	table := slotsOf(prefer(testMembers(3)).table(everyone, everyone))
	got := ""
	for _, c := range table[:12] {
		for _, a := range c.ring {
			got += fmt.Sprint(a.Addr().As4()[3])
		}
		got += " "
	}
	if got != maglevGolden {
		t.Errorf("the table is %q and was %q: nodes of two releases would disagree", got, maglevGolden)
	}
}

const maglevGolden = "321 231 231 321 312 312 123 231 231 321 312 231 "

func TestMaglevWeights(t *testing.T) {
	ms := testMembers(4)
	ms[0].weight, ms[1].weight, ms[2].weight, ms[3].weight = 1, 2, 4, 0
	p := prefer(ms)
	got := shares(p.table(everyone, everyone))
	for i, m := range ms {
		want := len(p.kind) * m.weight / 7
		if d := got[m.addr] - want; d < -2 || d > 2 {
			t.Errorf("member %d of weight %d owns %d slots, want about %d", i, m.weight, got[m.addr], want)
		}
	}
	for slot, c := range slotsOf(p.table(everyone, everyone)) {
		if !slices.Contains(c.ring, ms[3].addr) {
			t.Fatalf("slot %d: the member of weight 0 keeps no open connections: %v", slot, c.ring)
		}
	}
	// Extreme weights must terminate, and must not starve the light member of a table
	// this long.
	ms[0].weight, ms[1].weight, ms[2].weight = 256, 1, 256
	if n := shares(prefer(ms).table(everyone, everyone))[ms[1].addr]; n < 1 || n > 4 {
		t.Errorf("weight 1 beside two of 256 owns %d of 1021 slots, want about 2", n)
	}
}

// Section 5.3 counts how many connections change although their backend stays:
// below 2 % at the table sizes of the paper. Ours must count none, whoever
// leaves, and in whatever order.
func TestMaglevDisruption(t *testing.T) {
	for _, n := range []int{2, 3, 5, 8, 20, 50} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			p := prefer(testMembers(n))
			var gone []netip.AddrPort
			before := slotsOf(p.table(everyone, everyone))
			for _, leaver := range rand.Perm(n)[:n-1] {
				gone = append(gone, p.members[leaver].addr)
				after := slotsOf(p.table(except(gone...), nobody))
				for slot := range before {
					was, is := before[slot].owner, after[slot].owner
					if was != is && was != p.members[leaver].addr {
						t.Fatalf("slot %d moved from %v to %v when %v left", slot, was, is, p.members[leaver].addr)
					}
				}
				before = after
			}
		})
	}
}

// The slots of members that left are shared evenly, too: the paper's table is within
// one slot, and ours is a sum of such tables.
func TestMaglevBalanceAfterLeaving(t *testing.T) {
	for _, c := range []struct{ members, gone, percent int }{
		{3, 1, 1}, {3, 2, 0}, {5, 1, 2}, {5, 2, 4}, {5, 3, 5}, {10, 1, 5}, {10, 3, 15}, {40, 1, 10}, {100, 5, 15},
	} {
		p := prefer(testMembers(c.members))
		var gone []netip.AddrPort
		for i := range c.gone {
			gone = append(gone, p.members[i*c.members/c.gone].addr)
		}
		got := shares(p.table(except(gone...), nobody))
		fair := float64(len(p.kind)) / float64(c.members-c.gone)
		for a, s := range got {
			if off := 100 * (float64(s)/fair - 1); off > float64(c.percent) || off < -float64(c.percent) {
				t.Errorf("%d of %d gone: %v owns %d slots, %.1f %% off the fair %.1f, want %d %%",
					c.gone, c.members, a, s, off, fair, c.percent)
			}
		}
	}
}

// A backend that comes back has the same slots again, and the backend that served them
// meanwhile is asked first for their connections.
func TestMaglevReturn(t *testing.T) {
	p := prefer(testMembers(5))
	back := p.members[2].addr
	away := slotsOf(p.table(except(back), except(back)))
	for i, s := range slotsOf(p.table(everyone, everyone)) {
		if s.owner != back {
			continue
		}
		if next, ok := s.after(back); !ok || next != away[i].owner {
			t.Fatalf("slot %d: %v served it while %v was away, and %v is next", i, away[i].owner, back, next)
		}
	}
}

// Whichever node gets a packet first, each node is asked once.
func TestMaglevRing(t *testing.T) {
	p := prefer(testMembers(5))
	for i, s := range slotsOf(p.table(except(p.members[0].addr), everyone)) {
		for _, m := range p.members {
			asked := []netip.AddrPort{m.addr}
			for len(asked) < 5 {
				next, ok := s.after(asked[len(asked)-1])
				if !ok || slices.Contains(asked, next) {
					t.Fatalf("slot %d: after %v comes %v", i, asked, next)
				}
				asked = append(asked, next)
			}
		}
	}
	alone := slot{ring: []netip.AddrPort{p.members[0].addr}}
	if next, ok := alone.after(p.members[0].addr); ok {
		t.Errorf("after the only one comes %v", next)
	}
	if next, ok := alone.after(p.members[1].addr); !ok || next != p.members[0].addr {
		t.Errorf("a node without a slot asks %v first", next)
	}
}

func TestMaglevDrainingKeepsItsConnections(t *testing.T) {
	p := prefer(testMembers(3))
	draining := p.members[0].addr
	for i, s := range slotsOf(p.table(except(draining), everyone)) {
		if s.owner == draining {
			t.Fatalf("slot %d: a draining member gets new connections", i)
		}
		if !slices.Contains(s.ring, draining) {
			t.Fatalf("slot %d: the draining member is not asked for its connections: %v", i, s.ring)
		}
	}
}

func TestMaglevNobody(t *testing.T) {
	for i, s := range slotsOf(prefer(testMembers(3)).table(nobody, everyone)) {
		if s.owner.IsValid() {
			t.Fatalf("slot %d is owned by %v, and nobody is in rotation", i, s.owner)
		}
		if len(s.ring) != 3 {
			t.Fatalf("slot %d: only %v are asked for the connections that they keep", i, s.ring)
		}
	}
	if p := prefer(nil); p.table(everyone, everyone).len() != slotsFew {
		t.Error("an empty set has no slots")
	}
}

func BenchmarkPrefer(b *testing.B) {
	for _, n := range []int{3, 16, 100} {
		ms := testMembers(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				prefer(ms)
			}
		})
	}
}
