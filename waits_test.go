package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// deferredWaits are the files that may wait for goroutines in a defer, and why that always ends.
var deferredWaits = map[string]string{
	"dns/names.go":                "a later defer, which runs before, ends those who look names up",
	"integration/bench/broken.go": "a later defer, which runs before, ends those who ask",
	"integration/vm/vm.go":        "a later defer, which runs before, closes what the copiers read",
	"node/run.go":                 "a later defer, which runs before, ends the copying of the log",
	"pathprobe/prober.go":         "the sockets are closed before, which ends their receivers",
	"raft/roster.go":              "a later defer, which runs before, ends what belongs to a peer",
}

// TestNoPanicIsHidden: a panic runs what is deferred first. If that waits for goroutines that go on as long as the
// program does, the panic never ends the process: a part of it is missing, nobody is told, and nobody starts it anew.
func TestNoPanicIsHidden(t *testing.T) {
	found := make(map[string]bool)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files := token.NewFileSet()
		f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			deferred, ok := n.(*ast.DeferStmt)
			if !ok {
				return true
			}
			ast.Inspect(deferred, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				if s, ok := call.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Wait" {
					found[path] = true
					if deferredWaits[path] == "" {
						t.Errorf("%v: a deferred Wait; wait at the return instead, which a panic passes over",
							files.Position(call.Pos()))
					}
				}
				return true
			})
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for path := range deferredWaits {
		if !found[path] {
			t.Errorf("%s has no deferred Wait any more; take it off the list", path)
		}
	}
}
