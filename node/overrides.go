package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"appliance/balancer"
	"appliance/configs"
	"appliance/raft"
)

// The operator's orders about backends are settings of the group, one for each
// backend of each load balancer: orderPrefix + load balancer + "/" + address.
// So every node follows them, and they outlive restarts.
const orderPrefix = "backend/"

// ordered is one backend of one load balancer, as the configuration has it.
type ordered struct {
	lb, name string
	addr     netip.AddrPort
}

func (o ordered) key() string { return orderPrefix + o.lb + "/" + o.addr.String() }

func (o ordered) String() string {
	if o.name == "" {
		return o.lb + "/" + o.addr.String()
	}
	return o.lb + "/" + o.name
}

// orders reads the group's settings.
func orders(settings map[string]string) map[ordered]balancer.Order {
	found := make(map[ordered]balancer.Order)
	for key, value := range settings {
		rest, ok := strings.CutPrefix(key, orderPrefix)
		slash := strings.LastIndexByte(rest, '/')
		if !ok || slash < 0 {
			continue
		}
		addr, err := netip.ParseAddrPort(rest[slash+1:])
		var o balancer.Order
		if err != nil || json.Unmarshal([]byte(value), &o) != nil {
			continue // a newer version's; what is understood is followed
		}
		found[ordered{lb: rest[:slash], addr: addr}] = o
	}
	return found
}

// backendsOf lists the backends of cfg.
func backendsOf(cfg *configs.Config) []ordered {
	var all []ordered
	for _, lb := range cfg.LoadBalancers {
		for _, b := range lb.Backends {
			all = append(all, ordered{lb.Name, b.Name, b.Address})
		}
	}
	return all
}

// find is the backends that name means: one of a load balancer as LB/BACKEND, or
// BACKEND in each load balancer that has it. A backend is called by its name or
// its address, with or without the port. Those that an order is about are known
// although the configuration has lost them.
func find(cfg *configs.Config, given map[ordered]balancer.Order, name string) ([]ordered, error) {
	known := backendsOf(cfg)
	for o := range given {
		if !slices.ContainsFunc(known, func(k ordered) bool { return k.key() == o.key() }) {
			known = append(known, o)
		}
	}
	var found []ordered
	var names []string
	for _, o := range known {
		names = append(names, o.String())
		for _, is := range []string{o.name, o.addr.String(), o.addr.Addr().String()} {
			if is != "" && (name == is || name == o.lb+"/"+is) {
				found = append(found, o)
				break
			}
		}
	}
	if len(found) == 0 {
		slices.Sort(names)
		return nil, fmt.Errorf("there is no backend %q; known here: %s", name, strings.Join(names, ", "))
	}
	return found, nil
}

// revise is what an order becomes.
func revise(o balancer.Order, do, weight string) (balancer.Order, error) {
	switch do {
	case "enable":
		return balancer.Order{}, nil
	case balancer.Drain, balancer.Disable:
		o.Out = do
		return o, nil
	case "weight":
		w, err := strconv.Atoi(weight)
		if err != nil || w < 0 || w > 256 {
			return o, fmt.Errorf("weight %q is not a number from 0 to 256; write one", weight)
		}
		o.Weight = &w
		return o, nil
	}
	return o, fmt.Errorf("%q is no order; write drain, enable, disable or weight", do)
}

// give gives an order to the whole group, and returns what was ordered of whom.
func (n *node) give(ctx context.Context, do, name, weight string) ([]string, error) {
	if n.group == nil {
		return nil, errors.New("this is a worker, which is in no group; give the order on one of the peers, and edit a worker's own file")
	}
	given := orders(n.group.Settings())
	found, err := find(n.grown(n.serving.Load()), given, name)
	if err != nil {
		return nil, err
	}
	set := make(map[string]string)
	var remove, said []string
	for _, o := range found {
		next, err := revise(given[ordered{lb: o.lb, addr: o.addr}], do, weight)
		if err != nil {
			return nil, err
		}
		if next == (balancer.Order{}) {
			remove = append(remove, o.key())
			said = append(said, o.String()+": as configured")
			continue
		}
		text, err := json.Marshal(next)
		if err != nil {
			return nil, err
		}
		set[o.key()] = string(text)
		said = append(said, o.String()+": "+next.String())
	}
	if err := n.group.Propose(ctx, set, remove...); err != nil {
		return nil, fmt.Errorf("the group does not take the order: %w", err)
	}
	return said, nil
}

// followOrders has the balancer follow the group's orders.
func (n *node) followOrders(ctx context.Context) error {
	for {
		changed := n.group.Changed()
		n.followOrdersOnce()
		select {
		case <-changed:
		case <-n.reloaded:
		case <-ctx.Done():
			return nil
		}
	}
}

// followOrdersOnce finds whom the orders mean: one load balancer of the
// configuration may be several of the balancer's.
func (n *node) followOrdersOnce() {
	if n.balancer == nil {
		return
	}
	index := n.group.Index() // before what it is to stand for
	group := n.group.Status()
	cfg := withMembers(n.serving.Load(), group.Peers)
	n.balancer.Order(targets(cfg, orders(n.group.Settings()), group))
	n.publish(cfg, group, index)
}

// targets are the backends of cfg that something was ordered of.
func targets(cfg *configs.Config, given map[ordered]balancer.Order, group raft.Status) map[balancer.Target]balancer.Order {
	wanted := make(map[balancer.Target]balancer.Order)
	for _, c := range cfg.LoadBalancers {
		for _, lb := range loadBalancers(&configs.Config{LoadBalancers: []configs.LoadBalancer{c}}) {
			for _, b := range lb.Backends {
				target := balancer.Target{LoadBalancer: lb.Name, Backend: b.Addr}
				if o, ok := given[ordered{lb: c.Name, addr: b.Addr}]; ok {
					wanted[target] = o
				} else if o, ok := drainedOrder(group, b.Addr.Addr()); ok {
					wanted[target] = o
				}
			}
		}
	}
	return wanted
}

// handleOrders answers POST /backends on the root-only socket.
func (n *node) handleOrders(mux *http.ServeMux) {
	mux.HandleFunc("POST /backends", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		said, err := n.give(r.Context(), q.Get("do"), q.Get("name"), q.Get("weight"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		fmt.Fprintln(w, strings.Join(said, "\n"))
	})
}
