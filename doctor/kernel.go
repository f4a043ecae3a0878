package doctor

import (
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// privileges compares what this process may do with what the appliance needs.
func (v *visit) privileges() (all []Finding) {
	status, err := fs.ReadFile(v.files, "proc/self/status")
	if err != nil {
		return []Finding{problem("privileges", err.Error(), "the capabilities of this process are unknown", "mount /proc")}
	}
	have, err := capabilities(string(status))
	if err != nil {
		return []Finding{problem("privileges", err.Error(), "the capabilities of this process are unknown",
			"run this as root")}
	}
	need := []struct {
		bit       int
		name, why string
	}{
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "it binds the virtual addresses and programs the kernel"},
		{unix.CAP_NET_RAW, "CAP_NET_RAW", "it answers ARP and neighbour solicitations"},
	}
	if slices.ContainsFunc(v.listeners(), func(l listener) bool { return l.at.Port() < 1024 }) {
		need = append(need, struct {
			bit       int
			name, why string
		}{unix.CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE", "a port below 1024 is to be listened on"})
	}
	for _, n := range need {
		if have&(1<<n.bit) == 0 {
			all = append(all, problem("privileges", "this process lacks "+n.name, n.why,
				"run this as root (sudo appliance doctor); `appliance manifest` and the systemd unit grant it to the appliance"))
		}
	}
	if len(all) == 0 {
		all = append(all, fine("privileges", "the capabilities that the appliance needs are there"))
	}
	return all
}

// capabilities reads the mask CapEff of proc(5).
func capabilities(status string) (uint64, error) {
	for line := range strings.Lines(status) {
		if mask, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		}
	}
	return 0, fmt.Errorf("/proc/self/status has no line CapEff")
}

// kernel looks at what each data plane needs of the kernel.
func (v *visit) kernel() (all []Finding) {
	release := v.line("proc/sys/kernel/osrelease")
	if major, minor, ok := kernelVersion(release); ok && (major < 5 || major == 5 && minor < 18) {
		all = append(all, hint("kernel", "Linux "+release+" does not remember who added an address (from 5.18 on)",
			"after a crash, cleanup has to be told which addresses are the appliance's", "appliance cleanup --vip ADDRESS"))
	}
	if major, minor, ok := kernelVersion(release); ok && (major < 6 || major == 6 && minor < 1) {
		all = append(all, hint("kernel", "Linux "+release+" is older than any that the appliance was tried on (6.1)",
			"what it lacks is found by trying, and a data plane without it is chosen", "use a newer kernel"))
	}
	switch err := v.TryRules(); {
	case err != nil:
		all = append(all, problem("nf_tables", err.Error(),
			"IPv4 needs it so that the kernel does not answer for the virtual address; the data planes direct and nftables "+
				"are made of it",
			"modprobe nf_tables; a container needs the capability NET_ADMIN"))
	default:
		all = append(all, fine("nf_tables", "the kernel takes the rules that the appliance makes"))
		if err := v.TryAssign(); err != nil {
			all = append(all, hint("nf_tables", "the kernel lacks nft_tproxy: "+err.Error(),
				"user space gets its clients on another port, which a firewall of this host has to let in",
				"use a kernel with CONFIG_NFT_TPROXY, or accept `ct status dnat` in the firewall's input chain"))
		}
	}
	switch {
	case v.exists("proc/net/ip_vs"):
		all = append(all, fine("ip_vs", "loaded: the data plane ipvs can be had"))
	case v.hasModule(release, "ip_vs"):
		all = append(all, fine("ip_vs", "the kernel has it as a module and loads it when it is needed: the data plane ipvs "+
			"can be had"))
	default:
		forced := v.forced("ipvs")
		f := fine("ip_vs", "not found: the data plane ipvs cannot be had, and none of the others needs it")
		if forced {
			f = problem("ip_vs", "not found, and dataPlane: ipvs asks for it", "the appliance would not start",
				"install the kernel's modules (Debian: linux-image-amd64, Fedora: kernel-modules), or set dataPlane: auto")
		}
		all = append(all, f)
	}
	wants6 := slices.ContainsFunc(v.cfg.VIPs, netip.Addr.Is6)
	switch off := v.line("proc/sys/net/ipv6/conf/all/disable_ipv6"); {
	case off == "0":
		all = append(all, fine("ipv6", "on"))
	case wants6:
		all = append(all, problem("ipv6", "IPv6 is off on this host", "a virtual address is IPv6",
			"sysctl -w net.ipv6.conf.all.disable_ipv6=0   # off by the kernel's command line: remove ipv6.disable=1 there"))
	default:
		all = append(all, fine("ipv6", "off, and not asked for"))
	}
	for _, vip := range v.cfg.VIPs {
		name := v.on[vip]
		if name != "" && vip.Is6() && v.line("proc/sys/net/ipv6/conf/"+sysctlName(name)+"/disable_ipv6") == "1" {
			all = append(all, problem("ipv6", "IPv6 is off on "+name, vip.String()+" is to be answered for there",
				fmt.Sprintf("sysctl -w net/ipv6/conf/%s/disable_ipv6=0", name)))
		}
	}
	return all
}

// sysctlName is an interface's directory below /proc/sys/net/ipv4/conf.
func sysctlName(iface string) string { return path.Base(iface) }

// kernelVersion reads 6.1.0-18-amd64.
func kernelVersion(release string) (major, minor int, ok bool) {
	n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return major, minor, n == 2
}

// hasModule looks a module up among those that are built in or can be loaded.
func (v *visit) hasModule(release, name string) bool {
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		data, err := fs.ReadFile(v.files, path.Join("lib/modules", release, list))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
			module, _, _ := strings.Cut(path.Base(file), ".ko")
			if module == name {
				return true
			}
		}
	}
	return false
}

