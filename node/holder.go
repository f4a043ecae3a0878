package node

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"appliance/arp"
	"appliance/balancer"
	"appliance/configs"
	"appliance/hook"
	"appliance/mask"
	"appliance/node/announcing"
	"appliance/raft"
	"appliance/status"
	"appliance/track"
)

// hold is a tenure: while it runs, this node answers for the VIPs. may says whether the lease runs at this moment.
func (n *node) hold(ctx context.Context, may func() bool) error {
	defer func() {
		now := time.Now()
		n.tenureEnded.Store(&now)
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := n.askFirst(ctx); err != nil {
			return err
		}
		n.tell(hook.Notice{Name: hook.Holder})
		n.setHolds(true)
		defer n.setHolds(false)
		defer n.tell(hook.Notice{Name: hook.Released})
		return n.wire.Answer(ctx, may)
	})
	g.Go(func() error { return n.noteAnswering(ctx) })
	return g.Wait()
}

// setHolds has routers told, where they are told of the holder alone, and this node tried as a new holder.
func (n *node) setHolds(is bool) {
	n.holds.Store(is)
	if is {
		n.trials.Activated()
	}
	n.reannounce()
}

// reannounce has what routers are told decided anew.
func (n *node) reannounce() {
	if n.announcer != nil {
		n.announcer.Poke()
	}
}

// openAnnouncer prepares what tells routers of the VIPs, and changes nothing.
func (n *node) openAnnouncer() error {
	cfg := n.cfg
	if !cfg.Routed() || cfg.Worker() || n.witness() {
		return nil
	}
	a := announcing.Config{
		Announce: cfg.Announce, Self: n.site.self.Addrs(), Look: n.announceView, Log: n.log,
		Changed: func() <-chan struct{} { return nil }, Note: func(e status.Event) { n.observer.Note(e) },
		CaughtUp: n.seesServers,
	}
	if n.group != nil {
		a.Changed = n.group.Changed
	}
	for _, v := range n.site.vips {
		if by := cfg.AnnouncedBy(v.Addr); by != configs.ByARP {
			a.VIPs = append(a.VIPs, announcing.RoutedVIP{Addr: v.Addr, Interface: v.Interface, By: by, Path: cfg.PathOf(v.Addr)})
		}
	}
	var err error
	if n.announcer, err = announcing.New(a); err != nil {
		return unlessMissing("announce", err)
	}
	return nil
}

// announceView is what this node knows of itself that routers have to know.
func (n *node) announceView() announcing.SelfView {
	v := announcing.SelfView{Holding: n.holds.Load(), Unserved: make(map[netip.Addr]string)}
	v.Minority = n.isHolderless()
	others, reached := 0, 0
	for _, p := range n.group.Status().Peers {
		v.Drained = v.Drained || p.Self && p.Drained
		if !p.Self {
			others++
		}
		if !p.Self && p.Connected {
			reached++
		}
	}
	v.Alone = others > 0 && reached == 0
	if verdict := n.verdict.Load(); verdict != nil {
		v.Barred = verdict.Barred
	}
	served := make(map[netip.Addr]bool)
	for _, lb := range n.balancer.Health() {
		why := n.unservedWhy(lb)
		for _, f := range lb.Frontends {
			served[f.Addr()] = true
			if why != "" && v.Unserved[f.Addr()] == "" {
				v.Unserved[f.Addr()] = why
			}
		}
	}
	for _, vip := range n.vips() {
		switch {
		case !vip.Bound:
			v.Unserved[vip.VIP] = "it is not bound here"
		case !vip.Carrier:
			v.Unserved[vip.VIP] = vip.Interface + " has no carrier"
		case vip.Fault != "":
			v.Unserved[vip.VIP] = vip.Interface + " " + vip.Fault
		case !served[vip.VIP] && n.balances(vip.VIP):
			v.Unserved[vip.VIP] = "no load balancer has it"
		}
	}
	return v
}

// balances reports whether a load balancer is for a VIP. The ports of another one are those of the host.
func (n *node) balances(vip netip.Addr) bool {
	return slices.ContainsFunc(n.state.Load().Config.LoadBalancers, func(lb configs.LoadBalancerEntry) bool {
		return !lb.BindToVIP || slices.Contains(lb.VIPs, vip)
	})
}

