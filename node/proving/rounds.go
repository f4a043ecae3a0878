package proving

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"appliance/balancer"
	"appliance/proof"
	"appliance/raft"
	"appliance/status"
)

// Run tries this node's load balancers until ctx ends.
func (t *Trials) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var next, disturbed time.Time // rounds
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			select {
			case <-look.C: // rounds that follow each other must not put it off
				t.lookAround()
			default:
			}
		case <-look.C:
			if !t.lookAround() {
				continue
			}
		case <-t.disturb:
			// All of a transaction's rules are in force; others may follow it.
			now := time.Now()
			if now.Sub(disturbed) > proveQuiet {
				t.refresh()
			}
			at := now.Add(max(proveSoon/4, disturbed.Add(proveDisturbed).Sub(now)))
			if at.Before(next) {
				next, disturbed = at, at
				timer.Reset(time.Until(at))
			}
			continue
		case <-t.kick:
			// Rules that have just been applied, and a second change right after it.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(proveSoon / 4):
			}
		}
		pause := proveStandby
		if t.cfg.Active() {
			pause = proveEvery
		}
		begun := time.Now()
		hurry := t.round(ctx)
		pause = time.Duration(float64(pause) * (0.9 + 0.2*rand.Float64()))
		if hurry {
			// A trial that nobody has answered has taken longer.
			pause = max(0, time.Until(begun.Add(proveSoon)))
		}
		next = time.Now().Add(pause)
		timer.Reset(pause)
	}
}

// refresh has all load balancers tried as if their planes were new.
func (t *Trials) refresh() {
	lbs := t.cfg.LoadBalancers()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, lb := range lbs {
		t.fresh[lb.Name] = true
	}
}

// A candidate is a load balancer to try now.
type candidate struct {
	balancer.LoadBalancerStatus
	subject proof.Subject
	trials  []proof.Trial
	isNews  bool // it is not known yet whether it is proved
}

// round tries some of the load balancers, and says whether the next round should come soon.
func (t *Trials) round(ctx context.Context) (hurry bool) {
	cs, more := t.candidates()
	hurry = more
	peers := t.peers()
	askers := t.nextAskers(peers, slices.ContainsFunc(cs, func(c candidate) bool { return c.isNews }))
	var asking sync.WaitGroup
	asking.Go(func() {
		for _, c := range cs {
			t.tryHere(ctx, c)
		}
	})
	before := make([]proof.Entry, len(cs))
	for i, c := range cs {
		before[i] = t.book.Entry(c.subject)
		if len(askers) == 0 {
			t.setUntried(c.Name, "nobody to ask: no other node of the group is in reach")
		}
	}
	for _, o := range askers {
		asking.Go(func() { t.tryBy(ctx, cs, o, len(peers) > 1) })
	}
	asking.Wait()
	if ctx.Err() != nil {
		return false
	}
	changed := false
	for i, c := range cs {
		now := t.book.Entry(c.subject)
		// A first failure may have a cause that is seen at once, such as a server that listens elsewhere.
		changed = changed || now.Unproved != before[i].Unproved || !now.Since.IsZero() && before[i].Since.IsZero()
		local := t.local.Entry(c.subject)
		hurry = hurry || !now.Since.IsZero() && !now.Unproved || !local.Since.IsZero() && !local.Unproved
		if now.Unproved != before[i].Unproved {
			t.tell(c, now)
		}
	}
	if changed {
		t.cfg.Reconsider()
	}
	return hurry
}

// tryBy has a peer try the load balancers.
func (t *Trials) tryBy(ctx context.Context, cs []candidate, asker raft.PeerStatus, others bool) {
	var asked []candidate
	var trials []proof.Trial
	for _, c := range cs {
		if why := t.keptOut(c, asker); why != "" {
			t.setUntried(c.Name, why)
			continue
		}
		asked, trials = append(asked, c), append(trials, c.trials...)
	}
	begun := time.Now()
	findings, err := t.ask(ctx, asker, trials)
	if ctx.Err() != nil {
		return
	}
	for _, c := range asked {
		if err != nil {
			t.setUntried(c.Name, fmt.Sprintf("%s cannot try: %v", asker.ID, err))
			continue
		}
		t.setUntried(c.Name, "")
		of := slices.DeleteFunc(slices.Clone(findings), func(f proof.TrialResult) bool {
			return !slices.Contains(c.Frontends, f.Frontend)
		})
		if len(of) > 0 && t.isStill(c) {
			t.note(&t.book, c, asker.ID, others, begun, of)
		}
	}
}

// isStill says whether the plane that was tried serves still.
func (t *Trials) isStill(c candidate) bool { return t.cfg.ServedBy(c.Name) == c.Plane }

func (t *Trials) note(book *proof.Book, c candidate, by string, others bool, begun time.Time,
	of []proof.TrialResult) {
	book.Note(c.subject, proof.Trying{
		Begun: begun, At: time.Now(), By: by, Others: others, Findings: of,
		Settled: func(since time.Time) bool { return t.cfg.Settled(c.Name, since) },
		Hint:    func(r proof.Result) string { return t.hint(c, r) },
	})
}

