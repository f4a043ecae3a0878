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
	"appliance/nft/ruleset"
)

const refusedCounter = "refused"

const (
	reg1 = ruleset.Reg1
	reg2 = ruleset.Reg2
)

// natTables are the tables for services, one for each family, so that a host
// without a family needs nothing of it. A family without services has an empty
// table, which means none. sockets says that the kernel can tell which connections
// are open here (nft_socket).
func natTables(services []balancer.Service, sockets bool) ([]ruleset.Table, error) {
	services = slices.Clone(services)
	slices.SortFunc(services, func(a, b balancer.Service) int { return a.Frontend.Compare(b.Frontend) })
	for i, s := range services {
		if i > 0 && services[i-1].Frontend == s.Frontend {
			return nil, fmt.Errorf("%v is the frontend of two load balancers, %s and %s: "+
				"give one of them another port or address", s.Frontend, services[i-1].LoadBalancer, s.LoadBalancer)
		}
		if err := checkService(s); err != nil {
			return nil, err
		}
	}
	var tables []ruleset.Table
	for _, f := range ruleset.Families() {
		tables = append(tables, natTable(f, services, sockets))
	}
	return tables, nil
}

// natTable is the table for the services of one family, a pure function.
//
// The way of a connection's first packet: one look-up of its destination in the map
// of all services leads to the service's chain, a number or a hash leads to a slot,
// and the slot to the backend's chain, which counts and translates. A packet to a
// frontend that was not translated is reset where it enters or leaves the host's
// own sockets: the service has no backend, or conntrack no longer knows the
// packet's connection. A connection that conntrack knows, and does not translate, is
// one of a socket here, from before the data plane changed. So is one that conntrack does not know, and that a socket
// has: it was open, or being opened, before the first rule of the host that needs conntrack, as those of a haproxy are
// that is replaced.
// Forwarded packets pass the first rule of ours only.
func natTable(f ruleset.IPFamily, services []balancer.Service, sockets bool) ruleset.Table {
	t := ruleset.Table{Family: nftables.TableFamily(f.Proto), Name: ruleset.NATTable}
	var frontends, dispatch []nftables.SetElement
	for _, s := range services {
		if !f.Has(s.Frontend.Addr()) {
			continue
		}
		key := ruleset.AddrPortKey(s.Frontend)
		frontends = append(frontends, nftables.SetElement{Key: key})
		backends := serving(s)
		if len(backends) == 0 {
			continue
		}
		dispatch = append(dispatch, ruleset.GotoElement(key, serviceName(s.Frontend)))
		addService(&t, f, s, backends)
	}
	if len(frontends) == 0 {
		return t
	}
	t.Counters = append(t.Counters, refusedCounter)
	t.Sets = append(t.Sets,
		ruleset.Set{Name: "frontends", Key: f.AddrPortType(), Elements: frontends},
		ruleset.Set{Name: "services", Key: f.AddrPortType(), Data: nftables.TypeVerdict, Elements: dispatch},
	)
	dnat := ruleset.NewRule("to the service's chain", ruleset.TCP(), f.DstAddrPort(),
		[]expr.Any{ruleset.InMap("services", ruleset.RegVerdict)})
	snat := addMasquerade(&t, services, f)
	reject := func(but ...expr.Any) ruleset.Rule {
		return ruleset.NewRule("no backend, or a connection that was cut", ruleset.TCP(), f.DstAddrPort(),
			[]expr.Any{ruleset.InSet("frontends")}, ruleset.ToLocal(), but, []expr.Any{
				&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: refusedCounter},
				ruleset.Reset(),
			})
	}
	input := []ruleset.Rule{reject(ruleset.SYN()...)}
	if sockets {
		input = append(input, reject(ruleset.Concat(ruleset.CtUnknown(), ruleset.ListenerHere())...),
			ruleset.NewRule("the connection is open here, or about to be, from before conntrack knew", ruleset.TCP(),
				f.DstAddrPort(), []expr.Any{ruleset.InSet("frontends")}, ruleset.CtUnknown(), ruleset.SocketHere(),
				ruleset.Verdict(expr.VerdictAccept)))
	}
	input = append(input, reject(ruleset.CtUnknown()...))
	t.Chains = append(t.Chains,
		ruleset.NATChain("prerouting", unix.NF_INET_PRE_ROUTING, ruleset.PriorityDNAT, dnat),
		ruleset.NATChain("output", unix.NF_INET_LOCAL_OUT, ruleset.PriorityDNAT, dnat),
		ruleset.NATChain("postrouting", unix.NF_INET_POST_ROUTING, ruleset.PrioritySNAT, snat),
		ruleset.FilterChain("refuse_input", unix.NF_INET_LOCAL_IN, ruleset.PriorityReject, input...),
		// Packets that a PreviousHolder sends on are untracked, and belong to no
		// connection of this node.
		ruleset.FilterChain("refuse_output", unix.NF_INET_LOCAL_OUT, ruleset.PriorityReject,
			reject(ruleset.CtStateIsNot(ruleset.CtUntracked)...)),
	)
	return t
}

