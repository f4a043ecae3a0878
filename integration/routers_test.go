package integration

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/integration/scene"
	"appliance/lab"
	"appliance/status"
	"appliance/status/client"
)

// The AS numbers of the nodes and of the router, and the virtual addresses, which are in no subnet.
const (
	nodesAS  = 64512
	routerAS = 4200000500
)

var (
	routed4 = netip.MustParseAddr("198.51.100.10")
	routed6 = netip.MustParseAddr("2001:db8:1::10")
)

// A routing is a network behind a router that speaks BGP:
//
//	n1 n2 n3   peers of both families, each with a server on *:6443
//	router     their default gateway, with FRR or BIRD
//	far        a client behind it
type routing struct {
	dir     string
	lab     *lab.Lab
	nodes   []*lab.Machine
	router  *lab.Machine
	far     *lab.Machine
	servers lab.Servers
	group   string // the file of the group's key
	further string // of every node's configuration
	apps    []*program
	daemons []*daemon
}

// near are the addresses of a machine on the link of the nodes, distant those on the link behind the router.
func near(n int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.77.0.%d/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd77::%d/64", n)),
	}
}

func distant(n int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.78.0.%d/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd78::%d/64", n)),
	}
}

// newRouting builds the machines and starts their servers.
func newRouting(t *testing.T) *routing {
	t.Helper()
	return newRoutingAcross(t, 3)
}

// newRoutingAcross has only the first nodes on the near link, and the others on that of the client.
func newRoutingAcross(t *testing.T, nearby int) *routing {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	l, err := lab.New(lab.Layout{})
	if err != nil {
		t.Fatal(err)
	}
	r := &routing{dir: t.TempDir(), lab: l}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the appliances said:\n%s", (&world{apps: r.apps}).logs())
			for _, d := range r.daemons {
				text, _ := os.ReadFile(d.log)
				t.Logf("%s said:\n%s", d.name, text)
			}
		}
		r.servers.Close()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if r.router, err = l.Router("router", near(1), distant(1)); err != nil {
		t.Fatal(err)
	}
	if r.far, err = l.FarMachine("far", r.router, distant(50)...); err != nil {
		t.Fatal(err)
	}
	for _, vip := range []netip.Addr{routed4, routed6} {
		if err := r.far.Route(netip.PrefixFrom(vip, vip.BitLen()), distant(1)[index6(vip)].Addr()); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{"n1", "n2", "n3"} {
		var m *lab.Machine
		var gateways []netip.Prefix
		if i < nearby {
			m, err = l.Machine(name, near(11+i)...)
			gateways = near(1)
		} else {
			m, err = l.FarMachine(name, r.router, distant(11+i)...)
		}
		if err != nil {
			t.Fatal(err)
		}
		for f, gateway := range gateways {
			if err := m.Route(distant(0)[f].Masked(), gateway.Addr()); err != nil {
				t.Fatal(err)
			}
		}
		r.nodes = append(r.nodes, m)
		if _, err := r.servers.Serve(m, name, netip.AddrPortFrom(netip.IPv6Unspecified(), scene.Port), nil); err != nil {
			t.Fatal(err)
		}
	}
	// Routers spread by addresses and ports, as those of data centres do.
	err = r.router.Do(func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/fib_multipath_hash_policy", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/fib_multipath_hash_policy", []byte("1"), 0),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// index6 is 1 for addresses of IPv6: lists here have IPv4 first.
func index6(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// config is the configuration of every node; announce is what stands below that key.
func (r *routing) config(announce string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "vips: [%q, %q]\npeers:\n", routed4, routed6)
	for _, n := range r.nodes {
		fmt.Fprintf(&b, "- {id: %s, address: %q, addresses: [%q]}\n", n.Name, n.Addr(true), n.Addr(false))
	}
	fmt.Fprintf(&b, "addPeersAsBackends: true\ngroup: {keyFile: %s, heartbeat: 500ms}\n", r.group)
	b.WriteString("loadBalancers:\n- {name: api, port: 6443, check: {type: tcp, inter: 1s}}\n")
	b.WriteString(r.further + "announce:\n" + announce)
	return b.String()
}

// speaksBGP is announce for the router, with further keys of announce and of the neighbour.
func (r *routing) speaksBGP(general, ofNeighbour string) string {
	return fmt.Sprintf("  by: bgp\n%s  bgp:\n    as: %d\n    holdTime: 90s\n"+
		"    neighbours:\n    - {address: %q, as: %d%s}\n", general, nodesAS, r.router.Addr(true), routerAS, ofNeighbour)
}

// start starts the appliances, and waits until all are ready.
func (r *routing) start(t *testing.T, announce string) {
	t.Helper()
	r.group = filepath.Join(r.dir, "group.key")
	key, err := exec.Command(binary, "keygen").Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.group, key, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.nodes {
		p := &program{node: n, path: filepath.Join(r.dir, n.Name), asRoot: true}
		p.client = client.New(p.path + ".sock")
		text := r.config(announce)
		if a := distant(1)[0].Addr(); distant(0)[0].Masked().Contains(n.Addr(true)) { // the router has another address there
			text = strings.ReplaceAll(text, strconv.Quote(r.router.Addr(true).String()), strconv.Quote(a.String()))
		}
		if err := os.WriteFile(p.path+".yaml", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		r.apps = append(r.apps, p)
		p.start(t)
	}
	for i := range r.apps {
		(&world{apps: r.apps}).ready(t, i)
	}
}

// A daemon is a routing daemon of Debian on one machine.
type daemon struct {
	name, log string
	procs     []*lab.Process
	// ask is the command that prints what it has heard of a virtual address, flap the one that resets its sessions.
	ask  func(vip netip.Addr) []string
	flap []string
}

// stop ends it, the last process first, and waits.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	for _, p := range slices.Backward(d.procs) {
		if err := p.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = p.Wait()
	}
	d.procs = nil
}

