package status

import (
	"strings"
	"testing"
	"time"
)

func TestTextOfTheHolderAndOfAWorker(t *testing.T) {
	t.Parallel()
	at := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	holder := newCast(t, at, 1, 2).snaps["n2"]
	worker := holder
	worker.Role, worker.Holder, worker.Term, worker.Group = "worker", "", 0, Group{}

	for name, test := range map[string]struct {
		of          Snapshot
		has, hasNot []string
	}{
		"holder": {holder, []string{"n2  peer leader, appliance v0.1.0", "holder: n2 (this node)", ", term 4", "\nPEER ", "load balancer "}, []string{"\x1b["}},
		"worker": {worker, []string{"n2  worker, appliance v0.1.0", "load balancer "}, []string{"holder", "term", "PEER"}},
	} {
		var b strings.Builder
		if err := Text(&b, test.of, false); err != nil {
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