// addService adds the chain of a service, with its slots, and the chains of its backends.
func addService(t *ruleset.Table, f ruleset.IPFamily, s balancer.Service, backends []balancer.Backend) {
	svc := serviceName(s.Frontend)
	slots := slots(s.Scheduler, backends)
	elements := make([]nftables.SetElement, len(slots))
	for i, b := range slots {
		elements[i] = ruleset.GotoElement(ruleset.Native(uint32(i)), ruleset.BackendName(s.Frontend, backends[b].Addr))
	}
	t.Sets = append(t.Sets, ruleset.Set{Name: svc, Key: nftables.TypeInteger, Data: nftables.TypeVerdict,
		Elements: elements})
	t.Chains = append(t.Chains, ruleset.Chain{
		Name: svc,
		// Only the packet that opens a connection chooses a backend. A packet
		// from the middle of a connection that conntrack does not know (it was
		// cut, or another node held the address) would reach a backend that
		// does not know the connection either.
		Rules: []ruleset.Rule{ruleset.NewRule(s.LoadBalancer, ruleset.TCP(), ruleset.SYN(), ruleset.ToLocal(),
			choose(f, s.Scheduler, uint32(len(slots))), []expr.Any{ruleset.InMap(svc, ruleset.RegVerdict)})},
	})
	for _, b := range backends {
		be := ruleset.BackendName(s.Frontend, b.Addr)
		t.Counters = append(t.Counters, be)
		t.Chains = append(t.Chains, ruleset.Chain{
			Name: be,
			Rules: []ruleset.Rule{
				ruleset.NewRule("it is counted", ruleset.CountClient(be)),
				ruleset.NewRule(s.LoadBalancer+": "+b.String(), []expr.Any{
					&expr.Immediate{Register: reg1, Data: b.Addr.Addr().Unmap().AsSlice()},
					&expr.Immediate{Register: reg2, Data: ruleset.AddrPortKey(b.Addr)[f.AddrLen:][:2]},
					f.DNAT(reg2),
				}),
			},
		})
	}
}

// addMasquerade adds chains that masquerade what was going to a frontend before it
// was translated, and returns the rule that leads to them by the port. Connections
// are recognised by their original destination, without a mark on packets or
// connections, which others may use. Each rule compares one address, since nft 1.0
// aborts when it lists a look-up of conntrack's address in a set.
func addMasquerade(t *ruleset.Table, services []balancer.Service, f ruleset.IPFamily) ruleset.Rule {
	chains := make(map[uint16]ruleset.Chain)
	for _, s := range services {
		if !f.Has(s.Frontend.Addr()) {
			continue
		}
		c := chains[s.Frontend.Port()]
		c.Name = "masq_" + strconv.Itoa(int(s.Frontend.Port()))
		c.Add(s.LoadBalancer+": backends answer to the node that asked", []expr.Any{
			&expr.Ct{Key: expr.CtKeyDST, Direction: ruleset.CtOriginal, Register: reg1},
			ruleset.Equal(reg1, s.Frontend.Addr().Unmap().AsSlice()...),
		}, ruleset.DNATed(), []expr.Any{&expr.Masq{}})
		chains[s.Frontend.Port()] = c
	}
	ports := ruleset.Set{Name: "ports", Key: nftables.TypeInetService, Data: nftables.TypeVerdict}
	for _, port := range slices.Sorted(maps.Keys(chains)) {
		c := chains[port]
		t.Chains = append(t.Chains, c)
		ports.Elements = append(ports.Elements, ruleset.GotoElement(binary.BigEndian.AppendUint16(nil, port), c.Name))
	}
	t.Sets = append(t.Sets, ports)
	return ruleset.NewRule("what was going to a service's port", ruleset.TCP(), []expr.Any{
		&expr.Ct{Key: expr.CtKeyPROTODST, Direction: ruleset.CtOriginal, Register: reg1},
		ruleset.InMap(ports.Name, ruleset.RegVerdict),
	})
}

