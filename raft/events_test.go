package raft

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

// story is a history of n1 in fake time.
type story struct {
	*history
	at time.Time
}

func newStory() *story {
	s := &story{at: time.Unix(1_000_000, 0)}
	s.history = newHistory("n1", 150*ms, slog.New(slog.DiscardHandler))
	now := func() time.Time { return s.at }
	s.now, s.signs.now = now, now
	return s
}

// holds says that id holds from now on.
func (s *story) holds(id string, term uint64, vanished bool, why Cause) {
	if id == s.self {
		s.tenureBegan(term, s.at, vanished, why)
	} else {
		s.leads(id, term, vanished, why)
	}
}

// told returns the events since the last call.
func (s *story) told() string {
	var lines []string
	for {
		select {
		case e := <-s.events:
			line := map[GroupEventKind]string{
				HolderChanged: "holds", TenureEnded: "ended", PeerInReach: "in reach", PeerOutOfReach: "out of reach",
				TroubleBegan: "trouble", TroubleEnded: "no trouble",
			}[e.Kind]
			for _, more := range []string{e.Peer, e.From, string(e.Cause), e.Detail} {
				if more != "" {
					line += ", " + more
				}
			}
			if e.Took > 0 {
				line += fmt.Sprintf(", took %v", e.Took)
			}
			lines = append(lines, line)
		default:
			return strings.Join(lines, "; ")
		}
	}
}

func TestCausesOfFailovers(t *testing.T) {
	for name, tt := range map[string]struct {
		silent time.Duration
		before func(s *story)
		then   func(s *story)
		want   string
	}{
		"killed": {12 * ms, func(s *story) { s.departed("n2", 2, false) }, nil,
			"holds, n1, n2, process ended, took 12ms"},
		"frozen":      {180 * ms, nil, nil, "holds, n1, n2, host silent, took 180ms"},
		"handed over": {9 * ms, nil, nil, "holds, n1, n2, handed over, took 9ms"},
		"stopped":     {9 * ms, func(s *story) { s.departed("n2", 2, true) }, nil, "holds, n1, n2, stopped, took 9ms"},
		"stopped, and has died since": {9 * ms, func(s *story) {
			s.departed("n2", 2, true)
			s.departed("n2", 2, false)
		}, nil, "holds, n1, n2, stopped, took 9ms"},
		"died before": {9 * ms, func(s *story) { s.departed("n2", 1, false) }, nil, "holds, n1, n2, handed over, " +
			"took 9ms"},
		"to another": {12 * ms, func(s *story) { s.departed("n2", 2, false) },
			func(s *story) { s.holds("n3", 3, false, HandedOver) }, "holds, n3, n2, process ended, took 12ms"},
		"unplugged": {70 * ms, nil, func(s *story) { s.holds("n1", 3, true, HandedOver) },
			"holds, n1, n2, host silent, took 70ms"},
		"drained": {9 * ms, nil, func(s *story) { s.holds("n1", 3, false, Drained) },
			"holds, n1, n2, drained, took 9ms"},
		// As a candidate of term 3, n2 spoke just now. What counts is its last heartbeat.
		"deposed": {60 * time.Second, func(s *story) { s.signs.heard("n2", 3) },
			func(s *story) { s.holds("n1", 4, false, HandedOver) }, "holds, n1, n2, host silent, took 1m0s"},
		"the same, in a newer term": {9 * ms, nil, func(s *story) { s.holds("n2", 3, false, HandedOver) }, ""},
		"an older term":             {9 * ms, nil, func(s *story) { s.holds("n3", 1, false, HandedOver) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory()
			s.signs.heard("n2", 2)
			s.holds("n2", 2, false, HandedOver)
			if got := s.told(); got != "holds, n2, first seen" {
				t.Errorf("at first: %s", got)
			}
			s.at = s.at.Add(time.Minute)
			s.signs.heard("n2", 2)
			s.at = s.at.Add(tt.silent)
			if tt.before != nil {
				tt.before(s)
			}
			then := tt.then
			if then == nil {
				then = func(s *story) { s.holds("n1", 3, false, HandedOver) }
			}
			then(s)
			if got := s.told(); got != tt.want {
				t.Errorf("told %q, want %q", got, tt.want)
			}
			if then(s); s.told() != "" {
				t.Error("told again")
			}
		})
	}
}

