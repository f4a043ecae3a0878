package draft

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestAccessMeansTheSame compares the lists with the rules that they were made of, address by address.
func TestAccessMeansTheSame(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	prefix := func() netip.Prefix {
		bits := 24 + random.IntN(9)
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(random.IntN(256))}), bits).Masked()
	}
	for range 500 {
		var stages [][]AccessRule
		for range 1 + random.IntN(2) {
			var rules []AccessRule
			for range random.IntN(6) {
				r := AccessRule{Accept: random.IntN(2) == 0, From: []netip.Prefix{prefix()}, Except: random.IntN(4) == 0}
				if random.IntN(8) == 0 {
					r = AccessRule{Accept: r.Accept, Set: AllAddrs()}
				}
				rules = append(rules, r)
			}
			stages = append(stages, rules)
		}
		allow, deny, refused := Access(stages...)
		in := func(list []netip.Prefix, a netip.Addr) bool {
			return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
		}
		for i := range 258 {
			a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
			if i > 255 {
				a = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}[i-256]
			}
			want := passes(stages, a)
			got := refused == "" && (len(allow) == 0 || in(allow, a)) && !in(deny, a)
			if got != want {
				t.Fatalf("%s: %v, want %v\nallow %v, deny %v, refused %q\n%s", a, got, want, allow, deny, refused, text(stages))
			}
		}
	}
}

// passes is the meaning of rules: of each list the first that fits decides.
func passes(stages [][]AccessRule, a netip.Addr) bool {
	for _, rules := range stages {
		for _, r := range rules {
			if r.Set != nil || r.From[0].Contains(a) != r.Except {
				if !r.Accept {
					return false
				}
				break
			}
		}
	}
	return true
}

func text(stages [][]AccessRule) (s string) {
	for _, rules := range stages {
		for _, r := range rules {
			s += fmt.Sprintf("accept %v from %v except %v all %v\n", r.Accept, r.From, r.Except, r.Set != nil)
		}
		s += "--\n"
	}
	return s
}

func TestAccessKeepsWhatTheFileSays(t *testing.T) {
	p := netip.MustParsePrefix
	net, bad := []netip.Prefix{p("192.0.2.0/24")}, []netip.Prefix{p("192.0.2.66/32")}
	allow, deny, refused := Access([]AccessRule{{From: bad}, {Accept: true, From: net}, {Set: AllAddrs()}})
	if refused != "" || !slices.Equal(allow, net) || !slices.Equal(deny, bad) {
		t.Errorf("allow %v, deny %v, refused %q", allow, deny, refused)
	}
	if _, _, refused = Access([]AccessRule{{Set: AllAddrs()}}); refused == "" {
		t.Error("nobody comes in, and that is not said")
	}
}
