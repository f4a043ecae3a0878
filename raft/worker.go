package raft

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"
)

// feed is what workers follow.
type feed struct {
	// Version is of the content, so that it is the same from every peer.
	Version string           `json:"version"`
	Data    json.RawMessage  `json:"data,omitempty"`
	Peers   []netip.AddrPort `json:"peers,omitempty"`
}

// feedHold is how long a worker's question waits for something new. It is shorter than
// what ends an idle connection, and long enough that a thousand workers ask fifty
// times a second.
const feedHold = 20 * time.Second

// Publish gives workers something to follow: JSON that is the same on every
// peer when the peers want the same.
func (g *Group) Publish(data []byte) {
	sum := sha256.Sum256(data)
	f := feed{Version: hex.EncodeToString(sum[:8]), Data: data}
	g.mu.Lock()
	changed := g.feed.Version != f.Version
	g.feed = f
	g.mu.Unlock()
	if changed {
		g.fed.fire()
	}
}

// serveFeed answers when there is something else than after.
func (g *Group) serveFeed(ctx context.Context, after string) (*feed, error) {
	hold := time.NewTimer(feedHold)
	defer hold.Stop()
	for {
		changed := g.fed.next()
		g.mu.Lock()
		f := g.feed
		g.mu.Unlock()
		if f.Version == "" {
			return nil, errors.New("this peer has nothing to follow yet; ask another")
		}
		for _, p := range g.roster() {
			f.Peers = append(f.Peers, p.Addr)
		}
		if f.Version != after {
			return &f, nil
		}
		select {
		case <-changed:
		case <-hold.C:
			f.Data = nil // as before
			return &f, nil
		case <-g.stopping:
			return nil, errors.New("this peer leaves; ask another")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// A Follower follows the group from outside.
type Follower struct {
	ID    string
	Key   WorkerKey
	Peers []netip.AddrPort
	Log   *slog.Logger

	dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) // tests
}

// Follow calls follow with what the peers publish, each time that it changes,
// until ctx ends. Any peer will do; when one does not answer, the next is
// asked. lost is called when none has answered for a while, with why.
func (f Follower) Follow(ctx context.Context, follow func(data []byte), lost func(error)) error {
	cred, err := f.Key.credentials(f.ID)
	if err != nil {
		return err
	}
	dial := f.dial
	if dial == nil {
		d := &net.Dialer{KeepAliveConfig: keepAlive()}
		dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr.String())
		}
	}
	p, err := listen(netip.AddrPort{}, cred, &Config{dial: dial, Log: f.Log})
	if err != nil {
		return err
	}
	peers := slices.Clone(f.Peers)
	// Each worker begins with another peer, so that their burden is shared.
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	version, failures, told := "", 0, false
	for ctx.Err() == nil {
		if len(peers) == 0 {
			return errors.New("there is no peer to follow; list the peers")
		}
		answered, err := f.followOne(ctx, p, peers[0], &version, func(got feed) {
			failures, told = 0, false
			if got.Data != nil {
				follow(got.Data)
			}
			for _, at := range got.Peers {
				if !slices.Contains(peers, at) {
					peers = append(peers, at)
				}
			}
		})
		if answered {
			failures = 0
		}
		failures++
		peers = append(peers[1:], peers[0])
		if failures >= len(peers) && !told && ctx.Err() == nil {
			told = true
			lost(err)
		}
		// At once to the next; slower when all have failed, and each worker in
		// a rhythm of its own.
		pause := time.Duration(0)
		if failures >= len(peers) {
			pause = min(time.Duration(failures)*100*time.Millisecond, 3*time.Second)
			pause = pause/2 + rand.N(pause)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// followOne follows one peer until it fails.
func (f Follower) followOne(ctx context.Context, p *port, at netip.AddrPort, version *string, got func(feed)) (answered bool, err error) {
	l := newLink(p, "", at)
	defer l.close()
	for {
		once, cancel := context.WithTimeout(ctx, feedHold+handshakeTimeout+askTimeout)
		if !answered {
			cancel()
			// A host that is gone must not be waited for as for news: an empty
			// question is answered at once.
			once, cancel = context.WithTimeout(ctx, handshakeTimeout)
		}
		after := *version
		if !answered {
			after = ""
		}
		rep, err := l.call(once, request{Op: opFollow, After: after})
		cancel()
		switch {
		case err != nil:
			return answered, err
		case rep.Feed == nil:
			return answered, fmt.Errorf("%s does not answer as a peer; is it of this version?", at)
		}
		answered = true
		if rep.Feed.Version == *version {
			rep.Feed.Data = nil
		}
		*version = rep.Feed.Version
		got(*rep.Feed)
	}
}
