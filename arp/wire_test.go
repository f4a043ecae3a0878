package arp

import (
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

var (
	vip4 = netip.MustParseAddr("192.0.2.10")
	vip6 = netip.MustParseAddr("2001:db8::10")
)

// quietTime is how long we wait for what must not come. A kernel asks three times, once a second; the first request
// would be answered within microseconds.
const quietTime = 1500 * time.Millisecond

// A world is a lan with three peers and a client.
type world struct {
	*lan
	peers  []*node
	client *host
	tap    *tap
}

type familyCase struct {
	name   string
	vip    netip.Addr
	addrs  func(i int) []string // of peer i
	client string
}

func families() []familyCase {
	return []familyCase{
		{
			"IPv4",
			vip4,
			func(i int) []string { return []string{"192.0.2.1" + string(rune('1'+i)) + "/24"} },
			"192.0.2.99/24",
		},
		// Nobody has an IPv4 address.
		{
			"IPv6",
			vip6,
			func(i int) []string { return []string{"2001:db8::1" + string(rune('1'+i)) + "/64"} },
			"2001:db8::99/64",
		},
	}
}

func newWorld(t *testing.T, f familyCase, peers int) *world {
	t.Helper()
	l := newLAN(t)
	w := &world{lan: l, tap: l.tap(), client: l.host(f.client)}
	for i := range peers {
		w.peers = append(w.peers, l.host(f.addrs(i)...).start(0, f.vip))
	}
	return w
}

func eachFamily(t *testing.T, test func(*testing.T, familyCase)) {
	for _, f := range families() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			test(t, f)
		})
	}
}

func TestOnlyTheHolderAnswers(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		w := newWorld(t, f, 3)

		// Bound everywhere, answered nowhere.
		for _, p := range w.peers {
			if got := p.loAddrs(); len(got) != 1 || got[0].addr != f.vip || !got[0].single() || !got[0].marked() {
				t.Fatalf("on lo: %+v", got)
			}
		}
		if mac := w.client.resolve(f.vip, true, quietTime); mac != "" {
			t.Fatalf("%s answers without a holder", mac)
		}
		if got := w.tap.claimants(f.vip, 0); len(got) != 0 {
			t.Fatalf("%v claimed the VIP without a tenure", got)
		}

		for _, p := range w.peers {
			mark := w.tap.mark()
			p.hold()
			// Announced, so that nobody needs to ask, and answered.
			eventually(t, "announcement", func() bool { return len(w.tap.claimants(f.vip, mark)) > 0 })
			if mac := w.client.resolve(f.vip, true, 10*time.Second); mac != p.mac.String() {
				t.Errorf("client found %q, want the holder %s", mac, p.mac)
			}
			if got := w.tap.claimants(f.vip, mark); !slices.Equal(got, []string{p.mac.String()}) {
				t.Errorf("%v claimed the VIP, want only %s", got, p.mac)
			}
			if s := p.status()[0]; !s.Answering || s.Answers == 0 || s.Announcements == 0 || !s.Bound || !s.Carrier ||
				s.MAC != p.mac.String() {
				t.Errorf("status %+v", s)
			}
			p.release()
		}

		mark := w.tap.mark()
		if mac := w.client.resolve(f.vip, true, quietTime); mac != "" {
			t.Errorf("%s answers after the tenure", mac)
		}
		if got := w.tap.claimants(f.vip, mark); len(got) != 0 {
			t.Errorf("%v claimed the VIP after the tenure", got)
		}
		for _, p := range w.peers {
			p.stop()
			if got := p.loAddrs(); len(got) != 0 {
				t.Errorf("left on lo: %+v", got)
			}
		}
	})
}

func TestTakeoverMovesTheClientsEntry(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		w := newWorld(t, f, 2)
		w.peers[0].hold()
		if mac := w.client.resolve(f.vip, true, 10*time.Second); mac != w.peers[0].mac.String() {
			t.Fatalf("client found %q", mac)
		}
		w.peers[0].kill()
		w.peers[1].hold()
		// The client asks nothing: its entry is REACHABLE.
		eventually(t, "client has the new MAC", func() bool {
			var mac string
			w.client.eth0(func(l netlink.Link) error {
				n, err := w.client.neighbour(l.Attrs().Index, f.vip)
				if n != nil {
					mac = n.HardwareAddr.String()
				}
				return err
			})
			return mac == w.peers[1].mac.String()
		})
	})
}

