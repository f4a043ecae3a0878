package raft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"appliance/raft/lease"
)

// DefaultHeartbeat is the time without a word from the leader after which a
// peer stands for election by itself. The detector needs little more than a third of it
// to notice a lost host (one to two of it where datagrams are blocked), and a
// killed process is noticed at once. The leader sends five to ten
// heartbeats in it, so that two may be late or lost. It is a hundred times the
// round trip of a data centre and ten times that of a city. What it
// has to outlast is a host that keeps the process waiting for a core: at
// ordinary priority on a host with four busy processes per core that has been seen to
// take longer than this, at raised priority (nice -15) never.
const DefaultHeartbeat = 150 * time.Millisecond

// A Peer is one voting member of the group as the operator lists it.
type Peer struct {
	ID   string         `json:"id"`
	Addr netip.AddrPort `json:"address"`
	// Further are other addresses of the peer's host. The group keeps them for
	// whoever asks, and does not speak there.
	Further []netip.Addr `json:"addresses,omitempty"`
	// Witness votes and never holds.
	Witness bool `json:"witness,omitempty"`
}

// Addrs are all addresses of the peer's host that are known.
func (p Peer) Addrs() []netip.Addr { return append([]netip.Addr{p.Addr.Addr()}, p.Further...) }

// same says that both are the same member, whatever is known of its host.
func (p Peer) same(q Peer) bool { return p.ID == q.ID && p.Addr == q.Addr && p.Witness == q.Witness }

func (p Peer) equal(q Peer) bool { return p.same(q) && slices.Equal(p.Further, q.Further) }

// Config is what a peer has to know. All peers of a group share Peers and
// Heartbeat.
type Config struct {
	ID string
	// Addr is where the others reach this peer. Bind is where it listens; the
	// zero value means Addr.
	Addr, Bind netip.AddrPort
	// Peers lists every peer, this one included.
	Peers    []Peer
	DataDir  string
	Security Security
	// StartAsLeader makes a group of one if no listed peer has a group yet;
	// the others join it.
	StartAsLeader bool
	// SingleNode is a group of one for ever. No other peer is looked for.
	SingleNode bool
	// Join are addresses of members of a group that this peer is to join. It
	// learns the others from them, and never begins a group itself.
	Join []netip.AddrPort
	// Priority says whom to prefer as holder, the larger the better. With
	// Preempt a holder gives way to a larger one that has been connected for
	// PreemptAfter.
	Priority     int
	Preempt      bool
	PreemptAfter time.Duration
	// Heartbeat is zero for DefaultHeartbeat.
	Heartbeat time.Duration
	Log       *slog.Logger
	Version   string
	// OnCommit, if set, is told how long each change of this peer's as leader
	// took, from asking until a majority had it on disk. It must not block.
	OnCommit func(took time.Duration)
	// View, if set, is what other peers get by Group.View.
	View func() ([]byte, error)

	dial    func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) // tests cut connections here,
	packets func(bind netip.AddrPort) (packets, error)                       // and lose datagrams here
	now     lease.Clock
}

// span is the term of the lease. It is shorter than the silence after which the detector
// has a leader replaced, and so than the heartbeat timeout: after either
// there is nothing left to wait out. Probes and heartbeats renew it several times in
// its span; if a busy host delays all of them, the holder is mute for a
// moment and goes on.
func (c *Config) span() time.Duration { return c.Heartbeat * 3 / 10 }

func (c *Config) self() Peer {
	i := slices.IndexFunc(c.Peers, func(p Peer) bool { return p.ID == c.ID })
	return c.Peers[i]
}

func (c *Config) peer(id string) (Peer, bool) {
	i := slices.IndexFunc(c.Peers, func(p Peer) bool { return p.ID == id })
	if i < 0 {
		return Peer{}, false
	}
	return c.Peers[i], true
}

// complete fills in defaults and refuses what cannot work.
func (c *Config) complete() error {
	if c.Heartbeat == 0 {
		c.Heartbeat = DefaultHeartbeat
	}
	if c.Heartbeat < 20*time.Millisecond || c.Heartbeat > time.Minute {
		return fmt.Errorf("heartbeat %v: use 20ms to 1m", c.Heartbeat)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = lease.Boottime
	}
	if c.dial == nil {
		d := &net.Dialer{KeepAliveConfig: keepAlive()}
		c.dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr.String())
		}
	}
	if c.packets == nil {
		c.packets = listenPackets
	}
	if c.DataDir == "" {
		return errors.New("no data directory; set one that survives a restart, the vote has to")
	}
	if c.ID == "" {
		return errors.New("this peer has no id; set one")
	}
	if len(c.Peers) == 0 {
		c.Peers = []Peer{{ID: c.ID, Addr: c.Addr}}
	}
	// Every peer has to come to the same order: bootstrap, rank and status use it.
	c.Peers = slices.SortedFunc(slices.Values(c.Peers), func(a, b Peer) int { return strings.Compare(a.ID, b.ID) })
	ids, addrs := map[string]bool{}, map[netip.AddrPort]string{}
	for _, p := range c.Peers {
		switch other, taken := addrs[p.Addr]; {
		case p.ID == "":
			return fmt.Errorf("the peer at %s has no id; give it one", p.Addr)
		case ids[p.ID]:
			return fmt.Errorf("two peers are listed with the id %q; ids have to differ", p.ID)
		case !p.Addr.IsValid() || p.Addr.Port() == 0 || p.Addr.Addr().IsUnspecified():
			return fmt.Errorf("peer %q has no usable address (%s); set the address and port at which the others reach it", p.ID, p.Addr)
		case taken:
			return fmt.Errorf("peers %q and %q are both listed at %s; give each its own", other, p.ID, p.Addr)
		}
		ids[p.ID], addrs[p.Addr] = true, p.ID
	}
	self, ok := c.peer(c.ID)
	if !ok {
		return fmt.Errorf("peer %q is not among the listed peers (%s); add it, or correct the id", c.ID, names(c.Peers))
	}
	if !c.Addr.IsValid() {
		c.Addr = self.Addr
	}
	if c.Addr != self.Addr {
		return fmt.Errorf("peer %q is listed at %s, and told to be at %s; make them the same on every peer", c.ID, self.Addr, c.Addr)
	}
	if !c.Bind.IsValid() {
		c.Bind = c.Addr
	}
	if c.SingleNode && (len(c.Peers) > 1 || len(c.Join) > 0) {
		return errors.New("singleNode with further peers; remove one of both")
	}
	if c.StartAsLeader && len(c.Join) > 0 {
		return errors.New("startAsLeader begins a group, and join enters one; remove one of both")
	}
	if len(c.Join) == 0 && !slices.ContainsFunc(c.Peers, func(p Peer) bool { return !p.Witness }) {
		return errors.New("every listed peer is a witness, so nobody could hold; make one of them an ordinary peer")
	}
	if len(c.Peers) == 1 && len(c.Join) == 0 && (c.SingleNode || !c.StartAsLeader) {
		// Nobody else is listed, and nobody is waited for: no port, no key. With
		// startAsLeader others join later.
		c.SingleNode = true
		c.Security = Security{Insecure: true}
	}
	return nil
}

func names(peers []Peer) string {
	var ids []string
	for _, p := range peers {
		ids = append(ids, p.ID)
	}
	return strings.Join(ids, ", ")
}

// keepAlive finds a vanished host on a silent connection within seconds, so that a
// watch connection to a host that rebooted is replaced.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3}
}
