package status

import (
	"slices"
	"testing"
)

func TestMarks(t *testing.T) {
	peers := []PeerView{{ID: "n1", Priority: 100}, {ID: "n2", Priority: 100, Drained: true, Unfit: "no backend"}}
	if got := peers[0].Labels(peers); got != nil {
		t.Errorf("a peer like the others is marked %q", got)
	}
	if got, want := peers[1].Labels(peers), []string{"drained"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	peers[1].Priority = 150
	if got := peers[0].Labels(peers); !slices.Equal(got, []string{"priority 100"}) {
		t.Errorf("%q where priorities differ", got)
	}
}
