package raft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/founding"
	"appliance/raft/peerport"
	"appliance/raft/settings"
	"appliance/raft/store"
)

const (
	// askTimeout bounds one round of asking the listed peers. A host that is down does not answer at all. A first
	// question takes three round trips.
	askTimeout = 1500 * time.Millisecond
	// askPause lies between two rounds.
	askPause = 200 * time.Millisecond
)

// findGroup brings a peer without state into a group, an existing or a new one.
func (g *Group) findGroup(ctx context.Context) error {
	if g.cfg.SingleNode {
		return g.bootstrap(g.cfg.Peers, "single node")
	}
	said := ""
	began := time.Now()
	for {
		strangers := g.learnRoster(ctx)
		answers := g.ask(ctx)
		v := g.patiently(decide(g.hello(), answers), len(answers), time.Since(began))
		if err := ctx.Err(); err != nil {
			return err
		}
		twice := g.doubled()
		if twice != "" {
			v = verdict{askAgain, twice} // who says that has not told whether there is a group
		}
		if v.why != said {
			said = v.why
			g.log.Info("looking for the group", "because", v.why, "unanswered", append(strangers, g.problems()...))
		}
		switch {
		case v.do == bootstrapAlone && g.intend(intentAlone):
			if err := g.store.SetOwn(store.FoundedKey, store.FoundedAlone); err != nil {
				return fmt.Errorf("data directory %s: %w; free some space, and start again", g.cfg.DataDir, err)
			}
			return g.bootstrap([]Peer{g.cfg.self()}, v.why)
		case v.do == bootstrapTogether && g.intend(intentTogether):
			return g.bootstrap(g.cfg.Peers, v.why)
		case v.do == bootstrapAlone, v.do == bootstrapTogether:
			continue // the intent is new: ask once more before acting on it
		}
		g.intend(undecided)
		if twice != "" {
			g.setPhase(waitsForTwin)
		} else {
			g.setPhase("looking for the group")
		}
		if v.do == join {
			err := g.join(ctx)
			if err == nil {
				return nil
			}
			g.setRefused(err.Error())
			if err.Error() != said {
				said = err.Error()
				g.log.Warn("cannot join the group yet", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(askPause):
		}
	}
}

// patiently has a peer that would found a group alone wait for those that do not answer: founding.Patience.
func (g *Group) patiently(v verdict, answers int, asked time.Duration) verdict {
	if v.do != bootstrapAlone {
		return v
	}
	refused := 0
	for _, l := range g.links.all() {
		if errors.Is(l.State().Problem, syscall.ECONNREFUSED) {
			refused++
		}
	}
	if !founding.Waits(len(g.cfg.Peers), answers+1, refused, asked, g.cfg.foundingPatience) {
		return v
	}
	return verdict{askAgain, fmt.Sprintf("startAsLeader, and no majority of the listed peers answers: it waits %v "+
		"before it founds a group alone, because a switch may not forward yet", g.cfg.foundingPatience)}
}

// problems says why listed peers do not answer, for example because of a wrong key.
func (g *Group) problems() []string {
	var all []string
	for _, l := range g.links.all() {
		if problem := l.State().Problem; problem != nil {
			all = append(all, l.ID+": "+problem.Error())
		}
	}
	return all
}

// intend sets what this peer is about to do and reports whether the others have been asked since it was set.
func (g *Group) intend(to intent) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.intent
	g.intent = to
	return was == to
}

func (g *Group) bootstrap(peers []Peer, why string) error {
	var c hraft.Configuration
	for _, p := range peers {
		c.Servers = append(c.Servers, hraft.Server{
			Suffrage: hraft.Voter, ID: hraft.ServerID(p.ID), Address: hraft.ServerAddress(p.Addr.String()),
		})
	}
	_, trans := hraft.NewInmemTransport("") // only its encoding of addresses is used
	if err := hraft.BootstrapCluster(g.raftConfig(nil), g.store, g.store, g.store.Snaps, trans, c); err != nil {
		return fmt.Errorf("beginning the group in %s: %w", g.cfg.DataDir, err)
	}
	g.log.Info("began a new group", "peers", names(peers), "because", why)
	return nil
}

// join asks for admission. When it returns nil this peer is in the group's configuration, as a non-voter.
// Raft must not run before: a peer that lost its disk has forgotten the vote that it gave, and as long as it
// is a voter in the configuration it could vote again, for another. Removed and added again as a non-voter it
// has no vote. It gets one back when it has the log, and with it the term, of a group that knows it as new.
func (g *Group) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	self := g.cfg.self()
	err := errors.New("no peer answers")
	for _, l := range g.links.all() {
		h, ok := g.helloOf(l.ID)
		if !ok || !h.HasState {
			continue
		}
		if _, err = askApart(ctx, l, request{Op: opAdmit, Peer: &self, From: self.ID,
			Joins: len(g.cfg.Join) > 0}); err == nil {
			g.log.Info("admitted to the group, catching up", "by", l.ID)
			g.setRefused("")
			return g.enter(h.Cluster)
		}
	}
	return err
}

