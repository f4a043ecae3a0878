package integration

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/lab"
)

// enslave makes eth0 of a machine the port of a new bridge br-ex with its MAC, which takes its addresses; OVS, libvirt
// and OpenShift do the like.
func enslave(n *lab.Machine, addrs ...*netlink.Addr) error {
	return n.Do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br-ex", HardwareAddr: eth.Attrs().HardwareAddr}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(br); err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(eth, br); err != nil {
			return err
		}
		return moveAddrs(eth, br, addrs)
	})
}

// rename makes eth0 of a machine wan0.
func rename(n *lab.Machine, _ ...*netlink.Addr) error {
	return n.Do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetName(eth, "wan0")
	})
}

// release undoes enslave.
func release(n *lab.Machine, addrs ...*netlink.Addr) error {
	return n.Do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		br, err := netlink.LinkByName("br-ex")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetNoMaster(eth); err != nil {
			return err
		}
		if err := moveAddrs(br, eth, addrs); err != nil {
			return err
		}
		return netlink.LinkDel(br)
	})
}

func moveAddrs(from, to netlink.Link, addrs []*netlink.Addr) error {
	for _, a := range addrs {
		moved := &netlink.Addr{IPNet: a.IPNet}
		if a.IP.To4() == nil {
			moved.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrDel(from, &netlink.Addr{IPNet: a.IPNet}); err != nil {
			return fmt.Errorf("remove %s from %s: %w", a.IPNet, from.Attrs().Name, err)
		}
		if err := netlink.AddrAdd(to, moved); err != nil {
			return fmt.Errorf("add %s to %s: %w", a.IPNet, to.Attrs().Name, err)
		}
	}
	return nil
}

// address is the address of a peer.
func (w *world) address(i int) *netlink.Addr {
	p := w.prefix(11 + i)
	bits := p.Addr().BitLen()
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), bits)}}
}

// TestInterfaceIsFollowed: the holder's interface becomes the port of a bridge, or is renamed. It gives way at once.
// Where the interface was found by the subnet, the node follows its address, and can hold there; where it was named,
// the node says why it is of no use, until it is again.
func TestInterfaceIsFollowed(t *testing.T) {
	for _, k := range []struct {
		family scene.Family
		named  bool
		to     string // the interface that has the address in the end
	}{
		{scene.IPv4, false, "br-ex"}, {scene.IPv6, false, "br-ex"}, {scene.IPv4, true, "br-ex"},
		{scene.IPv4, false, "wan0"},
	} {
		t.Run(fmt.Sprintf("%s/%s/named %v", k.to, k.family, k.named), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, k.family)
			group, own := w.keys(t)
			lb := balances(balancer.Direct)[0]
			w.begin(t, func(i int) string {
				text := w.config("", group, []balance{lb})
				if i == worker {
					text = w.config("", own, []balance{lb})
				}
				if k.named {
					text = "interface: eth0\n" + text
				}
				return text
			})
			w.resolve(t)
			i := w.holder(t)
			change := enslave
			if k.to == "wan0" {
				change = rename
			}
			if err := change(w.nodes[i], w.address(i)); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error {
				if w.holder(t) == i {
					return fmt.Errorf("%s holds although it hears nothing", w.nodes[i].Name)
				}
				return nil
			})
			if k.named {
				const why = "eth0 is a port of the bridge br-ex and hears nothing itself"
				eventually(t, func() error {
					_, err := w.apps[i].status(t.Context())
					if err == nil || !strings.Contains(err.Error(), why) {
						return fmt.Errorf("%s is ready, or not for the reason: %v", w.nodes[i].Name, err)
					}
					return nil
				})
				if log := w.apps[i].log(); strings.Count(log, why) == 0 {
					t.Errorf("the log of %s does not say why", w.nodes[i].Name)
				}
				if err := release(w.nodes[i], w.address(i)); err != nil {
					t.Fatal(err)
				}
			} else {
				eventually(t, func() error {
					s, err := w.apps[i].status(t.Context())
					if err == nil && s.VIPs[0].Interface != k.to {
						err = fmt.Errorf("the interface is %s", s.VIPs[0].Interface)
					}
					return err
				})
			}
			w.ready(t, i)
			// It holds as well as any.
			at := w.apps[w.holder(t)]
			command(t, at.path+".sock", "transfer", w.nodes[i].Name)
			eventually(t, func() error {
				if now := w.holder(t); now != i {
					return fmt.Errorf("%s holds", w.nodes[now].Name)
				}
				return nil
			})
			w.reached(t, w.client, lb)
			w.oneAnswer(t)
		})
	}
}

// TestStartAwaitsTheAddress: a node whose own IPv6 address is still tentative waits for it and starts.
func TestStartAwaitsTheAddress(t *testing.T) {
	w := newWorld(t, scene.IPv6)
	late := w.nodes[2]
	err := late.Do(func() error {
		for _, c := range []string{"all", "eth0"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+c+"/accept_dad", []byte("1"), 0); err != nil {
				return err
			}
		}
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.AddrDel(eth, w.address(2)); err != nil {
			return err
		}
		return netlink.AddrAdd(eth, w.address(2))
	})
	if err != nil {
		t.Fatal(err)
	}
	w.start(t, "", []balance{balances(balancer.Direct)[0]})
	if log := w.apps[2].log(); !strings.Contains(log, "address is tentative") {
		t.Error("it did not wait, or did not say so")
	}
}
