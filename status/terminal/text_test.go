package terminal

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/status"
	"appliance/status/statustest"
)

func TestTextOfTheHolderAndOfAWorker(t *testing.T) {
	t.Parallel()
	at := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	holder := statustest.New(t, at, 1, 2).Snapshots["n2"]
	worker := holder
	worker.Role, worker.Holder, worker.Term, worker.Group = "worker", "", 0, status.GroupView{}

	queue := statustest.New(t, at, 2, 2).Snapshots["n2"]
	direct := statustest.New(t, at, 1, 2).Snapshots["n2"]
	direct.LoadBalancers[0].Plane = balancer.Direct
	direct.LoadBalancers[0].Backends[0].PassedOver = "no path to n1"
	direct.Group.Peers[0].Unfit = "track uplink: exit code 1"

	routers := statustest.New(t, at, 1, 2)
	routers.Route()

	alone := statustest.New(t, at, 1, 2).Snapshots["n2"]
	alone.LoadBalancers = nil

	followed := statustest.New(t, at, 1, 2).Snapshots["n2"]
	followed.Group.WorkersTotal = 1200
	for i := range status.MaxWorkers {
		followed.Group.Workers = append(followed.Group.Workers, status.WorkerView{
			ID: fmt.Sprintf("w%04d", i), Address: netip.MustParseAddr("10.77.1.1"), Since: at.Add(-time.Minute),
			Version: "v0.1.0"})
	}

	for name, test := range map[string]struct {
		of          status.Snapshot
		has, hasNot []string
	}{
		"holder": {
			holder,
			[]string{"n2  peer leader, appliance v0.1.0", "holder: n2 (this node)", ", term 4", "\nPEER ", "load balancer "},
			[]string{"\x1b[", "WORKER"},
		},
		"workers": {
			followed,
			[]string{"\nWORKER ", "w0019   10.77.1.1  1m0s ", "\nand 1180 more workers; --json lists up to 1000\n"},
			[]string{"w0020"},
		},
		"worker": {
			worker, []string{"n2  worker, appliance v0.1.0", "load balancer "}, []string{"holder", "term", "PEER"},
		},
		"nothing balanced": {
			alone, []string{"\nnothing is balanced: the virtual addresses lead to the holder's own servers\n"},
			[]string{"load balancer "},
		},
		"routers": {
			routers.Snapshots["n3"],
			[]string{
				"198.51.100.10  announced by bgp", "10.77.0.1  64500  established  2d2h  up (150ms)  198.51.100.10",
				"10.77.0.2  64500  idle         1m0s  down                       BFD: nothing was heard for 150ms",
			},
			nil,
		},
		"queue and slow start": {
			queue,
			[]string{
				"  2 connections wait for room at any backend", " 1 (25%)  up ", " 12    4      90000 ",
				"hooks: 12 events told, 1 failed, 0 dropped; the log says why",
			},
			nil,
		},
		"direct": {
			direct,
			[]string{
				" passed over ", "no path to n1\n", "  TOTAL is this node's part: ",
				"would rather not hold: track uplink: exit code 1\n",
			},
			[]string{"  12  "},
		},
	} {
		var b strings.Builder
		if err := Text(&b, test.of, false, false); err != nil {
			t.Fatal(err)
		}
		for _, want := range test.has {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s: %q is missing in:\n%s", name, want, &b)
			}
		}
		for _, not := range test.hasNot {
			if strings.Contains(b.String(), not) {
				t.Errorf("%s: %q is out of place in:\n%s", name, not, &b)
			}
		}
	}
}

// Why a data plane was chosen is said when it is asked for, or when nothing serves.
func TestWhy(t *testing.T) {
	s := statustest.New(t, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), 1, 2).Snapshots["n2"]
	lb := &s.LoadBalancers[0]
	lb.Reason, lb.Refused = "the first that works", []balancer.Refusal{{Plane: balancer.Direct, Reason: "too far"}}
	for _, test := range []struct {
		plane     balancer.PlaneName
		why, says bool
	}{{balancer.NFTables, false, false}, {balancer.NFTables, true, true}, {"", false, true}} {
		lb.Plane, lb.Backends[1].Check = test.plane, "tcp at port 1"
		var b strings.Builder
		if err := Text(&b, s, false, test.why); err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"  the first that works\n", "  not direct: too far\n"} {
			if strings.Contains(b.String(), part) != test.says {
				t.Errorf("plane %q, why %v: %q in\n%s", test.plane, test.why, part, &b)
			}
		}
		checks := "  check: https GET /readyz\n  check of " + lb.Backends[1].Name + ": tcp at port 1\n"
		if strings.Contains(b.String(), checks) != test.why {
			t.Errorf("plane %q, why %v: %q in\n%s", test.plane, test.why, checks, &b)
		}
	}
}