// enter notes the group that this peer has been admitted to, so that it knows strangers before it has the log.
func (g *Group) enter(cluster string) error {
	for key, value := range map[string]string{store.FoundedKey: store.Joined, settings.ClusterKey: cluster} {
		if err := g.store.SetOwn(key, value); err != nil {
			return fmt.Errorf("data directory %s: %w; free some space", g.cfg.DataDir, err)
		}
	}
	g.mu.Lock()
	g.written = cluster
	g.mu.Unlock()
	return nil
}

// learnRoster asks the addresses in Join who the group's members are.
func (g *Group) learnRoster(ctx context.Context) (problems []string) {
	for _, addr := range g.cfg.Join {
		l := g.port.Link("", addr)
		once, cancel := context.WithTimeout(ctx, askTimeout)
		rep, err := ask(once, l, g.helloRequest())
		cancel()
		l.Close()
		g.setTwice(addr.String(), rep)
		switch {
		case err != nil:
			problems = append(problems, err.Error())
		case rep.Hello == nil:
			problems = append(problems, fmt.Sprintf("%s does not say who it is; is it an appliance's peer port?", addr))
		case g.followHeartbeat(*rep.Hello, 0) != nil:
			return nil
		case rep.Hello.Cluster == "":
			problems = append(problems, fmt.Sprintf("peer %s at %s is in no group yet", rep.Hello.ID, addr))
		default:
			g.mu.Lock()
			g.learned = slices.DeleteFunc(slices.Clone(rep.Hello.Peers), func(p Peer) bool { return p.ID == g.cfg.ID })
			g.mu.Unlock()
			for _, l := range g.relink(g.roster()) {
				l.Close()
			}
			return nil
		}
	}
	return problems
}

// checkCluster keeps a peer away whose data is of a group that another one has replaced. If its group goes on
// instead, the peer waits until the other has ended, so that they do not answer side by side.
func (g *Group) checkCluster(ctx context.Context) error {
	for {
		self, rival := g.hello(), ""
		for _, o := range g.ask(ctx) {
			if self.Cluster == "" || o.Cluster == "" || self.Cluster == o.Cluster {
				continue
			}
			lost := founding.Loses(self.camp(), o.camp())
			if lost && g.mayYield(self, o) {
				return g.yield(o)
			}
			if o.Fence == nil || lost || founding.Replaced(self.camp(), o.camp()) {
				return fmt.Errorf("group: %s; the data directory here is %s", conflict(o, self), g.cfg.DataDir)
			}
			if founding.Loses(o.camp(), self.camp()) && o.Leader != "" {
				rival = o.ID
			}
		}
		switch {
		case g.doubled() != "":
			g.setPhase(waitsForTwin)
		case rival != "":
			g.setPhase("waiting for the group of peer " + rival + " to end")
		default:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(askPause):
		}
	}
}

// ErrYielded ends Run when this peer's group has ended in favour of another one with the same key. The next
// Open puts the data aside, and the peer joins the other group.
var ErrYielded = errors.New("this peer began a group of its own, and another one goes on")

