package balancer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config is what a Balancer needs.
type Config struct {
	// Planes are in the order in which Auto prefers them. The Balancer calls
	// them but does not close them: who opened them does.
	Planes        []Plane
	LoadBalancers []LoadBalancer
	// Prover, if not nil, keeps planes from being chosen that were tried and serve nobody.
	Prover Prover
	// Checker makes the Checker for a Check; nil means NewChecker.
	Checker func(Check) (Checker, error)
	// Log gets one line per change; nil means slog.Default().
	Log *slog.Logger
	// OnEvent, if set, gets each change too. It must not block.
	OnEvent func(LoadBalancerEvent)
	// OnCheck, if set, is called after each check with its duration and its
	// outcome. It must not block.
	OnCheck func(t Target, took time.Duration, err error)
	// Shortages, if set, takes the checks that failed for a lack of something on this
	// host. They change no state.
	Shortages *Shortages
	// Level is the time between two calls of Apply when nothing has changed. They
	// restore what somebody else removed. Zero means 2 s, the longest time that a
	// flushed rule should stay lost.
	Level time.Duration
	// Reconsider is the time after which the planes are chosen again. Zero
	// means 30 s, because kernels and networks change seldom.
	Reconsider time.Duration
}

// A Balancer keeps load balancers served by the best data plane there is.
//
// Run starts its goroutines and waits for them:
//
//	followWanted           owns which load balancers there are and which plane each has
//	keepApplied (a plane)  owns the calls of Apply on that plane
//	watch (a target)       owns the checks of one backend of one load balancer
//	unbar (a target)       waits until a backend that was barred may be used again
//
// They keep what they find out under mu, which is never held during a call of a
// plane, a checker or OnEvent.
type Balancer struct {
	cfg        Config
	monitor    *monitor
	appliers   []*applier
	changed    chan struct{} // the wanted set has changed
	reconsider chan struct{}
	ready      chan struct{}

	mu        sync.Mutex
	wanted    []LoadBalancer
	entries   map[string]*entry
	overrides map[Target]Override
	chosen    bool // a plane was looked for once for each entry
	isReady   bool
	version   uint64 // counts the changes of entries
}

// entry is a load balancer and how it is served. Guarded by Balancer.mu.
type entry struct {
	lb     LoadBalancer
	choice planeChoice
	// serving is the applier whose plane serves it; moving, if not nil, is the
	// one that takes over. Both have it in their sets until moving has applied
	// it, so that there is no moment without either.
	serving, moving *applier
	movingSince     uint64 // the version in which moving was set
	// old is what serving goes on with while another plane takes over: the
	// serving plane was never asked whether it can serve lb.
	old *LoadBalancer
	// removed are the backends that were taken out of lb while they were alive.
	removed map[netip.AddrPort]removed
	// contender is the plane that would be chosen now, and since is when it first
	// was, while an earlier choice still serves.
	contender PlaneName
	since     time.Time
	tried     bool // one Apply with it has ended, with or without an error
	repaired  int
}

