package feed

import (
	"context"
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

	"appliance/raft/auth"
	"appliance/raft/peerport"
)

// workerTimeout is how long a worker waits for an acknowledgement until it takes the host of its peer for
// lost: TCP_USER_TIMEOUT in tcp(7), RFC 5482. On an idle connection none is due before the keep-alive probe
// after a second; the next probe, a second later, finds that the time is over. So it takes two seconds at
// most, and the kernels of a thousand workers send a peer a thousand empty segments per second.
const workerTimeout = 1500 * time.Millisecond

// DialWorker opens a TCP connection that ends within two seconds of its host's loss.
func DialWorker(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 3},
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			failed := c.Control(func(fd uintptr) {
				ms := int(workerTimeout.Milliseconds())
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ms)
			})
			return errors.Join(failed, err)
		},
	}
	return d.DialContext(ctx, "tcp", addr.String())
}

// A Follower follows the group from outside.
type Follower struct {
	ID string
	// Version is that of the program, for the peers' lists of workers.
	Version string
	Key     auth.WorkerKey
	// Own, used instead of Key, is a worker's certificate of the operator's own authority.
	Own auth.Security
	// Peers are where to begin; an id may be empty.
	Peers []auth.Listed
	Log   *slog.Logger

	// Dial is nil for DialWorker.
	Dial peerport.DialFunc
}

func (f Follower) credentials(peers func() []auth.Listed) (*auth.Credentials, error) {
	if f.Own.CA == "" {
		return f.Key.Credentials(f.ID)
	}
	return f.Own.WorkerCredentials(peers)
}

// Follow calls follow with what the peers publish, each time that it changes, until ctx ends. Any peer will
// do; when one does not answer, the next is asked. Lost is called when none has answered for a while, with
// why.
func (f Follower) Follow(ctx context.Context, follow func(data []byte), lost func(error)) error {
	var peers []netip.AddrPort
	for _, p := range f.Peers {
		peers = append(peers, p.Addr)
	}
	cred, err := f.credentials(func() []auth.Listed {
		var all []auth.Listed
		for _, at := range peers {
			all = append(all, auth.Listed{ID: at.String(), Addr: at})
		}
		return append(all, f.Peers...)
	})
	if err != nil {
		return err
	}
	dial := f.Dial
	if dial == nil {
		dial = DialWorker
	}
	p, err := peerport.Listen(netip.AddrPort{}, cred, peerport.Network{Dial: dial}, f.Log)
	if err != nil {
		return err
	}
	var have Feed
	// Each worker begins with a random peer, so that the peers share the load.
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	failures, told := 0, false
	for ctx.Err() == nil {
		if len(peers) == 0 {
			return errors.New("there is no peer to follow; list the peers")
		}
		answered, err := f.followOne(ctx, p, peers[0], &have, func(got Feed) {
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
		// The next peer is asked at once; when all have failed, more slowly, and each worker in a rhythm of
		// its own.
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

// followOne follows one peer until it fails, or stays behind what the worker has.
func (f Follower) followOne(ctx context.Context, p *peerport.Port, at netip.AddrPort, have *Feed,
	got func(Feed)) (answered bool, err error) {
	l := p.Link("", at)
	defer l.Close()
	after, behind := "", false
	for {
		patience := hold + peerport.HandshakeTimeout + time.Second
		if !answered || behind {
			// A peer answers the first question at once, so one that is gone does not need to be waited for
			// as long as for news. Nor does one that is behind.
			patience = peerport.HandshakeTimeout
		}
		once, cancel := context.WithTimeout(ctx, patience)
		var rep answer
		err := l.AskOnce(once, question{Op: Op, After: after, Version: f.Version}, &rep)
		cancel()
		if err == nil && rep.Error != "" {
			err = errors.New(rep.Error)
		}
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
		*have = Feed{Version: rep.Feed.Version, Cluster: rep.Feed.Cluster, Index: rep.Feed.Index}
		got(*rep.Feed)
	}
}
