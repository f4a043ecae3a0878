package endpoints

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"appliance/configs"
)

// A Guide is what the users of one configuration need to know.
type Guide struct {
	Clients  []ClientKind       `json:"clients"`
	Names    []string           `json:"subjectAltNames,omitempty"` // what a server's certificate has to be valid for
	Hosts    []string           `json:"hosts,omitempty"`           // lines of /etc/hosts
	Settings []InstallerSetting `json:"settings,omitempty"`
	Firewall []Opening          `json:"firewall"`
}

// A ClientKind is a kind of client of one load balancer.
type ClientKind struct {
	LoadBalancer string   `json:"loadBalancer"`
	Who          string   `json:"who"`
	Addresses    []string `json:"addresses"`
	Why          string   `json:"why"`
}

// An InstallerSetting is what an installer of Kubernetes has to be told.
type InstallerSetting struct {
	For  string `json:"for"`
	Text string `json:"text"`
}

// An Opening is one line of a firewall's table. Beside these lines, a firewall accepts what comes by lo, and what
// belongs or relates to a connection that it has let in or out.
type Opening struct {
	// Chain is input, on the machines of To, or forward, on the nodes.
	Chain    string `json:"chain"`
	From     string `json:"from"`
	To       string `json:"to"`
	Protocol string `json:"protocol"`
	Ports    string `json:"ports"`
	Why      string `json:"why"`
}

// Ports that installers and programs give a meaning.
const (
	apiserverPort  = 6443
	supervisorPort = 9345 // RKE2's servers register nodes there
	etcdPort       = 2379

	bfdPort         = 3784 // RFC 5881, section 4
	bfdMultihopPort = 4784 // RFC 5883, section 5
)

// New makes the guide of cfg. name is the DNS name by which clients call the virtual addresses; empty: they use the
// first address.
func New(cfg *configs.Config, name string) Guide {
	var g Guide
	for _, lb := range cfg.LoadBalancers {
		g.Clients = append(g.Clients, clients(cfg, lb, name)...)
		if isAPIServer(lb) {
			g.Names = sans(lb, name)
			g.Settings = settings(cfg, lb, name)
		}
	}
	if name != "" {
		for _, vip := range cfg.VIPs {
			g.Hosts = append(g.Hosts, fmt.Sprintf("%s %s", vip, name))
		}
	}
	g.Firewall = firewall(cfg)
	return g
}

// isAPIServer says whether a load balancer looks like one of kube-apiservers.
func isAPIServer(lb configs.LoadBalancerEntry) bool {
	return lb.Port == apiserverPort || strings.Contains(lb.Name, "apiserver")
}

// entrances are the addresses at which a load balancer is reached from elsewhere, and from its own node alone.
func entrances(lb configs.LoadBalancerEntry) (vips, local []netip.AddrPort) {
	for _, a := range lb.VIPs {
		vips = append(vips, netip.AddrPortFrom(a, lb.Port))
	}
	for _, a := range lb.Listen {
		local = append(local, netip.AddrPortFrom(a, lb.Port))
	}
	return vips, local
}

// urls writes addresses as clients do.
func urls(scheme string, list []netip.AddrPort) (all []string) {
	for _, a := range list {
		all = append(all, scheme+a.String())
	}
	return all
}

// clients tells each kind of client where to go.
func clients(cfg *configs.Config, lb configs.LoadBalancerEntry, name string) (all []ClientKind) {
	vips, local := entrances(lb)
	scheme := ""
	if isAPIServer(lb) || lb.Port == etcdPort || lb.Port == supervisorPort {
		scheme = "https://"
	}
	add := func(who string, at []string, why string) {
		if len(at) > 0 {
			all = append(all, ClientKind{lb.Name, who, at, why})
		}
	}
	shared := urls(scheme, vips)
	if name != "" && len(vips) > 0 {
		shared = []string{fmt.Sprintf("%s%s:%d", scheme, name, lb.Port)}
	}
	own := urls(scheme, local)
	switch {
	case cfg.Worker() && len(vips) == 0:
		add("programs on this node", own, "this node's own appliance balances for them; nobody else reaches it")
	case cfg.Worker():
		add("programs on this node", shared, "the virtual address is on lo here, so the node's own appliance balances for "+
			"them, "+
			"even while no peer holds it")
	case isAPIServer(lb) && !onPeers(cfg, lb):
		add("control-plane components, kubelets and kube-proxies of every node", shared,
			"answered for by the holder; with an appliance of role worker on a node, the same address is served locally there")
		add("people, CI and pods", shared, "the same address, so one kubeconfig fits everywhere inside and outside")
	case isAPIServer(lb):
		add("control-plane components (scheduler, controller-manager) and kubelets of the peers", shared,
			"the virtual address is on lo of every peer, so each is served through its own node, whoever holds")
		add("kubelets and kube-proxies of other nodes", shared,
			"answered for by the holder; with an appliance of role worker on such a node, the same address is served locally")
		add("people, CI and pods", shared, "the same address, so one kubeconfig fits everywhere inside and outside")
	case lb.Port == etcdPort:
		add("etcd's clients", shared, "one address where a client takes only one; kube-apiserver takes the list, which is "+
			"better: "+
			"--etcd-servers="+strings.Join(backends("https://", lb), ","))
	default:
		add("clients", shared, "answered for by the holder, served by all backends")
	}
	if !cfg.Worker() || len(vips) > 0 {
		add("programs on this node that cannot use the virtual address", own, "listen names these addresses")
	}
	if len(vips) > 0 {
		add("an external load balancer in front", []string{strings.Join(urls(scheme, vips), " or ")},
			"give it the virtual address as its only server; with the servers themselves behind it, the appliance is not "+
				"needed there")
	}
	if !lb.BindToVIP {
		add("clients", []string{fmt.Sprintf("every address of each node, the virtual ones included, port %d", lb.Port)},
			"bindToVip is false")
	}
	return all
}

