package integration

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/lab"
	"appliance/segment"
)

// soakEnv is for how long TestSoak goes on.
const soakEnv = "APPLIANCE_TEST_SOAK"

// soakRest is longer than the rules keep what they have learned of strangers, and than the kernel tracks a handshake
// that never ends: a minute from its last SYN-ACK on, which goes out after another. What checks and clients have closed
// is tracked for two minutes: some hundreds.
const soakRest = 130 * time.Second

// Ports of a soak: one for each data plane.
const (
	soakDirect = scene.Port
	soakNAT    = 7000
	soakUser   = 7001
)

// TestSoak lets clients, strangers and floods at a group for a long time, with hand-overs, reloads, lost links and
// killed processes. At the end there is no more of anything than after the first round: files, goroutines, memory, and
// what the kernel has of the appliance.
func TestSoak(t *testing.T) {
	text := os.Getenv(soakEnv)
	if text == "" {
		t.Skip("make soak runs it")
	}
	long, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", soakEnv, err)
	}
	w := newWorld(t, scene.IPv4)
	plane := func(p balancer.PlaneName) string { return fmt.Sprintf("  dataPlane: %s\n", p) }
	w.start(t, "", []balance{
		{name: "direct", port: soakDirect, backend: scene.Port, scheduler: "rr", nodes: []string{"n1", "n2", "n3"}},
		{name: "nat", port: soakNAT, backend: scene.Port, scheduler: "rr", nodes: []string{"s1", "s2"},
			more: plane(balancer.NFTables)},
		{name: "user", port: soakUser, backend: scene.Port, scheduler: "lc", nodes: []string{"s1", "s2"},
			more: plane(balancer.UserSpace)},
	})
	begin := time.Now()
	var first map[string]gauges
	var clients soakClients
	rounds := 0
	for rounds == 0 || time.Since(begin) < long {
		rounds++
		clients.add(w.soak(t, 20*time.Second))
		if rounds == 1 {
			time.Sleep(soakRest)
			first = w.gauges(t)
		}
		t.Logf("%v, round %d:", time.Since(begin).Round(time.Second), rounds)
		w.logGauges(t, w.gauges(t))
	}
	clients.judge(t, "all rounds", 50)
	time.Sleep(soakRest)
	last := w.gauges(t)
	w.logGauges(t, last)
	for name, now := range last {
		for what, n := range now {
			before := first[name][what]
			if what == "lines of log" {
				before *= rounds
			}
			if most := before + before/4 + slack[what]; n > most {
				t.Errorf("%s has %d %s, and %d after the first round", name, n, what, before)
			}
		}
	}
}

// gauges are counts of one node.
type gauges map[string]int

// slack is how many more there may be, beside a quarter.
var slack = gauges{
	"files": 16, "goroutines": 20, "sockets": 40, "KiB of heap": 8 << 10, "KiB of memory": 24 << 10,
	"KiB on disk":    4 << 10,
	"lines of rules": 20, "set elements": 50, "neighbours": 20, "lines of log": 200,
	// Those that are ended or never began are forgotten after two minutes, whoever had them: a second of checks and proofs
	// leaves some dozens. Those that are open are forgotten after five days.
	"connections closing": 6000, "connections open": 100,
}

