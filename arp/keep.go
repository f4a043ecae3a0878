package arp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// A keeper keeps the kernel silent for the VIPs and the VIPs on lo. Its
// goroutine is the only one that changes either.
type keeper struct {
	wire *Wire
	poke chan struct{}

	ready sync.Once

	renewed   time.Time // when the addresses were last written
	bound     map[netip.Addr]bool
	nodeAddr  map[string]netip.Addr // by interface, the last one found
	elsewhere map[netip.Addr]int    // index of another interface that has the VIP

	failing  string // the error that was last logged
	repaired quiet
}

func newKeeper(w *Wire) *keeper {
	return &keeper{
		wire:      w,
		poke:      make(chan struct{}, 1),
		bound:     make(map[netip.Addr]bool),
		nodeAddr:  make(map[string]netip.Addr),
		elsewhere: make(map[netip.Addr]int),
	}
}

// wake has the keeper look now.
func (k *keeper) wake() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

// check refuses what cannot be kept, before anything is touched.
func (k *keeper) check() error {
	lo, err := loIndex()
	if err != nil {
		return err
	}
	all, err := addresses()
	if err != nil {
		return err
	}
	names, err := interfaceNames()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range all {
		if k.wire.vips[a.addr] == nil || a.index == lo && a.ours() {
			continue
		}
		name := names[a.index]
		errs = append(errs, fmt.Errorf("arp: VIP %s is bound on %s already, by something else: stop what put it there, then: ip addr del %s dev %s", a.addr, name, a, name))
	}
	_, err = k.silenced(all)
	return errors.Join(append(errs, err)...)
}

func (k *keeper) run(ctx context.Context) error {
	every := min(keepEvery, k.wire.cfg.Lifetime/6)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		k.note(k.keep(ctx))
		select {
		case <-ctx.Done():
			return k.release(ctx)
		case <-k.poke:
		case <-tick.C:
			k.wire.refreshLinks()
		}
	}
}

// note logs an error when it appears, changes or goes away.
func (k *keeper) note(err error) {
	switch {
	case err == nil && k.failing != "":
		k.wire.log.Info("VIPs are kept again")
		k.failing = ""
	case err != nil && err.Error() != k.failing:
		k.failing = err.Error()
		k.wire.log.Error("VIPs cannot be kept, retrying", "error", err)
	}
}

