package detector

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

const (
	ms        = time.Millisecond
	heartbeat = 150 * ms
)

// hall is some detectors in fake time, with a network of its own. Peer a leads at first, the others follow.
type hall struct {
	t      *testing.T
	now    time.Duration
	ids    []string
	leader string
	ds     map[string]*Detector
	cut    map[[2]string]bool
	await  map[string][]parcel // sent and not read yet
	asleep map[string]time.Duration
	ended  map[string]bool
	sent   map[[2]string]int // from, to
	looks  map[string]int

	grants   map[string]time.Duration
	heard    map[string]uint64
	replaced map[string]time.Duration // by whom, when
	terms    map[string]uint64
	changes  int
	asking   map[string]int  // sockets to ask kernels by
	deaf     map[string]bool // whose raft does not follow the leader
	// when the leader was told that a raft needs no other heartbeat, and when who was told to look
	refreshed map[string]time.Duration
	pulses    map[string][]pulse
	refusals  int             // how often another election goes on
	noted     func(id string) // called when a message has been noted as a possible grant of id
}

type pulse struct {
	at     time.Duration
	missed bool
}

type parcel struct {
	from string
	data []byte
}

func newHall(t *testing.T, n int) *hall {
	h := &hall{t: t, ds: make(map[string]*Detector), cut: make(map[[2]string]bool), await: make(map[string][]parcel),
		asleep: make(map[string]time.Duration), ended: make(map[string]bool), sent: make(map[[2]string]int),
		looks: make(map[string]int),
		now:   time.Hour, leader: "a",
		grants: make(map[string]time.Duration), heard: make(map[string]uint64),
		replaced: make(map[string]time.Duration), terms: make(map[string]uint64), deaf: make(map[string]bool),
		refreshed: make(map[string]time.Duration), pulses: make(map[string][]pulse)}
	var peers []Host
	for i := range n {
		id := string(rune('a' + i))
		h.ids = append(h.ids, id)
		h.terms[id] = 7
		peers = append(peers, Host{ID: id, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1)})
	}
	for i, p := range peers {
		h.start(p, [8]byte{byte(i)})
	}
	for _, id := range h.ids {
		h.ds[id].Follow(peers)
		h.introduce(id)
	}
	return h
}

func (h *hall) start(p Host, process [8]byte) {
	h.ds[p.ID] = New(p, process, heartbeat, func() time.Duration { return h.now },
		slog.New(slog.NewTextHandler(h.t.Output(), nil)).With("on", p.ID))
	h.ds[p.ID].elections = &desk{h, p.ID}
}

// introduce exchanges the keys of id with all others, as hello does.
func (h *hall) introduce(id string) {
	for _, o := range h.ids {
		if o != id {
			h.ds[o].Accept(id, h.ds[id].secret.keyOf(o))
			h.ds[id].Accept(o, h.ds[o].secret.keyOf(id))
		}
	}
}

// run lets time pass, half a tick at a time.
func (h *hall) run(d time.Duration) {
	for end := h.now + d; h.now < end; {
		h.now += h.ds["a"].tick() / 2
		for _, id := range h.ids {
			dt := h.ds[id]
			rests, reaps := dt.rest()
			if h.now >= h.asleep[id] && !h.ended[id] && (len(h.await[id]) > 0 && !reaps || h.now-dt.last >= rests) {
				h.look(id)
			}
		}
	}
}

func (h *hall) look(id string) {
	h.looks[id]++
	h.ds[id].pass()
	h.read(id)
	h.ds[id].step(&desk{h, id})
}

func (h *hall) read(id string) {
	all := h.await[id]
	h.await[id] = nil
	for _, p := range all {
		h.ds[id].receive(&desk{h, id}, p.data)
	}
}

func (h *hall) isolate(id string, cut bool) {
	for _, o := range h.ids {
		h.cut[[2]string{id, o}], h.cut[[2]string{o, id}] = cut, cut
	}
}

// desk is one peer's Elections, and its way to the others.
type desk struct {
	*hall
	id string
}

