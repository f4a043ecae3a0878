package arp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/ndp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ask6 is a solicitation by the client to the VIP's own address.
func ask6(t *testing.T, client *host, dst net.HardwareAddr, hops byte) []byte {
	t.Helper()
	body, err := ndp.MarshalMessageChecksum(&ndp.NeighborSolicitation{TargetAddress: vip6}, client6, vip6)
	if err != nil {
		t.Fatal(err)
	}
	b := []byte{6 << 4, 0, 0, 0, 0, byte(len(body)), icmpv6, hops}
	b = append(append(append(b, client6.AsSlice()...), vip6.AsSlice()...), body...)
	f := ethernet.Frame{Destination: dst, Source: client.mac, EtherType: unix.ETH_P_IPV6, Payload: b}
	frame, err := f.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// answered reports whether p answers frame, while p answers nothing else. It sends the frame again and again, as
// clients do: the first one may come before p has begun to answer.
func answered(t *testing.T, p *node, client *host, frame []byte, wait time.Duration) bool {
	t.Helper()
	before := p.status()[0].Answers
	for end := time.Now().Add(wait); time.Now().Before(end); {
		client.write(frame)
		for again := time.Now().Add(wait / 10); time.Now().Before(again); time.Sleep(10 * time.Millisecond) {
			if p.status()[0].Answers > before {
				return true
			}
		}
	}
	return false
}

func TestUnusualRequestsARP(t *testing.T) {
	w := newWorld(t, families()[0], 1)
	p := w.peers[0]
	p.hold()
	// As while tcpdump runs: the device takes what is for others.
	p.eth0(netlink.SetPromiscOn)
	outsider := net.HardwareAddr{2, 0, 0, 0, 0x77, 0x77}
	ask := func(a arpFields) []byte {
		a.op, a.src, a.smac, a.tip = arp.OperationRequest, w.client.mac, w.client.mac, vip4
		return arpFrame(t, a)
	}
	for _, tt := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"probe", ask(arpFields{sip: netip.IPv4Unspecified()}), true},
		{"unicast", ask(arpFields{sip: client4, dst: p.mac}), true},
		{"of another subnet", ask(arpFields{sip: netip.MustParseAddr("198.51.100.1")}), true},
		{"tagged for VLAN 7", ask(arpFields{sip: client4, vlan: &ethernet.VLAN{ID: 7}}), false},
		{"to another host", ask(arpFields{sip: client4, dst: outsider}), false},
	} {
		wait := 10 * time.Second
		if !tt.want {
			wait = quietTime / 3
		}
		if got := answered(t, p, w.client, tt.frame, wait); got != tt.want {
			t.Errorf("%s: answered %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestUnusualRequestsNDP(t *testing.T) {
	w := newWorld(t, families()[1], 1)
	p := w.peers[0]
	p.hold()
	mark := w.tap.mark()
	// A unicast solicitation may leave out the client's address (RFC 4861, section 4.3).
	if !answered(t, p, w.client, ask6(t, w.client, p.mac, ndp.HopLimit), 10*time.Second) {
		t.Error("a solicitation without link-layer address is not answered")
	}
	eventually(t, "the answer is on the wire", func() bool {
		for _, f := range w.tap.from(p.mac, mark) {
			if _, ok := claimant(f, vip6); ok && f.Destination.String() == w.client.mac.String() {
				return true
			}
		}
		return false
	})
	if answered(t, p, w.client, ask6(t, w.client, p.mac, 64), quietTime/3) {
		t.Error("a solicitation that came over a router is answered (RFC 4861, section 7.1.1)")
	}
}

// A machine that probes the VIP before it takes it learns that the VIP is in use.
func TestDuplicateAddressDetectionIsAnswered(t *testing.T) {
	w := newWorld(t, families()[1], 1)
	w.peers[0].hold()
	eventually(t, "announcement", func() bool { return len(w.tap.claimants(vip6, 0)) > 0 })
	w.client.eth0(func(l netlink.Link) error {
		if err := writeSysctl("net/ipv6/conf/all/accept_dad", "1"); err != nil {
			return err
		}
		if err := writeSysctl("net/ipv6/conf/eth0/accept_dad", "1"); err != nil {
			return err
		}
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: vip6.AsSlice(), Mask: net.CIDRMask(64, 128)}})
	})
	eventually(t, "the kernel of the other machine gives the address up", func() bool {
		failed := false
		w.client.eth0(func(l netlink.Link) error {
			all, err := netlink.AddrList(l, netlink.FAMILY_V6)
			for _, a := range all {
				failed = failed || a.IP.Equal(vip6.AsSlice()) && a.Flags&unix.IFA_F_DADFAILED != 0
			}
			return err
		})
		return failed
	})
}

// An unsolicited claim is answered by an announcement, but not as often as it comes.
func TestForeignClaimIsDefended(t *testing.T) {
	w := newWorld(t, families()[0], 1)
	p := w.peers[0]
	p.hold()
	// Wait for the end of the burst, so that no other announcement comes.
	eventually(t, "the burst is over", func() bool { return p.status()[0].Announcements >= uint64(2*len(burst())) })
	before := p.status()[0]
	st := &arpSocket{mac: w.client.mac}
	for range 20 {
		frame, err := st.marshal(packet{kind: announceReply, vip: vip4})
		if err != nil {
			t.Fatal(err)
		}
		w.client.write(frame)
	}
	eventually(t, "claims are counted", func() bool { return p.status()[0].ForeignClaims == before.ForeignClaims+20 })
	if got := p.status()[0].Announcements - before.Announcements; got != 2 {
		t.Errorf("%d packets announced in defence, want the two of one announcement", got)
	}
}
