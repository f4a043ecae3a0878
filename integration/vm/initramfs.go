package vm

import (
	"bufio"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// stage1 runs from the initramfs and ends in the host's root; stage2 runs there.
var (
	//go:embed stage1.sh
	stage1 string
	//go:embed stage2.sh
	stage2 string
)

// bootModules are needed to reach the host's root and the channels, unless the kernel
// has them built in. The kernel loads everything else on demand from the modules in
// the cache.
var bootModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}

// A kernel is what findKernel found on this host.
type kernel struct {
	qemu    string
	busybox string
	image   string
	modules string // .../lib/modules/<version>
}

func findKernel(cache string) (kernel, error) {
	const remedy = "run integration/vm/fetch-kernel.sh"
	var k kernel
	for name, to := range map[string]*string{"qemu-system-x86_64": &k.qemu, "busybox": &k.busybox} {
		p, err := exec.LookPath(name)
		if err != nil {
			return k, fmt.Errorf("%w: %s is missing; %s", ErrUnavailable, name, remedy)
		}
		*to = p
	}
	if _, err := os.Stat(filepath.Join(cache, "ready")); err != nil {
		return k, fmt.Errorf("%w: no kernel in %s; %s", ErrUnavailable, cache, remedy)
	}
	k.image = filepath.Join(cache, "vmlinuz")
	found, err := filepath.Glob(filepath.Join(cache, "lib", "modules", "*", "modules.dep"))
	if err != nil || len(found) != 1 {
		return k, fmt.Errorf("%w: %s has %d directories of modules, want one; remove it and %s", ErrUnavailable, cache,
			len(found), remedy)
	}
	k.modules = filepath.Dir(found[0])
	return k, nil
}

// writeInitramfs writes what the kernel starts from: busybox, the modules in
// the order in which they load, and the scripts.
func (k kernel) writeInitramfs(to, command string) (err error) {
	modules, err := k.loadOrder(bootModules)
	if err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()

	buf := bufio.NewWriter(f)
	ar := &cpioWriter{w: buf}
	for _, dir := range []string{"bin", "modules", "proc", "lower", "writable", "new"} {
		ar.dir(dir)
	}
	ar.device("console", 5, 1) // the kernel opens /console for init
	ar.file("init", 0o755, []byte(stage1))
	ar.file("stage2", 0o755, []byte(stage2))
	ar.file("command", 0o755, []byte(command))
	ar.copy("bin/busybox", 0o755, k.busybox)
	var order strings.Builder
	for _, m := range modules {
		name := path.Join("modules", path.Base(m))
		ar.copy(name, 0o644, filepath.Join(k.modules, m))
		fmt.Fprintln(&order, "/"+name)
	}
	ar.file("modules/order", 0o644, []byte(order.String()))
	ar.end()
	if ar.err != nil {
		return ar.err
	}
	return buf.Flush()
}

// loadOrder is the paths of the modules and of all that they need, needed
// ones first.
func (k kernel) loadOrder(names []string) ([]string, error) {
	f, err := os.Open(filepath.Join(k.modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	deps, err := parseDeps(f)
	if err != nil {
		return nil, err
	}

	builtin, err := os.ReadFile(filepath.Join(k.modules, "modules.builtin"))
	if err != nil {
		return nil, err
	}

	var order []string
	seen := map[string]bool{}
	var visit func(m string)
	visit = func(m string) {
		if seen[m] {
			return
		}
		seen[m] = true
		for _, d := range deps[m] {
			visit(d)
		}
		order = append(order, m)
	}
	for _, name := range names {
		m := ""
		for p := range deps {
			if path.Base(p) == name+".ko" {
				m = p
			}
		}
		if m == "" && strings.Contains(string(builtin), "/"+name+".ko\n") {
			continue
		}
		if m == "" {
			return nil, fmt.Errorf("the kernel in %s has no module %s; take a linux-image package that is not a cloud one",
				k.modules, name)
		}
		visit(m)
	}
	return order, nil
}

// parseDeps reads modules.dep: "path: path path".
func parseDeps(r io.Reader) (map[string][]string, error) {
	deps := map[string][]string{}
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		m, needs, ok := strings.Cut(sc.Text(), ":")
		if !ok {
			return nil, fmt.Errorf("modules.dep has the line %q", sc.Text())
		}
		deps[m] = strings.Fields(needs)
	}
	return deps, sc.Err()
}

// script is the shell text that becomes the command.
func script(o Spec, k kernel, command []string) string {
	var b strings.Builder
	version := filepath.Base(k.modules)
	fmt.Fprintf(&b, "modules=%s\nversion=%s\ndir=%s\n", quote(k.modules), quote(version), quote(o.Dir))
	fmt.Fprintf(&b, "start() {\n\texport HOME=/root PATH=%s\n",
		quote("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
	for _, kv := range o.Env {
		key, value, _ := strings.Cut(kv, "=")
		fmt.Fprintf(&b, "\texport %s=%s\n", key, quote(value))
	}
	b.WriteString("\texec")
	for _, arg := range command {
		b.WriteString(" " + quote(arg))
	}
	b.WriteString("\n}\n")
	return b.String()
}

// quote makes s one word of a shell, whatever it holds.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func isName(s string) bool {
	for i, c := range s {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
