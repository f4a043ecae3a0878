package raft

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// newcomer adds a peer to the bench that no file lists.
func (b *bench) newcomer(id string, host int) Peer {
	p := Peer{ID: id, Addr: freeAddr(b.t, host)}
	b.wires.mu.Lock()
	b.wires.addrs[p.Addr] = id
	b.wires.mu.Unlock()
	b.dirs[id] = b.t.TempDir()
	return p
}

func (b *bench) joiner(p Peer, at ...Peer) Config {
	c := b.config(p.ID)
	c.Peers = []Peer{p}
	for _, q := range at {
		c.Join = append(c.Join, q.Addr)
	}
	return c
}

func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(b.t.Context(), 60*time.Second)
	b.t.Cleanup(cancel)
	return ctx
}

// must repeats what may fail for a moment on a busy machine.
func (b *bench) must(what string, do func() error) {
	b.t.Helper()
	var err error
	b.eventually(what, func() bool {
		if err = do(); err != nil {
			time.Sleep(50 * time.Millisecond)
		}
		return err == nil
	})
}

func TestJoinByAddressAloneAndRemove(t *testing.T) {
	b := newBench(t, 1)
	c := b.config("a")
	c.StartAsLeader = true // kubeadm's first node: it is the only one it knows
	b.run(c)
	b.holder("a")
	d, e := b.newcomer("d", 4), b.newcomer("e", 5)
	b.run(b.joiner(d, b.peers[0]))
	b.voters(2)
	b.run(b.joiner(e, d)) // any member will do
	b.voters(3)
	b.eventually("all to know each other", func() bool {
		for _, n := range b.nodes {
			for _, p := range n.Status().Peers {
				if !p.Connected || p.Role != "voter" {
					return false
				}
			}
			if len(n.Status().Peers) != 3 {
				return false
			}
		}
		return true
	})

	// After a restart it finds the others, although its file lists nobody and the address to join does not
	// answer.
	b.stop("e")
	gone := b.joiner(e, Peer{Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 1)})
	b.run(gone)
	b.stop("a")
	b.holder("d", "e")
	b.run(c)
	b.voters(3)

	// The holder is removed: it hands over, falls silent, and knows why.
	h := b.holder()
	removed := b.nodes[h]
	asked := "d"
	if h == "d" {
		asked = "e"
	}
	b.must("the removal", func() error { return b.nodes[asked].RemovePeer(b.ctx(), h, false) })
	if removed.lawfully() {
		t.Errorf("%s has been removed and may still answer", h)
	}
	b.eventually("the removed peer to say so", func() bool {
		return strings.Contains(removed.Status().Trouble, "removed")
	})
	rest := make([]string, 0, 2)
	for id := range b.nodes {
		if id != h {
			rest = append(rest, id)
		}
	}
	b.holder(rest...)

	// It comes back, with its disk and without, and stays quiet both times.
	own := removed.cfg
	b.stop(h)
	again := b.run(own)
	b.eventually("the removed peer to be told", func() bool {
		return strings.Contains(again.Status().Trouble, "removed")
	})
	b.stop(h)
	own.DataDir = t.TempDir()
	own.Join, own.StartAsLeader = []netip.AddrPort{b.nodes[rest[0]].cfg.Addr}, false
	empty := b.run(own)
	b.eventually("the peer with the new disk to be told",
		func() bool { return strings.Contains(empty.Status().Trouble, "removed") })
	if empty.running() != nil {
		t.Error("raft runs on a removed peer with an empty disk")
	}

	// And it is taken back when it is added again.
	b.must("the addition", func() error {
		return b.nodes[rest[0]].AddPeer(b.ctx(), Peer{ID: h, Addr: own.Addr}, true)
	})
	b.voters(3)
	b.eventually("the peer to be content", func() bool { return empty.Status().Trouble == "" })
}

