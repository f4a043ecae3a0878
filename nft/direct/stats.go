package direct

import (
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables/expr"

	"appliance/balancer"
	"appliance/nft/ruleset"
	"appliance/pathprobe"
)

// count counts new connections to a backend. It is only in rules that packets of open
// connections do not pass, so nothing gets slower. So a node counts what arrives at
// its own backend, and what its own clients send to others. A SYN that is sent again
// counts again. All VIPs of a service are counted as its first one.
func (s service) count(t *ruleset.Table, h hop) []expr.Any {
	counter := ruleset.BackendName(s.frontends[0], h.addr)
	if !slices.Contains(t.Counters, counter) {
		t.Counters = append(t.Counters, counter)
	}
	return ruleset.CountClient(counter)
}

// An applyResult is what the last Apply did, for readers that must not wait for the
// next Apply.
type applyResult struct {
	services   []balancer.Service
	passedOver map[balancer.Target]string
}

// Stats reads the counters from the kernel: the new connections at this node's
// own backends, and those of clients on this node.
func (d *DataPlane) Stats() (ruleset.Stats, error) {
	var s ruleset.Stats
	shown := d.last.Load()
	if shown == nil || len(shown.services) == 0 {
		return s, nil
	}
	c, err := ruleset.Counters(rulePlan{}.arrival(ruleset.IPv4()), rulePlan{}.arrival(ruleset.IPv6()))
	if err != nil {
		return s, err
	}
	for _, svc := range shown.services {
		for _, b := range slices.Concat(svc.Backends, svc.Draining) {
			n, ok := c[ruleset.BackendName(svc.Frontend, b.Addr)]
			if !ok {
				continue // of the other family, or a node that is not known here
			}
			s.Counts = append(s.Counts, ruleset.Count{LoadBalancer: svc.LoadBalancer, Frontend: svc.Frontend, Backend: b,
				Connections: n})
		}
	}
	return s, nil
}

// PassedOver says why backends in rotation get no new connections from this plane. It
// hands packets only to nodes that are proved to get them.
func (d *DataPlane) PassedOver() map[balancer.Target]string {
	if shown := d.last.Load(); shown != nil {
		return maps.Clone(shown.passedOver)
	}
	return nil
}

// whyNot says what a path to a node lacks, or "" if it is proved.
func whyNot(p pathprobe.Path, node pathprobe.Node) string {
	switch p {
	case pathprobe.PathProved:
		return ""
	case pathprobe.PathFiltered:
		return fmt.Sprintf("the network does not carry packets of clients to %v", node)
	case pathprobe.PathUnready, pathprobe.PathUnmet:
		return fmt.Sprintf("%v does not take packets of clients from here yet: it has just begun, or does not know this "+
			"node", node)
	}
	return fmt.Sprintf("the appliance on %v answers no probe of the path, so nothing is handed to it", node)
}
