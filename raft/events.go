package raft

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"appliance/raft/peerport"
	"appliance/raft/settings"
)

// A GroupEventKind says what a GroupEvent is about.
type GroupEventKind int

// The kinds of events.
const (
	HolderChanged  GroupEventKind = iota // Peer holds, and From did before
	TenureEnded                          // this peer's own
	PeerInReach                          // Peer answers, for the first time or again
	PeerOutOfReach                       // Peer does not answer any more; Detail says why
	TroubleBegan                         // this peer cannot take part fully; Detail says why
	TroubleEnded
	StoodStill  // this peer's machine, and its clock with it; Detail says what shows it
	PeerDoubled // two processes run as Peer; Detail says where
)

// A Cause says why a GroupEvent has come about, as exactly as this peer knows.
type Cause string

// The causes.
const (
	FirstSeen    Cause = "first seen"    // nothing is known of before
	ElectedAgain Cause = "elected again" // the holder is the same, in a newer term
	ProcessEnded Cause = "process ended" // the other's process has died: proved
	Stopped      Cause = "stopped"       // the process has said that it leaves
	HostSilent   Cause = "host silent"   // nothing was heard of it
	HandedOver   Cause = "handed over"   // it gave way, for all that is known at an operator's wish
	Drained      Cause = "drained"       // it gave way because it is drained
	Unfit        Cause = "unfit"         // it gave way because another peer is fitter
	Preferred    Cause = "preferred"     // it gave way to a peer of higher priority, or a pinned one
	Deposed      Cause = "deposed"       // another peer leads, or a majority is out of reach
	Failed       Cause = "failed"        // the holder could not answer

	Returned         Cause = "returned"            // a peer is in reach again
	DiskFailed       Cause = "disk failed"         // the data directory cannot be written
	LogUnreadable    Cause = "log unreadable"      // the group's log is of a newer version, or not ours
	Removed          Cause = "removed"             // the group has removed this peer, or does not take it in
	HeartbeatDiffers Cause = "heartbeat differs"   // from that of a majority
	DiskBackwards    Cause = "disk went backwards" // as if restored from an older copy
	MachinePaused    Cause = "machine paused"      // by its hypervisor
	IDTaken          Cause = "id taken"            // another process lives with this peer's id
)

// A GroupEvent is one change in the group as this peer saw it.
type GroupEvent struct {
	Kind  GroupEventKind
	Time  time.Time
	Cause Cause
	// Peer is whom it is about; empty for trouble of this peer's own.
	Peer string
	// From held before; empty: not known. Only of HolderChanged.
	From string
	Term uint64
	// Took is what the event ends: for HolderChanged the time since the last sign of the old holder, for
	// PeerInReach the time out of reach. Zero: not known.
	Took time.Duration
	// Detail is for people: the problem with a peer, or the trouble.
	Detail string
}

// maxEvents bounds those that nobody has taken yet; further ones are lost, and logged so.
const maxEvents = 256

// Events delivers what happens, in order, to one consumer. It is closed when Run has returned, after the last
// event.
func (g *Group) Events() <-chan GroupEvent { return g.history.events }

// history makes events of what other parts of the group report to it.
type history struct {
	self      string
	heartbeat time.Duration
	log       *slog.Logger
	events    chan GroupEvent
	now       func() time.Time
	signs     signs

	mu      sync.Mutex
	closed  bool
	holder  string // as it was reported last
	term    uint64 // in which it held last
	holding bool   // this peer's own tenure is on
	ended   Cause  // of this peer's last tenure
	gone    map[string]departure
	away    map[string]time.Time // zero: in reach; absent: never was
	trouble string
}

// departure is what is known of the end of a peer's process.
type departure struct {
	at   time.Time
	term uint64 // the last that it led
	told bool   // it said so itself
}

// departureLasts is how long a departure explains that a peer is out of reach: greetings notice that within
// two seconds, and the peer may be back by then.
const departureLasts = 3 * time.Second

// cause says how the process departed.
func (d departure) cause() Cause {
	if d.told {
		return Stopped
	}
	return ProcessEnded
}

func newHistory(self string, heartbeat time.Duration, log *slog.Logger) *history {
	return &history{
		self: self, heartbeat: heartbeat, log: log, events: make(chan GroupEvent, maxEvents),
		now: time.Now, signs: signs{now: time.Now, latest: make(map[string]sign)},
		gone: make(map[string]departure), away: make(map[string]time.Time),
	}
}

