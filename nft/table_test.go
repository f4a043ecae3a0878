package nft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

func TestAvailableAndCleanup(t *testing.T) {
	needRoot(t)
	m := newMachine(t, "m")
	m.in(func() {
		if err := Available(); err != nil {
			t.Fatal(err)
		}
	})
	if rules := m.ruleset(); rules != "" {
		t.Errorf("Available left\n%s", rules)
	}

	// A crashed life leaves everything, beside what belongs to others.
	m.run("nft", "add table inet firewall; add chain inet firewall input { type filter hook input priority 0; }; add table inet appliance_like")
	others := m.ruleset()
	frontend := netip.AddrPortFrom(vip4, 6443)
	m.in(func() {
		ctx := context.Background()
		if _, err := new(Silencer).Silence(ctx, []Silenced{{VIP: vip4}}); err != nil {
			t.Fatal(err)
		}
		if _, err := new(Redirector).Redirect(ctx, map[netip.AddrPort]netip.AddrPort{frontend: netip.AddrPortFrom(vip4, 1)}); err != nil {
			t.Fatal(err)
		}
		if _, err := new(Masquerader).Masquerade(ctx, []netip.AddrPort{frontend, netip.AddrPortFrom(vip6, 6443)}); err != nil {
			t.Fatal(err)
		}
		if _, err := NewNAT("").Apply(ctx, []balancer.Service{{Frontend: netip.AddrPortFrom(vip4, 7443)}, {Frontend: netip.AddrPortFrom(vip6, 7443)}}); err != nil {
			t.Fatal(err)
		}
	})
	m.in(func() {
		removed, err := Cleanup()
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(removed)
		want := []string{
			"nf_tables table arp appliance_silence",
			"nf_tables table inet appliance_ipvs",
			"nf_tables table inet appliance_redirect",
			"nf_tables table ip appliance_nat",
			"nf_tables table ip6 appliance_nat",
		}
		if !slices.Equal(removed, want) {
			t.Errorf("removed %q, want %q", removed, want)
		}
		if removed, err = Cleanup(); err != nil || len(removed) != 0 {
			t.Errorf("second Cleanup removed %q, %v", removed, err)
		}
	})
	if left := m.ruleset(); left != others {
		t.Errorf("Cleanup left\n%s\nwant what belongs to others\n%s", left, others)
	}
}

func TestAvailableWithoutTheCapability(t *testing.T) {
	needRoot(t)
	m := newMachine(t, "m")
	done := make(chan error)
	go func() {
		// The thread gives up a capability. It is never unlocked, so it ends
		// with this goroutine.
		runtime.LockOSThread()
		if err := netns.Set(m.ns); err != nil {
			done <- err
			return
		}
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		if err := unix.Capget(&header, &sets[0]); err != nil {
			done <- err
			return
		}
		sets[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &sets[0]); err != nil {
			done <- err
			return
		}
		done <- Available()
	}()
	if err := <-done; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "capability NET_ADMIN") {
		t.Errorf("got %v, want EPERM and what to do", err)
	}
}

func TestAvailableNamesWhatIsMissing(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.EPERM:           "NET_ADMIN",
		unix.EPROTONOSUPPORT: "modprobe nf_tables",
		unix.EOPNOTSUPP:      "modprobe nf_tables nft_chain_nat",
		unix.ENOENT:          "CONFIG_NFT_",
		unix.EIO:             "nft list ruleset",
	} {
		// The kernel refuses every message with this error.
		conn, err := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) {
			return nil, &netlink.OpError{Op: "receive", Err: errno}
		}))
		if err != nil {
			t.Fatal(err)
		}
		_, err = has(conn, nat(ipv4(), nil))
		if err == nil {
			t.Fatalf("%v is lost", errno)
		}
		err = explain(err, nat(ipv4(), nil))
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "ip appliance_nat") {
			t.Errorf("%v: %q does not say %q", errno, err, want)
		}
	}
	if explain(nil, table{}) != nil {
		t.Error("no error has an explanation")
	}
}

