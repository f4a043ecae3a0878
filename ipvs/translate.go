package ipvs

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cloudflare/ipvs"
	"github.com/cloudflare/ipvs/netmask"

	"appliance/balancer"
)

// Tuning is what IPVS can do for a load balancer beyond what every data plane can. The zero value asks for nothing.
type Tuning struct {
	// Persistence keeps a client with its backend for this long after its last connection, up to 31 days; zero spreads
	// each connection anew. Fractions of a second are rounded up.
	Persistence time.Duration
	// PersistencePrefix4 and PersistencePrefix6 make clients of the same network count as one; zero means each address
	// (32 and 128).
	PersistencePrefix4, PersistencePrefix6 int
	// MaxConns is the number of connections, including closing ones, at which a backend without a maximum of its own
	// gets no more; zero means no limit. MinConns is where it gets connections again; zero means three quarters of
	// MaxConns, the kernel's default.
	MaxConns, MinConns int
}

func (t Tuning) validate() error {
	switch {
	case t.Persistence < 0 || t.Persistence > maxPersistence:
		return fmt.Errorf("persistence %v is not between 0 and %v; write one that is", t.Persistence, maxPersistence)
	case t.PersistencePrefix4 < 0 || t.PersistencePrefix4 > 32:
		return fmt.Errorf("persistence prefix /%d is not an IPv4 prefix; write 1 to 32", t.PersistencePrefix4)
	case t.PersistencePrefix6 < 0 || t.PersistencePrefix6 > 128:
		return fmt.Errorf("persistence prefix /%d is not an IPv6 prefix; write 1 to 128", t.PersistencePrefix6)
	case t.MaxConns < 0 || t.MinConns < 0:
		return fmt.Errorf("connection thresholds %d and %d are negative; write 0 for no limit", t.MaxConns, t.MinConns)
	case t.MinConns > t.MaxConns:
		return fmt.Errorf("the lower connection threshold %d is above the upper one %d; write a smaller one",
			t.MinConns, t.MaxConns)
	}
	return nil
}

// with is t with what the configuration asks of every data plane.
func (t Tuning) with(h balancer.ConnOptions) Tuning {
	if h.Persistence > 0 {
		t.Persistence = h.Persistence
	}
	return t
}

// maxPersistence is the kernel's limit, which ipvsadm calls MAX_PERSISTENT_TIMEOUT.
const maxPersistence = 31 * 24 * time.Hour

// translate is what the kernel should have for s.
func translate(s balancer.Service, t Tuning) (virtual, error) {
	if err := servable(s.Frontend); err != nil {
		return virtual{}, err
	}
	t = t.with(s.ConnOptions)
	if err := t.validate(); err != nil {
		return virtual{}, err
	}
	v := virtual{service: ipvs.Service{
		Address:   s.Frontend.Addr(),
		Port:      s.Frontend.Port(),
		Family:    family(s.Frontend.Addr()),
		Protocol:  ipvs.TCP,
		Scheduler: string(s.Scheduler),
		Flags:     ours | schedulerFlags(s.Scheduler),
		Netmask:   netmask.MaskFrom(s.Frontend.Addr().BitLen(), s.Frontend.Addr().BitLen()),
	}}
	if t.Persistence > 0 {
		v.service.Flags |= ipvs.ServicePersistent
		v.service.Timeout = uint32((t.Persistence + time.Second - 1) / time.Second)
		if bits := t.prefix(s.Frontend.Addr()); bits > 0 {
			v.service.Netmask = netmask.MaskFrom(bits, s.Frontend.Addr().BitLen())
		}
	}
	for _, b := range s.Backends {
		v.add(b, t)
	}
	for _, b := range s.Draining {
		b.Weight = 0
		v.add(b, t)
	}
	slices.SortFunc(v.destinations, order)
	v.destinations = slices.CompactFunc(v.destinations, func(a, b ipvs.Destination) bool { return order(a, b) == 0 })
	return v, nil
}

func (t Tuning) prefix(a netip.Addr) int {
	if a.Is4() {
		return t.PersistencePrefix4
	}
	return t.PersistencePrefix6
}

// add takes a backend if it has the service's family. A dual-stack load balancer has backends of both families, and
// each frontend takes its own.
func (v *virtual) add(b balancer.Backend, t Tuning) {
	at := b.Addr
	if family(at.Addr()) != v.service.Family {
		return
	}
	if b.MaxConn > 0 {
		t.MaxConns, t.MinConns = b.MaxConn, 0
	}
	v.destinations = append(v.destinations, ipvs.Destination{
		Address:        at.Addr(),
		Port:           at.Port(),
		Family:         family(at.Addr()),
		FwdMethod:      ipvs.Masquerade,
		Weight:         uint32(max(b.Weight, 0)),
		UpperThreshold: uint32(t.MaxConns),
		LowerThreshold: uint32(t.MinConns),
	})
}

// servable returns why IPVS cannot serve an address.
func servable(at netip.AddrPort) error {
	const other = "give the load balancer an address of its own, or set dataPlane: userspace"
	a := at.Addr()
	switch {
	case !at.IsValid() || at.Port() == 0:
		return fmt.Errorf("%v is not an address with a port; write address:port", at)
	case a.Is4In6():
		return fmt.Errorf("%v is an IPv4 address written as IPv6; write %v",
			at, netip.AddrPortFrom(a.Unmap(), at.Port()))
	case a.IsUnspecified():
		return fmt.Errorf("ipvs serves single addresses, not every address of the host (%v); %s", at, other)
	case a.IsLoopback():
		// The kernel drops packets from a loopback address to another host.
		return fmt.Errorf("ipvs cannot take connections to %v to another host, because it is a loopback address; %s",
			at, other)
	case a.IsLinkLocalUnicast() && a.Is6():
		return fmt.Errorf("ipvs has no zones and cannot serve the link-local address %v; %s", at, other)
	}
	return nil
}

// schedulerFlags makes the hashing schedulers fall back to another backend when the hashed one has weight 0 or is full.
// Without it they refuse the client (sh-fallback and mh-fallback in ipvsadm).
func schedulerFlags(s balancer.Scheduler) ipvs.Flags {
	if s == balancer.SourceHash || s == "mh" {
		return ipvs.ServiceSchedulerOpt1
	}
	return 0
}

func family(a netip.Addr) ipvs.AddressFamily {
	if a.Is4() {
		return ipvs.INET
	}
	return ipvs.INET6
}
