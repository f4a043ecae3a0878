package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"appliance/lab"
	"appliance/status/client"
)

// The AS numbers of nodes and router, the port of the servers, and the virtual address, which is in no subnet.
const (
	nodesAS    = 64512
	routerAS   = 64500
	routedPort = 6443
)

var routedVIP = netip.MustParseAddr("198.51.100.10")

// A routed is a group behind a router that spreads clients over its nodes: three nodes, each with a server, BIRD with
// BFD and ECMP by addresses and ports, and a client behind it.
type routed struct {
	name, dir, binary string
	lab               *lab.Lab
	nodes             []*lab.Machine
	apps              []*lab.Process
	router, client    *lab.Machine
	servers           lab.Servers
}

// newRouted builds the machines, and starts everything.
func newRouted(name, binary, plane string) (r *routed, err error) {
	r = &routed{name: name, binary: binary, apps: make([]*lab.Process, 3)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
			r = nil
		}
	}()
	if r.dir, err = os.MkdirTemp("", "bench-routers-"); err != nil {
		return r, err
	}
	if r.lab, err = lab.New(lab.Layout{}); err != nil {
		return r, err
	}
	at := func(net, n int) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.%d/24", net, n))}
	}
	if r.router, err = r.lab.Router("router", at(77, 1), at(78, 1)); err != nil {
		return r, err
	}
	if r.client, err = r.lab.FarMachine("client", r.router, at(78, 50)...); err != nil {
		return r, err
	}
	if err := r.client.Route(netip.PrefixFrom(routedVIP, 32), at(78, 1)[0].Addr()); err != nil {
		return r, err
	}
	err = r.router.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/fib_multipath_hash_policy", []byte("1"), 0)
	})
	if err != nil {
		return r, err
	}
	var config strings.Builder
	fmt.Fprintf(&config, "vips: [%q]\ndataPlane: %s\naddPeersAsBackends: true\nloadBalancers:\n"+
		"- {name: test, port: %d, check: {type: tcp}}\nannounce:\n  by: bgp\n  bgp:\n    as: %d\n    holdTime: 90s\n"+
		"    neighbours:\n    - {address: %q, as: %d, bfd: true}\ngroup: {keyFile: %s}\npeers:\n",
		routedVIP, plane, routedPort, nodesAS, r.router.Addr(true), routerAS, r.path("group.key"))
	for i := range r.apps {
		m, err := r.lab.Machine(fmt.Sprintf("n%d", i+1), at(77, 11+i)...)
		if err != nil {
			return r, err
		}
		r.nodes = append(r.nodes, m)
		fmt.Fprintf(&config, "- {id: %s, address: %q}\n", m.Name, m.Addr(true))
		if err := m.Route(at(78, 0)[0].Masked(), r.router.Addr(true)); err != nil {
			return r, err
		}
		anywhere := netip.AddrPortFrom(netip.IPv4Unspecified(), routedPort)
		if _, err := r.servers.Serve(m, m.Name, anywhere, nil); err != nil {
			return r, err
		}
	}
	key, err := exec.Command(binary, "keygen").Output()
	if err != nil {
		return r, fmt.Errorf("keygen: %w", err)
	}
	err = errors.Join(os.WriteFile(r.path("group.key"), key, 0o600),
		os.WriteFile(r.path("appliance.yaml"), []byte(config.String()), 0o644), r.bird())
	for i := range r.apps {
		err = errors.Join(err, r.start(i))
	}
	return r, err
}

func (r *routed) path(name string) string { return filepath.Join(r.dir, name) }

// bird starts BIRD on the router.
func (r *routed) bird() error {
	var b strings.Builder
	fmt.Fprintf(&b, "log stderr all;\nrouter id %s;\nprotocol device { scan time 1; }\nprotocol direct { ipv4; }\n"+
		"protocol kernel { ipv4 { export all; import none; }; merge paths on; }\n"+
		"protocol bfd { interface \"*\" { interval 50 ms; multiplier 3; }; }\n"+
		"filter shut { if (65535, 0) ~ bgp_community then bgp_local_pref = 0; accept; }\n", r.router.Addr(true))
	for _, n := range r.nodes {
		fmt.Fprintf(&b, "protocol bgp %s {\n  local %s as %d;\n  neighbor %s as %d;\n  bfd on;\n  hold time 90;\n"+
			"  connect delay time 0;\n  connect retry time 1;\n  error wait time 1, 2;\n"+
			"  ipv4 { import filter shut; export none; };\n}\n",
			n.Name, r.router.Addr(true), routerAS, n.Addr(true), nodesAS)
	}
	if err := os.WriteFile(r.path("bird.conf"), []byte(b.String()), 0o644); err != nil {
		return err
	}
	_, err := r.run(r.router, "bird.log", "/usr/sbin/bird", "-f", "-c", r.path("bird.conf"), "-s", r.path("bird.ctl"))
	return err
}