// New makes a Balancer. The error says which load balancer is invalid.
func New(cfg Config) (*Balancer, error) {
	if cfg.Checker == nil {
		cfg.Checker = NewChecker
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	cfg.Level = cmp.Or(cfg.Level, 2*time.Second)
	cfg.Reconsider = cmp.Or(cfg.Reconsider, 30*time.Second)
	b := &Balancer{
		cfg:        cfg,
		changed:    make(chan struct{}, 1),
		reconsider: make(chan struct{}, 1),
		ready:      make(chan struct{}),
		entries:    make(map[string]*entry),
	}
	b.monitor = &monitor{
		checker: cfg.Checker, changed: b.healthChanged, vanished: b.hostVanished, ended: cfg.OnCheck,
		shortages: cfg.Shortages,
		probes:    make(map[Target]*probe),
	}
	for _, p := range cfg.Planes {
		b.appliers = append(b.appliers, &applier{plane: p, wake: make(chan struct{}, 1)})
	}
	if err := b.Set(cfg.LoadBalancers); err != nil {
		return nil, err
	}
	return b, nil
}

// Set replaces the wanted load balancers. It leaves those alone whose name and
// content are unchanged. An invalid set changes nothing.
func (b *Balancer) Set(lbs []LoadBalancer) error {
	lbs, err := b.validate(lbs)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.wanted = lbs
	b.mu.Unlock()
	wake(b.changed)
	return nil
}

// Change is Set for a balancer that serves. It refuses the set if a load balancer
// is new or changed, has a data plane that the operator forced, and that plane
// cannot serve it now.
func (b *Balancer) Change(ctx context.Context, lbs []LoadBalancer) error {
	next, err := b.validate(lbs)
	if err != nil {
		return err
	}
	b.mu.Lock()
	have := make(map[string]LoadBalancer)
	for _, lb := range b.wanted {
		have[lb.Name] = lb
	}
	b.mu.Unlock()
	var forced []LoadBalancer
	for _, lb := range next {
		if lb.Plane != Auto && lb.Plane != "" && !reflect.DeepEqual(have[lb.Name], lb) {
			forced = append(forced, lb)
		}
	}
	if err := b.unserved(ctx, forced); err != nil {
		return err
	}
	return b.Set(lbs)
}

// unserved is the error that lists which of lbs no plane can serve, and why.
func (b *Balancer) unserved(ctx context.Context, lbs []LoadBalancer) error {
	return errors.Join(askAll(lbs, func(lb LoadBalancer) error { return b.servable(ctx, lb) })...)
}

// validate copies lbs and fills in the defaults.
func (b *Balancer) validate(lbs []LoadBalancer) ([]LoadBalancer, error) {
	names := make(map[string]bool)
	frontends := make(map[netip.AddrPort]string)
	out := make([]LoadBalancer, 0, len(lbs))
	for _, lb := range lbs {
		if names[lb.Name] {
			return nil, fmt.Errorf("load balancer %s: there are two of this name: rename one", lb.Name)
		}
		names[lb.Name] = true
		for _, f := range lb.Frontends {
			if other, ok := frontends[f]; ok {
				return nil, fmt.Errorf("load balancer %s: %s is already a frontend of %s: use another port or address",
					lb.Name, f, other)
			}
			frontends[f] = lb.Name
		}
		backends := make(map[netip.AddrPort]bool)
		for _, be := range lb.Backends {
			if backends[be.Addr] {
				return nil, fmt.Errorf("load balancer %s: backend %s is listed twice: remove one", lb.Name, be.Addr)
			}
			backends[be.Addr] = true
		}
		var err error
		if lb.Check, err = b.validCheck(lb.Check); err != nil {
			return nil, fmt.Errorf("load balancer %s: %w", lb.Name, err)
		}
		lb.Backends = slices.Clone(lb.Backends)
		for i, be := range lb.Backends {
			if be.Check == nil {
				continue
			}
			own, err := b.validCheck(*be.Check)
			if err != nil {
				return nil, fmt.Errorf("load balancer %s: backend %s: %w", lb.Name, be, err)
			}
			lb.Backends[i].Check = &own
		}
		lb.ConnectTimeout = cmp.Or(lb.ConnectTimeout, DefaultConnectTimeout)
		lb.FailTimeout = cmp.Or(lb.FailTimeout, DefaultFailTimeout)
		out = append(out, lb)
	}
	return out, nil
}

// validCheck is c with its defaults, if it can be made.
func (b *Balancer) validCheck(c Check) (Check, error) {
	c, err := c.withDefaults()
	if err == nil {
		_, err = b.cfg.Checker(c)
	}
	return c, err
}

// Reconsider asks for a new choice of planes soon. Call it when the network or
// the kernel may have changed.
func (b *Balancer) Reconsider() { wake(b.reconsider) }

// Ready is closed when the VIP may be bound: every load balancer is served, or
// was tried with the error in Status while another one is served.
func (b *Balancer) Ready() <-chan struct{} { return b.ready }

// Reconcile makes every plane compare the kernel with what is wanted, as each
// does every Level. Call it when something was seen to vanish.
func (b *Balancer) Reconcile() { b.wakeAppliers() }

// Report takes the outcome of a real connection to a backend. A failure makes
// the next check start at once.
func (b *Balancer) Report(t Target, err error) { b.monitor.report(t, err) }

// Settled reports whether the checks of all backends of a load balancer have ended
// since a time, and changed nothing. If not, they are hurried.
func (b *Balancer) Settled(loadBalancer string, since time.Time) bool {
	var ts []Target
	b.mu.Lock()
	if e := b.entries[loadBalancer]; e != nil {
		for _, be := range e.lb.Backends {
			ts = append(ts, Target{loadBalancer, be.Addr})
		}
	}
	b.mu.Unlock()
	return b.monitor.settled(ts, since)
}

// PeerDown takes the backends on host out of rotation at once, until a check
// that starts later succeeds. Their open connections go on until a check
// confirms the loss.
func (b *Balancer) PeerDown(host netip.Addr) { b.monitor.peerDown(host) }

// PeerUp makes the checks of the backends on host start at once.
func (b *Balancer) PeerUp(host netip.Addr) { b.monitor.peerUp(host) }

// SetCutOff says whether this node may be cut off from the backends' hosts. Then failed checks take backends out of
// rotation, and their open connections go on.
func (b *Balancer) SetCutOff(cutOff bool) { b.monitor.cutOff.Store(cutOff) }

// Check says, before anything is touched, which load balancers no plane can
// serve. Run does not need it: there a missing plane is an error in Status, and
// is looked for again.
func (b *Balancer) Check(ctx context.Context) error {
	b.mu.Lock()
	lbs := b.wanted
	b.mu.Unlock()
	return b.unserved(ctx, lbs)
}

// Run serves until ctx ends and then returns nil. The planes go on serving; they
// are closed in a later step, after the VIP was given up.
func (b *Balancer) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return b.followWanted(ctx) })
	for _, a := range b.appliers {
		group.Go(func() error { return b.keepApplied(ctx, a) })
	}
	err := group.Wait()
	b.monitor.wait()
	return err
}

