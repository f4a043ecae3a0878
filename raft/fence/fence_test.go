package fence

import (
	"errors"
	"strings"
	"testing"
)

func TestDiskThatWentBackwards(t *testing.T) {
	base := Told{Cluster: "g", HasState: true, Fenced: true, Process: "p1", Disk: "d1", Boots: 5, Term: 7, Last: 90,
		Commit: 88}
	later := func(change func(*Told)) Told { // an ordinary restart, changed
		n := base
		n.Process, n.Boots, n.Commit = "p2", 6, 0
		if change != nil {
			change(&n)
		}
		return n
	}
	for name, tt := range map[string]struct {
		told Told
		why  string
	}{
		"a restart":                          {later(nil), ""},
		"a restart that lost what was open":  {later(func(n *Told) { n.Last = 88 }), ""},
		"a copy of an earlier start":         {later(func(n *Told) { n.Boots = 5 }), "started 5 times"},
		"a copy from before the last term":   {later(func(n *Told) { n.Term = 6 }), "term 6"},
		"a copy from before the last commit": {later(func(n *Told) { n.Last = 87 }), "ends at 87"},
		"a new disk":                         {later(func(n *Told) { n.Disk, n.Boots, n.Term, n.Last = "d2", 1, 1, 3 }), ""},
		"it says so itself":                  {later(func(n *Told) { n.Withheld = true }), "itself"},
		"a copy from before it had a name":   {later(func(n *Told) { n.Cluster, n.Boots = "", 5 }), "started 5 times"},
		"a restart before it had the name":   {later(func(n *Told) { n.Cluster = "" }), ""},
		"a new disk that is in no group":     {later(func(n *Told) { n.Cluster, n.Disk, n.Boots = "", "d2", 1 }), ""},
		"a version that does not tell":       {Told{Cluster: "g", HasState: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := New(func() string { return "g" }, func(string) bool { return true }, nil)
			f.Learn("b", base)
			if f.Refusal("b") != nil {
				t.Fatalf("refused at first: %v", f.Refusal("b"))
			}
			f.Learn("b", tt.told)
			err := f.Refusal("b")
			if errors.Is(err, ErrBackwards) != (tt.why != "") || err != nil && !strings.Contains(err.Error(), tt.why) {
				t.Fatalf("refusal %v, want %q", err, tt.why)
			}
			if tt.why == "" {
				return
			}
			// Neither another restart nor one of ours forgets it; only having caught up does.
			again := tt.told
			again.Process, again.Boots, again.Term, again.Last, again.Commit, again.Withheld = "p3", 9, 7, 90, 88, false
			f = New(func() string { return "g" }, func(string) bool { return true }, f.Reached())
			f.Learn("b", again)
			if !errors.Is(f.Refusal("b"), ErrBackwards) {
				t.Error("a restart made its votes count")
			}
			again.Floor = 7
			f.Learn("b", again)
			if err := f.Refusal("b"); err != nil {
				t.Errorf("it has caught up: %v", err)
			}
		})
	}
	f := New(func() string { return "g" }, func(string) bool { return true }, nil)
	f.Learn("b", base)
	f.Learn("b", later(func(n *Told) { n.Disk, n.Boots = "d2", 1 }))
	f.Learn("b", later(func(n *Told) { n.Process, n.Boots = "p4", 6 }))
	if !errors.Is(f.Refusal("b"), ErrBackwards) {
		t.Error("the disk from before the present one is back, and its votes count")
	}
	f.Learn("b", later(func(n *Told) { n.Process, n.Disk, n.Boots = "p5", "d2", 1 }))
	if !errors.Is(f.Refusal("b"), ErrBackwards) {
		t.Error("of two disks that take turns one counts")
	}
}