// keep makes what should be true so.
func (k *keeper) keep(ctx context.Context) error {
	w := k.wire
	all, err := addresses()
	if err != nil {
		return err
	}
	lo, err := loIndex()
	if err != nil {
		return err
	}
	have := make(map[netip.Addr]bool)
	for _, a := range all {
		switch {
		case w.vips[a.addr] == nil:
		case a.index == lo:
			have[a.addr] = true
		default:
			k.warnElsewhere(a)
		}
	}
	for _, vip := range w.order {
		w.vips[vip].setBound(have[vip])
	}
	// The order matters: a VIP that is bound while the kernel still speaks
	// would be answered for by every node. For the same reason nothing is
	// renewed as long as the kernel cannot be silenced.
	if err := k.silence(ctx, all); err != nil {
		return err
	}
	now := time.Now()
	renew := now.Sub(k.renewed) >= w.cfg.Lifetime/3
	var errs []error
	for _, vip := range w.order {
		if have[vip] && k.bound[vip] && !renew {
			continue
		}
		if err := bind(vip, lo, w.cfg.Lifetime); err != nil {
			errs = append(errs, err)
			continue
		}
		w.vips[vip].setBound(true)
		switch {
		case !k.bound[vip]:
			w.log.Info("VIP is bound", "vip", vip, "on", loopback, "interface", w.vips[vip].vip.Interface)
		case !have[vip]:
			w.vips[vip].repairs.Add(1)
			if k.repaired.loud(now) {
				w.log.Warn("VIP had been removed from lo and was put back: look for what removes it", "vip", vip)
			}
		}
		k.bound[vip] = true
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if renew {
		k.renewed = now
	}
	k.ready.Do(w.partReady)
	return nil
}

func (k *keeper) silence(ctx context.Context, all []address) error {
	w := k.wire
	set, err := k.silenced(all)
	if err != nil || len(set) == 0 {
		return err
	}
	repaired, err := w.cfg.Silencer.Silence(ctx, set)
	if err != nil {
		return fmt.Errorf("arp: silence the kernel: %w", err)
	}
	if repaired > 0 {
		w.vips[set[0].VIP].repairs.Add(uint64(repaired))
		if k.repaired.loud(time.Now()) {
			w.log.Warn("the kernel's silence had been lifted and was restored: look for what flushes it", "repaired", repaired)
		}
	}
	return nil
}

// silenced is the set for the Silencer: the IPv4 VIPs.
func (k *keeper) silenced(all []address) ([]Silenced, error) {
	w := k.wire
	var set []Silenced
	for _, vip := range w.order {
		if !vip.Is4() {
			continue
		}
		name := w.vips[vip].vip.Interface
		node, ok := nodeAddr(all, func(a address) bool {
			s, ok, _ := w.links.get(name)
			return ok && a.index == s.index && w.vips[a.addr] == nil
		}, vip)
		if !ok {
			// An address lease that is being renewed may be gone for a moment.
			if node, ok = k.nodeAddr[name]; !ok {
				return nil, fmt.Errorf("arp: interface %s has no IPv4 address that ARP requests could carry in place of VIP %s: give it one (ip addr add ADDRESS/BITS dev %s)", name, vip, name)
			}
		}
		k.nodeAddr[name] = node
		set = append(set, Silenced{VIP: vip, Interface: name, NodeAddr: node})
	}
	return set, nil
}

// nodeAddr chooses among the addresses of the interface the one in the VIP's
// subnet, else the first that is global.
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

// warnElsewhere says once that somebody has put the VIP on another interface
// while we run; the kernel may answer for it there.
func (k *keeper) warnElsewhere(a address) {
	if k.elsewhere[a.addr] == a.index {
		return
	}
	k.elsewhere[a.addr] = a.index
	name := fmt.Sprint(a.index)
	if names, err := interfaceNames(); err == nil {
		name = names[a.index]
	}
	k.wire.log.Warn("VIP has been bound on another interface by something else, which may answer for it", "vip", a.addr, "interface", name, "remedy", fmt.Sprintf("ip addr del %s dev %s", a, name))
}

// linger leaves the VIPs on lo for d. The kernel stays silent for good: it must
// while an address is there, and for one that is gone it changes nothing.
func (k *keeper) linger(d time.Duration) error {
	lo, err := loIndex()
	if err != nil {
		return err
	}
	var errs []error
	for _, vip := range k.wire.order {
		if !k.bound[vip] {
			continue
		}
		if err := bind(vip, lo, d); err != nil {
			errs = append(errs, err)
			continue
		}
		k.wire.log.Info("VIP stays on lo for the next life", "vip", vip, "for", d)
	}
	return errors.Join(errs...)
}

// release takes back what keep did, in the opposite order, so that the kernel
// never speaks for a VIP.
func (k *keeper) release(ctx context.Context) error {
	if f := k.wire.cfg.Linger; f != nil {
		if d := f(); d >= time.Second {
			return k.linger(d)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unbindWithin)
	defer cancel()
	w := k.wire
	lo, err := loIndex()
	if err != nil {
		return err
	}
	var errs []error
	ipv4 := false
	for _, vip := range w.order {
		ipv4 = ipv4 || vip.Is4()
		if !k.bound[vip] {
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
		return err // silence stays as long as an address does
	}
	if ipv4 {
		if _, err := w.cfg.Silencer.Silence(ctx, nil); err != nil {
			return fmt.Errorf("arp: lift the kernel's silence: %w", err)
		}
	}
	return nil
}

// quietFor is how long something that repeats is logged once.
const quietFor = 10 * time.Minute

// quiet remembers when something happened, so that it is logged once, and
// again after it was away for a while.
type quiet struct{ last time.Time }

// loud is true when the event at now deserves a line.
func (q *quiet) loud(now time.Time) bool {
	defer func() { q.last = now }()
	return q.last.IsZero() || now.Sub(q.last) >= quietFor
}
