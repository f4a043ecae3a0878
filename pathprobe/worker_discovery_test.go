package pathprobe

import (
	"net/netip"
	"testing"
)

// Machines that do not answer are called less and less often, and at once when they
// send something.
func TestCallsBecomeSeldom(t *testing.T) {
	a := netip.MustParseAddr("10.77.0.13")
	p := New(Config{Nodes: []Node{{ID: workerAt(a), Addrs: []netip.Addr{a}, Worker: true}}})
	calls := 0
	for range callsOften + 10*callSeldom {
		if _, due := p.workers.due(workerAt(a), true); due {
			calls++
		}
	}
	if calls < callsOften+9 || calls > callsOften+11 {
		t.Errorf("%d calls, want %d", calls, callsOften+10)
	}
	if _, due := p.workers.due(workerAt(a), false); due {
		t.Error("called in between")
	}
	p.noteSender(a)
	if _, due := p.workers.due(workerAt(a), false); !due {
		t.Error("not called although it has sent something")
	}
}