// seesServers reports whether all servers whose state has changed since a time take connections from here.
func (n *node) seesServers(since time.Time) bool {
	for _, lb := range n.balancer.Status().LoadBalancers {
		for _, be := range lb.Backends {
			if be.Override == "" && be.Since.After(since) && !status.TakesConnections(be) {
				return false
			}
		}
	}
	return true
}

// unservedWhy says why clients of a load balancer would not be served here, or "".
func (n *node) unservedWhy(lb balancer.LoadBalancerStatus) string {
	reason := status.NotReady{Subject: lb.Name}
	switch {
	case lb.Plane == "":
		reason.Kind, reason.Reason = status.NotServed, mask.Text(lb.Error)
	case !slices.ContainsFunc(lb.Backends, status.TakesConnections):
		reason.Kind = status.NoBackend
	case n.trials.Unserved(lb):
		reason.Kind, reason.Reason = status.NotProved, n.trials.Of(lb).Reason
	case n.trials.Pending(lb):
		reason.Kind, reason.Reason = status.NotProved, "it has not been tried yet"
	default:
		return ""
	}
	return reason.String()
}

// answeredSetting is the group's setting that says whether the group has ever answered for the VIPs: "yes", or "no"
// while another machine does.
const answeredSetting = "vips/answered"

// askAgain is the pause between two looks for another machine that answers for a VIP of a new group.
const askAgain = time.Second

// neverAnswered reports whether the group is so new that another machine may have the VIPs by right. A group that was
// known to this node when it started is not, unless it says so itself.
func (n *node) neverAnswered() bool {
	switch n.group.Settings()[answeredSetting] {
	case "":
		return !n.founded
	case "no":
		return true
	}
	return false
}

// beside reports whether a VIP that another program has on this host is left to it. A group that has answered may
// already answer again elsewhere.
func (n *node) beside() bool {
	return n.cfg.Takeover && (n.group == nil || n.group.Settings()[answeredSetting] != "yes")
}

// askFirst asks the link for another owner of the VIPs before a new group announces them for the first time, and waits
// until there is none (RFC 5227, section 2.1): whoever moves from another program to this one would have two owners
// otherwise. An established group has been asked about its VIPs by taking them, and nothing holds up its failover.
func (n *node) askFirst(ctx context.Context) error {
	defer n.taken.Store(nil)
	var told []string
	for n.neverAnswered() {
		fault, changed := n.wire.Fault()
		if fault != (arp.Fault{}) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
			continue
		}
		found, err := n.wire.Ask(ctx)
		if err != nil {
			return err
		}
		if !n.neverAnswered() {
			return nil // the log of the leader before was not applied here when this tenure began
		}
		if len(found) == 0 {
			if len(told) > 0 {
				n.log.Info("nobody else answers for the virtual addresses any more")
			}
			// Before the first announcement, so that a successor does not ask again.
			n.setAnswered(ctx, "yes")
			return nil
		}
		n.taken.Store(&found)
		if len(told) == 0 {
			n.setAnswered(ctx, "no")
		}
		for _, c := range found {
			who := fmt.Sprint(c.VIP, c.MAC)
			if slices.Contains(told, who) {
				continue
			}
			told = append(told, who)
			if c.Here {
				n.log.Info("another program has the virtual address on this host, and this new group takes over when it gives "+
					"the address up", "vip", c.VIP, "interface", c.Interface)
				continue
			}
			n.observer.Claimed(c)
			n.log.Error("another machine answers for the virtual address, and this new group leaves it alone: "+
				"stop what has it there (keepalived, kube-vip, an address set by hand), or choose another address",
				"vip", c.VIP, "mac", c.MAC, "interface", c.Interface)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(askAgain):
		}
	}
	return nil
}

// noteAnswering tells the group that it has answered for the VIPs.
func (n *node) noteAnswering(ctx context.Context) error {
	for {
		if n.group.Settings()[answeredSetting] == "yes" {
			return nil
		}
		if n.answering() && n.setAnswered(ctx, "yes") {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(askAgain):
		}
	}
}

func (n *node) answering() bool {
	return slices.ContainsFunc(n.wire.Status(), func(v arp.VIPStatus) bool { return v.Answering })
}