// emit delivers e without waiting. The caller holds mu.
func (h *history) emit(e GroupEvent) {
	if h.closed {
		return
	}
	select {
	case h.events <- e:
	default:
		h.log.Debug("an event is lost: nobody takes them", "cause", e.Cause)
	}
}

func (h *history) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.closed = true
		close(h.events)
	}
}

// tenureBegan notes a tenure of this peer's own, before its end or a later holder can be noted.
func (h *history) tenureBegan(term uint64, at time.Time, vanished bool, why Cause) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holding = true
	if h.holder != h.self || h.term != term { // not after a tenure of the same term
		h.moved(h.self, term, at, vanished, why)
	}
}

// tenureEnded notes that this peer answers no more.
func (h *history) tenureEnded(term uint64, cause Cause) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holding, h.ended = false, cause
	h.emit(GroupEvent{Kind: TenureEnded, Time: h.now(), Cause: cause, Peer: h.self, Term: term})
}

// leads notes that another peer leads term. Vanished says that the host of the holder before has, and why is
// for what cause it would give way.
func (h *history) leads(id string, term uint64, vanished bool, why Cause) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.holding || term < h.term:
	case id == h.holder:
		h.term = term
		h.signs.follow(id, term)
	default:
		h.moved(id, term, h.now(), vanished, why)
	}
}

// moved notes a new holder. The caller holds mu.
func (h *history) moved(id string, term uint64, at time.Time, vanished bool, why Cause) {
	e := GroupEvent{Kind: HolderChanged, Time: at, Peer: id, From: h.holder, Term: term}
	// From the last sign of the old holder to the new one: what clients may have missed at most. An old
	// holder itself does not know.
	if sign := h.signs.last(); !sign.IsZero() && h.holder != "" {
		e.Took = max(at.Sub(sign), 0)
	}
	gone := h.gone[h.holder]
	switch {
	case h.holder == "":
		e.Cause = FirstSeen
	case h.holder == id:
		e.Cause = ElectedAgain
	case h.holder == h.self:
		e.Cause = h.ended
	case h.term > 0 && gone.term >= h.term:
		e.Cause = gone.cause()
	case e.Took > h.heartbeat*9/10 || vanished:
		e.Cause = HostSilent
	default:
		e.Cause = why
	}
	h.holder, h.term = id, term
	h.signs.follow(id, term)
	h.emit(e)
}

// departed notes that the process of peer id, which led term last, has ended or said that it leaves.
func (h *history) departed(id string, term uint64, told bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.gone[id]
	h.gone[id] = departure{at: h.now(), term: max(was.term, term), told: told || was.told && was.term >= term}
}