func (d *desk) Term() uint64 { return d.terms[d.id] }
func (d *desk) LeadsIn() uint64 {
	if d.id == d.leader {
		return d.terms[d.id]
	}
	return 0
}
func (d *desk) Follows() (string, uint64) {
	if d.id == d.leader {
		return "", 0
	}
	return d.leader, d.terms[d.id]
}
func (d *desk) Electorate() []string { return d.ids }
func (d *desk) HeardFrom(peer string, term uint64) bool {
	d.hall.heard[d.id] = term
	if d.noted != nil {
		d.noted(d.id)
	}
	return true
}
func (d *desk) Granted(peer string, term uint64, t0 time.Duration) {
	if d.hall.heard[peer] != term {
		d.t.Errorf("%s granted term %d, which is not in its grants", peer, term)
	}
	d.grants[peer] = t0
}
func (d *desk) Replace(string, uint64) bool {
	if d.refusals > 0 {
		d.refusals--
		return false
	}
	if _, again := d.replaced[d.id]; again {
		d.t.Errorf("%s stands twice for one term", d.id)
	}
	d.replaced[d.id] = d.now
	return true
}
func (d *desk) Patience() time.Duration { return 0 }
func (d *desk) ReachChanged()           { d.changes++ }
func (d *desk) Refresh(string, uint64) (kept, writes bool) {
	return !d.deaf[d.id], false
}
func (d *desk) Refreshed(peer string, _ uint64, _ bool) {
	d.refreshed[peer] = d.now
}
func (d *desk) Pulse(missed bool) {
	d.pulses[d.id] = append(d.pulses[d.id], pulse{d.now, missed})
}

func (d *desk) Wait(context.Context, time.Time, bool) bool { panic("unused") }

func (d *desk) ReadNow([]byte) (int, error) { panic("unused") }
func (d *desk) Close()                      {}
func (d *desk) Write(b []byte, to netip.AddrPort) error {
	id := d.ids[to.Addr().As4()[3]]
	d.sent[[2]string{d.id, id}]++
	if !d.cut[[2]string{d.id, id}] && !d.ended[id] {
		d.await[id] = append(d.await[id], parcel{d.id, slices.Clone(b)})
	}
	return nil
}

func TestDetectorRenewsTheLease(t *testing.T) {
	h := newHall(t, 3)
	h.run(time.Second)
	for _, id := range []string{"b", "c"} {
		if age := h.now - h.grants[id]; age > 30*ms {
			t.Errorf("%s granted %v ago", id, age)
		}
	}
	h.terms["b"] = 8 // has voted for another
	h.run(200 * ms)
	if age := h.now - h.grants["b"]; age < 190*ms {
		t.Errorf("b, in a newer term, granted %v ago", age)
	}
	if len(h.replaced) > 0 {
		t.Errorf("stood without a reason: %v", h.replaced)
	}
}

// TestProbeIsGrantedByTheTermAfterTheEntry is step 1 of package lease for probes: raft may reach a newer term
// after the entry, and the grant must not be given then.
func TestProbeIsGrantedByTheTermAfterTheEntry(t *testing.T) {
	h := newHall(t, 3)
	h.noted = func(id string) {
		if id == "b" {
			h.terms["b"] = 8
		}
	}
	h.run(200 * ms)
	if at, granted := h.grants["b"]; granted {
		t.Errorf("b granted at %v in a term that it had left when it had made the entry", at)
	}
	if _, granted := h.grants["c"]; !granted {
		t.Error("c granted nothing")
	}
}

// lateDesk is one whose thread stands still when it has sent.
type lateDesk struct{ *desk }

func (d lateDesk) Write(b []byte, to netip.AddrPort) error {
	err := d.desk.Write(b, to)
	d.hall.now += 3 * ms
	return err
}

// TestProbeCountsFromBeforeItWasSent: the lease runs from the moment at which the holder asked.
func TestProbeCountsFromBeforeItWasSent(t *testing.T) {
	h := newHall(t, 2)
	h.run(heartbeat)
	h.await["b"], h.await["a"] = nil, nil
	clear(h.grants)
	h.now += 20 * ms
	sent := h.now
	h.ds["a"].probe(lateDesk{&desk{h, "a"}}, h.ds["a"].peers["b"], 7, sent)
	h.now += 7 * ms // on the way
	h.read("b")
	h.now += 11 * ms // and back
	h.read("a")
	if at, granted := h.grants["b"]; !granted || at != sent {
		t.Errorf("granted: %v, from %v on; the probe was sent at %v", granted, at, sent)
	}
}

