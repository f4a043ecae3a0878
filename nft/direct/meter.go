package direct

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/neighbours"
	"appliance/nft/ruleset"
	"appliance/pathprobe"
)

// # The meter of the ring
//
// A packet that belongs to no connection would go round all nodes: one of a stranger's
// makes several on the link. So packets are metered before their round begins. Those over
// the limit are dropped: if there is a connection after all, its client sends again.
//
// A connection that the ring has found is not metered. The node that has it tells the
// others, at most once in toldFor, by a copy of the packet with another IP protocol. They
// let its packets pass for foundFor, and meter its client's other packets less, for which
// there may be more connections: at a failover, or when a backend comes back, many go
// round at once. Nobody can pass for a client with a connection who cannot pass for a
// node on the link.
const (
	// foundProtocol is the IP protocol of the copy, one for experiments (RFC 3692). Nodes
	// that do not know it take it for nothing. TCP's header follows, as in the original.
	foundProtocol = 253

	toldFor  = 2 * time.Second
	foundFor = time.Minute
	// begunFor is how long a handshake by SYN cookie may take. Its last packet has no socket
	// yet, and must not be taken for a stranger's.
	begunFor = 10 * time.Second
	// meterSize bounds the memory for connections and clients. When it is full, the limit
	// for all clients is still in force.
	meterSize = 1 << 16

	// A client's first packet goes round, and tells the others of its connection.
	roundsPerClient, roundsPerClientBurst = 5, 2 // per second
	// All clients without a known connection. A round of three nodes makes five packets
	// more: under a flood of 50,000 strays per second, which the holder forwards once,
	// all that is made of them is less than they are.
	rounds, roundsBurst = 300, 300 // per second
	// All clients with a known connection.
	knownRounds, knownRoundsBurst = 5000, 5000 // per second
	// tellings bounds what is told: a node with many open connections that come by way
	// of others tells of the rest a little later.
	tellings, tellingsBurst = 5000, 5000 // per second
)

