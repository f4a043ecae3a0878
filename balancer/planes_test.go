package balancer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// usable is a Plane that only implements Usable.
type usable struct {
	Plane
	name PlaneName
	err  error
}

func (u usable) Name() PlaneName                            { return u.name }
func (u usable) Usable(context.Context, LoadBalancer) error { return u.err }

func TestChoose(t *testing.T) {
	planes := func(direct, ipvs, nft error) []Plane {
		return []Plane{usable{name: Direct, err: direct}, usable{name: IPVS, err: ipvs},
			usable{name: NFTables, err: nft}, usable{name: UserSpace}}
	}
	no := errors.New("the kernel lacks it: load the module")
	tests := []struct {
		name    string
		planes  []Plane
		want    PlaneName
		plane   PlaneName
		refused string
		err     string
	}{
		{"auto takes the first", planes(nil, nil, nil), Auto, Direct, "[]", ""},
		{"empty is auto", planes(nil, nil, nil), "", Direct, "[]", ""},
		{"auto passes over one", planes(no, nil, nil), Auto, IPVS, "[direct]", ""},
		{"auto ends in user space", planes(no, no, no), Auto, UserSpace, "[direct ipvs nftables]", ""},
		{"forced, though a faster one works", planes(nil, nil, nil), UserSpace, UserSpace, "[]", ""},
		{"forced and not usable", planes(nil, no, nil), IPVS, "", "[ipvs]", "load the module"},
		{"forced and unknown", planes(nil, nil, nil), "ebpf", "", "[]", "use auto or one of direct, ipvs"},
		{"none at all", planes(no, no, no)[:3], Auto, "", "[direct ipvs nftables]", "no data plane can serve it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := choose(t.Context(), tt.planes, LoadBalancer{Name: "lb", Plane: tt.want})
			refused := []PlaneName{}
			for _, r := range c.refused {
				refused = append(refused, r.Plane)
				if r.Reason != no.Error() {
					t.Errorf("%s refused because of %q", r.Plane, r.Reason)
				}
			}
			if c.plane != tt.plane || fmt.Sprint(refused) != tt.refused {
				t.Errorf("chose %q, refused %v; want %q, %s", c.plane, refused, tt.plane, tt.refused)
			}
			if (c.err == nil) != (tt.err == "") || c.err != nil && !strings.Contains(c.err.Error(), tt.err) {
				t.Errorf("error %v, want %q", c.err, tt.err)
			}
			if c.err == nil && c.reason == "" {
				t.Error("there is no reason")
			}
		})
	}
}
