package pathprobe

import "testing"

// The table at pathState: each path is brought into a state, and one event, or a
// number of rounds, changes it or does not.
func TestPathStates(t *testing.T) {
	control := func(s *pathState) { s.begin(); s.answer(kindControl, kindReady, s.nonces[kindControl]); s.end() }
	nothing := func(s *pathState) { s.begin(); s.end() }
	leave := (*pathState).leave
	path := func(word probeKind) func(*pathState) {
		return func(s *pathState) { s.begin(); s.answer(kindPath, word, s.nonces[kindPath]); s.end() }
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
		PathFiltered: times(2, control),
	}
	for _, tt := range []struct {
		event string
		do    func(*pathState)
		want  map[Path]Path // states that are not in it stay
	}{
		{"ready", path(kindReady), map[Path]Path{PathNoAnswer: PathProved, PathUnready: PathProved,
			PathFiltered: PathProved}},
		{"not ready", path(kindNotReady), map[Path]Path{PathNoAnswer: PathUnready, PathProved: PathUnready,
			PathFiltered: PathUnready}},
		{"unknown", path(kindUnknown), map[Path]Path{PathNoAnswer: PathUnready, PathProved: PathUnready,
			PathFiltered: PathUnready}},
		{"control only", control, nil},
		{"control only twice", times(2, control), map[Path]Path{PathNoAnswer: PathFiltered}},
		{"control only three times", times(3, control),
			map[Path]Path{PathNoAnswer: PathFiltered, PathProved: PathFiltered, PathUnready: PathFiltered}},
		{"nothing twice", times(2, nothing), nil},
		{"nothing three times", times(3, nothing), map[Path]Path{PathProved: PathNoAnswer, PathUnready: PathNoAnswer}},
		{"lost, heard, lost", func(s *pathState) { times(2, control)(s); path(kindReady)(s); times(2, control)(s) },
			map[Path]Path{PathNoAnswer: PathProved, PathUnready: PathProved, PathFiltered: PathProved}},
		{"leave notice", leave, map[Path]Path{PathProved: PathNoAnswer, PathUnready: PathNoAnswer}},
		{"answer of an earlier round", func(s *pathState) { s.begin(); s.answer(kindPath, kindReady, nonce{1}) }, nil},
		{"end without a round", (*pathState).end, nil},
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