// forced says whether a load balancer insists on a data plane.
func (v *visit) forced(plane string) bool {
	for _, lb := range v.cfg.LoadBalancers {
		if string(lb.DataPlane) == plane {
			return true
		}
	}
	return false
}

// sysctls looks at the settings of the network that the appliance changes or depends on.
func (v *visit) sysctls() (all []Finding) {
	if !v.Writable("proc/sys/net/ipv4/ip_forward") && !v.Writable("host/proc/sys/net/ipv4/ip_forward") {
		all = append(all, hint("sysctls", "/proc/sys/net cannot be written",
			"the data planes ipvs and nftables switch forwarding on where backends are on other hosts, and arp_ignore is a "+
				"second guard of the virtual address",
			"in a container, mount the host's /proc/sys/net at /host/proc/sys/net, as `appliance manifest` does; on a host, "+
				"run this as root"))
	}
	remote := v.remoteBackends()
	for _, s := range []struct {
		path string
		is6  bool
	}{{"net/ipv4/ip_forward", false}, {"net/ipv6/conf/all/forwarding", true}} {
		wanted := slices.ContainsFunc(v.cfg.VIPs, func(a netip.Addr) bool { return a.Is6() == s.is6 })
		if wanted && remote && v.line("proc/sys/"+s.path) == "0" {
			all = append(all, fine("sysctls", "%s is 0; the appliance sets it to 1 if the data plane needs it, and back at "+
				"its end",
				strings.ReplaceAll(s.path, "/", ".")))
		}
	}
	for _, vip := range v.cfg.VIPs {
		name := v.on[vip]
		if name != "" && vip.Is4() && v.line("proc/sys/net/ipv4/conf/"+sysctlName(name)+"/arp_ignore") == "8" {
			all = append(all, problem("sysctls", "net.ipv4.conf."+name+".arp_ignore is 8",
				"this host answers no ARP at all there",
				fmt.Sprintf("sysctl -w net/ipv4/conf/%s/arp_ignore=0", name)))
		}
	}
	if len(all) == 0 {
		all = append(all, fine("sysctls", "/proc/sys/net can be written"))
	}
	return all
}

// remoteBackends says whether a backend is on another host.
func (v *visit) remoteBackends() bool {
	for _, lb := range v.cfg.LoadBalancers {
		for _, b := range lb.Backends {
			if !v.local(b.Addr.Addr()) {
				return true
			}
		}
	}
	return false
}

// local says whether this host has the address.
func (v *visit) local(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	return slices.ContainsFunc(v.ifs, func(i Interface) bool {
		return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr() == a.WithZone("") })
	})
}

// clock says whether somebody keeps the clock. The group does not depend on it.
func (v *visit) clock() []Finding {
	switch ok, err := v.ClockSynchronised(); {
	case err != nil:
		return []Finding{hint("clock", "whether the clock is kept right is unknown: "+err.Error(), "", "timedatectl")}
	case !ok:
		return []Finding{hint("clock", "nothing keeps the clock of this host right",
			"the group does not depend on clocks, but certificates of your own do, and so do those who compare events of "+
				"several nodes",
			"apt-get install chrony, or: timedatectl set-ntp true")}
	}
	return []Finding{fine("clock", "kept right")}
}
