package arp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// A binder keeps the kernel from answering for the VIPs and keeps the VIPs on lo. Its goroutine is the only one that
// changes either.
//
// The order of the two matters: a VIP that is bound while the kernel answers for it is answered for by every node. So
// nothing is bound or renewed before the kernel is silenced, and the kernel stays silenced until everything is unbound.
type binder struct {
	wire  *Wire
	woken chan struct{}

	ready sync.Once

	renewed   time.Time // when the lifetimes were last renewed
	bound     map[netip.Addr]bool
	nodeAddr  map[string]netip.Addr // by interface, the last address found
	elsewhere map[netip.Addr]int    // index of the other interface whose VIP was logged

	failing  string // the error that was last logged
	repaired damper

	onLink map[netip.Addr]time.Time // when the interface was last seen to have the VIP's subnet
}

func newBinder(w *Wire) *binder {
	return &binder{
		wire:      w,
		woken:     make(chan struct{}, 1),
		bound:     make(map[netip.Addr]bool),
		nodeAddr:  make(map[string]netip.Addr),
		elsewhere: make(map[netip.Addr]int),
		onLink:    make(map[netip.Addr]time.Time),
	}
}

// wake makes the binder reconcile now.
func (b *binder) wake() {
	select {
	case b.woken <- struct{}{}:
	default:
	}
}

// check returns why the VIPs cannot be bound here. It changes nothing.
func (b *binder) check() error {
	lo, all, err := loAndAddresses()
	if err != nil {
		return err
	}
	names, err := interfaceNames()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range all {
		if b.wire.vips[a.addr] == nil || a.index == lo && a.ours() || a.index != lo && b.beside() {
			continue
		}
		name := names[a.index]
		errs = append(errs, fmt.Errorf("arp: VIP %s is bound on %s already, by something else: "+
			"stop what put it there, then: ip addr del %s dev %s", a.addr, name, a, name))
	}
	_, err = b.silenced(all)
	return errors.Join(append(errs, err)...)
}

func (b *binder) beside() bool { return b.wire.cfg.Beside != nil && b.wire.cfg.Beside() }

func (b *binder) run(ctx context.Context) error {
	every := min(reconcileEvery, b.wire.cfg.Lifetime/6)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		b.logChange(b.reconcile(ctx))
		select {
		case <-ctx.Done():
			return b.release(ctx)
		case <-b.woken:
		case <-tick.C:
			b.wire.refreshLinks()
		}
	}
}

// logChange logs an error when it appears, changes or goes away.
func (b *binder) logChange(err error) {
	switch {
	case err == nil && b.failing != "":
		b.wire.log.Info("VIPs are bound again")
		b.failing = ""
	case err != nil && err.Error() != b.failing:
		b.failing = err.Error()
		b.wire.log.Error("VIPs cannot be kept bound, retrying", "error", err)
	}
}

