package arp

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestListIsAskedForAgainWhenItChanged(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		answers []error // one for each time it is asked; the last one stays
		asked   int
		want    error
	}{
		"whole at once":      {[]error{nil}, 1, nil},
		"changed twice":      {[]error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, nil}, 3, nil},
		"other errors":       {[]error{netlink.ErrDumpInterrupted, broken, nil}, 2, broken},
		"changes all along":  {[]error{netlink.ErrDumpInterrupted}, listTries, netlink.ErrDumpInterrupted},
		"an error, no retry": {[]error{broken, nil}, 1, broken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := 0
			all, err := whole(func() ([]int, error) {
				answer := test.answers[min(asked, len(test.answers)-1)]
				asked++
				return []int{asked}, answer
			})
			if !errors.Is(err, test.want) || asked != test.asked {
				t.Errorf("asked %d times, error %v; want %d times, error %v", asked, err, test.asked, test.want)
			}
			if !slices.Equal(all, []int{asked}) {
				t.Errorf("got list %v, want the last one, [%d]", all, asked)
			}
		})
	}
}
