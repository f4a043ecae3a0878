package balancer

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Refusal says why a data plane cannot serve a load balancer.
type Refusal struct {
	Plane  PlaneName `json:"plane"`
	Reason string    `json:"reason"`
}

// planeChoice is the data plane found for a load balancer, and why that one.
type planeChoice struct {
	plane   PlaneName // empty if there is none; then err says why
	reason  string
	refused []Refusal // the planes that would have been preferred
	// unproved are those of refused that were tried and serve nobody.
	unproved []PlaneName
	err      error
}

// explain is the reason, with what was against the preferred planes.
func (c planeChoice) explain() string {
	text := c.reason
	for _, r := range c.refused {
		text += fmt.Sprintf("; not %s: %s", r.Plane, r.Reason)
	}
	return text
}

// choose asks the planes, in the order of preference, whether they can serve
// lb. A plane that the operator forced is the only one asked. A plane that was
// tried and serves nobody comes after all others.
func (b *Balancer) choose(ctx context.Context, lb LoadBalancer) planeChoice {
	forced := lb.Plane != Auto && lb.Plane != ""
	var c planeChoice
	var names []string
	var unproved PlaneName
	var before []Refusal // unproved
	for _, p := range b.cfg.Planes {
		names = append(names, string(p.Name()))
		if forced && p.Name() != lb.Plane {
			continue
		}
		err := p.Usable(ctx, lb)
		if err == nil && !forced && b.cfg.Prover != nil {
			if why := b.cfg.Prover.Unproved(lb, p.Name()); why != "" {
				if unproved == "" {
					unproved, before = p.Name(), slices.Clone(c.refused)
				}
				c.unproved = append(c.unproved, p.Name())
				c.refused = append(c.refused, Refusal{p.Name(), why})
				continue
			}
		}
		if err != nil {
			c.refused = append(c.refused, Refusal{p.Name(), err.Error()})
			continue
		}
		c.plane, c.reason = p.Name(), "the configuration asks for it"
		if !forced {
			c.reason = "the first choice"
			if len(c.refused) > 0 {
				c.reason = "the first that works here"
			}
		}
		return c
	}
	switch {
	case unproved != "":
		return planeChoice{plane: unproved, reason: "none has been proved to serve, and this is the first", refused: before}
	case forced && len(c.refused) == 0:
		c.err = fmt.Errorf("load balancer %s: there is no data plane %q: use auto or one of %s",
			lb.Name, lb.Plane, strings.Join(names, ", "))
	case forced:
		c.err = fmt.Errorf("load balancer %s: data plane %s cannot serve it: %s; or set dataPlane to auto",
			lb.Name, lb.Plane, c.refused[0].Reason)
	default:
		var reasons []string
		for _, r := range c.refused {
			reasons = append(reasons, fmt.Sprintf("%s: %s", r.Plane, r.Reason))
		}
		c.err = fmt.Errorf("load balancer %s: no data plane can serve it (%s): mend one of these reasons",
			lb.Name, strings.Join(reasons, "; "))
	}
	return c
}

// servable says why no plane can serve lb. Without a forced plane any will do, so it begins with those that need no
// look at the network: a start must not wait for peers that are down.
func (b *Balancer) servable(ctx context.Context, lb LoadBalancer) error {
	if lb.Plane == Auto || lb.Plane == "" {
		for _, p := range slices.Backward(b.cfg.Planes) {
			if p.Usable(ctx, lb) == nil {
				return nil
			}
		}
	}
	return b.choose(ctx, lb).err
}

// askAll asks the same about each of lbs at the same time: a plane that first has to try a network takes its time, and
// must not take it once for each load balancer.
func askAll[T any](lbs []LoadBalancer, ask func(LoadBalancer) T) []T {
	answers := make([]T, len(lbs))
	var asking sync.WaitGroup
	for i, lb := range lbs {
		asking.Go(func() { answers[i] = ask(lb) })
	}
	asking.Wait()
	return answers
}

