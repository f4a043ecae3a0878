package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

const refusedCounter = "refused"

// natTables are the tables for services, one per family, so that a host
// without one of the families needs nothing of it. A family without services
// has an empty table, which means none.
func natTables(services []balancer.Service) ([]table, error) {
	services = slices.SortedFunc(slices.Values(services), func(a, b balancer.Service) int { return a.Frontend.Compare(b.Frontend) })
	for i, s := range services {
		if i > 0 && services[i-1].Frontend == s.Frontend {
			return nil, fmt.Errorf("%v is the frontend of two load balancers, %s and %s: give one of them another port or address", s.Frontend, services[i-1].LoadBalancer, s.LoadBalancer)
		}
		if err := checkService(s); err != nil {
			return nil, err
		}
	}
	var tables []table
	for _, f := range families() {
		tables = append(tables, nat(f, services))
	}
	return tables, nil
}

// nat is the table for the services of one family, a pure function.
//
// The way of a connection's first packet: one look-up of its destination in
// the map of all services leads to the service's chain, a number or a hash
// leads to a slot, the slot to the backend's chain, which counts and
// translates. What is addressed to a frontend and was not translated is reset
// where it enters or leaves the host's own sockets: the service has no
// backend, or the packet belongs to a connection that conntrack does not know
// any more. Packets that are forwarded meet no rule of ours but the first.
func nat(f ipFamily, services []balancer.Service) table {
	t := table{family: nftables.TableFamily(f.proto), name: natTable}
	var frontends, dispatch []nftables.SetElement
	for _, s := range services {
		if !f.has(s.Frontend.Addr()) {
			continue
		}
		key := addrPortKey(s.Frontend)
		frontends = append(frontends, nftables.SetElement{Key: key})
		backends := serving(s)
		if len(backends) == 0 {
			continue
		}
		dispatch = append(dispatch, nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: serviceName(s.Frontend)}})
		t.addService(f, s, backends)
	}
	if len(frontends) == 0 {
		return t
	}
	t.counters = append(t.counters, refusedCounter)
	t.sets = append(t.sets,
		set{name: "frontends", key: f.addrPortType(), elements: frontends},
		set{name: "services", key: f.addrPortType(), data: nftables.TypeVerdict, elements: dispatch},
	)
	dnat := []rule{{
		why:   "to the service's chain",
		exprs: concat(tcp(), f.addrPort(), []expr.Any{inMap("services", regVerdict)}),
	}}
	snat := t.addMasquerade(services, f)
	refuse := func(but ...expr.Any) []rule {
		return []rule{{
			why: "no backend, or a connection that was cut",
			exprs: concat(tcp(), f.addrPort(), []expr.Any{
				inSet("frontends"),
			}, toLocal(), but, []expr.Any{
				&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: refusedCounter},
				resetTCP(),
			}),
		}}
	}
	base := func(name string, kind nftables.ChainType, num nftables.ChainHook, p nftables.ChainPriority, rules []rule) chain {
		h := &hook{kind: kind, num: num, priority: p}
		if kind == nftables.ChainTypeNAT {
			h.steps = natSteps
		}
		return chain{name: name, hook: h, rules: rules}
	}
	t.chains = append(t.chains,
		base("prerouting", nftables.ChainTypeNAT, unix.NF_INET_PRE_ROUTING, dnatPriority, dnat),
		base("output", nftables.ChainTypeNAT, unix.NF_INET_LOCAL_OUT, dnatPriority, dnat),
		base("postrouting", nftables.ChainTypeNAT, unix.NF_INET_POST_ROUTING, snatPriority, snat),
		base("refuse_input", nftables.ChainTypeFilter, unix.NF_INET_LOCAL_IN, rejectPriority, refuse()),
		// What a Handback sends on is none of this node's connections.
		base("refuse_output", nftables.ChainTypeFilter, unix.NF_INET_LOCAL_OUT, rejectPriority, refuse(ctStateIsNot(ctUntracked)...)),
	)
	return t
}

// addService adds the chain of a service, with its slots, and the chains of its backends.
func (t *table) addService(f ipFamily, s balancer.Service, backends []balancer.Backend) {
	svc := serviceName(s.Frontend)
	slots := slots(s.Scheduler, backends)
	elements := make([]nftables.SetElement, len(slots))
	for i, b := range slots {
		elements[i] = nftables.SetElement{
			Key:         native(uint32(i)),
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: backendName(s.Frontend, backends[b].Addr)},
		}
	}
	t.sets = append(t.sets, set{name: svc, key: nftables.TypeInteger, data: nftables.TypeVerdict, elements: elements})
	t.chains = append(t.chains, chain{
		name: svc,
		rules: []rule{{
			// Only the packet that opens a connection chooses a backend. One
			// from the middle of a connection that conntrack does not know
			// (it was cut, or another node held the address) would meet a
			// backend that knows nothing of it.
			why:   s.LoadBalancer,
			exprs: concat(tcp(), tcpSYN(), toLocal(), choose(f, s.Scheduler, uint32(len(slots))), []expr.Any{inMap(svc, regVerdict)}),
		}},
	})
	for _, b := range backends {
		be := backendName(s.Frontend, b.Addr)
		t.counters = append(t.counters, be)
		t.chains = append(t.chains, chain{
			name: be,
			rules: []rule{{
				why: s.LoadBalancer + ": " + b.String(),
				exprs: []expr.Any{
					&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: be},
					&expr.Immediate{Register: reg1, Data: b.Addr.Addr().Unmap().AsSlice()},
					&expr.Immediate{Register: reg2, Data: addrPortKey(b.Addr)[f.addrLen:][:2]},
					&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg1, RegProtoMin: reg2, Specified: true},
				},
			}},
		})
	}
}