// choose puts the number of a slot into reg1.
func choose(f ruleset.IPFamily, s balancer.Scheduler, slots uint32) []expr.Any {
	switch s {
	case balancer.SourceHash:
		return []expr.Any{
			ruleset.LoadNetwork(reg2, f.SrcOffset, f.AddrLen),
			// The seed is the same on every node, so a client keeps its backend when
			// another node takes over.
			&expr.Hash{
				SourceRegister: reg2, DestRegister: reg1,
				Length: f.AddrLen, Modulus: slots, Seed: hashSeed, Type: expr.HashTypeJenkins,
			},
		}
	case balancer.Random:
		return []expr.Any{&expr.Numgen{Register: reg1, Modulus: slots, Type: unix.NFT_NG_RANDOM}}
	default:
		return []expr.Any{&expr.Numgen{Register: reg1, Modulus: slots, Type: unix.NFT_NG_INCREMENTAL}}
	}
}

// hashSeed keeps the kernel from choosing a random seed. Its value means nothing.
const hashSeed = 0x61706c6e

// serving are the backends that get new connections of s, sorted by address.
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

func serviceName(frontend netip.AddrPort) string { return "svc_" + ruleset.NameOf(frontend) }

// checkService rejects what NAT in the kernel cannot do.
func checkService(s balancer.Service) error {
	var errs []error
	reject := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("load balancer %s: "+format, append([]any{s.LoadBalancer}, args...)...))
	}
	switch s.Scheduler {
	case balancer.RoundRobin, balancer.WeightedRoundRobin, balancer.SourceHash, balancer.Random, "":
	default:
		reject("nftables has no scheduler %q, it cannot count open connections: set scheduler to rr, wrr, sh or random, or "+
			"dataPlane to ipvs or userspace", s.Scheduler)
	}
	a := s.Frontend.Addr()
	switch {
	case a.IsUnspecified():
		reject("nftables cannot take every address of the host as %v does, connections to backends of the node itself would "+
			"come back: name the addresses, or set dataPlane: userspace", s.Frontend)
	case a.IsLoopback():
		// It would take route_localnet, which opens 127/8 to the network,
		// and IPv6 has no such setting.
		reject("nftables cannot bring connections to %v to another host: set dataPlane: userspace", s.Frontend)
	case a.Zone() != "":
		reject("nftables does not know the zone of %v: use an address that is not link-local, or set dataPlane: userspace",
			s.Frontend)
	}
	for _, b := range s.Backends {
		switch a := b.Addr.Addr(); {
		case !a.IsValid() || b.Addr.Port() == 0:
			reject("backend %v has no address and port: give both", b)
		case a.IsLoopback():
			reject("nftables cannot send connections to %v: give the backend an address of the node, or set dataPlane: "+
				"userspace", b.Addr)
		case a.Zone() != "":
			reject("nftables does not know the zone of backend %v: use an address that is not link-local, or set dataPlane: "+
				"userspace", b.Addr)
		case b.Addr == s.Frontend:
			reject("backend %v is the frontend itself: give the server's own address", b.Addr)
		}
	}
	return errors.Join(errs...)
}
