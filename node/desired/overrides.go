package desired

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"appliance/balancer"
	"appliance/configs"
)

// Operators override backends by settings of the group, one for each backend of each load balancer: overridePrefix +
// load balancer + "/" + address. So every node follows them, and they survive restarts.
const overridePrefix = "backend/"

// A BackendRef names one backend of one load balancer of the configuration.
type BackendRef struct {
	LoadBalancer string
	Addr         netip.AddrPort
}

func (r BackendRef) setting() string { return overridePrefix + r.LoadBalancer + "/" + r.Addr.String() }

// ReadOverrides reads the group's settings. It passes over what it does not understand, which is of a later version.
func ReadOverrides(settings map[string]string) map[BackendRef]balancer.Override {
	found := make(map[BackendRef]balancer.Override)
	for key, value := range settings {
		rest, ok := strings.CutPrefix(key, overridePrefix)
		slash := strings.LastIndexByte(rest, '/')
		if !ok || slash < 0 {
			continue
		}
		addr, err := netip.ParseAddrPort(rest[slash+1:])
		var o balancer.Override
		if err != nil || json.Unmarshal([]byte(value), &o) != nil {
			continue
		}
		found[BackendRef{rest[:slash], addr}] = o
	}
	return found
}

// A namedBackend is a backend with what people call it.
type namedBackend struct {
	BackendRef
	name, host string
	disabled   bool // by the configuration
}

func (b namedBackend) String() string {
	if b.name == "" {
		return b.LoadBalancer + "/" + b.Addr.String()
	}
	return b.LoadBalancer + "/" + b.name
}

// find returns the backends that name means: one of a load balancer as LB/BACKEND, or BACKEND in each load balancer
// that has it. A backend is called by its name or its address, with or without the port; a host's name means all its
// addresses. A backend that has an override is known even if the configuration has it no more.
func find(cfg *configs.Config, overrides map[BackendRef]balancer.Override, name string) ([]namedBackend, error) {
	var known []namedBackend
	for _, lb := range cfg.LoadBalancers {
		for _, b := range lb.Backends {
			if b.Resolved() {
				known = append(known, namedBackend{BackendRef{lb.Name, b.Addr}, b.Name, b.Host, b.Disabled})
			}
		}
	}
	for ref := range overrides {
		if !slices.ContainsFunc(known, func(k namedBackend) bool { return k.BackendRef == ref }) {
			known = append(known, namedBackend{BackendRef: ref})
		}
	}
	var found []namedBackend
	var names []string
	for _, b := range known {
		names = append(names, b.String())
		for _, is := range []string{b.name, b.host, b.Addr.String(), b.Addr.Addr().String()} {
			if is != "" && (name == is || name == b.LoadBalancer+"/"+is) {
				found = append(found, b)
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

// revise returns the override that o becomes; disabled is what the configuration says of the backend.
func revise(o balancer.Override, disabled bool, do, weight string) (balancer.Override, error) {
	switch do {
	case balancer.Enable:
		if disabled {
			return balancer.Override{Out: balancer.Enable}, nil
		}
		return balancer.Override{}, nil
	case balancer.Drain, balancer.Disable:
		o.Out = do
		return o, nil
	case "weight":
		w, err := strconv.Atoi(weight)
		if err != nil || w < 0 || w > heaviest {
			return o, fmt.Errorf("weight %q is not a number from 0 to %d; write one", weight, heaviest)
		}
		o.Weight = &w
		return o, nil
	}
	return o, fmt.Errorf("%q is no order; write drain, enable, disable or weight", do)
}

// A SettingsChange is a change of the group's settings.
type SettingsChange struct {
	Set    map[string]string
	Remove []string
	// Said is a line for each backend that it is about.
	Said []string
}

// Override returns the change of the group's settings that does what an operator asks, enable, drain, disable or
// weight, for the backends of cfg that name means.
func Override(cfg *configs.Config, settings map[string]string, do, name, weight string) (SettingsChange, error) {
	overrides := ReadOverrides(settings)
	found, err := find(cfg, overrides, name)
	if err != nil {
		return SettingsChange{}, err
	}
	change := SettingsChange{Set: make(map[string]string)}
	for _, b := range found {
		next, err := revise(overrides[b.BackendRef], b.disabled, do, weight)
		if err != nil {
			return SettingsChange{}, err
		}
		if next == (balancer.Override{}) {
			change.Remove = append(change.Remove, b.setting())
			change.Said = append(change.Said, b.String()+": as configured")
			continue
		}
		text, err := json.Marshal(next)
		if err != nil {
			return SettingsChange{}, err
		}
		change.Set[b.setting()] = string(text)
		change.Said = append(change.Said, b.String()+": "+next.String())
	}
	return change, nil
}

// targets returns the overrides in the balancer's terms: one load balancer of the configuration may be several of the
// balancer's.
func targets(cfg *configs.Config, overrides map[BackendRef]balancer.Override) map[balancer.Target]balancer.Override {
	wanted := make(map[balancer.Target]balancer.Override)
	for _, c := range cfg.LoadBalancers {
		for _, lb := range c.ForBalancer() {
			for _, b := range lb.Backends {
				if o, ok := overrides[BackendRef{c.Name, b.Addr}]; ok {
					wanted[balancer.Target{LoadBalancer: lb.Name, Backend: b.Addr}] = o
				}
			}
		}
	}
	return wanted
}
