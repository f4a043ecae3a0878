package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/integration/scene"
)

// A node that serves has given up all that it does not need, on every thread, and its files are its own. It fails over
// all the same.
func TestPrivileges(t *testing.T) {
	tr := serve(t, scene.Setup{Family: scene.IPv4})
	first := tr.holder(t, 0, 1, 2)
	const may = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_IPC_LOCK
	for i, n := range tr.Nodes {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", tr.app.Process(i).Cmd.Process.Pid))
		if err != nil || len(tasks) < 2 {
			t.Fatalf("%s: threads are %v, %v", n.Name, tasks, err)
		}
		for _, path := range tasks {
			text, err := os.ReadFile(path)
			if err != nil {
				continue // the thread has ended
			}
			fields := make(map[string]string)
			for line := range strings.Lines(string(text)) {
				key, value, _ := strings.Cut(line, ":")
				fields[key] = strings.TrimSpace(value)
			}
			for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
				var caps uint64
				if _, err := fmt.Sscanf(fields[set], "%x", &caps); err != nil || caps&^may != 0 {
					t.Errorf("%s: %s has %s %s, %v", n.Name, path, set, fields[set], err)
				}
			}
			if fields["NoNewPrivs"] != "1" || fields["Seccomp"] != "2" {
				t.Errorf("%s: %s has no_new_privs %s, seccomp %s", n.Name, path, fields["NoNewPrivs"], fields["Seccomp"])
			}
		}
		if text := tr.say(t, i, "status"); !strings.Contains(text, "NET_ADMIN") ||
			!strings.Contains(text, "no_new_privs, seccomp, not dumpable") {
			t.Errorf("%s: status does not say what the process may:\n%s", n.Name, text)
		}
		data := strings.TrimSuffix(tr.socket(i), ".sock")
		err = filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}

	// Programs that come later would run with more than the others: they are refused, with the remedy.
	program := filepath.Join(tr.Dir, "ok.sh")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	tr.reconfigure(t, fmt.Sprintf("tracks:\n- exec: [%s]\n  inter: 20s\n  timeout: 20s\n", program))
	await(t, func() string {
		if n := strings.Count(tr.app.Log(), "restart it, or write user: root"); n < 3 {
			return fmt.Sprintf("%d of 3 nodes have refused the program:\n%s", n, tr.app.Log())
		}
		return ""
	})
	fault := time.Now()
	tr.app.Kill(first)
	tr.holder(t, others(first)...)
	tr.steady(t, fault)
	// After a restart the program runs, as nobody.
	if err := tr.app.Start(first); err != nil {
		t.Fatal(err)
	}
	tr.ready(t, 0, 1, 2)
	if log := tr.app.Log(); strings.Contains(log, "track fails") {
		t.Errorf("the program does not run:\n%s", log)
	}
}
