package raft

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"appliance/raft/lease"
)

// The detector of vanished hosts
//
// Raft notices a silent leader after one to two heartbeat timeouts. The
// detector sends a datagram to every other peer fifteen times per heartbeat, and
// needs little more than a third of one:
//
//	heartbeat / 30      tick      5 ms by default, of which who neither leads nor misses anybody sleeps through every other
//	heartbeat / 15      probe    10 ms   to every peer; the holder's are answered at the next tick
//	heartbeat * 3/10    lease    45 ms   the holder is silent after that: package lease
//	heartbeat * 11/30   silence  55 ms   a peer that has said nothing for so long is suspected
//
// The order of the last two makes failovers quick, not safe: the new leader waits for
// older leases whoever has elected it and why. With lease < silence
// there is nothing left to wait for.
//
// Silence is counted in ticks of this process, not by the clock: of a tick that comes
// late only one tick's time more counts, and all that has arrived is read before
// anybody is judged. So a process that was kept waiting for a core, or
// frozen, accuses nobody when it goes on. And silence that other processes
// keep up with at times only, because their hosts are busy, is learned: a peer is suspected
// after twice the longest pause that it made lately, if that is more than the above.
//
// Nobody is deposed on the word of one. Who suspects the leader asks the
// others, and stands for election only if a majority of the voters, itself
// included, has not heard the leader either. The first in rank does so at
// once, the next a heartbeat later, so that a slow disk of the first does
// not make two candidates, whose votes split. Two of a group of two are a
// majority, so there the detector never elects.
//
// Where a firewall swallows the datagrams, nobody is ever heard, so nobody is
// suspected, and Raft's heartbeat timeout is what is left. The lease is kept
// up by Raft's own messages then, which renew it two to three times in its span.

const (
	ticksPerProbe     = 2
	ticksPerHeartbeat = 30

	// lateTick is how many ticks' silence a late one counts for at most, beside
	// those that it was due after.
	lateTick = 1
	// forgetTicks is the time constant by which a learned pause is forgotten: 10 s by default.
	forgetTicks = 2000
	// blockedAfter is how long a peer has to be connected without any
	// datagram from it until a firewall is suspected.
	blockedAfter = 10 * time.Second
)

// detector is this peer's part in the probing. One goroutine, run, reads the
// socket and counts ticks; others set what it has to know.
type detector struct {
	self      string
	witness   bool
	life      incarnation
	secret    datagramSecret
	heartbeat time.Duration
	now       lease.Clock
	log       *slog.Logger
	world     world

	mu      sync.Mutex
	fellows map[string]*fellow
	last    time.Duration // the latest tick
	rests   int           // after how many ticks the next is due
	due     int           // ticks until the next turn to probe
	since   time.Duration // when this peer's turn to stand began to count, 0: it does not
	asking  bool          // others have been asked about the leader
	stood   uint64        // the last term whose leader was to be replaced
	buf     []byte
}

// world is what the detector knows of raft, and does to it.
type world interface {
	// term is what raft has reached, 0 before it runs.
	term() uint64
	// leads is the term that this peer leads, 0 for none.
	leadsIn() uint64
	// follows is the leader that this peer follows, and in which term.
	follows() (leader string, term uint64)
	// electorate are the voters, the most wanted holder first, the same
	// everywhere.
	electorate() []string
	heardFrom(peer string, term uint64)
	granted(peer string, term uint64, t0 time.Duration)
	// replace has this peer stand for election. It does not wait.
	replace(leader string, term uint64)
	// vanished and back have changed.
	reachChanged()
}

