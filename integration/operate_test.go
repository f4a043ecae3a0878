package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/integration/scene"
)

// command gives the appliance behind a socket an order, again while an election keeps it from being taken, and returns
// what it said.
func command(t *testing.T, socket string, args ...string) string {
	t.Helper()
	var out []byte
	eventually(t, func() (err error) {
		cmd := exec.Command(binary, args...)
		cmd.Env = append(os.Environ(), "APPLIANCE_SOCKET="+socket)
		if out, err = cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("appliance %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	})
	return string(out)
}

func (tr *trial) socket(i int) string { return filepath.Join(tr.Dir, tr.Nodes[i].Name) + ".sock" }

func (tr *trial) config() string { return filepath.Join(tr.Dir, "appliance.yaml") }

// reconfigure appends to the file that all nodes read. They notice without a reload.
func (tr *trial) reconfigure(t *testing.T, more string) {
	t.Helper()
	text, err := os.ReadFile(tr.config())
	if err != nil {
		t.Fatal(err)
	}
	next := tr.config() + ".next"
	if err := os.WriteFile(next, append(text, more...), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, tr.config()); err != nil {
		t.Fatal(err)
	}
}

// await waits until f returns nothing.
func await(t *testing.T, f func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		problem := f()
		if problem == "" {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(problem)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// backend is what node i says of backend k.
func (tr *trial) backend(t *testing.T, i, k int) balancer.BackendStatus {
	t.Helper()
	s, err := tr.app.Status(patient(t), i)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range s.LoadBalancers[0].Backends {
		if b.Address == tr.Backends[k][0] {
			return b
		}
	}
	t.Fatalf("node %d knows nothing of backend %d", i+1, k+1)
	return balancer.BackendStatus{}
}

// TestOrders: an override given on any node applies to all, and survives a restart of all.
func TestOrders(t *testing.T) {
	tr := serve(t, scene.Setup{Family: scene.IPv4})
	all := func(k int, state balancer.BackendState, order string) {
		t.Helper()
		await(t, func() string {
			for i := range 3 {
				if b := tr.backend(t, i, k); b.State != state || b.Override != order {
					return fmt.Sprintf("node %d shows backend %d as %s (%q), want %s (%q)", i+1, k+1, b.State, b.Override,
						state, order)
				}
			}
			return ""
		})
	}
	name := tr.Backends[0][0].Addr().String()
	said := tr.say(t, 1, "backends", "drain", name)
	if !strings.Contains(said, "test/"+tr.Backends[0][0].String()+": drain") {
		t.Error(said)
	}
	all(0, balancer.Draining, "drain")
	tr.say(t, 2, "backends", "weight", "test/"+tr.Backends[1][0].String(), "7")
	all(1, balancer.Up, "weight 7")
	if out := tr.say(t, 0, "backends", "list"); !strings.Contains(out, "draining") || !strings.Contains(out, "weight 7") {
		t.Error(out)
	}
	for i := range 3 {
		tr.app.Kill(i)
	}
	if err := tr.app.StartAll(); err != nil {
		t.Fatal(err)
	}
	tr.ready(t, 0, 1, 2)
	all(0, balancer.Draining, "drain")
	all(1, balancer.Up, "weight 7")
	tr.say(t, 0, "backends", "disable", name)
	all(0, balancer.Down, "disable")
	tr.say(t, 0, "backends", "enable", name)
	all(0, balancer.Up, "")
	out, err := exec.Command(binary, "backends", "drain", "--socket", tr.socket(0), "nobody").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "known here: test/") {
		t.Errorf("%v %s", err, out)
	}
	tr.oneAnswer(t)
}

// TestTracksAndHooks: a holder that a track finds unfit hands over, and hooks are run.
// Both take effect when the file changes, while the group serves.
func TestTracksAndHooks(t *testing.T) {
	tr := serve(t, scene.Setup{Family: scene.IPv4})
	heard, unfit := filepath.Join(tr.Dir, "heard"), filepath.Join(tr.Dir, "unfit")
	script := func(name, text string) string {
		t.Helper()
		path := filepath.Join(tr.Dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	notify := script("notify.sh", fmt.Sprintf(`echo "$APPLIANCE_EVENT $APPLIANCE_NODE" >> %s`, heard))
	check := script("check.sh", fmt.Sprintf(
		`! grep -qsx "$(ip -o -4 addr show eth0 | awk '{print $4}' | cut -d/ -f1)" %s`, unfit))
	tr.reconfigure(t, fmt.Sprintf(`
hooks:
- on: [holder, released, fault, recovered, stopped]
  exec: [%s]
  user: root # the test's directory is root's alone
tracks:
- name: fit
  exec: [%s]
  user: root
  inter: 5s
  rise: 1
  fall: 1
`, notify, check))
	await(t, func() string {
		if n := strings.Count(tr.app.Log(), `changed="tracks, hooks"`); n < 3 {
			return fmt.Sprintf("%d of 3 nodes have noticed the change:\n%s", n, tr.app.Log())
		}
		return ""
	})
	first := tr.holder(t, 0, 1, 2)
	mark := func(nodes ...int) {
		t.Helper()
		var lines strings.Builder
		for _, i := range nodes {
			fmt.Fprintln(&lines, tr.Addr(i))
		}
		if err := os.WriteFile(unfit, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mark(first)
	second := tr.holder(t, others(first)...)
	await(t, func() string {
		text, _ := os.ReadFile(heard)
		for _, want := range []string{
			"fault " + tr.Nodes[first].Name, "released " + tr.Nodes[first].Name, "holder " + tr.Nodes[second].Name,
		} {
			if !strings.Contains(string(text), want+"\n") {
				return fmt.Sprintf("the hooks have not heard %q: %q", want, text)
			}
		}
		return ""
	})
	mark()
	hear := func(want string) {
		t.Helper()
		await(t, func() string {
			if text, _ := os.ReadFile(heard); !strings.Contains(string(text), want+"\n") {
				return fmt.Sprintf("the hooks have not heard %q: %q", want, text)
			}
			return ""
		})
	}
	hear("recovered " + tr.Nodes[first].Name)
	// If nobody is fit, nothing moves.
	mark(0, 1, 2)
	await(t, func() string {
		if n := strings.Count(tr.app.Log(), "track fails"); n < 3 {
			return fmt.Sprintf("%d of 3 nodes find themselves unfit", n)
		}
		return ""
	})
	// Until the others have heard of it, a node may give way to one that it believes
	// to be fit.
	const heardOf = 3 * time.Second
	time.Sleep(heardOf)
	const moves = "gives way to a peer that is preferred"
	before := strings.Count(tr.app.Log(), moves)
	time.Sleep(heardOf)
	if n := strings.Count(tr.app.Log(), moves) - before; n > 0 {
		t.Errorf("the VIP moved %d times although nobody is fit", n)
	}
	last := tr.holder(t, 0, 1, 2)
	if err := tr.app.Stop(last); err != nil {
		t.Fatal(err)
	}
	hear("stopped " + tr.Nodes[last].Name)
	text, _ := os.ReadFile(heard)
	if released, stopped := strings.LastIndex(string(text), "released "+tr.Nodes[last].Name),
		strings.LastIndex(string(text), "stopped "+tr.Nodes[last].Name); released < 0 || released > stopped {
		t.Errorf("the hooks heard that a holder stopped before it was released: %s", text)
	}
	tr.oneAnswer(t)
}

// TestUnservedHolderGivesWay: a holder without a healthy backend hands over to a peer
// that has one. If no peer has any, nothing moves.
func TestUnservedHolderGivesWay(t *testing.T) {
	tr := serve(t, scene.Setup{Family: scene.IPv4})
	cutBackends := func(i int) {
		t.Helper()
		for k := range tr.Backends {
			p, err := tr.Nodes[i].Start(exec.Command("ip", "route", "add", "blackhole", tr.Backends[k][0].Addr().String()))
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Wait(); err != nil {
				t.Fatal(err)
			}
		}
	}
	first := tr.holder(t, 0, 1, 2)
	fault := time.Now()
	cutBackends(first)
	tr.holder(t, others(first)...)
	tr.steady(t, fault)
	for _, i := range others(first) {
		cutBackends(i)
	}
	await(t, func() string {
		for i := range 3 {
			s, err := tr.app.Status(patient(t), i)
			if err != nil || !strings.Contains(strings.Join(s.NotReadyTexts(), ";"), "has no healthy backend") {
				return fmt.Sprintf("node %d still has a healthy backend: %v %v", i+1, s.NotReady, err)
			}
		}
		return ""
	})
	time.Sleep(5 * time.Second) // all know by now what the last one reported
	const moves = "gives way to a peer that is preferred"
	before := strings.Count(tr.app.Log(), moves)
	time.Sleep(5 * time.Second)
	if n := strings.Count(tr.app.Log(), moves) - before; n > 0 {
		t.Errorf("the VIP moved %d times although nobody has a healthy backend", n)
	}
	tr.oneAnswer(t)
}
