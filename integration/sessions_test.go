package integration

import (
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"appliance/lab"
	"appliance/status"
)

// A gallery is a routing with three routers at once: two on the link of the nodes, and one a hop behind the first.
type gallery struct {
	*routing
	second *lab.Machine
}

// newGallery builds a gallery without daemons.
func newGallery(t *testing.T) *gallery {
	t.Helper()
	r := newRouting(t)
	second, err := r.lab.Router("second", near(2), distant(2))
	if err != nil {
		t.Fatal(err)
	}
	return &gallery{r, second}
}

// sessionOf is what a node says of its session with a router.
func sessionOf(t *testing.T, p *program, router netip.Addr) status.SessionView {
	t.Helper()
	v := announced(t, p)
	i := slices.IndexFunc(v.Sessions, func(s status.SessionView) bool { return s.Neighbour == router })
	if i < 0 {
		t.Fatalf("%s has no neighbour %s", p.node.Name, router)
	}
	return v.Sessions[i]
}

// output is what a command says on a machine.
func output(t *testing.T, m *lab.Machine, command []string) string {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := m.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	_ = p.Wait() // what it says tells more
	return out.String()
}

// Sessions of every kind side by side, with FRR and BIRD in either place: iBGP over IPv6 whose router takes next hops
// of IPv6 for IPv4, eBGP over IPv6 whose router does not, and eBGP over two hops with GTSM. One that claims to be on
// the link, and is not, gets no session.
func TestSessionsOfEveryKind(t *testing.T) {
	type start = func(*routing, *testing.T, session) *daemon
	frr, bird := start((*routing).frr), start((*routing).bird)
	for name, of := range map[string][3]start{
		"FRR within the AS": {frr, bird, bird}, "BIRD within the AS": {bird, frr, frr},
	} {
		t.Run(name, func(t *testing.T) {
			r := newGallery(t)
			of[0](r.routing, t, session{own: nodesAS, six: true, extended: true})
			of[1](r.routing, t, session{on: r.second, six: true})
			beyond := of[2](r.routing, t, session{on: r.far, hops: 2})
			// Packets of another host on its link come from as far.
			imposter := distant(51)[0]
			if out := output(t, r.far, []string{"/sbin/ip", "addr", "add", imposter.String(), "dev", "eth0"}); out != "" {
				t.Fatal(out)
			}
			within, without := r.router.Addr(false), r.second.Addr(false)
			r.start(t, fmt.Sprintf("  by: bgp\n  bgp:\n    as: %d\n    holdTime: 90s\n    med: 7\n    prepend: 2\n"+
				"    localPreference: 50\n    communities: [\"64512:77\"]\n    neighbours:\n"+
				"    - {address: %q, as: %d}\n    - {address: %q, as: %d}\n"+
				"    - {address: %q, as: %d, hops: 2, ttlSecurity: true}\n"+
				"    - {address: %q, as: %d, hops: 1, ttlSecurity: true}\n",
				nodesAS, within, nodesAS, without, uint32(routerAS), r.far.Addr(true), uint32(routerAS),
				imposter.Addr(), uint32(routerAS)))
			r.awaitPathsAt(t, r.router, true, 0, 1, 2)
			r.awaitPathsAt(t, r.second, false, 0, 1, 2)
			r.served(t, "n1", "n2", "n3")
			for _, p := range r.apps {
				eventually(t, func() error {
					s := sessionOf(t, p, r.far.Addr(true))
					if !s.Established() || len(s.Announced) != 2 {
						return fmt.Errorf("%s tells the router behind the first: %+v", p.node.Name, s)
					}
					return nil
				})
				if s := sessionOf(t, p, within); !slices.Equal(s.NextHops, []netip.Addr{p.node.Addr(false)}) {
					t.Errorf("%s tells the router within its AS next hops %v", p.node.Name, s.NextHops)
				}
			}
			// What the router two hops away has heard: the path, longer by two, the metric and the community.
			for _, vip := range []netip.Addr{routed4, routed6} {
				eventually(t, func() error {
					text := output(t, r.far, beyond.ask(vip))
					for _, want := range []string{`64512 64512 64512\s`, `metric 7,|med: 7\s`, `64512:77\s|\(64512,77\)`} {
						if !regexp.MustCompile(want).MatchString(text) {
							return fmt.Errorf("of %s the router has heard nothing like %s:\n%s", vip, want, text)
						}
					}
					return nil
				})
			}
			eventually(t, func() error {
				s := sessionOf(t, r.apps[0], imposter.Addr())
				if s.Established() || !strings.Contains(s.Reason, "does not answer on port 179") {
					return fmt.Errorf("a router that is further away than it may be: %+v", s)
				}
				return nil
			})
		})
	}
}

