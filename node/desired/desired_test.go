package desired

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"appliance/balancer"
	"appliance/configs"
	"appliance/raft"
)

// TestCompute: what the file, the group, the peers' list and the operator say, each in the cases that differ.
func TestCompute(t *testing.T) {
	at, host := netip.MustParseAddrPort, netip.MustParseAddr
	file := func(role string) *configs.Config {
		words := map[string]string{"vip": "192.0.2.10", "peers": "a=192.0.2.1", "role": role, "data-dir": t.TempDir()}
		if role == "" {
			words["single-node"] = "true"
		}
		cfg, err := configs.Load("", configs.Source{Flag: func(name string) (string, bool) {
			v := words[name]
			return v, v != ""
		}})
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	member := func(id, addr string) raft.PeerStatus {
		return raft.PeerStatus{ID: id, Addr: netip.AddrPortFrom(host(addr), 10000)}
	}
	drained := member("b", "192.0.2.2")
	drained.Drained = true
	group := &raft.Status{Leader: "a", Peers: []raft.PeerStatus{member("a", "192.0.2.1"), drained}}
	holds := &raft.Status{Leader: "b", Peers: group.Peers}
	disabled := map[string]string{"backend/kube-apiserver/192.0.2.2:6443": `{"out":"disable"}`}
	list := Compute(Known{Config: file(""), Self: "a", Group: group, Settings: disabled}).List

	for name, tt := range map[string]struct {
		known Known
		// backends and overrides are what is served, nodes whom the direct data plane knows.
		backends, nodes []string
		overrides       map[string]string
	}{
		"the file alone": {
			Known{Config: file(""), Self: "a"}, []string{"192.0.2.1:6443"}, []string{"a"}, nil,
		},
		"a group that has grown, with a drained peer": {
			Known{Config: file(""), Self: "a", Group: group},
			[]string{"192.0.2.1:6443", "192.0.2.2:6443"}, []string{"a", "b"},
			map[string]string{"192.0.2.2:6443": "drain"},
		},
		"a drained peer that still holds": {
			Known{Config: file(""), Self: "a", Group: holds},
			[]string{"192.0.2.1:6443", "192.0.2.2:6443"}, []string{"a", "b"}, nil,
		},
		"an order goes before a drained peer": {
			Known{Config: file(""), Self: "a", Group: group, Settings: disabled},
			[]string{"192.0.2.1:6443", "192.0.2.2:6443"}, []string{"a", "b"},
			map[string]string{"192.0.2.2:6443": "disable"},
		},
		"a worker without a list": {
			Known{Config: file("worker"), Self: "w"}, []string{"192.0.2.1:6443"}, []string{"w"}, nil,
		},
		"a worker with the peers' list": {
			Known{Config: file("worker"), Self: "w", List: &list},
			[]string{"192.0.2.1:6443", "192.0.2.2:6443"}, []string{"w"},
			map[string]string{"192.0.2.2:6443": "disable"},
		},
		"a worker that has a backend": {
			Known{Config: file("worker"), Self: "w", List: &list, Local: []netip.Addr{host("192.0.2.2")}},
			[]string{"192.0.2.1:6443", "192.0.2.2:6443"}, []string{"a", "b", "w"},
			map[string]string{"192.0.2.2:6443": "disable"},
		},
	} {
		got := Compute(tt.known)
		var backends, nodes []string
		for _, b := range got.LoadBalancers[0].Backends {
			backends = append(backends, b.Addr.String())
		}
		for _, n := range got.Nodes {
			nodes = append(nodes, n.ID)
		}
		if !slices.Equal(backends, tt.backends) || !slices.Equal(nodes, tt.nodes) {
			t.Errorf("%s: backends %v and nodes %v, want %v and %v", name, backends, nodes, tt.backends, tt.nodes)
		}
		want := make(map[balancer.Target]string)
		for addr, o := range tt.overrides {
			want[balancer.Target{LoadBalancer: "kube-apiserver", Backend: at(addr)}] = o
		}
		overrides := make(map[balancer.Target]string)
		for target, o := range got.Overrides {
			overrides[target] = o.String()
		}
		if d := cmp.Diff(want, overrides, sameAddrs); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}