// addMasquerade adds chains that masquerade what was going to a frontend
// before we sent it elsewhere, and returns the rule that leads to them, by
// the port. Connections are told by their original destination: there is no
// packet mark, of which others have their own ideas, and no mark on the
// connection. The address is compared rule by rule, since nft 1.0 aborts when
// it has to list a look-up of conntrack's address in a set.
func (t *table) addMasquerade(services []balancer.Service, f ipFamily) []rule {
	chains := make(map[uint16]chain)
	for _, s := range services {
		if !f.has(s.Frontend.Addr()) {
			continue
		}
		c := chains[s.Frontend.Port()]
		c.name = "masq_" + strconv.Itoa(int(s.Frontend.Port()))
		c.rules = append(c.rules, rule{
			why: s.LoadBalancer + ": backends answer to the node that asked",
			exprs: concat([]expr.Any{
				&expr.Ct{Key: expr.CtKeyDST, Direction: ctOriginal, Register: reg1},
				equal(reg1, s.Frontend.Addr().Unmap().AsSlice()...),
			}, dnated(), []expr.Any{&expr.Masq{}}),
		})
		chains[s.Frontend.Port()] = c
	}
	ports := set{name: "ports", key: nftables.TypeInetService, data: nftables.TypeVerdict}
	for _, port := range slices.Sorted(maps.Keys(chains)) {
		c := chains[port]
		t.chains = append(t.chains, c)
		ports.elements = append(ports.elements, nftables.SetElement{
			Key:         binary.BigEndian.AppendUint16(nil, port),
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: c.name},
		})
	}
	t.sets = append(t.sets, ports)
	return []rule{{
		why: "what was going to a service's port",
		exprs: concat(tcp(), []expr.Any{
			&expr.Ct{Key: expr.CtKeyPROTODST, Direction: ctOriginal, Register: reg1},
			inMap(ports.name, regVerdict),
		}),
	}}
}

// choose puts the number of a slot into reg1.
func choose(f ipFamily, s balancer.Scheduler, slots uint32) []expr.Any {
	switch s {
	case balancer.SourceHash:
		return []expr.Any{
			&expr.Payload{DestRegister: reg2, Base: expr.PayloadBaseNetworkHeader, Offset: f.saddr, Len: f.addrLen},
			// The seed is the same on every node, so a client keeps its
			// backend when another node takes over.
			&expr.Hash{SourceRegister: reg2, DestRegister: reg1, Length: f.addrLen, Modulus: slots, Seed: hashSeed, Type: expr.HashTypeJenkins},
		}
	case balancer.Random:
		return []expr.Any{&expr.Numgen{Register: reg1, Modulus: slots, Type: unix.NFT_NG_RANDOM}}
	default:
		return []expr.Any{&expr.Numgen{Register: reg1, Modulus: slots, Type: unix.NFT_NG_INCREMENTAL}}
	}
}

// hashSeed keeps the kernel from taking a random one. Its value is of no meaning.
const hashSeed = 0x61706c6e

// serving are the backends that get new connections of s, in the order of
// their addresses.
func serving(s balancer.Service) []balancer.Backend {
	var backends []balancer.Backend
	for _, b := range s.Backends {
		if b.Weight > 0 && sameFamily(s.Frontend, b.Addr) {
			backends = append(backends, b)
		}
	}
	slices.SortFunc(backends, func(a, b balancer.Backend) int { return a.Addr.Compare(b.Addr) })
	return slices.CompactFunc(backends, func(a, b balancer.Backend) bool { return a.Addr == b.Addr })
}

func sameFamily(a, b netip.AddrPort) bool { return a.Addr().Unmap().Is4() == b.Addr().Unmap().Is4() }

func serviceName(frontend netip.AddrPort) string { return "svc_" + name(frontend) }

func backendName(frontend, backend netip.AddrPort) string {
	return "be_" + name(frontend) + "_to_" + name(backend)
}

// checkService refuses what NAT in the kernel cannot do.
func checkService(s balancer.Service) error {
	var errs []error
	refuse := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("load balancer %s: "+format, append([]any{s.LoadBalancer}, args...)...))
	}
	switch s.Scheduler {
	case balancer.RoundRobin, balancer.WeightedRoundRobin, balancer.SourceHash, balancer.Random, "":
	default:
		refuse("nftables has no scheduler %q, it cannot count open connections: set scheduler to rr, wrr, sh or random, or dataPlane to ipvs or userspace", s.Scheduler)
	}
	a := s.Frontend.Addr()
	switch {
	case a.IsUnspecified():
		refuse("nftables cannot take every address of the host as %v does, connections to backends of the node itself would come back: name the addresses, or set dataPlane: userspace", s.Frontend)
	case a.IsLoopback():
		// It would take route_localnet, which opens 127/8 to the network,
		// and IPv6 has no such setting.
		refuse("nftables cannot bring connections to %v to another host: set dataPlane: userspace", s.Frontend)
	case a.Zone() != "":
		refuse("nftables does not know the zone of %v: use an address that is not link-local, or set dataPlane: userspace", s.Frontend)
	}
	for _, b := range s.Backends {
		switch a := b.Addr.Addr(); {
		case !a.IsValid() || b.Addr.Port() == 0:
			refuse("backend %v has no address and port: give both", b)
		case a.IsLoopback():
			refuse("nftables cannot send connections to %v: give the backend an address of the node, or set dataPlane: userspace", b.Addr)
		case a.Zone() != "":
			refuse("nftables does not know the zone of backend %v: use an address that is not link-local, or set dataPlane: userspace", b.Addr)
		case b.Addr == s.Frontend:
			refuse("backend %v is the frontend itself: give the server's own address", b.Addr)
		}
	}
	return errors.Join(errs...)
}
