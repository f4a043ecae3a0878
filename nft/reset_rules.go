package nft

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/nft/conntrack"
	"appliance/nft/ruleset"
	"appliance/segment"
)

func tableFamily(a netip.AddrPort) nftables.TableFamily {
	if a.Addr().Unmap().Is4() {
		return nftables.TableFamilyIPv4
	}
	return nftables.TableFamilyIPv6
}

func quotaName(frontend, backend netip.AddrPort) string {
	return "refused_" + ruleset.NameOf(frontend) + "_by_" + ruleset.NameOf(backend)
}

// retryQuota is the name of the quota that bounds the retries of clients that b has
// refused, or "" if clients see refusals.
func (s monitoredService) retryQuota(b netip.AddrPort) string {
	another := slices.ContainsFunc(serving(s.Service), func(o balancer.Backend) bool { return o.Addr != b })
	switch {
	case another && s.retry == RetryByNAT:
		return "again_" + quotaName(s.Frontend, b)
	case s.rewritesLate():
		return "again_" + ruleset.NameOf(s.Frontend)
	}
	return ""
}

// rewritesLate says that a refusal is rewritten in the form in which the client sees
// it, after IPVS has seen it.
func (s monitoredService) rewritesLate() bool {
	return s.retry == RetryByIPVS && len(serving(s.Service)) > 0 && len(conntrack.Allowed(s.Service)) > 1
}

// resetTable is the table for the services of one family, a pure function.
//
// A host refuses a connection by a segment that has RST and ACK set and the
// sequence number zero (RFC 9293 section 3.10.7.1). No other segment looks like
// this. Conntrack knows whether it answers a client of ours.
func resetTable(f ruleset.IPFamily, services []monitoredService) ruleset.Table {
	t := ruleset.Table{Family: nftables.TableFamily(f.Proto), Name: ruleset.ResetTable}
	services = slices.Clone(services)
	slices.SortFunc(services, func(a, b monitoredService) int { return a.Frontend.Compare(b.Frontend) })
	// Two planes serve a load balancer for a moment while it moves.
	services = slices.CompactFunc(services, func(a, b monitoredService) bool { return a.Frontend == b.Frontend })
	dispatch := ruleset.Chain{Name: "refusal"}
	late := ruleset.Set{Name: "late", Key: f.AddrPortType(), Data: nftables.TypeVerdict}
	for _, s := range services {
		if !f.Has(s.Frontend.Addr()) {
			continue
		}
		var backends []netip.AddrPort
		for _, b := range conntrack.Allowed(s.Service) {
			if f.Has(b.Addr()) {
				backends = append(backends, b)
			}
		}
		if len(backends) == 0 {
			continue
		}
		slices.SortFunc(backends, netip.AddrPort.Compare)
		backends = slices.Compact(backends)
		by := "by_" + ruleset.NameOf(s.Frontend)
		servers := ruleset.Set{Name: by, Key: f.AddrPortType(), Data: nftables.TypeVerdict}
		for _, b := range backends {
			n := quotaName(s.Frontend, b)
			servers.Elements = append(servers.Elements, ruleset.GotoElement(ruleset.AddrPortKey(b), n))
			t.Quotas = append(t.Quotas, ruleset.Quota{Name: n, Bytes: 1}) // less than any packet has
			c := ruleset.Chain{Name: n}
			c.Add(s.LoadBalancer+": the first one is told", []expr.Any{useUp(n)})
			if q := s.retryQuota(b); q != "" && !s.rewritesLate() {
				t.Quotas = append(t.Quotas, retryQuotaOf(f, q))
				c.Rules = append(c.Rules, retryRule(s, []expr.Any{useUp(q)}))
			}
			t.Chains = append(t.Chains, c)
		}
		t.Sets = append(t.Sets, servers)
		t.Chains = append(t.Chains, ruleset.Chain{Name: by, Rules: []ruleset.Rule{
			ruleset.NewRule(s.LoadBalancer, f.SrcAddrPort(), []expr.Any{ruleset.InMap(by, ruleset.RegVerdict)})}})
		if s.rewritesLate() {
			q := s.retryQuota(netip.AddrPort{})
			t.Quotas = append(t.Quotas, retryQuotaOf(f, q))
			retry := "retry_" + ruleset.NameOf(s.Frontend)
			t.Chains = append(t.Chains, ruleset.Chain{Name: retry, Rules: []ruleset.Rule{retryRule(s, []expr.Any{
				// A refusal by this node itself has passed no other backend.
				&expr.Ct{Key: expr.CtKeySRC, Direction: ruleset.CtReply, Register: reg1},
				ruleset.NotEqual(reg1, s.Frontend.Addr().Unmap().AsSlice()...),
				useUp(q),
			})}})
			late.Elements = append(late.Elements, ruleset.GotoElement(ruleset.AddrPortKey(s.Frontend), retry))
		}
		dispatch.Add("clients of "+s.Frontend.String(), f.OriginallyTo(),
			[]expr.Any{
				ruleset.Equal(reg1, s.Frontend.Addr().Unmap().AsSlice()...),
				ruleset.Equal(f.PortReg, binary.BigEndian.AppendUint16(nil, s.Frontend.Port())...),
			}, ruleset.Goto(by))
	}
	if len(dispatch.Rules) == 0 {
		return t
	}
	look := ruleset.NewRule("a server refuses", refusal(), ruleset.Goto(dispatch.Name))
	// After conntrack, which is asked, and before NAT and IPVS replace the
	// backend's address by the frontend. Backends on this node answer through the
	// output hook.
	t.Chains = append(t.Chains, dispatch,
		ruleset.FilterChain("prerouting", unix.NF_INET_PRE_ROUTING, ruleset.PriorityMangle, look),
		ruleset.FilterChain("output", unix.NF_INET_LOCAL_OUT, ruleset.PriorityMangle, look),
	)
	if len(late.Elements) == 0 {
		return t
	}
	t.Sets = append(t.Sets, late)
	changed := ruleset.NewRule("a client is refused", refusal(), f.SrcAddrPort(),
		[]expr.Any{ruleset.InMap(late.Name, ruleset.RegVerdict)})
	t.Chains = append(t.Chains,
		ruleset.FilterChain("input", unix.NF_INET_LOCAL_IN, ruleset.PriorityLate, changed),
		ruleset.FilterChain("postrouting", unix.NF_INET_POST_ROUTING, ruleset.PriorityLate, changed),
	)
	return t
}

