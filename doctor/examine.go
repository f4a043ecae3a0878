package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"appliance/configs"
)

// A Request says what the host is examined for.
type Request struct {
	Version string
	// About names where Config came from, for people.
	About string
	// Config is nil where the host alone is examined.
	Config *configs.Config
	// Invalid is why there is no Config although one was named.
	Invalid error
}

// visit is one examination.
type visit struct {
	HostView
	ctx   context.Context
	files fs.FS
	cfg   *configs.Config // never nil
	alone bool            // nothing is known of the group
	ifs   []Interface
	on    map[netip.Addr]string // the interface of each VIP, where there is one
	self  configs.PeerEntry
	here  bool // self is known
}

// Examine runs every check that fits the subject.
func Examine(ctx context.Context, h HostView, s Request) Diagnosis {
	v := &visit{HostView: h, ctx: ctx, files: h.Files(), cfg: s.Config, on: make(map[netip.Addr]string)}
	r := Diagnosis{Version: s.Version, About: s.About, Host: v.line("proc/sys/kernel/hostname"),
		Kernel: v.line("proc/sys/kernel/osrelease")}
	if s.Invalid != nil {
		r.add(problem("config", s.Invalid.Error(), "with such a file the appliance does not start",
			"correct what is named above; `appliance config sample` prints every key"))
	}
	if v.cfg == nil {
		v.cfg, v.alone = &configs.Config{}, true
	}
	var err error
	if v.ifs, err = h.Interfaces(); err != nil {
		r.add(problem("interfaces", err.Error(), "without its interfaces nothing can be said of the network",
			"run this as root"))
	}
	r.add(v.interfaces()...)
	r.add(v.whoAmI()...)
	checks := []func() []Finding{
		v.privileges, v.kernel, v.sysctls, v.rules, v.ports, v.addresses, v.peers, v.disk, v.clock, v.keys,
		v.kubeProxy, v.apiserver, v.certificates, v.managers, v.platform, v.firewall, v.confinement,
	}
	found := make([][]Finding, len(checks))
	var wg sync.WaitGroup
	// The network checks wait for answers, so all run beside each other.
	for i, check := range checks {
		wg.Go(func() { found[i] = check() })
	}
	wg.Wait()
	for _, f := range found {
		r.add(f...)
	}
	return r
}

// interfaces finds where each VIP would be answered for.
func (v *visit) interfaces() (all []Finding) {
	if v.cfg.Interface != "" && len(v.cfg.VIPs) == 0 {
		return nil
	}
	for _, vip := range v.cfg.VIPs {
		name, err := v.FindInterface(vip, v.cfg.Interface)
		if err != nil {
			all = append(all, problem("interface", err.Error(),
				"the virtual address is answered for on the link of one interface, and has to be in its subnet for clients there "+
					"to ask for it",
				"ip -brief address   # then set interface, or correct vips"))
			continue
		}
		v.on[vip] = name
		at := slices.IndexFunc(v.ifs, func(i Interface) bool { return i.Name == name })
		if at < 0 {
			continue
		}
		i := v.ifs[at]
		inside := slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Contains(vip) && !p.IsSingleIP() })
		switch {
		case !i.Up:
			all = append(all, problem("interface", fmt.Sprintf("%s, where %s belongs, is down", name, vip),
				"nobody can be answered there", "ip link set "+name+" up"))
		case !i.Carrier:
			all = append(all, problem("interface", fmt.Sprintf("%s, where %s belongs, has no carrier", name, vip),
				"nobody can be answered there", "check the cable, the switch port or the virtual network of "+name))
		case !inside:
			all = append(all, hint("interface", fmt.Sprintf("%s is in no subnet of %s (%s)", vip, name, prefixes(i.Addrs)),
				"clients of that link ask for addresses of their own subnet only; others need a route to it",
				"choose a free address of that subnet, or add a route to "+vip.String()+" at the clients' router"))
		default:
			all = append(all, fine("interface", "%s belongs on %s (%s)", vip, name, prefixes(i.Addrs)))
		}
		if i.Up {
			all = append(all, mtu(i, vip))
		}
	}
	return all
}

func mtu(i Interface, vip netip.Addr) Finding {
	switch {
	case vip.Is6() && i.MTU < 1280:
		return problem("mtu", fmt.Sprintf("%s has an MTU of %d bytes", i.Name, i.MTU),
			"IPv6 needs 1280 on every link (RFC 8200 section 5)", fmt.Sprintf("ip link set %s mtu 1500", i.Name))
	case i.MTU < 1500:
		return hint("mtu", fmt.Sprintf("%s has an MTU of %d bytes", i.Name, i.MTU),
			"the data plane direct hands clients' packets on as they came, so every node of the link needs the same MTU",
			fmt.Sprintf("ip -brief link show %s   # on every node; make them equal", i.Name))
	}
	return fine("mtu", "%s has an MTU of %d bytes", i.Name, i.MTU)
}

// whoAmI finds which node of the configuration this host is.
func (v *visit) whoAmI() []Finding {
	if v.alone {
		return nil
	}
	var local []netip.Addr
	for _, i := range v.ifs {
		for _, p := range i.Addrs {
			if !slices.Contains(v.cfg.VIPs, p.Addr()) {
				local = append(local, p.Addr())
			}
		}
	}
	self, err := v.cfg.Self(local, "")
	if err != nil {
		return []Finding{problem("self", err.Error(), "a node has to know which of the listed peers it is",
			"add this host's address to peers, or run with --id")}
	}
	v.self, v.here = self, true
	return []Finding{fine("self", "this host is %s, a %s", self.ID, self.Role)}
}

// line returns the first line of a file, or "".
func (v *visit) line(path string) string {
	data, err := fs.ReadFile(v.files, path)
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(strings.TrimRight(string(data), "\x00"), "\n")
	return strings.TrimSpace(first)
}

func (v *visit) exists(path string) bool {
	_, err := fs.Stat(v.files, path)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}

// prefixes lists addresses, or says that there are none.
func prefixes(list []netip.Prefix) string {
	var words []string
	for _, p := range list {
		words = append(words, p.String())
	}
	if len(words) == 0 {
		return "no address"
	}
	return strings.Join(words, ", ")
}

// frontends are the addresses and ports of the load balancers on the VIPs.
func (v *visit) frontends() []netip.AddrPort {
	var all []netip.AddrPort
	for _, lb := range v.cfg.LoadBalancers {
		for _, vip := range lb.VIPs {
			all = append(all, netip.AddrPortFrom(vip, lb.Port))
		}
	}
	return all
}