// The leader and its followers hear each other every 30 ms, by a probe and an answer, and every 20 ms where somebody was
// late lately; others need no more than a sign now and then. Whose answer is missing is asked more often still. The leader
// wakes up twice for each probe, however many answer it.
func TestDetectorSaysNothingTwice(t *testing.T) {
	h := newHall(t, 5)
	h.run(time.Second)
	sent := func(during time.Duration) map[[2]string]int {
		clear(h.sent)
		h.run(during)
		return h.sent
	}
	sends := func(probes int) {
		t.Helper()
		for link, n := range sent(time.Second) {
			want := 10
			if link[0] == "a" || link[1] == "a" {
				want = probes
			}
			if n < want*9/10-1 || n > want*11/10 {
				t.Errorf("%s sent %d datagrams to %s in a second, want %d", link[0], n, link[1], want)
			}
		}
	}
	clear(h.looks)
	sends(33)
	if n := h.looks["a"]; n > 75 {
		t.Errorf("the leader looked %d times in a second, want twice for each of 33 probes and now and then for a sign", n)
	}
	for _, late := range []string{"a", "b"} {
		h.asleep[late] = h.now + 44*ms
		h.run(50 * ms)
		sends(50)
		h.run(40 * time.Second) // it is forgotten
		sends(33)
	}
	h.isolate("c", true)
	h.run(20 * ms)
	if n := sent(30 * ms)[[2]string{"a", "c"}]; n < 3 {
		t.Errorf("the leader sent %d datagrams in 30 ms to a follower that does not answer, want 3", n)
	}
	h.run(time.Second)
	if n := sent(time.Second)[[2]string{"b", "c"}]; n > 20 {
		t.Errorf("a peer that has vanished was sent %d datagrams in a second, want 10", n)
	}
}

// TestDetectorRests: a peer that misses nobody wakes up for what comes, and when it has to send; one that misses another
// counts each tick.
func TestDetectorRests(t *testing.T) {
	h := newHall(t, 3)
	h.run(time.Second)
	rests := func(id string, from, upTo time.Duration) {
		t.Helper()
		if got, _ := h.ds[id].rest(); got < from || got > upTo {
			t.Errorf("%s looks again after %v, want %v to %v", id, got, from, upTo)
		}
	}
	rests("a", 2*ms, 30*ms)
	rests("b", 5*ms, 40*ms)
	h.isolate("c", true)
	h.run(42 * ms)
	rests("a", 5*ms, 5*ms)
	counted := 0
	for range 75 {
		h.run(2 * ms)
		if rests, _ := h.ds["b"].rest(); rests == 5*ms {
			counted++
		}
	}
	if counted < 5 || counted > 30 {
		t.Errorf("b, to whom c says little, counted ticks at %d of 75 moments, want it to for 25 ms of 190", counted)
	}
	h.run(time.Second)
	rests("b", 5*ms, 40*ms) // it has vanished, and that is that
	h.isolate("c", false)
	h.run(time.Second)
	rests("c", 5*ms, 40*ms)
}

// TestDetectorOfANewLeader: nobody is missed because it had no reason to send before.
func TestDetectorOfANewLeader(t *testing.T) {
	h := newHall(t, 5)
	h.run(time.Second)
	changes := h.changes
	for _, next := range []string{"c", "e", "b"} {
		h.leader = next
		for _, id := range h.ids {
			h.terms[id]++
		}
		h.run(83 * ms)
		if age := h.now - h.grants["d"]; age > 30*ms {
			t.Errorf("d granted %s, which leads now, %v ago", next, age)
		}
	}
	h.run(time.Second)
	if h.changes != changes {
		t.Error("somebody has vanished")
	}
	began := h.now
	h.isolate("b", true)
	h.run(time.Second)
	if took := h.replaced["a"] - began; took < 30*ms || took > 85*ms {
		t.Errorf("a stands %v after the new leader is lost", took)
	}
}

// A raft that follows the leader needs no other heartbeats than probes, and the leader knows of each whether that
// is so. It is told to look at once when a peer is missing, and now and then otherwise.
func TestProbesAreHeartbeats(t *testing.T) {
	h := newHall(t, 3)
	h.deaf["c"] = true // it has restarted, say
	h.run(time.Second)
	if age := h.now - h.refreshed["b"]; age > 30*ms {
		t.Errorf("that b needs no heartbeat was told %v ago, want every 30 ms", age)
	}
	if at, told := h.refreshed["c"]; told {
		t.Errorf("c does not follow the leader, and was said to need no heartbeat at %v", at)
	}
	all := h.pulses["a"]
	if n := len(all); n < 6 || n > 8 {
		t.Errorf("the leader was told %d times in a second, want every 150 ms", n)
	}
	if len(h.pulses["b"]) > 0 {
		t.Errorf("a follower was told: %v", h.pulses["b"])
	}
	began := h.now
	h.isolate("b", true)
	h.run(100 * ms)
	missed := slices.DeleteFunc(h.pulses["a"], func(p pulse) bool { return p.at < began || !p.missed })
	if len(missed) != 1 || missed[0].at-began > 40*ms {
		t.Errorf("two probes of b have not come since %v, and the leader was told %v", began, missed)
	}
}