// run starts programs on a machine, one after the other.
func (r *routing) run(t *testing.T, m *lab.Machine, name string, commands ...[]string) *daemon {
	t.Helper()
	d := &daemon{name: name, log: filepath.Join(r.dir, name+".log")}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for _, c := range commands {
		if _, err := os.Stat(c[0]); err != nil {
			t.Skipf("%v; install it with integration/setup.sh test", err)
		}
		cmd := exec.Command(c[0], c[1:]...)
		cmd.Stdout, cmd.Stderr = log, log
		p, err := m.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		d.procs = append(d.procs, p)
	}
	r.daemons = append(r.daemons, d)
	return d
}

// A session is how a router speaks to the nodes.
type session struct {
	on       *lab.Machine // the router, if it is not r.router
	own      int          // its AS number, if it is not routerAS
	six      bool         // over IPv6
	extended bool         // it takes next hops of IPv6 for IPv4 (RFC 8950)
	hops     int          // how far the nodes are away, with GTSM; 0: one, without
	password string
	bfd      bool
	as       int // of the nodes, if it is not nodesAS
	hold     int // seconds, 9 if zero
}

// sides fills in what s leaves open, and returns the router's own address.
func (r *routing) sides(s *session) netip.Addr {
	s.on = cmp.Or(s.on, r.router)
	s.own, s.as, s.hold = cmp.Or(s.own, routerAS), cmp.Or(s.as, nodesAS), cmp.Or(s.hold, 9)
	return s.on.Addr(!s.six)
}