// healthChanged is called by the monitor after a change of one backend.
func (b *Balancer) healthChanged(c healthChange) {
	b.rotated()
	if c.before.State == c.after.State && c.after.Remedy != "" && c.before.Remedy != c.after.Remedy {
		b.cfg.Log.Warn("the backend is alive, but does not speak what its check expects",
			"loadBalancer", c.target.LoadBalancer, "backend", c.backend, "state", c.after.State, "reason", c.after.Reason)
	}
	b.emit(c.events()...)
}

// hostVanished is called by the monitor. A host may have a backend of every load
// balancer: that is one line in the log, and one event for each.
func (b *Balancer) hostVanished(host netip.Addr, cs []healthChange) {
	b.rotated()
	var events []LoadBalancerEvent
	for _, c := range cs {
		events = append(events, c.events()...)
	}
	if len(events) < 2 {
		b.emit(events...)
		return
	}
	const most = 10 // names in the line
	names := make([]string, 0, len(events))
	for _, e := range events {
		names = append(names, e.LoadBalancer)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if more := len(names) - most; more > 0 {
		names = append(names[:most], fmt.Sprintf("and %d more", more))
	}
	b.cfg.Log.Warn("host is gone, and its backends are down",
		"host", host, "backends", len(events), "loadBalancers", strings.Join(names, ", "), "reason", events[0].Reason)
	b.notify(events...)
}

// rotated makes the planes follow a backend's health.
func (b *Balancer) rotated() {
	b.mu.Lock()
	b.version++
	b.mu.Unlock()
	b.wakeAppliers()
}

// events is the change of state, or nothing if the state is the same.
func (c healthChange) events() []LoadBalancerEvent {
	if c.before.State == c.after.State {
		return nil
	}
	return []LoadBalancerEvent{{LoadBalancer: c.target.LoadBalancer, Backend: c.backend.String(),
		From: string(c.before.State), To: string(c.after.State), Reason: c.after.Reason}}
}

// wakeAppliers makes every applier look whether its set has changed.
func (b *Balancer) wakeAppliers() {
	for _, a := range b.appliers {
		wake(a.wake)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // a wake-up is pending
	}
}

// becomeReady closes ready when the conditions of Ready hold. The caller holds mu.
func (b *Balancer) becomeReady() {
	if b.isReady || !b.chosen {
		return
	}
	served := len(b.entries) == 0
	for _, e := range b.entries {
		if !e.tried {
			return
		}
		served = served || e.serving != nil
	}
	if served {
		b.isReady = true
		close(b.ready)
		b.wakeAppliers() // planes that serve nothing now remove what an earlier process left
	}
}
