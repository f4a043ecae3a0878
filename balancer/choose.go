package balancer

import (
	"context"
	"fmt"
	"strings"
)

// A Refusal says why a data plane cannot serve a load balancer.
type Refusal struct {
	Plane  PlaneName `json:"plane"`
	Reason string    `json:"reason"`
}

// choice is the data plane found for a load balancer, and why that one.
type choice struct {
	plane   PlaneName // empty if there is none, then err says why
	reason  string
	refused []Refusal // those that would have been preferred
	err     error
}

// why is the reason with what was against the others.
func (c choice) why() string {
	why := c.reason
	for _, r := range c.refused {
		why += fmt.Sprintf("; not %s: %s", r.Plane, r.Reason)
	}
	return why
}

// choose asks the planes, in the order of preference, whether they can serve
// lb. A plane that the operator forced is the only one asked.
func choose(ctx context.Context, planes []Plane, lb LoadBalancer) choice {
	forced := lb.Plane != Auto && lb.Plane != ""
	var c choice
	var known []string
	for _, p := range planes {
		known = append(known, string(p.Name()))
		if forced && p.Name() != lb.Plane {
			continue
		}
		if err := p.Usable(ctx, lb); err != nil {
			c.refused = append(c.refused, Refusal{p.Name(), err.Error()})
			continue
		}
		c.plane, c.reason = p.Name(), "the configuration asks for it"
		if !forced {
			c.reason = "the first choice"
			if len(c.refused) > 0 {
				c.reason = "the first that works here"
			}
		}
		return c
	}
	switch {
	case forced && len(c.refused) == 0:
		c.err = fmt.Errorf("load balancer %s: there is no data plane %q: use auto or one of %s",
			lb.Name, lb.Plane, strings.Join(known, ", "))
	case forced:
		c.err = fmt.Errorf("load balancer %s: data plane %s cannot serve it: %s; or set dataPlane to auto",
			lb.Name, lb.Plane, c.refused[0].Reason)
	default:
		var why []string
		for _, r := range c.refused {
			why = append(why, fmt.Sprintf("%s: %s", r.Plane, r.Reason))
		}
		c.err = fmt.Errorf("load balancer %s: no data plane can serve it (%s): mend one of these reasons",
			lb.Name, strings.Join(why, "; "))
	}
	return c
}
