package arp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// DefaultLifetime is how long the VIP stays on lo after the process is
	// gone for good: long enough that a restart or an upgrade keeps the open
	// connections of local clients, short enough that a node that was taken
	// out of service soon reaches the VIP through its new holder.
	DefaultLifetime = 60 * time.Second

	// minLifetime leaves room for two renewals, as lifetimes are whole seconds.
	minLifetime = 3 * time.Second

	// keepEvery is the level beside the edges: state that was changed without
	// an event that we saw is put right within this time.
	keepEvery = 3 * time.Second

	// unbindWithin bounds the clean-up after Run's context has ended.
	unbindWithin = 3 * time.Second
)

// A VIP is one virtual address and the interface on whose link it is
// answered. FindInterface finds the interface.
type VIP struct {
	Addr      netip.Addr
	Interface string
}

// Silenced says for one IPv4 VIP what the kernel must keep to itself:
// requests for VIP that come in on Interface get no answer, and requests that
// leave Interface with the sender VIP carry NodeAddr instead. IPv6 needs none
// of this: Linux answers a solicitation only for addresses of the interface
// that it came in on, and lo gets none.
type Silenced struct {
	VIP       netip.Addr
	Interface string
	NodeAddr  netip.Addr
}

// A Silencer keeps the kernel from speaking for VIPs.
type Silencer interface {
	// Silence makes s the whole set of what is silenced; the empty set lifts
	// everything. It is called every few seconds and touches nothing that is
	// right already. repaired counts what had been ours and was found missing.
	Silence(ctx context.Context, s []Silenced) (repaired int, err error)
}

// Config is what a Wire needs to know.
type Config struct {
	VIPs []VIP
	// Silencer may be nil only where every VIP is IPv6.
	Silencer Silencer
	// Lifetime is how long the kernel keeps the addresses on lo if nobody
	// renews them. Zero means DefaultLifetime.
	Lifetime time.Duration
	// Linger is asked at the end of Run for how long the VIPs stay on lo,
	// silenced and unanswered, so that the next life finds open connections
	// alive. Nil or a result below one second takes them back at once.
	Linger func() time.Duration
	// OnForeign, if not nil, is told of each foreign claim that is logged.
	// It is called by the tenure's goroutine and must return at once.
	OnForeign func(Claim)
	// Log gets one line per change of state. Nil discards.
	Log *slog.Logger
}

// A Claim is another machine speaking for a VIP that we hold.
type Claim struct {
	VIP       netip.Addr
	Interface string
	MAC       string
	At        time.Time
}

// A Wire holds VIPs on the wire. Open makes one.
type Wire struct {
	cfg    Config
	log    *slog.Logger
	vips   map[netip.Addr]*record
	order  []netip.Addr // of cfg.VIPs
	ports  []*port
	links  *links
	keeper *keeper

	ready   chan struct{}
	unready atomic.Int64  // parts that have not been ready yet: the keeper, each port
	again   chan struct{} // asks the tenure for a new burst of announcements
	running atomic.Bool
	tenure  atomic.Pointer[tenure]
}

// Open checks that the VIPs can be kept on this host and that the sockets for
// it may be opened. It changes nothing on the host.
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
		cfg:   cfg,
		log:   cfg.Log,
		vips:  make(map[netip.Addr]*record, len(cfg.VIPs)),
		ready: make(chan struct{}),
		again: make(chan struct{}, 1),
	}
	byPort := make(map[portKey][]netip.Addr)
	var keys []portKey
	var names []string
	for _, v := range cfg.VIPs {
		w.vips[v.Addr] = &record{vip: v}
		w.order = append(w.order, v.Addr)
		k := portKey{v.Interface, v.Addr.Is6()}
		if byPort[k] == nil {
			keys = append(keys, k)
		}
		byPort[k] = append(byPort[k], v.Addr)
		names = append(names, v.Interface)
	}
	w.links = newLinks(names)
	if err := w.links.refresh(); err != nil {
		return nil, err
	}
	for _, k := range keys {
		w.ports = append(w.ports, newPort(w, k, byPort[k]))
	}
	w.unready.Store(int64(1 + len(w.ports)))
	w.keeper = newKeeper(w)
	if err := w.keeper.check(); err != nil {
		return nil, err
	}
	for _, p := range w.ports {
		if err := p.try(); err != nil {
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
		return fmt.Errorf("arp: lifetime %v is too short to be renewed in time: give at least %v", c.Lifetime, minLifetime)
	}
	seen := make(map[netip.Addr]bool, len(c.VIPs))
	for _, v := range c.VIPs {
		switch a := v.Addr; {
		case !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Is4In6() || a == broadcast4:
			return fmt.Errorf("arp: %v cannot be a VIP: give a unicast address of the clients' network", a)
		case a.Zone() != "" || a.Is6() && a.IsLinkLocalUnicast():
			return fmt.Errorf("arp: link-local address %v cannot be a VIP, as it cannot be bound on lo: give a global or unique local address", a)
		case seen[a]:
			return fmt.Errorf("arp: VIP %v is given twice: remove one", a)
		case v.Interface == "" || v.Interface == loopback:
			return fmt.Errorf("arp: VIP %v has no interface to be answered on: name the one that leads to the clients", a)
		case a.Is4() && c.Silencer == nil:
			return fmt.Errorf("arp: nothing silences the kernel for VIP %v: give a Silencer", a)
		}
		seen[v.Addr] = true
	}
	return nil
}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Run keeps the kernel silent and the VIPs on lo until ctx ends, and then
// takes them back in the opposite order, or leaves them for as long as
// Config.Linger says. It returns nil when ctx ended and that is done.
func (w *Wire) Run(ctx context.Context) error {
	if !w.running.CompareAndSwap(false, true) {
		return errors.New("arp: Run was called twice: open another Wire")
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.watch(ctx) })
	for _, p := range w.ports {
		g.Go(func() error { return p.run(ctx) })
	}
	g.Go(func() error { return w.keeper.run(ctx) })
	return g.Wait()
}

// Ready is closed when the kernel has been silenced, every VIP bound, and every
// socket opened whose interface is up, for the first time: the node is fit to
// become holder.
func (w *Wire) Ready() <-chan struct{} { return w.ready }

// partReady is called once by each part.
func (w *Wire) partReady() {
	if w.unready.Add(-1) == 0 {
		close(w.ready)
	}
}

// Announce makes the tenure, if there is one, announce the VIPs anew. It is
// for the moment in which somebody may have heard another holder last, as
// when a peer comes back after a partition.
func (w *Wire) Announce() {
	select {
	case w.again <- struct{}{}:
	default: // one is on its way
	}
}

// Recheck has the silence and the addresses compared with what is wanted now,
// as Run does by itself every few seconds. It is for whoever has seen a rule
// vanish: until it is back, the kernel speaks for the VIP.
func (w *Wire) Recheck() { w.keeper.wake() }

// Carrier says whether every interface of a VIP can send, and gives a channel
// that is closed when a link changes.
func (w *Wire) Carrier() (up bool, changed <-chan struct{}) { return w.links.carrier() }