func TestNothingIsSentWithoutLease(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		w := newWorld(t, f, 1)
		p := w.peers[0]
		p.do("nolease")
		p.do("answer")
		if mac := w.client.resolve(f.vip, true, quietTime); mac != "" {
			t.Fatalf("%s answers without a lease", mac)
		}
		if got := w.tap.claimants(f.vip, 0); len(got) != 0 {
			t.Fatalf("%v claimed the VIP without a lease", got)
		}
		if s := p.status()[0]; s.Suppressed == 0 || s.Answers != 0 || s.Announcements != 0 {
			t.Errorf("status %+v", s)
		}
		p.do("lease") // within the same tenure
		if mac := w.client.resolve(f.vip, true, 10*time.Second); mac != p.mac.String() {
			t.Errorf("client found %q once there is a lease", mac)
		}
	})
}

// Requests that queued up while the holder was frozen are not answered if its lease has run out when it thaws.
func TestThawedHolderIsSilent(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		w := newWorld(t, f, 1)
		p := w.peers[0]
		p.hold()
		if mac := w.client.resolve(f.vip, true, 10*time.Second); mac == "" {
			t.Fatal("holder does not answer")
		}
		before := p.status()[0]
		p.do("nolease")
		mark := w.tap.mark()
		p.signal(syscall.SIGSTOP)
		if mac := w.client.resolve(f.vip, true, quietTime); mac != "" {
			t.Errorf("%s answers for a frozen holder", mac)
		}
		p.signal(syscall.SIGCONT)
		eventually(
			t,
			"the queued requests are suppressed",
			func() bool { return p.status()[0].Suppressed > before.Suppressed },
		)
		if got := w.tap.claimants(f.vip, mark); len(got) != 0 {
			t.Errorf("%v claimed the VIP", got)
		}
	})
}

func TestKernelForgetsTheVIPOfADeadNode(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		l := newLAN(t)
		// Renewed after four seconds, so that the machine may stall as long.
		const lifetime = 12
		p := l.host(f.addrs(0)...).start(lifetime*time.Second, f.vip)
		valid := func() uint32 {
			got := p.loAddrs()
			if len(got) != 1 {
				t.Fatalf("on lo of the running node: %+v", got)
			}
			return got[0].valid
		}
		eventually(t, "the lifetime runs", func() bool { return valid() < lifetime-1 })
		eventually(t, "the lifetime is renewed", func() bool { return valid() >= lifetime-1 })
		if s := p.status()[0]; s.Repairs != 0 {
			t.Errorf("%d repairs, want renewals in time", s.Repairs)
		}
		p.kill()
		if got := p.loAddrs(); len(got) != 1 {
			t.Fatalf("on lo right after the kill: %+v", got)
		}
		eventually(t, "the kernel removes the VIP", func() bool { return len(p.loAddrs()) == 0 })
	})
}

func TestDeletedAddressComesBack(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		l := newLAN(t)
		p := l.host(f.addrs(0)...).start(0, f.vip)
		bound := p.loAddrs()
		if len(bound) != 1 {
			t.Fatalf("on lo: %+v", bound)
		}
		within(t, p.ns, func() error { return unbind(bound[0]) })
		eventually(t, "VIP is back", func() bool { return len(p.loAddrs()) == 1 })
		eventually(t, "repair is counted", func() bool { return p.status()[0].Repairs == 1 })
	})
}

