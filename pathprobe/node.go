package pathprobe

import (
	"net/netip"
	"slices"
)

// A Node is a machine that runs the appliance and may have a backend.
type Node struct {
	ID string
	// Addrs are the node's own addresses on the link, of either family.
	Addrs []netip.Addr
	// Serves are the frontends of the load balancers that have a backend on the node,
	// or will have one when the balancer has the new configuration.
	Serves []netip.AddrPort
	// Worker says that the node is outside the group. Only its answers to probes
	// prove that it runs the appliance at all; see Proof.
	Worker bool
}

// Same says that o is the same node at the same addresses, serving the same frontends.
func (n Node) Same(o Node) bool {
	return n.IsAt(o) && slices.Equal(n.Serves, o.Serves)
}

// IsAt says that o is the same node at the same addresses.
func (n Node) IsAt(o Node) bool {
	return n.ID == o.ID && n.Worker == o.Worker && slices.Equal(n.Addrs, o.Addrs)
}

// String is what messages call the node.
func (n Node) String() string {
	if n.Worker {
		return n.ID
	}
	return "node " + n.ID
}

// A Path is what is known of the path to a node.
type Path int

// A node that does not answer is down, or runs no appliance. Then it does not have
// the VIPs, and nothing may be sent to it.
const (
	PathNoAnswer Path = iota // the node answers nothing
	PathProved               // a client's packet arrived unaltered, and so did the answer
	PathFiltered             // the node answers, but a client's packet does not arrive
	PathUnready              // packets arrive, but the node does not take clients' yet
	PathUnmet                // packets arrive, but the node's rules do not know this node yet
)

// CloneNodes is a deep copy of nodes.
func CloneNodes(nodes []Node) []Node {
	nodes = slices.Clone(nodes)
	for i := range nodes {
		nodes[i].Addrs = slices.Clone(nodes[i].Addrs)
		nodes[i].Serves = slices.Clone(nodes[i].Serves)
	}
	return nodes
}

// NodeAt is the node that has an address.
func NodeAt(nodes []Node, addr netip.Addr) (Node, bool) {
	i := slices.IndexFunc(nodes, func(n Node) bool { return slices.Contains(n.Addrs, addr) })
	if i < 0 {
		return Node{}, false
	}
	return nodes[i], true
}

// AddrOf is the first address of a node in the family of the frontend.
func AddrOf(nodes []Node, node string, frontend netip.Addr) (netip.Addr, bool) {
	for _, n := range nodes {
		if n.ID != node {
			continue
		}
		for _, a := range n.Addrs {
			if a.Is4() == frontend.Is4() {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// A Proof is what a worker has proved of itself.
//
// A worker has the VIPs and the rules as the peers have them, but nobody keeps a list
// of workers: a signed probe asks every backend whose address is no peer's whether it
// is a worker. So the configuration alone, which is the same everywhere, says who is
// in the table, and all nodes come to the same table. The probes say whether the data
// plane may be used, and to which nodes packets go.
//
// A worker takes part in the ring like a peer: it hands on packets for which it has
// neither the connection nor a listener. Otherwise a worker that comes back would
// reset the connections that began in its slots while it was away.
type Proof int

// A machine without a proof may run no appliance: it gets no packet in a client's
// name, and its own packets are a client's. A client's packet goes only to a machine
// that such a probe has reached.
const (
	ProofNone     Proof = iota // it has answered nothing
	ProofAnswered              // it has answered a probe with the workers' key
	ProofPath                  // a path to it is or was proved
)
