package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// again builds every program a second time, from a copy of the repository elsewhere, and compares the bytes. Without a
// cache everything is compiled anew, which takes minutes for each architecture.
func (r *release) again(ctx context.Context, withoutCache bool) error {
	dir, err := os.MkdirTemp("", "appliance-again-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	second := *r
	second.root, second.out = filepath.Join(dir, "elsewhere"), filepath.Join(dir, "out")
	if withoutCache {
		second.cache = filepath.Join(dir, "cache")
	}
	if err := clone(ctx, r.root, second.root); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(second.out, "bin"), 0o755); err != nil {
		return err
	}
	for _, a := range r.arches {
		fmt.Fprintln(os.Stderr, "release: again,", a.name)
		have, err := os.ReadFile(filepath.Join(r.out, "bin", "appliance-linux-"+a.name))
		if err != nil {
			return err
		}
		got, err := second.build(ctx, a)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, got) {
			return fmt.Errorf("the program for %s is another when it is built again; compare with `go version -m`", a.name)
		}
	}
	return nil
}

// clone copies the files that git knows, and those that it would.
func clone(ctx context.Context, from, to string) error {
	list, err := exec.CommandContext(ctx, "git", "-C", from, "ls-files", "-z", "-co", "--exclude-standard").Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	for name := range strings.SplitSeq(strings.Trim(string(list), "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed, and not yet from the index
		}
		if err != nil {
			return err
		}
		path := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// sign runs the command that signs the checksums, if there is one.
func (r *release) sign(ctx context.Context, words []string) error {
	if len(words) == 0 {
		return nil
	}
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], filepath.Join(r.out, "SHA256SUMS"))...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("sign with %s: %w", words[0], err)
	}
	return nil
}