func TestLinkDownAndUp(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		w := newWorld(t, f, 1)
		p := w.peers[0]
		p.hold()
		eventually(t, "announcement", func() bool { return len(w.tap.claimants(f.vip, 0)) > 0 })
		p.eth0(netlink.LinkSetDown)
		eventually(t, "carrier is lost", func() bool { return p.do("carrier") == "false" })
		mark := w.tap.mark()
		if mac := w.client.resolve(f.vip, true, quietTime); mac != "" {
			t.Errorf("%s answers over a link that is down", mac)
		}
		p.eth0(netlink.LinkSetUp)
		eventually(t, "carrier returns", func() bool { return p.do("carrier") == "true" })
		eventually(t, "announcement after carrier", func() bool { return len(w.tap.claimants(f.vip, mark)) > 0 })
		if mac := w.client.resolve(f.vip, true, 10*time.Second); mac != p.mac.String() {
			t.Errorf("client found %q", mac)
		}
		p.release()
		p.stop()
	})
}

func TestInterfaceIsMadeAnew(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		w := newWorld(t, f, 1)
		p := w.peers[0]
		p.hold()
		eventually(t, "announcement", func() bool { return len(w.tap.claimants(f.vip, 0)) > 0 })
		old := p.mac.String()
		p.eth0(netlink.LinkDel)
		eventually(t, "carrier is lost", func() bool { return p.do("carrier") == "false" })
		mark := w.tap.mark()
		p.plug(f.addrs(0)...)
		if p.mac.String() == old {
			t.Fatal("the new interface has the old MAC")
		}
		eventually(t, "announcement by the new MAC", func() bool {
			return slices.Equal(w.tap.claimants(f.vip, mark), []string{p.mac.String()})
		})
		if mac := w.client.resolve(f.vip, true, 10*time.Second); mac != p.mac.String() {
			t.Errorf("client found %q", mac)
		}
	})
}

// A host checks a neighbour that it knows by a solicitation to the neighbour's own address (RFC 4861, section 7.3.3;
// Linux does the same for ARP).
func TestUnicastProbesAreAnswered(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		w := newWorld(t, f, 1)
		p := w.peers[0]
		p.hold()
		if mac := w.client.resolve(f.vip, true, 10*time.Second); mac == "" {
			t.Fatal("holder does not answer")
		}
		before := p.status()[0].Answers
		mark := w.tap.mark()
		w.client.eth0(func(l netlink.Link) error {
			return netlink.NeighSet(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, IP: f.vip.AsSlice(), Family: family(f.vip),
				HardwareAddr: p.mac, State: netlink.NUD_PROBE,
			})
		})
		if mac := w.client.resolve(f.vip, false, 10*time.Second); mac != p.mac.String() {
			t.Fatalf("client found %q", mac)
		}
		eventually(t, "answer is counted", func() bool { return p.status()[0].Answers > before })
		unicast := 0
		for _, fr := range w.tap.from(w.client.mac, mark) {
			if fr.Destination.String() == p.mac.String() {
				unicast++
			}
		}
		if unicast == 0 {
			t.Error("the client's request was not unicast")
		}
	})
}

// The owner says nothing until it is asked.
func TestForeignOwnerIsFound(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		w := newWorld(t, f, 1)
		bits := "/24"
		if f.vip.Is6() {
			bits = "/64"
		}
		outsider := w.host(f.vip.String() + bits)
		// Our announcement may have told its kernel of a conflict, but it says nothing unless it is asked.
		p := w.peers[0]
		p.hold()
		eventually(t, "claim is seen", func() bool { return p.status()[0].ForeignClaims > 0 })
		if s := p.status()[0]; s.LastForeignMAC != outsider.mac.String() || s.LastForeign.IsZero() {
			t.Errorf("status %+v, want MAC %s", s, outsider.mac)
		}
	})
}

// Who asks whether the VIP is taken claims nothing, and hears of each other owner once.
func TestAskFindsAnotherOwner(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		w := newWorld(t, f, 1)
		p := w.peers[0]
		if got := p.do("ask"); got != "" {
			t.Errorf("%s has the VIP, want nobody", got)
		}
		bits := "/24"
		if f.vip.Is6() {
			bits = "/64"
		}
		outsider := w.host(f.vip.String() + bits)
		eventually(t, "the owner is found", func() bool { return p.do("ask") == outsider.mac.String() })
		if w.tap.said(f.vip, p.mac, 0) {
			t.Error("the VIP was claimed by who only asks")
		}
		if s := p.status()[0]; s.Answering || s.Announcements > 0 {
			t.Errorf("status %+v", s)
		}
	})
}
