package nflog

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/connlog"
	"appliance/nft/ruleset"
)

const (
	// group is ours of the groups of NFLOG, of which each has one reader in a network namespace. Others use small ones.
	group = 24443
	// maxRate bounds the beginnings in a second that the kernel tells of, of each family and direction: a flood of SYNs
	// must not keep a processor busy with lines that nobody reads.
	maxRate = 10_000
	// snapLen has the IP and TCP headers, without the latter's options, and room for some headers of IPv6 between them.
	snapLen = 128
	// unlogged counts the beginnings beyond maxRate.
	unlogged = "unlogged"
	// loopback is the index of lo in every network namespace.
	loopback = 1
)

// A LineTaker is where lines about beginnings go. None of its methods may block.
type LineTaker interface {
	Write(line string)
	// Skip counts a line that was more than its load balancer wants, and Lose those that the kernel had no room for.
	Skip()
	Lose(lines uint64)
}

// A BeginWatcher has the kernel tell of the first packets of connections to load balancers that want their beginnings
// logged. The packets go on whether anybody hears of them or not.
type BeginWatcher struct {
	lines LineTaker
	log   *slog.Logger
	wake  chan struct{}

	applying    sync.Mutex // held by apply all the time
	reconciler  ruleset.Reconciler
	services    map[balancer.PlaneName][]balancer.Service
	applied     bool   // the table was reconciled once, so that none of an earlier process is left
	lastProblem string // that was logged

	mu       sync.Mutex // guards what is below, briefly
	watched  map[netip.AddrPort]watched
	samplers map[string]*connlog.Sampler // by load balancer
}

// watched is what is said of the connections to one frontend.
type watched struct {
	loadBalancer string
	plane        balancer.PlaneName
	options      balancer.ConnOptions
	sampler      *connlog.Sampler
}

// New returns a BeginWatcher whose table belongs to the owner. Log gets a line if the kernel cannot tell.
func New(owner *ruleset.Owner, lines LineTaker, log *slog.Logger) *BeginWatcher {
	return &BeginWatcher{
		lines: lines, log: log, wake: make(chan struct{}, 1),
		reconciler: ruleset.Reconciler{Owner: owner}, services: make(map[balancer.PlaneName][]balancer.Service),
		samplers: make(map[string]*connlog.Sampler),
	}
}

// Watch returns the plane with its connections watched.
func (w *BeginWatcher) Watch(plane balancer.Plane) balancer.Plane {
	return balancer.WithTraffic(watchedPlane{plane, w}, plane)
}

type watchedPlane struct {
	balancer.Plane
	watcher *BeginWatcher
}

// Apply implements balancer.Plane. If the rules cannot be made, the plane still works, and nothing is logged.
func (p watchedPlane) Apply(ctx context.Context, services []balancer.Service) (repaired int, err error) {
	n := p.watcher.apply(p.Name(), services)
	repaired, err = p.Plane.Apply(ctx, services)
	return repaired + n, err
}

// Close implements balancer.Plane.
func (p watchedPlane) Close() error {
	err := p.Plane.Close()
	p.watcher.apply(p.Name(), nil)
	return err
}

// apply makes services those of the plane.
func (w *BeginWatcher) apply(plane balancer.PlaneName, services []balancer.Service) (repaired int) {
	w.applying.Lock()
	defer w.applying.Unlock()
	w.services[plane] = slices.DeleteFunc(slices.Clone(services), func(s balancer.Service) bool {
		return s.ConnOptions.LogBegin == "" || s.Frontend.Addr().IsUnspecified()
	})
	watch := make(map[netip.AddrPort]watched)
	w.mu.Lock()
	for of, list := range w.services {
		for _, s := range list {
			if w.samplers[s.LoadBalancer] == nil {
				w.samplers[s.LoadBalancer] = new(connlog.Sampler)
			}
			watch[s.Frontend] = watched{s.LoadBalancer, of, s.ConnOptions, w.samplers[s.LoadBalancer]}
		}
	}
	w.watched = watch
	w.mu.Unlock()
	if len(watch) > 0 {
		select {
		case w.wake <- struct{}{}:
		default: // a wake-up is pending
		}
	} else if w.applied {
		return 0
	}
	want, err := table(slices.Collect(maps.Keys(watch)))
	if err == nil {
		repaired, err = w.reconciler.Apply(want)
	}
	w.applied = err == nil && len(watch) == 0
	w.note(err)
	return repaired
}

// note logs a problem once. The caller holds applying.
func (w *BeginWatcher) note(err error) {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	if problem != w.lastProblem && problem != "" {
		w.log.Warn("beginnings of connections are not logged; it will be tried again", "error", err)
	}
	w.lastProblem = problem
}

// Close removes the rules.
func (w *BeginWatcher) Close() error {
	w.applying.Lock()
	defer w.applying.Unlock()
	_, err := w.reconciler.Remove(ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.LogTable})
	return err
}

// table is the table that tells of connections to the frontends.
//
// It looks after conntrack and after the data plane direct has handed on what is for other nodes (-300), and before NAT
// and IPVS, so that packets still have the frontend's address; and after those whom an access list refuses at the place
// of mangle. Those of clients on this node are seen where they leave, and not again where they arrive on lo.
func table(frontends []netip.AddrPort) (ruleset.Table, error) {
	t := ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.LogTable}
	var rules []ruleset.Rule
	for _, f := range ruleset.Families() {
		s, err := f.FrontendSet(frontends)
		if err != nil {
			return t, err
		}
		if len(s.Elements) == 0 {
			continue
		}
		t.Sets = append(t.Sets, s)
		// A proof's window is 0, with which no client begins.
		begins := ruleset.Concat(f.TCPTo(), []expr.Any{ruleset.InSet(s.Name)}, ruleset.SYN(),
			[]expr.Any{ruleset.LoadTransport(ruleset.Reg1, 14, 2), ruleset.NotEqual(ruleset.Reg1, 0, 0)})
		rules = append(rules,
			ruleset.NewRule("more than are logged", begins, []expr.Any{
				&expr.Limit{Type: expr.LimitTypePkts, Rate: maxRate, Unit: expr.LimitTimeSecond, Burst: maxRate, Over: true},
				&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: unlogged},
			}, ruleset.Verdict(expr.VerdictReturn)),
			ruleset.NewRule("a connection begins", begins, []expr.Any{&expr.Log{
				Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_QTHRESHOLD,
				Group: group, Snaplen: snapLen, QThreshold: 32,
			}}),
		)
	}
	if len(rules) == 0 {
		return t, nil
	}
	t.Counters = []string{unlogged}
	const priority = ruleset.PriorityMangle + 1
	arriving := ruleset.NewRule("seen in output", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: ruleset.Reg1}, ruleset.Equal(ruleset.Reg1, ruleset.Native(loopback)...),
	}, ruleset.Verdict(expr.VerdictReturn))
	t.Chains = []ruleset.Chain{
		ruleset.FilterChain("prerouting", unix.NF_INET_PRE_ROUTING, priority, append([]ruleset.Rule{arriving}, rules...)...),
		ruleset.FilterChain("output", unix.NF_INET_LOCAL_OUT, priority, rules...),
	}
	return t, nil
}

// lost is how many beginnings were beyond maxRate since the table was made, or before if that cannot be read.
func lost(before uint64) uint64 {
	counters, err := ruleset.Counters(ruleset.Table{Family: nftables.TableFamilyINet, Name: ruleset.LogTable})
	if err != nil {
		return before
	}
	return counters[unlogged]
}

// errNoGroup says what to do where another program has the group.
var errNoGroup = errors.New("another program listens to group 24443 of NFLOG")
