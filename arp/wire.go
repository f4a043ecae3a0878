package arp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// DefaultLifetime is how long the VIP stays on lo after the process has died: long enough for a restart or an
	// upgrade to keep the open connections of local clients, short enough for a node that was taken out of service to
	// reach the VIP through its holder soon.
	DefaultLifetime = 60 * time.Second

	// minLifetime leaves room for two renewals, as lifetimes are whole seconds.
	minLifetime = 3 * time.Second

	// reconcileEvery bounds how long damage lasts of which no event tells us.
	reconcileEvery = 3 * time.Second

	// unbindWithin bounds the clean-up after Run's context has ended.
	unbindWithin = 3 * time.Second
)

// A VIP is one virtual address and the interface on whose link it is answered, see FindInterface.
type VIP struct {
	Addr      netip.Addr
	Interface string
}

// Silenced says what the kernel must not do for one IPv4 VIP: it must not answer requests for VIP that come in on
// Interface, and requests that leave Interface with VIP as their sender must carry NodeAddr instead. IPv6 needs none of
// this: Linux answers a solicitation only for addresses of the interface that it came in on, and none comes in on lo.
type Silenced struct {
	VIP       netip.Addr
	Interface string
	NodeAddr  netip.Addr
}

// A Silencer keeps the kernel from answering for VIPs.
type Silencer interface {
	// Silence makes s the whole set of what is silenced; the empty set undoes everything. It is called every few
	// seconds and does not touch what is right. repaired counts what we had set up and somebody else removed.
	Silence(ctx context.Context, s []Silenced) (repaired int, err error)
}

// Config is what a Wire needs to know.
type Config struct {
	VIPs []VIP
	// Unanswered are those of VIPs that are bound, and about which the kernel is silent, but for which no tenure answers:
	// clients' packets come by a route to this host.
	Unanswered []netip.Addr
	// Silencer may be nil only where every VIP is IPv6.
	Silencer Silencer
	// Lifetime is how long the kernel keeps the addresses on lo if nobody renews them: whole seconds, at least three.
	// Zero means DefaultLifetime.
	Lifetime time.Duration
	// Linger says at the end of Run how long the VIPs stay on lo, silenced and unanswered, so that open connections
	// outlive a restart. Nil or a result below one second unbinds them at once.
	Linger func() time.Duration
	// Beside says whether a VIP that something else has on an interface of this host is left to it: the kernel goes on
	// answering for it there, and Ask counts this host among those who have it. It is asked by Open and by Run. Nil means
	// never: then Open refuses such a host, and Run silences the kernel.
	Beside func() bool
	// OnForeign, if not nil, is called with each foreign claim that is logged, by the tenure's goroutine. It must
	// return at once.
	OnForeign func(Claim)
	// Log gets one line per change of state. Nil discards.
	Log *slog.Logger
}

// A Claim is a packet by which another machine claims a VIP that we hold, or what Ask found on this host.
type Claim struct {
	VIP       netip.Addr
	Interface string
	MAC       string
	At        time.Time
	// Here means that something else on this host has the VIP on Interface, see Config.Beside.
	Here bool
}

// A Wire keeps VIPs bound and answers for them. Open makes one.
type Wire struct {
	cfg        Config
	log        *slog.Logger
	vips       map[netip.Addr]*vipState
	order      []netip.Addr // of cfg.VIPs
	responders []*responder
	links      *links
	binder     *binder

	ready      chan struct{}
	unready    atomic.Int64  // how many have not been ready yet, of the binder and the responders
	reannounce chan struct{} // wakes the tenure for a new burst of announcements
	running    atomic.Bool
	tenure     atomic.Pointer[tenure]

	faultMu sync.Mutex
	fault   Fault // that was last logged
}

