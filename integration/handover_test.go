package integration

import (
	"fmt"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/integration/scene"
)

// TestOpenConnectionsSurviveAHandover: connections that are open during a handover
// survive it, even in data planes that keep their state on the holder. A request that
// is under way when the holder stops is answered.
func TestOpenConnectionsSurviveAHandover(t *testing.T) {
	for _, plane := range planes() {
		t.Run(string(plane), func(t *testing.T) {
			tr := serveOn(t, scene.Setup{Family: scene.IPv4, Stacked: true}, string(plane))
			open := tr.open(t)
			holder := tr.holder(t, 0, 1, 2)
			if err := tr.app.Transfer(holder); err != nil {
				t.Fatal(err)
			}
			next := tr.holder(t, others(holder)...)
			tr.goOn(t, open, fmt.Sprintf("a transfer from node %d to %d", holder+1, next+1))

			clients := tr.patients(t)
			time.Sleep(100 * time.Millisecond)
			if err := tr.app.Stop(next); err != nil {
				t.Errorf("the appliance did not end well: %v", err)
			}
			tr.holder(t, others(next)...)
			time.Sleep(500 * time.Millisecond)
			clients.noticed(t, "a graceful stop")
			tr.oneAnswer(t)
		})
	}
}

// TestOpenConnectionsSurviveACrash: after a crash the holder's kernel keeps forwarding.
func TestOpenConnectionsSurviveACrash(t *testing.T) {
	for _, plane := range planes() {
		if plane == balancer.UserSpace {
			continue // its connections are the process's own
		}
		t.Run(string(plane), func(t *testing.T) {
			tr := serveOn(t, scene.Setup{Family: scene.IPv4, Stacked: true}, string(plane))
			open := tr.open(t)
			holder := tr.holder(t, 0, 1, 2)
			tr.app.Kill(holder)
			tr.holder(t, others(holder)...)
			tr.goOn(t, open, fmt.Sprintf("node %d was killed", holder+1))
		})
	}
}