// reach notes that peer id came into reach, or went out of it with a problem.
func (h *history) reach(id string, connected bool, problem error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	since, met := h.away[id]
	switch {
	case connected && !met:
		h.emit(GroupEvent{Kind: PeerInReach, Time: now, Cause: FirstSeen, Peer: id})
	case connected && !since.IsZero():
		h.emit(GroupEvent{Kind: PeerInReach, Time: now, Cause: Returned, Peer: id, Took: now.Sub(since)})
	case !connected && met && since.IsZero():
		h.away[id] = now
		e := GroupEvent{Kind: PeerOutOfReach, Time: now, Peer: id, Detail: errText(problem)}
		if gone := h.gone[id]; now.Sub(gone.at) < departureLasts {
			e.Cause = gone.cause()
		}
		h.emit(e)
	}
	if connected {
		h.away[id] = time.Time{}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// troubled notes what keeps this peer from taking part fully, "" for nothing.
func (h *history) troubled(cause Cause, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if text == h.trouble {
		return
	}
	h.trouble = text
	e := GroupEvent{Kind: TroubleEnded, Time: h.now()}
	if text != "" {
		e.Kind, e.Cause, e.Detail = TroubleBegan, cause, text
	}
	h.emit(e)
}

// stoodStill notes that the machine did.
func (h *history) stoodStill(why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.emit(GroupEvent{Kind: StoodStill, Time: h.now(), Cause: MachinePaused, Detail: why})
}

// doubled notes that two processes run as peer id.
func (h *history) doubled(id, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.emit(GroupEvent{Kind: PeerDoubled, Time: h.now(), Cause: IDTaken, Peer: id, Detail: why})
}

// signs remembers when peers were heard last in a term that counts. What the holder of a term says in later
// ones, it says as a peer that wants to be elected again.
type signs struct {
	now func() time.Time

	mu     sync.Mutex
	latest map[string]sign
	holder string
	term   uint64
	at     time.Time // the last sign of holder in term or before
}

type sign struct {
	term uint64
	at   time.Time
}

// maxSigns bounds the memory, because in insecure mode anybody can send any id.
const maxSigns = 64

// heard notes a heartbeat, a probe or a request for a vote.
func (s *signs) heard(id string, term uint64) {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if was, known := s.latest[id]; known || len(s.latest) < maxSigns {
		s.latest[id] = sign{term: max(was.term, term), at: now}
	}
	if id == s.holder && term <= s.term {
		s.at = now
	}
}

// follow says whose signs count from now on.
func (s *signs) follow(holder string, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if holder != s.holder {
		s.at = time.Time{}
	}
	s.holder, s.term = holder, term
	if l := s.latest[holder]; l.term <= term && l.at.After(s.at) {
		s.at = l.at
	}
}

// last is the last sign of the holder, zero: none.
func (s *signs) last() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

// report tells the history of leaders and trouble, with every change of either, until ctx ends.
func (g *Group) report(ctx context.Context) error {
	defer g.history.close()
	for {
		changed := g.change.Next()
		g.history.troubled(g.trouble())
		g.reportLeader()
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// reportLeader tells the history who leads, if it is another peer that may hold. A tenure of this peer's own
// is reported when it begins, because a leader does not answer before older leases are over.
func (g *Group) reportLeader() {
	r := g.running()
	if r == nil {
		return
	}
	term := r.CurrentTerm()
	_, leader := r.LeaderWithID()
	id := string(leader)
	if id == "" || id == g.cfg.ID || r.CurrentTerm() != term {
		return // a newer term fires another change
	}
	if p, listed := g.peer(id); listed && p.Witness {
		return
	}
	vanished, why := g.whyGiveWay(id)
	g.history.leads(id, term, vanished, why)
}

// whyGiveWay is whether the last holder's host has vanished, and if not, why it would give way to another
// peer, as far as its own word and the group's settings tell.
func (g *Group) whyGiveWay(to string) (vanished bool, why Cause) {
	g.history.mu.Lock()
	holder := g.history.holder
	g.history.mu.Unlock()
	if holder == "" || holder == g.cfg.ID {
		return false, HandedOver
	}
	_, vanished = g.detector.Reach(holder)
	switch {
	case g.settings.Get(settings.DrainPrefix+holder) != "":
		why = Drained
	case !g.fitnessOf(holder).IsZero():
		why = Unfit
	case g.settings.Get(settings.PinKey) == to:
		why = Preferred
	default:
		why = HandedOver
	}
	return vanished, why
}

// noteReach is told of each change of the control connection to peer id.
func (g *Group) noteReach(id string, s peerport.LinkState) {
	g.history.reach(id, s.Connected, s.Problem)
}

// heard notes a message that may become a grant, for the lease before anything else.
func (g *Group) heard(from string, term uint64) {
	g.grants.Heard(from, term)
	g.history.signs.heard(from, term)
}

// trouble is what keeps this peer from taking part fully, or "".
func (g *Group) trouble() (Cause, string) {
	if err := g.store.Trouble(); err != nil {
		return DiskFailed, "cannot write to the data directory: " + err.Error()
	}
	if err := g.settings.Err(); err != nil {
		return LogUnreadable, err.Error()
	}
	if why := g.doubled(); why != "" {
		return IDTaken, why
	}
	if servers := g.servers(); len(servers) > 0 {
		if _, member := g.server(g.cfg.ID); !member {
			return Removed, "this peer has been removed from the group; " + howBack
		}
	}
	if why := g.refusal(); why != "" {
		return Removed, why
	}
	if why := g.backwards(); why != "" {
		return DiskBackwards, why
	}
	if why := g.oddHeartbeat(); why != "" {
		return HeartbeatDiffers, why
	}
	return "", ""
}

// causeOf is the cause of the end of a tenure, for which err stands.
func causeOf(err error, request *handover) Cause {
	switch {
	case request != nil:
		return request.cause
	case errors.Is(err, errDeposed):
		return Deposed
	case errors.Is(err, errLeaving):
		return Stopped
	}
	return Failed
}