// With who: holder routers send clients to one node, whoever it is, whether the others announce nothing or stand by
// with a longer path. Sessions that routers reset come back. A node that stands by is taken when nobody holds any more.
func TestRoutersFollowHolder(t *testing.T) {
	for name, standby := range map[string]bool{"the others announce nothing": false, "the others stand by": true} {
		t.Run(name, func(t *testing.T) { routersFollowHolder(t, standby) })
	}
}

func routersFollowHolder(t *testing.T, standby bool) {
	r := newGallery(t)
	// One within the AS, where the preference decides, and one without, where the length of the path does.
	daemons := []*daemon{
		r.frr(t, session{six: true, own: nodesAS}), r.bird(t, session{on: r.second, six: true}),
	}
	machines := []*lab.Machine{r.router, r.second}
	r.start(t, fmt.Sprintf("  by: bgp\n  who: holder\n  grace: 100ms\n  standby: %v\n  bgp:\n    as: %d\n"+
		"    holdTime: 90s\n    neighbours:\n    - {address: %q, as: %d}\n    - {address: %q, as: %d}\n",
		standby, nodesAS, r.router.Addr(false), nodesAS, r.second.Addr(false), uint32(routerAS)))
	follow := func(i int) {
		t.Helper()
		for _, m := range machines {
			r.awaitPathsAt(t, m, false, i)
		}
	}
	first := r.holder(t, -1)
	follow(first)
	r.served(t)
	for k, p := range r.apps {
		eventually(t, func() error {
			for _, a := range announced(t, p).Addresses {
				stands := standby && k != first
				if a.Announced != (k == first || stands) || a.Standby != stands ||
					k != first && a.Reason != "this node does not hold" {
					return fmt.Errorf("n%d, while n%d holds: %+v", k+1, first+1, a)
				}
			}
			return nil
		})
	}
	for k, d := range daemons {
		was := sessionOf(t, r.apps[first], machines[k].Addr(false)).Ended
		output(t, machines[k], d.flap)
		eventually(t, func() error {
			s := sessionOf(t, r.apps[first], machines[k].Addr(false))
			if s.Ended == was || !s.Established() || len(s.Announced) != 2 {
				return fmt.Errorf("%s has reset its sessions: %+v", d.name, s)
			}
			return nil
		})
	}
	follow(first)
	command(t, r.apps[first].path+".sock", "drain")
	second := r.holder(t, first)
	follow(second)
	command(t, r.apps[first].path+".sock", "undrain")
	if standby { // the node has heard of it
		eventually(t, func() error {
			for _, a := range announced(t, r.apps[first]).Addresses {
				if !a.Standby {
					return fmt.Errorf("n%d is not drained any more: %+v", first+1, a)
				}
			}
			return nil
		})
	}
	// A holder that is killed takes its routes along, and the next one announces.
	r.apps[second].proc.Kill()
	third := r.holder(t, second)
	follow(third)
	r.served(t)
	if standby { // of three, one alone has no majority and does not hold
		r.apps[third].proc.Kill()
		follow(3 - second - third)
		r.served(t)
	}
}

// holder waits until a node holds that is not this one.
func (r *routing) holder(t *testing.T, not int) (i int) {
	t.Helper()
	eventually(t, func() error {
		for k, p := range r.apps {
			s, err := p.client.Snapshot(t.Context())
			if err == nil && s.Group.Holding && k != not {
				i = k
				return nil
			}
		}
		return fmt.Errorf("nobody but n%d holds", not+1)
	})
	return i
}

