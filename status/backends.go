package status

import (
	"appliance/balancer"
)

// CountsNewOnly reports whether a data plane counts new connections and nothing else.
func CountsNewOnly(p balancer.PlaneName) bool { return p == balancer.NFTables || p == balancer.Direct }

// Dials reports whether a data plane opens the connections to backends itself, and so knows which ones fail, which
// ones wait for room, and which backend starts slowly.
func Dials(p balancer.PlaneName) bool { return p == balancer.UserSpace }

// TakesConnections reports whether new connections may go to a backend.
func TakesConnections(be balancer.BackendStatus) bool {
	return be.State == balancer.Up && be.PassedOver == ""
}

// LoadBalancer returns the load balancer of that name, nil if the snapshot has none.
func (s *Snapshot) LoadBalancer(name string) *balancer.LoadBalancerStatus {
	for i := range s.LoadBalancers {
		if s.LoadBalancers[i].Name == name {
			return &s.LoadBalancers[i]
		}
	}
	return nil
}

// Backend returns a backend of a load balancer by its address, nil if the snapshot has none.
func (s *Snapshot) Backend(t balancer.Target) *balancer.BackendStatus {
	lb := s.LoadBalancer(t.LoadBalancer)
	if lb == nil {
		return nil
	}
	for i := range lb.Backends {
		if lb.Backends[i].Address == t.Backend {
			return &lb.Backends[i]
		}
	}
	return nil
}