// toldNodes are the addresses of the other nodes on the link, of the frontend's family,
// sorted; nil if one of them would not understand.
func (d *DataPlane) toldNodes(frontend netip.Addr, l neighbours.Link, now neighbours.View) []netip.Addr {
	var addrs []netip.Addr
	for _, n := range *d.nodes.Load() {
		a, ok := pathprobe.AddrOf([]pathprobe.Node{n}, n.ID, frontend)
		if !ok || n.ID == d.cfg.Self {
			continue
		}
		if _, known := d.knownNode(a); !known {
			continue
		}
		if _, hasMAC := now.MAC(l.Name, n.Addrs...); !hasMAC {
			continue
		}
		if d.cfg.Prober != nil && !d.cfg.Prober.SecondForm(n.ID) {
			return nil
		}
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// addMeter adds the chains stray, which drops what is over the limit and returns
// otherwise, and tell, which tells the others of a connection and accepts its packet.
func (s service) addMeter(t *ruleset.Table) {
	f, n := s.family(), ruleset.NameOf(s.frontend)
	dynamic := func(name string, key nftables.SetDatatype, timeout time.Duration) ruleset.Set {
		return ruleset.Set{Name: name + n, Key: key, Dynamic: true, Size: meterSize, Timeout: timeout}
	}
	t.Sets = append(t.Sets,
		dynamic("found_", f.AddrPortType(), foundFor), dynamic("clients_", f.AddrType, foundFor),
		dynamic("begun_", f.AddrPortType(), begunFor),
		dynamic("told_", f.AddrPortType(), toldFor), dynamic("strays_", f.AddrType, 10*time.Second))
	source := []expr.Any{ruleset.LoadNetwork(reg1, f.SrcOffset, f.AddrLen)}

	stray := ruleset.Chain{Name: "stray_" + n}
	stray.Add("a new connection is none", ruleset.SYN(), ruleset.Verdict(expr.VerdictReturn))
	stray.Add("the ring has found its connection", f.SrcAddrPort(), []expr.Any{ruleset.InSet("found_" + n)},
		ruleset.Verdict(expr.VerdictReturn))
	stray.Add("its client has connections here", source, []expr.Any{ruleset.InSet("clients_" + n)},
		ruleset.Goto("known_"+n))
	stray.Add("too many of one client", source, []expr.Any{&expr.Dynset{
		SrcRegKey: reg1, SetName: "strays_" + n, Operation: unix.NFT_DYNSET_OP_ADD,
		Exprs: []expr.Any{over(roundsPerClient, roundsPerClientBurst)},
	}}, ruleset.Verdict(expr.VerdictDrop))
	stray.Add("too many of all", []expr.Any{over(rounds, roundsBurst)}, ruleset.Verdict(expr.VerdictDrop))
	known := ruleset.Chain{Name: "known_" + n}
	known.Add("too many of clients with connections", []expr.Any{over(knownRounds, knownRoundsBurst)},
		ruleset.Verdict(expr.VerdictDrop))

	tell := ruleset.Chain{Name: "tell_" + n}
	tell.Add("told lately", f.SrcAddrPort(), []expr.Any{ruleset.InSet("told_" + n)}, accept())
	tell.Add("too much to tell", []expr.Any{over(tellings, tellingsBurst)}, accept())
	if f.Proto == unix.NFPROTO_IPV6 {
		tell.Add("behind extension headers", []expr.Any{
			ruleset.LoadNetwork(reg1, 6, 1), ruleset.NotEqual(reg1, unix.IPPROTO_TCP),
		}, accept())
	}
	tell.Add("from now on", f.SrcAddrPort(), []expr.Any{&expr.Dynset{
		SrcRegKey: reg1, SetName: "told_" + n, Operation: unix.NFT_DYNSET_OP_ADD,
	}}, f.setProtocol(foundProtocol))
	for _, to := range s.told {
		tell.Add("the connection is here, "+to.String(), []expr.Any{
			&expr.Immediate{Register: reg1, Data: to.AsSlice()},
			&expr.Immediate{Register: reg2, Data: ruleset.Native(s.link.Index)},
			&expr.Dup{RegAddr: reg1, RegDev: reg2, IsRegDevSet: true},
		})
	}
	tell.Add("it goes on as it came", f.setProtocol(unix.IPPROTO_TCP), accept())
	t.Chains = append(t.Chains, stray, known, tell)
}

// begins notes that a connection begins here.
func (s service) begins() []expr.Any {
	return append(s.family().SrcAddrPort(), &expr.Dynset{SrcRegKey: reg1, SetName: "begun_" + ruleset.NameOf(s.frontend),
		Operation: unix.NFT_DYNSET_OP_ADD})
}

// found is the rule for what a node tells of a connection.
func (s service) found() ruleset.Rule {
	f, n := s.family(), ruleset.NameOf(s.frontend)
	note := func(set string) []expr.Any {
		return []expr.Any{&expr.Dynset{SrcRegKey: reg1, SetName: set + n, Operation: unix.NFT_DYNSET_OP_UPDATE,
			Timeout: foundFor}}
	}
	return ruleset.NewRule("a node has a connection of "+s.frontend.String(), s.fromLink(expr.CmpOpEq),
		s.toFrontendBy(foundProtocol), fromNode(false), f.SrcAddrPort(), note("found_"),
		[]expr.Any{ruleset.LoadNetwork(reg1, f.SrcOffset, f.AddrLen)}, note("clients_"), ruleset.Verdict(expr.VerdictDrop))
}

// metered says that packets are metered before they go round.
func (s service) metered() bool { return len(s.told) > 0 }

// meter are the rules that meter what begins its round here, and what a client has
// sealed itself. A node's seal says that it has been metered.
func (s service) meter() (rules []ruleset.Rule) {
	if s.metered() {
		f := s.family()
		rules = append(rules,
			ruleset.NewRule("a client has no seal", fromNode(true), f.sealed(expr.CmpOpEq), s.jumpStray()),
			ruleset.NewRule("not handed on yet", fromNode(false), f.sealed(expr.CmpOpNeq), s.jumpStray()))
	}
	return rules
}

func (s service) jumpStray() []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "stray_" + ruleset.NameOf(s.frontend)}}
}

func over(rate uint64, burst uint32) expr.Any {
	return &expr.Limit{Type: expr.LimitTypePkts, Rate: rate, Unit: expr.LimitTimeSecond, Burst: burst, Over: true}
}

// onItsWay matches what a node has handed on: it has sealed it, or has counted in it.
func (f family) onItsWay() []expr.Any {
	_, value := f.dscp(0)
	return []expr.Any{
		ruleset.LoadNetwork(reg1, 0, 2),
		ruleset.Mask(value, []byte{0, 0}),
		ruleset.Equal(reg1, value...),
	}
}

// setProtocol replaces the IP protocol of a packet without extension headers.
func (f family) setProtocol(proto byte) []expr.Any {
	// The protocol, and the field in the same word: the TTL before it in IPv4, the hop
	// limit after it in IPv6.
	offset, word, keep := uint32(8), []byte{0, proto}, []byte{0xff, 0}
	if f.Proto == unix.NFPROTO_IPV6 {
		offset, word, keep = 6, []byte{proto, 0}, []byte{0, 0xff}
	}
	return []expr.Any{ruleset.LoadNetwork(reg1, offset, 2), ruleset.Mask(keep, word), f.writeHeader(offset)}
}

// toFrontendBy is toFrontend for another protocol with the same ports.
func (s service) toFrontendBy(proto byte) []expr.Any {
	f := s.family()
	return []expr.Any{
		ruleset.LoadNetwork(reg1, f.DstOffset, f.AddrLen),
		ruleset.Equal(reg1, s.frontend.Addr().AsSlice()...),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		ruleset.Equal(reg1, proto),
		ruleset.LoadTransport(reg1, 2, 2),
		ruleset.Equal(reg1, binary.BigEndian.AppendUint16(nil, s.frontend.Port())...),
	}
}
