// Package proving has the nodes of a group try each other as clients would.
package proving

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"appliance/arp"
	"appliance/balancer"
	"appliance/neighbours"
	"appliance/pathprobe"
	"appliance/proof"
	"appliance/raft"
	"appliance/status"
)

const (
	// proveEvery is the time between two trials of a load balancer that is proved: a handshake, its question and its
	// answer are some ten packets, and a group of three stays below five packets a second.
	proveEvery = 6 * time.Second
	// proveSoon is the time to the next trial while one has failed, or none has ended.
	proveSoon = 400 * time.Millisecond
	// tryTimeout bounds one question to another node.
	tryTimeout = 3 * time.Second
	// perQuestion is how many load balancers one question is about.
	perQuestion = 8
	// silentFor is how long no node of the data plane direct must have answered although their servers live.
	silentFor = 3 * time.Second
)

// A question asks another node to try this one.
type question struct {
	Node   string        `json:"node"`
	Trials []proof.Trial `json:"trials,omitempty"`
}

// A questionAnswer is what the other node has found, and what it serves itself.
type questionAnswer struct {
	Findings []proof.Finding   `json:"findings,omitempty"`
	Problem  string            `json:"problem,omitempty"`
	Serves   map[string]string `json:"serves,omitempty"`
}

// Config is what Trials need of the node.
type Config struct {
	Self string
	VIPs []netip.Addr
	// Interfaces says on which interface each VIP is.
	Interfaces map[netip.Addr]string
	// LoadBalancers are those in force, Nodes the machines that data plane direct hands packets to.
	LoadBalancers func() []balancer.LoadBalancer
	Nodes         func() []pathprobe.Node
	// Health and Settled are the balancer's; Reconsider has it choose planes again.
	Health     func() []balancer.LoadBalancerStatus
	Settled    func(loadBalancer string, since time.Time) bool
	Reconsider func()
	// Path says what is known of a path of data plane direct; nil without that.
	Path func(frontend netip.AddrPort, node string) pathprobe.Path
	// Peers are the group's, and Ask asks one of them. Without a group, there is nobody to ask.
	Peers func() []raft.PeerStatus
	Ask   func(ctx context.Context, id string, question []byte) ([]byte, error)
	// Serves is what this node serves, by parts that all nodes should have in common.
	Serves func() map[string]string
	// Note records an event.
	Note func(status.Event)
	Log  *slog.Logger
}

// Trials are what this node knows of whether its clients are served. They implement balancer.Prover.
//
//	goroutine   owns
//	Run         the rounds: which load balancer is tried when, and by whom
//	Answer      one per question of another node, one at a time
type Trials struct {
	cfg     Config
	book    proof.Book // clients on the link
	local   proof.Book // clients on this node
	kick    chan struct{}
	forward sync.Mutex // one question at a time is answered

	next, asker int // where the rotations of load balancers and of nodes go on; Run owns them

	mu      sync.Mutex
	untried map[string]string    // why a load balancer was not tried
	fresh   map[string]bool      // load balancers whose plane is new
	silent  map[string]time.Time // since when no node of direct answers
	// What the peers serve, and what this node served when they said so.
	serves, compared map[string]map[string]string
	lack             string    // what this node lacks, by what most nodes have
	lacking          time.Time // since when; zero: it lacks nothing
}

// New returns trials that begin with Run.
func New(cfg Config) *Trials {
	return &Trials{
		cfg: cfg, kick: make(chan struct{}, 1),
		untried: make(map[string]string), fresh: make(map[string]bool), silent: make(map[string]time.Time),
		serves: make(map[string]map[string]string), compared: make(map[string]map[string]string),
	}
}

// Unproved implements balancer.Prover.
func (t *Trials) Unproved(lb balancer.LoadBalancer, plane balancer.PlaneName) string {
	if plane == balancer.Direct {
		if why := t.elsewhere(lb); why != "" {
			return why
		}
		if why := t.nobodyThere(lb); why != "" {
			return why
		}
	}
	return t.book.Unproved(proof.Subject{LoadBalancer: lb.Name, Plane: string(plane)}, time.Now())
}

// elsewhere says why this node's own server does not take what direct would hand to it.
func (t *Trials) elsewhere(lb balancer.LoadBalancer) string {
	local, err := arp.LocalAddrs()
	if err != nil {
		return ""
	}
	for _, f := range lb.Frontends {
		for _, be := range lb.Backends {
			own := be.Addr.Addr()
			if be.Addr.Port() != f.Port() || own.Is4() != f.Addr().Is4() || !slices.Contains(local, own) {
				continue
			}
			why, err := proof.ListensElsewhere(f, own)
			if err != nil {
				t.cfg.Log.Debug("sockets that listen are not known", "error", err)
			}
			if why != "" {
				return why
			}
		}
	}
	return ""
}