// fellow is another peer as the detector sees it.
type fellow struct {
	Peer
	key  []byte // what it accepts our datagrams by; nil: not known yet
	ours []byte // what its datagrams are accepted by

	life incarnation
	got  uint64 // the highest number from that life
	seq  uint64 // our last number to it
	sent [32]sentProbe

	heard    bool          // there has been a sign of life
	silence  time.Duration // since the last one, in ticks
	pause    time.Duration // the longest that it made lately
	vanished bool
	told     bool // it has been answered since the last turn to probe
	warned   bool
	keyed    time.Duration // when the key came, for warned

	view   map[string]time.Duration // its silences, as of its reply to number viewed
	viewed uint64
	asked  uint64 // the first number of the questions about the leader
}

type sentProbe struct {
	seq, term uint64
	t0        time.Duration
}

func newDetector(self Peer, life incarnation, heartbeat time.Duration, now lease.Clock, log *slog.Logger, w world) *detector {
	d := &detector{
		self: self.ID, witness: self.Witness, life: life, heartbeat: heartbeat, now: now, log: log, world: w,
		fellows: make(map[string]*fellow), buf: make([]byte, 0, maxDatagram),
	}
	rand.Read(d.secret[:])
	d.last, d.rests = now(), 1
	return d
}

func (d *detector) tick() time.Duration { return d.heartbeat / ticksPerHeartbeat }

// suspicion is the silence after which f is suspected.
func (d *detector) suspicion(f *fellow) time.Duration {
	least := d.heartbeat * 11 / 30
	return min(max(least, 2*f.pause), d.heartbeat)
}

// follow sets who the peers are.
func (d *detector) follow(peers []Peer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	listed := make(map[string]bool)
	for _, p := range peers {
		if p.ID == d.self {
			continue
		}
		listed[p.ID] = true
		if f := d.fellows[p.ID]; f == nil || f.Addr != p.Addr {
			d.fellows[p.ID] = &fellow{Peer: p, ours: d.secret.keyOf(p.ID)}
		} else {
			f.Peer = p
		}
	}
	maps.DeleteFunc(d.fellows, func(id string, _ *fellow) bool { return !listed[id] })
}

// accept is the key that peer has told this process to use.
func (d *detector) accept(peer string, key []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.fellows[peer]
	if f == nil || len(key) == 0 {
		return
	}
	if f.key == nil {
		f.keyed = d.now()
	}
	f.key = key
	if !f.heard && !f.warned && d.now()-f.keyed > blockedAfter {
		f.warned = true
		d.log.Warn("no datagrams come from this peer: let UDP through on the peer port, as TCP; until then the loss of a host takes two heartbeats instead of half of one",
			"peer", peer, "address", f.Addr)
	}
}

// ended says that the process of peer has ended: its silence says nothing
// about its host, and its key is of no use to the next one.
func (d *detector) ended(peer string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.fellows[peer]; f != nil {
		*f = fellow{Peer: f.Peer, ours: f.ours}
	}
}

// reach is what is known of peer: whether datagrams come from it, and whether it has
// vanished, as a host does and not only a process.
func (d *detector) reach(peer string) (heard, vanished bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.fellows[peer]
	if f == nil {
		return false, false
	}
	return f.heard && !f.vanished, f.vanished
}

// run probes until ctx ends. It looks for datagrams once per tick instead of
// waiting for each: waking up is what costs, and nobody is in a hurry but who
// suspects the leader.
func (d *detector) run(ctx context.Context, link packets) error {
	defer link.close()
	d.mu.Lock()
	d.last = d.now()
	d.mu.Unlock()
	b := make([]byte, maxDatagram)
	at := time.Now()
	for timer := time.NewTimer(0); ; timer.Reset(time.Until(at)) {
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		d.drain(link, b)
		d.step(link)
		for until := time.Now().Add(d.tick()); d.asks() && time.Now().Before(until) && ctx.Err() == nil; {
			time.Sleep(d.tick() / 5)
			d.drain(link, b)
			d.count(link)
		}
		if at = at.Add(d.rest()); at.Before(time.Now()) {
			at = time.Now() // what was missed is not made up for
		}
	}
}

