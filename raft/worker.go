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
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// feed is what workers follow.
type feed struct {
	// Version is of the content, so that it is the same from every peer.
	Version string `json:"version"`
	// Cluster and Index are the group and the place in its log up to which the
	// peer had applied it when it made the content, 0 if it does not tell.
	Cluster string           `json:"cluster,omitempty"`
	Index   uint64           `json:"index,omitempty"`
	Data    json.RawMessage  `json:"data,omitempty"`
	Peers   []netip.AddrPort `json:"peers,omitempty"`
}

// workerTimeout is after how long a worker notices that the host of its peer has
// vanished, if the peer owes it an acknowledgement: TCP_USER_TIMEOUT in tcp(7), RFC 5482. An idle connection owes
// none until the keep-alive probe after a second; the next one, a second later,
// finds the time over. So it takes two seconds at most, and the kernels
// of a thousand workers send a peer a thousand empty segments in each.
const workerTimeout = 1500 * time.Millisecond

func workerDialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 3},
		Control: func(_, _ string, c syscall.RawConn) (err error) {
			if e := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(workerTimeout.Milliseconds()))
			}); e != nil {
				return e
			}
			return err
		},
	}
}

// feedHold is how long a worker's question waits for something new. It is shorter than
// what ends an idle connection, and long enough that a thousand workers ask fifty
// times a second.
const feedHold = 20 * time.Second

// older says that f was made of less of the same group's log than have. Of another group nothing is older: it was
// recovered, or begun anew.
func (f feed) older(have feed) bool {
	return f.Cluster != "" && f.Cluster == have.Cluster && f.Index != 0 && f.Index < have.Index
}

// Index is the place in the group's log up to which Settings has it. It is the same
// on every peer, grows for as long as the group has its name, and is 0 before there is anything.
func (g *Group) Index() uint64 { return g.settings.at() }

// cutOffRound is the time between two looks for a leader while a worker waits. A
// peer that finds none twice is cut off, or the group is down: the worker asks the others.
const cutOffRound = 2 * time.Second

// Publish gives workers something to follow: JSON that is the same on every
// peer when the peers want the same. Index is what Group.Index was before data
// was made, so that workers can tell an older one from a newer.
func (g *Group) Publish(data []byte, index uint64) {
	sum := sha256.Sum256(data)
	f := feed{Version: hex.EncodeToString(sum[:8]), Data: data, Cluster: g.settings.get(clusterKey), Index: index}
	g.mu.Lock()
	changed := g.feed.Version != f.Version
	g.feed = f
	g.mu.Unlock()
	if changed {
		g.fed.Fire()
	}
}

func (g *Group) hasLeader() bool {
	r := g.running()
	if r == nil {
		return false
	}
	_, id := r.LeaderWithID()
	return id != ""
}

// serveFeed answers when there is something else than after.
func (g *Group) serveFeed(ctx context.Context, after string) (*feed, error) {
	hold := time.NewTimer(feedHold)
	defer hold.Stop()
	look := time.NewTicker(cutOffRound)
	defer look.Stop()
	for leaderless := 0; ; {
		changed := g.fed.Next()
		g.mu.Lock()
		f := g.feed
		g.mu.Unlock()
		if g.isRemoved() {
			return nil, errors.New("this peer is not in the group any more; ask another")
		}
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
		case <-look.C:
			if leaderless++; g.hasLeader() {
				leaderless = 0
			}
			if leaderless > 1 {
				return nil, errors.New("this peer has no contact to a majority of the group; ask another")
			}
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
	ID  string
	Key WorkerKey
	// Own, instead of Key, are certificates of the operator's own authority: a worker's.
	Own Security
	// Peers are where to begin; an id may be empty.
	Peers []Peer
	Log   *slog.Logger

	dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) // tests
}

func (f Follower) credentials() (*credentials, error) {
	if f.Own.CA == "" {
		return f.Key.credentials(f.ID)
	}
	return f.Own.workerCredentials()
}

// Follow calls follow with what the peers publish, each time that it changes,
// until ctx ends. Any peer will do; when one does not answer, the next is
// asked. lost is called when none has answered for a while, with why.
func (f Follower) Follow(ctx context.Context, follow func(data []byte), lost func(error)) error {
	var peers []netip.AddrPort
	for _, p := range f.Peers {
		peers = append(peers, p.Addr)
	}
	cred, err := f.credentials()
	if err != nil {
		return err
	}
	cred.peers = func() []Peer { return append(joined(peers), f.Peers...) }
	dial := f.dial
	if dial == nil {
		d := workerDialer()
		dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr.String())
		}
	}
	p, err := listen(netip.AddrPort{}, cred, &Config{dial: dial, Log: f.Log})
	if err != nil {
		return err
	}
	var have feed
	// Each worker begins with another peer, so that their burden is shared.
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	failures, told := 0, false
	for ctx.Err() == nil {
		if len(peers) == 0 {
			return errors.New("there is no peer to follow; list the peers")
		}
		answered, err := f.followOne(ctx, p, peers[0], &have, func(got feed) {
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

// errBehind makes a worker change to another peer.
var errBehind = errors.New("it is behind the other peers; it may be cut off from them")

// followOne follows one peer until it fails, or stays behind what the worker
// has for longer than a moment.
func (f Follower) followOne(ctx context.Context, p *port, at netip.AddrPort, have *feed, got func(feed)) (answered bool, err error) {
	l := newLink(p, "", at)
	l.brief = true
	defer l.close()
	after, behind := "", false
	for {
		patience := feedHold + handshakeTimeout + askTimeout
		if !answered || behind {
			// A host that is gone must not be waited for as for news: an empty
			// question is answered at once. Nor must one that is behind.
			patience = handshakeTimeout
		}
		once, cancel := context.WithTimeout(ctx, patience)
		rep, err := l.call(once, request{Op: opFollow, After: after})
		cancel()
		switch {
		case err != nil && behind && ctx.Err() == nil:
			return answered, fmt.Errorf("peer at %s: %w", at, errBehind)
		case err != nil:
			return answered, err
		case rep.Feed == nil:
			return answered, fmt.Errorf("%s does not answer as a peer; is it of this version?", at)
		}
		answered, after = true, rep.Feed.Version
		if behind = rep.Feed.older(*have); behind {
			continue
		}
		if rep.Feed.Version == have.Version {
			rep.Feed.Data = nil
		}
		*have = feed{Version: rep.Feed.Version, Cluster: rep.Feed.Cluster, Index: rep.Feed.Index}
		got(*rep.Feed)
	}
}
