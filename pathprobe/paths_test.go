package pathprobe

import (
	"log/slog"
	"maps"
	"net/netip"
	"testing"
)

// The table at pathState: each path is brought into a state, and one event, or a
// number of rounds, changes it or does not.
func TestPathStates(t *testing.T) {
	control := func(s *pathState) { s.begin(); s.answer(kindControl, kindReady, s.nonces[kindControl]); s.end(false) }
	nothing := func(s *pathState) { s.begin(); s.end(true) }
	leave := (*pathState).leave
	path := func(word probeKind) func(*pathState) {
		return func(s *pathState) { s.begin(); s.answer(kindPath, word, s.nonces[kindPath]); s.end(false) }
	}
	times := func(n int, f func(*pathState)) func(*pathState) {
		return func(s *pathState) {
			for range n {
				f(s)
			}
		}
	}
	begin := map[Path]func(*pathState){
		PathNoAnswer: func(*pathState) {},
		PathProved:   path(kindReady),
		PathUnready:  path(kindNotReady),
		PathUnmet:    path(kindUnknown),
		PathFiltered: times(2, control),
	}
	// all is each state that a path may have come from, with the one that it gets.
	all := func(to Path) map[Path]Path {
		return map[Path]Path{PathNoAnswer: to, PathProved: to, PathUnready: to, PathUnmet: to, PathFiltered: to}
	}
	silent := map[Path]Path{PathProved: PathNoAnswer, PathUnready: PathNoAnswer, PathUnmet: PathNoAnswer}
	for _, tt := range []struct {
		event string
		do    func(*pathState)
		want  map[Path]Path // states that are not in it stay
	}{
		{"ready", path(kindReady), all(PathProved)},
		{"not ready", path(kindNotReady), all(PathUnready)},
		{"unknown", path(kindUnknown), all(PathUnmet)},
		{"control only", control, nil},
		{"control only twice", times(2, control), map[Path]Path{PathNoAnswer: PathFiltered}},
		{"control only three times", times(3, control),
			all(PathFiltered)},
		{"nothing twice", times(2, nothing), nil},
		{"nothing three times", times(3, nothing), silent},
		{"lost, heard, lost", func(s *pathState) { times(2, control)(s); path(kindReady)(s); times(2, control)(s) },
			all(PathProved)},
		{"leave notice", leave, silent},
		{"answer of an earlier round", func(s *pathState) { s.begin(); s.answer(kindPath, kindReady, nonce{1}) }, nil},
		{"end without a round", func(s *pathState) { s.end(false) }, nil},
		{"others are not answered either, twice", times(2, func(s *pathState) { s.end(true) }), nil},
		{"others are not answered either, three times", times(3, func(s *pathState) { s.end(true) }), silent},
	} {
		for from, to := range begin {
			var s pathState
			to(&s)
			if s.path != from {
				t.Fatalf("the path is %v, want %v to begin with", s.path, from)
			}
			tt.do(&s)
			want, changes := tt.want[from]
			if !changes {
				want = from
			}
			if s.path != want {
				t.Errorf("%s: from %v to %v, want %v", tt.event, from, s.path, want)
			}
		}
	}
}

// Of many proved paths some are asked about in each round, in turn. What befalls one has all asked about, once, and a
// node that answers nothing is silent about all, as soon as it would be about one.
func TestProvedPathsTakeTurns(t *testing.T) {
	const many = 100
	w := way{node: "n2", link: "eth0", is4: true}
	table := pathTable{
		states: make(map[pathID]*pathState), logged: make(map[string]Path), log: slog.New(slog.DiscardHandler),
		way: func(pathID) way { return w }, turns: make(map[way]int), doubted: make(map[way]bool),
	}
	var all []target
	for port := range uint16(many) {
		id := pathID{netip.AddrPortFrom(netip.MustParseAddr("10.77.0.10"), 6443+port), "n2"}
		all = append(all, target{pathID: id})
		table.of(id).path = PathProved
	}
	// round asks about paths whose turn it is, or that are in doubt; those that answer do.
	round := func(answers func(pathID) bool) (asked map[pathID]bool) {
		asked = make(map[pathID]bool)
		for _, target := range append(table.rested(w, all), all...) {
			s := table.of(target.pathID)
			if len(asked) >= perRound && !s.doubt {
				continue
			}
			asked[target.pathID] = true
			nonces := s.begin()
			if answers(target.pathID) {
				s.answer(kindPath, kindReady, nonces[kindPath])
			}
		}
		table.end()
		return asked
	}
	proved := func() (n int) {
		for _, s := range table.states {
			if s.path == PathProved {
				n++
			}
		}
		return n
	}
	everybody, nobody := func(pathID) bool { return true }, func(pathID) bool { return false }
	asked := make(map[pathID]bool)
	for range many/perRound + 1 {
		now := round(everybody)
		if len(now) != perRound {
			t.Fatalf("%d paths are asked about at a time, want %d", len(now), perRound)
		}
		maps.Copy(asked, now)
	}
	if len(asked) != many {
		t.Errorf("%d paths had their turn, want %d", len(asked), many)
	}
	lost := all[table.turns[w]+1].pathID
	round(func(id pathID) bool { return id != lost })
	if now := round(everybody); len(now) != perRound+1 || !now[lost] {
		t.Errorf("after one lost probe, %d paths are asked about, want that one and %d others", len(now), perRound)
	}
	heard := 0
	round(func(pathID) bool { heard++; return heard <= perRound/2-1 })
	if n := len(round(everybody)); n != many {
		t.Errorf("when most probes are lost, %d paths are asked about, want all", n)
	}
	if n := len(round(everybody)); n != perRound {
		t.Errorf("when all is well again, %d paths are asked about, want %d", n, perRound)
	}
	for i := range maxLost {
		if n := proved(); n != many {
			t.Errorf("%d paths are proved after %d silent rounds, want all", n, i)
		}
		round(nobody)
	}
	if n := proved(); n != 0 {
		t.Errorf("%d paths are proved to a silent node", n)
	}
}
