package transport

import (
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/notify"
)

// Datagrams in the place of heartbeats
//
// Idle, the library sends each peer some 45 heartbeats and 13 empty pieces of the log in a second. Each is a
// request over TLS that wakes several threads on both hosts, and says what a probe of the detector says too: that
// the leader of this term is there. So while a peer's replies to probes tell that its raft has taken them for
// heartbeats ([Transport.Refresh]), the leader's library gets its answer from here, later, and nothing is sent.
//
// Such an answer is no grant and proves nothing: leases count probes by themselves, and nobody asks the library
// to verify a leader. It keeps the library's own clocks from running out, on both sides. A message goes out as
// ever once replies are missing for keptFor, after any failure, if it says anything new, and every truthEvery.

// HeartbeatsUntilTimeout is the timeout of the library's clocks, in heartbeats.
const HeartbeatsUntilTimeout = 4

const (
	// keptFor is how old the reply may be that an answer from here rests on, in heartbeats: a probe, and the one that
	// goes out sooner when an answer is missing. It is the length of a lease.
	keptFor = 0.3
	// restFor is how long a heartbeat waits here at most, in heartbeats. With the library's own pause of up to a
	// fifth of its timeout it stays below that timeout, after which the leader would step down.
	restFor = 0.7 * HeartbeatsUntilTimeout
	// truthEvery is how often a message is sent all the same, and truthTakes how long its answer may take: together they
	// bound how long it goes unnoticed that TCP does not pass although datagrams do.
	truthEvery, truthTakes = time.Second, time.Second
	// longestWrite is how long a peer may wait for its disk before raft here counts it as silent.
	longestWrite = 10 * time.Second
)

// kept are the peers whose rafts take probes for heartbeats.
type kept struct {
	heartbeat     time.Duration
	pulse, missed notify.Signal

	mu sync.Mutex
	by map[hraft.ServerID]*keeping
}

type keeping struct {
	term   uint64 // of the latest reply
	at     time.Duration
	writes bool // it waits for its disk, and answers raft's messages after that
	beats  said
	log    said
	asking bool   // a heartbeat is under way beside those that are answered here
	turns  uint64 // of heartbeats that are sent by the library
}

// said is the last message that was answered, and when.
type said struct {
	ok     bool
	at     time.Duration
	term   uint64
	prev   uint64
	commit uint64
}

func (k *kept) of(id hraft.ServerID) *keeping {
	if k.by == nil {
		k.by = make(map[hraft.ServerID]*keeping)
	}
	if k.by[id] == nil {
		k.by[id] = &keeping{}
	}
	return k.by[id]
}

// turn begins the time after a heartbeat that the library sends to id, and isOver says that it has sent another one.
func (k *kept) turn(id hraft.ServerID) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.of(id)
	p.turns++
	return p.turns
}

func (k *kept) isOver(id hraft.ServerID, turn uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.of(id).turns != turn
}

// isKept says that the latest reply of p is new enough at now to rest on.
func (k *kept) isKept(p *keeping, now time.Duration) bool {
	return now-p.at <= time.Duration(keptFor*float64(k.heartbeat))
}

// Kept says that id has just told that its raft takes probes of term for heartbeats, and whether it waits for its disk.
func (t *Transport) Kept(id string, term uint64, writes bool) {
	t.kept.mu.Lock()
	defer t.kept.mu.Unlock()
	k := t.kept.of(hraft.ServerID(id))
	k.term, k.at, k.writes = term, t.rules.Now(), writes
}

// Pulse ends the rest of heartbeats. It is fired by who is awake anyway, every six tenths of a heartbeat, so that
// they need no timers of their own, and with missed at once when replies are missing.
func (t *Transport) Pulse(missed bool) {
	t.kept.pulse.Fire()
	if missed {
		t.kept.missed.Fire()
	}
}

// answered notes whether a message that was sent has been answered with success.
func (t *Transport) answered(id hraft.ServerID, args *hraft.AppendEntriesRequest, ok bool) {
	k, at := &t.kept, t.rules.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.of(id)
	switch {
	case !ok && p.writes && k.isKept(p, at):
		return // it could not answer, and would have
	case !ok:
		p.beats, p.log = said{}, said{}
		return
	}
	if isHeartbeat(args) {
		p.beats = said{ok: true, at: at, term: args.Term}
		return
	}
	p.log = said{}
	if len(args.Entries) == 0 {
		p.log = said{ok: true, at: at, term: args.Term, prev: args.PrevLogEntry, commit: args.LeaderCommitIndex}
	}
}

