package detector

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	ticksPerHeartbeat = 30
	ticksPerPulse     = 30

	ticksPerProbe = 6  // the leader's, while each is answered
	ticksInHaste  = 4  // the same where this process or a peer was late lately
	ticksPerDoubt = 2  // probes of those whose answer is missing
	ticksPerSign  = 20 // between peers that do not depend on each other
	ticksToMiss   = 8  // a probe is late
	ticksToAgree  = 3  // others may have heard a lost leader as much later than this peer

	// patienceForProcesses is for how many heartbeats a silent process is waited for while its host answers.
	patienceForProcesses = 3

	// lateTick is how many ticks of silence a late tick adds at most to those after which it was due.
	lateTick = 1
	// forgetTicks is the time constant by which a learned pause is forgotten: 10 s by default.
	forgetTicks = 2000
	// blockedAfter is how long a peer has to be connected without sending any datagram until a firewall is
	// suspected.
	blockedAfter = 10 * time.Second
)

// A Detector is this peer's part in the probing. One goroutine, Run, reads the socket and counts ticks;
// others tell it what it needs to know.
type Detector struct {
	self      string
	witness   bool
	process   [8]byte
	secret    datagramSecret
	heartbeat time.Duration
	now       func() time.Duration
	log       *slog.Logger
	elections Elections

	// kernels is nil while nobody is silent; openKernels may be nil
	kernels     Kernels
	openKernels func(process [8]byte) Kernels

	mu     sync.Mutex
	peers  map[string]*contact
	last   time.Duration // the latest look
	passed time.Duration // what counts of the time before it
	rests  time.Duration // after it the next one is due, if nothing comes before
	late   time.Duration // the longest that a look of this process was late lately
	reaps  bool          // the next look reads the answers to several probes at once
	pulsed time.Duration // the latest Pulse
	askedK time.Duration // when kernels were asked last
	since  time.Duration // when this peer's turn to stand began to count, 0: it does not
	asking bool          // others have been asked about the leader
	stood  uint64        // the last term whose leader was to be replaced
	waits  time.Duration // until then another election has its chance
	buf    []byte
}

// A Host is what the detector needs to know of a peer.
type Host struct {
	ID      string
	Addr    netip.AddrPort
	Witness bool
}

// Elections are what the detector knows of raft, and does to it. No method may block.
type Elections interface {
	// Term is what raft has reached, 0 before it runs.
	Term() uint64
	// LeadsIn is the term that this peer leads, 0 for none.
	LeadsIn() uint64
	// Follows is the leader that this peer follows, and in which term.
	Follows() (leader string, term uint64)
	// Electorate are the voters, the most wanted holder first, the same everywhere.
	Electorate() []string
	// HeardFrom notes a message that may become a grant, and says whether it may; Granted counts a grant of peer
	// at t0.
	HeardFrom(peer string, term uint64) (may bool)
	Granted(peer string, term uint64, t0 time.Duration)
	// Refresh has raft take a probe of leader in term for a heartbeat. It says whether raft needs no other, and whether
	// that is because it waits for the disk.
	Refresh(leader string, term uint64) (kept, writes bool)
	// Refreshed says that peer's raft needs no other heartbeat of term for now, and whether it waits for its disk.
	Refreshed(peer string, term uint64, writes bool)
	// Pulse is called every six tenths of a heartbeat while this peer leads, and at once when it has missed another.
	Pulse(missed bool)
	// Replace has this peer stand for election, unless another election goes on: then it says false.
	Replace(leader string, term uint64) bool
	// Patience is how long an election takes because of the disks, 0 if they are fast.
	Patience() time.Duration
	// ReachChanged says that Reach has changed for some peer.
	ReachChanged()
}