// setAnswered notes word within a second, or reports that it could not.
func (n *node) setAnswered(ctx context.Context, word string) bool {
	ctx, cancel := context.WithTimeout(ctx, askAgain)
	defer cancel()
	err := n.group.Propose(ctx, map[string]string{answeredSetting: word})
	if err != nil && ctx.Err() == nil {
		n.log.Debug("the group cannot note whether it answers for the virtual addresses", "error", err)
	}
	return err == nil
}

// linger says for how long the VIPs stay on lo after the node has stopped. Where the kernel moves the packets, it
// goes on moving those of open connections, and the next start finds everything as it was. User space ends with the
// process.
func (n *node) linger() time.Duration {
	if len(n.state.Load().Config.LoadBalancers) == 0 { // the host's own servers go on at the addresses
		n.lingers = true
		return n.cfg.Linger
	}
	for _, lb := range n.balancer.Health() {
		if n.cfg.Linger > 0 && lb.Plane != "" && lb.Plane != balancer.UserSpace {
			n.lingers = true
			return n.cfg.Linger
		}
	}
	return 0
}

const (
	// The group hears that a load balancer has no healthy backend here after unservedAfter, and that it has one again
	// after servedAfter. A holder gives way to a peer that serves more, so a flapping backend must not move the VIP back
	// and forth. The first is longer than the checks of two nodes are apart, which mostly see the same.
	unservedAfter = 2 * time.Second
	servedAfter   = 10 * time.Second
	fitnessEvery  = 500 * time.Millisecond
)

// tracked takes the verdict of the tracks on this node.
func (n *node) tracked(c track.Verdict) {
	n.verdict.Store(&c)
	n.reannounce()
	select {
	case n.judged <- struct{}{}:
	default:
	}
}

// followFitness tells the group how fit this node is to hold.
func (n *node) followFitness(ctx context.Context) error {
	tick := time.NewTicker(fitnessEvery)
	defer tick.Stop()
	var d damped
	var lately faultTold
	for {
		fault, changed := n.wire.Fault()
		health := n.balancer.Health()
		few := d.look(time.Now(), unserved(health, n.trials.Unserved))
		trouble := cmp.Or(n.group.Status().Trouble, n.trials.Outvoted())
		fit := fitness(cut(n.vips()), few, n.verdict.Load(), fault.String(), trouble)
		told := fit
		if n.planes.Prober != nil && !n.holds.Load() && n.planes.Prober.Meets() {
			// A holder that hands on to some of the nodes only would reset connections that the others have.
			told.Barred = cmp.Or(told.Barred, "it has just started, and the other nodes and it do not know each other yet")
		}
		n.group.SetFitness(told)
		n.group.SetServes(slices.ContainsFunc(health, func(lb balancer.LoadBalancerStatus) bool {
			return lb.Plane == balancer.UserSpace
		}))
		why := faultOf(fit, n.hasNoHolder())
		if event := lately.look(time.Now(), why != "", n.holds.Load()); event != "" {
			n.tell(hook.Notice{Name: event, Reason: mask.Text(why)})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-n.judged:
		case <-tick.C:
		}
	}
}

// nobodyHolds says why a node is of no use that is not at fault itself.
const nobodyHolds = "nobody holds; without a majority of the peers nobody may"

// isHolderless says that nobody has held for longer than an election takes.
func (n *node) isHolderless() bool {
	since := n.holderless.Load()
	return since != nil && time.Since(*since) > holderlessFor
}

// hasNoHolder says the same of a group that runs.
func (n *node) hasNoHolder() bool { return n.isHolderless() && n.group.Status().Phase == "running" }

// faultOf is why this node cannot hold as it is, or "". Servers that are down, and a lowered priority, are no fault of
// the node.
func faultOf(f raft.Fitness, nobody bool) string {
	f.Unserved, f.Lowered = 0, 0
	if nobody {
		return cmp.Or(f.String(), nobodyHolds)
	}
	return f.String()
}

// faultTold is what hooks were told of faults.
type faultTold struct {
	is    bool
	since time.Time // of the fault
}

// handoverWithin is how long a holder at fault has to hand over before its fault is told: hooks hear released first,
// and last what the node is. One that nobody can take over from holds on.
const handoverWithin = 2 * time.Second