func TestDetectorReplacesAVanishedLeader(t *testing.T) {
	for name, fault := range map[string]func(*hall){
		"cut off":        func(h *hall) { h.isolate("a", true) },
		"frozen":         func(h *hall) { h.asleep["a"] = h.now + time.Hour },
		"cannot send":    func(h *hall) { h.cut[[2]string{"a", "b"}], h.cut[[2]string{"a", "c"}] = true, true },
		"cannot receive": func(h *hall) { h.cut[[2]string{"b", "a"}], h.cut[[2]string{"c", "a"}] = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHall(t, 3)
			h.run(time.Second)
			began := h.now
			fault(h)
			h.run(time.Second)
			took := h.replaced["b"] - began
			bound := 85 * ms
			if name == "cannot receive" {
				bound += freshWindow * 10 * ms // the leader goes on echoing what is known
			}
			if took < 40*ms || took > bound {
				t.Errorf("b, the first in rank, stands %v after the fault (%v)", took, h.replaced)
			}
			if _, gone := h.ds["c"].Reach("a"); !gone {
				t.Error("a has not vanished for c")
			}
			if heard, gone := h.ds["c"].Reach("b"); !heard || gone {
				t.Error("b has vanished for c too")
			}
		})
	}
}

// TestDetectorStandsAgain: an election of others that comes to nothing is no reason never to stand.
func TestDetectorStandsAgain(t *testing.T) {
	h := newHall(t, 3)
	h.run(time.Second)
	h.refusals = 3
	h.isolate("a", true)
	began := h.now
	h.run(2 * time.Second)
	if at, ok := h.replaced["b"]; !ok || at-began < 2*heartbeat || at-began > 5*heartbeat {
		t.Errorf("b stands: %v, after %v", ok, at-began)
	}
}

func TestDetectorNeedsAMajority(t *testing.T) {
	h := newHall(t, 3)
	h.run(time.Second)
	h.cut[[2]string{"a", "b"}], h.cut[[2]string{"b", "a"}] = true, true // c hears both
	h.run(time.Second)
	if len(h.replaced) > 0 {
		t.Errorf("stood against a leader that another hears: %v", h.replaced)
	}
	if _, gone := h.ds["b"].Reach("a"); !gone {
		t.Error("a has not vanished for b")
	}
	h.isolate("c", true)
	h.run(time.Second)
	if len(h.replaced) > 0 {
		t.Errorf("stood from a minority: %v", h.replaced)
	}
}

// TestDetectorKnowsItsOwnLateness: a peer that did not run suspects nobody.
func TestDetectorKnowsItsOwnLateness(t *testing.T) {
	for _, pause := range []time.Duration{40 * ms, 100 * ms, time.Second, time.Minute} {
		for _, who := range [][]string{{"b"}, {"b", "c"}, {"a", "b", "c"}} {
			t.Run(fmt.Sprintf("%v of %v", who, pause), func(t *testing.T) {
				h := newHall(t, 3)
				h.run(time.Second)
				for _, id := range who {
					h.asleep[id] = h.now + pause
				}
				h.run(pause + time.Second)
				if len(h.replaced) > 0 {
					t.Errorf("stood: %v", h.replaced)
				}
				for _, id := range who {
					for _, o := range h.ids {
						if _, gone := h.ds[id].Reach(o); gone && o != id {
							t.Errorf("%s has vanished for %s, which did not run", o, id)
						}
					}
				}
			})
		}
	}
}

// TestDetectorLearnsPauses: a host that made a pause may be silent for longer, up to a heartbeat.
func TestDetectorLearnsPauses(t *testing.T) {
	h := newHall(t, 3)
	h.run(time.Second)
	for range 5 {
		h.asleep["a"] = h.now + 33*ms
		h.run(300 * ms)
	}
	h.asleep["a"] = h.now + 55*ms
	h.run(300 * ms)
	if len(h.replaced) > 0 {
		t.Errorf("a pause a little longer than the usual ones: %v", h.replaced)
	}
	began := h.now
	h.asleep["a"] = h.now + time.Hour
	h.run(time.Second)
	if took := h.replaced["b"] - began; took < 60*ms || took > 190*ms {
		t.Errorf("stood %v after the fault", took)
	}
}

