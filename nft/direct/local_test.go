package direct

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// tracked is the number of connections to the service's port that conntrack knows on
// h.
func (h *host) tracked() (n int) {
	h.t.Helper()
	h.do(func() error {
		for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				return err
			}
			for _, f := range flows {
				if f.Forward.DstPort == servicePort {
					n++
				}
			}
		}
		return nil
	})
	return n
}

// translates says whether h has NAT rules.
func (h *host) translates() (yes bool) {
	h.t.Helper()
	h.do(func() (err error) {
		yes, err = hasLocalRules()
		return err
	})
	return yes
}

// Where every node serves its own clients, no node tracks connections. The rules that
// need this come when a client has to be translated to another node, do not disturb
// open connections, and stay as long as translated connections may.
func TestDirectKeepsNoTableOfConnections(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{0, 1, 2}, nil)
	own := make(map[netip.AddrPort]*conn)
	away := make(map[netip.AddrPort]*conn)
	dial := func(t *testing.T, f netip.AddrPort) *conn {
		t.Helper()
		c, err := dialFrom(l.nodes[0], f)
		if err != nil {
			t.Fatalf("a client on node1 of %v: %v", f, err)
		}
		l.t.Cleanup(func() { c.Close() })
		return c
	}
	eachFrontend(t, func(t *testing.T, f netip.AddrPort) {
		for range 20 {
			if err := l.dial(f).echo([]byte("hello")); err != nil {
				t.Error(err)
			}
		}
		own[f] = dial(t, f)
	})
	for _, n := range l.nodes {
		if tracked := n.tracked(); tracked > 0 || n.translates() {
			t.Errorf("%s tracks %d connections, and translates: %v", n.name, tracked, n.translates())
		}
	}

	l.apply([]int{1, 2}, []int{0})
	eachFrontend(t, func(t *testing.T, f netip.AddrPort) {
		if err := own[f].echo([]byte("hello")); err != nil {
			t.Errorf("the connection from node1 to its own draining backend: %v", err)
		}
		if away[f] = dial(t, f); away[f].server == "node1" {
			t.Errorf("a client on node1, whose backend drains, was served there")
		}
	})
	if l.nodes[0].tracked() == 0 || !l.nodes[0].translates() {
		t.Error("node1 leads its clients elsewhere without tracking them: the test sees nothing")
	}

	// The backend is back, and then the process restarts.
	for _, life := range []string{"the same", "another"} {
		if life == "another" {
			l.planes[0] = l.plane(l.nodes[0], nil)
			l.usable()
		}
		l.applyAt(0, []int{0, 1, 2}, nil)
		eachFrontend(t, func(t *testing.T, f netip.AddrPort) {
			if err := away[f].echo([]byte("hello")); err != nil {
				t.Errorf("in %s life, the connection to %s: %v", life, away[f].server, err)
			}
			if c := dial(t, f); c.server != "node1" {
				t.Errorf("in %s life, a client on node1 was served by %s", life, c.server)
			}
		})
	}

	l.planes[0].natNeeded = time.Now().Add(-natFor)
	l.applyAt(0, []int{0, 1, 2}, nil)
	if l.nodes[0].translates() {
		t.Error("the rules that translate stay though nothing needs them")
	}
	eachFrontend(t, func(t *testing.T, f netip.AddrPort) {
		if c := dial(t, f); c.server != "node1" {
			t.Errorf("without NAT, a client on node1 was served by %s", c.server)
		}
		if err := own[f].echo([]byte("hello")); err != nil {
			t.Errorf("without NAT, the connection to the node's own backend: %v", err)
		}
	})
}
