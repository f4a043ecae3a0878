package raft

import "fmt"

// A Claim is how fit a peer says that it is to hold. The zero Claim is that of
// a peer with which nothing is wrong.
type Claim struct {
	// Barred is why it should not hold while another can; empty if it may.
	Barred string `json:"barred,omitempty"`
	// Blind is how many of its load balancers have no healthy backend. A
	// holder gives way to a peer that sees more of them.
	Blind int `json:"blind,omitempty"`
	// Lowered is how much less it is wanted than its priority says.
	Lowered int `json:"lowered,omitempty"`
}

// String says what is wrong, or nothing.
func (c Claim) String() string {
	switch {
	case c.Barred != "":
		return c.Barred
	case c.Blind > 0:
		return fmt.Sprintf("load balancers without a healthy backend: %d", c.Blind)
	case c.Lowered > 0:
		return fmt.Sprintf("its claim is lowered by %d", c.Lowered)
	}
	return ""
}

// SetClaim tells the group how fit this peer is. The others learn it within a
// second; a holder that is less fit than another gives way.
func (g *Group) SetClaim(c Claim) {
	g.mu.Lock()
	changed := g.claim != c
	g.claim = c
	g.mu.Unlock()
	if changed {
		g.change.Fire()
	}
}

// claimOf is what peer id says of itself, as far as it is known here.
func (g *Group) claimOf(id string) Claim {
	g.mu.Lock()
	defer g.mu.Unlock()
	if id == g.cfg.ID {
		return g.claim
	}
	return g.hellos[id].Claim
}
