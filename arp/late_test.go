package arp

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/ndp"
	rawpacket "github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
)

// A form is one way to ask for a VIP, or to make its holder speak.
type form struct {
	name  string
	frame []byte
	// silent says that the holder owes no answer to each.
	silent bool
}

// everyForm lists the ways in which the client asks a holder for a VIP.
func everyForm(t *testing.T, vip netip.Addr, client *host, holder net.HardwareAddr) []form {
	t.Helper()
	if vip.Is4() {
		ask := func(op arp.Operation, sender netip.Addr, dst net.HardwareAddr) []byte {
			return arpFrame(t, arpFields{op: op, src: client.mac, smac: client.mac, sip: sender, tip: vip, dst: dst})
		}
		return []form{
			{"request", ask(arp.OperationRequest, client4, nil), false},
			{"unicast request", ask(arp.OperationRequest, client4, holder), false},
			{"probe", ask(arp.OperationRequest, netip.IPv4Unspecified(), nil), false},
			{"unicast probe", ask(arp.OperationRequest, netip.IPv4Unspecified(), holder), false},
			{"request from an address that nobody has",
				ask(arp.OperationRequest, netip.MustParseAddr("192.0.2.77"), holder), false},
			{"gratuitous request", ask(arp.OperationRequest, vip, nil), true},
			{"gratuitous reply", ask(arp.OperationReply, vip, nil), true},
		}
	}
	group, err := ndp.SolicitedNodeMulticast(vip)
	if err != nil {
		t.Fatal(err)
	}
	g := group.As16()
	groupMAC := net.HardwareAddr{0x33, 0x33, g[12], g[13], g[14], g[15]}
	named := []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: client.mac}}
	claimed := []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: client.mac}}
	nobody := netip.MustParseAddr("2001:db8::77")
	ask := func(src, dst netip.Addr, to net.HardwareAddr, options []ndp.Option) []byte {
		return ndpFrame(t, &ndp.NeighborSolicitation{TargetAddress: vip, Options: options}, src, dst, client.mac, to)
	}
	return []form{
		{"multicast", ask(client6, group, groupMAC, named), false},
		{"multicast without link-layer address", ask(client6, group, groupMAC, nil), false},
		{"unicast", ask(client6, vip, holder, named), false},
		{"unicast without link-layer address", ask(client6, vip, holder, nil), false},
		{"unicast without link-layer address, from an address that nobody has", ask(nobody, vip, holder, nil), false},
		{"duplicate address detection", ask(netip.IPv6Unspecified(), group, groupMAC, nil), false},
		{"claim", ndpFrame(t, &ndp.NeighborAdvertisement{Override: true, TargetAddress: vip, Options: claimed},
			vip, netip.IPv6LinkLocalAllNodes(), client.mac, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}), true},
	}
}

// keepAsking sends all forms again and again until the test or stop ends it.
func keepAsking(t *testing.T, client *host, forms []form, every time.Duration) (stop func()) {
	t.Helper()
	var c *rawpacket.Conn
	within(t, client.ns, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err = rawpacket.Listen(ifi, rawpacket.Raw, 0, nil)
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer c.Close()
		for i := 0; ctx.Err() == nil; i++ {
			frame := forms[i%len(forms)].frame
			if _, err := c.WriteTo(frame, &rawpacket.Addr{HardwareAddr: net.HardwareAddr(frame[:6])}); err != nil {
				t.Errorf("ask: %v", err)
				return
			}
			time.Sleep(every)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// said tells whether mac claimed vip on the link since mark.
func (tp *tap) said(vip netip.Addr, mac net.HardwareAddr, mark int) bool {
	tp.t.Helper()
	for _, f := range tp.from(mac, mark) {
		if _, ok := claimant(f, vip); ok {
			return true
		}
	}
	return false
}

// queuePatience is longer than the kernel keeps a packet whose receiver's link-layer address it looks for: three
// requests, one a second.
const queuePatience = 4 * time.Second

// Every form of a question is answered at once, by a frame to the machine that asked, and nothing is left for later:
// not by a process that was killed in the midst of all of them, and not by one that was frozen and goes on when its
// lease is over.
func TestNothingIsSentLate(t *testing.T) {
	for _, end := range []struct {
		name string
		do   func(p *node, tp *tap) (mark int)
	}{
		{"killed", func(p *node, tp *tap) int {
			p.kill() // waits until the process is gone
			return tp.mark()
		}},
		{"frozen", func(p *node, tp *tap) int {
			p.do("lease 300ms")
			p.signal(syscall.SIGSTOP)
			time.Sleep(400 * time.Millisecond)
			mark := tp.mark()
			p.signal(syscall.SIGCONT)
			eventually(p.lan.t, "what had been asked is suppressed", func() bool { return p.status()[0].Suppressed > 0 })
			return mark
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, f familyCase) {
				w := newWorld(t, f, 1)
				p := w.peers[0]
				p.hold()
				forms := everyForm(t, f.vip, w.client, p.mac)
				for _, form := range forms {
					if !form.silent && !answered(t, p, w.client, form.frame, 10*time.Second) {
						t.Errorf("%s: no answer", form.name)
					}
				}
				stop := keepAsking(t, w.client, forms, time.Millisecond)
				time.Sleep(100 * time.Millisecond)
				mark := end.do(p, w.tap)
				stop()
				// Now the address that nobody had answers.
				if f.vip.Is6() {
					w.client.eth0(func(l netlink.Link) error {
						a, err := netlink.ParseAddr("2001:db8::77/64")
						if err != nil {
							return err
						}
						return netlink.AddrAdd(l, a)
					})
				}
				time.Sleep(queuePatience)
				if w.tap.said(f.vip, p.mac, mark) {
					t.Error("the VIP was claimed after the end")
				}
			})
		})
	}
}

// What waits for a slow link on the holder delays no answer, and none waits there: it would leave after the lease.
func TestNothingWaitsForTheLink(t *testing.T) {
	eachFamily(t, func(t *testing.T, f familyCase) {
		w := newWorld(t, f, 1)
		p := w.peers[0]
		p.hold()
		forms := everyForm(t, f.vip, w.client, p.mac)
		if !answered(t, p, w.client, forms[0].frame, 10*time.Second) {
			t.Fatal("no answer")
		}
		const backlog = 3 * time.Second
		const rate = 10_000 // bytes per second
		p.eth0(func(l netlink.Link) error {
			return netlink.QdiscAdd(&netlink.Tbf{
				QdiscAttrs: netlink.QdiscAttrs{
					LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
				},
				Rate: rate, Buffer: netlink.Xmittime(rate, 2000), Limit: 1 << 20,
			})
		})
		bulk := ethernet.Frame{
			Destination: w.client.mac, Source: p.mac, EtherType: etherTypeSync + 1, Payload: make([]byte, 1000),
		}
		frame, err := bulk.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		for range int(backlog.Seconds()*rate) / len(frame) {
			p.write(frame)
		}
		before := p.status()[0].Answers
		for _, form := range forms {
			w.client.write(form.frame)
		}
		eventually(t, "an answer is sent", func() bool { return p.status()[0].Answers > before })
		p.kill()
		mark := w.tap.mark()
		time.Sleep(backlog + time.Second)
		if len(w.tap.from(p.mac, mark)) == 0 {
			t.Fatal("the link was not slow: nothing waited there")
		}
		if w.tap.said(f.vip, p.mac, mark) {
			t.Error("the VIP was claimed after the holder's end")
		}
	})
}