// hallKernels answers for the hosts in the hall, whether their processes run or not.
type hallKernels struct {
	*desk
	answers []parcelOf
}

type parcelOf struct {
	from netip.Addr
	n    uint16
}

func (k *hallKernels) Ask(to netip.Addr, n uint16) {
	id := k.ids[to.As4()[3]]
	if !k.cut[[2]string{k.id, id}] && !k.cut[[2]string{id, k.id}] {
		k.answers = append(k.answers, parcelOf{to, n})
	}
}

func (k *hallKernels) Answered() (from netip.Addr, n uint16, ok bool) {
	if len(k.answers) == 0 {
		return from, 0, false
	}
	a := k.answers[0]
	k.answers = k.answers[1:]
	return a.from, a.n, true
}

func (k *hallKernels) Close() { k.asking[k.id]-- }

// TestDetectorAsksTheKernel: a process that is silent while its host answers is only late, for a while, unless clients
// wait for it. A host that does not answer is lost as soon as ever.
func TestDetectorAsksTheKernel(t *testing.T) {
	const patience = patienceForProcesses * heartbeat
	for name, c := range map[string]struct {
		serves     bool
		fault      func(h *hall)
		from, upTo time.Duration // when b stands after it; 0: it does not
	}{
		"a stall": {false, func(h *hall) { h.asleep["a"] = h.now + 300*ms }, 0, 0},
		"stalls": {false, func(h *hall) {
			for range 5 {
				h.asleep["a"] = h.now + 200*ms
				h.run(250 * ms)
			}
		}, 0, 0},
		"frozen":                   {false, func(h *hall) { h.asleep["a"] = h.now + time.Hour }, patience - 20*ms, patience + 40*ms},
		"frozen, and clients wait": {true, func(h *hall) { h.asleep["a"] = h.now + time.Hour }, 40 * ms, 85 * ms},
		"lost":                     {false, func(h *hall) { h.isolate("a", true) }, 40 * ms, 85 * ms},
		"frozen, and lost afterwards": {false, func(h *hall) {
			h.asleep["a"] = h.now + time.Hour
			h.run(200 * ms)
			h.isolate("a", true)
		}, 240 * ms, 300 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHall(t, 3)
			h.asking = make(map[string]int)
			for id, d := range h.ds {
				d.openKernels = func([8]byte) Kernels { h.asking[id]++; return &hallKernels{desk: &desk{h, id}} }
				d.Serves("a", c.serves)
			}
			h.run(time.Second)
			began, changes := h.now, h.changes
			c.fault(h)
			h.run(time.Second)
			at, stood := h.replaced["b"]
			switch took := at - began; {
			case stood != (c.upTo > 0):
				t.Errorf("b stands: %v, after %v", stood, took)
			case stood && (took < c.from || took > c.upTo):
				t.Errorf("b stands after %v, want %v to %v", took, c.from, c.upTo)
			case !stood && h.changes != changes:
				t.Error("a was said to have vanished")
			}
			if h.asking["b"] != 0 {
				t.Errorf("b still has %d sockets to ask by", h.asking["b"])
			}
		})
	}
}

func TestDetectorRanks(t *testing.T) {
	h := newHall(t, 5)
	h.ds["b"].witness = true
	for _, d := range h.ds {
		if f := d.peers["b"]; f != nil {
			f.Witness = true
		}
	}
	h.run(time.Second)
	h.isolate("c", true)
	h.run(time.Second)
	h.isolate("a", true)
	began := h.now
	h.run(time.Second)
	// b is a witness and c is gone: d is the first.
	if took := h.replaced["d"] - began; took > 90*ms {
		t.Errorf("d stands after %v", took)
	}
	if later := h.replaced["e"] - h.replaced["d"]; later < heartbeat-10*ms {
		t.Errorf("e does not wait its turn: %v", h.replaced)
	}
	if len(h.replaced) != 2 {
		t.Errorf("stood: %v, want d and e", h.replaced)
	}
}

