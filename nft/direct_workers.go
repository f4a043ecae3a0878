package nft

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"appliance/balancer"
)

// Backends outside the group.
//
// A worker has the VIPs and the rules as the peers have them, but nobody keeps
// a list of workers: every backend at an address that is no peer's is asked by
// a signed probe whether it is one. So the configuration alone, which is the
// same everywhere, says who is in the table, and all nodes come to the same
// one; the probes say whether direct may be used, and to whom packets go.
//
// A worker takes part in the ring like a peer: it hands on what it has neither
// the connection nor a listener for. Else a worker that comes back would reset
// the connections that began in its slots while it was away.

// A Proof is what a worker has proved of itself.
type Proof int

// Nothing in a client's name is sent to a machine without a proof, which may
// run no appliance; nor is it a fellow, whose packets are taken for handed on. A
// client's packet goes to who was reached by a probe like it.
const (
	ProofNone    Proof = iota // it has answered nothing
	ProofSpoken               // it has answered with the workers' key
	ProofReached              // a way to it was proved, now or earlier
)

// strange is why a machine without a proof is passed over.
const strange = "its address is none of the peers', and no worker answers the path probe there"

// soon is how long a choice of plane waits for the answer of a machine on the
// link that nobody knows. Who finds out later changes its choice.
const soon = settle / 3

// strangerGrace is how long a backend that has just come may be a stranger
// without the load balancer's leaving the plane: who adds a worker does not do
// it on all machines in the same moment.
const strangerGrace = 15 * time.Second

// meet notes since when workers are nodes. It is called with mu held.
func (d *Direct) meet(nodes []Node) {
	before := d.added
	d.added = make(map[string]time.Time)
	for _, n := range nodes {
		if since, ok := before[n.ID]; ok {
			d.added[n.ID] = since
		} else if n.Worker {
			d.added[n.ID] = time.Now()
		}
	}
}

// begin notes that workers can be asked from now on.
func (d *Direct) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running = true
	for id := range d.added {
		d.added[id] = time.Now()
	}
}

// proof is what a node has proved; those of the group need not.
func (d *Direct) proof(n Node) Proof {
	if !n.Worker || n.ID == d.cfg.Self || d.cfg.Prober == nil {
		return ProofReached
	}
	return d.cfg.Prober.Proof(n.ID)
}

// workers are the backends of lb that are on machines outside the group.
func (d *Direct) workers(lb balancer.LoadBalancer) map[netip.AddrPort]Node {
	workers := make(map[netip.AddrPort]Node)
	for _, b := range lb.Backends {
		n, ok := d.node(b.Addr.Addr())
		ours := slices.ContainsFunc(lb.Frontends, func(f netip.AddrPort) bool { return f.Addr().Is4() == b.Addr.Addr().Is4() })
		if ok && ours && n.Worker && n.ID != d.cfg.Self {
			workers[b.Addr] = n
		}
	}
	return workers
}

// serves says that the plane has lb in force.
func (d *Direct) serves(lb balancer.LoadBalancer) bool {
	return slices.ContainsFunc(d.applied, func(s balancer.Service) bool { return s.LoadBalancer == lb.Name })
}

// leaves says that a backend on this node that lb has no more still has
// connections.
func (d *Direct) leaves(lb balancer.LoadBalancer) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.applied, func(s balancer.Service) bool {
		return s.LoadBalancer == lb.Name && slices.ContainsFunc(slices.Concat(s.Backends, s.Draining), func(b balancer.Backend) bool {
			n, ok := d.node(b.Addr.Addr())
			return ok && n.ID == d.cfg.Self
		})
	})
}

// acquaint gives the machines of lb's backends outside the group a moment to
// answer. It returns an error if one does not. Before Run, only a load balancer
// that has no other choice waits: somebody may have the prober run for it.
func (d *Direct) acquaint(ctx context.Context, lb balancer.LoadBalancer) error {
	for {
		stranger, since, ok := d.stranger(lb)
		if !ok {
			return nil
		}
		err := fmt.Errorf("backend %v is at none of the peers' addresses, and no worker answers the path probe there: run the appliance on it "+
			"with role worker, the same VIPs and a key of this group, make the node a peer with that address among its addresses, or use another data plane", stranger)
		wait := soon
		if lb.Plane == balancer.Direct {
			wait = settle
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

func (d *Direct) isRunning() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running
}

// stranger is the first backend of lb on a machine that has not proved that it
// runs the appliance, and since when that could have.
func (d *Direct) stranger(lb balancer.LoadBalancer) (at netip.AddrPort, since time.Time, ok bool) {
	workers := d.workers(lb)
	d.mu.Lock()
	defer d.mu.Unlock()
	serves := d.serves(lb)
	for _, at := range slices.SortedFunc(maps.Keys(workers), netip.AddrPort.Compare) {
		since := d.added[workers[at].ID]
		if d.proof(workers[at]) == ProofNone && !(serves && time.Since(since) < strangerGrace) {
			return at, since, true
		}
	}
	return at, since, false
}

// reached says whether the ways to lb's workers have been proved. Who serves
// already, or has no other choice, goes on without those that were not; and
// workers do not wait for each other, nor for the peers: these wait for them.
func (d *Direct) reached(lb balancer.LoadBalancer) error {
	d.mu.Lock()
	serves := d.serves(lb)
	d.mu.Unlock()
	if serves || d.cfg.Worker || lb.Plane == balancer.Direct {
		return nil
	}
	workers := d.workers(lb)
	for _, at := range slices.SortedFunc(maps.Keys(workers), netip.AddrPort.Compare) {
		n := workers[at]
		if d.proof(n) == ProofReached {
			continue
		}
		for _, f := range lb.Frontends {
			if f.Addr().Is4() == at.Addr().Is4() && d.path(f, n.ID) == PathFiltered {
				return nil // which Usable says better
			}
		}
		return fmt.Errorf("%v takes no packets of clients yet: it has just begun, or serves %s with another data plane, as `appliance status` there says", n, lb.Name)
	}
	return nil
}

// isFellow says that packets from a node have been handed on.
func (d *Direct) isFellow(addr netip.Addr) (Node, bool) {
	n, ok := d.node(addr)
	return n, ok && d.proof(n) != ProofNone
}

// fellowNodes are the nodes that the rules know in these surroundings.
func (d *Direct) fellowNodes(now surroundings) map[string]bool {
	fellows := make(map[string]bool)
	for at := range now.macs {
		if n, ok := d.isFellow(at.addr); ok {
			fellows[n.ID] = true
		}
	}
	return fellows
}

// fellows are their MAC addresses.
func (d *Direct) fellows(now surroundings) [][6]byte {
	var macs [][6]byte
	for at, mac := range now.macs {
		if _, ok := d.isFellow(at.addr); ok {
			macs = append(macs, mac)
		}
	}
	slices.SortFunc(macs, func(a, b [6]byte) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(macs)
}
