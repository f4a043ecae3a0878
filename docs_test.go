package main

import (
	"bytes"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"appliance/cli"
)

// A docPage is one page of the documentation.
type docPage struct {
	path  string
	prose []string // the lines outside of fenced blocks
	shell []string // the lines of blocks of shell commands, with continued lines joined
}

// docPages reads every page that people are shown.
func docPages(t *testing.T) []docPage {
	t.Helper()
	var pages []docPage
	for _, root := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs", ".github"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".md" {
				return err
			}
			text, err := os.ReadFile(path)
			pages = append(pages, readPage(path, string(text)))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return pages
}

// readPage separates a page's prose from its shell commands.
func readPage(path, text string) docPage {
	p := docPage{path: path}
	fence, continued := "", ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if in := strings.TrimLeft(line, " "); fence != "" || strings.HasPrefix(in, "```") { // a block may be in a list
			line = in
		}
		switch {
		case strings.HasPrefix(line, "```"):
			if fence == "" {
				fence = line
			} else {
				fence = ""
			}
		case fence == "":
			p.prose = append(p.prose, line)
		case fence != "```sh":
		case strings.HasSuffix(line, `\`):
			continued += strings.TrimSuffix(line, `\`)
		default:
			p.shell = append(p.shell, continued+line)
			continued = ""
		}
	}
	return p
}

// anchors are the fragments that a page's headings have on GitHub.
func (p docPage) anchors() (all []string) {
	drop := regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	for _, line := range p.prose {
		if hashes, title, ok := strings.Cut(line, " "); ok && hashes != "" && strings.Trim(hashes, "#") == "" {
			all = append(all, strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(title), ""), " ", "-"))
		}
	}
	return all
}

// codeSpans are what stands between backquotes.
func (p docPage) codeSpans() (all []string) {
	for _, line := range p.prose {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(line, -1) {
			all = append(all, strings.ReplaceAll(m[1], `\|`, "|"))
		}
	}
	return all
}

func TestDocLinks(t *testing.T) {
	pages := docPages(t)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	linked := make(map[string]bool)
	for _, p := range pages {
		for _, m := range link.FindAllStringSubmatch(strings.Join(p.prose, "\n"), -1) {
			u, err := url.Parse(m[1])
			if err != nil || u.Scheme != "" {
				continue
			}
			path := p.path
			if u.Path != "" {
				path = filepath.Join(filepath.Dir(p.path), u.Path)
				linked[path] = linked[path] || p.path == "docs/README.md"
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s links to %s: %v", p.path, m[1], err)
				continue
			}
			if u.Fragment == "" {
				continue
			}
			i := slices.IndexFunc(pages, func(o docPage) bool { return o.path == path })
			if i < 0 || !slices.Contains(pages[i].anchors(), u.Fragment) {
				t.Errorf("%s links to %s: %s has no such heading", p.path, m[1], path)
			}
		}
	}
	for _, p := range pages {
		if strings.HasPrefix(p.path, "docs/") && p.path != "docs/README.md" && !linked[p.path] {
			t.Errorf("docs/README.md does not lead to %s", p.path)
		}
	}
}

// A verb is a command of the program, with what may follow it.
type verb struct {
	verbs map[string]verb
	flags []string
}

// verbOf asks the program what may follow a command.
func verbOf(t *testing.T, path ...string) verb {
	t.Helper()
	var out bytes.Buffer
	args := append(append([]string{"appliance"}, path...), "--help")
	if code := cli.Run(t.Context(), cli.Build{Version: "unreleased"}, args, &out, &out); code != 0 {
		t.Fatalf("%s: exit code %d", strings.Join(args, " "), code)
	}
	v := verb{verbs: make(map[string]verb)}
	section := ""
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, " ") {
			section = strings.TrimSpace(line)
			continue
		}
		names, _, _ := strings.Cut(strings.TrimSpace(line), "  ") // "events", "help, h" or "--last value, -n value"
		for name := range strings.SplitSeq(names, ", ") {
			name, _, _ = strings.Cut(name, " ")
			switch {
			case section == "COMMANDS:" && name != "help" && name != "h":
				v.verbs[name] = verbOf(t, append(slices.Clone(path), name)...)
			case strings.HasSuffix(section, "OPTIONS:"):
				v.flags = append(v.flags, name)
			}
		}
	}
	v.verbs["help"] = verb{flags: v.flags}
	return v
}

// allFlags are the flags of a command and of all below it.
func (v verb) allFlags() []string {
	all := slices.Clone(v.flags)
	for _, below := range v.verbs {
		all = append(all, below.allFlags()...)
	}
	return all
}

// wrong says what of a command line the program does not have, or "".
func (v verb) wrong(line string) string {
	for _, word := range strings.Fields(line) {
		word = strings.Trim(word, "[]")
		switch name, _, _ := strings.Cut(word, "="); {
		case word == "--", strings.ContainsAny(word, ">|;&#)"): // what follows is not ours
			return ""
		case strings.HasPrefix(name, "-") && name != "-":
			if !slices.Contains(v.flags, name) {
				return "flag " + name
			}
		case len(v.verbs) > 1:
			next, ok := v.verbs[word]
			if !ok {
				return "command " + word
			}
			v = next
		}
	}
	return ""
}

// TestDocCommands holds every command and flag in the documentation against the program.
func TestDocCommands(t *testing.T) {
	program := verbOf(t)
	flags := program.allFlags()
	command := regexp.MustCompile(`(?:^|[;&|(]\s*)appliance ([a-z-].*)`)
	for _, p := range docPages(t) {
		for _, text := range append(p.codeSpans(), p.shell...) {
			if m := command.FindStringSubmatch(text); m != nil {
				if why := program.wrong(m[1]); why != "" {
					t.Errorf("%s: `%s`: the program has no %s", p.path, text, why)
				}
			}
		}
		for _, span := range p.codeSpans() {
			if name := strings.Fields(span)[0]; strings.HasPrefix(name, "--") && !slices.Contains(flags, name) {
				t.Errorf("%s: `%s`: the program has no such flag", p.path, span)
			}
		}
	}
}

// TestDocKeys holds the page about the configuration against the reference file.
func TestDocKeys(t *testing.T) {
	reference, err := os.ReadFile("configs/reference.yaml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	keys := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^ *#?(?:- )?([A-Za-z]+):`).FindAllStringSubmatch(string(reference), -1) {
		keys[m[1]] = true
	}
	for key := range keys {
		if !regexp.MustCompile(`\b` + key + `\b`).Match(page) {
			t.Errorf("docs/configuration.md does not explain %s", key)
		}
	}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		for _, m := range regexp.MustCompile("`([A-Za-z.]+)`").FindAllStringSubmatch(cells[1], -1) {
			if key := m[1][strings.LastIndex(m[1], ".")+1:]; !keys[key] {
				t.Errorf("docs/configuration.md explains %s, which the reference file does not have", m[1])
			}
		}
	}
}

// notRun are how many blocks of commands of each page no test runs: they need a cluster, another distribution, or a
// terminal, or stand for what other tests do without the page. Where one is added, run it instead: label it.
var notRun = map[string]int{
	"README.md": 1, "docs/install.md": 1, "docs/kubeadm.md": 1, "docs/release.md": 1,
}

// TestDocBlocks lists the blocks of commands that no test runs, and holds every label of the others against the tests.
func TestDocBlocks(t *testing.T) {
	tests := ""
	for _, dir := range []string{"integration", "release"} {
		files, err := filepath.Glob(dir + "/*_test.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("no tests in %s: %v", dir, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tests += string(text)
		}
	}
	block := regexp.MustCompile("(?s)(?:<!-- run: ([^>]+) -->\n *)?```sh\n(.*?)```")
	for _, p := range docPages(t) {
		text, err := os.ReadFile(p.path)
		if err != nil {
			t.Fatal(err)
		}
		unrun := 0
		for _, m := range block.FindAllStringSubmatch(string(text), -1) {
			first, _, _ := strings.Cut(m[2], "\n")
			switch {
			case m[1] == "":
				unrun++
				t.Logf("%s: no test runs the block that begins with %s", p.path, first)
			// release runs all of its page's, in order.
			case p.path != "docs/install.md" && !strings.Contains(tests, `"`+m[1]+`"`):
				t.Errorf("%s: no test runs the block with the label %q", p.path, m[1])
			}
		}
		if unrun != notRun[p.path] {
			t.Errorf("%s: no test runs %d blocks of commands, and %d are known: label and run the new one, "+
				"or correct notRun", p.path, unrun, notRun[p.path])
		}
	}
}

// TestReadme keeps the README short, and its two commands first.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text, []byte("\n")); n > 140 {
		t.Errorf("README.md has %d lines; more than 140 belong into docs/", n)
	}
	shell := readPage("README.md", string(text)).shell
	for i, want := range []string{"make demo", "make test"} {
		if got, _, _ := strings.Cut(shell[i], "#"); strings.TrimSpace(got) != want {
			t.Errorf("command %d of README.md is %q, not %q", i+1, got, want)
		}
	}
}