// reconcile silences the kernel and binds the VIPs, where that is not so.
func (b *binder) reconcile(ctx context.Context) error {
	w := b.wire
	lo, all, err := loAndAddresses()
	if err != nil {
		return err
	}
	have, left := make(map[netip.Addr]bool), make(map[netip.Addr]int)
	beside := b.beside()
	for _, a := range all {
		switch {
		case w.vips[a.addr] == nil:
		case a.index == lo:
			have[a.addr] = true
		case beside:
			left[a.addr] = a.index
		default:
			b.warnElsewhere(a)
		}
	}
	if err := b.leave(left); err != nil {
		return err
	}
	for _, vip := range w.order {
		w.vips[vip].setBound(have[vip])
	}
	now := time.Now()
	b.watchSubnets(all, now)
	if err := b.silence(ctx, all); err != nil {
		return err
	}
	renew := now.Sub(b.renewed) >= w.cfg.Lifetime/3
	var errs []error
	for _, vip := range w.order {
		if have[vip] && b.bound[vip] && !renew {
			continue
		}
		if err := bind(vip, lo, w.cfg.Lifetime); err != nil {
			errs = append(errs, err)
			continue
		}
		w.vips[vip].setBound(true)
		switch {
		case !b.bound[vip]:
			w.log.Info("VIP is bound", "vip", vip, "on", loopback, "interface", w.vips[vip].vip.Interface)
		case !have[vip]:
			w.vips[vip].repairs.Add(1)
			if b.repaired.due(now) {
				w.log.Warn("VIP had been removed from lo and was put back: look for what removes it", "vip", vip)
			}
		}
		b.bound[vip] = true
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if renew {
		b.renewed = now
	}
	b.ready.Do(w.oneReady)
	return nil
}

// leave notes the VIPs that something else has on interfaces of this host, by their index.
func (b *binder) leave(to map[netip.Addr]int) error {
	var names map[int]string
	if len(to) > 0 {
		var err error
		if names, err = interfaceNames(); err != nil {
			return err
		}
	}
	for _, vip := range b.wire.order {
		name := names[to[vip]]
		switch changed := b.wire.vips[vip].leaveTo(name); {
		case changed && name != "":
			b.wire.log.Info("VIP is left to what has it on this host, until that gives it up", "vip", vip, "interface", name)
		case changed:
			b.wire.log.Info("VIP was given up by what had it on this host", "vip", vip)
		}
	}
	return nil
}

// subnetGrace is how long an interface may be without the subnet of its VIP: DHCP may remove the address for a moment
// while it renews its lease, and an IPv6 address comes back only some time after the link.
const subnetGrace = 3 * time.Second

// watchSubnets notices an interface that had the subnet of its VIP and has lost it: its address has moved, to a bridge
// mostly, or is gone. Answers to clients would not leave there. An interface that never had it is the operator's
// choice.
func (b *binder) watchSubnets(all []address, now time.Time) {
	w := b.wire
	reasons := make(map[string]string)
	for _, vip := range w.order {
		name := w.vips[vip].vip.Interface
		link, exists, _ := w.links.get(name)
		if !exists {
			continue
		}
		if b.hasSubnet(all, link.index, vip) {
			b.onLink[vip] = now
			continue
		}
		last, had := b.onLink[vip]
		switch {
		case !had:
		case now.Sub(last) >= subnetGrace:
			reasons[name] = fmt.Sprintf("has lost its address in the subnet of VIP %s", vip)
		default:
			time.AfterFunc(subnetGrace-now.Sub(last), b.wake)
		}
	}
	for _, name := range w.links.names {
		w.links.setLost(name, reasons[name])
	}
	w.logFault()
}

func (b *binder) hasSubnet(all []address, index int, vip netip.Addr) bool {
	for _, a := range all {
		if a.index == index && subnetContains(netip.PrefixFrom(a.addr, a.bits), vip) {
			return true
		}
	}
	if vip.Is4() {
		return false
	}
	// An address from DHCPv6 has no subnet, but the link has a route.
	on, err := subnets(all, vip, map[int]string{index: "it"})
	return err != nil || len(on) > 0
}

func (b *binder) silence(ctx context.Context, all []address) error {
	w := b.wire
	set, err := b.silenced(all)
	if err != nil || len(set) == 0 && !b.wire.leaves() {
		return err
	}
	repaired, err := w.cfg.Silencer.Silence(ctx, set)
	if err != nil {
		return fmt.Errorf("arp: silence the kernel: %w", err)
	}
	if repaired > 0 {
		w.Repaired(repaired)
		if b.repaired.due(time.Now()) {
			w.log.Warn("the kernel's silence had been lifted and was restored: look for what flushes it",
				"repaired", repaired)
		}
	}
	return nil
}

// silenced lists the IPv4 VIPs for the Silencer: all but those that are left to something else on this host, for which
// the kernel has to answer.
func (b *binder) silenced(all []address) ([]Silenced, error) {
	w := b.wire
	var set []Silenced
	for _, vip := range w.order {
		if !vip.Is4() || w.vips[vip].leftTo() != "" {
			continue
		}
		name := w.vips[vip].vip.Interface
		node, ok := nodeAddr(all, func(a address) bool {
			s, ok, _ := w.links.get(name)
			return ok && a.index == s.index && w.vips[a.addr] == nil
		}, vip)
		if !ok {
			// DHCP may remove the address for a moment while it renews its lease.
			if node, ok = b.nodeAddr[name]; !ok {
				return nil, fmt.Errorf("arp: interface %s has no IPv4 address that ARP requests could carry "+
					"in place of VIP %s: give it one (ip addr add ADDRESS/BITS dev %s)", name, vip, name)
			}
		}
		b.nodeAddr[name] = node
		set = append(set, Silenced{VIP: vip, Interface: name, NodeAddr: node})
	}
	return set, nil
}

// nodeAddr chooses the interface's address in the VIP's subnet, else its first global one.
func nodeAddr(all []address, ofInterface func(address) bool, vip netip.Addr) (best netip.Addr, ok bool) {
	for _, a := range all {
		if !a.addr.Is4() || !ofInterface(a) {
			continue
		}
		if subnetContains(netip.PrefixFrom(a.addr, a.bits), vip) {
			return a.addr, true
		}
		if !best.IsValid() && a.addr.IsGlobalUnicast() {
			best = a.addr
		}
	}
	return best, best.IsValid()
}

// warnElsewhere logs once that something has bound the VIP on another interface while we run; the kernel may answer for
// it there.
func (b *binder) warnElsewhere(a address) {
	if b.elsewhere[a.addr] == a.index {
		return
	}
	b.elsewhere[a.addr] = a.index
	name := fmt.Sprint(a.index)
	if names, err := interfaceNames(); err == nil {
		name = names[a.index]
	}
	b.wire.log.Warn("VIP has been bound on another interface by something else, which may answer for it",
		"vip", a.addr, "interface", name, "remedy", fmt.Sprintf("ip addr del %s dev %s", a, name))
}

// linger leaves the VIPs on lo for d. The kernel stays silenced for good: it must be while an address is there, and
// nothing is lost by it later.
func (b *binder) linger(d time.Duration) error {
	lo, err := loIndex()
	if err != nil {
		return err
	}
	var errs []error
	for _, vip := range b.wire.order {
		if !b.bound[vip] {
			continue
		}
		if err := bind(vip, lo, d); err != nil {
			errs = append(errs, err)
			continue
		}
		b.wire.log.Info("VIP stays on lo for the next process", "vip", vip, "for", d)
	}
	return errors.Join(errs...)
}

// release undoes what reconcile did, in the opposite order.
func (b *binder) release(ctx context.Context) error {
	if f := b.wire.cfg.Linger; f != nil {
		if d := f(); d >= time.Second {
			return b.linger(d)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unbindWithin)
	defer cancel()
	w := b.wire
	lo, err := loIndex()
	if err != nil {
		return err
	}
	var errs []error
	ipv4 := false
	for _, vip := range w.order {
		ipv4 = ipv4 || vip.Is4()
		if !b.bound[vip] {
			continue
		}
		if err := unbind(address{addr: vip, bits: vip.BitLen(), index: lo}); err != nil {
			errs = append(errs, err)
			continue
		}
		w.vips[vip].setBound(false)
		w.log.Info("VIP is unbound", "vip", vip)
	}
	if err := errors.Join(errs...); err != nil {
		return err // the kernel stays silenced as long as an address is bound
	}
	if ipv4 {
		if _, err := w.cfg.Silencer.Silence(ctx, nil); err != nil {
			return fmt.Errorf("arp: lift the kernel's silence: %w", err)
		}
	}
	return nil
}

// logAgainAfter is how long an event must not have happened before it is logged again.
const logAgainAfter = 10 * time.Minute

// A damper lets an event that repeats be logged once, and again after it has stayed away for a while.
type damper struct{ last time.Time }

// due reports whether the event at now is to be logged.
func (q *damper) due(now time.Time) bool {
	defer func() { q.last = now }()
	return q.last.IsZero() || now.Sub(q.last) >= logAgainAfter
}