// nobodyThere says why direct has nobody to hand packets to, although servers live: no appliance runs beside them.
func (t *Trials) nobodyThere(lb balancer.LoadBalancer) string {
	states := t.cfg.Health()
	i := slices.IndexFunc(states, func(s balancer.LoadBalancerStatus) bool { return s.Name == lb.Name })
	if t.cfg.Path == nil || i < 0 {
		return ""
	}
	alive, answers := 0, false
	for _, be := range states[i].Backends {
		if be.State != balancer.Up {
			continue
		}
		alive++
		o, ok := pathprobe.NodeAt(t.cfg.Nodes(), be.Address.Addr())
		if !ok || o.ID == t.cfg.Self {
			answers = true
			continue
		}
		for _, f := range lb.Frontends {
			if f.Addr().Is4() == be.Address.Addr().Is4() && t.cfg.Path(f, o.ID) != pathprobe.PathNoAnswer {
				answers = true
			}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if alive == 0 || answers {
		delete(t.silent, lb.Name)
		return ""
	}
	if t.silent[lb.Name].IsZero() {
		t.silent[lb.Name] = time.Now()
	}
	if time.Since(t.silent[lb.Name]) < silentFor {
		t.soon() // to ask again
		return ""
	}
	return "no appliance answers on the nodes of its backends, though their servers live; start it there, " +
		"or use another data plane"
}

func (t *Trials) soon() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// Chosen notes that a load balancer is served by another plane now: that is tried at once.
func (t *Trials) Chosen(lb, plane string) {
	t.book.Begin(proof.Subject{LoadBalancer: lb, Plane: plane})
	t.mu.Lock()
	t.fresh[lb] = true
	t.mu.Unlock()
	t.soon()
}

// Run tries this node's load balancers until ctx ends.
func (t *Trials) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-t.kick:
			// Rules that have just been applied, and a second change right after it.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(proveSoon / 4):
			}
		}
		pause := proveEvery
		if t.round(ctx) {
			pause = proveSoon
		}
		timer.Reset(time.Duration(float64(pause) * (0.9 + 0.2*rand.Float64())))
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
		hurry = hurry || !now.Since.IsZero() && !now.Unproved
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
		of := slices.DeleteFunc(slices.Clone(findings), func(f proof.Finding) bool {
			return !slices.Contains(c.Frontends, f.Frontend)
		})
		if len(of) > 0 && t.isStill(c) {
			t.note(&t.book, c, asker.ID, others, begun, of)
		}
	}
}

// isStill says whether the plane that was tried serves still.
func (t *Trials) isStill(c candidate) bool {
	return slices.ContainsFunc(t.cfg.Health(), func(lb balancer.LoadBalancerStatus) bool {
		return lb.Name == c.Name && lb.Plane == c.Plane
	})
}

func (t *Trials) note(book *proof.Book, c candidate, by string, others bool, begun time.Time,
	of []proof.Finding) {
	book.Note(c.subject, proof.Trying{
		Begun: begun, At: time.Now(), By: by, Others: others, Findings: of,
		Settled: func(since time.Time) bool { return t.cfg.Settled(c.Name, since) },
		Hint:    func(r proof.Result) string { return hint(c.Plane, r) },
	})
}

// hint is what most often causes a result in a plane.
func hint(plane balancer.PlaneName, r proof.Result) string {
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
	findings, err := proof.FromHere(ctx, c.trials)
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
		if isNews && lb.Plane != balancer.Direct && lb.Plane != balancer.UserSpace {
			count = min(2*up, proof.MaxCount) // to meet each backend
		}
		for _, f := range lb.Frontends {
			if slices.Contains(t.cfg.VIPs, f.Addr()) {
				c.trials = append(c.trials, proof.Trial{Frontend: f, Count: count})
			}
		}
		t.mu.Lock()
		isFresh := fresh[lb.Name]
		t.mu.Unlock()
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

// ask has a peer try this node.
func (t *Trials) ask(ctx context.Context, asker raft.PeerStatus, trials []proof.Trial) ([]proof.Finding, error) {
	data, err := json.Marshal(question{Node: t.cfg.Self, Trials: trials})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	data, err = t.cfg.Ask(ctx, asker.ID, data)
	if err != nil {
		if strings.Contains(err.Error(), "unknown request") {
			return nil, errors.New("it runs an older version")
		}
		return nil, err
	}
	var a questionAnswer
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, err
	}
	if len(a.Serves) > 0 {
		t.learn(asker.ID, a.Serves)
	}
	if a.Problem != "" {
		return nil, errors.New(a.Problem)
	}
	return a.Findings, nil
}