// onPeers says whether every backend is on a peer, and so in reach of the data plane direct without workers.
func onPeers(cfg *configs.Config, lb configs.LoadBalancerEntry) bool {
	return !slices.ContainsFunc(lb.Backends, func(b configs.BackendEntry) bool { return !onPeer(cfg, b) })
}

func onPeer(cfg *configs.Config, b configs.BackendEntry) bool {
	return slices.ContainsFunc(cfg.Peers, func(p configs.PeerEntry) bool {
		return slices.Contains(p.Addrs(), b.Addr.Addr())
	})
}

func backends(scheme string, lb configs.LoadBalancerEntry) (all []string) {
	for _, b := range lb.Backends {
		all = append(all, scheme+b.Where())
	}
	return all
}

// sans are the names that the servers' certificates need.
func sans(lb configs.LoadBalancerEntry, name string) (all []string) {
	if name != "" {
		all = append(all, name)
	}
	for _, a := range slices.Concat(lb.VIPs, lb.Listen) {
		all = append(all, a.String())
	}
	return all
}

// settings are what installers have to be told of the API's load balancer.
func settings(cfg *configs.Config, lb configs.LoadBalancerEntry, name string) []InstallerSetting {
	vips, local := entrances(lb)
	if len(vips) == 0 {
		return localSettings(local)
	}
	endpoint := vips[0].String()
	domain := ""
	if name != "" {
		endpoint = fmt.Sprintf("%s:%d", name, lb.Port)
		domain = fmt.Sprintf("apiserver_loadbalancer_domain_name: %q\n", name)
	}
	names := sans(lb, name)
	quoted := `["` + strings.Join(names, `", "`) + `"]`
	serverURL := "https://" + endpoint
	rke2 := "https://" + netip.AddrPortFrom(vips[0].Addr(), supervisorPort).String()
	if name != "" {
		rke2 = fmt.Sprintf("https://%s:%d", name, supervisorPort)
	}
	missing := ""
	supervisor := func(l configs.LoadBalancerEntry) bool { return l.Port == supervisorPort }
	if !slices.ContainsFunc(cfg.LoadBalancers, supervisor) {
		missing = fmt.Sprintf("\n# RKE2's servers register nodes at port %d, so add a load balancer:\n"+
			"#   - {name: rke2, port: %d, check: {type: tcp}, backends: [...]}", supervisorPort, supervisorPort)
	}
	first := cmp.Or(lb.Port, apiserverPort)
	return []InstallerSetting{
		{"kubeadm, on the first node", fmt.Sprintf("kubeadm init --upload-certs --control-plane-endpoint '%s' \\\n  "+
			"--apiserver-cert-extra-sans %s",
			endpoint, strings.Join(names, ","))},
		{"kubespray, in group_vars/all/all.yml", domain + fmt.Sprintf("loadbalancer_apiserver:\n  address: %q\n  port: %d\n"+
			"loadbalancer_apiserver_localhost: false\nsupplementary_addresses_in_ssl_keys: %s", vips[0].Addr(), first, quoted)},
		{"k3s, in /etc/rancher/k3s/config.yaml", fmt.Sprintf("tls-san: %s\nserver: %s   # not on the first server", quoted,
			serverURL)},
		{"RKE2, in /etc/rancher/rke2/config.yaml", fmt.Sprintf("tls-san: %s\nserver: %s   # not on the first server%s",
			quoted, rke2, missing)},
	}
}

// localSettings are those of a balancer that only its own node uses.
func localSettings(local []netip.AddrPort) []InstallerSetting {
	if len(local) == 0 {
		return nil
	}
	return []InstallerSetting{
		{"kubelet and kube-proxy of this node", "server: https://" + local[0].String() +
			"   # in /etc/kubernetes/kubelet.conf, and in kube-proxy's kubeconfig"},
		{"kubespray, instead of its own nginx or haproxy", fmt.Sprintf("loadbalancer_apiserver_localhost: false\n"+
			"loadbalancer_apiserver: {address: %q, port: %d}", local[0].Addr(), local[0].Port())},
	}
}