// frr starts FRR's zebra and bgpd, and bfdd if it is wanted, on the router.
func (r *routing) frr(t *testing.T, s session) *daemon {
	t.Helper()
	r.sides(&s)
	var b strings.Builder
	fmt.Fprintf(&b, "router bgp %d\n bgp router-id %s\n no bgp ebgp-requires-policy\n timers bgp %d %d\n",
		uint32(s.own), s.on.Addr(true), s.hold/3, s.hold)
	for _, n := range r.nodes {
		a := n.Addr(!s.six)
		fmt.Fprintf(&b, " neighbor %s remote-as %d\n neighbor %s timers connect 1\n neighbor %s advertisement-interval 0\n",
			a, s.as, a, a)
		if s.password != "" {
			fmt.Fprintf(&b, " neighbor %s password %s\n", a, s.password)
		}
		if s.bfd {
			fmt.Fprintf(&b, " neighbor %s bfd 3 50 50\n", a)
		}
		if s.extended {
			fmt.Fprintf(&b, " neighbor %s capability extended-nexthop\n", a)
		}
		if s.hops > 0 {
			fmt.Fprintf(&b, " neighbor %s ttl-security hops %d\n", a, s.hops)
		}
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		fmt.Fprintf(&b, " address-family %s unicast\n  maximum-paths 8\n  maximum-paths ibgp 8\n", family)
		for _, n := range r.nodes {
			fmt.Fprintf(&b, "  neighbor %s activate\n", n.Addr(!s.six))
		}
		b.WriteString(" exit-address-family\n")
	}
	d, dir := r.startFRR(t, s.on, map[string]string{
		"zebra": "ip nht resolve-via-default\nipv6 nht resolve-via-default\n", "bgpd": b.String(),
	}, s.bfd)
	d.ask = func(vip netip.Addr) []string {
		family := []string{"ipv4", "ipv6"}[index6(vip)]
		return []string{"/usr/bin/vtysh", "--vty_socket", dir, "-c", "show bgp " + family + " unicast " + vip.String()}
	}
	d.flap = []string{"/usr/bin/vtysh", "--vty_socket", dir, "-c", "clear bgp *"}
	return d
}