// contact is what the detector knows of another peer.
type contact struct {
	Host
	key  *macKey // what it accepts our datagrams by; nil: not known yet
	ours *macKey // what its datagrams are accepted by

	process [8]byte
	got     uint64 // the highest number from that process
	seq     uint64 // our last number to it
	sent    [32]sentProbe

	heard    bool          // there has been a sign of life
	silence  time.Duration // since the last one, as this process counts
	pause    time.Duration // the longest that it made lately, beyond what is usual
	usual    time.Duration // the silence that says nothing: it has no reason to send
	missing  bool          // it has been said that it is missed
	vanished bool
	hasty    bool          // clients wait for its process
	mute     time.Duration // since its host answered last, in ticks; noAnswer: not in this silence
	asks     uint16        // how often its host has been asked
	shown    time.Duration // when it was sent something last
	probed   uint64        // the number of the latest probe
	answered uint64        // the highest number of a probe that was answered
	warned   bool
	keyed    time.Duration // when the key came, for warned

	view   map[string]time.Duration // the silences that its reply to number viewed told
	viewed uint64
	asked  uint64 // the first number of the questions about the leader
}

// noAnswer is the silence of a host that has not been heard of.
const noAnswer = time.Duration(math.MaxInt64)

type sentProbe struct {
	seq, term uint64
	t0        time.Duration
}

// New returns the detector of self. Process is a random number that tells this process from others of the
// peer.
func New(self Host, process [8]byte, heartbeat time.Duration, now func() time.Duration, log *slog.Logger) *Detector {
	d := &Detector{
		self: self.ID, witness: self.Witness, process: process, heartbeat: heartbeat, now: now, log: log,
		peers: make(map[string]*contact), buf: make([]byte, 0, maxDatagram),
	}
	rand.Read(d.secret[:])
	d.last, d.rests = now(), d.tick()
	return d
}

func (d *Detector) tick() time.Duration                 { return d.ticks(1) }
func (d *Detector) ticks(n time.Duration) time.Duration { return d.heartbeat * n / ticksPerHeartbeat }

// leastSuspicion is the silence after which a peer that made no pause lately is suspected.
func leastSuspicion(heartbeat time.Duration) time.Duration { return heartbeat * 11 / ticksPerHeartbeat }

// Suspicion is about how long it takes until a peer whose host is lost is suspected.
func Suspicion(heartbeat time.Duration) time.Duration {
	return leastSuspicion(heartbeat) + heartbeat/ticksPerHeartbeat
}

// suspicion is the unusual silence after which c is suspected.
func (d *Detector) suspicion(c *contact) time.Duration {
	return min(max(leastSuspicion(d.heartbeat), 2*c.pause), d.heartbeat)
}

// unusual is the silence of c beyond what is usual.
func (c *contact) unusual() time.Duration { return max(0, c.silence-c.usual) }

// Follow sets who the peers are.
func (d *Detector) Follow(hosts []Host) {
	d.mu.Lock()
	defer d.mu.Unlock()
	listed := make(map[string]bool)
	for _, p := range hosts {
		if p.ID == d.self {
			continue
		}
		listed[p.ID] = true
		if c := d.peers[p.ID]; c == nil || c.Addr != p.Addr {
			d.peers[p.ID] = &contact{Host: p, ours: newMacKey(d.secret.keyOf(p.ID))}
		} else {
			c.Host = p
		}
	}
	maps.DeleteFunc(d.peers, func(id string, _ *contact) bool { return !listed[id] })
}

// Accept stores the key that this process has to use towards peer.
func (d *Detector) Accept(peer string, key []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.peers[peer]
	if c == nil || len(key) == 0 {
		return
	}
	if c.key == nil {
		c.keyed = d.now()
	}
	if c.key == nil || !slices.Equal(c.key.key, key) {
		c.key = newMacKey(key)
	}
	if !c.heard && !c.warned && d.now()-c.keyed > blockedAfter {
		c.warned = true
		d.log.Warn("no datagrams come from this peer: let UDP through on the peer port, as TCP; until then the "+
			"loss of a host takes four heartbeats or more instead of half of one",
			"peer", peer, "address", c.Addr)
	}
}

