package configs

import (
	"slices"
	"strings"
)

// liveKeys begin the keys that a running appliance can put into force. All
// others are about what it was built on.
var liveKeys = []string{keyLBs, keyTracks, keyHooks, "dataPlane", "addPeersAsBackends", "log.level"}

// Changes says which keys differ between what is in force and what next wants,
// without the numbers of elements: those that can change live, and those that
// need a restart.
func (c *Config) Changes(next *Config) (live, restart []string) {
	before, after := c.byKey(), next.byKey()
	note := func(key string) {
		list := &restart
		if isLive(key) {
			list = &live
		}
		key, _, _ = strings.Cut(key, "[")
		if !slices.Contains(*list, key) {
			*list = append(*list, key)
		}
	}
	for _, v := range next.values {
		if was, ok := before[v.Key]; !ok || was != v.Value {
			note(v.Key)
		}
	}
	for _, v := range c.values {
		if _, ok := after[v.Key]; !ok {
			note(v.Key)
		}
	}
	return live, restart
}

func isLive(key string) bool {
	key, _, _ = strings.Cut(key, "[")
	return slices.Contains(liveKeys, key)
}

func (c *Config) byKey() map[string]string {
	m := make(map[string]string, len(c.values))
	for _, v := range c.values {
		m[v.Key] = v.Value
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
