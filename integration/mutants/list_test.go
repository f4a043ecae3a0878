package main

import (
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// TestList: each mutant still has its line, and its test.
func TestList(t *testing.T) {
	t.Chdir("../..")
	names := make(map[string]bool)
	for _, m := range mutants {
		if names[m.name] {
			t.Errorf("%s: there are two", m.name)
		}
		names[m.name] = true
		text, err := os.ReadFile(m.file)
		if err != nil {
			t.Error(err)
		} else if n := strings.Count(string(text), m.old); n != 1 || m.old == m.new {
			t.Errorf("%s: %s has its text %d times", m.name, m.file, n)
		}
		found := false
		tests, _ := filepath.Glob(path.Join(path.Dir(m.file), "*_test.go"))
		for _, f := range tests {
			text, _ := os.ReadFile(f)
			found = found || strings.Contains(string(text), "func "+m.test+"(t *testing.T)")
		}
		if !found {
			t.Errorf("%s: there is no %s beside %s", m.name, m.test, m.file)
		}
	}
	for _, m := range selected("", true) {
		if path.Dir(m.file) == "raft" {
			t.Errorf("%s takes long", m.name)
		}
	}
}
