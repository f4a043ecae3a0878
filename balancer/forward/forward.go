package forward

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/connlog"
)

// A PortRedirector redirects connections from one address to another on this host, those
// that arrive and those of local clients. The socket there is transparent. Redirect makes
// the redirections exactly those of to, whatever they were. repaired counts those of the
// last call that somebody else has removed since.
type PortRedirector interface {
	Redirect(ctx context.Context, to map[netip.AddrPort]netip.AddrPort) (repaired int, err error)
}

// Config is what a Forwarder needs.
type Config struct {
	// Redirector lets the forwarder share a frontend's port with a program that
	// listens on every address. Without one it listens on the frontend itself, as
	// it always does on loopback and unspecified frontends.
	Redirector PortRedirector
	// Takeover has a loopback frontend on which another program listens served by a redirection, instead of not at all:
	// that program is to be replaced. It keeps the connections that it has.
	Takeover bool
	// Report, if set, gets each dial that failed or was slow.
	Report Reporter
	// Log, if set, gets a line for each connection that has ended of load balancers with a log. It must not block.
	Log func(line string)
	// Unlogged, if set, is called for each line that a load balancer's LogRate leaves no room for. It must not block.
	Unlogged func()
	// Shortages takes what this host is short of; nil means that only the log of
	// slog.Default() does.
	Shortages *balancer.Shortages
	// Files is how many files clients' connections may hold; zero means no limit.
	Files int
	// Loops is how many threads move connections; zero means GOMAXPROCS, at most
	// maxLoops. While a loop waits for events it occupies one of the Go scheduler's
	// Ps, and to take that back costs time: a program that needs speed raises
	// GOMAXPROCS by the number of loops.
	Loops int
}

// A Forwarder is the data plane userspace.
type Forwarder struct {
	redirector PortRedirector
	takeover   bool
	report     Reporter
	log        func(line string)
	unlogged   func()
	shortages  *balancer.Shortages
	files      fileBudget
	count      int // of loops
	pools      *pools

	loops   []*loop        // started with the first service, and never replaced
	running sync.WaitGroup // the loops
	conns   sync.WaitGroup // grows only while there are acceptors
	drains  sync.WaitGroup

	applying sync.Mutex // held by Apply, and while listeners are closed
	draining bool       // guarded by applying: nothing listens any more
	closed   bool       // guarded by applying

	mu       sync.Mutex // guards what is below; never held for long
	services map[netip.AddrPort]*service
	retired  []*service                  // without listener, but with open connections
	samplers map[string]*connlog.Sampler // by load balancer: one for all of its frontends
}

var (
	_ balancer.Plane          = (*Forwarder)(nil)
	_ balancer.TrafficCounter = (*Forwarder)(nil)
)

// New makes a Forwarder that serves nothing yet.
func New(cfg Config) *Forwarder {
	f := &Forwarder{
		redirector: cfg.Redirector, takeover: cfg.Takeover, report: cfg.Report, log: cfg.Log,
		unlogged: cfg.Unlogged, shortages: cfg.Shortages,
		count: cfg.Loops, services: make(map[netip.AddrPort]*service), samplers: make(map[string]*connlog.Sampler),
	}
	if f.unlogged == nil {
		f.unlogged = func() {}
	}
	f.files.most = int64(cfg.Files)
	f.pools = newPools(&f.files)
	if f.count <= 0 {
		f.count = min(runtime.GOMAXPROCS(0), maxLoops)
	}
	if f.shortages == nil {
		f.shortages = new(balancer.Shortages)
	}
	if f.report == nil {
		f.report = func(balancer.Target, error) {}
	}
	return f
}

// Name implements balancer.Plane.
func (f *Forwarder) Name() balancer.PlaneName { return balancer.UserSpace }

// Usable implements balancer.Plane. User space can always forward.
func (f *Forwarder) Usable(_ context.Context, lb balancer.LoadBalancer) error {
	_, err := newScheduler(lb.Scheduler)
	return err
}