// Serves says whether clients wait for the process of peer. They do not where the kernel moves their packets: there is
// time for a process that is silent while its host answers.
func (d *Detector) Serves(peer string, serves bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.peers[peer]; c != nil {
		c.hasty = serves
	}
}

// KeyFor is the key that peer has to use towards this process.
func (d *Detector) KeyFor(peer string) []byte { return d.secret.keyOf(peer) }

// Ended says that the process of peer has ended: its silence says nothing about its host, and its key does
// not fit the next process.
func (d *Detector) Ended(peer string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.peers[peer]; c != nil {
		*c = contact{Host: c.Host, ours: c.ours}
	}
}

// Reach says whether datagrams come from peer, and whether its host, and not only a process, has vanished.
func (d *Detector) Reach(peer string) (heard, vanished bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.peers[peer]
	if c == nil {
		return false, false
	}
	return c.heard && !c.vanished, c.vanished
}

// Received is the number of the latest datagram of peer's present process, 0 for none.
func (d *Detector) Received(peer string) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.peers[peer]; c != nil {
		return c.got
	}
	return 0
}

// Run probes until ctx ends. It looks when a datagram has come, and when something is due. Wake-ups are what an idle peer
// costs: what is no peer's datagram wakes it once, and is then left until the next thing is due. Kernels, if it is not
// nil, opens what asks hosts.
func (d *Detector) Run(
	ctx context.Context, link Packets, kernels func(process [8]byte) Kernels, elections Elections,
) error {
	defer link.Close()
	d.openKernels = kernels
	defer d.closeKernels()
	d.mu.Lock()
	d.elections = elections
	d.last = d.now()
	d.mu.Unlock()
	// Wait returns early when the port is closed.
	stop := context.AfterFunc(ctx, link.Close)
	defer stop()
	b := make([]byte, maxDatagram)
	due := false
	for ctx.Err() == nil {
		d.pass()
		heard := d.drain(link, b)
		d.step(link)
		for until := time.Now().Add(d.tick()); d.asks() && time.Now().Before(until) && ctx.Err() == nil; {
			time.Sleep(d.tick() / 5)
			heard = d.drain(link, b) || heard
			d.count(link)
		}
		rests, reaps := d.rest()
		due = link.Wait(ctx, time.Now().Add(rests), (heard || due) && !reaps)
	}
	return nil
}

// rest is how long after the latest look the next one is due, and whether nothing that comes before is worth a look.
func (d *Detector) rest() (rests time.Duration, reaps bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rests, d.reaps
}

// inHaste says that this process or a peer was late lately. A lease has room for a probe that is 15 ms late where they
// go out every 30 ms, and for one that is 25 ms late where they go out every 20 ms. The caller holds mu.
func (d *Detector) inHaste() bool {
	if d.late >= d.tick() {
		return true
	}
	for _, c := range d.peers {
		if c.pause >= d.ticks(ticksPerProbe)/2 {
			return true
		}
	}
	return false
}

// plan is when the next look is due if nothing comes before: when somebody is to be shown something, or would be missed.
// A peer that misses another has to see at once when the silence is too long. The caller holds mu.
func (d *Detector) plan(now time.Duration, term uint64, leader string) time.Duration {
	if d.asking {
		return d.tick()
	}
	rest := d.ticks(ticksPerSign)
	if d.reaps {
		rest = d.tick() * 2 / 5
	}
	for _, c := range d.peers {
		if d.isMissed(c) {
			d.reaps = false
			return d.tick()
		}
		if c.heard && !c.vanished {
			rest = min(rest, d.ticks(ticksToMiss)-c.unusual())
		}
		if every := d.every(c, term, leader); every > 0 {
			rest = min(rest, c.shown+every-now)
		}
	}
	return max(rest, d.tick()*2/5)
}

// isMissed says that what c should have sent is late. The caller holds mu.
func (d *Detector) isMissed(c *contact) bool {
	return c.heard && !c.vanished && c.unusual() >= d.ticks(ticksToMiss)
}

