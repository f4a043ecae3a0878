package pathprobe

import (
	"context"
	"crypto/rand"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"

	"appliance/flood"
)

// cable makes a namespace for the calling goroutine's thread, which ends with it, and in it a cable from "here" to
// "there". Its ends know each other's MAC addresses.
func cable(here, there netip.Addr) (macs [2]net.HardwareAddr, err error) {
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		return macs, err
	}
	defer ns.Close()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "here"}, PeerName: "there"}); err != nil {
		return macs, err
	}
	var index [2]int
	for i, name := range []string{"here", "there"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return macs, err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return macs, err
		}
		macs[i], index[i] = l.Attrs().HardwareAddr, l.Attrs().Index
	}
	for i, addr := range []netip.Addr{there, here} {
		err := netlink.NeighAdd(&netlink.Neigh{LinkIndex: index[i], State: netlink.NUD_PERMANENT, IP: addr.AsSlice(),
			HardwareAddr: macs[1-i]})
		if err != nil {
			return macs, err
		}
	}
	return macs, nil
}

// Frames that look like probes come by the ten thousand. The kernel drops them, unless they come in the name of a node,
// and that node is heard meanwhile. What passes is counted in frames, as time depends on the machine.
func TestFloodsOfProbesStopInTheKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	const rate = 50_000
	f := frontends[0]
	nodes := []Node{
		{ID: "here", Addrs: []netip.Addr{netip.MustParseAddr("10.77.0.11")}},
		{ID: "there", Addrs: []netip.Addr{netip.MustParseAddr("10.77.0.12")}},
	}
	prober := func(i int) *EthernetProber {
		p := New(Config{Interfaces: map[netip.Addr]string{f.Addr(): nodes[i].ID}, Nodes: nodes, Self: nodes[i].ID,
			Keys: [][]byte{[]byte("key")}, Every: 10 * time.Millisecond})
		p.Want([]netip.AddrPort{f})
		return p
	}
	p, peer := prober(0), prober(1)
	sockets := make(map[string]probeSocket)
	var g, receivers errgroup.Group
	ctx, cancel := context.WithCancel(t.Context())
	var macs [2]net.HardwareAddr
	var attacker *packet.Conn
	built := make(chan error, 1)
	g.Go(func() error { // in the namespace
		var err error
		if macs, err = cable(nodes[0].Addrs[0], nodes[1].Addrs[0]); err == nil {
			err = p.listen(sockets, &receivers, func() {})
		}
		if err == nil {
			var link *net.Interface
			if link, err = net.InterfaceByName("there"); err == nil {
				attacker, err = packet.Listen(link, packet.Raw, 0, nil)
			}
		}
		built <- err
		if err != nil {
			return nil
		}
		return peer.Run(ctx, func() {})
	})
	defer func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		for _, s := range sockets {
			s.conn.Close()
		}
		receivers.Wait()
		if attacker != nil {
			attacker.Close()
		}
	}()
	if err := <-built; err != nil {
		t.Fatal(err)
	}
	// sighting is what p knows of its peer.
	sighting := func() sighting {
		p.mu.Lock()
		defer p.mu.Unlock()
		if s := p.senders[senderID{"here", nodes[1].Addrs[0]}]; s != nil {
			return *s
		}
		return sighting{}
	}
	for end := time.Now().Add(time.Minute); sighting().seen.last < 10; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the peer is not heard")
		}
	}
	for _, tt := range []struct {
		name   string
		source func(mac []byte)
		most   int // frames of a second that may pass; 0: any
	}{
		{"from one machine", func(mac []byte) { copy(mac, "\x02\x00\x00\x00\x00\x66") }, 6 * flood.SourceMax},
		{"from forged machines", func(mac []byte) {
			_, _ = rand.Read(mac)
			mac[0] = mac[0]&^1 | 2
		}, 30 * flood.StrangersMax},
		{"in the peer's name", func(mac []byte) { copy(mac, macs[1]) }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := testProbe(f)
			m.from, m.to, m.process, m.number = nodes[1].Addrs[0], nodes[0].Addrs[0], process{1}, 1
			frame := m.frame([6]byte(macs[1]), [6]byte(macs[0]), []byte("another key"))
			if _, err := sockets["here"].conn.Stats(); err != nil { // which begins anew
				t.Fatal(err)
			}
			to := &packet.Addr{HardwareAddr: macs[0]}
			before, began, sent := peer.sent.Load(), time.Now(), 0
			// The peer sends more than what its window holds, while the filter is there.
			for time.Since(began) < 700*time.Millisecond || peer.sent.Load()-before < 200 {
				if time.Since(began) > time.Minute {
					t.Fatal("the peer sends nothing")
				}
				due := min(int(time.Since(began).Seconds()*rate), sent+50) // more overflows the kernel before any filter
				for ; sent < due; sent++ {
					tt.source(frame[6:12])
					if _, err := attacker.WriteTo(frame, to); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(200 * time.Microsecond)
			}
			seconds := time.Since(began).Seconds()
			s := sighting()
			stats, err := sockets["here"].conn.Stats()
			if err != nil {
				t.Fatal(err)
			}
			received, own := int(stats.Packets), int(peer.sent.Load()-before)
			heard := bits.OnesCount64(s.seen.seen)
			t.Logf("%.0f frames a second; %d frames of %d pass the filter, with %d of the peer's; it misses %d of its last 64",
				float64(sent)/seconds, received, sent+own, own, 64-heard)
			passed, most := received-own, int(float64(tt.most)*(seconds+1))+100
			if tt.most > 0 && passed > most && passed > sent/10 {
				t.Errorf("%d frames of %d pass the filter, want %d", passed, sent, most)
			}
			if s.seen.last < before+100 || heard < 48 {
				t.Errorf("the peer has sent %d probes before and %d meanwhile; the last that is heard is %d, and %d of the "+
					"64 up to it", before, own, s.seen.last, heard)
			}
		})
	}
}
