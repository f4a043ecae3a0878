package announcing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"appliance/bfd"
	"appliance/bgp"
	"appliance/configs"
	"appliance/keyfile"
	"appliance/routes"
	"appliance/status"
)

const (
	// lookEvery is the time between two looks with no known change.
	lookEvery = 250 * time.Millisecond
	// settle is the time that routers have after a withdrawal before this node ends what serves: they choose anew and
	// program their hardware, which the fastest do within a tenth of it.
	settle = 300 * time.Millisecond
	// toldWithin bounds the wait for routers that read slowly.
	toldWithin = time.Second
	// routesEvery is the time between two looks at the kernel's routes with no known change.
	routesEvery = 2 * time.Second
)

// Config is what an Announcer depends on.
type Config struct {
	Announce configs.AnnounceSettings
	VIPs     []RoutedVIP
	// Self is this node's own address: the BGP identifier, if it is of IPv4 and none is configured.
	Self []netip.Addr
	// Look says what the node knows of itself, and Changed wakes when that may be another.
	Look    func() SelfView
	Changed func() <-chan struct{}
	// CaughtUp says whether all servers take connections from here that have changed since a time. It is asked of a node
	// that was cut off.
	CaughtUp func(since time.Time) bool
	// Note records an event.
	Note func(status.Event)
	Log  *slog.Logger
}

// A RoutedVIP is one virtual address that routers are told of.
type RoutedVIP struct {
	Addr      netip.Addr
	Interface string
	By        configs.AnnounceWay
	Path      configs.PathSettings
}

// An Announcer tells routers of the virtual addresses. New makes one.
type Announcer struct {
	cfg     Config
	speaker *bgp.Speaker // nil: none is announced by BGP
	watcher *bfd.Watcher // nil: no router is watched by BFD
	table   routes.KernelTable
	kick    chan struct{}
	absence absence // Run's alone

	mu       sync.Mutex
	accounts map[netip.Addr]account
	trouble  string // why the kernel's routes are not as they should be
}