// drain reads what has come, before anybody is judged. It says whether any of it was a peer's.
func (d *Detector) drain(link Packets, b []byte) (heard bool) {
	for range 256 {
		n, err := link.ReadNow(b)
		if err != nil {
			return heard // nothing is left; other errors only cost time
		}
		heard = d.receive(link, b[:n]) || heard
	}
	return heard
}

// askKernels reads which hosts have answered, and asks those whose processes are silent. The caller holds mu.
func (d *Detector) askKernels(now time.Duration) {
	silent := false
	for _, c := range d.peers {
		if !d.isMissed(c) || c.hasty {
			c.mute = noAnswer
			continue
		}
		silent = true
		if c.mute != noAnswer {
			c.mute += d.passed
		}
	}
	if !silent {
		d.closeKernels()
		return
	}
	if d.kernels == nil && d.openKernels != nil {
		d.kernels = d.openKernels(d.process)
	}
	if d.kernels == nil {
		return
	}
	for range 256 {
		from, n, ok := d.kernels.Answered()
		if !ok {
			break
		}
		for _, c := range d.peers {
			// An answer to a question of an earlier silence says nothing of this one.
			if c.Addr.Addr().WithZone("").Unmap() == from && c.asks-n < freshAsks {
				c.mute = 0
			}
		}
	}
	if now-d.askedK < d.tick()/2 {
		return
	}
	d.askedK = now
	for _, c := range d.peers {
		if d.isMissed(c) && !c.hasty {
			c.asks++
			d.kernels.Ask(c.Addr.Addr(), c.asks)
		}
	}
}

// freshAsks is how many questions old an answer may be: one is asked each tick, and a heartbeat is six round trips.
const freshAsks = ticksPerHeartbeat / 3

func (d *Detector) closeKernels() {
	if d.kernels != nil {
		d.kernels.Close()
		d.kernels = nil
	}
}

// isLate says that the process of c is silent, and its host is there. The caller holds mu.
func (d *Detector) isLate(c *contact) bool {
	return c.mute < leastSuspicion(d.heartbeat) && c.unusual() < patienceForProcesses*d.heartbeat
}

// asks tells whether the others have been asked about the leader.
func (d *Detector) asks() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asking
}

// count counts the answers of the others.
func (d *Detector) count(link Packets) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.consider(link, d.now(), false)
}

// pass counts the time since the latest look, before anything that has come is read. A late look counts for one tick more
// than it was due after.
func (d *Detector) pass() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	late := now - d.last - d.rests
	d.passed = min(now-d.last, d.rests+lateTick*d.tick())
	d.last = now
	forgotten := float64(d.passed) / float64(d.ticks(forgetTicks))
	d.late -= time.Duration(float64(d.late) * forgotten)
	if late >= 2*d.tick() {
		d.late = max(d.late, min(late, d.heartbeat))
	}
	for _, c := range d.peers {
		c.pause -= time.Duration(float64(c.pause) * forgotten)
		if c.heard {
			c.silence += d.passed
		}
	}
}

// step judges and shows, after what has come was read.
func (d *Detector) step(link Packets) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.last
	term := d.elections.LeadsIn()
	leader, follows := d.elections.Follows()
	changed, missed := false, false
	for _, c := range d.peers {
		d.depend(c, term != 0 || leader == "" || c.ID == leader)
		if is := d.isMissed(c); is != c.missing {
			c.missing, missed = is, missed || is
		}
	}
	d.askKernels(now)
	for _, c := range d.peers {
		switch {
		case !c.heard || c.vanished || c.unusual() < d.suspicion(c):
		case d.isLate(c):
			if c.ID == leader {
				d.elections.Refresh(leader, follows) // raft waits for it too
			}
		default:
			c.vanished, changed = true, true
			d.log.Info("a peer has vanished", "peer", c.ID, "silent", c.silence)
		}
	}
	d.show(link, term, leader, now)
	d.consider(link, now, true)
	if now-d.pulsed >= d.ticks(ticksPerPulse)-d.tick()/2 || missed {
		d.pulsed = now
		if term != 0 {
			d.elections.Pulse(missed)
		}
	}
	d.rests = d.plan(now, term, leader)
	if changed {
		d.elections.ReachChanged()
	}
}

