package balancer

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// An Event is one change, of a backend's state or of a load balancer.
type Event struct {
	Time         time.Time `json:"time"`
	LoadBalancer string    `json:"loadBalancer"`
	// Backend is the backend that changed, empty for a change of the whole.
	Backend string `json:"backend,omitempty"`
	// Plane: From and To are data planes, not states.
	Plane  bool   `json:"plane,omitempty"`
	From   string `json:"from,omitempty"`
	To     string `json:"to"`
	Reason string `json:"reason,omitempty"`
}

// tell logs events and hands them to OnEvent. Called with no lock held.
func (b *Balancer) tell(events ...Event) {
	for _, e := range events {
		attrs := []any{"loadBalancer", e.LoadBalancer}
		level, what := slog.LevelInfo, "load balancer is "+e.To
		switch {
		case e.Backend != "":
			attrs = append(attrs, "backend", e.Backend, "was", e.From)
			what = "backend is " + e.To
			if e.To == string(Down) {
				level = slog.LevelWarn
			}
		case e.Plane:
			what = "load balancer is served by data plane " + e.To
			if e.From != "" {
				attrs = append(attrs, "was", e.From)
			}
		}
		if e.Reason != "" {
			attrs = append(attrs, "reason", e.Reason)
		}
		b.cfg.Log.Log(context.Background(), level, what, attrs...)
		b.note(e)
	}
}

// note hands events to OnEvent. Called with no lock held.
func (b *Balancer) note(events ...Event) {
	if b.cfg.OnEvent == nil {
		return
	}
	for _, e := range events {
		e.Time = time.Now()
		b.cfg.OnEvent(e)
	}
}

// Status is a snapshot of everything that the balancer knows.
type Status struct {
	LoadBalancers []LoadBalancerStatus `json:"loadBalancers"`
	Planes        []PlaneStatus        `json:"planes"`
}

// LoadBalancerStatus is one load balancer in a Status.
type LoadBalancerStatus struct {
	Name      string           `json:"name"`
	Frontends []netip.AddrPort `json:"frontends"`
	Scheduler Scheduler        `json:"scheduler"`
	// Plane serves now; empty if none does yet. Reason says why it was
	// chosen, Refused why those before it were not.
	Plane   PlaneName `json:"plane"`
	Reason  string    `json:"reason,omitempty"`
	Refused []Refusal `json:"refused,omitempty"`
	// Moving is the plane that is about to take over.
	Moving PlaneName `json:"moving,omitempty"`
	// Error is what keeps it from being served as it should.
	Error string `json:"error,omitempty"`
	// Repairs counts what its plane found missing while it served it.
	Repairs int `json:"repairs"`
	// Queued are the connections that wait for room at any backend, beyond
	// those that wait for a certain one.
	Queued   uint64          `json:"queued"`
	Backends []BackendStatus `json:"backends"`
}

// BackendStatus is one backend in a LoadBalancerStatus.
type BackendStatus struct {
	Name    string         `json:"name"`
	Address netip.AddrPort `json:"address"`
	Weight  int            `json:"weight"`
	State   State          `json:"state"`
	Since   time.Time      `json:"since"`
	Reason  string         `json:"reason,omitempty"`
	Backup  bool           `json:"backup,omitempty"`
	// Order is what the operator has ordered, beyond the configuration.
	Order string `json:"order,omitempty"`
	// LastCheck is null until one has ended.
	LastCheck *time.Time `json:"lastCheck"`
	LatencyMS float64    `json:"latencyMs"`
	// PassedOver is why the data plane gives it no new connections although its
	// checks say that it could take them.
	PassedOver string `json:"passedOver,omitempty"`
	// Traffic is null where no plane that serves it can count.
	Traffic *Traffic `json:"traffic"`
}

// PlaneStatus is one data plane in a Status.
type PlaneStatus struct {
	Name     PlaneName `json:"name"`
	Services int       `json:"services"`
	Repairs  int       `json:"repairs"`
	// Applied is the end of the last Apply, null if there was none.
	Applied *time.Time `json:"applied"`
	Error   string     `json:"error,omitempty"`
}

