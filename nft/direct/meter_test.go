package direct

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/segment"
)

// strays sends segments from n ports of an address that belong to no connection.
func (l *lab) strays(from netip.Addr, to netip.AddrPort, n int) {
	l.t.Helper()
	packets := make([][]byte, n)
	for i := range packets {
		packets[i] = stray(netip.AddrPortFrom(from, uint16(20000+i)), to)
	}
	l.sendAll(to, packets)
}

func stray(from, to netip.AddrPort) []byte { return segment.Packet(from, to, 5, segment.ACK, nil) }

// sendAll sends IP packets to a frontend, as the client.
func (l *lab) sendAll(to netip.AddrPort, packets [][]byte) {
	l.t.Helper()
	if err := l.trySendAll(to, packets); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) trySendAll(to netip.AddrPort, packets [][]byte) error {
	return l.client.try(func() error {
		// IPPROTO_RAW: the packet has its own IP header.
		domain, dest := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.Addr().As16()})
		if to.Addr().Is4() {
			domain, dest = unix.AF_INET, &unix.SockaddrInet4{Addr: to.Addr().As4()}
		}
		s, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		for i, p := range packets {
			if err := unix.Sendto(s, p, 0, dest); err != nil {
				return err
			}
			if i%32 == 31 || len(packets) <= 100 {
				time.Sleep(time.Millisecond) // no queue on the way is full
			}
		}
		return nil
	})
}

// A flood is packets of strangers, each made by its number.
type flood struct {
	name string
	n    int
	make func(client netip.Addr, to netip.AddrPort, i int) []byte
	// more is how many there may be beyond twice as many.
	more func(took time.Duration) int
}

// anyClient is an address of the client's net that nobody has.
func anyClient(client netip.Addr, i int) netip.Addr {
	b := client.AsSlice()
	binary.BigEndian.PutUint16(b[len(b)-2:], 0x8000|uint16(i))
	a, _ := netip.AddrFromSlice(b)
	return a
}

func floods() []flood {
	port := func(i int) uint16 { return 1024 + uint16(i%60000) }
	one := func(client netip.Addr, to netip.AddrPort, i int) []byte {
		return stray(netip.AddrPortFrom(client, port(i)), to)
	}
	many := func(client netip.Addr, to netip.AddrPort, i int) []byte {
		return stray(netip.AddrPortFrom(anyClient(client, i), port(i)), to)
	}
	none := func(time.Duration) int { return 0 }
	// All may have an owner that is not the holder.
	oneSlot := func(time.Duration) int { return 200 }
	// Whoever knows the meter gets as many rounds as it lets pass.
	clever := func(took time.Duration) int { return int(goRoundInVain * 6 / 5 * (took.Seconds() + 1)) }
	return []flood{
		{"a few of one client", 100, one, none},
		{"of one client", 4000, one, none},
		{"of many clients", 4000, many, none},
		{"again and again", 4000, func(client netip.Addr, to netip.AddrPort, _ int) []byte {
			return one(client, to, 7)
		}, oneSlot},
		{"each twice", 6000, func(client netip.Addr, to netip.AddrPort, i int) []byte {
			return many(client, to, i/2)
		}, clever},
		{"with a seal", 6000, func(client netip.Addr, to netip.AddrPort, i int) []byte {
			return sealedBy(many(client, to, i))
		}, clever},
		{"which may be fragmented", 6000, func(client netip.Addr, to netip.AddrPort, i int) []byte {
			p := many(client, to, i)
			if to.Addr().Is4() {
				p[6], p[10], p[11] = 0, 0, 0 // the kernel computes the checksum
			}
			return p
		}, clever},
		{"behind extension headers", 4000, func(client netip.Addr, to netip.AddrPort, i int) []byte {
			p := one(client, to, 11)
			if to.Addr().Is4() {
				return p
			}
			// Destination options: RFC 8200 section 4.6.
			behind := append(append(p[:40:40], unix.IPPROTO_TCP, 0, 1, 4, 0, 0, 0, 0), p[40:]...)
			behind[6] = unix.IPPROTO_DSTOPTS
			binary.BigEndian.PutUint16(behind[4:], uint16(len(behind)-40))
			return behind
		}, oneSlot},
	}
}

