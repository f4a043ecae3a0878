package balancer

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
			b := &Balancer{cfg: Config{Planes: tt.planes}}
			c := b.choose(t.Context(), LoadBalancer{Name: "lb", Plane: tt.want})
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

// without is a Prover that has these planes tried in vain.
type without []PlaneName

func (w without) Unproved(_ LoadBalancer, p PlaneName) string {
	if slices.Contains(w, p) {
		return string(p) + " serves nobody"
	}
	return ""
}

func TestChooseProved(t *testing.T) {
	no := errors.New("the kernel lacks it")
	all := []Plane{usable{name: Direct}, usable{name: IPVS, err: no}, usable{name: NFTables}, usable{name: UserSpace}}
	for _, tt := range []struct {
		name    string
		without without
		want    PlaneName
		plane   PlaneName
		refused []Refusal
	}{
		{"nothing is known", nil, Auto, Direct, nil},
		{"the first serves nobody", without{Direct}, Auto, NFTables,
			[]Refusal{{Direct, "direct serves nobody"}, {IPVS, no.Error()}}},
		{"another does", without{NFTables}, Auto, Direct, nil},
		{"none serves, and the first stays", without{Direct, NFTables, UserSpace}, Auto, Direct, nil},
		{"the operator knows better", without{Direct}, Direct, Direct, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &Balancer{cfg: Config{Planes: all, Prover: tt.without}}
			c := b.choose(t.Context(), LoadBalancer{Name: "lb", Plane: tt.want})
			if c.plane != tt.plane || !slices.Equal(c.refused, tt.refused) {
				t.Errorf("chose %s, refused %v; want %s, %v", c.plane, c.refused, tt.plane, tt.refused)
			}
		})
	}
}
