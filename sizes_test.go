package main

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestNumbersFitInto32Bits type-checks every package as it is for a machine whose int has 32 bits, which is what a
// release for armv7 is for. To compile it for one would take minutes.
func TestNumbersFitInto32Bits(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "-export", "-json=ImportPath,Dir,Export,GoFiles,Module", ".")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	type pkg struct {
		ImportPath, Dir, Export string
		GoFiles                 []string
		Module                  *struct{ Main bool }
	}
	var ours []pkg
	compiled := make(map[string]string)
	for d := json.NewDecoder(out); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		compiled[p.ImportPath] = p.Export
		if p.Module != nil && p.Module.Main {
			ours = append(ours, p)
		}
	}
	if err := cmd.Wait(); err != nil || len(ours) < 40 {
		t.Fatalf("%d packages, %v", len(ours), err)
	}
	files := token.NewFileSet()
	config := types.Config{
		Sizes: types.SizesFor("gc", "arm"),
		Importer: importer.ForCompiler(files, "gc", func(path string) (io.ReadCloser, error) {
			return os.Open(compiled[path])
		}),
		Error: func(err error) {
			// Package math was compiled for this machine, where math.MaxInt and its like have 64 bits.
			if msg := err.(types.Error).Msg; strings.Contains(msg, "overflow") && !strings.Contains(msg, "math.M") {
				t.Error(err)
			}
		},
	}
	for _, p := range ours {
		var syntax []*ast.File
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			syntax = append(syntax, f)
		}
		config.Check(p.ImportPath, files, syntax, nil) // errors are told above
	}
}
