package desired

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"appliance/balancer"
	"appliance/configs"
)

func TestFindBackends(t *testing.T) {
	at := netip.MustParseAddrPort
	cfg := &configs.Config{LoadBalancers: []configs.LoadBalancerEntry{
		{
			Name:     "api",
			Backends: []configs.BackendEntry{entry("cp1", "192.0.2.1:6443", 0), entry("", "[2001:db8::2]:6443", 0)},
		},
		{Name: "a/b", Backends: []configs.BackendEntry{entry("cp1", "192.0.2.1:443", 0)}},
	}}
	seven := 7
	given := ReadOverrides(map[string]string{
		"backend/api/192.0.2.1:6443": `{"out":"drain"}`,
		"backend/a/b/192.0.2.9:443":  `{"weight":7}`, // not in the file any more
		"backend/api/what":           `{}`,
		"backend/api/192.0.2.3:1":    `{`,
		"cluster":                    "x",
	})
	want := map[BackendRef]balancer.Override{
		{"api", at("192.0.2.1:6443")}: {Out: "drain"},
		{"a/b", at("192.0.2.9:443")}:  {Weight: &seven},
	}
	if len(given) != len(want) {
		t.Errorf("read %v", given)
	}
	for k, v := range want {
		if given[k].String() != v.String() {
			t.Errorf("%v: read %q, want %q", k, given[k], v)
		}
	}
	const known = "a/b/192.0.2.9:443, a/b/cp1, api/[2001:db8::2]:6443, api/cp1"
	for name, want := range map[string]string{
		"api/cp1":            "api/cp1",
		"cp1":                "a/b/cp1 api/cp1",
		"a/b/cp1":            "a/b/cp1",
		"192.0.2.1":          "a/b/cp1 api/cp1",
		"192.0.2.1:443":      "a/b/cp1",
		"2001:db8::2":        "api/[2001:db8::2]:6443",
		"[2001:db8::2]:6443": "api/[2001:db8::2]:6443",
		"a/b/192.0.2.9":      "a/b/192.0.2.9:443",
		"cp2":                `there is no backend "cp2"; known here: ` + known,
		"":                   `there is no backend ""; known here: ` + known,
	} {
		found, err := find(cfg, given, name)
		var names []string
		for _, o := range found {
			names = append(names, o.String())
		}
		slices.Sort(names)
		got := strings.Join(names, " ")
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
	}
}

func TestReviseOrder(t *testing.T) {
	five := 5
	for _, tt := range []struct {
		from       balancer.Override
		do, weight string
		want       string
	}{
		{balancer.Override{Out: "enable"}, "disable", "", "disable"},
		{balancer.Override{}, "drain", "", "drain"},
		{balancer.Override{Out: "drain"}, "disable", "", "disable"},
		{balancer.Override{Out: "drain"}, "weight", "5", "drain, weight 5"},
		{balancer.Override{Weight: &five}, "weight", "0", "weight 0"},
		{balancer.Override{Out: "drain", Weight: &five}, "enable", "", ""},
		{balancer.Override{}, "weight", "257", `weight "257" is not a number from 0 to 256; write one`},
		{balancer.Override{}, "weight", "", `weight "" is not a number from 0 to 256; write one`},
		{balancer.Override{}, "remove", "", `"remove" is no order; write drain, enable, disable or weight`},
	} {
		o, err := revise(tt.from, false, tt.do, tt.weight)
		got := o.String()
		if err != nil {
			got = fmt.Sprint(err)
		}
		if got != tt.want {
			t.Errorf("%v, %s %s: %s, want %s", tt.from, tt.do, tt.weight, got, tt.want)
		}
	} // The configuration disables it: then enable is an order of its own.
	o, err := revise(balancer.Override{Out: "disable"}, true, "enable", "")
	if err != nil || o.String() != "enable" {
		t.Errorf("%v, %v", o, err)
	}
}
