package configs

import (
	"slices"
	"strings"
)

// liveKeys begin the keys that a running appliance can put into force. All
// others are about what it was built on.
var liveKeys = []string{keyLBs, keyTracks, keyHooks, "dataPlane", "addPeersAsBackends", "log.level"}

// A Change is a key whose value is another than before, without the number of an
// element, and where that stands. A key that has gone stands nowhere.
type Change struct {
	Key    string
	Origin Origin
}

func (c Change) String() string {
	if c.Origin.IsDefault() {
		return c.Key + " (no longer set)"
	}
	return c.Key + " (" + c.Origin.String() + ")"
}

// Changes says which keys differ between what is in force and what next wants:
// those that can change live, and those that need a restart.
func (c *Config) Changes(next *Config) (live []string, restart []Change) {
	before, after := c.byKey(), next.byKey()
	note := func(key string, o Origin) {
		name, _, _ := strings.Cut(key, "[")
		switch {
		case isLive(key) && !slices.Contains(live, name):
			live = append(live, name)
		case !isLive(key) && !slices.ContainsFunc(restart, func(c Change) bool { return c.Key == name }):
			restart = append(restart, Change{name, o})
		}
	}
	for _, v := range next.values {
		if was, ok := before[v.Key]; !ok || was != v.Value+v.secret {
			note(v.Key, v.Origin)
		}
	}
	for _, v := range c.values {
		if _, ok := after[v.Key]; !ok {
			note(v.Key, next.placeOf(v.Key))
		}
	}
	return live, restart
}

// placeOf is where the list begins that has lost the element key.
func (c *Config) placeOf(key string) Origin {
	list, _, _ := strings.Cut(key, "[")
	for _, v := range c.values {
		if other, _, _ := strings.Cut(v.Key, "["); other == list {
			return v.Origin
		}
	}
	return Origin{}
}

func isLive(key string) bool {
	key, _, _ = strings.Cut(key, "[")
	return slices.Contains(liveKeys, key)
}

func (c *Config) byKey() map[string]string {
	m := make(map[string]string, len(c.values))
	for _, v := range c.values {
		m[v.Key] = v.Value + v.secret
	}
	return m
}

// Standing is next with everything that cannot change live as it is in c.
func (c *Config) Standing(next *Config) *Config {
	out := *c
	out.DataPlane, out.Tracks, out.Hooks = next.DataPlane, next.Tracks, next.Hooks
	out.Log.Level = next.Log.Level
	out.Warnings = next.Warnings
	out.LoadBalancers = slices.Clone(next.LoadBalancers)
	for i, lb := range out.LoadBalancers {
		if lb.BindToVIP {
			out.LoadBalancers[i].VIPs = c.VIPs
		}
	}
	out.values = nil
	for _, v := range next.values {
		if isLive(v.Key) {
			out.values = append(out.values, v)
		}
	}
	for _, v := range c.values {
		if !isLive(v.Key) {
			out.values = append(out.values, v)
		}
	}
	return &out
}