// The whole group knows the further addresses of a host: from a file, from the newcomer itself, or from
// `peers add`.
func TestFurtherAddresses(t *testing.T) {
	b := newBench(t, 1)
	host := netip.MustParseAddr
	c := b.config("a")
	c.StartAsLeader = true
	c.Peers[0].Further = []netip.Addr{host("2001:db8::1")}
	b.run(c)
	b.holder("a")
	d, e := b.newcomer("d", 4), b.newcomer("e", 5)
	e.Further = []netip.Addr{host("2001:db8::5")}
	b.must("the addition", func() error { return b.nodes["a"].AddPeer(b.ctx(), e, false) })
	e.Further = nil
	b.run(b.joiner(e, b.peers[0]))
	b.voters(2)
	thief := d
	thief.Further = []netip.Addr{host("2001:db8::5")}
	b.must("a refusal of an address that e has", func() error {
		err := b.nodes["a"].AddPeer(b.ctx(), thief, false)
		if err != nil && strings.Contains(err.Error(), "peer e has the address 2001:db8::5") {
			return nil
		}
		return fmt.Errorf("it was not refused so: %v", err)
	})
	d.Further = []netip.Addr{host("2001:db8::4")}
	b.run(b.joiner(d, b.peers[0]))
	b.voters(3)
	knows := func(want map[string]string) func() bool {
		return func() bool {
			for _, n := range b.nodes {
				for _, p := range n.Status().Peers {
					if got := fmt.Sprint(p.Further); got != want[p.ID] {
						return false
					}
				}
			}
			return true
		}
	}
	b.eventually("all to know all addresses", knows(map[string]string{"a": "[2001:db8::1]", "d": "[2001:db8::4]",
		"e": "[2001:db8::5]"}))

	// It has another network card; what it says itself counts.
	b.stop("d")
	d.Further = []netip.Addr{host("2001:db8::44")}
	b.run(b.joiner(d, b.peers[0]))
	b.eventually("all to know the new address", knows(map[string]string{"a": "[2001:db8::1]",
		"d": "[2001:db8::44]", "e": "[2001:db8::5]"}))
	// And the one whose file says everything has none.
	b.stop("a")
	c.Peers[0].Further = nil
	b.run(c)
	b.eventually("all to forget the address", knows(map[string]string{"a": "[]", "d": "[2001:db8::44]",
		"e": "[2001:db8::5]"}))
}

func TestRemovedPeerWithItsDiskIsTakenBack(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	b.holder()
	b.eventually("c to know its group", func() bool { return b.nodes["c"].hello().Cluster != "" })
	b.must("the removal", func() error { return b.nodes["a"].RemovePeer(b.ctx(), "c", false) })
	b.eventually("c to know", func() bool { return strings.Contains(b.nodes["c"].Status().Trouble, "removed") })
	b.must("the addition", func() error { return b.nodes["b"].AddPeer(b.ctx(), b.peers[2], true) })
	b.voters(3)
	b.eventually("c to be content", func() bool { return b.nodes["c"].Status().Trouble == "" })
}

func TestDeadPeerIsReplacedUnderItsID(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	h := b.holder()
	dead := "c"
	if h == "c" {
		dead = "b"
	}
	old, _ := b.nodes[dead].cfg.peer(dead)
	moved := Peer{ID: dead, Addr: freeAddr(t, 9)}
	b.wires.mu.Lock()
	b.wires.addrs[moved.Addr] = dead
	b.wires.mu.Unlock()
	b.eventually("the replacement of a living peer to be refused", func() bool {
		err := b.nodes[h].AddPeer(b.ctx(), moved, false)
		if err == nil {
			t.Fatal("a living peer was replaced")
		}
		return strings.Contains(err.Error(), "answers there")
	})
	b.stop(dead)
	b.must("the replacement", func() error { return b.nodes[h].AddPeer(b.ctx(), moved, false) })
	b.dirs[dead] = t.TempDir()
	c := b.joiner(moved, b.peers[0])
	if h != "a" {
		c.Join = append(c.Join, b.nodes[h].cfg.Addr)
	}
	b.run(c)
	b.voters(3)
	b.eventually("everybody to have the new address", func() bool {
		for _, n := range b.nodes {
			if p, _ := n.peer(dead); p.Addr != moved.Addr || p.Addr == old.Addr {
				return false
			}
		}
		return true
	})
}

func TestLosingTheMajorityIsRefused(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	h := b.holder()
	var others []string
	for _, p := range b.peers {
		if p.ID != h {
			others = append(others, p.ID)
		}
	}
	b.eventually("the group to have a name", func() bool { return b.nodes[h].hello().Cluster != "" })
	b.stop(others[1])
	for what, change := range map[string]func(context.Context, string, bool) error{
		"remove": b.nodes[h].RemovePeer, "demote": b.nodes[h].DemotePeer,
	} {
		b.eventually(what+" to be refused", func() bool {
			err := change(b.ctx(), others[0], false)
			return err != nil && strings.Contains(err.Error(), "cannot be reached") &&
				strings.Contains(err.Error(), "--force")
		})
	}
	b.must("the removal of the dead", func() error { return b.nodes[others[0]].RemovePeer(b.ctx(), others[1], false) })
	b.voters(2)
	b.holder()
	if err := b.nodes[h].RemovePeer(b.ctx(), "nobody", false); err == nil || !strings.Contains(err.Error(),
		"not a member") {
		t.Errorf("removal of nobody: %v", err)
	}
	// Down to one, which goes on.
	b.must("the removal of the last but one", func() error { return b.nodes[h].RemovePeer(b.ctx(), others[0], false) })
	if err := b.nodes[h].RemovePeer(b.ctx(), h, false); err == nil {
		t.Error("the last peer was removed")
	}
	b.holder(h)
}

