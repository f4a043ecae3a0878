package forward

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Whether it is time to yield or not, what there is to do is reported at once.
func TestYieldLosesNoEvent(t *testing.T) {
	l, err := newLoop(New(Config{}))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	events := make([]unix.EpollEvent, 8)
	for _, ran := range []int64{0, yieldIdle + 1, 2 * yieldBusy} {
		done := false
		l.post(func() { done = true })
		yielded := nanotime() - ran
		l.yielded = yielded
		for i := range l.wait(events) {
			l.handle(&events[i])
		}
		if !done {
			t.Errorf("what was posted is not done by a loop that has run for %d ns", ran)
		}
		if must := ran > yieldBusy; must && l.yielded == yielded {
			t.Errorf("a loop that has run for %d ns has not yielded", ran)
		}
	}
}
