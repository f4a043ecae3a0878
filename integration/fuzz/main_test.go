package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Each target has its turn in the short form within some weeks.
func TestOfDay(t *testing.T) {
	t.Chdir("../..")
	all, err := list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"appliance/arp.FuzzParseARP", "appliance/convert.FuzzNginx"} {
		if !slices.ContainsFunc(all, func(t target) bool { return t.String() == want }) {
			t.Errorf("%s is not found among %v", want, all)
		}
	}
	had := make(map[target]bool)
	now := time.Now()
	for range len(all) {
		for _, t := range ofDay(all, now) {
			had[t] = true
		}
		now = now.Add(24 * time.Hour)
	}
	if len(had) != len(all) {
		t.Errorf("%d of %d targets have had their turn", len(had), len(all))
	}
}

func TestVerdict(t *testing.T) {
	failed := errors.New("exit status 1")
	for _, tt := range []struct {
		file string
		err  error
		said string
		ok   bool
	}{
		{"short.txt", nil, "67305 inputs", true},
		{"passes.txt", nil, "208541 inputs, 3 lead to new code, 45 in all", true},
		{"deadline.txt", failed, "111 inputs, 0 lead to new code, 7 in all", true},
		{"finds.txt", failed, "FAILS: exit status 1", false},
		{"build.txt", failed, "no input was run; FAILS", false},
	} {
		out, err := os.ReadFile("testdata/" + tt.file)
		if err != nil {
			t.Fatal(err)
		}
		said, ok := verdict(out, tt.err)
		if ok != tt.ok || !strings.Contains(said, tt.said) {
			t.Errorf("%s: %q, %v, want %q, %v", tt.file, said, ok, tt.said, tt.ok)
		}
	}
}
