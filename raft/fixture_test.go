package raft

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"appliance/raft/auth"
	"appliance/raft/peerport"
	"appliance/raft/settings"
)

const ms = time.Millisecond

func TestMain(m *testing.M) {
	if os.Getenv("RAFT_TEST_CHILD") != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

// wires is the network between the peers of a test. A cut direction holds back what is sent, as a partition
// does; dials across it hang until their deadline.
type wires struct {
	mu    sync.Mutex
	cut   map[[2]string]bool
	delay time.Duration
	noUDP bool // a firewall that knows TCP only
	noNew bool // no new connection comes about
	addrs map[netip.AddrPort]string
}

func newWires(peers []Peer) *wires {
	w := &wires{cut: make(map[[2]string]bool), addrs: make(map[netip.AddrPort]string)}
	for _, p := range peers {
		w.addrs[p.Addr] = p.ID
	}
	return w
}

func (w *wires) set(from, to string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[[2]string{from, to}] = cut
}

func (w *wires) isolate(id string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, other := range w.addrs {
		w.cut[[2]string{id, other}], w.cut[[2]string{other, id}] = cut, cut
	}
}

func (w *wires) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.cut)
}

func (w *wires) isCut(from, to string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut[[2]string{from, to}]
}

func (w *wires) isOld() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.noNew
}

func (w *wires) dial(from string) func(context.Context, netip.AddrPort) (net.Conn, error) {
	return func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
		w.mu.Lock()
		to := w.addrs[addr]
		w.mu.Unlock()
		for w.isCut(from, to) || w.isCut(to, from) || w.isOld() {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: w.ip(from)}}
		c, err := d.DialContext(ctx, "tcp", addr.String())
		if err != nil {
			return nil, err
		}
		return &wire{Conn: c, w: w, from: from, to: to, closed: make(chan struct{})}, nil
	}
}

func (w *wires) ip(id string) net.IP {
	w.mu.Lock()
	defer w.mu.Unlock()
	for addr, of := range w.addrs {
		if of == id {
			return addr.Addr().AsSlice()
		}
	}
	return nil
}

// wire is the dialling end of one connection; it stands for both directions.
type wire struct {
	net.Conn
	w        *wires
	from, to string
	once     sync.Once
	closed   chan struct{}
	rd       atomic.Int64

	mu    sync.Mutex
	queue []byte // written while the direction was cut
	busy  bool   // flush runs
}

func (c *wire) NetConn() net.Conn { return c.Conn }

func (c *wire) wait(from, to string, deadline *atomic.Int64) error {
	c.w.mu.Lock()
	delay := c.w.delay
	c.w.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	for c.w.isCut(from, to) {
		if d := deadline.Load(); d != 0 && time.Now().UnixNano() > d {
			return os.ErrDeadlineExceeded
		}
		select {
		case <-c.closed:
			return net.ErrClosed
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

func (c *wire) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		return n, err
	}
	if werr := c.wait(c.to, c.from, &c.rd); werr != nil {
		return 0, werr
	}
	return n, err
}

// Write never waits for a cut to heal, as writing to a socket does not.
func (c *wire) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.busy && !c.w.isCut(c.from, c.to) {
		return c.Conn.Write(b)
	}
	c.queue = append(c.queue, b...)
	if !c.busy {
		c.busy = true
		go c.flush()
	}
	return len(b), nil
}

func (c *wire) flush() {
	err := c.wait(c.from, c.to, new(atomic.Int64))
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.Conn.Write(c.queue)
	}
	c.queue, c.busy = nil, false
}

func (c *wire) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func nano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func (c *wire) SetDeadline(t time.Time) error {
	c.rd.Store(nano(t))
	return c.Conn.SetDeadline(t)
}

func (c *wire) SetReadDeadline(t time.Time) error {
	c.rd.Store(nano(t))
	return c.Conn.SetReadDeadline(t)
}

// judge checks that nobody answers after a peer of a later term has.
type judge struct {
	highest    atomic.Uint64
	answers    atomic.Uint64
	violations atomic.Uint64
}

// verdict fails the test if anybody has answered too late.
func (j *judge) verdict(t *testing.T) {
	if v := j.violations.Load(); v > 0 {
		t.Errorf("a peer answered %d times after a peer of a later term had", v)
	}
}

// watch asks may over and over during one tenure.
func (j *judge) watch(ctx context.Context, term uint64, may func() bool) {
	for ctx.Err() == nil {
		j.ask(term, may)
		time.Sleep(200 * time.Microsecond)
	}
}

func (j *judge) ask(term uint64, may func() bool) {
	before := j.highest.Load()
	if !may() {
		return
	}
	if before > term {
		j.violations.Add(1)
	}
	j.answers.Add(1)
	for {
		h := j.highest.Load()
		if h >= term || j.highest.CompareAndSwap(h, term) {
			return
		}
	}
}

// node is one peer that runs in this process.
type node struct {
	*Group
	cancel context.CancelFunc
	done   chan error
	led    chan error
	holds  atomic.Bool
}

func (n *node) stop(t *testing.T) {
	t.Helper()
	n.cancel()
	if err := <-n.done; err != nil {
		t.Errorf("%s: Run: %v", n.cfg.ID, err)
	}
	if err := <-n.led; err != nil {
		t.Errorf("%s: Lead: %v", n.cfg.ID, err)
	}
}

