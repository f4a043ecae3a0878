package node

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"appliance/arp"
	"appliance/configs"
	"appliance/dns"
	"appliance/node/desired"
	"appliance/pathprobe"
)

// A request asks the apply loop to follow something new: a file that was read again, what the peers told a worker, or
// changed secrets of the path probes.
type request struct {
	config  *configs.Config
	list    *desired.List
	secrets *probeSecrets
	reply   chan<- error
}

// inputs is what the apply loop computes the desired state from, beside what the group says. newNode fills it in; from
// then on the loop owns it.
type inputs struct {
	config  *configs.Config
	list    *desired.List
	secrets probeSecrets
}

// applyEvery is the time between two computations with no known change: departed workers run out of time, and this
// host's addresses may be others.
const applyEvery = 5 * time.Second

// ask hands r to the apply loop and returns what became of it. An error means that nothing has changed.
func (n *node) ask(ctx context.Context, r request) error {
	reply := make(chan error, 1)
	r.reply = reply
	select {
	case n.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// applyLoop keeps what is in force equal to the desired state until ctx ends.
func (n *node) applyLoop(ctx context.Context) error {
	tick := time.NewTicker(applyEvery)
	defer tick.Stop()
	for {
		var changed, named <-chan struct{}
		if n.names != nil {
			named = n.names.Changed()
		}
		if n.group != nil {
			changed = n.group.Changed() // before what the state is computed from
		}
		n.reapply()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		case <-named:
		case r := <-n.requests:
			r.reply <- n.accept(ctx, r)
		}
	}
}

// accept puts what r brings into force, or nothing of it.
func (n *node) accept(ctx context.Context, r request) error {
	before := n.inputs
	set := n.setLoadBalancers
	if r.config != nil {
		n.inputs.config = r.config
		// Also when the load balancers are the same: a forced data plane may be unable to serve them by now.
		set = func(s desired.State) error { return n.balancer.Change(ctx, s.LoadBalancers) }
	}
	if r.list != nil {
		n.inputs.list = r.list
		if s, ok := n.secretsFromPeers(r.list.ProbeKeys); ok {
			n.inputs.secrets = s
		}
	}
	if r.secrets != nil {
		n.inputs.secrets = *r.secrets
	}
	if r.config != nil && n.names != nil {
		n.awaitNames(ctx)
	}
	next := n.compute()
	if err := n.serve(next, set); err != nil {
		n.inputs = before
		if n.names != nil {
			n.names.Set(before.config.Hosts())
		}
		return err
	}
	if n.planes != nil && n.planes.Prober != nil {
		n.planes.Prober.SetKeys(n.inputs.secrets.own, n.inputs.secrets.workers)
	}
	n.state.Store(&next)
	return nil
}

// reapply computes the state again and puts it into force. If the balancer refuses the backends, those of before stay,
// and overrides are followed all the same.
func (n *node) reapply() {
	if n.balancer == nil {
		return // a witness serves nothing
	}
	var index uint64
	if n.group != nil {
		index = n.group.Index() // before what it stands for
	}
	next := n.compute()
	if err := n.serve(next, n.setLoadBalancers); err != nil {
		n.log.Error("the peers as they are now cannot be the backends", "error", err)
		before := n.state.Load()
		next.LoadBalancers, next.Nodes, next.Departed = before.LoadBalancers, before.Nodes, before.Departed
	}
	n.balancer.SetOverrides(next.Overrides)
	if n.group != nil {
		n.publish(next.List, index)
	}
	n.state.Store(&next)
}

// compute gathers what this node knows and returns the state that follows from it.
func (n *node) compute() desired.State {
	k := desired.Known{
		Config: n.inputs.config, List: n.inputs.list, ProbeKeys: n.keysForWorkers(),
		Self: n.site.self.ID, Before: *n.state.Load(), Now: time.Now(),
	}
	if n.names != nil {
		k.Names = n.names.Known()
	}
	if n.cfg.Worker() {
		local, err := arp.LocalAddrs()
		if err != nil {
			n.log.Debug("the addresses of this host are not known", "error", err)
		}
		k.Local = local
	}
	if n.group != nil {
		group := n.group.Status()
		k.Group, k.Settings = &group, n.group.Settings()
	}
	return desired.Compute(k)
}

// namesPath is where the last good addresses of names are kept.
func namesPath(cfg *configs.Config) string { return filepath.Join(cfg.DataDir, "names.json") }

// openNames recalls the addresses of names. A file that cannot be read is as good as none: they are looked up.
func (n *node) openNames() {
	path := namesPath(n.cfg)
	before, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Warn("the last good addresses of names cannot be read; they are looked up", "path", path, "error", err)
	}
	n.names = dns.Open(dns.Config{
		Nameservers: n.cfg.Resolver.Nameservers, Shortest: n.cfg.Resolver.MinTTL, Longest: n.cfg.Resolver.MaxTTL,
		Kept: before, Keep: func(data []byte) error { return replaceFile(path, data) }, Log: n.log,
	})
}

// awaitNamesFor bounds the wait for names of which nothing is known yet. A server without address is only down, and
// the others have to be served.
const awaitNamesFor = 3 * time.Second

// awaitNames follows the names of the configuration, and waits for those that are new.
func (n *node) awaitNames(ctx context.Context) {
	n.names.Set(n.inputs.config.Hosts())
	ctx, cancel := context.WithTimeout(ctx, awaitNamesFor)
	defer cancel()
	n.names.Await(ctx)
}

// serve puts the load balancers and nodes of next into force. set hands the load balancers over.
func (n *node) serve(next desired.State, set func(desired.State) error) error {
	if n.balancer == nil {
		return nil
	}
	before := n.state.Load().Nodes
	n.setNodes(desired.Union(before, next.Nodes))
	if err := set(next); err != nil {
		n.setNodes(before)
		return err
	}
	n.setNodes(next.Nodes)
	return nil
}

// setLoadBalancers hands the load balancers to the balancer, unless they are in force.
func (n *node) setLoadBalancers(s desired.State) error {
	if reflect.DeepEqual(n.state.Load().LoadBalancers, s.LoadBalancers) {
		return nil
	}
	return n.balancer.Set(s.LoadBalancers)
}

// publish tells the workers what this peer serves, as of index in the group's log.
func (n *node) publish(l desired.List, index uint64) {
	data, err := json.Marshal(l)
	if err != nil {
		n.log.Error("the workers cannot be told of the backends", "error", err)
		return
	}
	n.group.Publish(data, index)
}

// setNodes tells the direct data plane which nodes there are.
func (n *node) setNodes(nodes []pathprobe.Node) {
	if n.planes.Direct != nil {
		n.planes.Direct.SetNodes(nodes)
	}
}
