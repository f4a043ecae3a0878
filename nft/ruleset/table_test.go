package ruleset

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func TestErrorsNameWhatIsMissing(t *testing.T) {
	table := Table{Family: nftables.TableFamilyIPv4, Name: NATTable}
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
		_, _, err = exists(conn, table)
		if err == nil {
			t.Fatalf("%v is lost", errno)
		}
		err = explain(err, table)
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), "ip appliance_nat") {
			t.Errorf("%v: %q does not say %q", errno, err, want)
		}
	}
	if explain(nil, Table{}) != nil {
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
	want := Table{
		Family:   nftables.TableFamilyIPv4,
		Name:     "t",
		Counters: []string{"seen", "new"},
		Chains:   []Chain{{Name: "c", Rules: []Rule{NewRule("w", []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}})}}},
		Sets:     []Set{{Name: "s", Key: nftables.TypeIPAddr, Elements: []nftables.SetElement{{Key: []byte{10, 0, 0, 1}}}}},
	}
	const count = 0x1122334455667788
	if err := replace(conn, want, Digest{}, kernelTable{counters: map[string]uint64{"seen": count}}); err != nil {
		t.Fatal(err)
	}
	order := []string{"begin", "add table", "delete table", "add table", "add counter", "add chain", "add set",
		"add elements", "add rule", "end"}
	if batches != 1 || !slices.Equal(got, order) {
		t.Errorf("%d batches %q, want one of %q", batches, got, order)
	}
	if !bytes.Contains(counter, binary.BigEndian.AppendUint64(nil, count)) {
		t.Errorf("the counter starts anew: % x", counter)
	}
}

func TestDiff(t *testing.T) {
	want := Table{
		Family: nftables.TableFamilyINet,
		Name:   "t",
		Chains: []Chain{
			{Name: "base", Hook: &BaseHook{Num: 1, Priority: -110}, Rules: []Rule{NewRule("a"), NewRule("b")}},
			{Name: "other", Rules: []Rule{NewRule("c")}},
		},
		Sets: []Set{
			{Name: "s", Elements: make([]nftables.SetElement, 2)},
			{Name: "filled by packets", Dynamic: true},
		},
	}
	const mark = "0123456789ab"
	comment := func(why string) []byte { return NewRule(why).comment(mark) }
	good := func() kernelTable {
		return kernelTable{
			exists: true,
			chains: map[string]kernelChain{
				"base":  {hook: true, num: 1, priority: -110, rules: [][]byte{comment("a"), comment("b")}},
				"other": {rules: [][]byte{comment("c")}},
			},
			sets: map[string]int{"s": 2, "filled by packets": 7},
		}
	}
	alter := func(name string, f func(*kernelChain)) func(*kernelTable) {
		return func(h *kernelTable) { c := h.chains[name]; f(&c); h.chains[name] = c }
	}
	for what, c := range map[string]struct {
		change func(*kernelTable)
		want   string
	}{
		"same":       {func(*kernelTable) {}, ""},
		"no table":   {func(h *kernelTable) { h.exists = false }, "is missing"},
		"chain gone": {func(h *kernelTable) { delete(h.chains, "other") }, "has 1 chains"},
		"chain renamed": {func(h *kernelTable) { h.chains["x"] = h.chains["other"]; delete(h.chains, "other") },
			"chain other"},
		"another chain":  {func(h *kernelTable) { h.chains["x"] = kernelChain{} }, "has 3 chains"},
		"unhooked":       {alter("base", func(c *kernelChain) { c.hook = false }), "hooked otherwise"},
		"other hook":     {alter("base", func(c *kernelChain) { c.num = 3 }), "hooked elsewhere"},
		"other priority": {alter("base", func(c *kernelChain) { c.priority = 0 }), "hooked elsewhere"},
		"rule gone":      {alter("base", func(c *kernelChain) { c.rules = c.rules[:1] }), "has 1 rules"},
		"rule replaced":  {alter("base", func(c *kernelChain) { c.rules[1] = nil }), "rule 2"},
		"another process' rule": {alter("other", func(c *kernelChain) { c.rules[0] = NewRule("c").comment("ba9876543210") }),
			"rule 1"},
		"set gone":     {func(h *kernelTable) { delete(h.sets, "s") }, "has 1 sets"},
		"set renamed":  {func(h *kernelTable) { delete(h.sets, "s"); h.sets["x"] = 2 }, "set s"},
		"element gone": {func(h *kernelTable) { h.sets["s"] = 1 }, "has 1 elements"},
	} {
		h := good()
		c.change(&h)
		got := diff(h, want, Digest{Chains: map[string]string{"base": mark, "other": mark}})
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: diff says %q, want %q in it", what, got, c.want)
		}
	}
}

func TestComment(t *testing.T) {
	long := NewRule(strings.Repeat("ü", 200)).comment("0123456789ab")
	// nft's limit, NFTNL_UDATA_COMMENT_MAXLEN, with the final zero; two
	// bytes are type and length.
	if len(long) > 2+128 || !carries(long, "0123456789ab") {
		t.Errorf("a long comment is %d bytes, or lost its digest", len(long))
	}
	if carries(nil, "0123456789ab") || carries(long, "0123456789ac") {
		t.Error("carries says yes to others")
	}
}
