package integration

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestTakeover changes keepalived and haproxy over, by the commands of the guide, while clients ask and have
// connections open, and back.
func TestTakeover(t *testing.T) {
	guidesOnly(t)
	for _, program := range []string{"keepalived", "haproxy"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v: integration/setup.sh test installs it", err)
		}
	}
	guide := readGuide(t, "migration.md")
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			s := newStreet(t, family, 3)
			for i, b := range s.boxes {
				b.write(t, "etc/keepalived/keepalived.conf", s.keepalived(i), 0o644)
				b.write(t, "etc/haproxy/haproxy.cfg", s.haproxy(), 0o644)
			}
			runAll(t, "systemctl enable --now haproxy keepalived", s.boxes...)
			vip := s.targets()[0]
			for i, b := range s.boxes { // whoever starts first has the address until the master takes it
				eventually(t, func() error {
					said, err := b.try("ip address show dev eth0")
					if has := strings.Contains(said, vip.Addr().String()+"/"); err == nil && has != (i == 0) {
						err = fmt.Errorf("keepalived gives the address to another than the first: %s: %s", b.Name, said)
					}
					return err
				})
			}
			m := s.watch(t)

			first, rest := s.boxes[0], s.boxes[1:]
			first.run(t, guide["convert"])
			first.run(t, guide["convert, check"])
			first.run(t, guide["takeover, the first box"])
			first.patient(t, "home/config.yaml")
			first.run(t, guide["takeover, the first box starts"])
			first.hand(t, "home/config.yaml", "config.yaml", rest...)
			first.hand(t, "etc/appliance/group.key", "group.key", rest...)
			runAll(t, guide["takeover, the other boxes"], rest...)
			first.waits(t, "another program has "+vip.Addr().String()+" on eth0")
			for _, b := range rest {
				b.waits(t, "another machine")
			}
			m.goOn(t, "the start beside keepalived")
			runAll(t, guide["takeover, boxes without the address"], rest...)
			said := first.run(t, guide["takeover, the box with the address"])
			m.isOver(t, s, first, said)
			m.open.Close()
			runAll(t, guide["takeover, haproxy"], s.boxes...)
			time.Sleep(time.Second)
			m.clients.noticed(t, "the takeover")

			runAll(t, guide["takeover, back"], s.boxes...)
			if err := s.client.WaitPort(patient(t), vip); err != nil {
				t.Fatal(err)
			}
			if _, err := first.status(t.Context()); err == nil {
				t.Error("the appliance still runs")
			}
		})
	}
}

// waits waits until a new group is complete, and the box leaves the address to another program for this reason, if it
// is the one to answer.
func (b *box) waits(t *testing.T, why string) {
	t.Helper()
	eventually(t, func() error {
		st, err := b.status(t.Context())
		if err != nil {
			return err
		}
		for _, p := range st.Group.Peers {
			if !p.Connected && !p.Self {
				return fmt.Errorf("%s does not reach %s", b.Name, p.ID)
			}
		}
		if said := strings.Join(st.NotReadyTexts(), "; "); st.Holder == st.ID && !strings.Contains(said, why) {
			return fmt.Errorf("%s waits for %q, not for %q", b.Name, said, why)
		}
		if st.Holder == "" {
			return fmt.Errorf("%s knows of no leader", b.Name)
		}
		return nil
	})
}

// keepalived is what a box had before: the first of them is the master.
func (s *street) keepalived(i int) string {
	var peers []string
	for j := range s.boxes {
		if j != i {
			peers = append(peers, s.addrs(2 + j)[0].Addr().String())
		}
	}
	version := ""
	if s.addrs(10)[0].Addr().Is6() {
		version = "global_defs {\n    vrrp_version 3\n}\n"
	}
	return version + fmt.Sprintf(`vrrp_instance VI_1 {
    state %s
    interface eth0
    virtual_router_id 51
    priority %d
    advert_int 1
    unicast_src_ip %s
    unicast_peer {
        %s
    }
    virtual_ipaddress {
        %s
    }
}
`, map[bool]string{true: "MASTER", false: "BACKUP"}[i == 0], 101-i, s.addrs(2 + i)[0].Addr(),
		strings.Join(peers, "\n        "), s.addrs(10)[0].Addr())
}

func (s *street) haproxy() string {
	var b strings.Builder
	any, timeouts := netip.IPv6Unspecified(), "    timeout client 10m\n    timeout server 10m\n"
	if s.family == "IPv4" {
		any, timeouts = netip.IPv4Unspecified(), "" // so that another data plane than user space serves
	}
	fmt.Fprintf(&b, `global
    maxconn 4000
defaults
    mode tcp
    timeout connect 5s
%sfrontend apiserver
    bind %s
    default_backend apiserver
backend apiserver
    balance roundrobin
`, timeouts, netip.AddrPortFrom(any, 6443))
	for i := range s.machines {
		fmt.Fprintf(&b, "    server s%d %s check\n", i+1, netip.AddrPortFrom(s.addrs(11 + i)[0].Addr(), 6443))
	}
	return b.String()
}