// Status is a snapshot. It shares nothing with the balancer.
func (b *Balancer) Status() Status {
	// The planes are asked before the lock is taken: they have locks of
	// their own.
	traffic := make(map[Target]Traffic)
	passed := make(map[PlaneName]map[Target]string)
	for _, d := range b.drivers {
		if p, ok := d.plane.(Picky); ok {
			passed[d.plane.Name()] = p.PassedOver()
		}
		if m, ok := d.plane.(Meter); ok {
			for t, n := range m.Stats() {
				traffic[t] = traffic[t].Add(n)
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Status{LoadBalancers: b.loadBalancers(traffic, passed), Planes: []PlaneStatus{}}
	for _, d := range b.drivers {
		p := PlaneStatus{Name: d.plane.Name(), Services: d.last, Repairs: d.repaired, Applied: known(d.at)}
		if d.err != nil && d.applied {
			p.Error = d.err.Error()
		}
		s.Planes = append(s.Planes, p)
	}
	return s
}

// Health is what Status says of the load balancers, without what only the planes
// know. It asks no kernel, so that whoever wants it often may have it.
func (b *Balancer) Health() []LoadBalancerStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.loadBalancers(nil, nil)
}

// loadBalancers is sorted by name. Called with mu held.
func (b *Balancer) loadBalancers(traffic map[Target]Traffic, passed map[PlaneName]map[Target]string) []LoadBalancerStatus {
	lbs := []LoadBalancerStatus{}
	for _, lb := range b.wanted {
		e := b.entries[lb.Name]
		if e == nil {
			e = &entry{lb: lb} // Set has just brought it
		}
		lbs = append(lbs, b.status(e, traffic, passed))
	}
	slices.SortFunc(lbs, func(x, y LoadBalancerStatus) int { return cmp.Compare(x.Name, y.Name) })
	return lbs
}

// status is the part of one entry. Called with mu held.
func (b *Balancer) status(e *entry, traffic map[Target]Traffic, passed map[PlaneName]map[Target]string) LoadBalancerStatus {
	s := LoadBalancerStatus{
		Name: e.lb.Name, Frontends: slices.Clone(e.lb.Frontends), Scheduler: e.lb.Scheduler,
		Reason: e.choice.reason, Refused: slices.Clone(e.choice.refused), Repairs: e.repaired,
		Queued: traffic[Target{LoadBalancer: e.lb.Name}].Queued, Backends: []BackendStatus{},
	}
	for _, d := range []*driver{e.serving, e.moving} {
		if d != nil && d.err != nil {
			s.Error = d.err.Error()
		}
	}
	if e.choice.err != nil {
		s.Error = e.choice.err.Error()
	}
	if e.serving != nil {
		s.Plane = e.serving.plane.Name()
	}
	if e.moving != nil {
		s.Moving = e.moving.plane.Name()
	}
	for _, be := range e.lb.Backends {
		t := Target{e.lb.Name, be.Addr}
		r, _ := b.monitor.record(t)
		h := r.shown(time.Now())
		order := b.orders[t]
		be.Weight = order.weight(be.Weight)
		switch {
		case order.Out == Disable:
			h.State, h.Reason = Down, "disabled by the operator"
		case order.Out == Drain:
			h.State, h.Reason = Draining, "drained by the operator"
		case h.State == Up && be.Weight == 0:
			h.State, h.Reason = Draining, "its weight is 0"
		}
		bs := BackendStatus{
			Name: be.String(), Address: be.Addr, Weight: be.Weight,
			State: State(cmp.Or(string(h.State), string(Unknown))), Since: h.Since, Reason: h.Reason,
			Backup: be.Backup, Order: order.String(),
			LastCheck: known(r.Checked), LatencyMS: float64(r.Latency.Microseconds()) / 1000,
		}
		if h.State == Up {
			bs.PassedOver = passed[s.Plane][t]
		}
		if n, ok := traffic[t]; ok {
			bs.Traffic = &n
		}
		s.Backends = append(s.Backends, bs)
	}
	return s
}

// known is t, or nil if it is zero.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