// spares says whether id needs not be sent args now.
func (t *Transport) spares(id hraft.ServerID, args *hraft.AppendEntriesRequest) bool {
	k, now := &t.kept, t.rules.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.of(id)
	if p.term != args.Term || !k.isKept(p, now) || len(args.Entries) > 0 {
		return false
	}
	if isHeartbeat(args) {
		return p.beats.ok && p.beats.term == args.Term && now-p.beats.at < p.every()+truthTakes
	}
	return p.log.ok && p.log.term == args.Term && p.log.prev == args.PrevLogEntry &&
		p.log.commit == args.LeaderCommitIndex && now-p.log.at < truthEvery
}

// every is how often a heartbeat is sent to p all the same.
func (p *keeping) every() time.Duration {
	if p.writes {
		return longestWrite
	}
	return truthEvery
}

// check sends a heartbeat now and then to a peer that needs none. It does not wait for the answer, which takes its time
// where a host is busy: the peer has said by its datagrams that it is there.
func (t *Transport) check(id hraft.ServerID, target hraft.ServerAddress, args *hraft.AppendEntriesRequest) {
	k, now := &t.kept, t.rules.Now()
	k.mu.Lock()
	p := k.of(id)
	due := !p.asking && now-p.beats.at >= p.every()
	p.asking = p.asking || due
	k.mu.Unlock()
	if due {
		t.beat(p, id, target, args)
	}
}

// beat sends a heartbeat, and returns where its outcome will be. The caller has set p.asking.
func (t *Transport) beat(p *keeping, id hraft.ServerID, target hraft.ServerAddress, args *hraft.AppendEntriesRequest,
) <-chan outcome {
	own, done := *args, make(chan outcome, 1)
	t.repeats.Go(func() {
		var o outcome
		o.err = t.appendEntries(id, target, &own, &o.resp) // a failure is noted there
		t.kept.mu.Lock()
		p.asking = false
		t.kept.mu.Unlock()
		done <- o
	})
	return done
}

type outcome struct {
	resp hraft.AppendEntriesResponse
	err  error
}

// heartbeat sends a heartbeat to a peer that needs one. The answer takes its time where a host is busy, and meanwhile the
// peer may have said by its datagrams again that it is there: then that is the answer.
func (t *Transport) heartbeat(id hraft.ServerID, target hraft.ServerAddress, args *hraft.AppendEntriesRequest,
	resp *hraft.AppendEntriesResponse) error {
	k := &t.kept
	k.mu.Lock()
	p := k.of(id)
	free := !p.asking
	p.asking = true
	k.mu.Unlock()
	if !free { // an earlier one is under way still
		return t.appendEntries(id, target, args, resp)
	}
	done := t.beat(p, id, target, args)
	for {
		over := k.pulse.Next()
		select {
		case o := <-done:
			*resp = o.resp
			return o.err
		case <-over:
		case <-t.stop:
			return hraft.ErrTransportShutdown
		}
		if t.spares(id, args) {
			*resp = hraft.AppendEntriesResponse{Term: args.Term, LastLog: args.PrevLogEntry, Success: true}
			return nil
		}
	}
}

// rest waits as long as id needs not be sent args, and not too long. It returns false if args have to be sent, and
// true if they can be taken for answered.
func (t *Transport) rest(id hraft.ServerID, args *hraft.AppendEntriesRequest) bool {
	over, most := t.kept.pulse.Next(), time.Duration(restFor*float64(t.kept.heartbeat))
	var grown <-chan struct{}
	if !isHeartbeat(args) {
		// The library sends what is added to the log only after this has returned.
		over, grown, most = t.kept.missed.Next(), t.rules.Grown.Next(), truthEvery
	}
	if !t.spares(id, args) {
		return false
	}
	late := time.NewTimer(most)
	defer late.Stop()
	select {
	case <-over:
	case <-grown:
	case <-late.C:
	case <-t.stop:
		return false
	}
	return t.spares(id, args)
}

// isHeartbeat tells the library's heartbeats from its pieces of the log, which may be empty.
func isHeartbeat(args *hraft.AppendEntriesRequest) bool {
	return len(args.Entries) == 0 && args.PrevLogEntry == 0 && args.PrevLogTerm == 0 && args.LeaderCommitIndex == 0
}

// Refresh has raft take a probe of leader, who is at addr, for its heartbeat in term. It does not wait: if raft
// is busy, the next probe does it.
func (t *Transport) Refresh(leader string, addr hraft.ServerAddress, term uint64) {
	header := hraft.RPCHeader{
		ProtocolVersion: hraft.ProtocolVersionMax, ID: []byte(leader), Addr: t.EncodePeer(hraft.ServerID(leader), addr),
	}
	rpc := hraft.RPC{
		Command:  &hraft.AppendEntriesRequest{RPCHeader: header, Term: term, Leader: header.Addr},
		RespChan: make(chan hraft.RPCResponse, 1), // nobody is told: the reply to the probe is the answer
	}
	select {
	case t.rpcs <- rpc:
	default:
	}
}
