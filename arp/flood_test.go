package arp

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ndp"
	rawpacket "github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"appliance/flood"
)

// offSourceMAC is where a frame says who sends it.
const offSourceMAC = 6

// A barrage is what a machine on the link sends as fast as it is told.
type barrage struct {
	name  string
	frame []byte
	// change makes each frame another; nil leaves it.
	change func(frame []byte)
	// most is how many frames of a second may pass the filter.
	most int
}

func floods(t *testing.T, vip netip.Addr, attacker, holder net.HardwareAddr) []barrage {
	t.Helper()
	randomly := func(from, to int) func([]byte) {
		return func(f []byte) {
			_, _ = rand.Read(f[from:to])
			if from == offSourceMAC {
				f[from] = f[from]&^1 | 2
			}
		}
	}
	few := 6 * flood.SourceMax
	if vip.Is4() {
		ask := func(a arpFields) []byte { a.src, a.dst = attacker, holder; return arpFrame(t, a) }
		q := arpFields{op: arp.OperationRequest, smac: attacker, sip: client4, tip: vip}
		other, claim := q, q
		other.tip = netip.MustParseAddr("192.0.2.200")
		claim.sip = vip
		return []barrage{
			{"requests", ask(q), randomly(offSenderIP+2, offSenderIP+4), few},
			{"requests from forged machines", ask(q), randomly(offSourceMAC, offSourceMAC+6), 30 * flood.StrangersMax},
			{"requests for others", ask(other), nil, 0},
			{"claims of ever other machines", ask(claim), randomly(ethernetHeaderLen+9, ethernetHeaderLen+14), few},
			{"junk", ask(q), randomly(ethernetHeaderLen, ethernetHeaderLen+8), few},
		}
	}
	named := []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: attacker}}
	other := netip.MustParseAddr("2001:db8::200")
	frame := func(m ndp.Message, dst netip.Addr) []byte { return ndpFrame(t, m, client6, dst, attacker, holder) }
	return []barrage{
		{"solicitations", frame(&ndp.NeighborSolicitation{TargetAddress: vip, Options: named}, vip), nil, few},
		{"solicitations from forged machines", frame(&ndp.NeighborSolicitation{TargetAddress: vip}, vip),
			randomly(offSourceMAC, offSourceMAC+6), 30 * flood.StrangersMax},
		{"solicitations of others",
			frame(&ndp.NeighborSolicitation{TargetAddress: other, Options: named}, other), nil, 0},
		{"claims", frame(&ndp.NeighborAdvertisement{TargetAddress: vip, Options: []ndp.Option{
			&ndp.LinkLayerAddress{Direction: ndp.Target, Addr: attacker}}}, vip), nil, few},
		{"junk", frame(&ndp.NeighborSolicitation{TargetAddress: vip, Options: named}, vip),
			randomly(offICMP, offICMP+8), few},
	}
}

// cpu is the time that the process has spent on a core.
func (n *node) cpu() time.Duration {
	n.lan.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
	if err != nil {
		n.lan.t.Fatal(err)
	}
	// proc(5): utime and stime, in ticks of 10 ms, are the 14th and the 15th field. The second may have spaces.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int
	for _, f := range fields[11:13] {
		n, _ := strconv.Atoi(f)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// answersTo counts the frames that come to a client from a holder. Its filter keeps out the flood, which the bridge
// sends everywhere.
func answersTo(t *testing.T, client *host, holder net.HardwareAddr) *atomic.Int64 {
	t.Helper()
	f := []bpf.Instruction{bpf.LoadAbsolute{Off: offSourceMAC + 2, Size: 4}}
	f = append(f, only(binary.BigEndian.Uint32(holder[2:]))...)
	filter, err := bpf.Assemble(append(f, bpf.RetConstant{Val: 64}))
	if err != nil {
		t.Fatal(err)
	}
	var c *rawpacket.Conn
	within(t, client.ns, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err = rawpacket.Listen(ifi, rawpacket.Raw, unix.ETH_P_ALL, &rawpacket.Config{Filter: filter})
		return err
	})
	var n atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 64)
		for {
			if _, _, err := c.ReadFrom(b); err != nil {
				return
			}
			if string(b[:ethernetAddrLen]) == string(client.mac) {
				n.Add(1)
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return &n
}

// A machine floods the link with what the holder listens for. The kernel drops it: it reaches the process as often as
// one machine may ask, which is measured in frames, as time depends on the machine. Another client is answered
// meanwhile, and the link hears of foreign claims as seldom as ever.
func TestFloodsStopInTheKernel(t *testing.T) {
	const rate, lasts = 50_000, 700 * time.Millisecond
	for _, f := range families() {
		w := newWorld(t, f, 1)
		p := w.peers[0]
		attacker := w.host()
		p.hold()
		// Known as a client of this link.
		for end := time.Now().Add(2 * flood.KnownAfter); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			w.client.write(everyForm(t, f.vip, w.client, p.mac)[0].frame)
		}
		var c *rawpacket.Conn
		within(t, attacker.ns, func() error {
			ifi, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			c, err = rawpacket.Listen(ifi, rawpacket.Raw, 0, nil)
			return err
		})
		defer c.Close()
		answers := answersTo(t, w.client, p.mac)
		for _, fl := range floods(t, f.vip, attacker.mac, p.mac) {
			t.Run(f.name+"/"+fl.name, func(t *testing.T) {
				time.Sleep(flood.BlockFor + 2*flood.Window) // what was blocked before is not any more
				p.do("received")
				before, used, heard := p.status()[0], p.cpu(), answers.Load()
				to := &rawpacket.Addr{HardwareAddr: p.mac}
				began, sent, asked := time.Now(), 0, 0
				answered := func() bool { return answers.Load()-heard >= 3 }
				for time.Since(began) < lasts || !answered() && time.Since(began) < time.Minute {
					// In small bursts: more of them overflows what waits for a core in the kernel, before any filter.
					due := min(int(time.Since(began).Seconds()*rate), sent+50)
					for ; sent < due; sent++ {
						if fl.change != nil {
							fl.change(fl.frame)
						}
						if _, err := c.WriteTo(fl.frame, to); err != nil {
							t.Fatal(err)
						}
					}
					if due := int(time.Since(began) / (200 * time.Millisecond)); asked < due {
						asked = due
						w.client.write(everyForm(t, f.vip, w.client, p.mac)[0].frame)
					}
					time.Sleep(200 * time.Microsecond)
				}
				seconds := time.Since(began).Seconds()
				var received int
				fmt.Sscan(p.do("received"), &received)
				t.Logf("%.0f frames a second, %.0f of them pass the filter; %.1f %% of a core; %d answers",
					float64(sent)/seconds, float64(received)/seconds,
					100*(p.cpu()-used).Seconds()/seconds, p.status()[0].Answers-before.Answers)
				// Frames that wait in the buffer when the filter is set have passed it; and the client's.
				if most := float64(fl.most)*(seconds+1) + 100; float64(received) > most && received > sent/10 {
					t.Errorf("%d frames of %d pass the filter, want %.0f", received, sent, most)
				}
				if !answered() {
					t.Errorf("the client asked %d times meanwhile, and was answered %d times", asked, answers.Load()-heard)
				}
				if n := p.status()[0].Announcements - before.Announcements; n > 4 {
					t.Errorf("%d announcements in %.0f s", n, seconds)
				}
			})
		}
		p.release()
	}
}
