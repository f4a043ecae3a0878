package install

import (
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"appliance/configs"
)

// File makes a configuration file of what flags and environment say. It has no comments of its own: `appliance config
// sample` explains every key. backends are the servers of its only load balancer; without any, the peers are.
func File(src configs.Source, backends []string) ([]byte, error) {
	tree := make(map[string]any)
	for _, arg := range src.Args() {
		flag, value, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		for _, s := range configs.Settings() {
			if s.Flag == flag && s.Key != "" {
				put(tree, s, value)
			}
		}
	}
	_, listed := tree["loadBalancers"]
	switch {
	case len(backends) > 0:
		below(tree, "loadBalancers[]")["backends"] = backends
	case listed:
		tree["addPeersAsBackends"] = true
		below(tree, "loadBalancers[]")["name"] = "kube-apiserver" // what it is called without a list, too
	}
	text, err := yaml.Marshal(tree)
	if err != nil {
		return nil, err
	}
	return append([]byte("# `appliance config sample` prints every key, its default, and why.\n"), text...), nil
}

// put lays a value at the place of its key. Peers and their like are written short, as the flag has them.
func put(tree map[string]any, s configs.Setting, value string) {
	key := s.Key
	if s.Type == configs.List {
		key, _, _ = strings.Cut(key, "[]")
		if rest, element := strings.CutPrefix(s.Key, "loadBalancers[]."); element {
			key = "loadBalancers[]." + strings.TrimSuffix(rest, "[]")
		}
	}
	at := tree
	words := strings.Split(key, ".")
	for _, w := range words[:len(words)-1] {
		at = below(at, w)
	}
	at[words[len(words)-1]] = typed(s.Type, value)
}

// below is the map at a name; of a list, its only element.
func below(at map[string]any, name string) map[string]any {
	name, list := strings.CutSuffix(name, "[]")
	if have, ok := at[name].([]any); ok {
		return have[0].(map[string]any)
	}
	if have, ok := at[name].(map[string]any); ok {
		return have
	}
	next := make(map[string]any)
	at[name] = next
	if list {
		at[name] = []any{next}
	}
	return next
}

func typed(t configs.Type, value string) any {
	switch t {
	case configs.List:
		var all []any
		for v := range strings.SplitSeq(value, ",") {
			if v = strings.TrimSpace(v); v != "" {
				all = append(all, v)
			}
		}
		return all
	case configs.Bool:
		if b, err := strconv.ParseBool(value); err == nil {
			return b
		}
	case configs.Int, configs.Port:
		if n, err := strconv.Atoi(value); err == nil {
			return n
		}
	}
	return value
}
