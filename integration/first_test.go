package integration

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/integration/scene"
)

// TestNewGroupAsksFirst: another machine has the VIP, as when the group is to replace keepalived. A new group leaves it
// alone and says so, until the machine gives the address up. An established group is not held up by such a machine.
func TestNewGroupAsksFirst(t *testing.T) {
	for _, family := range []scene.Family{scene.IPv4, scene.IPv6} {
		t.Run(string(family), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, family)
			other, err := w.lab.Machine("keepalived", w.prefix(60))
			if err != nil {
				t.Fatal(err)
			}
			vip := func(change func(netlink.Link, *netlink.Addr) error) {
				t.Helper()
				err := other.Do(func() error {
					eth, err := netlink.LinkByName("eth0")
					if err != nil {
						return err
					}
					bits := w.vip().BitLen()
					return change(eth, &netlink.Addr{
						IPNet: &net.IPNet{IP: w.vip().AsSlice(), Mask: net.CIDRMask(bits, bits)}, Flags: unix.IFA_F_NODAD,
					})
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			vip(netlink.AddrAdd)
			w.resolve(t)
			group, own := w.keys(t)
			lb := balances(balancer.Direct)[0]
			w.launch(t, func(i int) string {
				if i == worker {
					return w.config("", own, []balance{lb})
				}
				return w.config("", group, []balance{lb})
			})
			eventually(t, func() error {
				var err error
				for i := range w.apps[:worker] {
					if _, err = w.apps[i].status(t.Context()); err != nil &&
						strings.Contains(err.Error(), "another machine, "+other.MAC().String()) {
						return nil
					}
				}
				return fmt.Errorf("nobody says that another machine has the address: %v", err)
			})
			time.Sleep(2 * time.Second) // in which a group would announce several times
			for _, mac := range w.resolver.Replies().MACs() {
				if mac != other.MAC().String() {
					t.Errorf("%s answers although another machine has the address", mac)
				}
			}
			if !strings.Contains(w.logs(), "another machine answers for the virtual address") {
				t.Error("no log says it")
			}

			vip(netlink.AddrDel)
			for i := range w.apps {
				w.ready(t, i)
			}
			holder := w.holder(t)
			// The machine begins anew to answer while the holder dies.
			vip(netlink.AddrAdd)
			w.apps[holder].proc.Kill()
			killed := time.Now()
			eventually(t, func() error {
				for _, mac := range w.resolver.Replies().Since(killed).MACs() {
					for _, n := range w.nodes[:worker] {
						if mac == n.MAC().String() {
							return nil
						}
					}
				}
				return fmt.Errorf("no node answers")
			})
		})
	}
}
