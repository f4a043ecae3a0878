package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"appliance/image"
)

// make runs the steps. What is made lies flat in the output directory, but for the bare programs in bin.
func (r *release) make(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(r.out, "bin"), 0o755); err != nil {
		return err
	}
	programs := make([][]byte, len(r.arches))
	for i, a := range r.arches {
		fmt.Fprintln(os.Stderr, "release:", a.name)
		var err error
		if programs[i], err = r.build(ctx, a); err != nil {
			return err
		}
	}
	texts, err := r.texts(ctx)
	if err != nil {
		return err
	}
	var binaries []image.Binary
	for i, a := range r.arches {
		program := programs[i]
		b := image.Binary{Arch: a.goarch, Program: program}
		if a.goarm != "" {
			b.Variant = "v" + a.goarm
		}
		binaries = append(binaries, b)
		base := fmt.Sprintf("appliance_%s_linux_%s", r.version.word, a.name)
		files := append([]file{{"appliance", 0o755, program}}, texts...)
		if err := r.archive(base, files); err != nil {
			return err
		}
		if err := r.packages(a, files); err != nil {
			return err
		}
		if err := r.bill(a, program, base+".cdx.json"); err != nil {
			return err
		}
		if err := r.container(base+"_image.tar", b); err != nil {
			return err
		}
	}
	if len(binaries) > 1 {
		if err := r.container(fmt.Sprintf("appliance_%s_image.tar", r.version.word), binaries...); err != nil {
			return err
		}
	}
	return r.sums()
}

// A file is one of what archives and packages have.
type file struct {
	path string // in the archive
	mode os.FileMode
	data []byte
}

// texts are the files beside the program: those of the repository, and those that the program prints.
func (r *release) texts(ctx context.Context) (all []file, err error) {
	for _, f := range []struct{ from, to string }{
		{"LICENSE", "LICENSE"},
		{"README.md", "README.md"},
		{"configs/reference.yaml", "config.yaml"},
		{"packaging/appliance.service", "appliance.service"},
		{"packaging/monitoring/dashboard.json", "monitoring/dashboard.json"},
		{"packaging/monitoring/rules.yaml", "monitoring/rules.yaml"},
	} {
		data, err := os.ReadFile(filepath.Join(r.root, f.from))
		if err != nil {
			return nil, err
		}
		all = append(all, file{f.to, 0o644, data})
	}
	page, err := r.print(ctx, "go", "run", "-buildvcs=false", "./cli/manual")
	if err != nil {
		return nil, err
	}
	all = append(all, file{"man/appliance.8", 0o644, page})
	own, err := filepath.Abs(filepath.Join(r.out, "bin", "appliance-linux-"+runtime.GOARCH))
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(r.arches, func(a arch) bool { return a.name == runtime.GOARCH }) {
		// This machine's own program prints, and is not released.
		defer os.Remove(own)
		if err := r.compile(ctx, arch{goarch: runtime.GOARCH}, own); err != nil {
			return nil, err
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script, err := r.print(ctx, own, "completion", shell)
		if err != nil {
			return nil, err
		}
		all = append(all, file{"completions/appliance." + shell, 0o644, script})
	}
	return all, nil
}

// print runs a program in the repository and returns what it prints. No setting of the appliance on this machine gets
// into it.
func (r *release) print(ctx context.Context, program string, args ...string) ([]byte, error) {
	var problems bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Stderr = r.root, &problems
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "APPLIANCE_") })
	data, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, &problems)
	}
	return data, nil
}

// build makes the program for one architecture, in bin.
func (r *release) build(ctx context.Context, a arch) ([]byte, error) {
	to := filepath.Join(r.out, "bin", "appliance-linux-"+a.name)
	if err := r.compile(ctx, a, to); err != nil {
		return nil, err
	}
	if err := os.Chtimes(to, r.at, r.at); err != nil {
		return nil, err
	}
	return os.ReadFile(to)
}

// tags leave out of the program what its users do not need, as in the Makefile.
const tags = "nethttpomithttp2,urfave_cli_no_docs"

// compile makes a static program that says nothing of the directory that it was made in.
func (r *release) compile(ctx context.Context, a arch, to string) error {
	to, err := filepath.Abs(to)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-tags", tags, "-ldflags", r.ldflags,
		"-o", to, ".")
	cmd.Dir = r.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+a.goarch, "GOFLAGS=-mod=readonly",
		"GOWORK=off")
	if a.goarm != "" {
		cmd.Env = append(cmd.Env, "GOARM="+a.goarm)
	}
	if r.cache != "" {
		cmd.Env = append(cmd.Env, "GOCACHE="+r.cache)
	}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build for %s: %w", a.goarch, err)
	}
	return nil
}

// container writes the image of some architectures as an archive.
func (r *release) container(name string, binaries ...image.Binary) error {
	var b bytes.Buffer
	err := image.Write(&b, image.Archive{
		Name: r.imageName(), Version: r.version.word, Revision: r.commit, Created: r.at, Binaries: binaries,
	})
	if err != nil {
		return err
	}
	return r.write(name, b.Bytes())
}

// write puts a file into the output directory.
func (r *release) write(name string, data []byte) error {
	path := filepath.Join(r.out, name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return err
	}
	return os.Chtimes(path, r.at, r.at)
}

// sums writes SHA256SUMS, for sha256sum -c in the output directory.
func (r *release) sums() error {
	list, err := os.ReadDir(r.out)
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, f := range list {
		if f.IsDir() || strings.HasPrefix(f.Name(), ".") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(r.out, f.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%x  %s\n", sha256.Sum256(data), f.Name())
	}
	return r.write("SHA256SUMS", []byte(b.String()))
}

// find returns a file's content by its path in the archive.
func find(files []file, path string) []byte {
	return files[slices.IndexFunc(files, func(f file) bool { return f.path == path })].data
}