// look returns the event to tell, or "".
func (t *faultTold) look(now time.Time, fault, holds bool) (event string) {
	switch {
	case !fault:
		if t.since = (time.Time{}); t.is {
			event = hook.Recovered
		}
		t.is = false
		return event
	case t.since.IsZero():
		t.since = now
	}
	if t.is || holds && now.Sub(t.since) < handoverWithin {
		return ""
	}
	t.is = true
	return hook.Fault
}

// holderlessFor is how long a group may have no holder before its nodes are not ready. Elections are shorter.
const holderlessFor = 2 * time.Second

// followHolder notes since when nobody holds, and whose datagrams do not arrive.
func (n *node) followHolder(ctx context.Context) error {
	tick := time.NewTicker(fitnessEvery)
	defer tick.Stop()
	quiet := make(map[string]time.Time)
	for {
		changed := n.group.Changed()
		n.noteDatagrams(quiet)
		switch now := time.Now(); {
		case n.holder(n.group.Status()) != "":
			n.holderless.Store(nil)
		case n.holderless.Load() == nil:
			n.holderless.Store(&now)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// datagramsAfter is how long a peer in reach must have sent no datagrams before that is said. A host that is short of
// processors may be late by seconds.
const datagramsAfter = 10 * time.Second

// noteDatagrams notes whose datagrams do not arrive, and logs it once for each change. quiet is since when.
func (n *node) noteDatagrams(quiet map[string]time.Time) {
	before, now := n.blocked.Load(), make(map[string]bool)
	for _, p := range n.group.Status().Peers {
		if p.Self || p.Datagrams || !p.Connected || p.Role == "" {
			delete(quiet, p.ID)
		} else if quiet[p.ID].IsZero() {
			quiet[p.ID] = time.Now()
		}
		since, isQuiet := quiet[p.ID]
		if now[p.ID] = isQuiet && time.Since(since) > datagramsAfter; now[p.ID] == (before != nil && (*before)[p.ID]) {
			continue
		}
		if now[p.ID] {
			n.log.Warn("datagrams of a peer do not arrive, so the loss of its host is noticed later; "+
				"have the firewalls of both let UDP to the peer port pass", "peer", p.ID, "port", p.Addr.Port())
		} else if p.Datagrams {
			n.log.Info("datagrams of a peer arrive again", "peer", p.ID)
		}
	}
	n.blocked.Store(&now)
}

// cut are the VIPs whose interface has no carrier or another fault, sorted. A holder hands over to a peer that clients
// can reach without waiting for a timeout. If the group's traffic goes over the same link, no peer hears of it, and the
// timeout remains.
func cut(vips []arp.VIPStatus) (addrs []netip.Addr) {
	for _, v := range vips {
		if !v.Carrier || v.Fault != "" {
			addrs = append(addrs, v.VIP)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// fitness puts together what speaks against this node as holder: load balancers without a healthy backend, the
// verdict of the tracks, a fault of a VIP's interface, and trouble with the group. A node whose disk is full can
// neither vote nor take over, so a hand-over to it would only cost answers.
func fitness(cut []netip.Addr, unserved int, tracks *track.Verdict, fault, trouble string) raft.Fitness {
	c := raft.Fitness{NoCarrier: cut, Unserved: unserved}
	if tracks != nil {
		c.Barred, c.Lowered = tracks.Barred, tracks.Lowered
	}
	c.Barred = cmp.Or(c.Barred, fault, trouble)
	return c
}

// unserved counts the load balancers without a healthy backend, once each backend has been checked, and those that
// were tried in vain.
func unserved(lbs []balancer.LoadBalancerStatus, inVain func(balancer.LoadBalancerStatus) bool) (count int) {
	for _, lb := range lbs {
		known := true
		for _, b := range lb.Backends {
			known = known && b.State != balancer.Unknown
		}
		if known && !slices.ContainsFunc(lb.Backends, status.TakesConnections) || inVain(lb) {
			count++
		}
	}
	return count
}

// A damped number follows another with a delay: soon when that grows, late when it shrinks.
type damped struct {
	value, next int
	since       time.Time // of next
}

func (d *damped) look(now time.Time, n int) int {
	if n != d.next {
		d.next, d.since = n, now
	}
	wait := unservedAfter
	if n < d.value {
		wait = servedAfter
	}
	if now.Sub(d.since) >= wait {
		d.value = n
	}
	return d.value
}
