package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/lab"
)

// otherBinary is the program of another version, of the release before mostly. `make skew` builds it.
const otherBinary = "APPLIANCE_TEST_OTHER_BINARY"

// TestVersionSkew upgrades a group node by node, with the settings of the group and the data on disk, and goes back as
// docs/operations.md says. Each node holds in each mixture, what is told to one is known to all, and service is steady
// after each step. Open connections stay so in direct; the other data planes know the holder before, and not those
// before it.
func TestVersionSkew(t *testing.T) {
	other := os.Getenv(otherBinary)
	if other == "" {
		t.Skip("make skew runs it")
	}
	for _, stacked := range []bool{true, false} { // direct, and the data plane for servers elsewhere
		t.Run(fmt.Sprintf("stacked %v", stacked), func(t *testing.T) {
			tr := prepare(t, scene.Setup{Family: scene.Dual, Stacked: stacked}, scene.Settings{Binary: binary, Plane: plane()})
			for i := range 3 {
				if err := tr.app.StartAs(i, other); err != nil {
					t.Fatal(err)
				}
			}
			tr.ready(t, 0, 1, 2)
			tr.say(t, 0, "backends", "weight", "test/"+tr.Backends[0][0].String(), "7")
			var open *lab.Conns
			if stacked {
				open = tr.open(t)
			}
			tr.Ask(t.Context())
			replace := func(i int, with string) {
				t.Helper()
				defer tr.reset(t, time.Now())
				if err := tr.app.Stop(i); err != nil {
					t.Errorf("node %d did not end well: %v", i+1, err)
				}
				if with == other {
					tr.onNode(t, i, binary, "cleanup", "--socket", tr.socket(i))
				}
				if err := tr.app.StartAs(i, with); err != nil {
					t.Fatal(err)
				}
				tr.ready(t, 0, 1, 2)
				t.Logf("%s node %d serves as another version", time.Now().UTC().Format(stamp), i+1)
				// Each version holds, beside the other, and hears what another node was told.
				for to := range 3 {
					tr.say(t, i, "transfer", tr.Nodes[to].Name)
					tr.holder(t, to)
					t.Logf("%s node %d holds", time.Now().UTC().Format(stamp), to+1)
				}
				tr.say(t, i, "backends", "drain", tr.Backends[1][0].String())
				tr.all(t, 1, "drain")
				tr.say(t, (i+1)%3, "backends", "enable", tr.Backends[1][0].String())
				tr.all(t, 1, "")
				tr.all(t, 0, "weight 7")
				if open != nil {
					tr.goOn(t, open, fmt.Sprintf("node %d became another version", i+1))
				}
				tr.steady(t, time.Now())
			}
			for _, i := range []int{0, 1, 2} {
				replace(i, binary)
			}
			for _, i := range []int{2, 0, 1} {
				replace(i, other)
			}
			tr.oneAnswer(t)
		})
	}
}

// reset fails the test if a request since then was reset: a slow machine may have one time out, but none reset.
func (tr *trial) reset(t *testing.T, since time.Time) {
	t.Helper()
	for k, p := range tr.Probes {
		for _, try := range p.Tries() {
			if try.Start.After(since) && errors.Is(try.Err, unix.ECONNRESET) {
				t.Errorf("%s: a request was reset: from %s to %s, %v", tr.VIPs[k], try.Start.UTC().Format(stamp),
					try.End.UTC().Format(stamp), try.Err)
			}
		}
	}
}

// onNode runs a program on node i.
func (tr *trial) onNode(t *testing.T, i int, program string, args ...string) {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := tr.Nodes[i].Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Fatalf("%s on node %d: %v\n%s", strings.Join(cmd.Args, " "), i+1, err, &out)
	}
}

// all waits until every node knows of an order about backend k.
func (tr *trial) all(t *testing.T, k int, order string) {
	t.Helper()
	await(t, func() string {
		for i := range 3 {
			s, err := tr.app.Status(patient(t), i)
			if err != nil {
				return err.Error()
			}
			if !slices.ContainsFunc(s.LoadBalancers, func(lb balancer.LoadBalancerStatus) bool {
				return slices.ContainsFunc(lb.Backends, func(b balancer.BackendStatus) bool {
					return b.Address == tr.Backends[k][0] && b.Override == order
				})
			}) {
				return fmt.Sprintf("node %d does not know of the order %q about backend %d", i+1, order, k+1)
			}
		}
		return ""
	})
}
