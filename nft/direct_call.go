package nft

import (
	"crypto/rand"
	"maps"
	"net/netip"
	"slices"
)

// A machine outside the group that has not proved that it runs the appliance is
// called: it gets one packet a round, from this node's own address to its own.
// Only when it has answered, a client's packet is made up for it.

// A call is what became of it.
type call struct {
	nonce   nonce
	unheard int // rounds
}

const (
	// callPort stands where a frontend's port would: a call is about none.
	callPort = 0
	// A machine that has not answered callOften times is called every
	// callSeldom rounds. It is heard at once when it calls by itself.
	callOften  = 10
	callSeldom = 8
)

// call calls those without a proof.
func (p *EthernetProber) call(sockets map[string]probeSocket, macs map[string]map[netip.Addr][6]byte, all bool) {
	vips := slices.SortedFunc(maps.Keys(p.cfg.Interfaces), netip.Addr.Compare)
	for _, n := range *p.nodes.Load() {
		if !n.Worker || n.ID == p.cfg.Self || p.Proof(n.ID) != ProofNone {
			continue
		}
		for _, vip := range vips {
			sock, open := sockets[p.cfg.Interfaces[vip]]
			own, ok := p.addrOf(p.cfg.Self, vip)
			its, same := p.addrOf(n.ID, vip)
			mac, known := macs[sock.link.name][its]
			if !open || !ok || !same || !known {
				continue
			}
			if nonce, due := p.due(n.ID, all); due {
				p.tell(target{pathID{netip.AddrPortFrom(vip, callPort), n.ID}, sock, own, its, mac}, kindControl, nonce)
			}
			break
		}
	}
}

// due says whether a machine is to be called now, and with which nonce.
func (p *EthernetProber) due(node string, all bool) (nonce, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.calls[node]
	if c == nil {
		c = &call{}
		p.calls[node] = c
	}
	if all {
		c.unheard++
	}
	if c.unheard > callOften && (!all || c.unheard%callSeldom != 0) {
		return nonce{}, false
	}
	rand.Read(c.nonce[:])
	return c.nonce, true
}

// called notes that somebody has spoken. If nobody knew that it is there, it is
// called at once: what it said may be a recording, its answer is none.
func (p *EthernetProber) called(from netip.Addr) {
	n, ok := p.nodeAt(from)
	if !ok || !n.Worker || p.Proof(n.ID) != ProofNone {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.calls[n.ID]; c != nil {
		c.unheard = 0
	}
	p.hurry()
}

// answered notes the answer to a call. It is called with mu held.
func (p *EthernetProber) answered(n Node, m probe) bool {
	kind, word := m.kind.asks()
	c := p.calls[n.ID]
	if c == nil || m.frontend.Port() != callPort || kind != kindControl || word == 0 || m.nonce != c.nonce || m.kind == kindFarewell {
		return false
	}
	delete(p.calls, n.ID)
	p.proofs[m.from] = ProofSpoken
	p.hurry()
	return true
}

// Proof implements Prober.
func (p *EthernetProber) Proof(node string) Proof {
	best := ProofNone
	nodes := *p.nodes.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range nodes {
		if n.ID != node {
			continue
		}
		for _, a := range n.Addrs {
			best = max(best, p.proofs[a])
		}
	}
	return best
}

// Reached are the addresses of the workers to which a way was proved, now or
// earlier, in order.
func (p *EthernetProber) Reached() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	var addrs []netip.Addr
	for _, n := range *p.nodes.Load() {
		for _, a := range n.Addrs {
			if n.Worker && p.proofs[a] == ProofReached {
				addrs = append(addrs, a)
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// forget forgets what those proved who are no nodes any more. It is called with
// mu held.
func (p *EthernetProber) forget(nodes []Node) {
	maps.DeleteFunc(p.proofs, func(a netip.Addr, _ Proof) bool {
		return !slices.ContainsFunc(nodes, func(n Node) bool { return n.Worker && slices.Contains(n.Addrs, a) })
	})
	maps.DeleteFunc(p.calls, func(id string, _ *call) bool {
		return !slices.ContainsFunc(nodes, func(n Node) bool { return n.Worker && n.ID == id })
	})
}