func (w *world) gauges(t *testing.T) map[string]gauges {
	t.Helper()
	all := make(map[string]gauges)
	for i, p := range w.apps {
		w.ready(t, i)
		g := gauges{}
		metrics := func() map[string]int {
			body, err := p.client.Do(t.Context(), "GET", "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			found := make(map[string]int)
			for line := range strings.Lines(string(body)) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
				if f, err := strconv.ParseFloat(value, 64); err == nil {
					found[name] = int(f)
				}
			}
			return found
		}
		least := func(to, name string, unit int, m map[string]int) {
			if n, ok := g[to]; !ok || m[name]/unit < n {
				g[to] = m[name] / unit
			}
		}
		for range 30 { // between two collections of garbage
			m := metrics()
			least("files", "process_open_fds", 1, m)
			least("goroutines", "go_goroutines", 1, m)
			least("KiB of heap", "go_memstats_heap_alloc_bytes", 1024, m)
			least("KiB of memory", "process_resident_memory_bytes", 1024, m)
			time.Sleep(100 * time.Millisecond)
		}
		if err := p.node.Do(func() error {
			count := func(command string) int {
				out, err := exec.Command("sh", "-c", command).Output()
				if err != nil {
					t.Errorf("%s: %v", command, err)
				}
				return strings.Count(string(out), "\n")
			}
			g["lines of rules"] = count("nft -t list ruleset")
			g["set elements"] = count("nft list ruleset | grep -o expires || true")
			g["routes"] = count("ip -4 -o route show table all; ip -6 -o route show table all")
			g["addresses"] = count("ip -o address")
			g["neighbours"] = count("ip -o neighbour")
			// Those of closed connections (06: TIME-WAIT) are clients' and have an end.
			g["sockets"] = count(`cd /proc/net && cat tcp tcp6 udp udp6 raw packet | awk '$4 != "06"'`)
			if _, err := os.Stat("/proc/net/nf_conntrack"); err == nil {
				g["connections open"] = count("grep ESTABLISHED /proc/net/nf_conntrack || true")
				g["connections closing"] = count("grep -v ESTABLISHED /proc/net/nf_conntrack || true")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		filepath.Walk(p.path, func(_ string, f os.FileInfo, err error) error {
			if err == nil && !f.IsDir() {
				g["KiB on disk"] += int(f.Size() / 1024)
			}
			return nil
		})
		g["lines of log"] = strings.Count(p.log(), "\n")
		all[p.node.Name] = g
	}
	return all
}

func (w *world) logGauges(t *testing.T, all map[string]gauges) {
	for _, n := range w.nodes {
		t.Logf("  %s: %v", n.Name, all[n.Name])
	}
}

// soakPorts are the ports of a soak, in the order of their clients.
var soakPorts = [...]uint16{soakDirect, soakNAT, soakUser}

// soakClients are the new connections of a soak: those to each port, and those of a control, which go from the same
// machine to a server without any appliance in between.
type soakClients struct {
	ports   [len(soakPorts)]tries
	control tries
}

type tries struct{ bad, all int }

func (n *tries) add(m tries) { n.bad, n.all = n.bad+m.bad, n.all+m.all }

func (c *soakClients) add(d soakClients) {
	for i := range c.ports {
		c.ports[i].add(d.ports[i])
	}
	c.control.add(d.control)
}

// judge fails if more of a port's clients than one in so many have failed, beyond those that the machine makes fail: it
// has to make the floods, too, and the control's clients suffer from that as much.
func (c *soakClients) judge(t *testing.T, when string, oneIn int) {
	t.Helper()
	for i, n := range c.ports {
		machine := 0
		if c.control.all > 0 {
			machine = 2 * n.all * c.control.bad / c.control.all
		}
		t.Logf("%s: of %d new clients of port %d %d failed; of the control's %d, %d", when, n.all, soakPorts[i], n.bad,
			c.control.all, c.control.bad)
		if n.bad > n.all/oneIn+machine {
			t.Errorf("%s: too many clients of port %d failed: %d of %d", when, soakPorts[i], n.bad, n.all)
		}
	}
}

// soak is one round: clients, who are served, and everybody else.
func (w *world) soak(t *testing.T, long time.Duration) (clients soakClients) {
	ctx, stop := context.WithTimeout(t.Context(), long)
	defer stop()
	var probes []*lab.RunningProbe
	var open []*lab.Conns
	const patience = 2 * time.Second
	control := w.client.Probe(ctx, lab.Probe{Target: netip.AddrPortFrom(w.addr("s2"), scene.Port),
		Every: 20 * time.Millisecond, Patience: patience})
	for _, port := range soakPorts {
		conns, err := w.far.OpenConns(ctx, lab.LongConns{Target: w.target(port), N: 50, Every: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer conns.Close()
		open = append(open, conns)
		probes = append(probes, w.client.Probe(ctx, lab.Probe{Target: w.target(port), Every: 20 * time.Millisecond,
			Patience: patience}))
	}
	var rest sync.WaitGroup
	for range 20 {
		rest.Go(func() { w.stranger(ctx) })
	}
	holder := w.holder(t)
	for _, frames := range []func(i int) []byte{w.asks, w.claims, w.probes, w.opens, w.datagrams, w.noise} {
		rest.Go(func() { w.flood(t, ctx, w.nodes[holder].MAC(), frames) })
	}
	rest.Go(func() {
		for ctx.Err() == nil {
			if err := w.strays(500); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	time.Sleep(long / 5)
	w.transfer(t, holder)
	now := w.holder(t)
	time.Sleep(long / 5)
	for _, p := range w.apps {
		if err := p.proc.Signal(syscall.SIGHUP); err != nil {
			t.Error(err)
		}
	}
	time.Sleep(long / 10)
	// The previous holder has the connections of user space, and the kernel's state of others.
	lost := slices.IndexFunc(w.apps[:worker], func(p *program) bool {
		return p != w.apps[holder] && p != w.apps[now]
	})
	unplugged := ""
	if rand.IntN(2) == 0 {
		w.apps[lost].proc.Kill()
		time.Sleep(time.Second)
		w.apps[lost].start(t)
	} else {
		unplugged = w.nodes[lost].Name
		if err := w.nodes[lost].Unplug(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := w.nodes[lost].Plug(); err != nil {
			t.Fatal(err)
		}
	}
	<-ctx.Done()
	rest.Wait()
	count := func(p *lab.RunningProbe) (n tries, why error) {
		p.Stop()
		for _, try := range p.Tries() {
			n.all++
			if try.Err != nil {
				n.bad, why = n.bad+1, try.Err
			}
		}
		return n, why
	}
	clients.control, _ = count(control)
	for i, p := range probes {
		var why error
		clients.ports[i], why = count(p)
		n := open[i].Await(patient(t), time.Second)
		t.Logf("port %d: new connections %+v (%v); of the open ones %d go on, %d were reset, %d hang", soakPorts[i],
			clients.ports[i], why, n.OK, n.Broken, n.Hung)
		// Once a host has vanished, connections with its server are reset, and do not wait for it to come back.
		broken := slices.DeleteFunc(n.Lost, func(c lab.LostConn) bool { return c.Server == unplugged })
		if len(broken) > 0 {
			t.Errorf("open connections broke: %+v", broken)
		}
	}
	// A node has no link for a second of the twenty, and a third of the clients of direct are its own.
	clients.judge(t, "this round", 10)
	for i := range w.apps {
		w.ready(t, i)
	}
	return clients
}

// stranger talks to ports of the nodes that are not for it.
func (w *world) stranger(ctx context.Context) {
	for ctx.Err() == nil {
		to := netip.AddrPortFrom(w.addr(w.nodes[rand.IntN(len(w.nodes))].Name), 10000)
		if rand.IntN(3) == 0 {
			to = w.target(soakPorts[rand.IntN(3)])
		}
		dialing, stop := context.WithTimeout(ctx, time.Second)
		c, err := w.s2.Dial(dialing, to)
		stop()
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		c.SetDeadline(time.Now().Add(time.Duration(rand.IntN(3000)) * time.Millisecond))
		switch rand.IntN(4) {
		case 0:
			garbage := make([]byte, rand.IntN(5000))
			for i := range garbage {
				garbage[i] = byte(rand.Uint32())
			}
			c.Write(garbage)
			io.Copy(io.Discard, c)
		case 1:
			tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
		case 2:
			io.Copy(io.Discard, c) // says nothing
		default:
			if tcp, ok := c.(*net.TCPConn); ok {
				tcp.SetLinger(0)
			}
		}
		c.Close()
	}
}

// flood sends 2,000 frames a second to the holder.
func (w *world) flood(t *testing.T, ctx context.Context, to net.HardwareAddr, frame func(i int) []byte) {
	if err := w.s1.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		at := &unix.SockaddrLinklayer{Ifindex: eth0.Index}
		for i := 0; ctx.Err() == nil; i++ {
			f := append(append(append([]byte{}, to...), eth0.HardwareAddr...), frame(i)...)
			if err := unix.Sendto(s, f, 0, at); err != nil && err != unix.ENOBUFS {
				return err
			}
			if i%4 == 3 {
				time.Sleep(2 * time.Millisecond)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func someone() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 77, byte(rand.IntN(200)), byte(rand.IntN(200))})
}

// asks are ARP requests for the VIP, claims ARP answers that claim it (RFC 826).
func (w *world) asks(int) []byte   { return w.arp(1, someone(), w.vip()) }
func (w *world) claims(int) []byte { return w.arp(2, w.vip(), w.vip()) }

func (w *world) arp(op byte, from, to netip.Addr) []byte {
	f := []byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, op, 2, 9, 9, 9, byte(rand.Uint32()), byte(rand.Uint32())}
	return append(append(append(f, from.AsSlice()...), 0, 0, 0, 0, 0, 0), to.AsSlice()...)
}

func ipv4(packet []byte) []byte { return append([]byte{0x08, 0x00}, packet...) }

// probes are path probes with a wrong signature.
func (w *world) probes(int) []byte {
	body := append([]byte("aplprob1"), make([]byte, 150)...)
	return ipv4(segment.Packet(netip.AddrPortFrom(someone(), 6443), w.target(soakDirect), 1, segment.RST, body))
}

// opens are first packets of connections that never go on.
func (w *world) opens(i int) []byte {
	port := soakPorts[i%3]
	from := netip.AddrPortFrom(someone(), uint16(1024+rand.IntN(60000)))
	return ipv4(segment.Packet(from, w.target(port), rand.Uint32(), segment.SYN, nil))
}

// datagrams go to the peer port.
func (w *world) datagrams(i int) []byte {
	to := netip.AddrPortFrom(w.addr("n1"), 10000)
	p := segment.Packet(netip.AddrPortFrom(someone(), 10000), to, 0, 0, []byte("apD1..."))
	p[9], p[10], p[11] = unix.IPPROTO_UDP, 0, 0
	p[24], p[25], p[26], p[27] = 0, byte(len(p)-20), 0, 0 // RFC 768; no checksum
	sum := segment.Checksum(p[:20])
	p[10], p[11] = byte(sum>>8), byte(sum)
	return ipv4(p)
}

// noise is anything.
func (w *world) noise(int) []byte {
	b := make([]byte, 40+rand.IntN(200))
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	if rand.IntN(2) == 0 {
		p := segment.Packet(netip.AddrPortFrom(someone(), 1), w.target(soakDirect), 0, b[0], b[1:20])
		b = append(ipv4(p)[:22], b[22:]...)
	}
	return b
}
