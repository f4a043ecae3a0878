package balancer

import (
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
	// Checker makes the Checker for a Check; nil means NewChecker.
	Checker func(Check) (Checker, error)
	// Log gets one line per change; nil means slog.Default().
	Log *slog.Logger
	// OnEvent, if set, is told of each change too. It must not block.
	OnEvent func(Event)
	// OnCheck, if set, is told of each check that ended, well or not, and how
	// long it took. It must not block.
	OnCheck func(t Target, took time.Duration, err error)
	// Level is the time between two calls of Apply with nothing changed,
	// which heal what somebody else removed; zero means 2 s, the longest that
	// a flushed rule should stay lost.
	Level time.Duration
	// Reconsider is the time between two looks at which plane is best; zero
	// means 30 s, because kernels and networks change seldom.
	Reconsider time.Duration
}

// A Balancer keeps load balancers served by the best data plane there is.
//
// Its goroutines, all of them started and awaited by Run:
//
//	steward          owns which load balancers there are and which plane each has
//	driver (a plane) owns the calls of Apply on one plane
//	probe (a target) owns the checks of one backend of one load balancer
//
// What they find out is kept under mu, which is never held during a call of a
// plane, a checker or OnEvent.
type Balancer struct {
	cfg        Config
	monitor    *monitor
	drivers    []*driver
	changed    chan struct{} // the wanted set is another one
	reconsider chan struct{}
	ready      chan struct{}

	mu      sync.Mutex
	wanted  []LoadBalancer
	entries map[string]*entry
	orders  map[Target]Order
	chosen  bool // each entry has been looked at once
	isReady bool
	version uint64 // counts the changes of entries
}

// entry is a load balancer and how it is served. Guarded by Balancer.mu.
type entry struct {
	lb     LoadBalancer
	choice choice
	// serving is the driver that has applied it; moving, if not nil, is the
	// one that will. Both have it in their sets until moving has applied it,
	// so that no packet meets a moment without either.
	serving, moving *driver
	movingSince     uint64 // the version in which moving was set
	// old is what serving goes on with while another plane takes over: it
	// was never asked whether it can serve lb.
	old *LoadBalancer
	// departed were taken out of lb while they lived, until when their open
	// connections may go on.
	departed map[netip.AddrPort]departed
	// rival is the plane that would serve it now if it had not one that was
	// chosen earlier, since is for how long.
	rival    PlaneName
	since    time.Time
	tried    bool // one Apply with it has ended, well or not
	repaired int
}