// startFRR starts zebra and further daemons with their configurations. Their sockets are in dir.
func (r *routing) startFRR(t *testing.T, m *lab.Machine, of map[string]string, bfd bool) (d *daemon, dir string) {
	t.Helper()
	// They run as another user, who may not enter the test's own directory.
	dir, err := os.MkdirTemp("", "frr-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	of["zebra"] = cmp.Or(of["zebra"], "!\n")
	if bfd {
		of["bfdd"] = "!\n"
	}
	var commands [][]string
	for _, name := range []string{"zebra", "bfdd", "bgpd", "ospfd", "ospf6d"} {
		text, ok := of[name]
		if !ok {
			continue
		}
		file := filepath.Join(dir, name+".conf")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		args := []string{"/usr/lib/frr/" + name, "-f", file, "-i", filepath.Join(dir, name+".pid"),
			"-z", filepath.Join(dir, "zserv.api"), "--vty_socket", dir, "-P", "0",
			"--log", "stdout"}
		if name == "bfdd" {
			args = append(args, "--bfdctl", filepath.Join(dir, "bfdd.sock"))
		}
		commands = append(commands, args)
	}
	// Whoever finds no zebra asks again ten seconds later.
	zebra := r.run(t, m, "zebra on "+m.Name, commands[0])
	eventually(t, func() error {
		_, err := os.Stat(filepath.Join(dir, "zserv.api"))
		return err
	})
	d = r.run(t, m, "frr on "+m.Name, commands[1:]...)
	d.procs = slices.Concat(zebra.procs, d.procs)
	zebra.procs = nil
	return d, dir
}

// bird starts BIRD on the router.
func (r *routing) bird(t *testing.T, s session) *daemon {
	t.Helper()
	own := r.sides(&s)
	var b strings.Builder
	fmt.Fprintf(&b, "log stderr all;\nrouter id %s;\nprotocol device { scan time 1; }\nprotocol direct { ipv4; ipv6; }\n"+
		"protocol kernel k4 { ipv4 { export all; import none; }; merge paths on; }\n"+
		"protocol kernel k6 { ipv6 { export all; import none; }; merge paths on; }\n"+
		"filter shut { if (65535, 0) ~ bgp_community then bgp_local_pref = 0; accept; }\n", s.on.Addr(true))
	if s.bfd {
		b.WriteString("protocol bfd { interface \"*\" { interval 50 ms; multiplier 3; }; }\n")
	}
	if s.hops > 0 { // the way to the nodes, by which it resolves next hops
		fmt.Fprintf(&b, "protocol static s4 { ipv4; route %s via %s; }\nprotocol static s6 { ipv6; route %s via %s; }\n",
			near(0)[0].Masked(), distant(1)[0].Addr(), near(0)[1].Masked(), distant(1)[1].Addr())
	}
	for _, n := range r.nodes {
		fmt.Fprintf(&b, "protocol bgp %s {\n  local %s as %d;\n  neighbor %s as %d;\n"+
			"  connect delay time 0; connect retry time 1;\n"+
			"  error wait time 1, 2;\n  hold time %d;\n", n.Name, own, uint32(s.own), n.Addr(!s.six), s.as, s.hold)
		if s.password != "" {
			fmt.Fprintf(&b, "  password %q;\n", s.password)
		}
		if s.bfd {
			b.WriteString("  bfd on;\n")
		}
		extended := ""
		if s.extended {
			extended = " extended next hop on;"
		}
		if s.hops > 0 {
			fmt.Fprintf(&b, "  multihop %d; ttl security on;\n", s.hops)
		} else {
			b.WriteString("  direct;\n")
		}
		fmt.Fprintf(&b, "  ipv4 { import filter shut; export none;%s };\n  ipv6 { import filter shut; export none; };\n}\n",
			extended)
	}
	d := r.startBIRD(t, s.on, b.String())
	control := []string{"/usr/sbin/birdc", "-s", filepath.Join(r.dir, s.on.Name+"-bird.ctl")}
	d.ask = func(vip netip.Addr) []string { return append(control, "show", "route", "for", vip.String(), "all") }
	d.flap = append(control, "restart", "all")
	return d
}

func (r *routing) startBIRD(t *testing.T, m *lab.Machine, config string) *daemon {
	t.Helper()
	file := filepath.Join(r.dir, m.Name+"-bird.conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return r.run(t, m, "bird on "+m.Name, []string{"/usr/sbin/bird", "-f", "-c", file,
		"-s", filepath.Join(r.dir, m.Name+"-bird.ctl"), "-P", filepath.Join(r.dir, m.Name+"-bird.pid")})
}

