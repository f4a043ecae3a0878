package raft

import (
	"net/netip"
	"strings"
	"testing"
)

func TestDecide(t *testing.T) {
	peers := []Peer{
		{ID: "a", Addr: netip.MustParseAddrPort("192.0.2.1:10000")},
		{ID: "b", Addr: netip.MustParseAddrPort("192.0.2.2:10000")},
		{ID: "c", Addr: netip.MustParseAddrPort("192.0.2.3:10000")},
	}
	h := func(id string, change ...func(*hello)) hello {
		h := hello{ID: id, Peers: peers}
		for _, f := range change {
			f(&h)
		}
		return h
	}
	starts := func(h *hello) { h.StartAsLeader = true }
	state := func(h *hello) { h.HasState, h.LastIndex, h.Term, h.Members = true, 7, 3, []string{"a", "b", "c"} }
	begun := func(h *hello) { h.HasState, h.LastIndex, h.Term, h.Members = true, 1, 1, []string{"a", "b", "c"} }
	voted := func(h *hello) { begun(h); h.Term = 2 }
	alone := func(h *hello) { begun(h); h.Members = []string{"b"} }
	together := func(h *hello) { h.Intent = intentTogether }
	single := func(h *hello) { h.Intent = intentAlone }
	moved := func(h *hello) {
		h.Peers = append([]Peer(nil), peers...)
		h.Peers[0].Addr = netip.MustParseAddrPort("192.0.2.9:10000")
	}
	fewer := func(h *hello) { h.Peers = peers[:2] }

	for _, tt := range []struct {
		name   string
		self   hello
		others []hello
		do     action
		why    string
	}{
		{"nobody answers", h("a"), nil, askAgain, "1 of 3"},
		{"a majority is fresh", h("a"), []hello{h("b")}, bootstrapTogether, "2 of 3"},
		{"all are fresh", h("b"), []hello{h("a"), h("c")}, bootstrapTogether, "3 of 3"},
		{"one has a group", h("a"), []hello{h("b"), h("c", state)}, join, "peer c"},
		{"one has a group, all start as leader", h("a", starts), []hello{h("b", starts), h("c", state)}, join,
			"peer c"},
		{"one was quicker", h("a"), []hello{h("b", begun)}, bootstrapTogether, "2 of 3"},
		{"one was quicker, and has voted", h("a"), []hello{h("b", voted), h("c")}, join, "peer b"},
		{"one has just begun alone", h("a"), []hello{h("b", alone), h("c")}, join, "peer b"},
		{"starts as leader, alone", h("a", starts), nil, bootstrapAlone, "startAsLeader"},
		{"starts as leader, others fresh", h("c", starts), []hello{h("a"), h("b")}, bootstrapAlone, "startAsLeader"},
		{"another starts as leader", h("a"), []hello{h("b"), h("c", starts)}, askAgain, "peer c is to start"},
		{"all start, first", h("a", starts), []hello{h("b", starts), h("c", starts)}, bootstrapAlone, ""},
		{"all start, not first", h("b", starts), []hello{h("a", starts), h("c", starts)}, askAgain,
			"peer a is to start"},
		{"starts, but others are about to begin", h("a", starts), []hello{h("b", together), h("c")}, askAgain,
			"peer b is about"},
		{"starts, but another is about to begin alone", h("a", starts), []hello{h("c", starts, single)}, askAgain,
			"peer c is about"},
		{"starts, but another has begun together", h("a", starts), []hello{h("b", begun)}, bootstrapTogether, ""},
		{"lists differ in an address", h("b"), []hello{h("a"), h("c", moved)}, askAgain, "make the lists the same"},
		{"lists differ in length", h("a"), []hello{h("b", fewer)}, askAgain, "make the lists the same"},
		{"a group with an older list", h("c"), []hello{h("a", fewer, state)}, join, "peer a"},
		{"a group that has another address for us", h("a"), []hello{h("b", moved, state)}, askAgain,
			"make the lists the same"},
		{"not listed there", h("c"), []hello{h("a", fewer), h("b")}, askAgain, "make the lists the same"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := decide(tt.self, tt.others)
			if got.do != tt.do || !strings.Contains(got.why, tt.why) {
				t.Errorf("decided %d because %q, want %d because %q", got.do, got.why, tt.do, tt.why)
			}
		})
	}
}