// Apply implements balancer.Plane. A frontend that is served already keeps its
// listener. The open connections of a frontend that leaves go on, because it may have
// moved to another data plane: they end by themselves, or with Close.
func (f *Forwarder) Apply(ctx context.Context, services []balancer.Service) (repaired int, err error) {
	f.applying.Lock()
	defer f.applying.Unlock()
	if f.closed {
		return 0, fmt.Errorf("user-space data plane: %w", net.ErrClosed)
	}
	if f.draining {
		return 0, f.updateDraining(services)
	}
	var errs []error
	want := make(map[netip.AddrPort]bool)
	redirect := make(map[netip.AddrPort]netip.AddrPort)
	for _, w := range services {
		if want[w.Frontend] {
			errs = append(errs, fmt.Errorf("frontend %s: there are two services for it: remove one", w.Frontend))
			continue
		}
		want[w.Frontend] = true
		s, err := f.serve(w)
		if err != nil {
			errs = append(errs, err)
		}
		if s != nil && (s.besides || f.redirected(w.Frontend)) {
			redirect[w.Frontend] = s.address()
		}
	}
	f.mu.Lock()
	var leaving []*service
	for frontend, s := range f.services {
		if !want[frontend] {
			delete(f.services, frontend)
			leaving = append(leaving, s)
		}
	}
	f.retired = append(slices.DeleteFunc(f.retired, (*service).idle), leaving...)
	f.mu.Unlock()

	// Clients are redirected elsewhere before the listener is closed.
	if f.redirector != nil {
		repaired, err = f.redirector.Redirect(ctx, redirect)
		if err != nil {
			errs = append(errs, fmt.Errorf("redirect to user space: %w", err))
		}
	}
	for _, s := range leaving {
		s.stop()
	}
	return repaired, errors.Join(errs...)
}

// updateDraining tells the draining services which of their backends are left. Only
// Apply calls it.
func (f *Forwarder) updateDraining(services []balancer.Service) error {
	var errs []error
	for _, w := range services {
		f.mu.Lock()
		s := f.services[w.Frontend]
		f.mu.Unlock()
		if s != nil {
			errs = append(errs, s.update(w))
		}
	}
	return errors.Join(errs...)
}

// redirected reports whether clients reach frontend through another port.
func (f *Forwarder) redirected(frontend netip.AddrPort) bool {
	return f.redirector != nil && !frontend.Addr().IsLoopback() && !frontend.Addr().IsUnspecified()
}

// serve makes one frontend's service what it should be. Only Apply calls it.
func (f *Forwarder) serve(w balancer.Service) (*service, error) {
	f.mu.Lock()
	s := f.services[w.Frontend]
	f.mu.Unlock()
	if s != nil {
		return s, s.update(w)
	}
	at := w.Frontend
	if f.redirected(at) {
		at = netip.AddrPortFrom(at.Addr(), 0) // the kernel chooses a free port
	}
	if err := f.startLoops(); err != nil {
		return nil, fmt.Errorf("load balancer %s: %w", w.LoadBalancer, err)
	}
	s = &service{f: f, frontend: w.Frontend, targets: make(map[balancer.Target]*target)}
	// The table must be there before the first client.
	if err := s.update(w); err != nil {
		return nil, err
	}
	var err error
	s.listener, err = listen(at, f.redirected(w.Frontend))
	if errors.Is(err, unix.EADDRINUSE) && f.takeover && f.redirector != nil && at.Addr().IsLoopback() {
		s.besides = true
		s.listener, err = listen(netip.AddrPortFrom(at.Addr(), 0), true)
	}
	if err != nil {
		return nil, fmt.Errorf("load balancer %s: %w", w.LoadBalancer, err)
	}
	for _, l := range f.loops {
		s.acceptors = append(s.acceptors, &acceptor{loop: l, service: s})
	}
	f.mu.Lock()
	f.services[w.Frontend] = s
	f.mu.Unlock()
	for _, a := range s.acceptors {
		a.loop.post(a.open)
	}
	return s, nil
}