// lawfully is whether the node may answer now.
func (n *node) lawfully() bool { s := n.Status(); return s.Holder && s.Lease }

// bench is a whole group under test.
type bench struct {
	t     *testing.T
	peers []Peer
	wires *wires
	key   auth.Key
	judge judge
	dirs  map[string]string
	nodes map[string]*node
	tweak func(*Config)
}

func newBench(t *testing.T, n int) *bench {
	t.Helper()
	b := &bench{t: t, key: auth.GenerateKey(), dirs: make(map[string]string), nodes: make(map[string]*node)}
	for i := range n {
		b.peers = append(b.peers, Peer{ID: string(rune('a' + i)), Addr: freeAddr(t, i+1)})
	}
	b.wires = newWires(b.peers)
	for _, p := range b.peers {
		b.dirs[p.ID] = t.TempDir()
	}
	if testing.Short() {
		t.Skip("a group elects in real time, and takes its time; run without -short")
	}
	t.Cleanup(func() {
		b.wires.heal()
		var wg sync.WaitGroup
		for _, n := range b.nodes {
			wg.Go(func() { n.stop(t) })
		}
		wg.Wait()
		b.judge.verdict(t)
	})
	return b
}

// freeAddr finds a port that is free now. Another process could take it before it is used, but only these
// tests use 127.0.0.x.
func freeAddr(t *testing.T, host int) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.%d.%d:0", os.Getpid()%250+1, host))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func (b *bench) config(id string) Config {
	c := Config{
		ID: id, Peers: b.peers, DataDir: b.dirs[id], Security: auth.Security{Keys: []auth.Key{b.key}},
		Log:     slog.New(slog.NewTextHandler(b.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})).With("on", id),
		network: peerport.Network{Dial: b.wires.dial(id)}, packets: b.wires.packets(id), foundingPatience: 500 * ms,
	}
	if b.tweak != nil {
		b.tweak(&c)
	}
	return c
}

// listed are the peers of the bench.
func (b *bench) listed() []auth.Listed {
	var all []auth.Listed
	for _, p := range b.peers {
		all = append(all, auth.Listed{ID: p.ID, Addr: p.Addr})
	}
	return all
}

func (b *bench) start(ids ...string) {
	b.t.Helper()
	for _, id := range ids {
		b.run(b.config(id))
	}
}

func (b *bench) run(c Config) *node {
	b.t.Helper()
	return b.runUnder(&b.judge, c)
}

// runApart runs a peer of another group. It has a judge of its own, because terms of two groups cannot be
// compared.
func (b *bench) runApart(c Config) *node {
	b.t.Helper()
	j := new(judge)
	b.t.Cleanup(func() { j.verdict(b.t) })
	return b.runUnder(j, c)
}

func (b *bench) runUnder(j *judge, c Config) *node {
	b.t.Helper()
	var n *node
	started := make(chan struct{})
	n = b.holdWith(c, func(ctx context.Context, may func() bool) {
		<-started
		n.mu.Lock()
		term := n.tenure.term
		n.mu.Unlock()
		j.watch(ctx, term, may)
	})
	close(started)
	return n
}

// holdWith runs a peer with a hold of its own.
func (b *bench) holdWith(c Config, hold func(ctx context.Context, may func() bool)) *node {
	b.t.Helper()
	g, err := Open(c)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &node{Group: g, cancel: cancel, done: make(chan error, 1), led: make(chan error, 1)}
	go func() { n.done <- g.Run(ctx) }()
	go func() {
		n.led <- g.Lead(ctx, func(ctx context.Context, may func() bool) error {
			n.holds.Store(true)
			defer n.holds.Store(false)
			hold(ctx, may)
			return nil
		})
	}()
	b.nodes[c.ID] = n
	return n
}

func (b *bench) stop(ids ...string) {
	b.t.Helper()
	for _, id := range ids {
		b.nodes[id].stop(b.t)
		delete(b.nodes, id)
	}
}

// eventually waits for something that has to become true, however slow the machine is.
func (b *bench) eventually(what string, ok func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(3 * time.Minute) // a starved machine is no failure
	for !ok() {
		if time.Now().After(deadline) {
			for id, n := range b.nodes {
				b.t.Logf("%s: %+v", id, n.Status())
			}
			b.t.Fatalf("still not: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// holder waits for a holder among ids (any, if none are named) and returns it.
func (b *bench) holder(ids ...string) string {
	b.t.Helper()
	var found string
	b.eventually(fmt.Sprintf("a holder among %v", ids), func() bool {
		for id, n := range b.nodes {
			if (len(ids) == 0 || contains(ids, id)) && n.lawfully() {
				found = id
				return true
			}
		}
		return false
	})
	return found
}

func contains(ids []string, id string) bool {
	for _, x := range ids {
		if x == id {
			return true
		}
	}
	return false
}

// named waits until every running node has the group's name.
func (b *bench) named() {
	b.t.Helper()
	b.eventually("the group's name everywhere", func() bool {
		for _, n := range b.nodes {
			if n.settings.Get(settings.ClusterKey) == "" {
				return false
			}
		}
		return true
	})
}

// voters waits until every running node counts n voters, all caught up.
func (b *bench) voters(n int) {
	b.t.Helper()
	b.eventually(fmt.Sprintf("%d voters everywhere", n), func() bool {
		for _, node := range b.nodes {
			if node.running() == nil || len(node.Group.voters(nil)) != n {
				return false
			}
		}
		return true
	})
}
