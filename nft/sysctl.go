package nft

import (
	"fmt"
	"net"
	"net/netip"

	"appliance/balancer"
	"appliance/sysctl"
)

// forwarding lets the kernel pass packets on to backends on other hosts.
type forwarding struct{ sysctl.Tree }

// newForwarding reads and writes parameters below root; empty means /proc/sys.
func newForwarding(root string) forwarding { return forwarding{sysctl.Tree{Root: root}} }

// need turns forwarding on for the families of backends on other hosts, if it is off. repaired counts what we had
// turned on and somebody else turned off.
func (f *forwarding) need(services []balancer.Service) (repaired int, err error) {
	parameters, err := forwardingFor(services)
	if err != nil {
		return 0, err
	}
	return f.Set(parameters...)
}

// possible returns the error that need would return. It changes nothing.
func (f *forwarding) possible(services []balancer.Service) error {
	parameters, err := forwardingFor(services)
	if err != nil {
		return err
	}
	return f.Check(parameters...)
}

func forwardingFor(services []balancer.Service) ([]sysctl.Parameter, error) {
	remote4, remote6, err := remote(services)
	return sysctl.Forwarding(remote4, remote6, "backends on other hosts need the kernel to forward packets"), err
}

// remote reports whether there are backends on other hosts, by family.
func remote(services []balancer.Service) (remote4, remote6 bool, err error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false, false, fmt.Errorf("list the host's addresses: %w", err)
	}
	local := make(map[netip.Addr]bool)
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			local[p.Addr().Unmap()] = true
		}
	}
	for _, s := range services {
		for _, b := range serving(s) {
			switch a := b.Addr.Addr().Unmap(); {
			case local[a]:
			case a.Is4():
				remote4 = true
			default:
				remote6 = true
			}
		}
	}
	return remote4, remote6, nil
}
