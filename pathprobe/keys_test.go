package pathprobe

import (
	"net/netip"
	"testing"
)

// The workers' key signs for workers, and for no node of the group.
func TestWorkerKeySignsForWorkers(t *testing.T) {
	group, workers := [][]byte{[]byte("group")}, [][]byte{[]byte("workers")}
	addr := netip.MustParseAddr
	peer, other, worker := addr("10.77.0.11"), addr("10.77.0.12"), addr("10.77.0.13")
	p := New(Config{Self: "node1", Keys: group, WorkerKeys: workers, Nodes: []Node{
		{ID: "node1", Addrs: []netip.Addr{peer}}, {ID: "node2", Addrs: []netip.Addr{other}}, {ID: workerAt(worker),
			Addrs: []netip.Addr{worker}, Worker: true},
	}})
	isWorker := func(a netip.Addr) bool {
		n, _ := p.nodeAt(a)
		return n.Worker
	}
	signed := func(from netip.Addr, secrets [][]byte) []byte {
		m := testProbe(frontends[0])
		m.from, m.to = from, peer
		return m.frame([6]byte{}, [6]byte{}, deriveKeys(secrets)[0][:])
	}
	for _, tt := range []struct {
		from    netip.Addr
		secrets [][]byte
		want    bool
	}{
		{other, group, true}, {other, workers, false}, {worker, workers, true}, {netip.MustParseAddr("10.77.0.99"), workers,
			false},
	} {
		if _, _, ok := p.keys.verify(signed(tt.from, tt.secrets), isWorker); ok != tt.want {
			t.Errorf("%v with %s is heard: %v, want %v", tt.from, tt.secrets, ok, tt.want)
		}
	}
	if k, ok := p.keys.to(worker, isWorker(worker)); !ok || k != deriveKeys(workers)[0] {
		t.Error("a worker is not addressed with the workers' key")
	}
	if k, ok := p.keys.to(other, isWorker(other)); !ok || k != deriveKeys(group)[0] {
		t.Error("a peer is not addressed with the group's key")
	}
	// Without such a key, no worker is heard or addressed.
	p.SetKeys(group, nil)
	if _, _, ok := p.keys.verify(signed(worker, workers), isWorker); ok {
		t.Error("a worker is heard without a key")
	}
	if _, ok := p.keys.to(worker, isWorker(worker)); ok {
		t.Error("a worker is addressed without a key")
	}
	// It has become a peer.
	p.SetKeys(group, workers)
	p.keys.verify(signed(worker, workers), isWorker)
	p.SetNodes([]Node{{ID: "node1", Addrs: []netip.Addr{peer}}, {ID: "node3", Addrs: []netip.Addr{worker}}})
	if k, ok := p.keys.to(worker, isWorker(worker)); !ok || k != deriveKeys(group)[0] {
		t.Error("a worker that has become a peer is not addressed with the group's key")
	}
}