// depend says whether this peer and c depend on each other: the leader and its followers do, and everybody while there is
// no leader. Others send each other no more than signs, so silence begins to say something when they do. The caller
// holds mu.
func (d *Detector) depend(c *contact, depends bool) {
	switch {
	case !depends:
		c.usual = d.ticks(ticksPerSign)
	case c.usual > 0:
		c.usual = 0
		if c.heard && !c.vanished {
			c.silence = 0
		}
	}
}

// every is after how long c is to be shown again that this peer is there, 0 for never: answers to the leader's probes are
// enough. The caller holds mu.
func (d *Detector) every(c *contact, term uint64, leader string) time.Duration {
	switch {
	case !c.heard || c.vanished:
		return d.ticks(ticksPerSign)
	case term != 0 && c.answered >= c.probed && d.inHaste():
		return d.ticks(ticksInHaste)
	case term != 0 && c.answered >= c.probed:
		return d.ticks(ticksPerProbe)
	case term != 0 || leader == "" || d.isMissed(c):
		return d.ticks(ticksPerDoubt)
	case c.ID == leader:
		return 0
	}
	return d.ticks(ticksPerSign)
}

// show tells the others that this peer is there, when somebody is due. Those who are half due go along, so that they
// share the wake-up. A leader wants replies, for the lease, and so does a peer that does not hear another yet, or misses
// it, or has no leader. Everybody else needs no more than a sign. The caller holds mu.
func (d *Detector) show(link Packets, term uint64, leader string, now time.Duration) {
	due := false
	d.reaps = false
	for _, c := range d.peers {
		every := d.every(c, term, leader)
		due = due || every > 0 && now-c.shown >= every-d.tick()/2
	}
	if !due {
		return
	}
	probed := 0
	defer func() { d.reaps = term != 0 && probed > 1 && !d.inHaste() }()
	for _, c := range d.peers {
		every := d.every(c, term, leader)
		switch {
		case every == 0 || now-c.shown < every/2:
		case every == d.ticks(ticksPerSign) && c.heard && !c.vanished:
			c.shown = now
			if c.key != nil {
				c.seq++
				d.send(link, c, datagram{kind: datagramSign, echo: c.got})
			}
		default:
			d.probe(link, c, term, now)
			probed++
		}
	}
}

// probe sends one probe to c. The caller holds mu.
func (d *Detector) probe(link Packets, c *contact, term uint64, t0 time.Duration) {
	c.shown = t0
	if c.key == nil {
		return
	}
	c.seq++
	c.probed = c.seq
	c.sent[c.seq%uint64(len(c.sent))] = sentProbe{seq: c.seq, term: term, t0: t0}
	d.send(link, c, datagram{kind: datagramProbe, echo: c.got, term: term})
}

func (d *Detector) send(link Packets, c *contact, m datagram) {
	m.from, m.process, m.to, m.seq = d.self, d.process, c.process, c.seq
	if m.kind == datagramReply {
		for id, o := range d.peers {
			if o.heard && id != c.ID && len(id) < 100 {
				m.silence = append(m.silence, silenceOf{id, uint16(min(o.unusual()/time.Millisecond, 1<<16-1))})
			}
		}
	}
	d.buf = m.seal(d.buf[:0], c.key)
	link.Write(d.buf, c.Addr) // a datagram that is not sent counts as lost
}

