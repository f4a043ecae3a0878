package keepalived

import (
	"net/netip"
	"strings"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// An instance is a vrrp_instance as it is read.
type instance struct {
	syntax.Statement
	user            string // of scripts that name none
	state, priority draft.Line
	machines        []machineAddr
}

// A machineAddr is the address of a machine in an instance. The instances of one file are those of one machine, so
// machine says which one it is: "own", or the @name of a file that is for several; empty means another, unknown one.
type machineAddr struct {
	syntax.Place
	addr    netip.Addr
	machine string
}

// only cuts off the @name of a line that is for some machines only.
func only(l draft.Line) (name string, rest draft.Line) {
	if len(l.Words) > 1 && strings.HasPrefix(l.Words[0], "@") {
		rest = l
		rest.Words = l.Words[1:]
		return l.Words[0], rest
	}
	return "", l
}

// source reads the machine's own address.
func (i *instance) source(l draft.Line, name string) {
	a, ok := draft.ReadAddr(l.Arg(1))
	if !ok {
		l.Note("%s", draft.WrongAddr(l.Arg(1)))
		return
	}
	if name == "" {
		name = "own"
		l.Own = append(l.Own, a)
	}
	if l.Words[0] == "unicast_src_ip" {
		i.machines = append(i.machines, machineAddr{l.Place, a, name})
	}
}

// peers reads the addresses of the other machines.
func (i *instance) peers(l draft.Line) {
	for _, line := range l.Lines(nil, l.Body) {
		_, rest := only(line)
		if a, ok := draft.ReadAddr(rest.Arg(0)); ok {
			i.machines = append(i.machines, machineAddr{line.Place, a, ""})
		} else {
			line.Note("%s", draft.WrongAddr(rest.Arg(0)))
		}
	}
}

// A machine is a peer with all addresses that are known of it.
type machine struct {
	draft.PeerDraft
	name string
}

// addMachines adds the machines of all instances to the peers. A machine has an address in each family and each network
// that an instance is in.
func addMachines(d *draft.Draft, instances []*instance) {
	var all []*machine
	for _, i := range instances {
		known := map[*machine]bool{}
		var rest []machineAddr
		for _, a := range i.machines {
			m := find(all, a)
			if m == nil {
				rest = append(rest, a)
				continue
			}
			known[m] = true
			m.add(a)
		}
		var others []*machine // those that have no address in this instance yet
		for _, m := range all {
			if !known[m] {
				others = append(others, m)
			}
		}
		rest = unique(rest)
		order, byName := match(others, rest)
		if order != nil && !byName {
			d.PeerHint = []string{"Each peer has the addresses that stand at one place of the lists. " +
				"Look whether they are one machine's."}
		}
		for n, a := range rest {
			if order != nil && a.machine == "" {
				order[n].add(a)
				continue
			}
			if len(others) > 0 && a.machine == "" && !neighbours(all, a.addr) {
				d.Note(nil, syntax.Statement{Place: a.Place, Words: []string{a.addr.String()}},
					"is an address of a machine that has another one in another list, and which is not said; "+
						"write it in peers as ADDRESS+%s", a.addr)
				continue
			}
			all = append(all, &machine{draft.PeerDraft{Place: a.Place, Addr: a.addr}, a.machine})
		}
	}
	for _, m := range all {
		d.AllNamed = d.AllNamed || m.name != ""
		d.Peers = append(d.Peers, m.PeerDraft)
	}
}

func (m *machine) add(a machineAddr) {
	for _, has := range m.Addrs() {
		if has == a.addr {
			return
		}
	}
	m.Further = append(m.Further, a.addr)
}

// find is the machine of an address: the one that has it, or has the same name.
func find(all []*machine, a machineAddr) *machine {
	for _, m := range all {
		for _, has := range m.Addrs() {
			if has == a.addr {
				return m
			}
		}
	}
	for _, m := range all {
		if a.machine != "" && m.name == a.machine {
			return m
		}
	}
	return nil
}

// unique is list with each address once.
func unique(list []machineAddr) (out []machineAddr) {
	seen := map[netip.Addr]bool{}
	for _, a := range list {
		if !seen[a.addr] {
			seen[a.addr] = true
			out = append(out, a)
		}
	}
	return out
}

// neighbours reports whether a is on a network on which a machine has an address already.
func neighbours(all []*machine, a netip.Addr) bool {
	for _, m := range all {
		for _, has := range m.Addrs() {
			if onOneNetwork(has, a) {
				return true
			}
		}
	}
	return false
}

func onOneNetwork(a, b netip.Addr) bool {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	return err == nil && p.Contains(b)
}

// match says which of machines each address belongs to: the one whose address ends in the same number, or else the one
// at the same place. nil means that nobody can say.
func match(machines []*machine, addrs []machineAddr) (order []*machine, byNumber bool) {
	if len(machines) == 0 || len(machines) != len(addrs) {
		return nil, false
	}
	for _, a := range addrs {
		if a.machine != "" || neighbours(machines, a.addr) {
			return nil, false
		}
	}
	taken := map[*machine]bool{}
	for _, a := range addrs {
		for _, m := range machines {
			if number(m.Addr) == number(a.addr) && !taken[m] {
				taken[m] = true
				order = append(order, m)
				break
			}
		}
	}
	if len(order) == len(addrs) {
		return order, true
	}
	return machines, false
}

// number is the last part of an address as it is written.
func number(a netip.Addr) string {
	s := a.WithZone("").String()
	return s[strings.LastIndexAny(s, ".:")+1:]
}

const isEqual = "the peers elect among themselves; all are equal until a track says otherwise"

// preferences notes states and priorities: without a meaning if they are those of all virtual addresses, and something
// to decide if this machine is preferred for some of them alone.
func preferences(instances []*instance, together bool) {
	differ := false
	for _, i := range instances {
		first := instances[0]
		differ = differ || i.state.Arg(1) != first.state.Arg(1) || i.priority.Arg(1) != first.priority.Arg(1)
	}
	for _, i := range instances {
		for _, l := range []draft.Line{i.state, i.priority} {
			switch {
			case l.Line == 0:
			case differ && !together:
				l.Note("prefers this machine for some virtual addresses and not for others, so that two machines serve at " +
					"once; here one peer holds all virtual addresses: decide whether one machine can carry it all, " +
					"or run two groups")
			default:
				l.Moot(isEqual)
			}
		}
	}
}
