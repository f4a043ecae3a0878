package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"appliance/image"
)

// made is a release of this machine's architecture, which most tests look at. It is made for the first of them.
var made struct {
	once sync.Once
	dir  string
	err  error
	arch arch
}

// foreign names a directory with a whole release, whose programs are run under emulation: make release sets it.
const foreign = "RELEASE_DIST"

func TestMain(m *testing.M) {
	at := slices.IndexFunc(arches(), func(a arch) bool { return a.goarch == runtime.GOARCH })
	made.arch = arches()[max(at, 0)]
	code := m.Run()
	if made.dir != "" {
		os.RemoveAll(filepath.Dir(made.dir))
	}
	os.Exit(code)
}

// dist is the directory of the release.
func dist(t *testing.T) string {
	t.Helper()
	made.once.Do(func() {
		dir, err := os.MkdirTemp("", "appliance-release-test-")
		if err != nil {
			made.err = err
			return
		}
		made.dir = filepath.Join(dir, "dist")
		made.err = run(t.Context(), arguments(made.dir, "v1.2.3"))
	})
	if made.err != nil {
		t.Fatal(made.err)
	}
	return made.dir
}

func arguments(out, version string) []string {
	return []string{"-root", "..", "-out", out, "-arch", made.arch.name, "-version", version, "-time", "1000000000",
		"-image", ""}
}

// name is the path of one of its files.
func name(t *testing.T, extension string) string {
	t.Helper()
	return filepath.Join(dist(t), "appliance_v1.2.3_linux_"+made.arch.name+extension)
}

// The same sources make the same bytes, whatever the directory.
func TestReproducible(t *testing.T) {
	r := release{root: "..", out: dist(t), arches: []arch{made.arch}}
	if err := r.describe(t.Context(), "v1.2.3", 1e9); err != nil {
		t.Fatal(err)
	}
	if err := r.again(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// What is made of the program depends on nothing but its bytes and the time of the commit.
func TestPackagesAreReproducible(t *testing.T) {
	small := []byte("a program")
	var files []file
	for _, f := range filesOf(t, name(t, ".tar.gz")) {
		if f.path == "appliance" {
			f.data = small
		}
		files = append(files, f)
	}
	var made [2]map[string]string
	for i := range made {
		r := release{root: "..", out: t.TempDir(), arches: arches()[:1]}
		if err := r.describe(t.Context(), "v1.2.3", 1e9); err != nil {
			t.Fatal(err)
		}
		err := errors.Join(r.archive("archive", files), r.packages(arches()[0], files),
			r.container("image.tar", image.Binary{Arch: "amd64", Program: small}), r.sums())
		if err != nil {
			t.Fatal(err)
		}
		sums, err := os.ReadFile(filepath.Join(r.out, "SHA256SUMS"))
		if err != nil {
			t.Fatal(err)
		}
		made[i] = make(map[string]string)
		for line := range strings.Lines(string(sums)) {
			f := strings.Fields(line)
			made[i][f[1]] = f[0]
		}
	}
	if len(made[0]) != 5 || !maps.Equal(made[0], made[1]) {
		t.Errorf("made %v, and then %v", made[0], made[1])
	}
}

// filesOf reads an archive of a release.
func filesOf(t *testing.T, path string) (all []file) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(time.Unix(1e9, 0)) || h.Uid != 0 {
			t.Errorf("%s is of %s, of user %d", h.Name, h.ModTime, h.Uid)
		}
		_, inside, _ := strings.Cut(h.Name, "/")
		all = append(all, file{inside, os.FileMode(h.Mode), data})
	}
}

func TestArchive(t *testing.T) {
	all := filesOf(t, name(t, ".tar.gz"))
	for path, want := range map[string]string{
		"LICENSE": "Apache", "README.md": "appliance", "config.yaml": "vips:", "appliance.service": "ExecStart",
		"monitoring/dashboard.json": "{", "monitoring/rules.yaml": "alert", "man/appliance.8": ".SH undrain",
		"completions/appliance.bash": "complete", "completions/appliance.zsh": "#compdef",
		"completions/appliance.fish": "complete -c",
	} {
		if !slices.ContainsFunc(all, func(f file) bool { return f.path == path && strings.Contains(string(f.data), want) }) {
			t.Errorf("there is no %s with %q", path, want)
		}
	}
	program := find(all, "appliance")
	e, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the program is not static: it has %s", p.Type)
		}
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(program, []byte(filepath.Dir(here))) {
		t.Error("the program names the directory that it was built in")
	}
	for _, heavy := range []string{"goreleaser", "go-git"} {
		if bytes.Contains(program, []byte(heavy)) {
			t.Errorf("the program has %s in it", heavy)
		}
	}
}

func TestBill(t *testing.T) {
	data, err := os.ReadFile(name(t, ".cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var b bom
	if err := json.Unmarshal(data, &b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"std", "github.com/hashicorp/raft", "golang.org/x/sys"} {
		if !slices.ContainsFunc(b.Components, func(c component) bool { return c.Name == want && c.Version != "" }) {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestSums(t *testing.T) {
	cmd := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	cmd.Dir = dist(t)
	if out, err := cmd.CombinedOutput(); err != nil || strings.Count(string(out), ": OK") < 6 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestVersion(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for word, want := range map[string]version{
		"v1.2.3":                  {"v1.2.3", "1.2.3", "", ""},
		"1.2.3":                   {"1.2.3", "1.2.3", "", ""},
		"v1.2.3-rc.1":             {"v1.2.3-rc.1", "1.2.3", "rc1", ""},
		"v1.2.3-5-gabcdef0":       {"v1.2.3-5-gabcdef0", "1.2.3", "", "5.gabcdef0"},
		"v1.2.3-5-gabcdef0-dirty": {"v1.2.3-5-gabcdef0-dirty", "1.2.3", "", "5.gabcdef0.dirty"},
		"v1.2.3-dirty":            {"v1.2.3-dirty", "1.2.3", "", "dirty"},
		"abcdef0":                 {"abcdef0", "0.0.0", "git20260102030405", ""},
	} {
		if got, err := parseVersion(word, at); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", word, got, err, want)
		}
	}
	for _, bad := range []string{"", "a b", "a/b"} {
		if _, err := parseVersion(bad, at); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// A directory of somebody else's is not emptied.
func TestFresh(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fresh(dir); err == nil || !strings.Contains(err.Error(), "-out") {
		t.Errorf("%v", err)
	}
	ours := filepath.Join(dir, "dist")
	for range 2 {
		if err := fresh(ours); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(ours, "old"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// What .goreleaser.yaml and the Makefile say and this program do not drift apart.
func TestOthersBuildTheSame(t *testing.T) {
	read := func(path string) string {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	goreleaser, makefile := read("../.goreleaser.yaml"), read("../Makefile")
	for _, a := range arches() {
		if !strings.Contains(goreleaser, "\n  - "+a.goarch+"\n") {
			t.Errorf(".goreleaser.yaml does not build for %s", a.goarch)
		}
	}
	if !strings.Contains(goreleaser, "-tags="+tags) || !strings.Contains(makefile, "TAGS := "+strings.ReplaceAll(tags, ",",
		" ")) {
		t.Errorf(".goreleaser.yaml and the Makefile build with other tags than %s", tags)
	}
}