// Open checks that the VIPs can be bound on this host and that the sockets may be opened. It changes nothing.
func Open(cfg Config) (*Wire, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Lifetime == 0 {
		cfg.Lifetime = DefaultLifetime
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	w := &Wire{
		cfg:        cfg,
		log:        cfg.Log,
		vips:       make(map[netip.Addr]*vipState, len(cfg.VIPs)),
		ready:      make(chan struct{}),
		reannounce: make(chan struct{}, 1),
	}
	byKey := make(map[responderKey][]netip.Addr)
	var keys []responderKey
	var names []string
	for _, v := range cfg.VIPs {
		w.vips[v.Addr] = &vipState{vip: v}
		w.order = append(w.order, v.Addr)
		names = append(names, v.Interface)
		if slices.Contains(cfg.Unanswered, v.Addr) {
			w.vips[v.Addr].unanswered = true
			continue
		}
		k := responderKey{v.Interface, v.Addr.Is6()}
		if byKey[k] == nil {
			keys = append(keys, k)
		}
		byKey[k] = append(byKey[k], v.Addr)
	}
	w.links = newLinks(names)
	if err := errors.Join(w.links.refresh(), w.links.portOfAnother()); err != nil {
		return nil, err
	}
	for _, k := range keys {
		w.responders = append(w.responders, newResponder(w, k, byKey[k]))
	}
	w.unready.Store(int64(1 + len(w.responders)))
	w.binder = newBinder(w)
	if err := w.binder.check(); err != nil {
		return nil, err
	}
	for _, p := range w.responders {
		if err := p.tryOpen(); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (c *Config) validate() error {
	if len(c.VIPs) == 0 {
		return errors.New("arp: no VIP given: name at least one address")
	}
	if c.Lifetime < minLifetime {
		return fmt.Errorf("arp: lifetime %v is too short to be renewed in time: give at least %v",
			c.Lifetime, minLifetime)
	}
	seen := make(map[netip.Addr]bool, len(c.VIPs))
	for _, v := range c.VIPs {
		switch a := v.Addr; {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Is4In6() || a == broadcast4:
			return fmt.Errorf("arp: %v cannot be a VIP: give a unicast address of the clients' network", a)
		case a.Zone() != "" || a.Is6() && a.IsLinkLocalUnicast():
			return fmt.Errorf("arp: link-local address %v cannot be a VIP, as it cannot be bound on lo: "+
				"give a global or unique local address", a)
		case seen[a]:
			return fmt.Errorf("arp: VIP %v is given twice: remove one", a)
		case v.Interface == "" || v.Interface == loopback:
			return fmt.Errorf(
				"arp: VIP %v has no interface to be answered on: name the one that leads to the clients", a)
		case a.Is4() && c.Silencer == nil:
			return fmt.Errorf("arp: nothing silences the kernel for VIP %v: give a Silencer", a)
		}
		seen[v.Addr] = true
	}
	return nil
}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Run keeps the kernel silent and the VIPs on lo until ctx ends. Then it undoes both in the opposite order, or leaves
// them for as long as Config.Linger says, and returns nil.
func (w *Wire) Run(ctx context.Context) error {
	if !w.running.CompareAndSwap(false, true) {
		return errors.New("arp: Run was called twice: open another Wire")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.monitor(ctx) })
	for _, p := range w.responders {
		g.Go(func() error { return p.run(ctx) })
	}
	g.Go(func() error { return w.binder.run(ctx) })
	return g.Wait()
}

// Ready is closed when for the first time the kernel is silenced, every VIP bound, and the socket of every interface
// that is up open: the node is fit to become holder.
func (w *Wire) Ready() <-chan struct{} { return w.ready }

// oneReady is called once by the binder and by each responder.
func (w *Wire) oneReady() {
	if w.unready.Add(-1) == 0 {
		close(w.ready)
	}
}

// Announce makes the tenure, if there is one, announce the VIPs anew. Call it when machines on the link may have heard
// another holder last, as when a peer comes back after a partition.
func (w *Wire) Announce() {
	select {
	case w.reannounce <- struct{}{}:
	default: // one is pending
	}
}

// Recheck makes Run repair silence and addresses now instead of within seconds. Call it when a rule has vanished: until
// the rule is back, the kernel answers for the VIP.
func (w *Wire) Recheck() { w.binder.wake() }

// Fault says why this host cannot answer for every VIP now, or is zero: the interface of a VIP is gone, down, without
// carrier, the port of another one, or no longer in the VIP's subnet. The channel is closed when that may have changed.
func (w *Wire) Fault() (f Fault, changed <-chan struct{}) { return w.links.firstFault() }

// logFault logs a fault that appears, changes or goes away.
func (w *Wire) logFault() {
	w.faultMu.Lock()
	defer w.faultMu.Unlock()
	f, _ := w.links.firstFault()
	switch {
	case f == w.fault:
		return
	case f == (Fault{}):
		w.log.Info("this host can answer for the VIPs again")
	default:
		w.log.Warn("this host cannot answer for the VIPs", "reason", f.String())
	}
	w.fault = f
}
