package transport

import (
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/notify"
)

// replicas is what the answers to this leader show of the other logs.
type replicas struct {
	mu   sync.Mutex
	all  map[hraft.ServerID]replica
	seen notify.Signal
}

type replica struct {
	term  uint64 // in which it answered last
	last  uint64 // index of the last entry of its log
	count uint64 // of answers
}

// answered notes an answer of id to a leader of term.
func (r *replicas) answered(id hraft.ServerID, term, last uint64) {
	r.mu.Lock()
	if r.all == nil {
		r.all = make(map[hraft.ServerID]replica)
	}
	r.all[id] = replica{term: term, last: last, count: r.all[id].count + 1}
	r.mu.Unlock()
	r.seen.Fire()
}

func (r *replicas) of(id hraft.ServerID) replica {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[id]
}

// behind is how many entries the log of id lacks of one that ends at last.
func (r *replicas) behind(id hraft.ServerID, term, last uint64) uint64 {
	if at := r.of(id); at.term == term && at.last < last {
		return last - at.last
	}
	return 0
}

// awaitAnswer waits until id answers one more message. It gives up after most.
func (r *replicas) awaitAnswer(id hraft.ServerID, most time.Duration, stop <-chan struct{}) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	before := r.of(id).count
	for {
		seen := r.seen.Next()
		if r.of(id).count != before {
			return true
		}
		select {
		case <-seen:
		case <-timer.C:
			return false
		case <-stop:
			return false
		}
	}
}
