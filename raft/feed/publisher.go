package feed

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"net/netip"
	"sync"
	"time"

	"appliance/raft/notify"
)

// A Publisher answers workers.
type Publisher struct {
	// Removed says that the group has removed this peer, HasLeader that this peer knows a leader.
	Removed, HasLeader func() bool
	// Addrs are where workers find the peers.
	Addrs func() []netip.AddrPort
	// Stopping is closed when this peer leaves.
	Stopping <-chan struct{}

	changed notify.Signal

	mu       sync.Mutex
	now      Feed
	versions map[string]string // of workers' programs, as they say
}

// maxVersion bounds what a worker says of its version, in bytes.
const maxVersion = 64

// Note keeps the version that a worker says it has. Versions forgets it.
func (p *Publisher) Note(worker, version string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.versions == nil {
		p.versions = make(map[string]string)
	}
	p.versions[worker] = version[:min(len(version), maxVersion)]
}

// Versions returns what was noted of workers, and forgets all others.
func (p *Publisher) Versions(of []string) map[string]string {
	known := make(map[string]string)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range of {
		if v, ok := p.versions[id]; ok {
			known[id] = v
		}
	}
	p.versions = maps.Clone(known)
	return known
}

// leaderRound is the time between two looks for a leader while a worker waits. A peer that finds none twice
// is cut off, or the group is down: the worker has to ask another.
const leaderRound = 2 * time.Second

// Publish gives workers something to follow: JSON that is the same on every peer when the peers want the
// same. It was made of the log of the group called cluster, up to index.
func (p *Publisher) Publish(data []byte, cluster string, index uint64) {
	sum := sha256.Sum256(data)
	f := Feed{Version: hex.EncodeToString(sum[:8]), Data: data, Cluster: cluster, Index: index}
	p.mu.Lock()
	changed := p.now.Version != f.Version
	p.now = f
	p.mu.Unlock()
	if changed {
		p.changed.Fire()
	}
}

// Wake has waiting questions look again whether this peer still serves workers.
func (p *Publisher) Wake() { p.changed.Fire() }

// Serve answers a worker as soon as there is another version than after.
func (p *Publisher) Serve(ctx context.Context, after string) (*Feed, error) {
	over := time.NewTimer(hold)
	defer over.Stop()
	look := time.NewTicker(leaderRound)
	defer look.Stop()
	for leaderless := 0; ; {
		changed := p.changed.Next()
		p.mu.Lock()
		f := p.now
		p.mu.Unlock()
		if p.Removed() {
			return nil, errors.New("this peer is not in the group any more; ask another")
		}
		if f.Version == "" {
			return nil, errors.New("this peer has nothing to follow yet; ask another")
		}
		f.Peers = p.Addrs()
		if f.Version != after {
			return &f, nil
		}
		select {
		case <-changed:
		case <-look.C:
			if leaderless++; p.HasLeader() {
				leaderless = 0
			}
			if leaderless > 1 {
				return nil, errors.New("this peer has no contact to a majority of the group; ask another")
			}
		case <-over.C:
			f.Data = nil // the worker has it
			return &f, nil
		case <-p.Stopping:
			return nil, errors.New("this peer leaves; ask another")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
