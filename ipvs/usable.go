package ipvs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/cloudflare/ipvs"
	"github.com/cloudflare/ipvs/netmask"

	"appliance/balancer"
)

// probeMark is the upper half of the packet mark of the service that Usable makes and removes. No packet has it, and
// services by mark do not collide with those by address. The lower half is random, so that probes do not collide
// either. The next Apply removes the probe of a process that was killed meanwhile.
const probeMark = 0x61700000

// Usable implements balancer.Plane. It makes the kernel load ip_vs and the scheduler, and leaves nothing else behind.
func (p *VirtualServer) Usable(_ context.Context, lb balancer.LoadBalancer) error {
	if err := p.usable(lb); err != nil {
		return fmt.Errorf("ipvs: load balancer %s: %w", lb.Name, err)
	}
	return nil
}

func (p *VirtualServer) usable(lb balancer.LoadBalancer) error {
	tuning := p.config.Tuning(lb.Name).with(lb.ConnOptions)
	if err := tuning.validate(); err != nil {
		return err
	}
	families, err := families(lb)
	if err != nil {
		return err
	}
	k, err := p.dial()
	if err != nil {
		return err
	}
	defer closeKernel(k)

	var like []virtual
	for _, f := range families {
		if err := probe(k, f, lb.Scheduler); err != nil {
			return err
		}
		v := virtual{service: ipvs.Service{Family: f}}
		if tuning.Persistence > 0 {
			v.service.Flags |= ipvs.ServicePersistent
		}
		like = append(like, v)
	}
	all, err := services(k)
	if err != nil {
		return err
	}
	for _, s := range all {
		for _, at := range lb.Frontends {
			if s.Flags&ours == 0 && s.Protocol == ipvs.TCP && s.Address == at.Addr() && s.Port == at.Port() {
				return conflict(s.Service)
			}
		}
	}
	return p.sysctls.Check(append(parameters(like), expireNodest())...)
}

// families lists the address families of lb's frontends. Each must have backends of its own, because masquerading does
// not translate between families.
func families(lb balancer.LoadBalancer) ([]ipvs.AddressFamily, error) {
	if len(lb.Frontends) == 0 {
		return nil, errors.New("it has no frontend; give it a virtual IP and a port")
	}
	backends := make(map[ipvs.AddressFamily]bool)
	for _, b := range lb.Backends {
		switch a := b.Addr.Addr(); {
		case a.Is4In6():
			return nil, fmt.Errorf("backend %v is an IPv4 address written as IPv6; write %v", b, a.Unmap())
		case a.Is6() && a.IsLinkLocalUnicast():
			return nil, fmt.Errorf("backend %v is link-local, and ipvs has no zones; "+
				"give its global or unique local address, or set dataPlane: userspace", b)
		}
		backends[family(b.Addr.Addr())] = true
	}
	seen := make(map[ipvs.AddressFamily]bool)
	var all []ipvs.AddressFamily
	for _, at := range lb.Frontends {
		if err := servable(at); err != nil {
			return nil, err
		}
		f := family(at.Addr())
		if !backends[f] {
			return nil, fmt.Errorf("frontend %v has no backend of its own address family, "+
				"and ipvs does not translate between families; add one, or set dataPlane: userspace", at)
		}
		if !seen[f] {
			seen[f] = true
			all = append(all, f)
		}
	}
	return all, nil
}

// probe makes a service of that family and scheduler, reads it back, and removes it.
func probe(k kernel, f ipvs.AddressFamily, s balancer.Scheduler) error {
	bits := 32
	if f == ipvs.INET6 {
		bits = 128
	}
	service := ipvs.Service{
		Family: f, FWMark: probeMark | rand.Uint32N(1<<16), Protocol: ipvs.TCP,
		Scheduler: string(s), Flags: ours | schedulerFlags(s), Netmask: netmask.MaskFrom(bits, bits),
	}
	if s == "" {
		return noScheduler("")
	}
	o := op{verb: createService, service: service}
	if err := o.call(k); err != nil {
		return explain(o, err)
	}
	all, err := services(k)
	if err := (op{verb: removeService, service: service}).call(k); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	for _, have := range all {
		if key(have.Service) == key(service) && have.Flags&ours == 0 {
			return fmt.Errorf("the kernel's IPVS does not keep the label %#x in a service's flags, "+
				"so that ours could not be told from those of others; set dataPlane: nftables", uint32(ours))
		}
	}
	return nil
}
