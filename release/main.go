package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// An arch is one architecture, as the different trades name it.
type arch struct {
	goarch, goarm string
	name          string // in file names
	deb, rpm, apk string
}

// arches is every architecture that is released.
func arches() []arch {
	return []arch{
		{"amd64", "", "amd64", "amd64", "x86_64", "x86_64"},
		{"arm64", "", "arm64", "arm64", "aarch64", "aarch64"},
		{"arm", "7", "armv7", "armhf", "armv7hl", "armv7"},
		{"ppc64le", "", "ppc64le", "ppc64el", "ppc64le", "ppc64le"},
		{"s390x", "", "s390x", "s390x", "s390x", "s390x"},
		{"riscv64", "", "riscv64", "riscv64", "riscv64", "riscv64"},
	}
}

// A release is what is made, and of what.
type release struct {
	root    string // of the repository
	out     string
	version version
	commit  string
	at      time.Time // of the commit: of every file that is made
	image   string    // the image's name, without a tag
	arches  []arch
	ldflags string
	cache   string // of Go's builds; empty: the usual one
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	root := flags.String("root", ".", "the repository")
	out := flags.String("out", "dist", "the directory that is made; it must not exist, or be one that this program made")
	only := flags.String("arch", "", "architectures, joined by commas; empty: all")
	word := flags.String("version", "", "the version; empty: what git describes")
	unix := flags.Int64("time", 0, "the time of all files, in seconds since 1970; 0: the commit's")
	image := flags.String("image", os.Getenv("IMAGE"), "the image's name with its registry, such as "+
		"registry.example/appliance")
	twice := flags.Bool("twice", false, "build every program again, in another directory and without a cache, and compare")
	sign := flags.String("sign", "", "a command that signs; the path of SHA256SUMS follows its words")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is no flag; see release -help", flags.Arg(0))
	}
	r := release{root: *root, out: *out, image: *image}
	var err error
	if r.arches, err = chosen(*only); err != nil {
		return err
	}
	if err := r.describe(ctx, *word, *unix); err != nil {
		return err
	}
	if err := fresh(r.out); err != nil {
		return err
	}
	if err := r.make(ctx); err != nil {
		return err
	}
	if *twice {
		if err := r.again(ctx, true); err != nil {
			return err
		}
	}
	return r.sign(ctx, strings.Fields(*sign))
}

// chosen picks architectures by the names that files have.
func chosen(names string) (picked []arch, err error) {
	all := arches()
	if names == "" {
		return all, nil
	}
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(a arch) bool { return a.name == name })
		if i < 0 {
			var words []string
			for _, a := range all {
				words = append(words, a.name)
			}
			return nil, fmt.Errorf("-arch %s is unknown; write some of %s", name, strings.Join(words, ","))
		}
		picked = append(picked, all[i])
	}
	return picked, nil
}

// describe finds version, commit and time, from git where they are not given.
func (r *release) describe(ctx context.Context, word string, unix int64) error {
	git := func(args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-C", r.root}, args...)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	var err error
	if r.commit, err = git("rev-parse", "HEAD"); err != nil && (word == "" || unix == 0) {
		return fmt.Errorf("this is no git repository (%w); give -version and -time", err)
	}
	if word == "" {
		if word, err = git("describe", "--tags", "--always", "--dirty"); err != nil {
			return fmt.Errorf("git describe: %w; give -version", err)
		}
	}
	if unix == 0 {
		text, err := git("log", "-1", "--format=%ct")
		if err == nil {
			unix, err = strconv.ParseInt(text, 10, 64)
		}
		if err != nil {
			return fmt.Errorf("git log: %w; give -time", err)
		}
	}
	r.at = time.Unix(unix, 0).UTC()
	r.version, err = parseVersion(word, r.at)
	r.ldflags = "-s -w -buildid= -X main.version=" + word
	if r.image != "" {
		r.ldflags += " -X main.image=" + r.imageName()
	}
	return err
}

// imageName is the image's name with its tag. Without a registry it is what `appliance manifest` names by itself.
func (r *release) imageName() string {
	name := r.image
	if name == "" {
		name = "docker.io/library/appliance"
	}
	return name + ":" + strings.ReplaceAll(r.version.word, "+", "-")
}

// A version, as the different trades write it.
type version struct {
	word    string // as git describes it
	number  string // 1.2.3
	pre     string // before it: rc1, or the time of a commit without any tag
	further string // after it: 5.g0123abc
}

var described = regexp.MustCompile(
	`^v?(\d+\.\d+\.\d+)(?:-((?:alpha|beta|rc|pre)\.?\d*))?(?:-(\d+)-(g[0-9a-f]+))?(-dirty)?$`)

// parseVersion reads a tag, or what git describe makes of it. What has no tag comes before every version.
func parseVersion(word string, at time.Time) (version, error) {
	if word == "" || strings.ContainsAny(word, " /_:~") {
		return version{}, fmt.Errorf("version %q cannot stand in file names; write one such as v1.2.3", word)
	}
	m := described.FindStringSubmatch(word)
	if m == nil {
		return version{word: word, number: "0.0.0", pre: "git" + at.Format("20060102150405")}, nil
	}
	v := version{word: word, number: m[1], pre: strings.ReplaceAll(m[2], ".", "")}
	if m[3] != "" {
		v.further = m[3] + "." + m[4]
	}
	if m[5] != "" {
		v.further = strings.TrimPrefix(v.further+".dirty", ".")
	}
	return v, nil
}

// marker says that a directory is this program's to empty.
const marker = ".made-by-release"

// fresh makes an empty directory. One that somebody else filled is left alone.
func fresh(dir string) error {
	if list, err := os.ReadDir(dir); err == nil && len(list) > 0 {
		if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
			return fmt.Errorf("%s has files that are not a release's; name another directory with -out", dir)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, marker), nil, 0o644)
}
