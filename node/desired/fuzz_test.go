package desired

import (
	"encoding/json"
	"testing"

	"appliance/configs"
)

// FuzzList: whatever a worker gets as the peers' list, what it serves are addresses with ports and weights that count,
// or the list is refused.
func FuzzList(f *testing.F) {
	f.Add([]byte(`{"format":1,"nodes":[{"id":"n1","addresses":["192.0.2.1"]}],` +
		`"loadBalancers":[{"name":"api","port":6443,"backends":[{"name":"n1","address":"192.0.2.1:6443","weight":1,"order":{"out":"drain"}},` +
		`{"address":"[2001:db8::2]:6443","weight":2,"order":{"weight":5}},{"address":"192.0.2.3:6443","weight":0}]}]}`))
	f.Add([]byte(`{"loadBalancers":[{"port":6443,"backends":[{"address":"[::]:0"}]}]}`))
	file := &configs.Config{LoadBalancers: []configs.LoadBalancerEntry{{Name: "api", Port: 6443}}}
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := ReadList(data)
		if err != nil {
			return
		}
		s := Compute(Known{Config: file, List: l})
		for _, lb := range s.LoadBalancers {
			for _, b := range lb.Backends {
				if !b.Addr.IsValid() || b.Addr.Port() == 0 || b.Addr.Addr().IsUnspecified() || b.Weight < 0 ||
					b.Weight > heaviest {
					t.Errorf("%s has %s serve %+v", data, lb.Name, b)
				}
			}
		}
		for to, o := range s.Overrides {
			if !to.Backend.IsValid() || o.Weight != nil && *o.Weight < 0 {
				t.Errorf("%s has an order %+v for %v", data, o, to)
			}
		}
		if _, err := json.Marshal(l); err != nil {
			t.Error(err)
		}
	})
}

// FuzzOverrides: the group's settings, whoever wrote them, are read as orders that can be followed.
func FuzzOverrides(f *testing.F) {
	f.Add("backend/api/192.0.2.1:6443", `{"out":"drain","weight":5}`)
	f.Fuzz(func(t *testing.T, key, value string) {
		for ref, o := range ReadOverrides(map[string]string{key: value}) {
			if !ref.Addr.IsValid() || o.Weight != nil && *o.Weight < 0 {
				t.Errorf("%q: %q is read as %+v for %v", key, value, o, ref)
			}
		}
	})
}
