package desired

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"appliance/balancer"
	"appliance/configs"
	"appliance/raft"
)

// A List is what the peers tell the workers: the backends of each load balancer, and what operators ordered for them.
type List struct {
	// Format grows when an older worker would misread the list.
	Format        int      `json:"format"`
	LoadBalancers []listed `json:"loadBalancers"`
	// Nodes are the peers that have the virtual addresses, and ProbeKeys sign the path probes between them and
	// workers: a worker with a backend may get packets from them.
	Nodes     []ListedNode `json:"nodes,omitempty"`
	ProbeKeys []string     `json:"probeKeys,omitempty"`
}

// A ListedNode is a peer that has the virtual addresses.
type ListedNode struct {
	ID    string       `json:"id"`
	Addrs []netip.Addr `json:"addresses"`
}

type listed struct {
	Name     string         `json:"name"`
	Port     uint16         `json:"port"`
	Backends []listedServer `json:"backends"`
}

type listedServer struct {
	Name    string            `json:"name,omitempty"`
	Address netip.AddrPort    `json:"address"`
	Weight  int               `json:"weight"`
	Order   balancer.Override `json:"order,omitzero"`
}

const listFormat = 1

// listOf returns the list for workers of cfg. It is the same on all peers that know the same.
func listOf(
	cfg *configs.Config, overrides map[BackendRef]balancer.Override, group raft.Status, probeKeys []string,
) List {
	l := List{Format: listFormat, ProbeKeys: probeKeys}
	for _, c := range cfg.LoadBalancers {
		lb := listed{Name: c.Name, Port: c.Port}
		for _, b := range c.Backends {
			if !b.Resolved() {
				continue // workers are told addresses
			}
			order := overrides[BackendRef{c.Name, b.Addr}]
			if b.Disabled && order.Out == "" {
				order.Out = balancer.Disable
			}
			lb.Backends = append(lb.Backends, listedServer{
				Name: b.Name, Address: b.Addr, Weight: b.Weight, Order: order,
			})
		}
		l.LoadBalancers = append(l.LoadBalancers, lb)
	}
	for _, p := range group.Peers {
		if !p.Witness {
			l.Nodes = append(l.Nodes, ListedNode{p.ID, p.Addrs()})
		}
	}
	// Each peer has the members in an order of its own.
	slices.SortFunc(l.Nodes, func(a, b ListedNode) int { return strings.Compare(a.ID, b.ID) })
	return l
}

// ReadList reads a list, and refuses one of a later format, or with backends that nobody can serve.
func ReadList(data []byte) (*List, error) {
	var l List
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, err
	}
	if l.Format > listFormat {
		return nil, fmt.Errorf("it has format %d, and this program knows formats up to %d; install the peers' version here",
			l.Format, listFormat)
	}
	for _, lb := range l.LoadBalancers {
		for _, b := range lb.Backends {
			if err := b.valid(); err != nil {
				return nil, fmt.Errorf("load balancer %q: %w; compare the versions of peers and worker", lb.Name, err)
			}
		}
	}
	return &l, nil
}

// heaviest is the largest weight that a configuration may have.
const heaviest = 256

// valid says why no configuration has such a backend, or nil.
func (s listedServer) valid() error {
	weight := s.Weight
	if s.Order.Weight != nil && (*s.Order.Weight < 0 || *s.Order.Weight > heaviest) {
		weight = *s.Order.Weight
	}
	switch {
	case !s.Address.IsValid(), s.Address.Port() == 0, s.Address.Addr().IsUnspecified():
		return fmt.Errorf("%q is at %v, where no server can be", s.Name, s.Address)
	case weight < 0, weight > heaviest:
		return fmt.Errorf("%v has the weight %d, and it is from 0 to %d", s.Address, weight, heaviest)
	}
	return nil
}

// withList returns cfg with the backends of l, and their overrides, for each load balancer of the same name, or else
// of the same port. A load balancer that the peers do not have is the worker's own.
func withList(cfg *configs.Config, l *List) (*configs.Config, map[BackendRef]balancer.Override) {
	out := *cfg
	out.LoadBalancers = slices.Clone(cfg.LoadBalancers)
	overrides := make(map[BackendRef]balancer.Override)
	for i := range out.LoadBalancers {
		lb := &out.LoadBalancers[i]
		at := slices.IndexFunc(l.LoadBalancers, func(o listed) bool { return o.Name == lb.Name })
		if at < 0 {
			at = slices.IndexFunc(l.LoadBalancers, func(o listed) bool { return o.Port == lb.Port })
		}
		if at < 0 || len(l.LoadBalancers[at].Backends) == 0 {
			continue
		}
		known := make(map[netip.AddrPort]configs.BackendEntry)
		for _, b := range lb.Backends {
			known[b.Addr] = b
		}
		lb.Backends = nil
		for _, s := range l.LoadBalancers[at].Backends {
			b := known[s.Address] // the worker's file may say more about it
			b.Name, b.Addr, b.Weight = s.Name, s.Address, s.Weight
			lb.Backends = append(lb.Backends, b)
			if s.Order != (balancer.Override{}) {
				overrides[BackendRef{lb.Name, s.Address}] = s.Order
			}
		}
	}
	return &out, overrides
}
