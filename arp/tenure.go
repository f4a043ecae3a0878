package arp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

const (
	// announceEvery repeats the announcement for as long as the tenure lasts:
	// after a partition heals somebody may have heard the wrong holder last.
	announceEvery = 30 * time.Second

	// defendEvery is RFC 5227's DEFEND_INTERVAL: two machines that both
	// insist on an address do not flood the link.
	defendEvery = 10 * time.Second

	// allowedAgain is how soon a suppressed announcement is tried again; the
	// lease may have run out for a moment only.
	allowedAgain = 10 * time.Millisecond

	// heardMax bounds what waits for an answer. Who is dropped asks again
	// after a second (RFC 4861 RETRANS_TIMER, and the same in ARP).
	heardMax = 256
)

// burst says when announcements are sent after the begin of a tenure: at
// once, soon again for whoever lost the first, and once more for switches
// whose ports take seconds to open.
func burst() []time.Duration {
	return []time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second}
}

// A tenure is the span in which this peer is holder. All of it belongs to the
// goroutine that runs Answer.
type tenure struct {
	wire     *Wire
	may      func() bool
	owing    bool       // something was not sent for want of the lease
	heard    chan heard // the one thing that others write to
	defended map[netip.Addr]time.Time
	failing  map[*port]string // the error that was last logged
}

// Answer answers for the VIPs and announces them until ctx ends: it is a
// tenure. may is the lease: it is asked before every single packet, and none
// is sent when it says no. When Answer has returned, nothing more is sent.
func (w *Wire) Answer(ctx context.Context, may func() bool) error {
	t := &tenure{
		wire:     w,
		may:      func() bool { return ctx.Err() == nil && may() },
		heard:    make(chan heard, heardMax),
		defended: make(map[netip.Addr]time.Time),
		failing:  make(map[*port]string),
	}
	if !w.tenure.CompareAndSwap(nil, t) {
		return errors.New("arp: a tenure is in progress already: end it before the next begins")
	}
	defer w.tenure.Store(nil)
	w.log.Info("answering for the VIPs")
	defer w.log.Info("no longer answering for the VIPs")

	select {
	case <-w.again: // asked for before this tenure, which begins with it anyway
	default:
	}
	times := burst()
	began, step := time.Now(), 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		// Whoever asked while the lease was not renewed in time, on a busy host,
		// would ask again after a second only: an announcement tells it sooner.
		if t.owing {
			t.owing = false
			timer.Reset(allowedAgain)
		}
		select {
		case <-ctx.Done():
			return nil
		case h := <-t.heard:
			t.handle(h)
		case <-w.again:
			began, step = time.Now(), 0
			timer.Reset(0)
		case <-timer.C:
			if !t.may() {
				timer.Reset(allowedAgain)
				continue
			}
			// Silent owners are looked for when the link has had time to
			// settle, too, and then with every announcement.
			t.announce(step == 0 || step >= len(times)-1)
			if step++; step < len(times) {
				timer.Reset(time.Until(began.Add(times[step])))
			} else {
				timer.Reset(announceEvery)
			}
		}
	}
}

// hear hands h to the tenure in progress. Without one it is dropped, so that
// nothing from before a tenure is answered in it.
func (w *Wire) hear(h heard) {
	t := w.tenure.Load()
	if t == nil {
		return
	}
	select {
	case t.heard <- h:
	default:
	}
}

// announce tells where every VIP is, and asks for other owners.
func (t *tenure) announce(lookForOthers bool) {
	for _, p := range t.wire.ports {
		for _, vip := range p.vips {
			t.announceOne(p, vip)
			if lookForOthers {
				t.send(p, packet{kind: probe, vip: vip})
			}
		}
	}
}

func (t *tenure) announceOne(p *port, vip netip.Addr) {
	for _, pk := range p.announcement(vip) {
		if t.send(p, pk) {
			t.wire.vips[vip].announcements.Add(1)
		}
	}
}

// send is the only way to the wire.
func (t *tenure) send(p *port, pk packet) bool {
	err := p.send(pk, t.may)
	switch {
	case err == nil:
		delete(t.failing, p)
		return true
	case errors.Is(err, errNotAllowed):
		t.wire.vips[pk.vip].suppressed.Add(1)
		t.owing = true
		return false
	case errors.Is(err, errNoCarrier), errors.Is(err, errNotOpen):
		return false // logged by the port, and announced when that is over
	}
	if err.Error() != t.failing[p] {
		t.failing[p] = err.Error()
		t.wire.log.Warn("cannot send", "what", p.String(), "error", err)
	}
	return false
}

func (t *tenure) handle(h heard) {
	switch h.kind {
	case question:
		pk := packet{kind: reply, vip: h.vip, to: h.from, toMAC: net.HardwareAddr(h.mac)}
		if t.send(h.port, pk) {
			t.wire.vips[h.vip].answers.Add(1)
		}
	case claim:
		t.foreign(h)
	}
}

// foreign takes note of another machine that speaks for our VIP, and tells
// everybody again where it is.
func (t *tenure) foreign(h heard) {
	if !t.may() {
		return // it may be our successor
	}
	now := time.Now()
	r := t.wire.vips[h.vip]
	c := Claim{VIP: h.vip, Interface: h.port.iface, MAC: net.HardwareAddr(h.mac).String(), At: now}
	if r.claimed(c) {
		t.wire.log.Warn("another machine claims the VIP that we hold: find it by its MAC and take the address from it", "vip", c.VIP, "mac", c.MAC, "interface", c.Interface)
		if t.wire.cfg.OnForeign != nil {
			t.wire.cfg.OnForeign(c)
		}
	}
	if last, ok := t.defended[h.vip]; ok && now.Sub(last) < defendEvery {
		return
	}
	t.defended[h.vip] = now
	t.announceOne(h.port, h.vip)
}
