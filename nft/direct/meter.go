package direct

import (
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/nft/ruleset"
	"appliance/segment"
)

// # The meter
//
// A packet that belongs to no connection goes round all nodes, so one of a stranger's would make six on the link of
// three nodes. A packet of a connection that another node has stops there. So the node at which a round begins, and
// at which it ends in vain, learns from what does not come back: nobody has to tell it anything.
//
//   - asked: a round has begun for it. If it is not in vain too, the round has found its connection. Its packets go on
//     unmetered.
//   - vain: a round for it came back to its owner.
//   - strangers: rounds for this client address were in vain. What else comes from it is metered.
//   - floods: so many rounds were in vain that what comes from everybody is metered.
//   - once: it was metered.
//
// While nothing is in vain, nothing is metered: a backend that comes back gets the packets of thousands of open
// connections at once. What is metered goes round at its second try only, as a client's does at once or after its
// retransmission timeout (RFC 6298) and a stranger's mostly does not, and within a limit. At its first it stays here: a
// listener knows its own SYN cookies. The reset that the listener has for anything else is dropped, as the connection
// may be elsewhere.
//
// A stranger may write a count and a seal into its packets. So what is learned of them never has a packet answered
// that would have been handed on.
const (
	// goRoundInVain is how many packets a second all nodes together make of strangers' who send each packet twice. Under
	// a flood of 10,000 a second these are a third more.
	goRoundInVain = 3000
	// againInVain is how many packets a second go round of those that went round in vain: their resets may be lost.
	againInVain = 10

	// inVainPerAddr is how many rounds in vain make a stranger. A round is noticed twice: when it is half over and when
	// it ends.
	inVainPerAddr, inVainPerAddrBurst = 1, 1 // per second

	askedFor    = time.Minute
	inVainFor   = askedFor + time.Second // a packet is asked about before that is in vain
	strangerFor = 10 * time.Second
	// onceFor is longer than the first three retransmissions are apart.
	onceFor = 4 * time.Second
	// meterSize bounds each set. The largest are 12 MB of the kernel's memory.
	meterSize = 1 << 17
)

// The keys of set floods.
const (
	floodOfOpen = 1 + iota
	floodOfNew
)

// roundsInVain is how many rounds that are likely in vain begin in a second at each of the nodes.
func roundsInVain(services []service) uint64 {
	n := uint64(1)
	for _, s := range services {
		n = max(n, uint64(len(s.hops)*(s.handOns()+1)))
	}
	return max(goRoundInVain/n, 6)
}

// addMeter adds what the services of a table have in common: the chain meter, which returns if a packet may go round,
// ended, in which a round ends, and quiet, which drops resets.
func (f family) addMeter(t *ruleset.Table, services []service) {
	set := func(name string, key nftables.SetDatatype, timeout time.Duration) {
		t.Sets = append(t.Sets, ruleset.Set{Name: name, Key: key, Dynamic: true, Size: meterSize, Timeout: timeout})
	}
	set("asked", f.pathType(), askedFor)
	set("vain", f.pathType(), inVainFor)
	set("once", f.pathType(), onceFor)
	set("strangers", f.AddrType, strangerFor)
	set("stray", f.AddrType, strangerFor)
	set("floods", nftables.TypeMark, strangerFor)
	rounds := roundsInVain(services)

	rest := ruleset.Chain{Name: "meter_rest"}
	rest.Add("too many are in vain", []expr.Any{over(rounds, max(rounds/2, 1))}, ruleset.Verdict(expr.VerdictDrop))
	learn := ruleset.Chain{Name: "meter_asked"}
	learn.Add("its round begins", f.path(), update("asked"))
	second := ruleset.Chain{Name: "meter_second"}
	second.Add("the last round was in vain", f.path(), in("vain"), []expr.Any{over(againInVain, againInVain)},
		ruleset.Verdict(expr.VerdictDrop))
	second.Add("within a limit", jump(rest.Name))
	second.Add("it goes round", ruleset.Goto(learn.Name))
	opens := ruleset.Chain{Name: "meter_new"}
	opens.Add("somebody has a listener", noFlood(floodOfNew), ruleset.Verdict(expr.VerdictReturn))
	opens.Add("nobody has one", ruleset.Goto(rest.Name))
	sealed := ruleset.Chain{Name: "meter_sealed"}
	sealed.Add("no flood, no stranger", noFlood(floodOfOpen), f.noStranger(), ruleset.Verdict(expr.VerdictReturn))
	sealed.Add("nobody knows who has sealed it", ruleset.Goto(rest.Name))

	meter := ruleset.Chain{Name: "meter"}
	meter.Add("a new connection", ruleset.SYN(), ruleset.Goto(opens.Name))
	meter.Add("no flood, no stranger", noFlood(floodOfOpen), f.noStranger(), ruleset.Goto(learn.Name))
	if f.Proto == unix.NFPROTO_IPV4 {
		// Without a seal, each node takes it for one that begins its round there.
		meter.Add("it cannot be sealed", f.unsealable(), ruleset.Goto(rest.Name))
	}
	meter.Add("a round has found it", f.path(), in("asked"), notIn("vain"), ruleset.Goto(learn.Name))
	meter.Add("its second try", f.path(), in("once"), ruleset.Goto(second.Name))
	// Conntrack would take it for a connection, for days, as no reset tells it better.
	meter.Add("its first: the listener here knows its cookies", f.path(), update("once"), []expr.Any{&expr.Notrack{}},
		accept())
	meter.Add("there are too many", ruleset.Verdict(expr.VerdictDrop))

	flood := func(key uint32) []expr.Any {
		return append([]expr.Any{&expr.Immediate{Register: reg1, Data: ruleset.Native(key)}}, update("floods")...)
	}
	fast := over(max(rounds/4, 1), max(rounds/4, 1))
	inVain := ruleset.Chain{Name: "in_vain"}
	inVain.Add("nobody has a listener", ruleset.SYN(), []expr.Any{fast}, flood(floodOfNew))
	inVain.Add("of a stranger", ruleset.NotSYN(), f.client(), []expr.Any{&expr.Dynset{
		SrcRegKey: reg1, SetName: "stray", Operation: unix.NFT_DYNSET_OP_ADD,
		Exprs: []expr.Any{over(inVainPerAddr, inVainPerAddrBurst)},
	}}, update("strangers"))
	inVain.Add("a flood", ruleset.NotSYN(), []expr.Any{fast}, flood(floodOfOpen))
	ended := ruleset.Chain{Name: "ended"}
	ended.Add("nobody has its connection", ruleset.NotSYN(), f.sealed(expr.CmpOpEq), fromNode(false), f.path(),
		update("vain"))
	ended.Add("it is counted", jump(inVain.Name))
	ended.Add("it is answered here", accept())

	quiet := ruleset.FilterChain("quiet", *nftables.ChainHookOutput, arrivalPriority)
	quiet.Add("the reset for a packet whose connection may be elsewhere", ruleset.TCP(), []expr.Any{
		ruleset.LoadTransport(reg1, 13, 1), ruleset.Equal(reg1, segment.RST), // RFC 9293 sections 3.1, 3.10.7.1
	}, f.pathBack(), in("once"), notIn("vain"), ruleset.Verdict(expr.VerdictDrop))

	t.Chains = append(t.Chains, rest, learn, second, opens, sealed, meter, inVain, ended, quiet)
}

