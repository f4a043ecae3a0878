package ruleset

import (
	"net/netip"

	"github.com/google/nftables"

	"appliance/balancer"
)

// A Count is the number of connections that one backend of one frontend got since
// the rules were first made.
type Count struct {
	LoadBalancer string
	Frontend     netip.AddrPort
	Backend      balancer.Backend
	Connections  uint64
}

// Stats are a plane's counters.
type Stats struct {
	Counts []Count
	// Refused counts the packets that were answered with a reset: there was no
	// backend, or their connection had been cut.
	Refused uint64
}

// BackendName is the name of a backend's counter, and of its chain where it has
// one.
func BackendName(frontend, backend netip.AddrPort) string {
	return "be_" + NameOf(frontend) + "_to_" + NameOf(backend)
}

// Counters are the named counters of those of the tables that exist. Equal names
// are added up.
func Counters(tables ...Table) (map[string]uint64, error) {
	sum := make(map[string]uint64)
	for _, t := range tables {
		conn, err := Dial()
		if err != nil {
			return nil, explain(err, t)
		}
		found, _, err := exists(conn, t)
		if err != nil {
			return nil, explain(err, t)
		}
		if !found {
			continue
		}
		c, err := readCounters(conn, t.Kernel())
		if err != nil {
			return nil, explain(err, t)
		}
		for name, n := range c {
			sum[name] += n
		}
	}
	return sum, nil
}

func readCounters(conn *nftables.Conn, kt *nftables.Table) (map[string]uint64, error) {
	objects, err := conn.GetObjects(kt)
	if err != nil {
		return nil, err
	}
	counters := make(map[string]uint64)
	for _, o := range objects {
		if c, ok := o.(*nftables.CounterObj); ok {
			counters[c.Name] = c.Packets
		}
	}
	return counters, nil
}
