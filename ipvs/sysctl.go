package ipvs

import (
	"github.com/cloudflare/ipvs"

	"appliance/sysctl"
)

// ofIPVS is a parameter that the kernel has only while ip_vs is loaded. kernel is what a kernel without it lacks.
func ofIPVS(key, why, kernel string) sysctl.Parameter {
	return sysctl.Parameter{
		Key: "net/ipv4/vs/" + key, Value: "1", Why: why, Module: "ip_vs",
		Otherwise: "take a kernel with " + kernel + ", or set dataPlane: nftables",
	}
}

const plainIPVS = "CONFIG_IP_VS and CONFIG_SYSCTL, Linux 4.19 or newer"

// expireNodest makes the kernel cut the connections of a backend that is taken out. While it is off, connections wait
// for their backend: one that somebody else flushed comes back with the next Apply, and they go on.
func expireNodest() sysctl.Parameter {
	return ofIPVS("expire_nodest_conn",
		"open connections to a backend that is gone are cut at once instead of hanging", plainIPVS)
}

// parameters lists what the kernel needs for these services, but for expireNodest.
func parameters(services []virtual) []sysctl.Parameter {
	need := []sysctl.Parameter{ofIPVS("conntrack",
		"packets that IPVS moves can be masqueraded only if they are tracked", "CONFIG_IP_VS_NFCT")}
	var ip4, ip6, persistent bool
	for _, v := range services {
		ip4 = ip4 || v.service.Family == ipvs.INET
		ip6 = ip6 || v.service.Family == ipvs.INET6
		persistent = persistent || v.service.Flags&ipvs.ServicePersistent != 0
	}
	if persistent {
		need = append(need, ofIPVS("expire_quiescent_template",
			"clients with persistence leave a backend that drains", plainIPVS))
	}
	return append(need, sysctl.Forwarding(ip4, ip6, "answers of backends pass through this host to the client")...)
}