// receive takes one datagram, and says whether it is a peer's.
func (d *Detector) receive(link Packets, b []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, err := openDatagram(b, func(from string) *macKey {
		if c := d.peers[from]; c != nil {
			return c.ours
		}
		return nil
	})
	if err != nil {
		return false
	}
	c := d.peers[m.from]
	fresh := m.to == d.process && m.echo > 0 && m.echo <= c.seq && m.echo+freshWindow > c.seq
	switch {
	case m.process == c.process && m.seq <= c.got:
		return false // a copy, or overtaken
	case fresh:
		c.process, c.got = m.process, m.seq
		d.alive(c)
	case m.process == c.process:
		c.got = m.seq
	}
	switch m.kind {
	case datagramProbe:
		d.answer(link, c, m)
	case datagramReply:
		if !fresh {
			return true
		}
		c.answered = max(c.answered, m.echo)
		if s := c.sent[m.echo%uint64(len(c.sent))]; s.seq == m.echo && s.term == m.term && m.term != 0 {
			d.elections.Granted(c.ID, m.term, s.t0)
			if m.refreshed {
				d.elections.Refreshed(c.ID, m.term, m.writes)
			}
		}
		c.viewed, c.view = m.echo, make(map[string]time.Duration, len(m.silence))
		for _, s := range m.silence {
			c.view[s.id] = time.Duration(s.ms) * time.Millisecond
		}
	}
	return true
}

// answer answers a probe. For a leader's it is a grant: step 1 in package lease.
func (d *Detector) answer(link Packets, c *contact, m datagram) {
	var grant uint64
	refreshed, writes := false, false
	if m.term != 0 {
		may := d.elections.HeardFrom(c.ID, m.term) // first the entry in the grants,
		if d.elections.Term() == m.term && may {   // then the look at the term
			grant = m.term
			refreshed, writes = d.elections.Refresh(c.ID, m.term)
		}
	}
	if c.key == nil {
		return
	}
	c.shown = d.last
	c.seq++
	was := c.process
	c.process = m.process // the reply is for the process that asked, which may be new
	d.send(link, c, datagram{kind: datagramReply, echo: m.seq, term: grant, refreshed: refreshed, writes: writes})
	c.process = was
}

// alive notes a sign of life. The caller holds mu.
func (d *Detector) alive(c *contact) {
	if c.vanished {
		d.log.Info("a peer is back", "peer", c.ID)
		d.elections.ReachChanged()
	}
	// A long outage is not a pause that a busy host makes.
	if late := c.unusual(); c.heard && late >= d.ticks(ticksToMiss) && late < 2*d.heartbeat {
		c.pause = max(c.pause, late)
	}
	if c.warned {
		d.log.Info("datagrams come from this peer now", "peer", c.ID)
	}
	c.heard, c.vanished, c.warned, c.silence = true, false, false, 0
}

// consider replaces a leader that a majority does not hear. The caller holds mu.
func (d *Detector) consider(link Packets, now time.Duration, ask bool) {
	leader, term := d.elections.Follows()
	c := d.peers[leader]
	if c == nil || !c.vanished || term <= d.stood || now < d.waits {
		d.since, d.asking = 0, false
		for _, o := range d.peers {
			o.asked = 0
		}
		return
	}
	d.asking = true
	voters := d.elections.Electorate()
	agree := 0
	for _, id := range voters {
		o := d.peers[id]
		switch {
		case id == d.self:
			agree++
		case o == nil || id == leader || o.vanished:
		default:
			if o.asked == 0 {
				o.asked = o.seq + 1
			}
			if o.viewed >= o.asked && o.view[leader] >= d.suspicion(c)-d.ticks(ticksToAgree) {
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
	step := max(d.heartbeat, d.elections.Patience()/2)
	if rank := d.rank(voters, leader); rank < 0 || now-d.since < time.Duration(rank)*step {
		return
	}
	d.asking = false
	if d.elections.Replace(leader, term) {
		d.stood = term
	} else {
		d.waits = now + d.heartbeat
	}
}

// rank is this peer's place among those that could hold instead of leader; -1: none.
func (d *Detector) rank(voters []string, leader string) int {
	if d.witness {
		return -1
	}
	rank := 0
	for _, id := range voters {
		o := d.peers[id]
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