// New reads passwords and changes nothing.
func New(cfg Config) (*Announcer, error) {
	r := cfg.Announce.Routes
	a := &Announcer{
		cfg: cfg, kick: make(chan struct{}, 1), accounts: make(map[netip.Addr]account),
		table: routes.KernelTable{Number: r.Table, Metric: r.Metric, Protocol: r.Protocol},
	}
	if !slices.ContainsFunc(cfg.VIPs, func(v RoutedVIP) bool { return v.By == configs.ByBGP }) {
		return a, nil
	}
	b := cfg.Announce.BGP
	var errs []error
	var neighbours []bgp.Neighbour
	for _, n := range b.Neighbours {
		password, err := readPassword(n.PasswordFile)
		errs = append(errs, err)
		neighbours = append(neighbours, bgp.Neighbour{
			Addr: n.Addr, AS: n.AS, Port: n.Port, Password: password, Passive: n.Passive, Hops: n.Hops,
			TTLSecurity: n.TTLSecurity,
		})
	}
	id := b.RouterID
	if i := slices.IndexFunc(cfg.Self, netip.Addr.Is4); !id.IsValid() && i >= 0 {
		id = cfg.Self[i]
	}
	if !id.IsValid() {
		errs = append(errs, errors.New("announce.bgp.routerID is missing, and this node has no IPv4 address in peers; "+
			"write four octets that no other node has, such as 10.0.0.1"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	var err error
	a.speaker, err = bgp.New(bgp.Config{
		AS: b.AS, RouterID: id, Port: b.Port, HoldTime: b.HoldTime, Neighbours: neighbours,
		NextHop: a.nextHop, OnChange: a.sessionChanged, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	var watched []bfd.Router
	for _, n := range b.Neighbours {
		if n.BFDInterval > 0 {
			watched = append(watched, bfd.Router{
				Addr: n.Addr, Interval: n.BFDInterval, Multiplier: uint8(n.BFDMultiplier), Multihop: n.Hops > 1,
			})
		}
	}
	if len(watched) > 0 {
		a.watcher = bfd.New(bfd.Config{Peers: watched, OnDown: a.speaker.BFDDown, Log: cfg.Log})
	}
	return a, nil
}

// maxPassword is TCP_MD5SIG_MAXKEYLEN of linux/tcp.h.
const maxPassword = 80

// readPassword reads the password of a session; without a file there is none.
func readPassword(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	data, err := keyfile.Read(path, keyfile.OwnerOnly)
	if err != nil {
		return "", err
	}
	password := strings.TrimRight(string(data), "\r\n")
	if password == "" || len(password) > maxPassword {
		return "", fmt.Errorf("%s has a password of %d bytes, and the kernel takes 1 to %d; write one line of that length",
			path, len(password), maxPassword)
	}
	return password, nil
}

// Check says what would keep Run from announcing, and changes nothing.
func (a *Announcer) Check(ctx context.Context) error {
	if a.speaker == nil {
		return nil
	}
	err := a.speaker.Check(ctx)
	if a.watcher != nil {
		err = errors.Join(err, a.watcher.Check(ctx))
	}
	return err
}

// Poke has the Announcer look at once.
func (a *Announcer) Poke() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// Run announces until ctx ends. Then it asks routers to prefer other paths, withdraws, and gives them time for both:
// whoever serves has to go on until it returns.
func (a *Announcer) Run(ctx context.Context) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, running := errgroup.WithContext(running)
	if a.speaker != nil {
		g.Go(func() error { return a.speaker.Run(running) })
	}
	if a.watcher != nil {
		g.Go(func() error { return a.watcher.Run(running) })
	}
	g.Go(func() error {
		defer stop()
		err := a.follow(ctx, running)
		_, gone := a.table.Keep(nil)
		return errors.Join(err, gone)
	})
	return g.Wait()
}

// follow decides until ctx ends and all is withdrawn, or running ends because something has failed.
func (a *Announcer) follow(ctx, running context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var kept time.Time
	for {
		changed := a.cfg.Changed()
		stopping := ctx.Err() != nil
		next, acted := a.look(time.Now(), stopping)
		// Where no address has a route, what an earlier configuration has left is removed once.
		if kept.IsZero() || (a.byRoutes() || a.hasTrouble()) && (acted || time.Since(kept) >= routesEvery) {
			a.keepRoutes()
			kept = time.Now()
		}
		if stopping && next.IsZero() {
			return a.settle(running)
		}
		var pending <-chan time.Time
		if !next.IsZero() {
			pending = time.After(time.Until(next))
		}
		done := ctx.Done()
		if stopping {
			done = nil
		}
		select {
		case <-running.Done():
			return nil
		case <-done:
		case <-changed:
		case <-a.kick:
		case <-pending:
		case <-tick.C:
		}
	}
}

// look decides about every virtual address, and tells the speaker. next is when to look again at the latest; acted says
// that something has changed.
func (a *Announcer) look(now time.Time, stopping bool) (next time.Time, acted bool) {
	view := a.cfg.Look()
	paths := make(map[netip.Addr]bgp.RoutePath)
	grace := a.cfg.Announce.Grace
	if stopping && !a.anybodyListens() {
		grace = 0
	}
	if a.speaker != nil {
		a.absence = a.absence.step(now, view.Alone && !a.anySession(), a.cfg.CaughtUp)
	}
	a.mu.Lock()
	var events []status.Event
	for _, v := range a.cfg.VIPs {
		was := a.accounts[v.Addr]
		decided := judge(a.cfg.Announce, view, v, stopping)
		if why := a.absence.why(); why != "" && v.By == configs.ByBGP && !decided.unable {
			decided = verdict{unable: true, why: why} // nobody hears it, or it does not know enough
		}
		is, then := was.step(now, decided, grace)
		a.accounts[v.Addr] = is
		if !then.IsZero() && (next.IsZero() || then.Before(next)) {
			next = then
		}
		if e, ok := event(v, was, is, now); ok {
			events, acted = append(events, e), true
		}
		if is.announced && v.By == configs.ByBGP {
			paths[v.Addr] = pathOf(v.Path, is)
		}
	}
	a.mu.Unlock()
	if a.speaker != nil {
		a.speaker.Set(paths)
	}
	for _, e := range events {
		a.cfg.Log.Info("virtual address "+e.What, "vip", e.Subject, "reason", e.Reason)
		a.cfg.Note(e)
	}
	return next, acted
}

// byRoutes reports whether another daemon of this host announces an address.
func (a *Announcer) byRoutes() bool {
	return slices.ContainsFunc(a.cfg.VIPs, func(v RoutedVIP) bool { return v.By == configs.ByRoutes })
}

// hasTrouble reports whether the kernel's routes were not as they should be at the last look.
func (a *Announcer) hasTrouble() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.trouble != ""
}

// anySession reports whether some router can be told.
func (a *Announcer) anySession() bool {
	return slices.ContainsFunc(a.speaker.Status(), func(s bgp.SessionStatus) bool { return s.State == "established" })
}

// anybodyListens reports whether some router was told of something.
func (a *Announcer) anybodyListens() bool {
	if a.byRoutes() {
		return true // another daemon tells them
	}
	return slices.ContainsFunc(a.speaker.Status(), func(s bgp.SessionStatus) bool { return len(s.Announced) > 0 })
}

func event(v RoutedVIP, was, is account, now time.Time) (e status.Event, changed bool) {
	e = status.Event{Time: now, Kind: status.OfRoute, Subject: v.Addr.String(), Reason: is.why}
	switch {
	case is.announced && is.standby && (!was.announced || !was.standby):
		e.What = "is announced with a longer path"
	case is.announced && (!was.announced || was.standby && !is.standby):
		e.What = "is announced by " + string(v.By)
	case is.leaving && !was.leaving:
		e.What = "is about to be withdrawn"
	case was.announced && !is.announced:
		e.What = "is withdrawn"
	case was.leaving && !is.leaving:
		e.What = "stays announced"
	default:
		return e, false
	}
	return e, true
}

// pathOf is how an address is announced. One more AS number is enough for a standby, and among neighbours of the same
// AS one less preference: routers compare both before all else that this node tells them (RFC 4271, section 9.1).
func pathOf(p configs.PathSettings, c account) bgp.RoutePath {
	path := bgp.RoutePath{
		Communities: p.Communities, LargeCommunities: p.LargeCommunities, MED: p.MED, LocalPref: p.LocalPref,
		Prepend: p.Prepend, Leaving: c.leaving,
	}
	if c.standby {
		pref := uint32(bgp.DefaultLocalPref)
		if p.LocalPref != nil {
			pref = *p.LocalPref
		}
		path.Prepend++
		path.LocalPref = new(max(pref, 1) - 1)
	}
	return path
}

// keepRoutes brings the kernel's routes in line. One that leaves goes at once: no daemon can be asked to prefer others.
func (a *Announcer) keepRoutes() {
	on := make(map[netip.Addr]string)
	a.mu.Lock()
	for _, v := range a.cfg.VIPs {
		if c := a.accounts[v.Addr]; v.By == configs.ByRoutes && c.announced && !c.leaving {
			on[v.Addr] = v.Interface
		}
	}
	before := a.trouble
	a.mu.Unlock()
	text := ""
	if _, err := a.table.Keep(on); err != nil {
		text = err.Error()
	}
	if text != "" && text != before {
		a.cfg.Log.Error("the routes for other daemons are not as they should be, retrying", "error", text)
	} else if text == "" && before != "" {
		a.cfg.Log.Info("the routes for other daemons are as they should be again")
	}
	a.mu.Lock()
	a.trouble = text
	a.mu.Unlock()
}

// settle waits until routers know that nothing is announced any more, and have acted on it.
func (a *Announcer) settle(running context.Context) error {
	if !a.everAnnounced() {
		return nil
	}
	end := time.Now().Add(toldWithin)
	for a.speaker != nil && !a.speaker.Told() && time.Now().Before(end) {
		select {
		case <-running.Done():
			return nil
		case <-time.After(5 * time.Millisecond):
		}
	}
	select {
	case <-running.Done():
	case <-time.After(settle):
	}
	return nil
}

// everAnnounced reports whether a virtual address was given up because the node stops, and not before.
func (a *Announcer) everAnnounced() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.accounts {
		if !c.since.IsZero() {
			return true
		}
	}
	return false
}

// sessionChanged notes sessions that begin and end.
func (a *Announcer) sessionChanged(c bgp.SessionChange) {
	e := status.Event{
		Time: time.Now(), Kind: status.OfRoute, Subject: "router " + c.Neighbour.String(), Reason: c.Reason,
		What: "BGP session is established",
	}
	if !c.Established {
		e.What, e.Bad, e.Took = "BGP session has ended", true, c.Lasted
	}
	a.cfg.Note(e)
}

// Status is what is told to whom, and why not.
func (a *Announcer) Status() *status.AnnounceView {
	out := &status.AnnounceView{Who: "all", Addresses: []status.AnnouncedView{}, Sessions: []status.SessionView{}}
	if a.cfg.Announce.HolderOnly {
		out.Who = "holder"
	}
	a.mu.Lock()
	for _, v := range a.cfg.VIPs {
		c := a.accounts[v.Addr]
		one := status.AnnouncedView{Address: v.Addr, By: string(v.By), Announced: c.announced, Leaving: c.leaving,
			Standby: c.standby}
		if !c.announced || c.leaving || c.standby {
			one.Reason = cmp.Or(c.why, "not decided yet")
		}
		if v.By == configs.ByRoutes && c.announced {
			one.Reason = a.trouble
		}
		out.Addresses = append(out.Addresses, one)
	}
	a.mu.Unlock()
	if a.speaker == nil {
		return out
	}
	watched := make(map[netip.Addr]*status.BFDView)
	if a.watcher != nil {
		for _, s := range a.watcher.Status() {
			watched[s.Addr] = &status.BFDView{State: s.State.String(), Since: s.Since, Detection: s.Detection, Lost: s.Lost}
		}
	}
	for _, s := range a.speaker.Status() {
		one := status.SessionView{
			Neighbour: s.Neighbour, AS: s.AS, State: s.State, Since: s.Since, Reason: s.Why, RouterID: s.RouterID,
			Local: s.Local, HoldTime: s.HoldTime, Announced: s.Announced, NextHops: s.NextHops, Ended: s.Flaps, Sent: s.Sent,
			Received: s.Received, BFD: watched[s.Neighbour],
		}
		if s.State == "established" {
			one.Reason = ""
		}
		for _, vip := range slices.SortedFunc(maps.Keys(s.Untold), netip.Addr.Compare) {
			one.Untold = append(one.Untold, vip.String()+": "+s.Untold[vip])
		}
		out.Sessions = append(out.Sessions, one)
	}
	return out
}
