package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
)

// A Layout says how a lab is built. The zero value is a lab of plain cards that
// logs nothing.
type Layout struct {
	// Log hears about faults that are made and healed. Nil is silence.
	Log *slog.Logger
	// Stack is what the machines' interfaces are made of. Nil are cards.
	Stack Stack
}

// A Lab is a set of machines on two bridges: the near one that Machine joins,
// and the far one behind a router, for clients of another subnet.
type Lab struct {
	log   *slog.Logger
	sw    *wiring
	stack Stack

	mu     sync.Mutex
	nodes  []*Machine
	tried  int // to make machines; numbers are not used again
	closed bool
}

// New makes a lab without machines.
func New(o Layout) (*Lab, error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	sw, err := newWiring()
	if err != nil {
		return nil, err
	}
	return &Lab{log: log, sw: sw, stack: o.Stack}, nil
}

// Machine adds a machine with one interface, eth0, on the near bridge. Its
// families are those of addrs: without an IPv4 address it has none anywhere,
// not even on lo, and without an IPv6 address IPv6 is disabled in it.
func (l *Lab) Machine(name string, addrs ...netip.Prefix) (*Machine, error) {
	return l.add(name, port{bridge: near, addrs: addrs})
}

// Router adds a machine that forwards between the near bridge (eth0) and the
// far one (eth1). It rewrites nothing, so machines need a route back to the
// far subnet: see Machine.Route.
func (l *Lab) Router(name string, nearAddrs, farAddrs []netip.Prefix) (*Machine, error) {
	n, err := l.add(name, port{bridge: near, addrs: nearAddrs}, port{bridge: far, addrs: farAddrs})
	if err != nil {
		return nil, err
	}
	return n, n.forward()
}

// FarMachine adds a machine on the far bridge, whose default routes go through
// the router's addresses there.
func (l *Lab) FarMachine(name string, router *Machine, addrs ...netip.Prefix) (*Machine, error) {
	if len(router.ports) < 2 {
		return nil, fmt.Errorf("lab: %s is no router: make it with Lab.Router", router.Name)
	}
	n, err := l.add(name, port{bridge: far, addrs: addrs})
	if err != nil {
		return nil, err
	}
	for _, gw := range router.ports[1].addrs {
		if !n.has(gw.Addr().Is4()) {
			continue
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if gw.Addr().Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := n.Route(all, gw.Addr()); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (l *Lab) add(name string, ports ...port) (*Machine, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errClosed
	}
	for _, n := range l.nodes {
		if n.Name == name {
			return nil, fmt.Errorf("lab: a machine named %s exists: choose another name", name)
		}
	}
	l.tried++
	n, err := newNode(l, name, l.tried, ports)
	if err != nil {
		return nil, fmt.Errorf("lab: machine %s: %w", name, err)
	}
	l.nodes = append(l.nodes, n)
	return n, nil
}

// Close kills every process of the lab, waits for them, and removes all
// machines. What still runs inside the namespaces of this process (a RunningProbe,
// a Resolver, open connections) is to be stopped before. Close may be called
// twice.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	nodes := l.nodes
	l.mu.Unlock()

	var errs []error
	for _, n := range nodes {
		n.killAll()
	}
	for _, n := range nodes {
		errs = append(errs, n.close())
	}
	errs = append(errs, l.sw.close())
	return errors.Join(errs...)
}

// Range is n addresses with p's length, counted up from p's address: the many
// source addresses that a Resolver needs.
func Range(p netip.Prefix, n int) []netip.Prefix {
	out := make([]netip.Prefix, 0, n)
	for a := p.Addr(); len(out) < n; a = a.Next() {
		out = append(out, netip.PrefixFrom(a, p.Bits()))
	}
	return out
}
