package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Programs for other architectures run under qemu's user emulation: they say their version, check a file, and pack
// themselves, which reads what the kernel and the byte order are.
func TestForeign(t *testing.T) {
	dir := os.Getenv(foreign)
	if dir == "" {
		t.Skip("needs a whole release: set " + foreign + " to its directory, as make release does")
	}
	emulators := map[string]string{
		"arm64": "aarch64", "armv7": "arm", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64", "amd64": "x86_64",
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := "vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\ngroup: {insecure: true}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, a := range arches() {
		t.Run(a.name, func(t *testing.T) {
			program := filepath.Join(dir, "bin", "appliance-linux-"+a.name)
			if _, err := os.Stat(program); err != nil {
				t.Skip("the release has no program for " + a.name)
			}
			emulator, err := exec.LookPath("qemu-" + emulators[a.name] + "-static")
			if err != nil {
				t.Skip("no emulator: apt-get install qemu-user-static")
			}
			for args, want := range map[string]string{
				"version":              "appliance ",
				"config check " + file: "is valid",
				"manifest --vip 192.0.2.10 --peers 192.0.2.11,192.0.2.12,192.0.2.13 --insecure": "kind: Pod",
			} {
				out, err := exec.Command(emulator, append([]string{program}, strings.Fields(args)...)...).CombinedOutput()
				if err != nil || !strings.Contains(string(out), want) {
					t.Errorf("%s: %v\n%s", args, err, out)
				}
			}
		})
	}
}