// mayYield says that this peer's group came about by itself and has no majority, so that its data can be put
// aside without asking anybody.
func (g *Group) mayYield(self, o hello) bool {
	return o.Fence != nil && self.Replaces == "" && !founding.HasMajority(self.camp(), o.camp()) &&
		g.store.Own(store.FoundedKey) != ""
}

// yield marks the data to be put aside.
func (g *Group) yield(o hello) error {
	why := fmt.Sprintf("peer %s is in the group %.8s, with %s", o.ID, o.Cluster, strings.Join(o.Members, ", "))
	if err := g.store.SetOwn(store.AsideKey, why); err != nil {
		return fmt.Errorf("group: this peer began a group of its own although %s; stop it, empty %s, and start it "+
			"again to join (%w)", why, g.cfg.DataDir, err)
	}
	return fmt.Errorf("group: %w: %s", ErrYielded, why)
}

// checkSplit ends this peer's group if o shows that another one goes on instead: package founding.
func (g *Group) checkSplit(o hello) {
	self := g.hello()
	if g.running() == nil || o.Cluster == "" || self.Cluster == o.Cluster {
		return
	}
	switch {
	case self.Cluster == "":
		if self.HasState && leftBehind(self, o) {
			g.fail(g.yield(o))
		}
	case o.Fence == nil: // a version that does not say enough of its group, and yields by itself
		if g.cfg.StartAsLeader && len(self.Members) == 1 && len(o.Members) > 1 {
			g.fail(fmt.Errorf("group: this peer began a group of its own although peer %s is in one; stop it, empty "+
				"%s, and start it again to join", o.ID, g.cfg.DataDir))
		}
	case !founding.Loses(self.camp(), o.camp()):
	case g.mayYield(self, o):
		g.fail(g.yield(o))
	case o.Leader != "": // as long as only one can lead, an operator can still decide
		g.fail(fmt.Errorf("group: %s; the data directory here is %s", conflict(o, self), g.cfg.DataDir))
	}
}

// leftBehind says that self was in the group when it began, and removed before it heard the name: nobody knows then
// that its disk is of this group. The leader o, whose log is on a majority, has it neither as a member nor as removed,
// so it is taken in as a new one.
func leftBehind(self, o hello) bool {
	return o.Fence != nil && o.Leader == o.ID && o.Fence.Commit >= o.LastIndex && o.Removed == "" &&
		!slices.Contains(o.Members, self.ID) && slices.Contains(self.Members, o.ID)
}

// ask says hello to every listed peer at once and returns who answered.
func (g *Group) ask(ctx context.Context) []hello { return g.askAmong(ctx, g.links.all()) }

