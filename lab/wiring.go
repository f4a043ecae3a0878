package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
)

// The two bridges of a lab.
const (
	near = "near"
	far  = "far"
)

// wiring is the namespace with the bridges and the bridge-side ends of all
// links, and the filter between them.
type wiring struct {
	*threads

	mu   sync.Mutex
	cuts map[cut]bool
}

// cut is one direction between two bridge ports, by interface index, in
// which frames are dropped.
type cut struct{ from, to int }

func newWiring() (*wiring, error) {
	t, err := newThreads()
	if err != nil {
		return nil, err
	}
	w := &wiring{threads: t, cuts: map[cut]bool{}}
	err = t.do(func() error {
		// The bridges are switches, not hosts: they must not send
		// router solicitations or multicast reports of their own.
		if err := sysctl("ipv6/conf/all/disable_ipv6", "1"); err != nil {
			return err
		}
		if err := sysctl("ipv6/conf/default/disable_ipv6", "1"); err != nil {
			return err
		}
		// Nor do switches look at what they carry as a firewall would
		// (br_netfilter, where the kernel has it).
		for _, key := range []string{"arptables", "iptables", "ip6tables"} {
			if err := sysctl("bridge/bridge-nf-call-"+key, "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		for _, name := range []string{near, far} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			// Without a querier on the link, snooping would in time
			// stop neighbour solicitations, which are multicast.
			snooping := false
			br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
			if err := netlink.LinkAdd(br); err != nil {
				return fmt.Errorf("add bridge %s: %w", name, err)
			}
			if err := netlink.LinkSetUp(br); err != nil {
				return fmt.Errorf("set bridge %s up: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		t.close()
		return nil, fmt.Errorf("lab: wire the bridges: %w", err)
	}
	return w, nil
}

// plug makes a veth pair from the named bridge into the namespace of t, where
// its end is called inside. It returns the index of the bridge's port.
func (w *wiring) plug(bridge, name string, t *threads, inside string, mac net.HardwareAddr) (int, error) {
	index := 0
	err := w.do(func() error {
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", bridge, err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		attrs.MasterIndex = br.Attrs().Index
		veth := &netlink.Veth{
			LinkAttrs:        attrs,
			PeerName:         inside,
			PeerHardwareAddr: mac,
			PeerNamespace:    netlink.NsFd(int(t.ns)),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add link %s: %w", name, err)
		}
		if err := netlink.LinkSetUp(veth); err != nil {
			return fmt.Errorf("set link %s up: %w", name, err)
		}
		index = veth.Attrs().Index
		return nil
	})
	return index, err
}

// carrier pulls the cable out of a port of the bridge, or puts it in.
func (w *wiring) carrier(index int, up bool) error {
	return w.do(func() error {
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

// change edits the set of cuts and puts it in force in one transaction.
func (w *wiring) change(edit func(cuts map[cut]bool)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	edit(w.cuts)
	return w.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "cuts", Family: nftables.TableFamilyBridge})
		chain := c.AddChain(&nftables.Chain{
			Name:     "forward",
			Table:    table,
			Type:     nftables.ChainTypeFilter,
			Hooknum:  nftables.ChainHookForward,
			Priority: nftables.ChainPriorityFilter,
		})
		c.FlushChain(chain)
		// Ports are compared, not MAC addresses: the hook runs once for
		// each port that a broadcast is flooded to.
		for k := range w.cuts {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(k.from))},
				&expr.Meta{Key: expr.MetaKeyOIF, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(k.to))},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("lab: filter between bridge ports (the kernel needs nf_tables' bridge family): %w", err)
		}
		return nil
	})
}

// sysctl writes one of the network settings of the calling thread's
// namespace.
func sysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set net/%s to %s (is /proc/sys writable?): %w", key, value, err)
	}
	return nil
}
