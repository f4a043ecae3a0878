package raft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"appliance/raft/auth"
	"appliance/raft/detector"
	"appliance/raft/founding"
	"appliance/raft/lease"
	"appliance/raft/peerport"
	"appliance/raft/standstill"
	"appliance/raft/store"
	"appliance/raft/transport"
)

// DefaultHeartbeat is the measure of all other times in a group. The detector notices a lost host after little more than
// a third of it (four to eight heartbeats where datagrams are blocked), waits three for a process that is late on a host
// that answers, and notices a killed process at once. It is a hundred times the round trip of a data centre and ten
// times that of a city; peers that are farther apart make it longer (lease.Fitting).
const DefaultHeartbeat = 150 * time.Millisecond

// A Peer is one voting member of the group as the operator lists it.
type Peer struct {
	ID   string         `json:"id"`
	Addr netip.AddrPort `json:"address"`
	// Further are other addresses of the peer's host. The group stores them and does not use them itself.
	Further []netip.Addr `json:"addresses,omitempty"`
	// Witness votes and never holds.
	Witness bool `json:"witness,omitempty"`
}

// Addrs are all addresses of the peer's host that are known.
func (p Peer) Addrs() []netip.Addr { return append([]netip.Addr{p.Addr.Addr()}, p.Further...) }

// same says that both are the same member; further addresses do not count.
func (p Peer) same(q Peer) bool { return p.ID == q.ID && p.Addr == q.Addr && p.Witness == q.Witness }

func (p Peer) equal(q Peer) bool { return p.same(q) && slices.Equal(p.Further, q.Further) }

// Config is what a peer needs to know. All peers of a group share Peers and Heartbeat.
type Config struct {
	ID string
	// Addr is where the others reach this peer. Bind is where it listens; the zero value means Addr.
	Addr, Bind netip.AddrPort
	// Peers lists every peer, this one included.
	Peers    []Peer
	DataDir  string
	Security auth.Security
	// StartAsLeader begins a group of one if no listed peer has a group yet; the others join it. If listed peers
	// are silent, that takes founding.Patience.
	StartAsLeader bool
	// SingleNode is a group of one for ever: this peer looks for no other.
	SingleNode bool
	// Join are addresses of members of the group that this peer joins. It learns the others from them and
	// never begins a group itself.
	Join []netip.AddrPort
	// Priority says whom to prefer as holder: the larger, the better. With Preempt a holder gives way to a
	// peer of higher priority that has been connected for PreemptAfter.
	Priority     int
	Preempt      bool
	PreemptAfter time.Duration
	// Heartbeat is zero for DefaultHeartbeat. Where the round trip between two peers asks for more, the group takes
	// more: lease.Fitting.
	Heartbeat time.Duration
	Log       *slog.Logger
	Version   string
	// OnCommit, if set, is called with the time that each change took which this peer made as leader, from
	// the request until a majority had it on disk. It must not block.
	OnCommit func(took time.Duration)
	// View, if set, returns what other peers get from Group.View.
	View func() ([]byte, error)
	// Tried, if set, answers what other peers ask by Group.Try. It may take a second or two.
	Tried func(ctx context.Context, question []byte) ([]byte, error)

	floor   time.Duration                                       // what Heartbeat was before it was stretched
	kernels func(process [8]byte) detector.Kernels              // tests answer for hosts here,
	network peerport.Network                                    // tests cut connections here,
	packets func(bind netip.AddrPort) (detector.Packets, error) // and lose datagrams here
	disk    func(store.Disk) store.Disk                         // and crash here
	now     lease.Clock
	sources func() standstill.Sources // what shows that the machine stood still, beside now
	// foundingPatience is founding.Patience, or shorter in tests.
	foundingPatience time.Duration
}

// span is the length of a lease. It is shorter than the silence after which the detector replaces a leader,
// and so than the heartbeat timeout: after either there is nothing left to wait out. Probes and heartbeats
// renew the lease several times within its length. If a busy host delays all of them, the holder does not
// answer for a moment and then goes on.
func (c *Config) span() time.Duration { return c.Heartbeat * 3 / 10 }

// raftTimeout is after what silence raft's own clocks run out. The detector is sooner where datagrams come through. It
// is longer than the detector waits for a process whose host answers, so that nobody is deposed by the one clock while
// the other still waits.
func (c *Config) raftTimeout() time.Duration { return transport.HeartbeatsUntilTimeout * c.Heartbeat }

func (c *Config) watchMachine() *standstill.Watch {
	if c.sources == nil {
		return standstill.New(c.now, standstill.Sources{})
	}
	return standstill.New(c.now, c.sources())
}

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
	c.floor = c.Heartbeat
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = lease.Boottime
		if c.sources == nil {
			c.sources = standstill.Host
		}
	}
	if c.foundingPatience == 0 {
		c.foundingPatience = founding.Patience
	}
	if c.packets == nil {
		c.packets = detector.Listen
	}
	if c.kernels == nil {
		c.kernels = detector.AskKernels
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
	// Every peer has to arrive at the same order: bootstrap, rank and status use it.
	c.Peers = slices.SortedFunc(slices.Values(c.Peers), func(a, b Peer) int { return strings.Compare(a.ID, b.ID) })
	ids, addrs := map[string]bool{}, map[netip.AddrPort]string{}
	for _, p := range c.Peers {
		switch other, taken := addrs[p.Addr]; {
		case p.ID == "":
			return fmt.Errorf("the peer at %s has no id; give it one", p.Addr)
		case ids[p.ID]:
			return fmt.Errorf("two peers are listed with the id %q; ids have to differ", p.ID)
		case !p.Addr.IsValid() || p.Addr.Port() == 0 || p.Addr.Addr().IsUnspecified():
			return fmt.Errorf("peer %q has no usable address (%s); set the address and port at which the others "+
				"reach it", p.ID, p.Addr)
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
		return fmt.Errorf("peer %q is listed at %s, and told to be at %s; make them the same on every peer", c.ID,
			self.Addr, c.Addr)
	}
	if !c.Bind.IsValid() {
		c.Bind = c.Addr
	}
	if c.SingleNode && (len(c.Peers) > 1 || len(c.Join) > 0) {
		return errors.New("singleNode with further peers; remove one of them")
	}
	if c.StartAsLeader && len(c.Join) > 0 {
		return errors.New("startAsLeader begins a group, and join enters one; remove one of them")
	}
	if len(c.Join) == 0 && !slices.ContainsFunc(c.Peers, func(p Peer) bool { return !p.Witness }) {
		return errors.New("every listed peer is a witness, so nobody could hold; make one of them an ordinary peer")
	}
	if len(c.Peers) == 1 && len(c.Join) == 0 && (c.SingleNode || !c.StartAsLeader) {
		// Nobody else is listed, and nobody will come: no port, no key. With startAsLeader others join later.
		c.SingleNode = true
		c.Security = auth.Security{Insecure: true}
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