// New makes a Balancer. It refuses load balancers that cannot be meant.
func New(cfg Config) (*Balancer, error) {
	if cfg.Checker == nil {
		cfg.Checker = NewChecker
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	cfg.Level = or(cfg.Level, 2*time.Second)
	cfg.Reconsider = or(cfg.Reconsider, 30*time.Second)
	b := &Balancer{
		cfg:        cfg,
		changed:    make(chan struct{}, 1),
		reconsider: make(chan struct{}, 1),
		ready:      make(chan struct{}),
		entries:    make(map[string]*entry),
	}
	b.monitor = &monitor{checker: cfg.Checker, changed: b.healthChanged, vanished: b.hostVanished, ended: cfg.OnCheck, probes: make(map[Target]*probe)}
	for _, p := range cfg.Planes {
		b.drivers = append(b.drivers, &driver{plane: p, kick: make(chan struct{}, 1)})
	}
	if err := b.Set(cfg.LoadBalancers); err != nil {
		return nil, err
	}
	return b, nil
}

// Set replaces the wanted load balancers. Those that are unchanged, by name
// and content, are not touched. An invalid set changes nothing.
func (b *Balancer) Set(lbs []LoadBalancer) error {
	lbs, err := b.validate(lbs)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.wanted = lbs
	b.mu.Unlock()
	poke(b.changed)
	return nil
}

// Change is Set for a balancer that serves: load balancers that are new or
// changed and for which the operator forced a data plane are refused if that
// cannot serve them now.
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
	var errs []error
	for _, lb := range next {
		if lb.Plane != Auto && lb.Plane != "" && !reflect.DeepEqual(have[lb.Name], lb) {
			errs = append(errs, choose(ctx, b.cfg.Planes, lb).err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return b.Set(lbs)
}

// validate copies lbs with the defaults filled in.
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
				return nil, fmt.Errorf("load balancer %s: %s is already a frontend of %s: use another port or address", lb.Name, f, other)
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
		if lb.Check, err = lb.Check.withDefaults(); err != nil {
			return nil, fmt.Errorf("load balancer %s: %w", lb.Name, err)
		}
		if _, err := b.cfg.Checker(lb.Check); err != nil {
			return nil, fmt.Errorf("load balancer %s: %w", lb.Name, err)
		}
		lb.ConnectTimeout = or(lb.ConnectTimeout, time.Second)
		lb.FailTimeout = or(lb.FailTimeout, 10*time.Second)
		out = append(out, lb)
	}
	return out, nil
}

// Reconsider has the choice of planes looked at again soon: a network or a
// kernel may have changed.
func (b *Balancer) Reconsider() { poke(b.reconsider) }

// Ready is closed when every load balancer is served, or has been tried with
// the error in Status and another one is served: the VIP may be bound.
func (b *Balancer) Ready() <-chan struct{} { return b.ready }

// Reconcile has every plane compare the kernel with what is wanted now, as it
// does by itself every Level. It is for whoever has seen something vanish.
func (b *Balancer) Reconcile() { b.poke() }

// Report takes what a real connection to a backend met. A failure makes the
// next check start at once.
func (b *Balancer) Report(t Target, err error) { b.monitor.report(t, err) }

// PeerDown takes the backends on host out of rotation at once, until a check
// that starts later succeeds. Their open connections go on until a check has
// confirmed the loss.
func (b *Balancer) PeerDown(host netip.Addr) { b.monitor.peerDown(host) }

// PeerUp has the backends on host checked at once.
func (b *Balancer) PeerUp(host netip.Addr) { b.monitor.peerUp(host) }

// Check asks, before anything is touched, whether each load balancer can be
// served. Run does not need it: a plane that is missing then is an error in
// Status, and is looked for again.
func (b *Balancer) Check(ctx context.Context) error {
	b.mu.Lock()
	lbs := b.wanted
	b.mu.Unlock()
	var errs []error
	for _, lb := range lbs {
		errs = append(errs, choose(ctx, b.cfg.Planes, lb).err)
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends and returns nil then. What the planes serve stays
// served; closing them is another step, after the VIP has been given up.
func (b *Balancer) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return b.steward(ctx) })
	for _, d := range b.drivers {
		group.Go(func() error { return b.drive(ctx, d) })
	}
	err := group.Wait()
	b.monitor.wait()
	return err
}

// steward follows the wanted set and chooses the planes.
func (b *Balancer) steward(ctx context.Context) error {
	ticker := time.NewTicker(b.cfg.Reconsider)
	defer ticker.Stop()
	all := false
	var again <-chan time.Time // is not lost when another load balancer changes
	for {
		wanted, err := b.adopt(ctx)
		if err != nil {
			return err
		}
		if b.choosePlanes(ctx, wanted, all) {
			again = time.After(settle)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again:
			all, again = true, nil
		case <-b.changed:
			all = false
		case <-b.reconsider:
			all = true
		case <-ticker.C:
			all = true
		}
	}
}

// adopt makes the entries those of the wanted set, which it returns. One that
// has changed is served as it was until decide: a plane must have been asked
// whether it can serve the new one.
func (b *Balancer) adopt(ctx context.Context) (wanted []LoadBalancer, err error) {
	b.mu.Lock()
	wanted = b.wanted
	b.depart(wanted)
	b.mu.Unlock()
	// Watched before they are entries, so that an entry always has health.
	if err := b.monitor.set(ctx, wanted); err != nil {
		return nil, err
	}
	var events []Event
	b.mu.Lock()
	names := make(map[string]bool)
	for _, lb := range wanted {
		names[lb.Name] = true
		switch e := b.entries[lb.Name]; {
		case e == nil:
			b.entries[lb.Name] = &entry{lb: lb}
			events = append(events, Event{LoadBalancer: lb.Name, To: "added"})
		case !reflect.DeepEqual(e.lb, lb):
			e.choice.plane = "" // to be chosen anew
			events = append(events, Event{LoadBalancer: lb.Name, To: "changed"})
		}
	}
	for name := range b.entries {
		if !names[name] {
			delete(b.entries, name)
			events = append(events, Event{LoadBalancer: name, To: "removed"})
		}
	}
	b.version++
	b.mu.Unlock()
	b.tell(events...)
	b.poke()
	return wanted, nil
}

