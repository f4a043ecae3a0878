package balancer

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// A LoadBalancerEvent is one change of a load balancer or of a backend's state.
type LoadBalancerEvent struct {
	Time         time.Time `json:"time"`
	LoadBalancer string    `json:"loadBalancer"`
	// Backend is the backend that changed. It is empty for a change of the whole
	// load balancer.
	Backend string `json:"backend,omitempty"`
	// Plane says that From and To are data planes, not states.
	Plane bool `json:"plane,omitempty"`
	// Unserved says that no data plane serves the load balancer.
	Unserved bool   `json:"unserved,omitempty"`
	From     string `json:"from,omitempty"`
	To       string `json:"to"`
	Reason   string `json:"reason,omitempty"`
}

// emit logs events and hands them to OnEvent. The caller holds no lock.
func (b *Balancer) emit(events ...LoadBalancerEvent) {
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
		b.notify(e)
	}
}

// notify hands events to OnEvent. The caller holds no lock.
func (b *Balancer) notify(events ...LoadBalancerEvent) {
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
	Shortages     []Shortage           `json:"shortages,omitempty"`
}

// LoadBalancerStatus is one load balancer in a Status.
type LoadBalancerStatus struct {
	Name      string           `json:"name"`
	Frontends []netip.AddrPort `json:"frontends"`
	Scheduler Scheduler        `json:"scheduler"`
	// Plane is the data plane that serves now; empty if none does yet. Reason
	// says why it was chosen, Refused why the preferred ones were not.
	Plane   PlaneName `json:"plane"`
	Reason  string    `json:"reason,omitempty"`
	Refused []Refusal `json:"refused,omitempty"`
	// Moving is the data plane that is about to take over.
	Moving PlaneName `json:"moving,omitempty"`
	// Error is what keeps the load balancer from being served.
	Error string `json:"error,omitempty"`
	// Repairs counts what its data plane found missing and restored.
	Repairs int `json:"repairs"`
	// Queued is the number of connections that wait for room at any backend. It
	// does not count those that wait for a certain backend.
	Queued uint64 `json:"queued"`
	// Check is how backends are checked that have no check of their own.
	Check    string          `json:"check,omitempty"`
	Backends []BackendStatus `json:"backends"`
	// Proof is whether clients are served, by trying; null where nobody tries. The balancer does not fill it in.
	Proof *ProofStatus `json:"proof,omitempty"`
}

// ProofStatus says whether a load balancer was tried as clients would use it, in the data plane that serves now.
type ProofStatus struct {
	State ProofState `json:"state"`
	// Reason says why it is not proved.
	Reason string `json:"reason,omitempty"`
	// Last is when a trial last succeeded, and By is who tried; null if none did.
	Last *time.Time `json:"last"`
	By   string     `json:"by,omitempty"`
	// Failures counts the trials that failed, by what came back: refused, unreachable, silent.
	Failures map[string]uint64 `json:"failures,omitempty"`
	// Local is the same for clients on this node itself.
	Local *ProofStatus `json:"local,omitempty"`
}

// A ProofState is what trials have shown.
type ProofState string

// The states. NotTried says nothing about clients.
const (
	Proved   ProofState = "proved"
	Unproved ProofState = "unproved"
	NotTried ProofState = "not tried"
)

// BackendStatus is one backend in a LoadBalancerStatus.
type BackendStatus struct {
	Name string `json:"name"`
	// Address is empty for a server by name of which no address is known.
	Address netip.AddrPort `json:"address"`
	Weight  int            `json:"weight"`
	State   BackendState   `json:"state"`
	Since   time.Time      `json:"since"`
	Reason  string         `json:"reason,omitempty"`
	Backup  bool           `json:"backup,omitempty"`
	// Disabled means that the configuration, or an order, keeps it out.
	Disabled bool `json:"disabled,omitempty"`
	// Override is what the operator ordered, beyond the configuration.
	Override string `json:"order,omitempty"`
	// Check is how the backend is checked, if that is not as the load balancer says.
	Check string `json:"check,omitempty"`
	// LastCheck is null until a check has ended.
	LastCheck *time.Time `json:"lastCheck"`
	LatencyMS float64    `json:"latencyMs"`
	// PassedOver is why the data plane gives the backend no new connections although
	// its checks say that it could take them.
	PassedOver string `json:"passedOver,omitempty"`
	// Traffic is null where no data plane that serves the backend can count.
	Traffic *Traffic `json:"traffic"`
}

// PlaneStatus is one data plane in a Status.
type PlaneStatus struct {
	Name     PlaneName `json:"name"`
	Services int       `json:"services"`
	Repairs  int       `json:"repairs"`
	// Applied is the end of the last Apply; null if there was none.
	Applied *time.Time `json:"applied"`
	Error   string     `json:"error,omitempty"`
}