// sealedBy is a packet that says of itself that a node has handed it on once.
func sealedBy(p []byte) []byte {
	if p[0]>>4 == 4 {
		p[1] = 7 << 2
		binary.BigEndian.PutUint16(p[4:], sealValue)
		p[10], p[11] = 0, 0
		return p
	}
	p[1] |= 7 << 6 & 0xff
	p[0] |= 7 >> 2
	binary.BigEndian.PutUint16(p[2:], sealValue)
	return p
}

// Under a flood of packets that belong to no connection, there are at most twice as many of them on the link.
func TestDirectMetersStrays(t *testing.T) {
	const warm = 200
	for _, fl := range floods() {
		t.Run(fl.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			l := newLab(t)
			l.usable()
			l.apply([]int{0, 1, 2}, nil)
			for i, f := range frontends {
				family := i % 2
				packets := make([][]byte, fl.n)
				for i := range packets {
					packets[i] = fl.make(l.client.addrs[family], f, i)
				}
				if fl.n > warm {
					// What comes before the first are back from their round goes round, too: on a busy machine, hundreds.
					l.sendAll(f, packets[:warm])
					packets = packets[warm:]
				}
				n := len(packets)
				before, began := l.settled(), time.Now()
				l.sendAll(f, packets)
				most := n + fl.more(time.Since(began))
				made := int(l.settled() - before)
				t.Logf("%v: %d strays made %d more: %.2f times as many", f, n, made, float64(n+made)/float64(n))
				if made > most {
					t.Errorf("%v: %d strays made %d more, want at most %d", f, n, made, most)
				}
				if made < 10 {
					t.Errorf("%v: %d strays made %d more: they did not arrive", f, n, made)
				}
			}
		})
	}
}

// Connections whose packets go round, as another node has them than the owner of their slot, go on while strangers
// flood: those that were open before, and those whose rounds begin only then, through a change of the holder.
func TestDirectMeterSparesConnections(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{1, 2}, nil)
	s := l.open(60)
	l.apply([]int{0, 1, 2}, nil)
	s.flow(t) // a third goes round
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	var sent [2]atomic.Int64
	for i, f := range frontends {
		family := i % 2
		wg.Go(func() {
			for !stop.Load() {
				var packets [][]byte
				for range 256 {
					// From its own address, too.
					client := l.client.addrs[family]
					if rand.IntN(4) > 0 {
						client = anyClient(client, rand.IntN(1<<15))
					}
					packets = append(packets, stray(netip.AddrPortFrom(client, uint16(1024+rand.IntN(20000))), f))
				}
				if err := l.trySendAll(f, packets); err != nil {
					t.Error(err)
					return
				}
				sent[family].Add(256)
			}
		})
	}
	flooded := func() {
		t.Helper()
		for family := range sent {
			for end := sent[family].Load() + 3000; sent[family].Load() < end; {
				s.flow(t)
			}
		}
	}
	flooded()
	for _, holder := range []int{1, 2, 0} {
		l.hold(holder)
		flooded()
	}
	l.apply([]int{0, 2}, []int{1})
	during := l.open(20)
	l.apply([]int{0, 1, 2}, nil) // rounds begin that nobody knows
	flooded()
	during.flow(t)
	l.hold(1)
	flooded()
	during.flow(t)
	during.end(t)
	s.end(t)
}

// Strays fill no table of the kernel's connections, where it tracks them.
func TestDirectMeterTracksNoStrays(t *testing.T) {
	l := newLab(t)
	l.usable()
	l.apply([]int{1, 2}, nil) // clients on the first node are translated, for an hour at least
	l.apply([]int{0, 1, 2}, nil)
	const n = 3000
	l.strays(l.client.addrs[0], frontends[0], n)
	l.settled()
	tracked := 0
	l.nodes[0].do(func() error {
		text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		if err != nil {
			return err
		}
		tracked, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err
	})
	if tracked > n/10 {
		t.Errorf("%d connections are tracked after %d strays", tracked, n)
	}
}

// nft can list the rules, with and without those for clients on the node.
func TestDirectRulesCanBeListed(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("no nft: install nftables")
	}
	l := newLab(t)
	l.usable()
	for _, rotation := range [][]int{{0, 1, 2}, {1, 2}} {
		l.apply(rotation, nil)
		l.nodes[0].do(func() error {
			if out, err := exec.Command(nft, "list", "ruleset").CombinedOutput(); err != nil {
				t.Errorf("%v in rotation: nft list ruleset: %v: %s", rotation, err, out[max(0, len(out)-300):])
			}
			return nil
		})
	}
}
