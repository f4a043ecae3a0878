package store

import (
	"testing"

	"github.com/hashicorp/go-hclog"
)

func TestVoteIsOneValueOnDisk(t *testing.T) {
	dir := t.TempDir()
	open := func() *Store {
		t.Helper()
		s, err := Open(dir, nil, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	check := func(s *Store, when string, term uint64, candidate string) {
		t.Helper()
		is, err := s.GetUint64([]byte(voteTermKey))
		to, err2 := s.Get([]byte(voteCandidKey))
		if err != nil || err2 != nil || is != term || string(to) != candidate {
			t.Errorf("%s: vote in term %d for %q (%v, %v), want %d for %q", when, is, to, err, err2, term, candidate)
		}
	}
	must := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}

	s := open()
	if _, err := s.GetUint64([]byte(voteTermKey)); err == nil || err.Error() != "not found" {
		t.Errorf("no vote yet: %v; hashicorp/raft wants %q", err, "not found")
	}
	if _, err := s.Get([]byte(voteCandidKey)); err == nil || err.Error() != "not found" {
		t.Errorf("no vote yet: %v; hashicorp/raft wants %q", err, "not found")
	}
	// The library's own two values count until there is a vote in this form.
	must(s.Disk.Set([]byte(voteTermKey), number(3)), s.Disk.Set([]byte(voteCandidKey), []byte("a")))
	check(s, "two values", 3, "a")

	must(s.SetUint64([]byte(voteTermKey), 4), s.Set([]byte(voteCandidKey), []byte("b")))
	check(s, "one value", 4, "b")
	must(s.SetUint64([]byte(termKey), 5), s.SetUint64([]byte(voteTermKey), 5), s.Close())

	s = open() // a crash before the candidate was stored
	check(s, "half a vote", 4, "b")
	if term, err := s.GetUint64([]byte(termKey)); err != nil || term != 5 {
		t.Errorf("term %d (%v), want 5", term, err)
	}
	must(s.SetUint64([]byte(voteTermKey), 6), s.Set([]byte(voteCandidKey), []byte("c")), s.Close())
	s = open()
	check(s, "after a restart", 6, "c")
	must(s.Close())
}