// Answer tries another node of the group, which has asked for it.
func (t *Trials) Answer(ctx context.Context, data []byte) ([]byte, error) {
	var q question
	if err := json.Unmarshal(data, &q); err != nil {
		return nil, err
	}
	a := questionAnswer{Serves: t.cfg.Serves()}
	if len(q.Trials) > 0 {
		var err error
		if a.Findings, err = t.tryNode(ctx, q); err != nil {
			a.Problem = err.Error()
		}
	}
	return json.Marshal(a)
}

// tryNode does what a question asks for. It sends to nobody but peers, and for no address but this node's own VIPs: the
// kernel drops the answers for those, whose address is its own.
func (t *Trials) tryNode(ctx context.Context, q question) (all []proof.Finding, err error) {
	t.forward.Lock()
	defer t.forward.Unlock()
	peers := t.peers()
	i := slices.IndexFunc(peers, func(o raft.PeerStatus) bool { return o.ID == q.Node })
	if i < 0 {
		return nil, fmt.Errorf("%s is no peer in reach", q.Node)
	}
	type way struct {
		on  string
		is4 bool
	}
	by := make(map[way][]proof.Trial)
	on := t.cfg.Interfaces
	for _, one := range q.Trials {
		name := on[one.Frontend.Addr()]
		if name == "" {
			return nil, fmt.Errorf("%s is not among its own virtual addresses", one.Frontend.Addr())
		}
		w := way{name, one.Frontend.Addr().Is4()}
		by[w] = append(by[w], one)
	}
	for w, trials := range by {
		link, err := neighbours.ReadLink(w.on)
		if err != nil {
			return nil, err
		}
		theirs := slices.DeleteFunc(append(peers[i].Addrs(), peers[i].OnLink...), func(a netip.Addr) bool {
			return a.Is4() != w.is4
		})
		mac, ok := firstMAC(link, theirs)
		own, haveOwn := t.ownAddress(w.is4)
		if !ok || !haveOwn {
			return nil, fmt.Errorf("%s is not on its link %s", q.Node, w.on)
		}
		findings, err := proof.FromLink(ctx, link, mac, own, trials)
		if err != nil {
			return nil, err
		}
		all = append(all, findings...)
	}
	return all, nil
}

// firstMAC is the MAC address of the first of a node's addresses that is on the link.
func firstMAC(link neighbours.Link, addrs []netip.Addr) (mac [6]byte, ok bool) {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return link.OffLink(a) != "" })
	macs := link.Find(addrs, true)
	for _, a := range addrs {
		if mac, ok := macs[a]; ok {
			return mac, true
		}
	}
	return mac, false
}

// ownAddress is this node's address of a family, as the other nodes know it.
func (t *Trials) ownAddress(is4 bool) (netip.Addr, bool) {
	for _, o := range t.cfg.Peers() {
		if !o.Self {
			continue
		}
		for _, a := range append(o.Addrs(), o.OnLink...) {
			if a.Is4() == is4 {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// Of is what is shown of a load balancer.
func (t *Trials) Of(lb balancer.LoadBalancerStatus) *balancer.ProofStatus {
	s := proof.Subject{LoadBalancer: lb.Name, Plane: string(lb.Plane)}
	out := proofStatus(t.book.Entry(s))
	t.mu.Lock()
	why := t.untried[lb.Name]
	t.mu.Unlock()
	if out.State == balancer.NotTried || why != "" && out.State == balancer.Proved && time.Since(*out.Last) > 10*proveEvery {
		out.State, out.Reason = balancer.NotTried, cmp.Or(why, "not tried yet")
	}
	local := proofStatus(t.local.Entry(s))
	out.Local = &local
	return &out
}

func proofStatus(e proof.Entry) balancer.ProofStatus {
	s := balancer.ProofStatus{State: balancer.NotTried, By: e.By}
	if !e.Proved.IsZero() {
		s.State, s.Last = balancer.Proved, &e.Proved
	}
	if e.Unproved {
		s.State, s.Reason = balancer.Unproved, e.Why
	}
	for r, n := range e.Failures {
		if s.Failures == nil {
			s.Failures = make(map[string]uint64)
		}
		s.Failures[string(r)] = n
	}
	return s
}

// Unserved says that a load balancer was tried in vain, in the plane that serves now.
func (t *Trials) Unserved(lb balancer.LoadBalancerStatus) bool {
	return t.book.Entry(proof.Subject{LoadBalancer: lb.Name, Plane: string(lb.Plane)}).Unproved
}
