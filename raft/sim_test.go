package raft

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"appliance/raft/auth"
	"appliance/raft/detector"
	"appliance/raft/lease"
	"appliance/raft/peerport"
	"appliance/raft/store"
)

// The tests here run whole groups of the real code in virtual time, on a simulated network and disk, and do to them
// what the world does. A seed fixes the faults and the order in which random numbers are taken; which of two goroutines
// that may both run goes first is up to the scheduler, so a seed is played again several times to see the same.

var (
	simSeed  = flag.Uint64("sim.seed", 0, "play only this `seed`")
	simHours = flag.Float64("sim.hours", 0, "simulate that many `hours`")
)

// sim is one world.
type sim struct {
	t     *testing.T
	seed  uint64
	rnd   *rand.Rand // of the schedule; the network has its own
	net   *simNet
	hosts []*simHost
	peers []Peer
	key   auth.Key
	root  string
	tweak func(*Config)
	hush  atomic.Bool   // no new settings for a while
	slow  time.Duration // how much longer an election may take, for disks
	// founding says that there may be several groups for a while.
	founding bool

	procs  sync.WaitGroup // the judge, and what runs for a host
	called chan struct{}  // the judge is

	mu      sync.Mutex
	dirs    int
	lines   []string // the latest
	failed  bool
	acked   map[string]string
	begun   time.Time
	age     time.Duration // at the end
	quiet   time.Time     // since when nobody answers; the judge's own
	longest time.Duration // without a holder although a majority could talk; the judge's own
	calm    time.Time     // since when packets are neither slow nor lost; guarded by net.mu
	tenures int
	disks   int       // lost
	whole   time.Time // since when all peers that found groups reach each other; zero: they do not
}

var durable sync.Once

// simBound is within which time a majority that can talk has a holder.
const simBound = 10 * time.Second

// TestSim has groups of three and of five live through everything, in virtual time.
func TestSim(t *testing.T) {
	budget, virtual := 15*time.Second, time.Duration(0)
	if testing.Short() {
		budget = 5 * time.Second
	}
	limit := time.Duration(*simHours * float64(time.Hour))
	// Half of what TLS costs in a world without idle connections is the key exchange against quantum computers.
	t.Setenv("GODEBUG", "tlsmlkem=0")
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	var mu sync.Mutex
	var worlds atomic.Uint64
	began, tenures, acked, disks, longest := time.Now(), 0, 0, 0, time.Duration(0)
	var enough atomic.Bool // told from outside: inside of a bubble there is no real time
	if limit == 0 {
		defer time.AfterFunc(budget, func() { enough.Store(true) }).Stop()
	}
	t.Run("worlds", func(t *testing.T) {
		for i := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				for more := true; more && !t.Failed(); {
					seed := worlds.Add(1) // the same in each test run
					switch {
					case *simSeed != 0:
						seed = *simSeed
					case limit > 0:
						seed = rand.Uint64()
					}
					s := simulate(t, seed, 3+2*int(seed%2), func(s *sim) { s.live(time.Minute, &enough) })
					mu.Lock()
					virtual, tenures, acked = virtual+s.age, tenures+s.tenures, acked+len(s.acked)
					disks += s.disks
					longest = max(longest, s.longest)
					more = virtual < limit || limit == 0 && !enough.Load()
					mu.Unlock()
				}
			})
		}
	})
	t.Logf("%d worlds, %v of groups in %v: %d tenures, %d settings acknowledged, %d disks lost; no holder for %v at most "+
		"while a majority could talk", worlds.Load(), virtual.Round(time.Second), time.Since(began).Round(time.Second),
		tenures, acked, disks, longest.Round(ms))
}

// simulate plays a world in a bubble of its own. It returns what was seen.
func simulate(t *testing.T, seed uint64, n int, play func(s *sim)) (s *sim) {
	t.Helper()
	if raceDetector {
		t.Skip("the race detector makes it too slow; the unit stage runs it again without")
	}
	durable.Do(letTimePass)
	root, err := os.MkdirTemp("/dev/shm", "appliance-sim-")
	if err != nil {
		root = t.TempDir()
	}
	defer os.RemoveAll(root)
	defer s.forgiveHandOver()
	synctest.Test(t, func(t *testing.T) {
		s = newSim(t, seed, n, root)
		done := make(chan struct{})
		s.procs.Go(func() { s.judge(done) })
		play(s)
		close(done)
		for _, h := range s.hosts {
			if p := h.proc; p != nil {
				h.kill()
				p.cancel()
			}
		}
		s.age = time.Since(s.begun)
		s.procs.Wait()
	})
	return s
}