// run starts a program on a machine.
func (r *routed) run(m *lab.Machine, log, program string, args ...string) (*lab.Process, error) {
	f, err := os.OpenFile(r.path(log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the process has its own
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = f, f
	return m.Start(cmd)
}

// start starts the appliance on node i.
func (r *routed) start(i int) (err error) {
	name := r.nodes[i].Name
	r.apps[i], err = r.run(r.nodes[i], name+".log", r.binary, "start", "--config", r.path("appliance.yaml"),
		"--data-dir", r.path(name), "--socket", r.socket(i))
	return err
}

func (r *routed) socket(i int) string { return r.path(r.nodes[i].Name + ".sock") }

// command runs a command of the appliance against node i.
func (r *routed) command(i int, word string) error {
	if out, err := exec.Command(r.binary, word, "--socket", r.socket(i)).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", word, err, out)
	}
	return nil
}

func (r *routed) signal(i int, s syscall.Signal) error { return r.apps[i].Signal(s) }

func (r *routed) close() (err error) {
	r.servers.Close()
	if r.lab != nil {
		err = r.lab.Close()
	}
	return errors.Join(err, os.RemoveAll(r.dir))
}

// hops are where the router sends clients.
func (r *routed) hops() (hops []netip.Addr, err error) {
	err = r.router.Do(func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{
			Dst: &net.IPNet{IP: routedVIP.AsSlice(), Mask: net.CIDRMask(32, 32)},
		}, netlink.RT_FILTER_DST)
		for _, one := range routes {
			if a, ok := netip.AddrFromSlice(one.Gw); ok {
				hops = append(hops, a.Unmap())
			}
			for _, p := range one.MultiPath {
				if a, ok := netip.AddrFromSlice(p.Gw); ok {
					hops = append(hops, a.Unmap())
				}
			}
		}
		return err
	})
	return hops, err
}

// awaitHop waits until the router sends clients to node i, or does not any more.
func (r *routed) awaitHop(ctx context.Context, i int, wanted bool) error {
	for {
		hops, err := r.hops()
		if err != nil {
			return err
		}
		if slices.Contains(hops, r.nodes[i].Addr(true)) == wanted {
			return nil
		}
		if sleep(ctx, 5*time.Millisecond) != nil {
			return fmt.Errorf("%s: the router sends clients to %v; %s should be among them: %v", r.name, hops,
				r.nodes[i].Addr(true), wanted)
		}
	}
}

// awaitWell waits until the router sends clients to all nodes, watches all of them, and no node passes a server over.
func (r *routed) awaitWell(ctx context.Context) error {
	for i := range r.nodes {
		if err := r.awaitHop(ctx, i, true); err != nil {
			return err
		}
		for {
			why := r.unwell(ctx, i)
			if why == "" {
				break
			}
			if sleep(ctx, 100*time.Millisecond) != nil {
				return fmt.Errorf("%s: %s", r.name, why)
			}
		}
	}
	return nil
}

// unwell says why node i is not as it should be before a fault.
func (r *routed) unwell(ctx context.Context, i int) string {
	s, err := client.New(r.socket(i)).Snapshot(ctx)
	switch {
	case err != nil:
		return err.Error()
	case len(s.NotReady) > 0:
		return s.NotReady[0].String()
	case s.Announce == nil || len(s.Announce.Sessions) != 1 || !s.Announce.Sessions[0].Established():
		return s.ID + " has no session"
	case s.Announce.Sessions[0].BFD == nil || s.Announce.Sessions[0].BFD.Detection > 200*time.Millisecond:
		return s.ID + " is not watched by BFD"
	}
	for _, lb := range s.LoadBalancers {
		for _, be := range lb.Backends {
			if be.State != "up" || be.PassedOver != "" {
				return fmt.Sprintf("%s does not use %s: %s %s", s.ID, be.Name, be.Reason, be.PassedOver)
			}
		}
	}
	return ""
}
