package integration

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBadHosts starts the program where something that it would like is missing. It serves, or says in one sentence
// what is wrong and what to do, and has changed nothing.
func TestBadHosts(t *testing.T) {
	s := newStreet(t, "IPv4", 0)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i, host := range []struct {
		name string
		// prepare is run in a mount namespace of its own, in which $1 is the data directory.
		prepare string
		vip     string
		says    string // empty: it serves
		// no has the program run by the test binary, which takes away what is named. If the program says something
		// then, it waits for what it lacks, and answers for nothing.
		no string
	}{
		{"a data directory that is read-only", `mount -t tmpfs -o ro tmpfs "$1"`, "192.0.2.10", "read-only file system; " +
			"the group's votes have to be on disk", ""},
		{"a disk that is full", `mount -t tmpfs -o size=32k tmpfs "$1"; dd if=/dev/zero of="$1/filler" 2>&1 | grep -q left`,
			"192.0.2.10", "dataDir", ""},
		{"no IPv6", "true", "2001:db8::10", "no IPv6 address at all: switch IPv6 on (sysctl", ""},
		{"no /proc/sys", "mount -t tmpfs tmpfs /proc/sys", "192.0.2.10", "", ""},
		{"a /proc/sys that is read-only", "mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys",
			"192.0.2.10", "", ""},
		{"no nf_tables", "true", "192.0.2.10", "", noNFTables},
		{"no nf_tables, and a /proc/sys that is read-only", "mount --bind /proc/sys /proc/sys; " +
			"mount -o remount,ro,bind /proc/sys", "192.0.2.10",
			`on the host, put the line \"net.ipv4.conf.eth0.arp_ignore = 3\"`,
			noNFTables},
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
			log, err := os.Create(filepath.Join(w.dir, "log"))
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			said := func() string {
				text, err := os.ReadFile(log.Name())
				if err != nil {
					t.Fatal(err)
				}
				return string(text)
			}
			start := []string{binary, "start", "--config", config}
			if host.no != "" {
				start = append([]string{self}, start...)
			}
			cmd := exec.Command("unshare", append([]string{"--mount", "bash", "-ec", host.prepare + `; shift; exec "$@"`, "bash",
				data}, start...)...)
			cmd.Env = append(os.Environ(), cmp.Or(host.no, "NOTHING")+"=1")
			cmd.Stdout, cmd.Stderr = log, log
			p, err := w.Start(cmd)
			if err != nil {
				t.Fatal(err)
			}
			stays := host.says == "" || host.no != ""
			switch {
			case host.says == "":
				w.serves(t)
			case stays:
				eventually(t, func() error {
					if !strings.Contains(said(), host.says) {
						return errors.New(said())
					}
					return nil
				})
				if now := w.kernel(t); strings.Contains(now, host.vip) {
					t.Errorf("it serves nobody, and has made\n%s", now)
				}
			}
			if stays {
				for range 2 { // as timeout(1) does
					if err := p.Signal(syscall.SIGTERM); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Millisecond)
				}
			}
			err = p.Wait()
			last := said()[strings.LastIndex(strings.TrimSpace(said()), "\n")+1:]
			if (err == nil) != stays || !stays && !strings.Contains(last, host.says) {
				t.Errorf("%v: it says\n%s", err, said())
			}
			t.Log(last)
			if now := w.kernel(t); now != before {
				t.Errorf("it leaves\n%s\nand before there was\n%s", now, before)
			}
		})
	}
}
