package nflog

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"go.uber.org/goleak"

	"appliance/balancer"
	"appliance/connlog"
	"appliance/lab"
	"appliance/nft/ruleset"
	"appliance/segment"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits that end at once.
const patience = 60 * time.Second

// book takes lines.
type book struct {
	mu            sync.Mutex
	lines         []string
	skipped, lost uint64
}

func (b *book) Write(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, line)
}

func (b *book) Skip() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.skipped++
}

func (b *book) Lose(lines uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lost += lines
}

func (b *book) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	lines := b.lines
	b.lines = nil
	return lines
}

// plane is a data plane that does nothing.
type plane struct{ balancer.Plane }

func (plane) Name() balancer.PlaneName { return balancer.NFTables }
func (plane) Apply(context.Context, []balancer.Service) (int, error) {
	return 0, nil
}

// TestBeginnings: connections from another machine and from the node itself are told of once each, those to other load
// balancers are not, and no rule is left when nobody asks any more.
func TestBeginnings(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces and nf_tables")
	}
	l, err := lab.New(lab.Layout{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	machine := func(name string, addrs ...string) *lab.Machine {
		var list []netip.Prefix
		for _, a := range addrs {
			list = append(list, netip.MustParsePrefix(a))
		}
		m, err := l.Machine(name, list...)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	node := machine("node", "192.0.2.11/24", "2001:db8::11/64")
	client := machine("client", "192.0.2.99/24", "2001:db8::99/64")
	const port, quiet = 6443, 7443
	for _, p := range []int{port, quiet} {
		var at net.Listener
		if err := node.Do(func() (err error) { at, err = net.Listen("tcp", fmt.Sprintf(":%d", p)); return err }); err != nil {
			t.Fatal(err)
		}
		defer at.Close()
	}
	at := func(is4 bool, p uint16) netip.AddrPort { return netip.AddrPortFrom(node.Addr(is4), p) }
	var lines book
	w := New(ruleset.NewOwner(), &lines, slog.New(slog.DiscardHandler))
	watching := w.Watch(plane{})
	apply := func(services ...balancer.Service) (repaired int) {
		t.Helper()
		err := node.Do(func() (err error) { repaired, err = watching.Apply(t.Context(), services); return err })
		if err != nil {
			t.Fatal(err)
		}
		return repaired
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = node.Do(func() error { return w.Run(ctx) }) })
	defer running.Wait()
	defer cancel()
	wanted := []balancer.Service{
		{LoadBalancer: "api", Frontend: at(true, port), ConnOptions: balancer.ConnOptions{LogBegin: "text"}},
		{LoadBalancer: "api", Frontend: at(false, port), ConnOptions: balancer.ConnOptions{LogBegin: "json"}},
		{LoadBalancer: "quiet", Frontend: at(true, quiet)},
	}
	apply(wanted...)
	dial := func(from *lab.Machine, to netip.AddrPort) netip.AddrPort {
		t.Helper()
		var own netip.AddrPort
		if err := from.Do(func() error {
			conn, err := net.DialTimeout("tcp", to.String(), patience)
			if err != nil {
				return err
			}
			defer conn.Close()
			own = conn.LocalAddr().(*net.TCPAddr).AddrPort()
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return own
	}
	// The socket may not be open yet.
	for end := time.Now().Add(patience); len(lines.take()) == 0; time.Sleep(20 * time.Millisecond) {
		dial(client, at(true, port))
		if time.Now().After(end) {
			t.Fatal("nothing is heard")
		}
	}
	dial(client, at(true, quiet))
	text := regexp.MustCompile(`^(\S+) \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d\.\d{3}\] api begins to=(\S+) plane=nftables$`)
	// expect waits for the lines of the clients, and no others; those of clients before may still come.
	var clients []netip.AddrPort
	var got []string
	for _, from := range []*lab.Machine{client, node} {
		for _, is4 := range []bool{true, false} {
			clients = append(clients, dial(from, at(is4, port)))
		}
	}
	counted := func() (n int) {
		for _, c := range clients {
			for _, line := range got {
				if strings.Contains(line, c.String()) {
					n++
				}
			}
		}
		return n
	}
	for end := time.Now().Add(patience); counted() < len(clients); time.Sleep(20 * time.Millisecond) {
		got = append(got, lines.take()...)
		if time.Now().After(end) {
			t.Fatalf("heard %q of clients %v", got, clients)
		}
	}
	dial(client, at(true, port)) // whatever was told twice was told before this
	last := dial(client, at(true, port))
	for end := time.Now().Add(patience); !strings.HasPrefix(got[len(got)-1], last.String()); {
		time.Sleep(20 * time.Millisecond)
		got = append(got, lines.take()...)
		if time.Now().After(end) {
			t.Fatalf("heard %q", got)
		}
	}
	if n := counted(); n != len(clients) {
		t.Errorf("%d lines of %d clients: %q", n, len(clients), got)
	}
	for _, line := range got {
		if r := (BeginRecord{}); strings.HasPrefix(line, "{") {
			if err := json.Unmarshal([]byte(line), &r); err != nil || r.LoadBalancer != "api" || r.Frontend != at(false, port) ||
				!slices.Contains(clients, r.Client) || r.Event != "begins" || r.Plane != "nftables" {
				t.Errorf("%s: %+v, %v", line, r, err)
			}
		} else if m := text.FindStringSubmatch(line); m == nil || m[2] != at(true, port).String() {
			t.Errorf("line %q", line)
		}
	}
	if lines.lost+lines.skipped != 0 {
		t.Errorf("%d lost, %d skipped", lines.lost, lines.skipped)
	}
	if n := apply(wanted...); n != 0 {
		t.Errorf("%d repaired of what nobody touched", n)
	}
	apply(wanted[2])
	var counters map[string]uint64
	if err := node.Do(func() (err error) {
		counters, err = ruleset.Counters(ruleset.Table{Family: 1, Name: ruleset.LogTable}) // inet
		return err
	}); err != nil || len(counters) != 0 {
		t.Errorf("counters %v are left, %v", counters, err)
	}
}

func syn(src, dst netip.AddrPort, sequence uint32) []byte {
	return segment.Packet(src, dst, sequence, segment.SYN, nil)
}

// told is a message of the kernel about a packet.
func told(t *testing.T, number uint32, packet []byte) []byte {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Bytes(attrPayload, packet)
	e.Uint32(attrSequence, number)
	data, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return append(make([]byte, 4), data...)
}

// TestHear: a SYN that is sent again is no other connection, gaps are counted, bounds hold, and what is not wanted, or
// no packet, is passed over.
func TestHear(t *testing.T) {
	at, other := netip.MustParseAddrPort("192.0.2.10:443"), netip.MustParseAddrPort("192.0.2.10:444")
	from := func(n int) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.99"), uint16(n)) }
	var lines book
	w := New(nil, &lines, slog.New(slog.DiscardHandler))
	w.watched = map[netip.AddrPort]watched{}
	watch := func(o balancer.ConnOptions) {
		o.LogBegin = "text"
		w.mu.Lock()
		w.watched[at] = watched{"api", balancer.Direct, o, new(connlog.Sampler)}
		w.mu.Unlock()
	}
	watch(balancer.ConnOptions{})
	now := time.Unix(1000, 0)
	var h heard
	h.seed = maphash.MakeSeed()
	hear := func(number uint32, packet []byte) { w.hear(&h, told(t, number, packet), now) }
	hear(7, syn(from(1), at, 100))
	hear(8, syn(from(1), at, 100)) // again
	hear(9, syn(from(1), at, 200)) // another with the same port
	hear(10, syn(from(1), other, 300))
	hear(14, syn(from(2), at, 300))
	w.hear(&h, []byte{1, 2}, now)
	w.hear(&h, told(t, 15, nil), now)
	if got := lines.take(); len(got) != 3 || !strings.HasPrefix(got[2], "192.0.2.99:2 [") || lines.lost != 3 {
		t.Errorf("%d lost, %q", lines.lost, got)
	}
	watch(balancer.ConnOptions{LogRate: 2})
	for i := range 5 {
		hear(uint32(16+i), syn(from(10+i), at, 1))
	}
	if n := len(lines.take()); n != 2 || lines.skipped != 3 || lines.lost != 3 {
		t.Errorf("%d lines, %d skipped, %d lost", n, lines.skipped, lines.lost)
	}
	watch(balancer.ConnOptions{LogEvery: 2})
	for i := range 5 {
		hear(uint32(21+i), syn(from(20+i), at, 1))
	}
	if n := len(lines.take()); n != 3 || lines.skipped != 3 || lines.lost != 3 {
		t.Errorf("one in two of five: %d lines, %d skipped, %d lost", n, lines.skipped, lines.lost)
	}
}

// TestPacket: the headers of IPv6 between that of IP and that of TCP are passed over, and nothing is read beyond the
// end.
func TestPacket(t *testing.T) {
	src, dst := netip.MustParseAddrPort("[2001:db8::1]:1000"), netip.MustParseAddrPort("[2001:db8::2]:443")
	plain := syn(src, dst, 77)
	options := append([]byte{60, 0}, make([]byte, 6)...) // destination options come next
	more := append([]byte{6, 1}, make([]byte, 14)...)    // TCP comes next
	p := slices.Concat(plain[:40], options, more, plain[40:])
	p[6] = 0 // hop-by-hop options
	want := beginning{src, dst, 77}
	if b, ok := packet(p); !ok || b != want {
		t.Errorf("%+v, %v", b, ok)
	}
	for n := range 40 + 8 + 16 + 8 { // the ports and the sequence number are needed
		if b, ok := packet(p[:n]); ok {
			t.Errorf("%d bytes are %+v", n, b)
		}
	}
	udp := syn(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2"), 1)
	udp[9] = 17
	if _, ok := packet(udp); ok {
		t.Error("UDP is TCP")
	}
}