// rest is how long after the latest tick the next one is due.
func (d *detector) rest() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Duration(d.rests) * d.tick()
}

// pace is after how many ticks this peer has to look again: being scheduled is
// what an idle peer costs. Who leads looks for the answers that keep its lease,
// and who misses somebody sees at once when it is for too long.
func (d *detector) pace() int {
	if d.asking || d.world.leadsIn() != 0 {
		return 1
	}
	for _, f := range d.fellows {
		if f.heard && !f.vanished && f.silence >= d.missed() {
			return 1
		}
	}
	return ticksPerProbe
}

// missed is the silence of somebody whose probes have not come twice.
func (d *detector) missed() time.Duration { return 2 * ticksPerProbe * d.tick() }

// drain reads what has come, before anybody is judged.
func (d *detector) drain(link packets, b []byte) {
	for range 64 {
		n, err := link.readNow(b)
		if err != nil {
			return // there is no more; other errors cost nothing but speed
		}
		d.receive(link, b[:n])
	}
}

// asks tells whether the others have been asked about the leader.
func (d *detector) asks() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asking
}

// count counts the answers of the others.
func (d *detector) count(link packets) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.consider(link, d.now(), false)
}

// step is one tick.
func (d *detector) step(link packets) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	passed := min(now-d.last, time.Duration(d.rests+lateTick)*d.tick())
	d.last = now
	changed := false
	for _, f := range d.fellows {
		f.pause -= f.pause * time.Duration(d.rests) / forgetTicks
		if !f.heard {
			continue
		}
		if f.silence += passed; f.silence >= d.suspicion(f) && !f.vanished {
			f.vanished, changed = true, true
			d.log.Info("a peer has vanished", "peer", f.ID, "silent", f.silence)
		}
	}
	if d.due -= d.rests; d.due <= 0 {
		d.due = ticksPerProbe
		term := d.world.leadsIn()
		for _, f := range d.fellows {
			d.show(link, f, term, now)
		}
	}
	d.consider(link, now, true)
	d.rests = d.pace()
	if changed {
		d.world.reachChanged()
	}
}

// show lets f hear that this peer is there. An answer is wanted by who leads,
// for the lease; by who is not heard yet, to become known; and by who hears
// little. All others need no more than the sign that f sends of itself. The
// caller holds mu.
func (d *detector) show(link packets, f *fellow, term uint64, now time.Duration) {
	told := f.told
	f.told = false
	switch {
	case term != 0 || !f.heard || f.silence > d.missed():
		d.probe(link, f, term, now)
	case !told && f.key != nil:
		f.seq++
		d.send(link, f, datagram{kind: datagramSign, echo: f.got})
	}
}

// probe sends one probe to f. The caller holds mu.
func (d *detector) probe(link packets, f *fellow, term uint64, t0 time.Duration) {
	if f.key == nil {
		return
	}
	f.seq++
	f.sent[f.seq%uint64(len(f.sent))] = sentProbe{seq: f.seq, term: term, t0: t0}
	d.send(link, f, datagram{kind: datagramProbe, echo: f.got, term: term})
}

func (d *detector) send(link packets, f *fellow, m datagram) {
	m.from, m.life, m.to, m.seq = d.self, d.life, f.life, f.seq
	if m.kind == datagramReply {
		for id, o := range d.fellows {
			if o.heard && id != f.ID && len(id) < 100 {
				m.silence = append(m.silence, silenceOf{id, uint16(min(o.silence/time.Millisecond, 1<<16-1))})
			}
		}
	}
	d.buf = m.seal(d.buf[:0], f.key)
	link.write(d.buf, f.Addr) // one that is not sent is one that is lost
}

