package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appliance/integration/scene"
	"appliance/status"
)

// gather builds a scene whose backends are the peers, and starts nothing.
func gather(t *testing.T) *trial { return gatherAll(t, scene.IPv4) }

func gatherAll(t *testing.T, family scene.Family) *trial {
	t.Helper()
	o := scene.Settings{Binary: binary, Plane: plane()}
	tr := prepare(t, scene.Setup{Family: family, Stacked: true}, o)
	if err := tr.app.PeersAsBackends(o); err != nil {
		t.Fatal(err)
	}
	return tr
}

// until waits for what has to become true.
func (tr *trial) until(t *testing.T, what string, ok func(ctx context.Context) bool) {
	t.Helper()
	ctx := patient(t)
	for !ok(ctx) {
		if ctx.Err() != nil {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// say gives node i an order.
func (tr *trial) say(t *testing.T, i int, args ...string) string {
	t.Helper()
	return command(t, tr.socket(i), args...)
}

// members waits until the given nodes count exactly the nodes of the same
// indexes as voters, and have them as backends.
func (tr *trial) members(t *testing.T, voters ...int) {
	t.Helper()
	want := make(map[string]bool)
	for _, i := range voters {
		want[tr.Nodes[i].Name] = true
	}
	problem := ""
	ctx := patient(t)
	for problem = tr.disagree(ctx, voters, want); problem != ""; problem = tr.disagree(ctx, voters, want) {
		if ctx.Err() != nil {
			t.Fatalf("the members are not %v: %s", want, problem)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (tr *trial) disagree(ctx context.Context, nodes []int, want map[string]bool) string {
	for _, i := range nodes {
		s, err := tr.app.Status(ctx, i)
		if err != nil {
			return err.Error()
		}
		n := 0
		for _, p := range s.Group.Peers {
			if (p.Role == "voter") != want[p.ID] {
				return s.ID + ": " + p.ID + " is " + p.Role
			}
			if p.Role == "voter" {
				n++
			}
		}
		if n != len(want) {
			return s.ID + " lacks a member"
		}
		if b := backends(s); b != len(want)*len(tr.VIPs) {
			return s.ID + " has other backends than members"
		}
	}
	return ""
}

func backends(s status.Snapshot) int {
	n := 0
	for _, lb := range s.LoadBalancers {
		n += len(lb.Backends)
	}
	return n
}

// TestKubeadmsOrder: one node starts the group, and others join one by one, the last
// knowing an address only. Then members are removed, demoted and replaced. Clients are
// served all the time.
func TestKubeadmsOrder(t *testing.T) {
	tr := gather(t)
	if err := tr.app.StartWith(0, "--start-as-leader"); err != nil {
		t.Fatal(err)
	}
	tr.holder(t, 0)
	tr.Ask(t.Context())
	for _, i := range []int{1, 2} {
		if err := tr.app.Start(i); err != nil {
			t.Fatal(err)
		}
	}
	tr.members0(t, 0, 1, 2)
	four, err := tr.AddNode()
	if err != nil {
		t.Fatal(err)
	}
	grown := time.Now()
	// It has the file of all others, in whose list of peers it is not.
	if err := tr.app.StartWith(four, "--join", tr.Addr(1).String(), "--id", tr.Nodes[four].Name); err != nil {
		t.Fatal(err)
	}
	tr.members(t, 0, 1, 2, four)
	tr.ready(t, 0, 1, 2, four)
	tr.steady(t, grown)

	// The holder is removed, by a command on another node.
	h := tr.holder(t, 0, 1, 2, four)
	rest := except(h, 0, 1, 2, four)
	removed := time.Now()
	tr.say(t, rest[0], "peers", "remove", tr.Nodes[h].Name)
	took := time.Since(removed)
	tr.holder(t, rest...)
	tr.members(t, rest...)
	tr.silent(t, h, removed.Add(took+time.Second))
	tr.until(t, "the removed peer to say so", func(ctx context.Context) bool {
		out, _ := tr.app.Say(ctx, h, "peers", "list")
		return strings.Contains(out, "removed")
	})
	// It comes back with its disk and stays quiet.
	tr.app.Kill(h)
	back := time.Now()
	if err := tr.app.StartWith(h); err != nil {
		t.Fatal(err)
	}
	tr.until(t, "the removed peer to be told", func(ctx context.Context) bool {
		out, _ := tr.app.Say(ctx, h, "peers", "list")
		return strings.Contains(out, "removed")
	})
	tr.members(t, rest...)
	tr.silent(t, h, back)
	tr.say(t, rest[1], "peers", "add", tr.Nodes[h].Name+"="+tr.Scene.Addr(h).String(), "--force")
	tr.members(t, 0, 1, 2, four)

	// A peer without a vote follows, and does not hold.
	h = tr.holder(t, 0, 1, 2, four)
	tr.say(t, h, "peers", "demote", tr.Nodes[h].Name)
	rest = except(h, 0, 1, 2, four)
	tr.holder(t, rest...)
	tr.say(t, rest[0], "peers", "promote", tr.Nodes[h].Name)
	tr.members(t, 0, 1, 2, four)

	// Two die; a change that would cost the majority is refused.
	h = tr.holder(t, 0, 1, 2, four)
	rest = except(h, 0, 1, 2, four)
	tr.app.Kill(rest[0])
	tr.until(t, "a refusal", func(ctx context.Context) bool {
		out, err := tr.app.Say(ctx, h, "peers", "add", tr.Nodes[rest[1]].Name+"=10.77.0.99")
		return err != nil && strings.Contains(out, "answers there")
	})
	tr.say(t, h, "peers", "remove", tr.Nodes[rest[0]].Name)
	tr.oneAnswer(t)
}

// begin starts the appliance on every node, and waits until all three are members.
func (tr *trial) begin(t *testing.T) {
	t.Helper()
	if err := tr.app.StartAll(); err != nil {
		t.Fatal(err)
	}
	tr.members0(t, 0, 1, 2)
}

// members0 is members for a group whose backends may still be those of a file.
func (tr *trial) members0(t *testing.T, voters ...int) {
	t.Helper()
	tr.members(t, voters...)
	tr.ready(t, voters...)
}

func except(i int, all ...int) []int {
	var out []int
	for _, j := range all {
		if j != i {
			out = append(out, j)
		}
	}
	return out
}

// TestDrain: a drained node hands over without a failed connection, its server gets no
// new ones, and both stay so after a restart.
func TestDrain(t *testing.T) {
	tr := gather(t)
	tr.begin(t)
	tr.Ask(t.Context())
	tr.steady(t, time.Now())
	h := tr.holder(t, 0, 1, 2)
	clients := tr.patients(t)
	open := tr.open(t)
	drained := time.Now()
	tr.say(t, h, "drain")
	rest := others(h)
	next := tr.holder(t, rest...)
	tr.steady(t, drained)
	clients.noticed(t, "a drain")
	tr.until(t, "the drained node's server to be out of rotation everywhere", func(ctx context.Context) bool {
		for i := range 3 {
			out, err := tr.app.Say(ctx, i, "backends", "list")
			drained := 0
			for line := range strings.Lines(out) {
				if strings.Contains(line, "drain") {
					drained++
				}
			}
			if err != nil || drained != 1 {
				return false
			}
		}
		return true
	})
	// It still serves some of the open connections, until they end.
	wait := exec.Command(binary, "drain", "--wait", "--timeout", "3s", "--socket", tr.socket(h))
	if said, _ := wait.CombinedOutput(); wait.ProcessState.ExitCode() != 3 {
		t.Errorf("drain --wait with open connections: %v: %s", wait.ProcessState, said)
	}
	tr.goOn(t, open, "a drain")
	open.Close()
	page := strings.Fields(readGuide(t, "operations.md")["wait for connections"])[1:]
	if said := tr.say(t, h, append(page, "--json")...); !strings.Contains(said, `{"open":0,`) {
		t.Errorf("drain --wait says: %s", said)
	}
	tr.app.Kill(h)
	again := time.Now()
	if err := tr.app.Start(h); err != nil {
		t.Fatal(err)
	}
	tr.members0(t, 0, 1, 2)
	tr.app.Kill(next)
	last := except(next, rest...)[0]
	tr.holder(t, last)
	tr.silent(t, h, again)
	if err := tr.app.Start(next); err != nil {
		t.Fatal(err)
	}
	tr.members0(t, 0, 1, 2)
	tr.say(t, last, "undrain", tr.Nodes[h].Name)
	tr.say(t, last, "pin", tr.Nodes[h].Name)
	tr.holder(t, h)
	tr.oneAnswer(t)
}

// TestRollingRestart: every node is restarted in turn, as an upgrade does; the
// VIP moves at most once for each, and no new connection fails.
func TestRollingRestart(t *testing.T) {
	tr := gather(t)
	tr.begin(t)
	tr.Ask(t.Context())
	tr.steady(t, time.Now())
	clients := tr.patients(t)
	for i := range tr.Nodes {
		began := time.Now()
		before := tr.holder(t, 0, 1, 2)
		if err := tr.app.Stop(i); err != nil {
			t.Errorf("the appliance on node %d did not end well: %v", i+1, err)
		}
		if err := tr.app.Start(i); err != nil {
			t.Fatal(err)
		}
		tr.ready(t, 0, 1, 2)
		tr.steady(t, began)
		moves := 0
		for _, w := range tr.Resolvers {
			at := before
			for _, c := range w.Replies().Since(began) {
				if j := tr.Index(c.MAC); j != at {
					moves, at = moves+1, j
				}
			}
		}
		if moves > 1 || moves > 0 && before != i {
			t.Errorf("the address moved %d times when node %d was restarted and node %d held", moves, i+1, before+1)
		}
	}
	clients.noticed(t, "a restart")
	tr.oneAnswer(t)
}

// TestRecovery: two of three are lost with their disks. The third is recovered, and the
// group grows to three again.
func TestRecovery(t *testing.T) {
	tr := gather(t)
	tr.begin(t)
	time.Sleep(2 * time.Second) // a new group's name is on every disk within one
	tr.app.Kill(1)
	tr.app.Kill(2)
	for tr.Holder() >= 0 {
		if patient(t).Err() != nil {
			t.Fatal("a holder without a majority goes on answering")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if out, err := tr.app.Recover(patient(t), 0, "--as-single"); err == nil ||
		!strings.Contains(out, "in use by another process") {
		t.Errorf("the data of a running appliance were recovered: %v: %s", err, out)
	}
	if err := tr.app.Stop(0); err != nil {
		t.Error(err)
	}
	if out, err := tr.app.Recover(patient(t), 0); err == nil || !strings.Contains(out, "TWO groups") {
		t.Errorf("recover does not explain itself: %v: %s", err, out)
	}
	if out, err := tr.app.Recover(patient(t), 0, "--as-single"); err != nil {
		t.Fatalf("recover: %v: %s", err, out)
	}
	if err := tr.app.Start(0); err != nil {
		t.Fatal(err)
	}
	tr.holder(t, 0)
	// One that comes back with its data does not get in.
	if err := tr.app.Start(1); err != nil {
		t.Fatal(err)
	}
	select {
	case <-tr.app.Process(1).Done():
	case <-patient(t).Done():
		t.Fatal("a member of the former group runs beside the recovered one")
	}
	for _, i := range []int{1, 2} {
		if err := tr.app.Forget(i); err != nil {
			t.Fatal(err)
		}
		if err := tr.app.Start(i); err != nil {
			t.Fatal(err)
		}
	}
	tr.members0(t, 0, 1, 2)
	tr.oneAnswer(t)
}

// TestDamagedDisk: a peer whose data are damaged serves its own clients, and
// does not vote.
func TestDamagedDisk(t *testing.T) {
	tr := gather(t)
	tr.begin(t)
	h := tr.holder(t, 0, 1, 2)
	i := others(h)[0]
	tr.app.Kill(i)
	path := filepath.Join(tr.app.Data(i), "raft.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("garbage ", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tr.app.Start(i); err != nil {
		t.Fatal(err)
	}
	tr.until(t, "the load balancer to be served there, and the reason to be said", func(ctx context.Context) bool {
		s, err := tr.app.Status(ctx, i)
		return err == nil && len(s.LoadBalancers) > 0 && s.LoadBalancers[0].Plane != "" &&
			strings.Contains(strings.Join(s.NotReadyTexts(), " "), "damaged")
	})
	tr.app.Kill(others(h)[1])
	for tr.Holder() >= 0 { // the damaged one gives no majority
		if patient(t).Err() != nil {
			t.Fatal("a holder without a majority goes on answering")
		}
		time.Sleep(10 * time.Millisecond)
	}
	tr.oneAnswer(t)
}