// The kernel gets a table as one batch: the old one goes and the new one comes
// between the same two marks.
func TestReplaceIsOneTransaction(t *testing.T) {
	var got []string
	names := map[netlink.HeaderType]string{
		unix.NFNL_MSG_BATCH_BEGIN: "begin", unix.NFNL_MSG_BATCH_END: "end",
		unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE:   "add table",
		unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE:   "delete table",
		unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWOBJ:     "add counter",
		unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWCHAIN:   "add chain",
		unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSET:     "add set",
		unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSETELEM: "add elements",
		unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE:    "add rule",
	}
	batches := 0
	var counter []byte
	conn, err := nftables.New(nftables.WithTestDial(func(req []netlink.Message) ([]netlink.Message, error) {
		if len(req) == 0 {
			// One acknowledgement after the other.
			return []netlink.Message{{Header: netlink.Header{Type: netlink.Error}, Data: make([]byte, 4)}}, nil
		}
		batches++
		for _, m := range req {
			name := names[m.Header.Type]
			if name == "add counter" && bytes.Contains(m.Data, []byte("seen")) {
				counter = m.Data
			}
			if len(got) == 0 || got[len(got)-1] != name {
				got = append(got, name)
			}
		}
		return req, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := table{
		family:   nftables.TableFamilyIPv4,
		name:     "t",
		counters: []string{"seen", "new"},
		chains:   []chain{{name: "c", rules: []rule{{why: "w", exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}}}},
		sets:     []set{{name: "s", key: nftables.TypeIPAddr, elements: []nftables.SetElement{{Key: []byte{10, 0, 0, 1}}}}},
	}
	const count = 0x1122334455667788
	if err := replace(conn, want, digest{}, map[string]uint64{"seen": count}); err != nil {
		t.Fatal(err)
	}
	order := []string{"begin", "add table", "delete table", "add table", "add counter", "add chain", "add set", "add elements", "add rule", "end"}
	if batches != 1 || !slices.Equal(got, order) {
		t.Errorf("%d batches %q, want one of %q", batches, got, order)
	}
	if !bytes.Contains(counter, binary.BigEndian.AppendUint64(nil, count)) {
		t.Errorf("the counter starts anew: % x", counter)
	}
}

func TestDiff(t *testing.T) {
	want := table{
		family: nftables.TableFamilyINet,
		name:   "t",
		chains: []chain{
			{name: "base", hook: &hook{num: 1, priority: -110}, rules: []rule{{why: "a"}, {why: "b"}}},
			{name: "other", rules: []rule{{why: "c"}}},
		},
		sets: []set{
			{name: "s", elements: make([]nftables.SetElement, 2)},
			{name: "filled by packets", dynamic: true},
		},
	}
	const mark = "0123456789ab"
	comment := func(why string) []byte { return rule{why: why}.comment(mark) }
	good := func() found {
		return found{
			exists: true,
			chains: map[string]foundChain{
				"base":  {hook: true, num: 1, priority: -110, rules: [][]byte{comment("a"), comment("b")}},
				"other": {rules: [][]byte{comment("c")}},
			},
			sets: map[string]int{"s": 2, "filled by packets": 7},
		}
	}
	alter := func(name string, f func(*foundChain)) func(*found) {
		return func(h *found) { c := h.chains[name]; f(&c); h.chains[name] = c }
	}
	for what, c := range map[string]struct {
		change func(*found)
		want   string
	}{
		"same":               {func(*found) {}, ""},
		"no table":           {func(h *found) { h.exists = false }, "is missing"},
		"chain gone":         {func(h *found) { delete(h.chains, "other") }, "has 1 chains"},
		"chain renamed":      {func(h *found) { h.chains["x"] = h.chains["other"]; delete(h.chains, "other") }, "chain other"},
		"another chain":      {func(h *found) { h.chains["x"] = foundChain{} }, "has 3 chains"},
		"unhooked":           {alter("base", func(c *foundChain) { c.hook = false }), "hooked otherwise"},
		"other hook":         {alter("base", func(c *foundChain) { c.num = 3 }), "hooked elsewhere"},
		"other priority":     {alter("base", func(c *foundChain) { c.priority = 0 }), "hooked elsewhere"},
		"rule gone":          {alter("base", func(c *foundChain) { c.rules = c.rules[:1] }), "has 1 rules"},
		"rule replaced":      {alter("base", func(c *foundChain) { c.rules[1] = nil }), "rule 2"},
		"rule of other life": {alter("other", func(c *foundChain) { c.rules[0] = rule{why: "c"}.comment("ba9876543210") }), "rule 1"},
		"set gone":           {func(h *found) { delete(h.sets, "s") }, "has 1 sets"},
		"set renamed":        {func(h *found) { delete(h.sets, "s"); h.sets["x"] = 2 }, "set s"},
		"element gone":       {func(h *found) { h.sets["s"] = 1 }, "has 1 elements"},
	} {
		h := good()
		c.change(&h)
		got := diff(h, want, digest{chains: map[string]string{"base": mark, "other": mark}})
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: diff says %q, want %q in it", what, got, c.want)
		}
	}
}

func TestDigest(t *testing.T) {
	base := func() []balancer.Service {
		return []balancer.Service{{
			LoadBalancer: "api",
			Frontend:     netip.MustParseAddrPort("192.0.2.10:6443"),
			Backends: []balancer.Backend{
				{Name: "a", Addr: netip.MustParseAddrPort("192.0.2.11:6443"), Weight: 1},
				{Name: "b", Addr: netip.MustParseAddrPort("192.0.2.12:6443"), Weight: 2},
			},
		}}
	}
	digest := func(s []balancer.Service) string {
		d, err := nat(ipv4(), s).digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.whole
	}
	seen := map[string]string{digest(base()): "nothing"}
	for what, change := range map[string]func(*balancer.Service){
		"name":         func(s *balancer.Service) { s.LoadBalancer = "x" },
		"port":         func(s *balancer.Service) { s.Frontend = netip.MustParseAddrPort("192.0.2.10:6444") },
		"scheduler":    func(s *balancer.Service) { s.Scheduler = balancer.WeightedRoundRobin },
		"hash":         func(s *balancer.Service) { s.Scheduler = balancer.SourceHash },
		"random":       func(s *balancer.Service) { s.Scheduler = balancer.Random },
		"backend port": func(s *balancer.Service) { s.Backends[0].Addr = netip.MustParseAddrPort("192.0.2.11:6444") },
		"backend":      func(s *balancer.Service) { s.Backends = s.Backends[:1] },
		"weight zero":  func(s *balancer.Service) { s.Backends[0].Weight = 0 },
		"none":         func(s *balancer.Service) { s.Backends = nil },
	} {
		s := base()
		change(&s[0])
		d := digest(s)
		if other, ok := seen[d]; ok {
			t.Errorf("changing %s gives the digest of changing %s", what, other)
		}
		seen[d] = what
	}
	s := base()
	slices.Reverse(s[0].Backends)
	if _, ok := seen[digest(s)]; !ok {
		t.Error("the order of backends changes the digest")
	}
}

func TestComment(t *testing.T) {
	long := rule{why: strings.Repeat("ü", 200)}.comment("0123456789ab")
	// nft's limit, NFTNL_UDATA_COMMENT_MAXLEN, with the final zero; two
	// bytes are type and length.
	if len(long) > 2+128 || !carries(long, "0123456789ab") {
		t.Errorf("a long comment is %d bytes, or lost its digest", len(long))
	}
	if carries(nil, "0123456789ab") || carries(long, "0123456789ac") {
		t.Error("carries says yes to others")
	}
}

func TestLeft(t *testing.T) {
	ap := netip.MustParseAddrPort
	f, other := ap("192.0.2.10:6443"), ap("192.0.2.10:7443")
	a, b, c := ap("192.0.2.11:6443"), ap("192.0.2.12:6443"), ap("192.0.2.13:6443")
	svc := func(f netip.AddrPort, in, draining []netip.AddrPort) balancer.Service {
		s := balancer.Service{Frontend: f}
		for _, x := range in {
			s.Backends = append(s.Backends, balancer.Backend{Addr: x, Weight: 1})
		}
		for _, x := range draining {
			s.Draining = append(s.Draining, balancer.Backend{Addr: x})
		}
		return s
	}
	type list = []netip.AddrPort
	for what, tc := range map[string]struct {
		before, now []balancer.Service
		want        gone
	}{
		"first Apply":     {nil, []balancer.Service{svc(f, list{a}, nil)}, gone{}},
		"same":            {[]balancer.Service{svc(f, list{a, b}, nil)}, []balancer.Service{svc(f, list{b, a}, nil)}, gone{}},
		"one leaves":      {[]balancer.Service{svc(f, list{a, b}, nil)}, []balancer.Service{svc(f, list{b}, nil)}, gone{f: {a}}},
		"one drains":      {[]balancer.Service{svc(f, list{a, b}, nil)}, []balancer.Service{svc(f, list{b}, list{a})}, gone{}},
		"drained":         {[]balancer.Service{svc(f, list{b}, list{a})}, []balancer.Service{svc(f, list{b}, nil)}, gone{f: {a}}},
		"comes back":      {[]balancer.Service{svc(f, nil, list{a})}, []balancer.Service{svc(f, list{a}, nil)}, gone{}},
		"all leave":       {[]balancer.Service{svc(f, list{a, b}, list{c})}, []balancer.Service{svc(f, nil, nil)}, gone{f: {a, b, c}}},
		"service dropped": {[]balancer.Service{svc(f, list{a}, nil)}, nil, gone{}},
		"of one service":  {[]balancer.Service{svc(f, list{a}, nil), svc(other, list{a}, nil)}, []balancer.Service{svc(f, list{a}, nil), svc(other, list{b}, nil)}, gone{other: {a}}},
	} {
		if got := left(tc.before, tc.now); !maps.EqualFunc(got, tc.want, slices.Equal) {
			t.Errorf("%s: got %v, want %v", what, got, tc.want)
		}
	}
}