func TestEventsOfOwnTenures(t *testing.T) {
	s := newStory()
	s.holds("n1", 2, false, HandedOver)
	s.leads("n2", 3, false, HandedOver) // raft was faster than the tenure's end
	if got := s.told(); got != "holds, n1, first seen" {
		t.Errorf("told %q", got)
	}
	s.tenureEnded(2, Drained)
	s.leads("n2", 3, false, HandedOver)
	if got := s.told(); got != "ended, n1, drained; holds, n2, n1, drained" {
		t.Errorf("told %q", got)
	}
	s.holds("n1", 4, false, HandedOver)
	s.tenureEnded(4, Deposed)
	s.holds("n1", 5, false, HandedOver)
	if got := s.told(); got != "holds, n1, n2, handed over; ended, n1, deposed; holds, n1, n1, elected again" {
		t.Errorf("told %q", got)
	}
	s.tenureEnded(5, Failed)
	s.holds("n1", 5, false, HandedOver)
	if got := s.told(); got != "ended, n1, failed" {
		t.Errorf("told %q: the same term is no election", got)
	}
}

func TestEventsOfReachAndTrouble(t *testing.T) {
	s := newStory()
	s.reach("n2", true, nil)
	s.reach("n3", false, errors.New("refused"))
	if got := s.told(); got != "in reach, n2, first seen" {
		t.Errorf("told %q: one that was never there is not lost", got)
	}
	s.reach("n3", true, nil)
	s.at = s.at.Add(time.Second)
	s.reach("n3", false, errors.New("refused"))
	s.reach("n3", false, errors.New("no route"))
	s.at = s.at.Add(2 * time.Second)
	s.reach("n3", true, nil)
	if got := s.told(); got != "in reach, n3, first seen; out of reach, n3, refused; in reach, n3, returned, took 2s" {
		t.Errorf("told %q", got)
	}
	s.departed("n3", 0, false)
	s.at = s.at.Add(time.Second)
	s.reach("n3", false, errors.New("refused"))
	if got := s.told(); got != "out of reach, n3, process ended, refused" {
		t.Errorf("told %q", got)
	}
	s.troubled("", "")
	s.troubled(DiskFailed, "cannot write")
	s.troubled(DiskFailed, "cannot write")
	s.troubled("", "")
	if got := s.told(); got != "trouble, disk failed, cannot write; no trouble" {
		t.Errorf("told %q", got)
	}
}

// Nobody has to take the events, and nothing comes after the end.
func TestEventsNeverBlock(t *testing.T) {
	s := newStory()
	for i := range maxEvents + 10 {
		s.troubled(DiskFailed, fmt.Sprint(i))
	}
	s.close()
	s.close()
	s.tenureEnded(1, Stopped)
	got := 0
	for range s.events {
		got++
	}
	if got != maxEvents {
		t.Errorf("%d events were kept, want %d", got, maxEvents)
	}
}

// TestEventsOfAGroup: each peer is told why the holder has changed, and the events end with the peer.
func TestEventsOfAGroup(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	old := b.holder()
	next := func(id string, kind GroupEventKind, from string) GroupEvent {
		t.Helper()
		for timeout := time.After(30 * time.Second); ; {
			select {
			case e := <-b.nodes[id].Events():
				if e.Kind == kind && e.From == from {
					return e
				}
			case <-timeout:
				t.Fatalf("%s is told nothing of %s", id, from)
			}
		}
	}
	for id := range b.nodes {
		b.eventually("the holder on "+id, func() bool { return b.nodes[id].Status().Leader == old })
	}
	b.must("draining "+old, func() error { return b.nodes[old].Drain(b.ctx(), old) })
	if e := next(old, TenureEnded, ""); e.Cause != Drained || e.Peer != old || e.Term == 0 {
		t.Errorf("the drained holder is told %+v", e)
	}
	// Another peer may not know the cause yet when it hears of the new holder, and on a busy machine the old one may have
	// been silent for a moment.
	among := func(c Cause, causes ...Cause) bool { return slices.Contains(causes, c) }
	for id := range b.nodes {
		e := next(id, HolderChanged, old)
		if id == old && e.Cause != Drained || id != old && (!among(e.Cause, Drained, HandedOver, HostSilent) || e.Took <= 0) {
			t.Errorf("%s is told %+v", id, e)
		}
	}
	stopped := b.nodes[b.holder()]
	id := stopped.cfg.ID
	b.stop(id)
	ends := 0
	for e := range stopped.Events() { // they end
		if e.Kind == TenureEnded && e.Cause == Stopped {
			ends++
		}
	}
	if ends != 1 {
		t.Errorf("the peer that stopped was told %d times of the end of its tenure", ends)
	}
	for other := range b.nodes {
		if e := next(other, HolderChanged, id); !among(e.Cause, Stopped, HandedOver) {
			t.Errorf("%s is told %+v", other, e)
		}
	}
}