// forgiveHandOver takes one thing for no error that goroutines of the world are left at its end: if hashicorp/raft hands
// over while replication to the successor ends, two goroutines wait for each other for ever (leadershipTransfer).
func (*sim) forgiveHandOver() {
	r := recover()
	if r == nil {
		return
	}
	stacks := make([]byte, 8<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	if !strings.Contains(fmt.Sprint(r), "blocked goroutines remain") ||
		!strings.Contains(string(stacks), "hashicorp/raft.(*Raft).leadershipTransfer") {
		panic(r)
	}
}

func newSim(t *testing.T, seed uint64, n int, root string) *sim {
	rnd := rand.New(rand.NewPCG(seed, 1))
	s := &sim{t: t, seed: seed, rnd: rnd, net: newSimNet(rand.New(rand.NewPCG(seed, 2))), key: auth.GenerateKey(),
		root: root, acked: make(map[string]string), called: make(chan struct{}, 1), begun: time.Now(), quiet: time.Now()}
	s.net.base = time.Duration(50+rnd.IntN(500)) * time.Microsecond
	s.net.spread = time.Duration(50+rnd.IntN(2000)) * time.Microsecond
	s.net.copies = rnd.Float64() * 0.03
	s.net.say = s.say
	for i := range n {
		h := &simHost{net: s.net, id: string(rune('a' + i)), rate: 0.996 + 0.008*rnd.Float64(), born: time.Now(),
			at:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 7000),
			news: make(chan struct{}, 1), up: true, fsync: 2 * ms, changed: time.Now()}
		s.hosts = append(s.hosts, h)
		s.net.hosts[h.at.Addr()] = h
		s.peers = append(s.peers, Peer{ID: h.id, Addr: h.at})
	}
	return s
}

// say adds a line to what is shown if the world fails.
func (s *sim) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf("%11.4f  ", time.Since(s.begun).Seconds())+fmt.Sprintf(format, args...))
	if len(s.lines) > 600 {
		s.lines = slices.Delete(s.lines, 0, 200)
	}
}

// wrong reports what must never be.
func (s *sim) wrong(format string, args ...any) {
	s.say("WRONG: "+format, args...)
	s.mu.Lock()
	first, lines := !s.failed, slices.Clone(s.lines)
	s.failed = true
	s.mu.Unlock()
	if first {
		s.t.Errorf("seed %d, after %v: %s; the last that happened:\n%s", s.seed, time.Since(s.begun),
			fmt.Sprintf(format, args...), strings.Join(lines, "\n"))
	}
}

func (s *sim) broken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Write takes the log of the peers.
func (s *sim) Write(line []byte) (int, error) {
	s.say("%s", strings.TrimSpace(string(line)))
	return len(line), nil
}

func (s *sim) newDir(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs++
	return filepath.Join(s.root, fmt.Sprint(id, s.dirs))
}

func (s *sim) host(id string) *simHost {
	return s.hosts[slices.IndexFunc(s.hosts, func(h *simHost) bool { return h.id == id })]
}

func (s *sim) config(p *simProc) Config {
	opts := &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}
	c := Config{
		ID: p.host.id, Peers: s.peers, DataDir: p.dir, Security: auth.Security{Keys: []auth.Key{s.key}},
		Log:     slog.New(slog.NewTextHandler(s, opts)).With("on", p.host.id),
		network: peerport.Network{Dial: p.dial, Listen: p.listen},
		packets: func(netip.AddrPort) (detector.Packets, error) { return p.packets(), nil },
		kernels: func([8]byte) detector.Kernels { return &simKernels{p: p} },
		disk:    func(d store.Disk) store.Disk { return simDisk{d, p} },
		now:     p.clock,
		sources: p.host.sources,
	}
	if s.tweak != nil {
		s.tweak(&c)
	}
	return c
}

