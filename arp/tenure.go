package arp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	// announceEvery repeats the announcement as long as the tenure lasts: after a partition has healed, machines may
	// have heard the wrong holder last.
	announceEvery = 30 * time.Second

	// defendEvery is DEFEND_INTERVAL of RFC 5227, section 1.1: two machines that both insist on an address do not
	// flood the link.
	defendEvery = 10 * time.Second

	// retryAfter is how soon a suppressed announcement is tried again: the lease may have run out for a moment only.
	retryAfter = 10 * time.Millisecond

	// queueLength bounds the messages that wait. A client whose request is dropped asks again after a second
	// (RETRANS_TIMER of RFC 4861, section 10; Linux does the same for ARP).
	queueLength = 256
)

// burst says when a tenure announces after it has begun: at once, soon again in case the first was lost, and later for
// switches whose ports take seconds to open.
func burst() []time.Duration {
	return []time.Duration{
		0, 50 * time.Millisecond, 200 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second,
	}
}

// A tenure is the span in which this peer is holder. It belongs to the goroutine that runs Answer.
type tenure struct {
	wire       *Wire
	may        func() bool  // the lease, asked before every packet
	suppressed bool         // a packet was not sent because the lease had run out or the link was busy
	messages   chan message // what the receivers read; the only field that others write to
	defended   map[netip.Addr]time.Time
	failing    map[*responder]string // the error that was last logged
	asks       bool                  // it only asks, see Ask
}

const (
	// Ask sends askTimes probes of each VIP, askEvery apart, and waits askEvery for answers to the last. RFC 5227, section
	// 2.1.1, has seconds, for links whose ports take that long to open; here the group has just talked over the link.
	askTimes = 3
	askEvery = 150 * time.Millisecond
)

// Ask asks the link whether another machine has a VIP (RFC 5227, section 2.1; RFC 4862, section 5.4), in packets that
// claim nothing, and returns one claim for each machine that says so. This host is one of them, where Config.Beside
// leaves a VIP to something else. There can be no tenure meanwhile.
func (w *Wire) Ask(ctx context.Context) (found []Claim, err error) {
	t := w.newTenure(func() bool { return ctx.Err() == nil })
	t.asks = true
	if !w.tenure.CompareAndSwap(nil, t) {
		return nil, errTenure
	}
	defer w.tenure.Store(nil)
	if len(w.responders) == 0 {
		return nil, nil // nobody on the link is told of them either
	}
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for range askTimes {
		for _, r := range w.responders {
			for _, vip := range r.vips {
				t.send(r, packet{kind: probe, vip: vip})
			}
		}
		for waits := true; waits; {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case m := <-t.messages:
				c := m.claim(time.Now())
				same := func(o Claim) bool { return o.VIP == c.VIP && o.MAC == c.MAC }
				if m.kind == claim && len(found) < claimantsMax && !slices.ContainsFunc(found, same) {
					found = append(found, c)
				}
			case <-tick.C:
				waits = false
			}
		}
	}
	// At the end, so that what gives the VIP up on this host meanwhile is not waited for once more.
	for _, vip := range w.order {
		if iface := w.vips[vip].leftTo(); iface != "" {
			found = append(found, Claim{VIP: vip, Interface: iface, At: time.Now(), Here: true})
		}
	}
	return found, nil
}

var errTenure = errors.New("arp: a tenure is in progress already: end it before the next begins")

func (w *Wire) newTenure(may func() bool) *tenure {
	return &tenure{
		wire:     w,
		may:      may,
		messages: make(chan message, queueLength),
		defended: make(map[netip.Addr]time.Time),
		failing:  make(map[*responder]string),
	}
}