// followWanted follows the wanted set and chooses the planes.
func (b *Balancer) followWanted(ctx context.Context) error {
	ticker := time.NewTicker(b.cfg.Reconsider)
	defer ticker.Stop()
	all := false
	var again <-chan time.Time // survives a change of another load balancer
	for {
		wanted, err := b.adoptWanted(ctx)
		if err != nil {
			return err
		}
		if b.choosePlanes(ctx, wanted, all) {
			again = time.After(moveDelay)
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

// adoptWanted makes the entries those of the wanted set, which it returns. A
// load balancer that has changed is served as before until decide: first a
// plane must say that it can serve the new one.
func (b *Balancer) adoptWanted(ctx context.Context) (wanted []LoadBalancer, err error) {
	b.mu.Lock()
	wanted = b.wanted
	b.keepRemoved(wanted)
	b.mu.Unlock()
	// The monitor comes first, so that an entry always has health.
	if err := b.monitor.set(ctx, wanted); err != nil {
		return nil, err
	}
	var events []LoadBalancerEvent
	b.mu.Lock()
	names := make(map[string]bool)
	for _, lb := range wanted {
		names[lb.Name] = true
		switch e := b.entries[lb.Name]; {
		case e == nil:
			b.entries[lb.Name] = &entry{lb: lb}
			events = append(events, LoadBalancerEvent{LoadBalancer: lb.Name, To: "added"})
		case !reflect.DeepEqual(e.lb, lb):
			e.choice.plane = "" // to be chosen again
			events = append(events, LoadBalancerEvent{LoadBalancer: lb.Name, To: "changed"})
		}
	}
	for name := range b.entries {
		if !names[name] {
			delete(b.entries, name)
			events = append(events, LoadBalancerEvent{LoadBalancer: name, To: "removed"})
		}
	}
	b.version++
	b.mu.Unlock()
	b.emit(events...)
	b.wakeAppliers()
	return wanted, nil
}

// moveDelay is how long another plane must have been the better one before a
// load balancer that is served moves to it. A link that flaps, or one lost
// probe, must not move connections back and forth.
const moveDelay = 3 * time.Second

// choosePlanes finds a plane for those of wanted that have none, or for all. It
// reports whether it should be called again after moveDelay.
func (b *Balancer) choosePlanes(ctx context.Context, wanted []LoadBalancer, all bool) (again bool) {
	b.mu.Lock()
	var lbs []LoadBalancer
	for _, lb := range wanted {
		if all || b.entries[lb.Name].choice.plane == "" {
			lbs = append(lbs, lb)
		}
	}
	b.mu.Unlock()

	choices := askAll(lbs, func(lb LoadBalancer) planeChoice { return b.choose(ctx, lb) })
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
	b.wakeAppliers()
	return again
}

// decide records a choice, or reports that it has to wait for moveDelay. Without
// a plane, the one that serves now goes on: an old plane that may work is better
// than none.
func (b *Balancer) decide(lb LoadBalancer, c planeChoice) (again bool) {
	b.mu.Lock()
	e := b.entries[lb.Name]
	before, old := e.choice, e.lb
	e.lb = lb
	works := e.serving != nil && e.serving.err == nil && before.plane == e.serving.plane.Name()
	// Nobody gains from waiting for a plane that serves nobody.
	if works && c.err == nil && c.plane != before.plane && !slices.Contains(c.unproved, before.plane) {
		if e.contender != c.plane {
			e.contender, e.since = c.plane, time.Now()
		}
		if time.Since(e.since) < moveDelay {
			b.mu.Unlock()
			return true
		}
	}
	e.contender = ""
	e.choice = c
	e.moving = nil
	for _, a := range b.appliers {
		if a.plane.Name() == c.plane && a != e.serving {
			e.moving = a
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
		b.emit(LoadBalancerEvent{LoadBalancer: lb.Name, To: "without data plane", Unserved: true, Reason: c.err.Error()})
	case c.err == nil && before.err != nil:
		b.emit(LoadBalancerEvent{LoadBalancer: lb.Name, To: "given a data plane again", Reason: string(c.plane)})
	}
	return false
}