// boot starts a process of the host with what is in dir, and another one each time that it ends by itself.
func (s *sim) boot(h *simHost, dir string) *simProc {
	h.powerOn()
	ctx, cancel := context.WithCancel(context.Background())
	p := &simProc{host: h, dir: dir, born: time.Now(), cancel: cancel, call: s.call, over: make(chan struct{})}
	s.net.mu.Lock()
	h.proc, h.inbox, h.changed = p, nil, time.Now()
	s.net.mu.Unlock()
	s.say("%s begins", h.id)
	s.procs.Go(func() {
		defer close(p.over)
		for ctx.Err() == nil && !p.dead.Load() {
			err := s.run(ctx, p)
			if p.dead.Load() {
				return
			}
			s.say("%s: ended: %v", h.id, err)
			if err != nil && !errors.Is(err, ErrYielded) && !errors.Is(err, ErrHeartbeat) && !errors.Is(err, ErrTwice) {
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		}
	})
	return p
}

func (s *sim) run(ctx context.Context, p *simProc) error {
	g, err := Open(s.config(p))
	if err != nil {
		return err
	}
	p.group.Store(g)
	var lead sync.WaitGroup
	lead.Go(func() {
		g.Lead(ctx, func(ctx context.Context, may func() bool) error {
			p.may.Store(&may)
			s.mu.Lock()
			s.tenures++
			s.mu.Unlock()
			s.check()
			g.mu.Lock()
			term := g.tenure.term
			g.mu.Unlock()
			s.answer(ctx, p, term, may)
			p.yield(atEnd)
			s.check()
			p.may.Store(nil)
			return nil
		})
	})
	err = g.Run(ctx)
	lead.Wait()
	return err
}

// stop has the process leave in order.
func (s *sim) stop(h *simHost) string {
	p := h.proc
	s.say("%s is asked to leave", h.id)
	p.cancel()
	<-p.over
	h.kill()
	return p.dir
}

// crash ends the process of h and returns what is on its disk.
func (s *sim) crash(h *simHost, power bool) (dir string) {
	dir = s.newDir(h.id)
	p := h.proc
	s.say("%s: crash, power off: %v", h.id, power)
	var end func() *simProc = h.kill
	if power {
		end = h.powerOff
	}
	end()
	if err := p.copyTo(dir); err != nil {
		s.t.Fatal(err)
	}
	p.cancel() // what is left of it ends, and reaches nobody
	s.procs.Go(func() { <-p.over; os.RemoveAll(p.dir) })
	return dir
}

// judge looks at the world all the time.
func (s *sim) judge(done <-chan struct{}) {
	tick := time.NewTicker(ms)
	defer tick.Stop()
	for n := 0; !s.broken(); {
		select {
		case <-done:
			return
		case <-s.called:
		case <-tick.C:
			if n++; n%20 == 0 && !s.founding {
				s.checkService()
			}
		}
		s.check()
	}
}

// call has the judge look at this moment.
func (s *sim) call() {
	select {
	case s.called <- struct{}{}:
	default:
	}
}

// check is that at most one may answer, with a majority behind it. Of groups that were founded apart each has one,
// until they meet.
func (s *sim) check() {
	began := time.Now()
	var held []string
	groups := make(map[string]bool)
	for _, h := range s.hosts {
		s.net.mu.Lock()
		p := h.proc
		s.net.mu.Unlock()
		if p == nil || p.dead.Load() {
			continue
		}
		if !p.allowed() || p.dead.Load() {
			continue
		}
		held = append(held, h.id)
		groups[p.group.Load().cluster()] = true
		if voters := p.group.Load().voters(nil); !s.reached(h, voters) {
			s.wrong("%s may answer, and has not reached a majority of %v within a lease", h.id, voters)
		}
	}
	s.mu.Lock()
	met := !s.founding || !s.whole.IsZero() && time.Since(s.whole) > simBound
	s.mu.Unlock()
	if !time.Now().Equal(began) {
		return // a lock of a paused process was waited for: this was not one moment
	}
	if len(held) > 1 && (met || len(groups) < len(held) && !groups[""]) {
		s.wrong("%v may answer at once", held)
	}
}

// reached says that h can have got answers of a majority of the voters within the length of a lease.
func (s *sim) reached(h *simHost, voters []string) bool {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	span := lease.Stretch(DefaultHeartbeat*3/10) + ms
	n := 0
	for _, v := range voters {
		o := s.host(v)
		lost := func(from, to string) bool {
			return s.net.isCut(from, to) && time.Since(s.net.turned[[2]string{from, to}]) > span
		}
		if v == h.id || !lost(h.id, v) && !lost(v, h.id) && (o.proc != nil || time.Since(o.changed) <= span) {
			n++
		}
	}
	return n > len(voters)/2
}

// checkService is that a majority that can talk for long enough has a holder.
func (s *sim) checkService() {
	procs := s.running()
	able := make(map[string]bool)
	patience := time.Duration(0) // of an election, while a disk is known to be slow: a thread that stood still may have
	voters := make(map[string]bool)
	var newest uint64
	for id, p := range procs {
		g := p.group.Load()
		if p.allowed() {
			s.quiet = time.Now()
			return
		}
		if g == nil || g.running() == nil {
			continue
		}
		able[id] = g.withholds() == nil
		patience = max(patience, g.Patience())
		if i := g.raft.CommitIndex(); i >= newest {
			newest = i
			clear(voters)
			for _, v := range g.voters(nil) {
				voters[v] = true
			}
		}
	}
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	for set := range 1 << len(s.hosts) {
		since, members := later(s.quiet, s.calm), 0
		for i, h := range s.hosts {
			if set>>i&1 == 0 {
				continue
			}
			if members++; !able[h.id] || !voters[h.id] {
				since = time.Now()
				break
			}
			since = later(since, h.changed, time.Unix(0, procs[h.id].until.Load()), time.Unix(0, procs[h.id].late.Load()))
			for j, o := range s.hosts {
				way := [2]string{h.id, o.id}
				if set>>j&1 == 0 || i == j {
					continue
				}
				if since = later(since, s.net.turned[way]); s.net.cuts[way] {
					since = time.Now()
				}
			}
		}
		if members <= len(voters)/2 {
			continue
		}
		took := time.Since(since)
		s.longest = max(s.longest, took)
		// A round of raft takes one to two of its timeouts. The first may have a candidate that lacks an entry, the
		// second two at once.
		if took > simBound+s.slow+3*2*patience {
			s.wrong("nobody answers although a majority of %v could talk for %v", slices.Sorted(maps.Keys(voters)), took)
			return
		}
	}
}

func (s *sim) running() map[string]*simProc {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	procs := make(map[string]*simProc)
	for _, h := range s.hosts {
		if h.proc != nil {
			procs[h.id] = h.proc
		}
	}
	return procs
}

func later(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

// holder is who may answer now, or nil.
func (s *sim) holder() *simHost {
	for id, p := range s.running() {
		if p.allowed() {
			return s.host(id)
		}
	}
	return nil
}

// await waits until ok, and says what is wrong if that takes too long.
func (s *sim) await(what string, bound time.Duration, ok func() bool) bool {
	for began := time.Now(); !ok(); time.Sleep(5 * ms) {
		if s.broken() {
			return false
		}
		if time.Since(began) > bound {
			for id, p := range s.running() {
				if g := p.group.Load(); g != nil {
					s.say("%s: %+v", id, g.Status())
				}
			}
			s.wrong("still not after %v: %s", bound, what)
			return false
		}
	}
	return true
}

// complete says that all hosts run as voters of one group, and that one of them answers.
func (s *sim) complete() bool {
	clusters := make(map[string]bool)
	procs := s.running()
	for _, p := range procs {
		g := p.group.Load()
		if g == nil || g.running() == nil || len(g.voters(nil)) != len(s.hosts) || g.withholds() != nil {
			return false
		}
		clusters[g.cluster()] = true
	}
	return len(procs) == len(s.hosts) && len(clusters) == 1 && !clusters[""] && s.holder() != nil
}
