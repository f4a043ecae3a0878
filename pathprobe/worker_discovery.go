package pathprobe

import (
	"crypto/rand"
	"maps"
	"net/netip"
	"slices"
)

// callPort stands where a frontend's port would: a call is not about one.
const callPort = 0

// A machine that has not answered callsOften calls is called every callSeldom
// rounds only. It is called at once when it sends something by itself.
const (
	callsOften = 10
	callSeldom = 8
)

// A discovery finds out which machines outside the group are workers. Nobody keeps
// a list of workers. A machine without a proof is called: it gets one packet a
// round, from this node's own address to its own. Only a machine that has answered
// gets a packet in a client's name. A discovery is not safe for concurrent use.
//
//	proof          becomes
//	ProofNone      ProofAnswered by the answer to a call
//	ProofAnswered  ProofPath by a path that is proved
//	ProofPath      stays, over restarts too, until the machine is no node any more
type discovery struct {
	proofs map[netip.Addr]Proof
	calls  map[string]*call // by node without a proof
}

// A call is the last packet to a machine.
type call struct {
	nonce      nonce
	unanswered int // rounds
}

// due says whether a machine is to be called now, and with which nonce.
func (d *discovery) due(node string, newRound bool) (n nonce, due bool) {
	c := d.calls[node]
	if c == nil {
		c = &call{}
		d.calls[node] = c
	}
	if newRound {
		c.unanswered++
	}
	if c.unanswered > callsOften && (!newRound || c.unanswered%callSeldom != 0) {
		return nonce{}, false
	}
	rand.Read(c.nonce[:])
	return c.nonce, true
}

// heard notes that a machine has sent something. It returns true if the machine is
// to be called at once: what it sent may be a recording, its answer is not.
func (d *discovery) heard(n Node) bool {
	if !n.Worker || d.proof(n) != ProofNone {
		return false
	}
	if c := d.calls[n.ID]; c != nil {
		c.unanswered = 0
	}
	return true
}

// answer returns true if m answers the call of n.
func (d *discovery) answer(n Node, m probe) bool {
	kind, word := m.kind.asks()
	c := d.calls[n.ID]
	if c == nil || m.frontend.Port() != callPort || kind != kindControl || word == 0 || word == kindLeave ||
		m.nonce != c.nonce {
		return false
	}
	delete(d.calls, n.ID)
	d.proofs[m.from] = ProofAnswered
	return true
}

// proof is the best proof for any of a node's addresses.
func (d *discovery) proof(n Node) Proof {
	best := ProofNone
	for _, a := range n.Addrs {
		best = max(best, d.proofs[a])
	}
	return best
}

// proved are the addresses of those of nodes that have ProofPath, sorted.
func (d *discovery) proved(nodes []Node) (addrs []netip.Addr) {
	for _, n := range nodes {
		for _, a := range n.Addrs {
			if n.Worker && d.proofs[a] == ProofPath {
				addrs = append(addrs, a)
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// keep forgets what is known of machines that are not among nodes.
func (d *discovery) keep(nodes []Node) {
	maps.DeleteFunc(d.proofs, func(a netip.Addr, _ Proof) bool {
		return !slices.ContainsFunc(nodes, func(n Node) bool { return n.Worker && slices.Contains(n.Addrs, a) })
	})
	maps.DeleteFunc(d.calls, func(id string, _ *call) bool {
		return !slices.ContainsFunc(nodes, func(n Node) bool { return n.Worker && n.ID == id })
	})
}