// Status is a snapshot. It shares nothing with the balancer.
func (b *Balancer) Status() Status {
	// The planes are asked before mu is taken: they have locks of their own.
	traffic := make(map[Target]Traffic)
	passedOver := make(map[PlaneName]map[Target]string)
	for _, a := range b.appliers {
		if p, ok := a.plane.(Selective); ok {
			passedOver[a.plane.Name()] = p.PassedOver()
		}
		if m, ok := a.plane.(TrafficCounter); ok {
			for t, n := range m.Stats() {
				traffic[t] = traffic[t].Add(n)
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Status{LoadBalancers: b.loadBalancers(traffic, passedOver), Planes: []PlaneStatus{}}
	s.Shortages = b.cfg.Shortages.List()
	for _, a := range b.appliers {
		p := PlaneStatus{Name: a.plane.Name(), Services: a.last, Repairs: a.repaired, Applied: timeOrNil(a.at)}
		if a.err != nil && a.applied {
			p.Error = a.err.Error()
		}
		s.Planes = append(s.Planes, p)
	}
	return s
}

// Health is what Status says of the load balancers, without what only the planes
// know. It asks no kernel, so it may be called often.
func (b *Balancer) Health() []LoadBalancerStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.loadBalancers(nil, nil)
}

// HealthOf is what Health says of one load balancer; false if there is none of that name.
func (b *Balancer) HealthOf(loadBalancer string) (LoadBalancerStatus, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[loadBalancer]
	if e == nil {
		return LoadBalancerStatus{}, false
	}
	return b.status(e, nil, nil), true
}

// ServedBy is the plane that serves a load balancer, or "".
func (b *Balancer) ServedBy(loadBalancer string) PlaneName {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[loadBalancer]; e != nil && e.serving != nil {
		return e.serving.plane.Name()
	}
	return ""
}

// loadBalancers is the state of all, sorted by name. The caller holds mu.
func (b *Balancer) loadBalancers(
	traffic map[Target]Traffic, passedOver map[PlaneName]map[Target]string,
) []LoadBalancerStatus {
	lbs := []LoadBalancerStatus{}
	for _, lb := range b.wanted {
		e := b.entries[lb.Name]
		if e == nil {
			e = &entry{lb: lb} // Set has just added it
		}
		lbs = append(lbs, b.status(e, traffic, passedOver))
	}
	slices.SortFunc(lbs, func(x, y LoadBalancerStatus) int { return cmp.Compare(x.Name, y.Name) })
	return lbs
}

// status is the state of one entry. The caller holds mu.
func (b *Balancer) status(
	e *entry, traffic map[Target]Traffic, passedOver map[PlaneName]map[Target]string,
) LoadBalancerStatus {
	s := LoadBalancerStatus{
		Name: e.lb.Name, Frontends: slices.Clone(e.lb.Frontends), Scheduler: e.lb.Scheduler,
		Reason: e.choice.reason, Refused: slices.Clone(e.choice.refused), Repairs: e.repaired,
		Queued: traffic[Target{LoadBalancer: e.lb.Name}].Queued, Check: e.lb.Check.String(),
		Backends: []BackendStatus{},
	}
	for _, a := range []*applier{e.serving, e.moving} {
		if a != nil && a.err != nil {
			s.Error = a.err.Error()
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
		h := r.effective(time.Now())
		override := b.overrides[t]
		be.Weight = override.weight(be.Weight)
		switch out := override.out(be); {
		case override.Out == Disable:
			h.State, h.Reason = Down, "disabled by the operator"
		case out == Disable:
			h.State, h.Reason = Down, "disabled in the configuration"
		case out == Drain:
			h.State, h.Reason = Draining, "drained by the operator"
		case h.State == Up && be.Weight == 0:
			h.State, h.Reason = Draining, "its weight is 0"
		}
		bs := BackendStatus{
			Name: be.String(), Address: be.Addr, Weight: be.Weight,
			State: BackendState(cmp.Or(string(h.State), string(Unknown))), Since: h.Since, Reason: h.Reason,
			Backup: be.Backup, Override: override.String(), Disabled: override.out(be) == Disable,
			LastCheck: timeOrNil(r.Checked), LatencyMS: float64(r.Latency.Microseconds()) / 1000,
		}
		if be.Check != nil {
			bs.Check = be.Check.String()
		}
		if h.State == Up {
			bs.PassedOver = passedOver[s.Plane][t]
		}
		if n, ok := traffic[t]; ok {
			bs.Traffic = &n
		}
		s.Backends = append(s.Backends, bs)
	}
	for _, m := range e.lb.Missing {
		s.Backends = append(s.Backends, BackendStatus{Name: m.Name, State: Down, Reason: m.Reason})
	}
	return s
}

// timeOrNil is t, or nil if it is zero.
func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
