package planes

import (
	"context"
	"maps"
	"net/netip"
	"sync"
	"time"

	"appliance/balancer"
	"appliance/ipvs"
	"appliance/nft"
	"appliance/nft/direct"
	"appliance/nft/ruleset"
)

// readEvery is how old a kernel plane's counters may be. Everybody who looks
// asks for them, and with many services reading them takes milliseconds.
const readEvery = 500 * time.Millisecond

// readCounters reads a plane's counters.
type readCounters func(names map[netip.AddrPort]string) (map[balancer.Target]balancer.Traffic, error)

// counted is a plane whose counters the kernel keeps, in the balancer's words.
type counted struct {
	balancer.Plane
	// read gets the counters; names are the load balancers by frontend.
	read readCounters
	// passed, if not nil, is whom the plane passes over.
	passed func() map[balancer.Target]string

	mu    sync.Mutex
	names map[netip.AddrPort]string
	at    time.Time
	known map[balancer.Target]balancer.Traffic
}

// Apply remembers whose the services are.
func (m *counted) Apply(ctx context.Context, services []balancer.Service) (int, error) {
	names := make(map[netip.AddrPort]string, len(services))
	for _, s := range services {
		names[s.Frontend] = s.LoadBalancer
	}
	m.mu.Lock()
	if !maps.Equal(m.names, names) {
		m.names, m.at = names, time.Time{}
	}
	m.mu.Unlock()
	return m.Plane.Apply(ctx, services)
}

// Stats implements balancer.TrafficCounter. Counters that cannot be read stay as they
// were: a gap in what is shown is no reason to fail.
func (m *counted) Stats() map[balancer.Target]balancer.Traffic {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.names) == 0 {
		return nil
	}
	if time.Since(m.at) >= readEvery {
		if now, err := m.read(m.names); err == nil {
			m.known = now
		}
		m.at = time.Now()
	}
	return maps.Clone(m.known)
}

// PassedOver implements balancer.Selective.
func (m *counted) PassedOver() map[balancer.Target]string {
	if m.passed == nil {
		return nil
	}
	return m.passed()
}

// countIPVS counts what goes through ipvs.
func countIPVS(p balancer.Plane, k *ipvs.VirtualServer) balancer.Plane {
	return &counted{Plane: p, read: func(names map[netip.AddrPort]string) (map[balancer.Target]balancer.Traffic, error) {
		all, err := k.Stats()
		if err != nil {
			return nil, err
		}
		out := make(map[balancer.Target]balancer.Traffic)
		for _, s := range all {
			if names[s.Frontend] == "" {
				continue // about to be removed
			}
			for _, be := range s.Backends {
				t := balancer.Target{LoadBalancer: names[s.Frontend], Backend: be.Addr}
				out[t] = out[t].Add(balancer.Traffic{
					Open: uint64(be.Active), Total: be.Connections, In: be.BytesIn, Out: be.BytesOut,
				})
			}
		}
		return out, nil
	}}
}

// countNAT counts what goes through nft's NAT, which is connections only.
func countNAT(p balancer.Plane, k *nft.NAT) balancer.Plane {
	return &counted{Plane: p, read: counts(k.Stats)}
}

// countDirect counts what arrives at this node's own backends, and what clients
// on this node send to others: connections only.
func countDirect(p balancer.Plane, k *direct.DataPlane) balancer.Plane {
	return &counted{Plane: p, read: counts(k.Stats), passed: k.PassedOver}
}

func counts(stats func() (ruleset.Stats, error)) readCounters {
	return func(map[netip.AddrPort]string) (map[balancer.Target]balancer.Traffic, error) {
		all, err := stats()
		if err != nil {
			return nil, err
		}
		out := make(map[balancer.Target]balancer.Traffic)
		for _, c := range all.Counts {
			t := balancer.Target{LoadBalancer: c.LoadBalancer, Backend: c.Backend.Addr}
			out[t] = out[t].Add(balancer.Traffic{Total: c.Connections})
		}
		return out, nil
	}
}
