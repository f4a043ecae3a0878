package nft

import (
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

// count has new connections with a backend counted. It stands only where the
// packets of open connections do not come by: nothing gets slower. So a node
// counts what arrives at its own backend, and what its own clients send to
// others. A handshake's packet that is sent again counts again.
func (s directService) count(t *table, h hop) []expr.Any {
	counter := backendName(s.frontend, h.addr)
	if !slices.Contains(t.counters, counter) {
		t.counters = append(t.counters, counter)
	}
	return []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}}
}

// directShown is what the last Apply was about, for those who look and must not
// wait for the next.
type directShown struct {
	services []balancer.Service
	passed   map[balancer.Target]string
}

// Stats reads the counters from the kernel: the new connections at this node's
// own backends, and those of clients on this node.
func (d *Direct) Stats() (Stats, error) {
	var s Stats
	shown := d.shown.Load()
	if shown == nil || len(shown.services) == 0 {
		return s, nil
	}
	conn, err := dial()
	if err != nil {
		return s, explain(err, directPlan{}.arrival(ipv4()))
	}
	counters := make(map[string]uint64)
	for _, f := range families() {
		t := directPlan{}.arrival(f)
		exists, err := has(conn, t)
		if err != nil {
			return s, explain(err, t)
		}
		if !exists {
			continue
		}
		c, err := readCounters(conn, t.kernel())
		if err != nil {
			return s, explain(err, t)
		}
		maps.Copy(counters, c)
	}
	for _, svc := range shown.services {
		for _, b := range slices.Concat(svc.Backends, svc.Draining) {
			n, ok := counters[backendName(svc.Frontend, b.Addr)]
			if !ok {
				continue // of the other family, or a node that is not known here
			}
			s.Counts = append(s.Counts, Count{LoadBalancer: svc.LoadBalancer, Frontend: svc.Frontend, Backend: b, Connections: n})
		}
	}
	return s, nil
}

// PassedOver says why backends that are in rotation get no new connections from
// this plane: it hands packets only to nodes that are proved to get them.
func (d *Direct) PassedOver() map[balancer.Target]string {
	if shown := d.shown.Load(); shown != nil {
		return maps.Clone(shown.passed)
	}
	return nil
}

// why is what a path to a node lacks; nothing if it is proved.
func (p Path) why(node Node) string {
	switch p {
	case PathProved:
		return ""
	case PathFiltered:
		return fmt.Sprintf("the network does not carry packets of clients to %v", node)
	case PathUnready:
		return fmt.Sprintf("%v does not take packets of clients from here yet: it has just begun, or does not know this node", node)
	}
	return fmt.Sprintf("the appliance on %v answers no probe of the path, so nothing is handed to it", node)
}