// retryRule rewrites what matches into a segment that makes the client try again.
func retryRule(s monitoredService, match []expr.Any) ruleset.Rule {
	return ruleset.NewRule(s.LoadBalancer+": the client tries again, and meets another", match, rewriteToACK())
}

// retryQuotaOf is a quota of maxRetries refusals.
func retryQuotaOf(f ruleset.IPFamily, name string) ruleset.Quota {
	// The destination address is the end of the IP header.
	return ruleset.Quota{Name: name, Bytes: maxRetries * (uint64(f.DstOffset+f.AddrLen) + segment.HeaderLen)}
}

func useUp(name string) expr.Any { return &expr.Objref{Type: unix.NFT_OBJECT_QUOTA, Name: name} }

// refusal matches the answer to a SYN that nobody listens for: `tcp flags == rst |
// ack tcp sequence 0`. The flags are compared before the protocol: nearly every
// packet differs in them, and costs one comparison.
func refusal() []expr.Any {
	return ruleset.Concat([]expr.Any{
		ruleset.LoadTransport(reg1, 13, 1),
		ruleset.Equal(reg1, segment.RST|segment.ACK),
	}, ruleset.TCP(), []expr.Any{
		ruleset.LoadTransport(reg1, 4, 4),
		ruleset.Equal(reg1, 0, 0, 0, 0),
	})
}

// rewriteToACK turns a refusal into an acknowledgement of what the client never
// sent. The client stays in SYN-SENT (RFC 9293 section 3.10.7.3). Linux since 5.6
// sends its SYN again within two ticks of its clock, the first time that this
// happens to a connection; others do after their retransmission timeout.
func rewriteToACK() []expr.Any {
	const checksum = 16 // RFC 9293 section 3.1
	write := func(offset, length uint32) *expr.Payload {
		return &expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: reg1,
			Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length,
			CsumType: expr.CsumTypeInet, CsumOffset: checksum,
		}
	}
	return []expr.Any{
		// The flags, and the length of the header before them: checksums cover
		// words of two bytes.
		ruleset.LoadTransport(reg1, 12, 2),
		ruleset.Mask([]byte{0xf0, 0}, []byte{0, segment.ACK}),
		write(12, 2),
		&expr.Immediate{Register: reg1, Data: make([]byte, 4)},
		write(8, 4),
	}
}