// metering are the rules for what is handed on. Whatever has no seal begins its round here.
func (f family) metering() []ruleset.Rule {
	return []ruleset.Rule{
		ruleset.NewRule("its round begins here", f.sealed(expr.CmpOpNeq), jump("meter")),
		ruleset.NewRule("a seal, but of no node that is known", f.sealed(expr.CmpOpEq), fromNode(true),
			jump("meter_sealed")),
		// Where nodes have read different files, it may end elsewhere.
		ruleset.NewRule("it has come by here before", f.sealed(expr.CmpOpEq), fromNode(false), f.path(), in("asked"),
			jump("in_vain")),
	}
}

// pathType is the type of a client's address and port, and a frontend's.
func (f family) pathType() nftables.SetDatatype {
	// Four types always fit, so there is never an error.
	t, _ := nftables.ConcatSetType(f.AddrType, nftables.TypeInetService, f.AddrType, nftables.TypeInetService)
	return t
}

// path leaves client and frontend of a client's packet where sets are looked up. nft lists ports only behind a look at
// the protocol.
func (f family) path() []expr.Any { return f.ends(f.SrcOffset, 0, f.DstOffset, 2) }

// pathBack is path for an answer.
func (f family) pathBack() []expr.Any { return f.ends(f.DstOffset, 2, f.SrcOffset, 0) }

func (f family) ends(client, clientPort, frontend, frontendPort uint32) []expr.Any {
	word := f.PortReg // the word behind an address in reg1
	if word == reg2 {
		word = 8 + 4
	}
	return append(ruleset.TCP(),
		ruleset.LoadNetwork(reg1, client, f.AddrLen), ruleset.LoadTransport(word, clientPort, 2),
		ruleset.LoadNetwork(word+1, frontend, f.AddrLen), ruleset.LoadTransport(word+1+f.AddrLen/4, frontendPort, 2))
}

// client leaves a client's address in reg1.
func (f family) client() []expr.Any {
	return []expr.Any{ruleset.LoadNetwork(reg1, f.SrcOffset, f.AddrLen)}
}

func in(set string) []expr.Any { return []expr.Any{ruleset.InSet(set)} }

func notIn(set string) []expr.Any {
	l := ruleset.InSet(set)
	l.Invert = true
	return []expr.Any{l}
}

// update puts what is in reg1 into the set, for as long as if it had not been there. It does not match if the set is
// full.
func update(set string) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: reg1, SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE}}
}

func noFlood(key uint32) []expr.Any {
	return append([]expr.Any{&expr.Immediate{Register: reg1, Data: ruleset.Native(key)}}, notIn("floods")...)
}

func (f family) noStranger() []expr.Any { return slices.Concat(f.client(), notIn("strangers")) }

func over(rate, burst uint64) expr.Any {
	return &expr.Limit{Type: expr.LimitTypePkts, Rate: rate, Unit: expr.LimitTimeSecond, Burst: uint32(burst), Over: true}
}

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}
