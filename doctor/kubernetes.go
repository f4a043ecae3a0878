package doctor

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"appliance/configs"
	"appliance/nft/ruleset"
)

// kubeProxy finds kube-proxy's mode, and what of it matters.
func (v *visit) kubeProxy() (all []Finding) {
	ipvs := slices.ContainsFunc(v.ifs, func(i Interface) bool { return i.Name == "kube-ipvs0" })
	if ipvs {
		var cidrs []string
		for _, vip := range v.cfg.VIPs {
			cidrs = append(cidrs, netip.PrefixFrom(vip, vip.BitLen()).String())
		}
		if len(cidrs) == 0 {
			cidrs = []string{"VIP/32"}
		}
		return []Finding{hint("kube-proxy", "kube-proxy runs in its mode ipvs here",
			"it removes IPVS services that it does not know, and lets the kernel answer ARP for every address of kube-ipvs0; "+
				"the appliance puts back what is removed",
			fmt.Sprintf("in the ConfigMap kube-proxy: ipvs: {strictARP: true, excludeCIDRs: [%s]}; then restart its pods",
				strings.Join(cidrs, ", ")))}
	}
	chains, err := v.Chains()
	if err != nil {
		return nil
	}
	for _, c := range chains {
		switch {
		case c.Table == "kube-proxy":
			return []Finding{fine("kube-proxy", "runs in its mode nftables, which leaves the appliance's rules alone")}
		case strings.HasPrefix(c.Chain, "KUBE-"):
			return []Finding{fine("kube-proxy", "runs in its mode iptables, which leaves the appliance's rules alone")}
		}
	}
	return []Finding{fine("kube-proxy", "no sign of it on this host")}
}

// apiserver looks at where servers on this host listen.
func (v *visit) apiserver() (all []Finding) {
	have, err := v.sockets()
	if err != nil {
		return nil
	}
	for _, lb := range v.cfg.LoadBalancers {
		for _, s := range have {
			if s.network != "tcp" || s.at.Port() != lb.Port || !slices.Contains(lb.VIPs, s.at.Addr()) {
				continue
			}
			owner := v.owner(s.inode)
			if strings.HasPrefix(owner, "appliance ") {
				continue
			}
			all = append(all, problem("bind-address", fmt.Sprintf("%s listens on %s itself", owner, s.at),
				"the virtual address is the appliance's; a server that listens on it ends when the address goes, and bypasses "+
					"the balancing",
				"kube-apiserver: --bind-address=0.0.0.0 (or ::), with --advertise-address set to the node's own address"))
		}
		for _, b := range lb.Backends {
			if b.Resolved() && v.local(b.Addr.Addr()) {
				all = append(all, v.ownServer(lb, b.Addr, have))
			}
		}
	}
	return all
}

// ownServer looks for the server of a backend that is on this host.
func (v *visit) ownServer(lb configs.LoadBalancerEntry, at netip.AddrPort, have []socket) Finding {
	var elsewhere []string
	for _, s := range have {
		if s.network != "tcp" || s.at.Port() != at.Port() {
			continue
		}
		if collides(s, listener{network: "tcp", at: at}) {
			return fine("bind-address", "%s listens on %s, where load balancer %s expects this node's server", v.owner(s.inode),
				s.at, lb.Name)
		}
		elsewhere = append(elsewhere, s.at.String())
	}
	if len(elsewhere) > 0 {
		return problem("bind-address", fmt.Sprintf("this node's server listens on %s only, and load balancer %s expects it "+
			"on %s", strings.Join(elsewhere, ", "), lb.Name, at),
			"no other node, and no check, can reach it there", "have it listen on "+at.Addr().String()+" or on every address "+
				"(kube-apiserver: --bind-address=0.0.0.0 or ::)")
	}
	return fine("bind-address", "nothing listens on %s yet, where load balancer %s expects this node's server", at,
		lb.Name)
}

// certificates asks each TLS backend for its certificate: clients that use the VIP want to find it there.
func (v *visit) certificates() (all []Finding) {
	var wg sync.WaitGroup
	for _, lb := range v.cfg.LoadBalancers {
		found := make([]Finding, len(lb.Backends))
		for i, b := range lb.Backends {
			if !b.Resolved() {
				continue // `config check --live` looks names up
			}
			wg.Go(func() {
				// Without an answer it is not up yet, or speaks no TLS; `config check --live` tells.
				if cert, err := v.Certificate(v.ctx, b.Addr); err == nil {
					found[i] = certificate(cert, lb, b.Addr)
				}
			})
		}
		wg.Wait()
		all = append(all, found...)
	}
	return slices.DeleteFunc(all, func(f Finding) bool { return f.Check == "" })
}

// certificate judges one server's certificate.
func certificate(cert *x509.Certificate, lb configs.LoadBalancerEntry, at netip.AddrPort) Finding {
	var lacks []string
	for _, vip := range lb.VIPs {
		if cert.VerifyHostname(vip.String()) != nil {
			lacks = append(lacks, vip.String())
		}
	}
	if len(lacks) == 0 {
		return fine("certificate", "the certificate of %s is valid for %s", at, joined(lb.VIPs))
	}
	what := fmt.Sprintf("the certificate of %s is not valid for %s", at, strings.Join(lacks, ", "))
	if !slices.Contains(cert.DNSNames, "kubernetes.default.svc") {
		return hint("certificate", what, "clients that verify names refuse a connection to the address; those that use one "+
			"of the certificate's names do not ("+
			strings.Join(cert.DNSNames, ", ")+")", "issue it with IP:"+strings.Join(lacks,
			",IP:")+" among its subject alternative names")
	}
	return problem("certificate", what, "kubelet, kubectl and the others refuse to talk to the apiserver through the "+
		"virtual address", kubeadmLine(cert, lacks))
}

