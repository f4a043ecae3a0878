package configs

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// Files of earlier versions are valid, with every key that these had, and a key that is left out means what it meant.
// A version that adds keys gets a file of its own in testdata/earlier, and those that are there stay.
func TestFilesOfEarlierVersions(t *testing.T) {
	files, err := filepath.Glob("testdata/earlier/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("%d files of earlier versions, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(file, text, source(nil, nil)); err != nil {
			t.Error(err)
		}
		rep := &report{}
		all := regexp.MustCompile(`(?m)^( *)#(\S)`).ReplaceAll(text, []byte("$1$2"))
		s, ok := parseFile(file, all, rep)
		if err := rep.err(); err != nil || !ok {
			t.Fatal(err)
		}
		if len(s.values) < 50 {
			t.Errorf("%s: %d keys only", file, len(s.values))
		}
		for key, c := range s.values {
			if set, known := setting(key); !known || set.Default != "" && c.value != set.Default {
				t.Errorf("%s: %s was %s by default, and is %q now", file, key, c.value, set.Default)
			}
		}
	}
}