// maxLoops bounds the default: so many loops move more traffic than most networks
// carry.
const maxLoops = 8

// startLoops starts the loops, once. Only Apply calls it.
func (f *Forwarder) startLoops() error {
	if f.loops != nil {
		return nil
	}
	var loops []*loop
	for range f.count {
		l, err := newLoop(f)
		if err != nil {
			for _, l := range loops {
				l.close()
			}
			return fmt.Errorf("wait for sockets by epoll: %w", err)
		}
		loops = append(loops, l)
	}
	f.loops = loops
	for _, l := range loops {
		f.running.Go(l.run)
	}
	return nil
}

// onLoops makes each loop call fn, and returns when all have.
func (f *Forwarder) onLoops(fn func(*loop)) {
	var all sync.WaitGroup
	for _, l := range f.loops {
		all.Add(1)
		l.post(func() {
			defer all.Done()
			fn(l)
		})
	}
	all.Wait()
}

// update replaces the table and resets the connections of backends that are gone.
func (s *service) update(w balancer.Service) error {
	h := w.ConnOptions
	next := &table{proxies: make(map[*target]string),
		loadBalancer: w.LoadBalancer, name: w.Scheduler, options: h, filters: len(h.Allow)+len(h.Deny) > 0,
		dialTimeout: int64(w.ConnectTimeout), tries: 1 + h.Retries,
	}
	if next.dialTimeout <= 0 {
		next.dialTimeout = int64(balancer.DefaultConnectTimeout)
	}
	switch {
	case h.Retries == 0:
		next.tries = 1 + balancer.DefaultRetries
	case h.Retries < 0:
		next.tries = 1
	}
	now := s.table.Load()
	if now != nil && now.name == w.Scheduler {
		next.scheduler = now.scheduler // which remembers whose turn it is
	} else {
		var err error
		if next.scheduler, err = newScheduler(w.Scheduler); err != nil {
			return fmt.Errorf("load balancer %s: %w", w.LoadBalancer, err)
		}
	}
	switch {
	case h.Persistence <= 0:
	case now != nil && now.persistence != nil:
		next.persistence = now.persistence
		next.persistence.setSpan(h.Persistence)
	default:
		next.persistence = newPersistence(h.Persistence)
	}
	// kept is by address, so that a load balancer may change its name.
	kept := make(map[netip.AddrPort]bool)
	for _, b := range slices.Concat(w.Backends, w.Draining) {
		kept[b.Addr] = true
	}
	served := make(map[*target]bool)
	if now != nil {
		for _, old := range now.slots {
			served[old.target] = old.weight > 0
		}
	}
	at := nanotime()
	left := false
	s.f.mu.Lock()
	if h.Log != "" {
		next.sampler = s.f.sampler(w.LoadBalancer)
	}
	for _, b := range w.Backends {
		t := s.target(balancer.Target{LoadBalancer: w.LoadBalancer, Backend: b.Addr})
		// The first backends need no slow start: no other one has the load.
		if now != nil && !served[t] {
			t.since.Store(at)
		}
		if proxy := cmp.Or(b.SendProxy, h.SendProxy); proxy != "" && proxy != balancer.ProxyOff {
			next.proxies[t] = proxy
		}
		next.slots = append(next.slots, slot{t, b.Name, b.Weight, b.MaxConn, b.MaxQueue, int64(b.SlowStart),
			w.FollowsChecks(b)})
	}
	// A target that stays must be usable before the table names it. One that leaves
	// must be out of the table before its connections are reset.
	for id, t := range s.targets {
		if kept[id.Backend] {
			t.gone.Store(false)
		}
	}
	s.table.Store(next)
	for id, t := range s.targets {
		if !kept[id.Backend] {
			left = !t.gone.Swap(true) || left
		}
	}
	s.f.mu.Unlock()
	if left {
		s.f.onLoops((*loop).resetGone)
	}
	if s.queue.waiting.Load() > 0 {
		s.admitWaiting()
	}
	s.reopen()
	return nil
}