// kubeadmLine is what makes a new certificate with all names that the old one had, and the new ones.
func kubeadmLine(cert *x509.Certificate, more []string) string {
	names := slices.Clone(more)
	for _, n := range cert.DNSNames {
		if !strings.HasPrefix(n, "kubernetes") { // kubeadm adds those by itself
			names = append(names, n)
		}
	}
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return "on that node:\nmkdir -p /root/old-pki && mv /etc/kubernetes/pki/apiserver.{crt,key} /root/old-pki/\n" +
		"kubeadm init phase certs apiserver --apiserver-cert-extra-sans=" + strings.Join(names, ",") + "\n" +
		"crictl rm -f $(crictl ps -q --name kube-apiserver)   # it starts again with the new certificate\n" +
		"and keep it: certSANs in kubeadm's ClusterConfiguration (kubectl -n kube-system edit configmap kubeadm-config)"
}

// firewall looks for rules of others that may keep traffic out.
func (v *visit) firewall() (all []Finding) {
	chains, err := v.Chains()
	if err != nil {
		return []Finding{hint("firewall", "the rules of others cannot be read: "+err.Error(), "", "run this as root")}
	}
	var input, forward *ruleset.ForeignChain
	for _, c := range chains {
		if c.Drops && c.Hook == "input" && input == nil {
			input = &c
		}
		if c.Drops && c.Hook == "forward" && forward == nil {
			forward = &c
		}
	}
	firewalld := v.exists("run/firewalld/firewalld.conf") || v.exists("run/firewalld") || slices.ContainsFunc(chains,
		func(c ruleset.ForeignChain) bool { return c.Table == "firewalld" })
	ufw := slices.ContainsFunc(chains, func(c ruleset.ForeignChain) bool { return strings.HasPrefix(c.Chain, "ufw") }) ||
		strings.Contains(v.text("etc/ufw/ufw.conf"), "ENABLED=yes")
	tcp, udp := v.openPorts()
	switch {
	case firewalld:
		all = append(all, hint("firewall", "firewalld is at work here", "it drops what no zone lets in: "+tcp+" by "+
			"TCP, "+udp+" by UDP have to come in",
			fmt.Sprintf("firewall-cmd --permanent --add-port={%s}/tcp && firewall-cmd --permanent --add-port=%s/udp && "+
				"firewall-cmd --reload", strings.ReplaceAll(tcp, " ", ""), udp)))
	case ufw:
		all = append(all, hint("firewall", "ufw is at work here", "it drops what no rule lets in",
			fmt.Sprintf("ufw allow proto tcp to any port %s && ufw allow proto udp to any port %s", strings.ReplaceAll(tcp, " ",
				""), udp)))
	case input != nil:
		all = append(all, hint("firewall", fmt.Sprintf("chain %s of table %s %s drops what no rule of it lets in (%d rules)",
			input.Chain, input.Family, input.Table, input.Rules),
			"peers, clients of the virtual address and checks come in there",
			fmt.Sprintf("nft add rule %s %s %s tcp dport { %s } accept && nft add rule %s %s %s udp dport %s accept   # and "+
				"in the file that makes the table",
				input.Family, input.Table, input.Chain, tcp, input.Family, input.Table, input.Chain, udp)))
	}
	if forward != nil && v.remoteBackends() {
		all = append(all, hint("firewall", fmt.Sprintf("chain %s of table %s %s drops what it is not told to forward",
			forward.Chain, forward.Family, forward.Table),
			"the data planes ipvs and nftables forward to backends on other hosts; direct and userspace do not",
			fmt.Sprintf("nft insert rule %s %s %s ct status dnat accept", forward.Family, forward.Table, forward.Chain)))
	}
	if strings.Contains(v.text("etc/nftables.conf"), "flush ruleset") && v.enabled("nftables.service") {
		all = append(all, hint("firewall", "nftables.service empties the whole ruleset whenever it is reloaded "+
			"(/etc/nftables.conf)",
			"the appliance's rules go too; it puts them back within seconds, and connections may break meanwhile",
			"in /etc/nftables.conf write `table inet filter` and `delete table inet filter` instead of `flush ruleset`"))
	}
	for _, f := range []string{"ip_tables_names", "ip6_tables_names"} {
		if names := strings.Fields(v.text("proc/net/" + f)); slices.Contains(names, "filter") {
			all = append(all, hint("firewall", "the legacy iptables filter table is in use ("+f+"), which cannot be read from "+
				"here",
				"its rules may drop what peers and clients send", "iptables-legacy -S; ip6tables-legacy -S"))
			break
		}
	}
	if len(all) == 0 {
		all = append(all, fine("firewall", "no chain drops by default, and no sign of firewalld, ufw or legacy iptables"))
	}
	return all
}

// openPorts are the ports that have to come in, for commands.
func (v *visit) openPorts() (tcp, udp string) {
	group := v.cfg.Group.Port
	if group == 0 {
		group = 10000
	}
	ports := []uint16{group}
	for _, lb := range v.cfg.LoadBalancers {
		ports = append(ports, lb.Port)
		for _, b := range lb.Backends {
			if b.Resolved() && v.local(b.Addr.Addr()) {
				ports = append(ports, b.Addr.Port())
			}
		}
	}
	if v.alone {
		ports = append(ports, 6443)
	}
	slices.Sort(ports)
	var words []string
	for _, p := range slices.Compact(ports) {
		words = append(words, fmt.Sprint(p))
	}
	return strings.Join(words, ", "), fmt.Sprint(group)
}
