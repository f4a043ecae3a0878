package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestTypeNames: one word is one thing. A reader who meets an exported type in
// one package never met another of that name, other than a Config or a Status.
// Generic types and those of tests do not count.
func TestTypeNames(t *testing.T) {
	places := map[string][]string{} // the directories that have a type, by its name
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			types, ok := decl.(*ast.GenDecl)
			if !ok || types.Tok != token.TYPE {
				continue
			}
			for _, spec := range types.Specs {
				if s := spec.(*ast.TypeSpec); s.Name.IsExported() && s.TypeParams == nil {
					places[s.Name.Name] = append(places[s.Name.Name], filepath.Dir(path))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range places {
		slices.Sort(in)
		in = slices.Compact(in) // a type may have a file for each platform
		if len(in) > 1 && name != "Config" && name != "Status" {
			t.Errorf("%s is an exported type of %s; give each a name of its own", name, strings.Join(in, ", "))
		}
	}
}