// hint is the cause of a result if that is known, or what most often causes it in a plane.
func (t *Trials) hint(c candidate, r proof.Result) string {
	plane := c.Plane
	if plane == balancer.Direct {
		// Also where nothing comes back: what no node takes goes round them all, and that is metered.
		for _, lb := range t.cfg.LoadBalancers() {
			if lb.Name != c.Name {
				continue
			}
			if why := t.elsewhere(lb); why != "" {
				return why
			}
		}
	}
	switch {
	case r == proof.Refused && plane == balancer.Direct:
		return "the server does not take the virtual address; have it listen on all addresses"
	case r == proof.Refused:
		return "a rule of this host may reject it"
	case plane == balancer.NFTables, plane == balancer.IPVS:
		return "this host may drop what it should forward; look for a forward chain with policy drop"
	case plane == balancer.UserSpace:
		return "this host may drop what comes in; look at its firewall's input chain"
	}
	return "this host or the network may drop it; look at the firewall's input chain"
}

// tell logs and notes what the trials have shown.
func (t *Trials) tell(c candidate, e proof.Entry) {
	ev := status.Event{Time: time.Now(), Kind: status.OfService, Subject: c.Name, What: "is proved to serve clients again"}
	if e.Unproved {
		ev.Bad, ev.What, ev.Reason = true, "does not serve clients by data plane "+string(c.Plane), e.Why
		t.cfg.Log.Warn("clients of the load balancer are not served", "loadBalancer", c.Name, "plane", c.Plane,
			"reason", e.Why)
	} else {
		t.cfg.Log.Info("clients of the load balancer are served again", "loadBalancer", c.Name, "plane", c.Plane)
	}
	t.cfg.Note(ev)
}

// tryHere tries a load balancer as a client on this node would.
func (t *Trials) tryHere(ctx context.Context, c candidate) {
	begun := time.Now()
	findings, err := t.cfg.Here(ctx, c.trials)
	if err != nil {
		t.cfg.Log.Debug("clients on this node cannot be tried", "error", err)
		return
	}
	if t.isStill(c) {
		t.note(&t.local, c, t.cfg.Self, false, begun, findings)
	}
}

// candidates are the load balancers to try now: those with news first, then the others in turn. More says that some
// with news have to wait for the next round.
func (t *Trials) candidates() (cs []candidate, more bool) {
	names := make(map[string]bool)
	var news, rest []candidate
	t.mu.Lock()
	fresh := t.fresh
	t.mu.Unlock()
	for _, lb := range t.cfg.Health() {
		names[lb.Name] = true
		c := candidate{LoadBalancerStatus: lb, subject: proof.Subject{LoadBalancer: lb.Name, Plane: string(lb.Plane)}}
		up := 0
		for _, be := range lb.Backends {
			if be.State == balancer.Up {
				up++
			}
		}
		if lb.Plane == "" || lb.Moving != "" || up == 0 {
			continue // clients are refused, as status says
		}
		entry := t.book.Entry(c.subject)
		isNews := entry.Proved.IsZero() || !entry.Since.IsZero()
		count := 1
		t.mu.Lock()
		isFresh := fresh[lb.Name]
		t.mu.Unlock()
		if (isNews || isFresh) && lb.Plane != balancer.Direct && lb.Plane != balancer.UserSpace {
			count = min(2*up, proof.MaxCount) // to meet each backend
		}
		for _, f := range lb.Frontends {
			if slices.Contains(t.cfg.VIPs, f.Addr()) {
				c.trials = append(c.trials, proof.Trial{Frontend: f, Count: count})
			}
		}
		switch {
		case len(c.trials) == 0:
			t.setUntried(lb.Name, "it has no virtual address")
		case isFresh || isNews && !entry.Unproved:
			c.isNews = true
			news = append(news, c)
		default:
			rest = append(rest, c)
		}
	}
	t.book.Keep(names)
	t.local.Keep(names)
	t.mu.Lock()
	defer t.mu.Unlock()
	more = len(news) > perQuestion
	cs = news[:min(len(news), perQuestion)]
	for range min(perQuestion-len(cs), len(rest)) {
		t.next = (t.next + 1) % len(rest)
		cs = append(cs, rest[t.next])
	}
	for _, c := range cs {
		delete(t.fresh, c.Name)
	}
	return cs, more
}

// peers are the other nodes that could try this one.
func (t *Trials) peers() (all []raft.PeerStatus) {
	if t.cfg.Peers == nil {
		return nil
	}
	members := make(map[string]bool)
	for _, o := range t.cfg.Peers() {
		members[o.ID] = true
		if !o.Self && !o.Witness && o.Connected {
			all = append(all, o)
		}
	}
	t.forget(members)
	return all
}

// nextAskers is the peer whose turn it is, or two if there is news: what one alone cannot reach proves little.
func (t *Trials) nextAskers(peers []raft.PeerStatus, news bool) (askers []raft.PeerStatus) {
	want := 1
	if news {
		want = 2
	}
	for range min(want, len(peers)) {
		t.asker = (t.asker + 1) % len(peers)
		askers = append(askers, peers[t.asker])
	}
	return askers
}

// keptOut says why a peer may not connect to a load balancer, or "".
func (t *Trials) keptOut(c candidate, asker raft.PeerStatus) string {
	for _, lb := range t.cfg.LoadBalancers() {
		if lb.Name != c.Name {
			continue
		}
		for _, a := range append(asker.Addrs(), asker.OnLink...) {
			if !lb.ConnOptions.Admits(a) {
				return fmt.Sprintf("not possible from %s: allow and deny keep out its address %s", asker.ID, a)
			}
		}
	}
	return ""
}

func (t *Trials) setUntried(lb, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if why == "" {
		delete(t.untried, lb)
	} else {
		t.untried[lb] = why
	}
}
