package integration

import (
	"fmt"
	"strings"
	"testing"
)

// TestBoxes follows the guides of load-balancer boxes, by their commands: two boxes and a witness, a worker, another
// group key, a majority that is gone for good.
func TestBoxes(t *testing.T) {
	t.Parallel()
	s := openStreet(t, "IPv4")
	s.build(t, 4, s.apiserver(t, 10, 11, 12, 13))
	boxes, worker := s.boxes[:3], s.boxes[3]
	readme, guide, install := readGuide(t, "../README.md"), readGuide(t, "load-balancers.md"), readGuide(t, "install.md")
	file, rest, _ := strings.Cut(readme["README, the first box"], "\nEND\n")
	boxes[0].run(t, file+"\nEND\necho 'group: {heartbeat: 2s}' >> config.yaml")
	boxes[0].run(t, rest)
	boxes[0].run(t, guide["boxes, the first"]) // keeps what is there
	boxes[0].hand(t, "home/config.yaml", "config.yaml", boxes[1:]...)
	boxes[0].hand(t, "etc/appliance/group.key", "group.key", boxes[1:]...)
	boxes[1].run(t, readme["README, the other boxes"])
	boxes[2].run(t, install["install on the others"])
	runAll(t, guide["boxes, the others"], boxes[1:]...)
	ready(t, boxes...)
	if err := s.client.WaitPort(patient(t), s.targets()[0]); err != nil {
		t.Fatal(err)
	}
	if said := boxes[2].run(t, "ip address; nft list tables"); strings.Contains(said, "192.0.2.10") ||
		strings.Contains(said, "appliance") {
		t.Errorf("a witness binds and programs nothing, and has\n%s", said)
	}

	boxes[0].run(t, readGuide(t, "configuration.md")["config"])
	if said := boxes[0].run(t, readGuide(t, "status.md")["token"]+"stat -c %a /etc/appliance/admin.token"); lastLine(said) !=
		"600" {
		t.Errorf("others can read the token: %s", said)
	}

	workers := readGuide(t, "workers.md")
	boxes[0].run(t, workers["worker, the key"])
	boxes[0].hand(t, "home/worker.key", "worker.key", worker)
	worker.run(t, workers["worker, install"])
	eventually(t, func() error {
		for _, b := range boxes {
			st, err := b.status(t.Context())
			if err != nil {
				return err
			}
			if st.Group.WorkersTotal == 1 {
				return nil
			}
		}
		return fmt.Errorf("no peer lists the worker")
	})
	eventually(t, func() error {
		st, err := worker.status(t.Context())
		if err == nil && (len(st.NotReady) > 0 || len(st.LoadBalancers[0].Backends) != 3) {
			err = fmt.Errorf("the worker has %+v, and is not ready: %v", st.LoadBalancers, st.NotReadyTexts())
		}
		return err
	})
	if err := worker.WaitPort(patient(t), s.targets()[0]); err != nil {
		t.Fatal(err)
	}

	operations := readGuide(t, "operations.md")
	boxes[0].run(t, operations["rotate, make"])
	boxes[0].hand(t, "home/new.key", "new.key", boxes[1:]...)
	boxes[0].hand(t, "home/old.key", "old.key", boxes[1:]...)
	for i, step := range []string{"rotate, old and new", "rotate, new and old", "rotate, new"} {
		runAll(t, operations[step], boxes...)
		for _, b := range boxes {
			eventually(t, func() error {
				if n := strings.Count(b.log(), "the group keys have changed"); n <= i {
					return fmt.Errorf("%s has read %d of %d changes of its keys", b.Name, n, i+1)
				}
				return nil
			})
		}
	}
	// What is shown and accepted from now on is the new one.
	boxes[2].run(t, "systemctl restart appliance")
	ready(t, boxes...)
	connected(t, boxes...)
	if out, err := boxes[1].try("cmp old.key /etc/appliance/group.key"); err == nil {
		t.Errorf("the old key is in force: %s", out)
	}

	// Two of three are gone for good.
	runAll(t, "systemctl stop appliance", boxes[1:]...)
	boxes[0].run(t, operations["recover, the one that is left"])
	ready(t, boxes[0])
	runAll(t, operations["recover, the others"], boxes[1:]...)
	ready(t, boxes...)
	connected(t, boxes...)
}

// connected waits until each box reaches all others.
func connected(t *testing.T, boxes ...*box) {
	t.Helper()
	for _, b := range boxes {
		eventually(t, func() error {
			st, err := b.status(t.Context())
			if err != nil {
				return err
			}
			reached := 0
			for _, p := range st.Group.Peers {
				if p.Self || p.Connected && p.Role != "not a member" {
					reached++
				}
			}
			if reached != len(boxes) {
				return fmt.Errorf("%s reaches %d of %d: %+v", b.Name, reached, len(boxes), st.Group.Peers)
			}
			return nil
		})
	}
}