// receive takes one datagram.
func (d *detector) receive(link packets, b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, err := openDatagram(b, func(from string) []byte {
		if f := d.fellows[from]; f != nil {
			return f.ours
		}
		return nil
	})
	if err != nil {
		return
	}
	f := d.fellows[m.from]
	fresh := m.to == d.life && m.echo > 0 && m.echo <= f.seq && m.echo+freshWindow > f.seq
	switch {
	case m.life == f.life && m.seq <= f.got:
		return // seen, or overtaken
	case fresh:
		f.life, f.got = m.life, m.seq
		d.alive(f)
	case m.life == f.life:
		f.got = m.seq
	}
	switch m.kind {
	case datagramProbe:
		d.answer(link, f, m)
	case datagramReply:
		if !fresh {
			return
		}
		if s := f.sent[m.echo%uint64(len(f.sent))]; s.seq == m.echo && s.term == m.term && m.term != 0 {
			d.world.granted(f.ID, m.term, s.t0)
		}
		f.viewed, f.view = m.echo, make(map[string]time.Duration, len(m.silence))
		for _, s := range m.silence {
			f.view[s.id] = time.Duration(s.ms) * time.Millisecond
		}
	}
}

// answer answers a probe. For a leader's it is a grant: step 1 in package lease.
func (d *detector) answer(link packets, f *fellow, m datagram) {
	var grant uint64
	if m.term != 0 {
		d.world.heardFrom(f.ID, m.term) // first into the ledger,
		if d.world.term() == m.term {   // then look whether the term is still on
			grant = m.term
		}
	}
	if f.key == nil {
		return
	}
	f.told = true
	f.seq++
	was := f.life
	f.life = m.life // the answer is for who asked, whom we may not know yet
	d.send(link, f, datagram{kind: datagramReply, echo: m.seq, term: grant})
	f.life = was
}

// alive notes a sign of life. The caller holds mu.
func (d *detector) alive(f *fellow) {
	if f.vanished {
		d.log.Info("a peer is back", "peer", f.ID)
		d.world.reachChanged()
	}
	// A long outage is none of the pauses that a busy host makes.
	if f.heard && f.silence < 2*d.heartbeat {
		f.pause = max(f.pause, f.silence)
	}
	if f.warned {
		d.log.Info("datagrams come from this peer now", "peer", f.ID)
	}
	f.heard, f.vanished, f.warned, f.silence = true, false, false, 0
}

// consider replaces a leader that a majority does not hear. The caller holds mu.
func (d *detector) consider(link packets, now time.Duration, ask bool) {
	leader, term := d.world.follows()
	f := d.fellows[leader]
	if f == nil || !f.vanished || term <= d.stood {
		d.since, d.asking = 0, false
		for _, o := range d.fellows {
			o.asked = 0
		}
		return
	}
	d.asking = true
	voters := d.world.electorate()
	agree := 0
	for _, id := range voters {
		o := d.fellows[id]
		switch {
		case id == d.self:
			agree++
		case o == nil || id == leader || o.vanished:
		default:
			if o.asked == 0 {
				o.asked = o.seq + 1
			}
			if o.viewed >= o.asked && o.view[leader] >= d.suspicion(f)-2*ticksPerProbe*d.tick() {
				agree++
			}
			if ask {
				d.probe(link, o, 0, now)
			}
		}
	}
	if !slices.Contains(voters, d.self) || agree <= len(voters)/2 {
		d.since = 0
		return
	}
	if d.since == 0 {
		d.since = now
	}
	if rank := d.rank(voters, leader); rank < 0 || now-d.since < time.Duration(rank)*d.heartbeat {
		return
	}
	d.stood, d.asking = term, false
	d.world.replace(leader, term)
}

// rank is this peer's place among those that could hold instead of leader; -1: none.
func (d *detector) rank(voters []string, leader string) int {
	if d.witness {
		return -1
	}
	rank := 0
	for _, id := range voters {
		o := d.fellows[id]
		switch {
		case id == d.self:
			return rank
		case id == leader || o == nil || o.Witness || o.vanished || !o.heard:
		default:
			rank++
		}
	}
	return -1
}
