package ipvs

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cloudflare/ipvs"
)

// ours is the label in the flags of every service that this package makes. The kernel keeps bits to which it gives no
// meaning; its own are the low ones (IP_VS_SVC_F_* of include/uapi/linux/ip_vs.h). So the service itself tells whose it
// is, also after a crash, and services of others, such as kube-proxy's or keepalived's, cannot be taken for ours.
const ours ipvs.Flags = 1 << 30

// A virtual is one service with its destinations, as the kernel has it or should have it. Destinations are sorted, see
// order.
type virtual struct {
	service      ipvs.Service
	destinations []ipvs.Destination
}

// key is by what the kernel finds a service.
func key(s ipvs.Service) ipvs.Service {
	if s.FWMark != 0 {
		return ipvs.Service{Family: s.Family, FWMark: s.FWMark}
	}
	return ipvs.Service{Family: s.Family, Protocol: s.Protocol, Address: s.Address, Port: s.Port}
}

// destinationKey is by what the kernel finds a destination of a service.
func destinationKey(d ipvs.Destination) netip.AddrPort { return netip.AddrPortFrom(d.Address, d.Port) }

func order(a, b ipvs.Destination) int { return destinationKey(a).Compare(destinationKey(b)) }

// normal is a service without the flag that the kernel adds.
func normal(s ipvs.Service) ipvs.Service {
	s.Flags &^= ipvs.ServiceHashed
	return s
}

type verb int

// The operations, named after the calls that they become.
const (
	createService verb = iota
	createDestination
	updateDestination
	updateService
	removeDestination
	removeService
)

func (v verb) String() string {
	return [...]string{"create", "add", "change", "change", "take out", "remove"}[v]
}

// An op is one call of the kernel. It is comparable: equal ops are the same deviation from what is wanted.
type op struct {
	verb        verb
	service     ipvs.Service
	destination ipvs.Destination // only of verbs on a destination
}

func (o op) String() string {
	at := name(o.service)
	switch o.verb {
	case createDestination, updateDestination, removeDestination:
		return fmt.Sprintf("%s backend %s of %s", o.verb, destinationKey(o.destination), at)
	}
	return fmt.Sprintf("%s service %s", o.verb, at)
}

func name(s ipvs.Service) string {
	if s.FWMark != 0 {
		return fmt.Sprintf("fwmark %d", s.FWMark)
	}
	return netip.AddrPortFrom(s.Address, s.Port).String()
}

// diff lists the fewest operations that lead from have to want. In each service, backends come before others go, so
// that there is always one to take a connection. The services of have are all ours.
func diff(have, want []virtual) []op {
	var ops []op
	wanted := make(map[ipvs.Service]bool, len(want))
	had := make(map[ipvs.Service]virtual, len(have))
	for _, h := range have {
		had[key(h.service)] = h
	}
	for _, w := range want {
		wanted[key(w.service)] = true
		h, ok := had[key(w.service)]
		if !ok {
			ops = append(ops, op{verb: createService, service: w.service})
		}
		ops = append(ops, diffDestinations(w.service, h.destinations, w.destinations)...)
		if ok && normal(h.service) != normal(w.service) {
			ops = append(ops, op{verb: updateService, service: w.service})
		}
	}
	for _, h := range have {
		if !wanted[key(h.service)] {
			ops = append(ops, op{verb: removeService, service: key(h.service)})
		}
	}
	// The sort is stable: a service is created before its backends.
	slices.SortStableFunc(ops, func(a, b op) int { return cmp.Compare(rank(a.verb), rank(b.verb)) })
	return ops
}

// rank sorts what removes something behind everything else.
func rank(v verb) int {
	switch v {
	case removeService:
		return 2
	case removeDestination:
		return 1
	default:
		return 0
	}
}

func diffDestinations(s ipvs.Service, have, want []ipvs.Destination) []op {
	var ops []op
	had := make(map[netip.AddrPort]ipvs.Destination, len(have))
	for _, h := range have {
		had[destinationKey(h)] = h
	}
	for _, w := range want {
		h, ok := had[destinationKey(w)]
		delete(had, destinationKey(w))
		switch {
		case !ok:
			ops = append(ops, op{createDestination, s, w})
		case h != w:
			ops = append(ops, op{updateDestination, s, w})
		}
	}
	for _, h := range have {
		if _, left := had[destinationKey(h)]; left {
			ops = append(ops, op{removeDestination, s, h})
		}
	}
	return ops
}

// deviations counts the operations that both the last and the present wanted set need: what had been ours and was found
// missing or altered.
func deviations(have, last, want []virtual) int {
	now := make(map[op]bool)
	for _, o := range diff(have, want) {
		now[o] = true
	}
	n := 0
	for _, o := range diff(have, last) {
		// A service by mark is a probe of ours that is running now.
		if now[o] && o.service.FWMark == 0 {
			n++
		}
	}
	return n
}
