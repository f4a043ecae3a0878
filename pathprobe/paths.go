package pathprobe

import (
	"crypto/rand"
	"log/slog"
	"net/netip"
)

// maxLost is how many probes in a row must be lost to end a proof. One alone may
// get lost.
const maxLost = 3

type pathID struct {
	frontend netip.AddrPort
	node     string
}

// A pathState is what is known of one path. Its states and transitions:
//
//	state         ready answer  not ready    unknown    control answer only  nothing        leave notice
//	PathNoAnswer  PathProved    PathUnready  PathUnmet  PathFiltered (2nd)   –              –
//	PathProved    PathProved    PathUnready  PathUnmet  PathFiltered (3rd)   NoAnswer (3rd) PathNoAnswer
//	PathUnready   PathProved    PathUnready  PathUnmet  PathFiltered (3rd)   NoAnswer (3rd) PathNoAnswer
//	PathUnmet     PathProved    PathUnready  PathUnmet  PathFiltered (3rd)   NoAnswer (3rd) PathNoAnswer
//	PathFiltered  PathProved    PathUnready  PathUnmet  –                    –              –
//
// An answer to the path probe counts at once, the last columns at the end of a
// round; (2nd) and (3rd) are rounds in a row. A filtered path stays filtered while
// the node is away.
type pathState struct {
	path    Path
	nonces  [2]nonce // of the last round, by kindControl and kindPath
	heard   [2]bool  // which of them came back
	sent    bool     // the round is not closed
	doubt   bool     // it is asked about soon, although it is proved
	knowsUs bool     // by the node's last word, its rules know this node
	lost    int      // rounds in a row with an answer to the control probe only
	silent  int      // rounds in a row without any answer
}

// begin starts a round.
func (s *pathState) begin() [2]nonce {
	for i := range s.nonces {
		rand.Read(s.nonces[i][:])
	}
	s.heard, s.sent, s.doubt = [2]bool{}, true, false
	return s.nonces
}

// answer takes an answer to a probe of this kind, and returns false if it is none
// of the last round.
func (s *pathState) answer(kind, word probeKind, n nonce) bool {
	if n != s.nonces[kind] {
		return false
	}
	s.heard[kind] = true
	s.knowsUs = word != kindUnknown
	if kind == kindPath {
		switch word {
		case kindReady:
			s.path = PathProved
		case kindUnknown:
			s.path = PathUnmet
		default:
			s.path = PathUnready
		}
	}
	return true
}

// leave takes a leave notice.
func (s *pathState) leave() {
	if s.path != PathFiltered && s.path != PathNoAnswer {
		s.path, s.sent = PathNoAnswer, false
	}
	s.knowsUs = false
}

// end closes the round. A node that has answered none of its probes is silent, also
// about paths that were not asked about.
func (s *pathState) end(silent bool) {
	sent := s.sent
	s.sent = false
	switch {
	case !sent && !silent:
	case sent && s.heard[kindPath]:
		s.lost, s.silent = 0, 0
	case sent && s.heard[kindControl]:
		s.silent = 0
		if s.lost++; s.lost >= maxLost || s.path == PathNoAnswer && s.lost > 1 {
			s.path = PathFiltered
		}
	default:
		if s.silent++; s.silent >= maxLost {
			if s.path != PathFiltered && s.path != PathNoAnswer {
				s.path = PathNoAnswer
			}
			s.lost, s.knowsUs = 0, false
		}
	}
}

// A way is what all paths to a node by one link have in common.
type way struct {
	node, link string
	is4        bool
}

// A pathTable holds all paths. It is not safe for concurrent use.
type pathTable struct {
	states map[pathID]*pathState
	logged map[string]Path // what the log says of each node
	log    *slog.Logger
	// way is that of a path, turns are where the turns of proved paths go on, and doubted
	// are the ways all of whose paths were doubted in this round.
	way     func(pathID) way
	turns   map[way]int
	doubted map[way]bool
}

// perRound is how many proved paths to a node are asked about in a round, in turn: most
// of what may happen to one happens to all. What has happened to most of them has all asked about at once.
const perRound = 8

// rested are those of the proved paths of a way whose turn it is.
func (t *pathTable) rested(w way, all []target) (turn []target) {
	for range min(perRound, len(all)) {
		t.turns[w] = (t.turns[w] + 1) % len(all)
		turn = append(turn, all[t.turns[w]])
	}
	return turn
}

// doubt has all paths of a way asked about, once in a round.
func (t *pathTable) doubt(w way) {
	if t.doubted[w] {
		return
	}
	t.doubted[w] = true
	for id, s := range t.states {
		s.doubt = s.doubt || t.way(id) == w
	}
}

// of is the state of a path; a path that was never probed has the first one.
func (t *pathTable) of(id pathID) *pathState {
	s := t.states[id]
	if s == nil {
		s = &pathState{}
		t.states[id] = s
	}
	return s
}

// change lets f change a state, logs what has become of the path, and says whether
// it is another.
func (t *pathTable) change(id pathID, s *pathState, f func()) bool {
	was := s.path
	f()
	if s.path != was {
		t.report(id, s.path)
	}
	return s.path != was
}

// end closes the round of all paths, and says whether any has changed.
func (t *pathTable) end() (changed bool) {
	asked, answers, lost := make(map[way]int), make(map[way]bool), make(map[way]int)
	for id, s := range t.states {
		if w := t.way(id); s.sent {
			asked[w]++
			answers[w] = answers[w] || s.heard[kindControl] || s.heard[kindPath]
			if !s.heard[kindPath] {
				lost[w]++
				s.doubt = true
			}
		}
	}
	for id, s := range t.states {
		w := t.way(id)
		changed = t.change(id, s, func() { s.end(asked[w] > 0 && !answers[w]) }) || changed
	}
	clear(t.doubted)
	for w, n := range lost {
		if 2*n > asked[w] { // else it is the lost ones' own matter
			t.doubt(w)
		}
	}
	return changed
}

// report logs what has become of a node, once for all its frontends.
func (t *pathTable) report(id pathID, path Path) {
	if path == PathUnmet {
		path = PathUnready // for an operator it is the same
	}
	if t.logged[id.node] == path {
		return
	}
	t.logged[id.node] = path
	log, text := t.log.Info, ""
	switch path {
	case PathProved:
		text = "the network carries clients' packets"
	case PathFiltered:
		log, text = t.log.Warn, "the network filters clients' packets"
	case PathUnready:
		text = "a node does not take clients' packets yet"
	case PathNoAnswer:
		log, text = t.log.Warn, "a node does not answer path probes"
	}
	log(text, "frontend", id.frontend, "node", id.node)
}
