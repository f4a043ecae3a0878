package integration

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"appliance/integration/scene"
)

// A fault is something that happens to the holder, and what must be true.
// Every fault is also watched for the whole time by oneAnswer.
type fault struct {
	name string
	run  func(t *testing.T, tr *trial, holder int)
}

func faults() []fault {
	return []fault{
		{"SIGKILL", sigkill},
		{"SIGTERM", sigterm},
		{"freeze", freeze},
		{"link down", linkDown},
		{"cable", cable},
		{"cut from the peers", cut},
		{"minority", minority},
		{"all restart", allRestart},
		{"reinstalled", reinstalled},
	}
}

// families are the scenes on which every fault happens. Servers stand on the
// nodes, as apiservers do, or on machines of their own.
func families() []scene.Setup {
	return []scene.Setup{
		{Family: scene.IPv4, Stacked: true},
		{Family: scene.IPv6, Stacked: true},
		{Family: scene.Dual},
	}
}

func TestFaults(t *testing.T) {
	for _, o := range families() {
		t.Run(string(o.Family), func(t *testing.T) {
			for _, f := range faults() {
				t.Run(f.name, func(t *testing.T) {
					tr := serve(t, o)
					f.run(t, tr, tr.holder(t, 0, 1, 2))
					tr.oneAnswer(t)
				})
			}
		})
	}
}

// sigkill: the process dies without a leave notice.
func sigkill(t *testing.T, tr *trial, holder int) {
	fault := time.Now()
	tr.app.Kill(holder)
	tr.holder(t, others(holder)...)
	tr.steady(t, fault)
	tr.silent(t, holder, time.Now())
	back(t, tr, holder)
}

// sigterm: the process stops cleanly, and no client notices. Connections that were open
// when the address moved are served to their end.
func sigterm(t *testing.T, tr *trial, holder int) {
	clients := tr.patients(t)
	tr.steady(t, time.Now())
	fault := time.Now()
	if err := tr.app.Stop(holder); err != nil {
		t.Errorf("the appliance did not end well: %v", err)
	}
	tr.holder(t, others(holder)...)
	tr.steady(t, fault)
	back(t, tr, holder)
	clients.noticed(t, "a graceful stop")
}

// back starts a peer that had ended, which no client must notice.
func back(t *testing.T, tr *trial, i int) {
	t.Helper()
	again := time.Now()
	if err := tr.app.Start(i); err != nil {
		t.Fatal(err)
	}
	tr.ready(t, 0, 1, 2)
	tr.steady(t, again)
}

// freeze: the process is suspended and does not notice.
func freeze(t *testing.T, tr *trial, holder int) {
	fault := time.Now()
	if err := tr.app.Freeze(holder); err != nil {
		t.Fatal(err)
	}
	tr.holder(t, others(holder)...)
	tr.steady(t, fault)
	thawed := time.Now()
	if err := tr.app.Thaw(holder); err != nil {
		t.Fatal(err)
	}
	tr.ready(t, 0, 1, 2)
	tr.steady(t, thawed)
}

// linkDown: the interface goes down and up, from inside the node.
func linkDown(t *testing.T, tr *trial, holder int) {
	link(t, tr, holder, tr.Nodes[holder].LinkDown, tr.Nodes[holder].LinkUp)
}

// cable: the node loses its carrier, and gets it back.
func cable(t *testing.T, tr *trial, holder int) {
	link(t, tr, holder, tr.Nodes[holder].Unplug, tr.Nodes[holder].Plug)
}

func link(t *testing.T, tr *trial, holder int, down, up func() error) {
	fault := time.Now()
	if err := down(); err != nil {
		t.Fatal(err)
	}
	tr.holder(t, others(holder)...)
	tr.steady(t, fault)
	healed := time.Now()
	if err := up(); err != nil {
		t.Fatal(err)
	}
	tr.ready(t, 0, 1, 2)
	tr.steady(t, healed)
}

// cut: the holder loses its peers, while clients still reach everybody. It must stop
// answering by itself, since nobody can tell it to.
func cut(t *testing.T, tr *trial, holder int) {
	rest := others(holder)
	fault := time.Now()
	if err := tr.Lab.Cut(tr.Nodes[holder], tr.Nodes[rest[0]], tr.Nodes[rest[1]]); err != nil {
		t.Fatal(err)
	}
	tr.holder(t, rest...)
	changed := time.Now()
	tr.steady(t, fault)
	tr.silent(t, holder, changed)
	healed := time.Now()
	if err := tr.Lab.Heal(); err != nil {
		t.Fatal(err)
	}
	tr.ready(t, 0, 1, 2)
	tr.steady(t, healed)
}

// minority: two of three die, and the one that is left must not answer.
func minority(t *testing.T, tr *trial, holder int) {
	rest := others(holder)
	tr.app.Kill(rest[0])
	tr.app.Kill(rest[1])
	// The lease of a holder without followers runs out within a heartbeat,
	// which is 10 s at most.
	for tr.Holder() >= 0 {
		if patient(t).Err() != nil {
			t.Fatal("a holder without a majority goes on answering")
		}
		time.Sleep(10 * time.Millisecond)
	}
	quiet := time.Now()
	time.Sleep(3 * time.Second)
	tr.silent(t, holder, quiet)

	again := time.Now()
	if err := tr.app.Start(rest[0]); err != nil {
		t.Fatal(err)
	}
	tr.holder(t, holder, rest[0])
	tr.steady(t, again)
	back(t, tr, rest[1])
}

// allRestart: every node reboots at the same time.
func allRestart(t *testing.T, tr *trial, _ int) {
	for i := range tr.Nodes {
		tr.app.Kill(i)
	}
	dead := time.Now()
	time.Sleep(500 * time.Millisecond)
	for i := range tr.Nodes {
		tr.silent(t, i, dead)
	}
	again := time.Now()
	if err := tr.app.StartAll(); err != nil {
		t.Fatal(err)
	}
	tr.holder(t, 0, 1, 2)
	tr.ready(t, 0, 1, 2)
	tr.steady(t, again)
}

// reinstalled: the holder comes back without its disk, under the same name.
func reinstalled(t *testing.T, tr *trial, holder int) {
	fault := time.Now()
	tr.app.Kill(holder)
	if err := tr.app.Forget(holder); err != nil {
		t.Fatal(err)
	}
	tr.holder(t, others(holder)...)
	tr.steady(t, fault)
	back(t, tr, holder)

	// It counts as a voter again, a moment after it was admitted: the group
	// survives the loss of another.
	tr.until(t, "it to have its vote again", func(ctx context.Context) bool {
		out, err := tr.app.Say(ctx, others(holder)[0], "peers", "list")
		voters := slices.DeleteFunc(strings.Fields(out), func(word string) bool { return word != "voter" })
		return err == nil && len(voters) == 3
	})
	fault = time.Now()
	second := tr.holder(t, 0, 1, 2)
	tr.app.Kill(second)
	tr.holder(t, others(second)...)
	tr.steady(t, fault)
}