// settle is how long another plane must have been the better one before a load
// balancer that is served moves to it. A link that flaps or a probe that was
// lost once must not move connections back and forth.
const settle = 3 * time.Second

// choosePlanes finds a plane for those of wanted that have none, or for all. It
// reports whether it should be called again after settle.
func (b *Balancer) choosePlanes(ctx context.Context, wanted []LoadBalancer, all bool) (again bool) {
	b.mu.Lock()
	var lbs []LoadBalancer
	for _, lb := range wanted {
		if all || b.entries[lb.Name].choice.plane == "" {
			lbs = append(lbs, lb)
		}
	}
	b.mu.Unlock()

	// Together, because a plane may take its time to try a network.
	choices := make([]choice, len(lbs))
	var asking sync.WaitGroup
	for i, lb := range lbs {
		asking.Go(func() { choices[i] = choose(ctx, b.cfg.Planes, lb) })
	}
	asking.Wait()
	if ctx.Err() != nil {
		return false
	}
	for i, lb := range lbs {
		again = b.decide(lb, choices[i]) || again
	}
	b.mu.Lock()
	b.chosen = true
	b.becomeReady()
	b.mu.Unlock()
	b.poke()
	return again
}

// decide records a choice, or reports that it has to settle first. Without a
// plane, who serves now goes on serving: an old plane that may work is better
// than none.
func (b *Balancer) decide(lb LoadBalancer, c choice) (again bool) {
	b.mu.Lock()
	e := b.entries[lb.Name]
	before, old := e.choice, e.lb
	e.lb = lb
	works := e.serving != nil && e.serving.err == nil && before.plane == e.serving.plane.Name()
	if works && c.err == nil && c.plane != before.plane {
		if e.rival != c.plane {
			e.rival, e.since = c.plane, time.Now()
		}
		if time.Since(e.since) < settle {
			b.mu.Unlock()
			return true
		}
	}
	e.rival = ""
	e.choice = c
	e.moving = nil
	for _, d := range b.drivers {
		if d.plane.Name() == c.plane && d != e.serving {
			e.moving = d
		}
	}
	switch {
	case e.serving == nil || e.moving == nil:
		e.old = nil
	case e.old == nil:
		e.old = &old
	}
	b.version++
	e.movingSince = b.version
	if c.err != nil {
		e.tried = true
	}
	b.mu.Unlock()

	switch {
	case c.err != nil && (before.err == nil || before.err.Error() != c.err.Error()):
		b.tell(Event{LoadBalancer: lb.Name, To: "without data plane", Reason: c.err.Error()})
	case c.err == nil && before.err != nil:
		b.tell(Event{LoadBalancer: lb.Name, To: "given a data plane again", Reason: string(c.plane)})
	}
	return false
}

// healthChanged is told by the monitor.
func (b *Balancer) healthChanged(c change) {
	b.rotated()
	if c.before.State == c.after.State && c.after.Remedy != "" && c.before.Remedy != c.after.Remedy {
		b.cfg.Log.Warn("backend lives, and does not speak what its check does",
			"loadBalancer", c.target.LoadBalancer, "backend", c.backend, "state", c.after.State, "reason", c.after.Reason)
	}
	b.tell(c.events()...)
}

// hostVanished is told by the monitor. A host may have a backend of every load
// balancer: that is one line in the log, and an event for each.
func (b *Balancer) hostVanished(host netip.Addr, cs []change) {
	b.rotated()
	var events []Event
	for _, c := range cs {
		events = append(events, c.events()...)
	}
	if len(events) < 2 {
		b.tell(events...)
		return
	}
	const most = 10 // that the line names
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
	b.note(events...)
}

// rotated has the planes follow a backend's health.
func (b *Balancer) rotated() {
	b.mu.Lock()
	b.version++
	b.mu.Unlock()
	b.poke()
}

// events is the change of state, or nothing.
func (c change) events() []Event {
	if c.before.State == c.after.State {
		return nil
	}
	return []Event{{LoadBalancer: c.target.LoadBalancer, Backend: c.backend.String(),
		From: string(c.before.State), To: string(c.after.State), Reason: c.after.Reason}}
}

// poke has every driver look whether its set has changed.
func (b *Balancer) poke() {
	for _, d := range b.drivers {
		poke(d.kick)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is already to be looked at
	}
}

// becomeReady closes ready when it is time. Called with mu held.
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
		b.poke() // planes that serve nothing now lose what an earlier life left
	}
}
