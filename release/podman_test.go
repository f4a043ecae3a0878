package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// podman loads the image of one architecture and that of all, and runs both with the pod's bounds and without a network.
func TestPodman(t *testing.T) {
	dir := os.Getenv(foreign)
	if dir == "" {
		t.Skip("needs a whole release: set " + foreign + " to its directory, as make release does")
	}
	if _, err := exec.LookPath("podman"); err != nil {
		t.Skip("no podman: integration/setup.sh release installs it")
	}
	// Nothing of this machine's own containers is touched.
	at := t.TempDir()
	podman := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("podman", append([]string{"--root", at + "/root", "--runroot", at + "/run", "--tmpdir", at + "/tmp",
			"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	for _, pattern := range []string{"appliance_*_linux_" + made.arch.name + "_image.tar", "appliance_*_image.tar"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		archive := found[0]
		for _, f := range found { // that of all architectures names none
			if !strings.Contains(pattern, "linux") && !strings.Contains(f, "_linux_") {
				archive = f
			}
		}
		t.Run(filepath.Base(archive), func(t *testing.T) {
			loaded := podman("load", "--quiet", "--input", archive)
			image := strings.TrimSpace(loaded[strings.LastIndex(loaded, ": ")+1:])
			got := podman("run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024",
				"--ulimit", "nproc=512:512", "--read-only", "--cap-drop", "all", "--cap-add", "net_admin,net_raw", "--security-opt", "no-new-privileges", image, "version")
			if !strings.HasPrefix(got, "appliance ") {
				t.Errorf("%s says %q", image, got)
			}
			podman("rmi", "--force", image)
		})
	}
}
