package proving

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"appliance/arp"
	"appliance/balancer"
	"appliance/pathprobe"
	"appliance/proof"
	"appliance/raft"
	"appliance/status"
)

const (
	// proveEvery is the time between two trials of a load balancer that is proved, on a node that clients come to, and
	// proveStandby on one that they would come to next: a handshake, its question and its answer are up to ten packets,
	// and a group of three stays at or below five packets a second.
	proveEvery   = 3 * time.Second
	proveStandby = 12 * time.Second
	// proveSoon is the time to the next trial while one has failed, or none has ended.
	proveSoon = 400 * time.Millisecond
	// proveDisturbed is the least time between two trials because rules of others have changed: kube-proxy writes some
	// often. The first change in a proveQuiet has each backend tried, by two nodes.
	proveDisturbed = 3 * time.Second
	proveQuiet     = time.Minute
	// lookEvery is the time between two looks at the sockets that listen, perQuestion load balancers at a time. A look
	// takes about 0.1 ms, and what it sees makes no packet.
	lookEvery = time.Second
	// tryTimeout bounds one question to another node.
	tryTimeout = 3 * time.Second
	// perQuestion is how many load balancers one question is about.
	perQuestion = 8
	// silentFor is how long no node of the data plane direct must have answered although their servers live.
	silentFor = 3 * time.Second
)

// Config is what Trials need of the node.
type Config struct {
	Self string
	VIPs []netip.Addr
	// Interfaces says on which interface each VIP is.
	Interfaces map[netip.Addr]string
	// LoadBalancers are those in force, Nodes the machines that data plane direct hands packets to.
	LoadBalancers func() []balancer.LoadBalancer
	Nodes         func() []pathprobe.Node
	// Health, HealthOf, ServedBy and Settled are the balancer's; Reconsider has it choose planes again.
	Health     func() []balancer.LoadBalancerStatus
	HealthOf   func(loadBalancer string) (balancer.LoadBalancerStatus, bool)
	ServedBy   func(loadBalancer string) balancer.PlaneName
	Settled    func(loadBalancer string, since time.Time) bool
	Reconsider func()
	// Active says whether clients from elsewhere come to this node now.
	Active func() bool
	// Path says what is known of a path of data plane direct; nil without that.
	Path func(frontend netip.AddrPort, node string) pathprobe.Path
	// Peers are the group's, and Ask asks one of them. Without a group, there is nobody to ask.
	Peers func() []raft.PeerStatus
	Ask   func(ctx context.Context, id string, question []byte) ([]byte, error)
	// Here tries load balancers as a client on this node does, and Listening says who takes their connections on it: nil
	// is package proof's.
	Here      func(context.Context, []proof.Trial) ([]proof.TrialResult, error)
	Listening func(frontend netip.AddrPort, own netip.Addr) (takes bool, why string, err error)
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
//	Answer      one per question of another node, one at a time for each node
type Trials struct {
	cfg     Config
	book    proof.Book // clients on the link
	local   proof.Book // clients on this node
	kick    chan struct{}
	disturb chan struct{}

	next, asker, look int // where the rotations of load balancers and of nodes go on; Run owns them

	mu         sync.Mutex
	untried    map[string]string    // why a load balancer was not tried
	fresh      map[string]bool      // load balancers whose plane is new
	silent     map[string]time.Time // since when no node of direct answers
	bound      map[string]string    // why direct cannot hand packets to the server here, if it listens elsewhere
	told       map[string]bool      // the balancer knows of that
	answering  map[string]bool      // nodes whose question is being answered
	localKnown []netip.Addr
	localAsOf  time.Time
	// What the peers serve, and what this node served when they said so.
	serves, compared map[string]map[string]string
	lack             string    // what this node lacks, by what most nodes have
	lacking          time.Time // since when; zero: it lacks nothing
}

// New returns trials that begin with Run.
func New(cfg Config) *Trials {
	if cfg.Here == nil {
		cfg.Here = proof.FromHere
	}
	if cfg.Listening == nil {
		cfg.Listening = proof.Listening
	}
	return &Trials{
		cfg: cfg, kick: make(chan struct{}, 1), disturb: make(chan struct{}, 1),
		untried: make(map[string]string), fresh: make(map[string]bool), silent: make(map[string]time.Time),
		bound: make(map[string]string), told: make(map[string]bool), answering: make(map[string]bool),
		serves: make(map[string]map[string]string), compared: make(map[string]map[string]string),
	}
}

// Unproved implements balancer.Prover.
func (t *Trials) Unproved(lb balancer.LoadBalancer, plane balancer.PlaneName) string {
	if plane == balancer.Direct {
		why := t.elsewhere(lb)
		t.mu.Lock()
		t.told[lb.Name] = why != ""
		t.mu.Unlock()
		if why != "" {
			return why
		}
		if why := t.nobodyThere(lb); why != "" {
			return why
		}
	}
	return t.book.Unproved(proof.Subject{LoadBalancer: lb.Name, Plane: string(plane)}, time.Now())
}

// localAddrs are this host's addresses, which are asked for once for all load balancers that are judged together.
func (t *Trials) localAddrs() (local []netip.Addr, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.localAsOf) < proveSoon/4 {
		return t.localKnown, nil
	}
	if local, err = arp.LocalAddrs(); err == nil {
		t.localKnown, t.localAsOf = local, time.Now()
	}
	return local, err
}