// resetGone resets the connections whose target is gone.
func (l *loop) resetGone() {
	l.each(func(c *conn) {
		if c.state == relaying && c.target.gone.Load() {
			c.abort(endGone)
		}
	})
}

// target is the target with that identity. It keeps its counters however often it
// leaves. The caller holds Forwarder.mu.
func (s *service) target(id balancer.Target) *target {
	t := s.targets[id]
	if t == nil {
		t = newTarget(id)
		s.targets[id] = t
	}
	return t
}

// idle reports whether the service has no connection left.
func (s *service) idle() bool {
	for _, t := range s.targets {
		if t.open.Load() > 0 {
			return false
		}
	}
	return true
}

// Stats implements balancer.TrafficCounter.
func (f *Forwarder) Stats() map[balancer.Target]balancer.Traffic {
	f.mu.Lock()
	defer f.mu.Unlock()
	stats := make(map[balancer.Target]balancer.Traffic)
	now := nanotime()
	add := func(s *service) {
		for _, t := range s.targets {
			stats[t.id] = stats[t.id].Add(t.traffic())
		}
		s.addCurrent(now, stats)
	}
	for _, s := range f.services {
		add(s)
	}
	for _, s := range f.retired {
		add(s)
	}
	return stats
}

// addCurrent adds the current state: slow starts, and waiting connections.
func (s *service) addCurrent(now int64, stats map[balancer.Target]balancer.Traffic) {
	tb := s.table.Load()
	for i := range tb.slots {
		slot := &tb.slots[i]
		if share := slot.share(now); share < fullShare && slot.weight > 0 {
			stats[slot.target.id] = stats[slot.target.id].Add(balancer.Traffic{SlowStart: float64(share) / fullShare})
		}
	}
	if s.queue.waiting.Load() == 0 {
		return
	}
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	for _, t := range s.queue.waiters {
		id := balancer.Target{LoadBalancer: tb.loadBalancer}
		if t.want != nil {
			id = t.want.id
		}
		stats[id] = stats[id].Add(balancer.Traffic{Queued: 1})
	}
}

// Drain stops listening and returns when every connection has ended, or with the cause
// of ctx. Close resets what is left then. Apply may be called meanwhile: it still resets
// the connections of a dead backend.
func (f *Forwarder) Drain(ctx context.Context) error {
	f.stopListening(false)
	done := make(chan struct{})
	// It ends with the last connection, at the latest when Close resets all.
	f.drains.Go(func() {
		f.conns.Wait()
		close(done)
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close implements balancer.Plane. It resets open connections, and returns when nothing
// of the forwarder runs any more.
func (f *Forwarder) Close() error {
	f.stopListening(true)
	f.onLoops(func(l *loop) { l.each(func(c *conn) { c.abort(endStopped) }) })
	f.conns.Wait()
	f.onLoops(func(l *loop) { l.stopped = true })
	f.running.Wait()
	f.loops = nil
	f.drains.Wait()
	f.pools.close()
	if f.redirector == nil {
		return nil
	}
	// The redirections must go even if every other context has ended already.
	_, err := f.redirector.Redirect(context.Background(), nil)
	return err
}

// stopListening closes the listeners, once.
func (f *Forwarder) stopListening(closed bool) {
	f.applying.Lock()
	defer f.applying.Unlock()
	f.closed = f.closed || closed
	if f.draining {
		return
	}
	f.draining = true
	f.mu.Lock()
	all := slices.Collect(maps.Values(f.services))
	f.mu.Unlock()
	for _, s := range all {
		s.stop()
	}
}