// paths are the next hops that a machine's kernel has for a virtual address.
func paths(t *testing.T, m *lab.Machine, vip netip.Addr) (hops []netip.Addr) {
	t.Helper()
	family := netlink.FAMILY_V4
	if vip.Is6() {
		family = netlink.FAMILY_V6
	}
	err := m.Do(func() error {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{
			Dst: &net.IPNet{IP: vip.AsSlice(), Mask: net.CIDRMask(vip.BitLen(), vip.BitLen())},
		}, netlink.RT_FILTER_DST)
		for _, r := range routes {
			add := func(ip net.IP, via netlink.Destination) {
				if v, ok := via.(*netlink.Via); ok && v != nil { // of the other family
					ip = v.Addr
				}
				if a, ok := netip.AddrFromSlice(ip); ok {
					hops = append(hops, a.Unmap())
				}
			}
			add(r.Gw, r.Via)
			for _, p := range r.MultiPath {
				add(p.Gw, p.Via)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(hops, netip.Addr.Compare)
	return slices.Compact(hops)
}

// linkLocal is the link-local address of IPv6 of a machine.
func linkLocal(t *testing.T, m *lab.Machine) (addr netip.Addr) {
	t.Helper()
	err := m.Do(func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := ifi.Addrs()
		for _, a := range addrs {
			if p, e := netip.ParsePrefix(a.String()); e == nil && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
				addr = p.Addr()
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// awaitPaths waits until the router sends clients of both families to these nodes and to no other.
func (r *routing) awaitPaths(t *testing.T, to ...int) {
	t.Helper()
	r.awaitPathsAt(t, r.router, false, to...)
}

// awaitPathsAt is awaitPaths for one of several routers. One that is extended sends packets of IPv4 by IPv6.
func (r *routing) awaitPathsAt(t *testing.T, at *lab.Machine, extended bool, to ...int) {
	t.Helper()
	for _, vip := range []netip.Addr{routed4, routed6} {
		var want, local []netip.Addr // OSPF for IPv6 has link-local next hops (RFC 5340, section 4.8.2)
		for _, i := range to {
			want = append(want, r.nodes[i].Addr(vip.Is4() && !extended))
			local = append(local, linkLocal(t, r.nodes[i]))
		}
		slices.SortFunc(local, netip.Addr.Compare)
		eventually(t, func() error {
			if got := paths(t, at, vip); !slices.Equal(got, want) && (vip.Is4() || !slices.Equal(got, local)) {
				return fmt.Errorf("%s has %v for %s, want %v", at.Name, got, vip, want)
			}
			return nil
		})
	}
}

// served waits until a client behind the router gets an answer from every node, by both families.
func (r *routing) served(t *testing.T, from ...string) {
	t.Helper()
	for _, vip := range []netip.Addr{routed4, routed6} {
		answered := map[string]bool{}
		eventually(t, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			c, err := r.far.Dial(ctx, netip.AddrPortFrom(vip, scene.Port))
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Second))
			a, err := lab.Ask(c, "hello")
			if err != nil {
				return err
			}
			if own := r.far.Addr(vip.Is4()); a.Client.Addr().Unmap() != own {
				return fmt.Errorf("the server sees %s as %s", own, a.Client)
			}
			answered[a.Server] = true
			for _, name := range from {
				if !answered[name] {
					return fmt.Errorf("%s has not answered for %s yet", name, vip)
				}
			}
			return nil
		})
	}
}

// announced is what a node says of its announcements.
func announced(t *testing.T, p *program) *status.AnnounceView {
	t.Helper()
	s, err := p.client.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Announce == nil {
		t.Fatalf("%s says nothing of announcements", s.ID)
	}
	return s.Announce
}

// bothRouters runs a test against FRR and against BIRD.
func bothRouters(t *testing.T, f func(t *testing.T, r *routing, start func(*testing.T, session) *daemon)) {
	t.Helper()
	for name, start := range map[string]func(*routing, *testing.T, session) *daemon{
		"FRR": (*routing).frr, "BIRD": (*routing).bird,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRouting(t)
			f(t, r, func(t *testing.T, s session) *daemon { return start(r, t, s) })
		})
	}
}

// Every node announces, the router spreads clients over them, and servers see the clients' own addresses.
func TestRoutersSpreadClients(t *testing.T) {
	bothRouters(t, func(t *testing.T, r *routing, start func(*testing.T, session) *daemon) {
		d := start(t, session{})
		r.start(t, r.speaksBGP("", ""))
		r.awaitPaths(t, 0, 1, 2)
		r.served(t, "n1", "n2", "n3")
		for _, p := range r.apps {
			v := announced(t, p)
			if len(v.Sessions) != 1 || !v.Sessions[0].Established() || len(v.Sessions[0].Announced) != 2 {
				t.Errorf("%s says of its sessions: %+v", p.node.Name, v.Sessions)
			}
		}

		// A node that is drained is left out, and comes back.
		command(t, r.apps[1].path+".sock", "drain")
		r.awaitPaths(t, 0, 2)
		command(t, r.apps[1].path+".sock", "undrain")
		r.awaitPaths(t, 0, 1, 2)

		// A node that stops is left out, and nobody is without an answer meanwhile.
		probe := r.far.Probe(t.Context(), lab.Probe{Target: netip.AddrPortFrom(routed4, scene.Port), Patience: time.Second})
		r.apps[2].stop(t)
		r.awaitPaths(t, 0, 1)
		probe.Finish()
		probe.Stop()
		for _, try := range probe.Tries() {
			if try.Err != nil {
				t.Errorf("while a node stopped a client got: %v", try.Err)
				break
			}
		}
		r.apps[2].start(t)
		r.awaitPaths(t, 0, 1, 2)

		// A process that is killed takes its routes along.
		r.apps[0].proc.Kill()
		r.awaitPaths(t, 1, 2)
		r.served(t)
		r.apps[0].start(t)
		r.awaitPaths(t, 0, 1, 2)

		// A router that restarts is told again.
		d.stop(t)
		start(t, session{})
		r.awaitPaths(t, 0, 1, 2)
		r.served(t)
	})
}

// A router that wants another password has no session, and the status says what to compare.
func TestRouterWithAnotherPassword(t *testing.T) {
	bothRouters(t, func(t *testing.T, r *routing, start func(*testing.T, session) *daemon) {
		start(t, session{password: "right"})
		file := filepath.Join(r.dir, "password")
		if err := os.WriteFile(file, []byte("wrong\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		r.start(t, r.speaksBGP("", ", passwordFile: "+file))
		eventually(t, func() error {
			s := announced(t, r.apps[0]).Sessions[0]
			if s.Established() || !strings.Contains(s.Reason, "same password") {
				return fmt.Errorf("%s: %s", s.State, s.Reason)
			}
			return nil
		})
		if got := paths(t, r.router, routed4); len(got) > 0 {
			t.Errorf("the router has %v for %s", got, routed4)
		}
		if err := os.WriteFile(file, []byte("right\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, p := range r.apps {
			p.stop(t)
			p.start(t)
		}
		r.awaitPaths(t, 0, 1, 2)
	})
}

// watched waits until BFD is up on both sides of every session. A router sends once a second at most until it takes the
// session for up, too (RFC 5880, section 6.8.3), and tells BGP of no loss before that.
func (r *routing) watched(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		for _, p := range r.apps {
			if b := announced(t, p).Sessions[0].BFD; b == nil || b.State != "up" || b.Detection > 200*time.Millisecond {
				return fmt.Errorf("BFD on %s: %+v, want it up on both sides", p.node.Name, b)
			}
		}
		return nil
	})
}

// A host that vanishes is noticed by BFD in both directions, long before the hold time of 90 s.
func TestBFDNoticesLostHost(t *testing.T) {
	bothRouters(t, func(t *testing.T, r *routing, start func(*testing.T, session) *daemon) {
		start(t, session{bfd: true, hold: 90})
		r.start(t, r.speaksBGP("", ", bfd: true"))
		r.awaitPaths(t, 0, 1, 2)
		r.watched(t)
		probe := r.far.Probe(t.Context(), lab.Probe{Target: netip.AddrPortFrom(routed4, scene.Port)})
		began := time.Now()
		if err := r.nodes[2].Unplug(); err != nil {
			t.Fatal(err)
		}
		r.awaitPaths(t, 0, 1)
		t.Logf("the router has left out the lost host after %v", time.Since(began))
		outage, err := probe.WaitSteady(t.Context(), began)
		probe.Stop()
		t.Logf("a client saw: %v, %v", outage, err)
		eventually(t, func() error {
			s := announced(t, r.apps[2]).Sessions[0]
			if s.Established() || s.Ended == 0 {
				return fmt.Errorf("the lost host says of its session: %+v", s)
			}
			return nil
		})
		if err := r.nodes[2].Plug(); err != nil {
			t.Fatal(err)
		}
		r.awaitPaths(t, 0, 1, 2)
		r.watched(t)
	})
}