// elsewhere says why this node's own server does not take what direct would hand to it. While no server listens, what
// the last one did holds: it may come back.
func (t *Trials) elsewhere(lb balancer.LoadBalancer) (why string) {
	local, err := t.localAddrs()
	if err != nil {
		return ""
	}
	known := true
	for _, f := range lb.Frontends {
		for _, be := range lb.Backends {
			own := be.Addr.Addr()
			if be.Addr.Port() != f.Port() || own.Is4() != f.Addr().Is4() || !slices.Contains(local, own) {
				continue
			}
			takes, not, err := t.cfg.Listening(f, own)
			if err != nil {
				t.cfg.Log.Debug("sockets that listen are not known", "error", err)
			}
			why = cmp.Or(why, not)
			known = known && (takes || not != "")
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if why == "" && !known {
		return t.bound[lb.Name]
	}
	t.bound[lb.Name] = why
	return why
}

// lookAround looks where the servers of some load balancers listen, and says whether that is news. Then planes are
// chosen again.
func (t *Trials) lookAround() (news bool) {
	if t.cfg.Path == nil {
		return false // there is no data plane direct
	}
	lbs := t.cfg.LoadBalancers()
	for range min(perQuestion, len(lbs)) {
		t.look = (t.look + 1) % len(lbs)
		name, is := lbs[t.look].Name, t.elsewhere(lbs[t.look]) != ""
		t.mu.Lock()
		if is != t.told[name] {
			t.told[name], t.fresh[name], news = is, true, true
		}
		t.mu.Unlock()
	}
	if news {
		t.cfg.Reconsider()
	}
	return news
}

// nobodyThere says why direct has nobody to hand packets to, although servers live: no appliance runs beside them.
func (t *Trials) nobodyThere(lb balancer.LoadBalancer) string {
	if t.cfg.Path == nil {
		return ""
	}
	state, ok := t.cfg.HealthOf(lb.Name)
	if !ok {
		return ""
	}
	alive, answers := 0, false
	for _, be := range state.Backends {
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

// Activated notes that clients come to this node from now on.
func (t *Trials) Activated() { t.soon() }

func (t *Trials) soon() { nudge(t.kick) }

// Disturbed notes that others have changed this host's rules, which may be in clients' way.
func (t *Trials) Disturbed() { nudge(t.disturb) }

func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
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

// Of is what is shown of a load balancer.
func (t *Trials) Of(lb balancer.LoadBalancerStatus) *balancer.ProofStatus {
	s := proof.Subject{LoadBalancer: lb.Name, Plane: string(lb.Plane)}
	out := proofStatus(t.book.Entry(s))
	t.mu.Lock()
	why := t.untried[lb.Name]
	t.mu.Unlock()
	stale := why != "" && out.State == balancer.Proved && time.Since(*out.Last) > 5*proveStandby
	if out.State == balancer.NotTried || stale {
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

// Pending says that a load balancer is about to be tried for the first time in the plane that serves now: nothing
// speaks against it yet, and nothing for it.
func (t *Trials) Pending(lb balancer.LoadBalancerStatus) bool {
	e := t.book.Entry(proof.Subject{LoadBalancer: lb.Name, Plane: string(lb.Plane)})
	t.mu.Lock()
	defer t.mu.Unlock()
	return e.Proved.IsZero() && !e.Unproved && t.untried[lb.Name] == ""
}

// Unserved says that a load balancer was tried in vain, in the plane that serves now.
func (t *Trials) Unserved(lb balancer.LoadBalancerStatus) bool {
	return t.book.Entry(proof.Subject{LoadBalancer: lb.Name, Plane: string(lb.Plane)}).Unproved
}