// TestNewDiskAfterAnOlderCopy: a peer with an older copy of its disk that gets an empty one counts its starts anew.
func TestNewDiskAfterAnOlderCopy(t *testing.T) {
	f := New(func() string { return "g" }, func(string) bool { return true }, nil)
	of := func(process, disk string, boots uint64) Told {
		return Told{Cluster: "g", HasState: true, Fenced: true, Process: process, Disk: disk, Boots: boots, Term: 7, Last: 90}
	}
	f.Learn("b", of("p1", "d1", 5))
	f.Learn("b", of("p2", "d1", 3))
	if !errors.Is(f.Refusal("b"), ErrBackwards) {
		t.Fatal("the older copy counts")
	}
	for i, told := range []Told{of("p3", "d2", 1), of("p4", "d2", 2), of("p5", "d2", 3)} {
		f.Learn("b", told)
		if err := f.Refusal("b"); err != nil {
			t.Errorf("start %d of the new disk: %v", i+1, err)
		}
	}
}

// TestLateWordOfAFormerProcess: a peer was killed and began again while its network was cut. What its former process
// had said comes after the first word of the new one. Its disk has not gone backwards.
func TestLateWordOfAFormerProcess(t *testing.T) {
	f := New(func() string { return "g" }, func(string) bool { return true }, nil)
	former := Told{Cluster: "g", HasState: true, Fenced: true, Process: "p1", Disk: "d1", Boots: 5, Term: 7}
	f.Learn("b", former)
	now := former
	now.Process, now.Boots, now.Term = "p2", 6, 8
	f.Learn("b", now)
	for range maxLate { // one on each of its connections
		if _, late := f.Learn("b", former); !late {
			t.Error("the word of a process that has ended counts")
		}
	}
	if err := f.Refusal("b"); err != nil {
		t.Errorf("refused for what its former process had said: %v", err)
	}
	if told, _ := f.Told("b"); told != now {
		t.Errorf("%+v counts, want %+v", told, now)
	}
	// Whoever goes on talking lives: the same disk, started on two machines at once.
	f.Learn("b", former)
	if !errors.Is(f.Refusal("b"), ErrBackwards) {
		t.Error("two processes with one id go unnoticed")
	}
}

func TestStrangers(t *testing.T) {
	own := ""
	f := New(func() string { return own }, func(peer string) bool { return peer != "x" }, nil)
	f.Learn("old", Told{Cluster: "ours"})
	f.Learn("oldstranger", Told{Cluster: "theirs"})
	f.Learn("new", Told{Cluster: "ours", Fenced: true})
	for _, tt := range []struct {
		own, peer, cluster string
		stamped, ok        bool
	}{
		{"ours", "new", "ours", true, true},
		{"ours", "new", "theirs", true, false}, // whatever it has told
		{"ours", "new", "", false, false},      // it can stamp
		{"ours", "old", "", false, true},
		{"ours", "oldstranger", "", false, false},
		{"ours", "never", "ours", true, true},
		{"ours", "never", "", false, true}, // a member, and package lease wants its heartbeat first
		{"ours", "x", "", true, false},     // no name, and no member
		{"ours", "new", "", true, true},    // a member whose group has just begun
		{"", "x", "theirs", true, false},
		{"", "new", "theirs", true, true},
	} {
		own = tt.own
		if err := f.Admits(tt.peer, tt.cluster, tt.stamped); (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	own = "ours"
	if err := f.Refusal("oldstranger"); !errors.Is(err, ErrStranger) {
		t.Errorf("a stranger's votes count: %v", err)
	}
	addr, cluster, is := Unstamp(Stamp([]byte("[2001:db8::1]:10000"), "ours"))
	if string(addr) != "[2001:db8::1]:10000" || cluster != "ours" || !is {
		t.Errorf("%s %s %v", addr, cluster, is)
	}
	if addr, _, is := Unstamp([]byte("192.0.2.1:1")); is || string(addr) != "192.0.2.1:1" {
		t.Errorf("%s %v", addr, is)
	}
}
