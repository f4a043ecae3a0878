package direct

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"appliance/balancer"
	"appliance/neighbours"
	"appliance/pathprobe"
)

// noProof is why a machine without a proof is passed over.
const noProof = "its address is none of the peers', and no worker answers the path probe there"

// quickAnswer is how long the choice of a plane waits for the answer of an unknown
// machine on the link. A later answer changes the choice.
const quickAnswer = firstAnswer / 3

// newWorkerGrace is how long a new backend may be without a proof before its load
// balancer leaves the plane: nobody adds a worker on all machines at the same
// moment.
const newWorkerGrace = 15 * time.Second

// noteWorkers notes since when workers are nodes. Called with mu held.
func (d *DataPlane) noteWorkers(nodes []pathprobe.Node) {
	before := d.workersSince
	d.workersSince = make(map[string]time.Time)
	for _, n := range nodes {
		if since, ok := before[n.ID]; ok {
			d.workersSince[n.ID] = since
		} else if n.Worker {
			d.workersSince[n.ID] = time.Now()
		}
	}
}

// start notes that workers can be asked from now on.
func (d *DataPlane) start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running = true
	for id := range d.workersSince {
		d.workersSince[id] = time.Now()
	}
}

// proof is what a node has proved; nodes of the group need no proof.
func (d *DataPlane) proof(n pathprobe.Node) pathprobe.Proof {
	if !n.Worker || n.ID == d.cfg.Self || d.cfg.Prober == nil {
		return pathprobe.ProofPath
	}
	return d.cfg.Prober.Proof(n.ID)
}

// workers are the backends of lb that are on machines outside the group.
func (d *DataPlane) workers(lb balancer.LoadBalancer) map[netip.AddrPort]pathprobe.Node {
	workers := make(map[netip.AddrPort]pathprobe.Node)
	for _, b := range lb.Backends {
		n, ok := d.node(b.Addr.Addr())
		isServed := slices.ContainsFunc(lb.Frontends, func(f netip.AddrPort) bool {
			return f.Addr().Is4() == b.Addr.Addr().Is4()
		})
		if ok && isServed && n.Worker && n.ID != d.cfg.Self {
			workers[b.Addr] = n
		}
	}
	return workers
}

// isServing says that the plane has lb in force. Called with mu held.
func (d *DataPlane) isServing(lb balancer.LoadBalancer) bool {
	return slices.ContainsFunc(d.applied, func(s balancer.Service) bool { return s.LoadBalancer == lb.Name })
}

// hasLeaving says that a backend on this node, which lb no longer has, may still have
// connections.
func (d *DataPlane) hasLeaving(lb balancer.LoadBalancer) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.applied, func(s balancer.Service) bool {
		return s.LoadBalancer == lb.Name && slices.ContainsFunc(slices.Concat(s.Backends, s.Draining),
			func(b balancer.Backend) bool {
				n, ok := d.node(b.Addr.Addr())
				return ok && n.ID == d.cfg.Self
			})
	})
}

// awaitProofs gives the machines of lb's backends outside the group a moment to
// answer, and returns an error if one does not. Before Run, only a load balancer that
// has no other choice waits: its prober may run already.
func (d *DataPlane) awaitProofs(ctx context.Context, lb balancer.LoadBalancer) error {
	for {
		unproved, since, ok := d.unproved(lb)
		if !ok {
			return nil
		}
		err := fmt.Errorf("backend %v is at none of the peers' addresses, and no worker answers the path probe there: "+
			"run the appliance on it with role worker, the same VIPs and a key of this group, "+
			"make the node a peer with that address among its addresses, or use another data plane", unproved)
		wait := quickAnswer
		if lb.Plane == balancer.Direct {
			wait = firstAnswer
		}
		if time.Since(since) > wait || !d.isRunning() && lb.Plane != balancer.Direct {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
		_, _ = d.look() // its MAC address may be known by now
	}
}

func (d *DataPlane) isRunning() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running
}

// unproved is the first backend of lb on a machine that has not proved that it runs
// the appliance, and since when the machine could have proved it.
func (d *DataPlane) unproved(lb balancer.LoadBalancer) (at netip.AddrPort, since time.Time, ok bool) {
	workers := d.workers(lb)
	d.mu.Lock()
	defer d.mu.Unlock()
	serves := d.isServing(lb)
	for _, at := range slices.SortedFunc(maps.Keys(workers), netip.AddrPort.Compare) {
		since := d.workersSince[workers[at].ID]
		if d.proof(workers[at]) == pathprobe.ProofNone && !(serves && time.Since(since) < newWorkerGrace) {
			return at, since, true
		}
	}
	return at, since, false
}

// pathsProved says whether the paths to lb's workers have been proved. A load balancer
// that is served already, or has no other choice, goes on without. Workers wait
// neither for each other nor for the peers: the peers wait for them.
func (d *DataPlane) pathsProved(lb balancer.LoadBalancer) error {
	d.mu.Lock()
	serves := d.isServing(lb)
	d.mu.Unlock()
	if serves || d.cfg.Worker || lb.Plane == balancer.Direct {
		return nil
	}
	workers := d.workers(lb)
	for _, at := range slices.SortedFunc(maps.Keys(workers), netip.AddrPort.Compare) {
		n := workers[at]
		if d.proof(n) == pathprobe.ProofPath {
			continue
		}
		for _, f := range lb.Frontends {
			if f.Addr().Is4() == at.Addr().Is4() && d.path(f, n.ID) == pathprobe.PathFiltered {
				return nil // Usable has a better message
			}
		}
		return fmt.Errorf("%v takes no packets of clients yet: it has just begun, or serves %s with another data plane, "+
			"as `appliance status` there says", n, lb.Name)
	}
	return nil
}

// knownNode is the node at an address. It returns false if that has no proof: packets
// from the address are clients'.
func (d *DataPlane) knownNode(addr netip.Addr) (pathprobe.Node, bool) {
	n, ok := d.node(addr)
	return n, ok && d.proof(n) != pathprobe.ProofNone
}

// knownNodes are the IDs of the nodes that the rules know.
func (d *DataPlane) knownNodes(now neighbours.View) map[string]bool {
	known := make(map[string]bool)
	for at := range now.MACs {
		if n, ok := d.knownNode(at.Addr); ok {
			known[n.ID] = true
		}
	}
	return known
}

// knownMACs are the MAC addresses of the same nodes, sorted.
func (d *DataPlane) knownMACs(now neighbours.View) [][6]byte {
	var macs [][6]byte
	for at, mac := range now.MACs {
		if _, ok := d.knownNode(at.Addr); ok {
			macs = append(macs, mac)
		}
	}
	slices.SortFunc(macs, func(a, b [6]byte) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(macs)
}