// Answer is a tenure: it answers for the VIPs and announces them until ctx ends. may is the lease: it is called before
// every packet, which is sent only if it returns true. Nothing is sent after Answer has returned. There can be only one
// tenure at a time.
func (w *Wire) Answer(ctx context.Context, may func() bool) error {
	t := w.newTenure(func() bool { return ctx.Err() == nil && may() })
	if !w.tenure.CompareAndSwap(nil, t) {
		return errTenure
	}
	defer w.tenure.Store(nil)
	if len(w.responders) > 0 {
		w.log.Info("answering for the VIPs")
		defer w.log.Info("no longer answering for the VIPs")
	}

	select {
	case <-w.reannounce: // was asked for before this tenure, which begins with a burst anyway
	default:
	}
	times := burst()
	began, step := time.Now(), 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		// A client that got no answer, because a busy host renewed the lease late, asks again after a second only. An
		// announcement reaches it sooner.
		if t.suppressed {
			t.suppressed = false
			timer.Reset(retryAfter)
		}
		select {
		case <-ctx.Done():
			return nil
		case m := <-t.messages:
			t.handle(m)
		case <-w.reannounce:
			began, step = time.Now(), 0
			timer.Reset(0)
		case <-timer.C:
			if !t.may() {
				timer.Reset(retryAfter)
				continue
			}
			// Another owner may be silent until it is asked. The tenure asks at its beginning, at the end of the burst,
			// when the link has had time to settle, and with every later announcement.
			t.announce(step == 0 || step >= len(times)-1)
			if step++; step < len(times) {
				timer.Reset(time.Until(began.Add(times[step])))
			} else {
				timer.Reset(announceEvery)
			}
		}
	}
}

// deliver hands m to the tenure in progress. Without one it drops m, so that no tenure answers what came before it.
func (w *Wire) deliver(m message) {
	t := w.tenure.Load()
	if t == nil {
		return
	}
	select {
	case t.messages <- m:
	default:
	}
}

// announce tells the link where every VIP is, and may ask for other owners.
func (t *tenure) announce(lookForOthers bool) {
	for _, r := range t.wire.responders {
		for _, vip := range r.vips {
			t.announceOne(r, vip)
			if lookForOthers {
				t.send(r, packet{kind: probe, vip: vip})
			}
		}
	}
}

func (t *tenure) announceOne(r *responder, vip netip.Addr) {
	for _, p := range r.announcement(vip) {
		if t.send(r, p) {
			t.wire.vips[vip].announcements.Add(1)
		}
	}
}

// send is the only way to the wire. It reports whether p was sent.
func (t *tenure) send(r *responder, p packet) bool {
	err := r.send(p, t.may)
	switch {
	case err == nil:
		delete(t.failing, r)
		return true
	case errors.Is(err, errNotAllowed):
		t.wire.vips[p.vip].suppressed.Add(1)
		t.suppressed = true
		return false
	case errors.Is(err, errNoCarrier), errors.Is(err, errNotOpen):
		return false // the responder logs it, and announces when it is over
	case errors.Is(err, errBusy):
		t.suppressed = true
	}
	if err.Error() != t.failing[r] {
		t.failing[r] = err.Error()
		t.wire.log.Warn("cannot send", "what", r.String(), "error", err)
	}
	return false
}

func (t *tenure) handle(m message) {
	switch m.kind {
	case request:
		p := packet{kind: reply, vip: m.vip, to: m.from, toMAC: net.HardwareAddr(m.mac)}
		if t.send(m.via, p) {
			t.wire.vips[m.vip].answers.Add(1)
		}
	case claim:
		t.defend(m)
	}
}

// defend counts a foreign claim and announces where the VIP really is (RFC 5227, section 2.4 (c)).
func (t *tenure) defend(m message) {
	if !t.may() {
		return // the claim may be our successor's
	}
	now := time.Now()
	c := m.claim(now)
	due, crowd := t.wire.vips[m.vip].countClaim(c)
	if crowd {
		t.wire.log.Warn("so many machines claim the VIP that further ones are only counted",
			"vip", c.VIP, "interface", c.Interface, "logged", claimantsMax)
	}
	if due {
		t.wire.log.Warn("another machine claims the VIP that we hold: find it by its MAC and take the address from it",
			"vip", c.VIP, "mac", c.MAC, "interface", c.Interface)
		if t.wire.cfg.OnForeign != nil {
			t.wire.cfg.OnForeign(c)
		}
	}
	if last, ok := t.defended[m.vip]; ok && now.Sub(last) < defendEvery {
		return
	}
	t.defended[m.vip] = now
	t.announceOne(m.via, m.vip)
}
