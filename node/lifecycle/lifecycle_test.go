package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// diary remembers in which order the parts began and ended.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) write(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

// part returns a part that writes into the diary, is ready after a second, and
// takes a second to stop. With a failure it fails at that age.
func (d *diary) part(name string, failAfter time.Duration) Part {
	ready := make(chan struct{})
	return Part{Name: name, Ready: ready, Run: func(ctx context.Context) error {
		d.write(name + " begins")
		defer d.write(name + " ends")
		time.Sleep(time.Second)
		close(ready)
		if failAfter > 0 {
			select {
			case <-time.After(failAfter):
				return errors.New("broken")
			case <-ctx.Done():
			}
		}
		<-ctx.Done()
		time.Sleep(time.Second)
		return ctx.Err()
	}}
}

func TestRunInOrderStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := RunInOrder(ctx, []Part{d.part("a", 0), d.part("b", 0), d.part("c", 0)}); err != nil {
			t.Fatal(err)
		}
		want := []string{"a begins", "b begins", "c begins", "c ends", "b ends", "a ends"}
		if !slices.Equal(d.lines, want) {
			t.Errorf("order %q, want %q", d.lines, want)
		}
	})
}

func TestRunInOrderStopsWhenAPartFails(t *testing.T) {
	for _, failing := range []string{"a", "b", "c"} {
		t.Run(failing, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				age := func(name string) time.Duration {
					if name == failing {
						return 5 * time.Second
					}
					return 0
				}
				err := RunInOrder(t.Context(), []Part{d.part("a", age("a")), d.part("b", age("b")), d.part("c", age("c"))})
				if err == nil || !strings.Contains(err.Error(), failing+": broken") {
					t.Fatalf("error %v, want the one of %s", err, failing)
				}
				if len(d.lines) != 6 {
					t.Errorf("diary %q: not every part ended", d.lines)
				}
			})
		})
	}
}

func TestRunInOrderGivesUpWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		never := Part{Name: "never", Ready: make(chan struct{}), Run: func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		}}
		if err := RunInOrder(ctx, []Part{never, d.part("b", 0)}); err != nil {
			t.Fatal(err)
		}
		if len(d.lines) != 0 {
			t.Errorf("diary %q: a part began before the one that it stands on was ready", d.lines)
		}
	})
}

func TestGate(t *testing.T) {
	for _, failure := range []error{nil, errors.New("no data plane: load ip_vs")} {
		synctest.Test(t, func(t *testing.T) {
			var d diary
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			check := func(context.Context) error {
				time.Sleep(time.Second)
				d.write("checked")
				return failure
			}
			err := RunInOrder(ctx, []Part{d.part("shows", 0), Gate(check), d.part("changes", 0)})
			want := []string{"shows begins", "checked", "changes begins", "changes ends", "shows ends"}
			if failure != nil {
				want = []string{"shows begins", "checked", "shows ends"}
			}
			if !slices.Equal(d.lines, want) {
				t.Errorf("order %q, want %q", d.lines, want)
			}
			if fmt.Sprint(err) != fmt.Sprint(failure) {
				t.Errorf("error %v, want %v as it is", err, failure)
			}
		})
	}
}