// TestDetectorOfADeadProcess: the host of a process that is known to be dead has not vanished, and the next
// process is known as soon as it has said hello.
func TestDetectorOfADeadProcess(t *testing.T) {
	h := newHall(t, 3)
	h.run(time.Second)
	h.ended["c"] = true
	h.await["c"] = nil
	h.ds["a"].Ended("c")
	h.ds["b"].Ended("c")
	h.run(time.Second)
	if _, gone := h.ds["a"].Reach("c"); gone {
		t.Error("the host of a killed process has vanished")
	}
	var peers []Host
	for _, f := range h.ds["a"].peers {
		peers = append(peers, f.Host)
	}
	c := h.ds["a"].peers["c"].Host
	peers = append(peers, Host{ID: "a", Addr: h.ds["b"].peers["a"].Addr})
	h.ended["c"] = false
	h.start(c, [8]byte{99})
	h.ds["c"].Follow(peers)
	h.run(100 * ms)
	if heard, _ := h.ds["a"].Reach("c"); heard {
		t.Error("heard without a key")
	}
	h.introduce("c")
	h.run(100 * ms)
	for _, id := range []string{"a", "b"} {
		if heard, _ := h.ds[id].Reach("c"); !heard {
			t.Errorf("%s does not hear the new process", id)
		}
	}
}

// TestDatagramsAreNotReplayed: a recorded datagram is no sign of life.
func TestDatagramsAreNotReplayed(t *testing.T) {
	h := newHall(t, 3)
	h.run(time.Second)
	var tape []parcel
	for range 20 {
		h.now += h.ds["a"].tick()
		h.look("a")
		tape = append(tape, h.await["b"]...)
		h.look("b")
		h.look("a")
	}
	h.isolate("a", true)
	for range 200 {
		h.run(5 * ms)
		h.await["b"] = append(h.await["b"], tape...)
	}
	if _, gone := h.ds["b"].Reach("a"); !gone {
		t.Error("a recording keeps a vanished peer alive")
	}
	if _, ok := h.replaced["b"]; !ok {
		t.Error("a recording keeps a leader alive")
	}
}

func TestDatagramsOfStrangersAreDropped(t *testing.T) {
	h := newHall(t, 2)
	h.run(100 * ms)
	b := h.ds["b"]
	good := datagram{kind: datagramProbe, from: "a", process: h.ds["a"].process, to: b.process, seq: 1 << 40,
		echo: b.peers["a"].seq, term: 9}
	sealed := good.seal(nil, newMacKey(b.secret.keyOf("a")))
	for at := range sealed {
		bad := slices.Clone(sealed)
		bad[at] ^= 1
		b.receive(&desk{h, "b"}, bad)
		b.receive(&desk{h, "b"}, sealed[:at])
	}
	if h.heard["b"] == 9 {
		t.Fatal("a changed datagram was taken")
	}
	b.receive(&desk{h, "b"}, sealed)
	if h.heard["b"] != 9 {
		t.Fatal("the right datagram was not taken: the test shows nothing")
	}
}

func FuzzDatagram(f *testing.F) {
	sealing := newMacKey([]byte("key"))
	d := datagram{kind: datagramReply, from: "a", seq: 3, silence: []silenceOf{{"b", 4}}}
	f.Add(d.seal(nil, sealing), true)
	f.Add([]byte("apD1"), false)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed { // past the MAC
			b = append(slices.Clone(b), sealing.mac(b)...)
		}
		got, err := openDatagram(b, func(string) *macKey { return sealing })
		if err != nil {
			return
		}
		again, err := openDatagram(got.seal(nil, sealing), func(string) *macKey { return sealing })
		if err != nil || fmt.Sprint(again) != fmt.Sprint(got) {
			t.Errorf("%v became %v (%v)", got, again, err)
		}
	})
}

// TestDetectorOnABusyLink: with a tenth of the datagrams lost and pauses of all peers in between, nobody is
// deposed, and after that a real loss is still found.
func TestDetectorOnABusyLink(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	h := newHall(t, 3)
	h.run(time.Second)
	for range 20_000 {
		for _, from := range h.ids {
			for _, to := range h.ids {
				h.cut[[2]string{from, to}] = rnd.IntN(10) == 0
			}
		}
		if id := h.ids[rnd.IntN(3)]; rnd.IntN(50) == 0 && h.asleep[id]+100*ms < h.now {
			h.asleep[id] = h.now + time.Duration(rnd.IntN(25))*ms
		}
		h.run(5 * ms)
	}
	if len(h.replaced) > 0 {
		t.Errorf("stood: %v", h.replaced)
	}
	clear(h.cut)
	h.isolate("a", true)
	began := h.now
	h.run(time.Second)
	if took := h.replaced["b"] - began; took < 0 || took > 200*ms {
		t.Errorf("stands %v after a real loss", took)
	}
}
