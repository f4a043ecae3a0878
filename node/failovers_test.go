package node

import (
	"strings"
	"testing"
	"time"

	"appliance/raft"
	"appliance/status"
)

// A teller is a chronicle whose events are kept.
type teller struct {
	*chronicle
	told     []status.Event
	takeover []time.Duration
	now      time.Time
}

func newTeller(self string) *teller {
	t := &teller{now: time.Unix(1_000_000, 0)}
	t.chronicle = &chronicle{
		self: self, heartbeat: 150 * time.Millisecond,
		note:     func(e status.Event) { t.told = append(t.told, e) },
		tookOver: func(d time.Duration) { t.takeover = append(t.takeover, d) },
		away:     make(map[string]time.Time), met: make(map[string]bool), ended: make(map[string]uint64),
	}
	return t
}

// after lets time pass, shows the chronicle what is then, and returns what it
// tells but for who is in reach.
func (t *teller) after(d time.Duration, s raft.Status) string {
	t.now = t.now.Add(d)
	t.told = nil
	if s.Holder {
		s.Since = t.now
	}
	t.see(s, s.Leader, t.now)
	var lines []string
	for _, e := range t.told {
		if e.Kind != status.OfPeer {
			lines = append(lines, e.String())
		}
	}
	return strings.Join(lines, "; ")
}

// group is what n1 knows; heard is how long ago n2 spoke, died the term that its
// dead process led.
func group(leader string, term uint64, heard time.Duration, died uint64) raft.Status {
	return raft.Status{ID: "n1", Leader: leader, Term: term, Holder: leader == "n1", Peers: []raft.PeerStatus{
		{ID: "n1", Self: true, Connected: true},
		{ID: "n2", Connected: true, Heard: heard, HeardTerm: 2, Died: died},
		{ID: "n3", Connected: true},
	}}
}

func TestChronicleOfFailovers(t *testing.T) {
	ms := time.Millisecond
	asks := group("n1", 4, 3*ms, 0) // as a candidate of term 3, n2 spoke 3 ms ago
	asks.Peers[1].HeardTerm = 3
	away := group("n1", 3, 70*ms, 0)
	away.Peers[1].Vanished = true
	for name, tt := range map[string]struct {
		then raft.Status
		want string
		took time.Duration // of a failover to this node
	}{
		"killed":      {group("n1", 3, 12*ms, 2), "n1: holds (the process of n2 ended), took 12ms", 12 * ms},
		"frozen":      {group("n1", 3, 180*ms, 0), "n1: holds (nothing was heard of n2 for 180ms), took 180ms", 180 * ms},
		"handed over": {group("n1", 3, 9*ms, 0), "n1: holds (n2 gave way), took 9ms", 9 * ms},
		"to another":  {group("n3", 3, 12*ms, 2), "n3: holds (the process of n2 ended), took 12ms", 0},
		"died before": {group("n1", 3, 9*ms, 1), "n1: holds (n2 gave way), took 9ms", 9 * ms},
		"unplugged":   {away, "n1: holds (nothing was heard of n2 for 70ms), took 70ms", 70 * ms},
		// What counts is its last heartbeat, seen 60 s and 5 ms before.
		"deposed":    {asks, "n1: holds (nothing was heard of n2 for 1m0.005s), took 1m0s", 60005 * ms},
		"nobody yet": {group("", 3, 200*ms, 0), "", 0},
		"the same":   {group("n2", 2, 9*ms, 0), "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTeller("n1")
			if got := c.after(0, group("n2", 2, 5*ms, 0)); got != "n2: holds (the first that this node knows of in this life)" {
				t.Errorf("at first: %s", got)
			}
			if got := c.after(time.Minute, tt.then); got != tt.want {
				t.Errorf("told %q, want %q", got, tt.want)
			}
			if len(c.takeover) > 1 || len(c.takeover) == 1 && c.takeover[0] != tt.took || len(c.takeover) == 0 && tt.took > 0 {
				t.Errorf("measured %v, want %s", c.takeover, tt.took)
			}
			if got := c.after(time.Second, tt.then); got != "" {
				t.Errorf("told again: %q", got)
			}
		})
	}
}

// Elected is not yet holding: the lease of the old one has to be over.
func TestChronicleWaitsForTheTenure(t *testing.T) {
	c := newTeller("n1")
	c.after(0, group("n2", 2, time.Millisecond, 0))
	elected := group("n1", 3, 160*time.Millisecond, 0)
	elected.Holder = false
	if got := c.after(time.Second, elected); got != "" {
		t.Errorf("told %q before the tenure", got)
	}
	if got := c.after(90*time.Millisecond, group("n1", 3, 250*time.Millisecond, 0)); got != "n1: holds (nothing was heard of n2 for 250ms), took 250ms" {
		t.Errorf("told %q", got)
	}
}

func TestChronicleOfOwnTenures(t *testing.T) {
	c := newTeller("n1")
	c.after(0, group("n1", 2, 0, 0))
	s := group("n2", 3, 0, 0)
	s.Counters.Ended = map[string]uint64{"handover": 1}
	if got := c.after(time.Minute, s); got != "n1: holds no more (handed over); n2: holds (n1 gave way)" {
		t.Errorf("told %q", got)
	}
	if c.told[0].Bad || c.told[0].Term != 2 {
		t.Errorf("%+v", c.told[0])
	}
	s = group("n1", 4, 10*time.Millisecond, 0)
	s.Counters.Ended = map[string]uint64{"handover": 1}
	c.after(time.Minute, s)
	s = group("n1", 5, 10*time.Millisecond, 0)
	s.Counters.Ended = map[string]uint64{"handover": 1, "deposed": 1}
	if got := c.after(time.Minute, s); !strings.HasPrefix(got, "n1: holds no more (another peer leads, or a majority is out of reach); n1: holds (elected again)") {
		t.Errorf("told %q", got)
	}
}

func TestChronicleOfPeers(t *testing.T) {
	c := newTeller("n1")
	say := func(d time.Duration, s raft.Status) string {
		c.after(d, s)
		var lines []string
		for _, e := range c.told {
			lines = append(lines, e.String())
		}
		return strings.Join(lines, "; ")
	}
	s := group("", 0, 0, 0)
	s.Peers[2].Connected, s.Peers[2].Problem = false, "refused"
	if got := say(0, s); got != "n2: is in reach" {
		t.Errorf("told %q: one that was never there is not lost", got)
	}
	s.Peers[2].Connected = true
	if got := say(time.Second, s); got != "n3: is in reach" {
		t.Errorf("told %q", got)
	}
	s.Peers[2].Connected = false
	if got := say(time.Second, s); got != "n3: is out of reach (refused)" {
		t.Errorf("told %q", got)
	}
	if got := say(time.Second, s); got != "" {
		t.Errorf("told %q again", got)
	}
	s.Peers[2].Connected = true
	if got := say(time.Second, s); got != "n3: is in reach again, took 2s" {
		t.Errorf("told %q", got)
	}
	s.Trouble = "cannot write"
	if got := say(0, s); got != "has trouble in the group (cannot write)" {
		t.Errorf("told %q", got)
	}
	s.Trouble = ""
	if got := say(0, s); got != "takes part in the group fully again" {
		t.Errorf("told %q", got)
	}
}