func TestDemotedPeerFollowsAndNeverHolds(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	h := b.holder()
	b.must("the demotion of the holder", func() error { return b.nodes["a"].DemotePeer(b.ctx(), h, false) })
	if b.nodes[h].lawfully() {
		t.Errorf("%s has no vote and may answer", h)
	}
	b.voters(2)
	b.must("a setting", func() error { return b.nodes["a"].Propose(b.ctx(), map[string]string{"k": "v"}) })
	b.eventually("the demoted peer to follow", func() bool { return b.nodes[h].Settings()["k"] == "v" })
	time.Sleep(time.Second) // several rounds of the leader loop, which must not promote it
	b.voters(2)
	b.must("the promotion", func() error { return b.nodes[h].PromotePeer(b.ctx(), h, false) })
	b.voters(3)
}

func TestJoinIsRefused(t *testing.T) {
	b := newBench(t, 3)
	b.start("a", "b", "c")
	b.voters(3)
	lives := "a"
	if b.holder() == "a" {
		lives = "c" // of its own id a leader says something else
	}
	troubled := func(c Config, want string) {
		t.Helper()
		n := b.run(c)
		b.eventually("to be told: "+want, func() bool { return strings.Contains(n.Status().Trouble, want) })
		if n.running() != nil {
			t.Errorf("%s: raft runs on a refused peer", want)
		}
		b.stop(c.ID)
	}
	// This is the id of a peer that lives. It calls itself so too, and cannot be in its place in b.nodes.
	node := b.nodes[lives]
	twin := b.joiner(Peer{ID: lives, Addr: b.newcomer(lives, 7).Addr}, b.peers[1])
	troubled(twin, "two processes run with the id "+lives)
	b.nodes[lives] = node
	// This is an address at which somebody else is.
	b.holder()
	stray := b.newcomer("x", 8)
	c := b.joiner(Peer{ID: "x", Addr: b.peers[2].Addr}, b.peers[1])
	c.Bind = stray.Addr
	b.wires.mu.Lock()
	b.wires.addrs[b.peers[2].Addr] = "c"
	b.wires.mu.Unlock()
	c.network.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr.String())
	}
	troubled(c, "of its own")
	b.voters(3)
	b.holder()
}

func TestDrainPinAndPriority(t *testing.T) {
	b := newBench(t, 3)
	b.tweak = func(c *Config) {
		c.Preempt = true
		c.Priority = int(c.ID[0]-'a') + 1
	}
	b.start("a", "b", "c")
	b.voters(3)
	b.holder("c") // the largest
	b.must("the pin", func() error { return b.nodes["b"].Pin(b.ctx(), "a") })
	b.holder("a")
	b.must("the drain", func() error { return b.nodes["b"].Drain(b.ctx(), "a") })
	b.holder("c")
	b.must("another drain", func() error { return b.nodes["b"].Drain(b.ctx(), "c") })
	b.holder("b")
	b.stop("b")
	b.holder("a", "c") // a drained holder is better than none
	b.start("b")
	b.holder("b")
	b.must("the end of the pin", func() error { return b.nodes["b"].Pin(b.ctx(), "") })
	b.must("the end of the drain", func() error { return b.nodes["b"].Undrain(b.ctx(), "c") })
	b.holder("c")
	if err := b.nodes["b"].Pin(b.ctx(), "nobody"); err == nil {
		t.Error("nobody was pinned")
	}
}

func TestVersionsThatDoNotFit(t *testing.T) {
	now := hello{ID: "a", Version: "2.0", Protocol: 3, Oldest: 2}
	for _, tt := range []struct {
		other hello
		want  string
	}{
		{hello{ID: "b", Protocol: 2, Oldest: 1}, ""},
		{hello{ID: "b", Protocol: 4, Oldest: 3}, ""},
		{hello{ID: "b"}, "too old"},
		{hello{ID: "b", Protocol: 5, Oldest: 4}, "too old for peer b"},
	} {
		got := conflict(now, tt.other)
		if tt.want == "" && strings.Contains(got, "too old") || !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %q, want %q", tt.other, got, tt.want)
		}
	}
}
