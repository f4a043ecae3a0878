package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestBadHosts starts the program where something that it would like is missing. It serves, or says in one sentence
// what is wrong and what to do, and has changed nothing.
func TestBadHosts(t *testing.T) {
	s := newStreet(t, "IPv4", 0)
	for i, host := range []struct {
		name string
		// prepare is run in a mount namespace of its own, in which $1 is the data directory.
		prepare string
		vip     string
		says    string // empty: it serves
	}{
		{"a data directory that is read-only", `mount -t tmpfs -o ro tmpfs "$1"`, "192.0.2.10", "read-only file system; " +
			"the group's votes have to be on disk"},
		{"a disk that is full", `mount -t tmpfs -o size=32k tmpfs "$1"; dd if=/dev/zero of="$1/filler" 2>&1 | grep -q left`,
			"192.0.2.10", "dataDir"},
		{"no IPv6", "true", "2001:db8::10", "no IPv6 address at all: switch IPv6 on (sysctl"},
		{"no /proc/sys", "mount -t tmpfs tmpfs /proc/sys", "192.0.2.10", ""},
		{"a /proc/sys that is read-only", "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys",
			"192.0.2.10", ""},
	} {
		t.Run(host.name, func(t *testing.T) {
			node, err := s.lab.Machine(fmt.Sprintf("node%d", i), s.addrs(2+i)...)
			if err != nil {
				t.Fatal(err)
			}
			w := &walker{Machine: node, dir: t.TempDir()}
			data, config := filepath.Join(w.dir, "data"), filepath.Join(w.dir, "config.yaml")
			if err := os.Mkdir(data, 0o700); err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf("vips: [%q]\nsingleNode: true\ndataDir: %s\nsocket: %s/socket\nlinger: 0s\nloadBalancers:\n"+
				"- {name: apiserver, port: 6443, check: {type: tcp}, backends: [192.0.2.11]}\n", host.vip, data, w.dir)
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			before := w.kernel(t)
			var out strings.Builder
			cmd := exec.Command("unshare", "--mount", "bash", "-ec", host.prepare+`; exec "$2" start --config "$3"`, "bash",
				data, binary, config)
			cmd.Stdout, cmd.Stderr = &out, &out
			p, err := w.Start(cmd)
			if err != nil {
				t.Fatal(err)
			}
			if host.says == "" {
				w.serves(t)
				if err := p.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			err = p.Wait()
			last := out.String()[strings.LastIndex(strings.TrimSpace(out.String()), "\n")+1:]
			if (err == nil) != (host.says == "") || host.says != "" && !strings.Contains(last, host.says) {
				t.Errorf("%v: it says\n%s", err, &out)
			}
			t.Log(last)
			if now := w.kernel(t); now != before {
				t.Errorf("it leaves\n%s\nand before there was\n%s", now, before)
			}
		})
	}
}
