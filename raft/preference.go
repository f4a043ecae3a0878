package raft

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"appliance/raft/settings"
)

// A Fitness is how fit a peer says that it is to hold. The zero Fitness says that nothing is wrong.
type Fitness struct {
	// NoCarrier are the virtual addresses whose link here has no carrier, or is no use otherwise, sorted. No client
	// reaches the peer by these.
	NoCarrier []netip.Addr `json:"noCarrier,omitempty"`
	// Barred is why it should not hold while another can; empty if it may.
	Barred string `json:"barred,omitempty"`
	// Unserved is how many load balancers have no healthy backend here. A holder gives way to a peer that has
	// fewer.
	Unserved int `json:"blind,omitempty"`
	// Lowered is what is subtracted from its priority.
	Lowered int `json:"lowered,omitempty"`
}

// String says what is wrong, or "".
func (f Fitness) String() string {
	switch {
	case f.Barred != "":
		return f.Barred
	case len(f.NoCarrier) > 0:
		return "no carrier on the link of " + strings.Trim(fmt.Sprint(f.NoCarrier), "[]")
	case f.Unserved > 0:
		return fmt.Sprintf("load balancers without a healthy backend: %d", f.Unserved)
	case f.Lowered > 0:
		return fmt.Sprintf("its priority is lowered by %d", f.Lowered)
	}
	return ""
}

// IsZero says that nothing is wrong.
func (f Fitness) IsZero() bool { return f.equal(Fitness{}) }

func (f Fitness) equal(o Fitness) bool {
	return slices.Equal(f.NoCarrier, o.NoCarrier) && f.Barred == o.Barred && f.Unserved == o.Unserved &&
		f.Lowered == o.Lowered
}

// SetFitness tells the group how fit this peer is. The others learn of a lost carrier at once, and of the rest within
// a second; a holder that is less fit than another gives way.
func (g *Group) SetFitness(f Fitness) {
	f.NoCarrier = slices.Clone(f.NoCarrier)
	g.mu.Lock()
	was := g.fitness
	g.fitness = f
	g.mu.Unlock()
	if f.equal(was) {
		return
	}
	g.change.Fire()
	g.refitted.Fire()
	if !slices.Equal(f.NoCarrier, was.NoCarrier) {
		g.untoldCarrier.Fire()
	}
}

// tellCarrier says hello to all peers whenever the carrier of a link has changed here, until ctx ends: they may be
// handing packets to this host on that link, or be about to give way to it.
func (g *Group) tellCarrier(ctx context.Context) error {
	for {
		changed := g.untoldCarrier.Next()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			g.ask(ctx)
		}
	}
}

// learnFitness notes what peer id says of itself.
func (g *Group) learnFitness(id string, f Fitness) {
	g.mu.Lock()
	h, met := g.hellos[id]
	changed := met && !slices.Equal(h.Fitness.NoCarrier, f.NoCarrier)
	if met {
		h.Fitness = f
		g.hellos[id] = h
	}
	g.mu.Unlock()
	if changed {
		g.change.Fire()
		g.refitted.Fire()
	}
}

// fitnessOf is what peer id says of itself, as far as it is known here.
func (g *Group) fitnessOf(id string) Fitness {
	g.mu.Lock()
	defer g.mu.Unlock()
	if id == g.cfg.ID {
		return g.fitness
	}
	return g.hellos[id].Fitness
}

// preference says how much a peer is wanted as holder.
//
// The order of the reasons is that of the fields, on every peer: two that compare themselves never both find the
// other one fitter.
type preference struct {
	cut      int // virtual addresses whose link has no carrier
	class    class
	unserved int // load balancers without a healthy backend
	priority int
	lowered  bool // priority is less than the operator gave
}

type class int

const (
	barred  class = iota - 2 // only if there is nobody else
	drained                  // only if there is nobody else who is not barred
	ordinary
	pinned
)

func (s preference) compare(o preference) int {
	return cmp.Or(s.fitter(o), cmp.Compare(s.priority, o.priority))
}

// fitter compares all but the priority.
func (s preference) fitter(o preference) int {
	return cmp.Or(cmp.Compare(o.cut, s.cut), cmp.Compare(s.class, o.class), cmp.Compare(o.unserved, s.unserved))
}

// preferenceOf is how much peer id is wanted as holder.
func (g *Group) preferenceOf(id string) preference {
	s := preference{priority: g.cfg.Priority}
	if id != g.cfg.ID {
		h, _ := g.helloOf(id)
		s.priority = h.Priority
	}
	f := g.fitnessOf(id)
	s.cut, s.unserved, s.lowered = len(f.NoCarrier), f.Unserved, f.Lowered > 0
	s.priority -= f.Lowered
	switch {
	case f.Barred != "":
		s.class = barred
	case g.settings.Get(settings.DrainPrefix+id) != "":
		s.class = drained
	case g.settings.Get(settings.PinKey) == id && f.Unserved == 0 && s.cut == 0:
		s.class = pinned
	}
	return s
}

// byPreference is the roster, the most wanted holder first, the same on every peer.
func (g *Group) byPreference() []Peer {
	roster := g.roster()
	slices.SortStableFunc(roster, func(a, b Peer) int { return g.preferenceOf(b.ID).compare(g.preferenceOf(a.ID)) })
	return roster
}

// Drain keeps peer id from holding until Undrain, as long as another peer can hold. Both survive restarts.
func (g *Group) Drain(ctx context.Context, id string) error {
	if _, ok := g.peer(id); !ok {
		return g.notMember(id)
	}
	now := time.Now().UTC().Format(time.RFC3339)
	return g.propose(ctx, settings.Command{Set: map[string]string{settings.DrainPrefix + id: now}})
}

// Undrain ends Drain.
func (g *Group) Undrain(ctx context.Context, id string) error {
	return g.propose(ctx, settings.Command{Remove: []string{settings.DrainPrefix + id}})
}

// Pin has peer id hold whenever it can. An empty id ends that.
func (g *Group) Pin(ctx context.Context, id string) error {
	if id == "" {
		return g.propose(ctx, settings.Command{Remove: []string{settings.PinKey}})
	}
	p, ok := g.peer(id)
	switch {
	case !ok:
		return g.notMember(id)
	case p.Witness:
		return fmt.Errorf("peer %s is a witness, which never holds; pin another", id)
	}
	return g.propose(ctx, settings.Command{Set: map[string]string{settings.PinKey: id}})
}
