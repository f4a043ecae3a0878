package vm_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appliance/integration/vm"
)

// boot runs a shell script in a machine, or skips where none can be had.
func boot(t *testing.T, o vm.Spec, script string) (code int, stdout, stderr string, err error) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a virtual machine; run without -short")
	}
	var out, errs bytes.Buffer
	o.Stdout, o.Stderr = &out, &errs
	code, err = vm.Run(t.Context(), o, "/bin/sh", "-c", script)
	if errors.Is(err, vm.ErrUnavailable) {
		t.Skip(err)
	}
	return code, out.String(), errs.String(), err
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr, err := boot(t, vm.Spec{Dir: dir, Env: []string{"ODD=it's $HOME"}}, `
		printf 'environment: %s\n' "$ODD"
		printf 'read: '; cat file; echo
		echo changed >file && printf 'wrote: ' && cat file
		echo complaint >/dev/stderr
		ipvsadm -A -t 192.0.2.1:80 -s mh && ipvsadm -Ln | grep 192.0.2.1
		ip link add name br0 type bridge && ip link add v0 type veth peer name v1 && ip netns add n &&
			ip link set v1 netns n && nft add table inet t && nft list tables
		sleep 1000 &  # what stays behind does not keep the machine
		exit 7`)
	if err != nil {
		t.Fatal(err)
	}
	if code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	want := "environment: it's $HOME\nread: of the host\nwrote: changed\nTCP  192.0.2.1:80 mh\ntable inet t\n"
	if stdout != want {
		t.Errorf("stdout is\n%s\nwant\n%s", stdout, want)
	}
	if stderr != "complaint\n" {
		t.Errorf("stderr is %q", stderr)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "file")); string(b) != "of the host" {
		t.Errorf("the guest changed a file of the host: %q", b)
	}
}

func TestRunEndsAtItsLimit(t *testing.T) {
	for _, tt := range []struct {
		limit vm.Spec
		want  string
	}{
		// 3 s are over before the guest is up, or while it sleeps.
		{vm.Spec{Timeout: 3 * time.Second}, "stopped after 3s"},
		{vm.Spec{Silence: 3 * time.Second}, "wrote nothing for 3s"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			tmp := t.TempDir()
			t.Setenv("TMPDIR", tmp)
			_, _, _, err := boot(t, tt.limit, "sleep 1000")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want the limit", err)
			}
			if left, _ := os.ReadDir(tmp); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestRunWithoutKernel(t *testing.T) {
	_, err := vm.Run(context.Background(), vm.Spec{Cache: t.TempDir()}, "/bin/true")
	if !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), "fetch-kernel.sh") {
		t.Errorf("got %v, want ErrUnavailable with the remedy", err)
	}
}

// A qemu that does not start, such as one without 9p, is an error with what it
// said, and no wait for channels that it never opens.
func TestRunWithBrokenQemu(t *testing.T) {
	cache, bin := t.TempDir(), t.TempDir()
	modules := filepath.Join(cache, "lib", "modules", "1.0")
	if err := os.MkdirAll(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]string{
		filepath.Join(cache, "ready"):         "linux-image-1.0",
		filepath.Join(modules, "modules.dep"): "",
		filepath.Join(modules, "modules.builtin"): "a/virtio_pci.ko\na/virtio_console.ko\n" +
			"a/9pnet_virtio.ko\na/9p.ko\na/overlay.ko\n",
		filepath.Join(bin, "busybox"):            "",
		filepath.Join(bin, "qemu-system-x86_64"): "#!/bin/sh\necho 'no 9p here' >&2\nexit 3\n",
	} {
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	_, err := vm.Run(t.Context(), vm.Spec{Cache: cache, Timeout: time.Minute}, "/bin/true")
	if err == nil || !strings.Contains(err.Error(), "no 9p here") {
		t.Errorf("got %v, want what qemu said", err)
	}
}