// With announce: routes another daemon of the node announces what the kernel's table has: here BIRD. Routers follow a
// drain and a stop.
func TestKernelRoutesAreAnnounced(t *testing.T) {
	for name, speak := range map[string]func(*routing, *testing.T){
		"BGP": (*routing).redistributeByBGP, "OSPF": (*routing).redistributeByOSPF,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRouting(t)
			speak(r, t)
			r.start(t, "  by: routes\n")
			r.awaitPaths(t, 0, 1, 2)
			r.served(t, "n1", "n2", "n3")
			command(t, r.apps[1].path+".sock", "drain")
			r.awaitPaths(t, 0, 2)
			r.apps[2].stop(t)
			r.awaitPaths(t, 0)
			command(t, r.apps[1].path+".sock", "undrain")
			r.awaitPaths(t, 0, 1)
			r.served(t)
		})
	}
}

// kernelRoutes is a configuration of BIRD: channel says what is between it and the kernel's tables.
func kernelRoutes(m *lab.Machine, channel string) string {
	return "log stderr all;\nrouter id " + m.Addr(true).String() + ";\nprotocol device { scan time 1; }\n" +
		"protocol kernel k4 { merge paths on; scan time 1; " + channel + " }\n" +
		"protocol kernel k6 { merge paths on; scan time 1; " + strings.Replace(channel, "ipv4", "ipv6", 1) + " }\n"
}

// What BIRD on a node learns from the kernel, and what of it is the appliance's.
const (
	learned = "learn; ipv4 { import all; export none; };"
	ours    = "where source = RTS_INHERIT && krt_source = 86"
)

// redistributeByBGP starts BIRD on all machines, with a session for each family.
func (r *routing) redistributeByBGP(t *testing.T) {
	t.Helper()
	bgp := func(name string, is4 bool, from, to *lab.Machine, as, remote int, export string) string {
		family := map[bool]string{true: "ipv4", false: "ipv6"}[is4]
		return fmt.Sprintf("protocol bgp %s_%s {\n local %s as %d; neighbor %s as %d; direct; connect retry time 1; "+
			"connect delay time 0; error wait time 1, 2;\n %s { import all; export %s; };\n}\n",
			name, family, from.Addr(is4), uint32(as), to.Addr(is4), uint32(remote), family, export)
	}
	router := kernelRoutes(r.router, "ipv4 { import none; export all; };")
	for _, n := range r.nodes {
		node := kernelRoutes(n, learned)
		for _, is4 := range []bool{true, false} {
			node += bgp("upstream", is4, n, r.router, nodesAS, routerAS, ours)
			router += bgp(n.Name, is4, r.router, n, routerAS, nodesAS, "none")
		}
		r.startBIRD(t, n, node)
	}
	r.startBIRD(t, r.router, router)
}

// redistributeByOSPF starts BIRD on the nodes and FRR on the router, with OSPF for IPv4 and for IPv6.
func (r *routing) redistributeByOSPF(t *testing.T) {
	t.Helper()
	for _, n := range r.nodes {
		node := kernelRoutes(n, learned)
		for family, version := range map[string]string{"ipv4": "v2", "ipv6": "v3"} {
			node += fmt.Sprintf("protocol ospf %s { %s { import none; export %s; };\n"+
				" area 0 { interface \"eth0\" { hello 1; dead 4; }; };\n}\n", version, family, ours)
		}
		r.startBIRD(t, n, node)
	}
	config := func(router, on string) string {
		return fmt.Sprintf("interface eth0\n %[2]s area 0\n %[2]s hello-interval 1\n %[2]s dead-interval 4\nexit\n"+
			"router %[1]s\n %[1]s router-id %[3]s\n", router, on, r.router.Addr(true))
	}
	r.startFRR(t, r.router, map[string]string{
		"ospfd": config("ospf", "ip ospf"), "ospf6d": config("ospf6", "ipv6 ospf6"),
	}, false)
}