func (g *Group) askAmong(ctx context.Context, links []*peerport.ControlLink) []hello {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		all []hello
	)
	for _, l := range links {
		wg.Go(func() {
			h, err := g.greet(ctx, l)
			if err != nil {
				return
			}
			mu.Lock()
			all = append(all, h)
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.SortFunc(all, func(a, b hello) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// greet says hello to one peer and remembers the answer.
func (g *Group) greet(ctx context.Context, l *peerport.ControlLink) (hello, error) {
	rep, err := ask(ctx, l, g.helloRequest())
	g.setTwice(l.ID, rep)
	if err != nil {
		return hello{}, err
	}
	if rep.Hello == nil {
		return hello{}, fmt.Errorf("peer %s does not say who it is; is it the same program?", l.ID)
	}
	if rep.Hello.ID != l.ID {
		return hello{}, fmt.Errorf("peer %s at %s calls itself %q; correct the list of peers", l.ID, l.Addr,
			rep.Hello.ID)
	}
	if err := g.learnFence(*rep.Hello, l.Addr.Addr()); err != nil {
		return hello{}, err
	}
	g.learnHeartbeat(l.ID, rep.Hello.Heartbeat)
	if err := g.followHeartbeat(*rep.Hello, l.State().Wire); err != nil {
		return hello{}, err
	}
	if b := rep.Hello.Backwards; b != nil {
		g.withhold(l.ID, *b)
	}
	g.detector.Accept(l.ID, rep.Datagrams)
	g.detector.Serves(l.ID, rep.Hello.Serves)
	g.mu.Lock()
	old, met := g.hellos[l.ID]
	g.hellos[l.ID] = *rep.Hello
	g.mu.Unlock()
	if !slices.Equal(old.OnLink, rep.Hello.OnLink) ||
		!slices.Equal(old.Fitness.NoCarrier, rep.Hello.Fitness.NoCarrier) {
		g.change.Fire()
	}
	g.gaveWay.Learn(l.ID, rep.Hello.GaveWay, g.cfg.now())
	g.heardOfRemoval(*rep.Hello)
	self := g.hello()
	if why := conflict(self, *rep.Hello); why != "" && !willFit(self, *rep.Hello) &&
		(!met || why != conflict(self, old)) {
		g.log.Warn("refused a peer", "peer", l.ID, "why", why)
	}
	return *rep.Hello, nil
}

// learnHeartbeat notes what a living process of peer id has told.
func (g *Group) learnHeartbeat(id string, beat time.Duration) {
	if g.heartbeats.Learn(id, beat) {
		g.change.Fire()
	}
}

// helloRequest asks another peer who it is. It always tells the heartbeat: without it, it would look like the
// request of a version that does not tell.
func (g *Group) helloRequest() request {
	h := g.hello()
	return request{Op: opHello, From: g.cfg.ID, Heartbeat: g.cfg.Heartbeat, Fitness: &h.Fitness, Hello: &h}
}

func (g *Group) helloOf(id string) (hello, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	h, ok := g.hellos[id]
	return h, ok
}

// hello is what this peer says of itself.
func (g *Group) hello() (h hello) {
	g.mu.Lock()
	h = hello{
		ID: g.cfg.ID, Version: g.cfg.Version, Cluster: g.written, HasState: g.known,
		StartAsLeader: g.cfg.StartAsLeader, Intent: g.intent, Peers: g.cfg.Peers,
		Self: g.cfg.self(), Joins: len(g.cfg.Join) > 0, Priority: g.cfg.Priority, Fitness: g.fitness, OnLink: g.onLink,
		Protocol: protocolVersion, Oldest: oldestProtocol, Heartbeat: g.cfg.Heartbeat, Floor: g.cfg.floor,
		Replaces: g.replaces, Serves: g.serves,
	}
	if pace := g.store.Pace(); g.isSlow(pace) {
		h.Pace = pace
	}
	told := g.disk
	told.Withheld, told.Floor = g.withheld.on, g.floor
	g.mu.Unlock()
	h.GaveWay = g.gaveWay.Tell(g.cfg.now())
	for _, p := range g.cfg.Peers {
		h.Listed = append(h.Listed, p.ID)
	}
	if c := g.settings.Get(settings.ClusterKey); c != "" {
		h.Cluster, h.Replaces = c, g.settings.Get(settings.ReplacesKey)
	}
	defer func() {
		told.Cluster, told.HasState = h.Cluster, h.HasState
		h.Fence = &told
	}()
	r := g.running()
	if r == nil {
		h.Members = g.position.Members
		return h
	}
	if h.Cluster != "" {
		h.Peers = g.roster() // the file does not count any more
	}
	h.LastIndex, h.Term = r.LastIndex(), r.CurrentTerm()
	h.HasState = h.LastIndex > 0
	told.Term, told.Last, told.Commit = h.Term, h.LastIndex, max(told.Commit, r.CommitIndex())
	_, leader := r.LeaderWithID()
	h.Leader = string(leader)
	for _, s := range r.GetConfiguration().Configuration().Servers {
		h.Members = append(h.Members, string(s.ID))
	}
	return h
}

// SetServes tells the other peers whether clients here wait for this process, which is so in user space: then they do
// not wait for it where it is silent although the host answers. They learn it within a second.
func (g *Group) SetServes(serves bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.serves = serves
}

// SetOnLink tells the other peers which addresses this host has on the links of the virtual addresses. They
// learn it within a second.
func (g *Group) SetOnLink(addrs []netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.onLink = addrs
}
