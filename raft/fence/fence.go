package fence

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Told is what a peer tells of itself in hello.
type Told struct {
	// Cluster is the name of its group, "" if it has none yet. HasState is false for a peer that is in none.
	Cluster  string `json:"cluster,omitempty"`
	HasState bool   `json:"hasState,omitempty"`
	// Fenced is false for a version that stamps no RPC.
	Fenced bool `json:"fenced,omitempty"`
	// Process differs between two processes, Disk between two data directories that are no copies of each other.
	// Boots counts the starts of the data directory; 0: not known.
	Process string `json:"process,omitempty"`
	Disk    string `json:"disk,omitempty"`
	Boots   uint64 `json:"boots,omitempty"`
	// Term and Last are the term and the last index on its disk. Commit is what it knows to be on a majority.
	Term   uint64 `json:"term,omitempty"`
	Last   uint64 `json:"last,omitempty"`
	Commit uint64 `json:"commit,omitempty"`
	// Floor is the term up to which it gives no vote, since a leader has brought it up to date. Withheld says
	// that it knows that its disk went backwards, and gives none at all.
	Floor    uint64 `json:"floor,omitempty"`
	Withheld bool   `json:"withheld,omitempty"`
}

// Reached is the most that a peer has told of its disk.
type Reached struct {
	Process string `json:"process"`
	Disk    string `json:"disk"`
	Boots   uint64 `json:"boots"`
	Term    uint64 `json:"term"`
	Commit  uint64 `json:"commit"`
	// Former are earlier data directories of the peer.
	Former []string `json:"former,omitempty"`
	// Backwards is why its votes do not count, or "".
	Backwards string `json:"backwards,omitempty"`
}

// Fence knows what each peer has told to this process.
type Fence struct {
	own    func() string
	member func(peer string) bool

	mu      sync.Mutex
	told    map[string]Told
	reached map[string]Reached
	gone    map[string][]gone // by peer: processes that others have followed
}

// gone is a process after which another one of the same peer has told, and how many words of it came since.
type gone struct {
	process string
	late    int
}

// maxLate is how many words of a process that has ended may still come. The kernel of its host goes on sending them,
// and after a partition tries again less and less often (RFC 6298, section 5.5). There is one at most on each
// connection, because a peer waits for the answer before it asks again. A process that says more than that lives: two
// run with one id.
const maxLate = 3

// maxPeers bounds what is remembered, because in insecure mode anybody can call itself anything.
const maxPeers = 64

// maxFormer bounds how many earlier disks and processes of a peer are remembered.
const maxFormer = 8

// New returns the fence of a peer whose group is called own, which may be "" at first. Member says whether a
// peer is in this peer's configuration; it is true for every peer as long as there is none.
func New(own func() string, member func(peer string) bool, reached map[string]Reached) *Fence {
	if reached == nil {
		reached = make(map[string]Reached)
	}
	return &Fence{own: own, member: member, told: make(map[string]Told), reached: reached,
		gone: make(map[string][]gone)}
}

// itself is why the votes of a peer do not count that gives none.
const itself = "as it says itself"

// Learn notes what a process of peer has told. Late says that it counts for nothing, because the process has ended and
// another one has told since. Keep is true if Reached is worth storing.
func (f *Fence) Learn(peer string, t Told) (keep, late bool) {
	own := f.own()
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.told[peer]; !known && len(f.told) >= maxPeers {
		return false, false
	}
	if f.isLate(peer, t.Process) {
		return false, true
	}
	before := cmp.Or(f.told[peer].Process, f.reached[peer].Process)
	if before != "" && t.Process != "" && before != t.Process {
		f.gone[peer] = last(append(f.gone[peer], gone{process: before}))
	}
	f.told[peer] = t
	was, known := f.reached[peer]
	// A copy from before the group had a name is of this group if the disk is.
	of := t.Cluster == own || t.Cluster == "" && known && t.Disk == was.Disk
	if t.Boots == 0 || !t.HasState || own == "" || !of {
		return false, false // of a version that tells nothing of this, or not in the group
	}
	now := Reached{
		Process: t.Process, Disk: t.Disk, Boots: max(was.Boots, t.Boots), Term: max(was.Term, t.Term),
		Commit: max(was.Commit, t.Commit), Former: was.Former, Backwards: was.Backwards,
	}
	switch {
	case known && t.Disk != was.Disk:
		now.Former = last(append(slices.Clone(was.Former), was.Disk))
		switch {
		case slices.Contains(was.Former, t.Disk):
			now.Boots, now.Backwards = t.Boots, "an earlier disk of this peer is back"
		case t.Withheld:
			now.Backwards = itself
		default:
			// A peer with a new disk had no vote until it had the log: nothing that it has said can be forgotten.
			now.Boots, now.Term, now.Commit, now.Backwards = t.Boots, t.Term, t.Commit, ""
		}
	case t.Withheld && was.Backwards == "":
		now.Backwards = itself
	case was.Backwards != "":
		if !t.Withheld && t.Floor >= was.Term && t.Commit >= was.Commit {
			now.Backwards = ""
		}
	case !known || was.Process == t.Process:
	case t.Boots <= was.Boots:
		now.Backwards = fmt.Sprintf("started %d times, and had been started %d times before", t.Boots, was.Boots)
	case t.Term < was.Term:
		now.Backwards = fmt.Sprintf("term %d, and had been in term %d before", t.Term, was.Term)
	case t.Last < was.Commit:
		now.Backwards = fmt.Sprintf("its log ends at %d, and %d had been there before", t.Last, was.Commit)
	}
	f.reached[peer] = now
	return !known || was.Process != now.Process || was.Backwards != now.Backwards || was.Term != now.Term ||
		was.Commit != now.Commit, false
}

func last[T any](former []T) []T { return former[max(0, len(former)-maxFormer):] }

// isLate says that process of peer has ended, as far as is known, and counts its words. The caller holds mu.
func (f *Fence) isLate(peer, process string) bool {
	i := slices.IndexFunc(f.gone[peer], func(g gone) bool { return g.process == process })
	if i < 0 {
		return false
	}
	if f.gone[peer][i].late++; f.gone[peer][i].late > maxLate {
		f.gone[peer] = slices.Delete(f.gone[peer], i, i+1)
		return false
	}
	return true
}

// Told is what peer has told to this process.
func (f *Fence) Told(peer string) (t Told, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, known = f.told[peer]
	return t, known
}

// Reached is what is to be stored, and handed to New at the next start.
func (f *Fence) Reached() map[string]Reached {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string]Reached, len(f.reached))
	for id, r := range f.reached {
		all[id] = r
	}
	return all
}

// ReachedBy is the most that peer has told of its disk.
func (f *Fence) ReachedBy(peer string) Reached {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reached[peer]
}

// ErrStranger is the refusal of a peer of another group.
var ErrStranger = errors.New("it belongs to another group")

// ErrBackwards is the refusal of a peer whose disk went backwards.
var ErrBackwards = errors.New("its disk went backwards, as if restored from an older copy")

// Refusal says why peer is granted nothing, and why neither its votes nor its grants count, or nil.
func (f *Fence) Refusal(peer string) error {
	own := f.own()
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.told[peer]; own != "" && t.Cluster != "" && t.Cluster != own {
		return fmt.Errorf("peer %s: %w (%.8s, not %.8s)", peer, ErrStranger, t.Cluster, own)
	}
	if r := f.reached[peer]; r.Backwards != "" {
		return fmt.Errorf("peer %s: %w: %s", peer, ErrBackwards, r.Backwards)
	}
	return nil
}

// Admits says why raft must not see an RPC of peer, which names cluster if it is stamped, or nil.
func (f *Fence) Admits(peer, cluster string, stamped bool) error {
	own := f.own()
	f.mu.Lock()
	t, known := f.told[peer]
	f.mu.Unlock()
	if !stamped {
		if known && t.Fenced {
			return fmt.Errorf("peer %s: the message names no group, and its sender can", peer)
		}
		cluster = t.Cluster
	}
	switch {
	case own != "" && cluster != "" && own != cluster:
		return fmt.Errorf("peer %s: %w (%.8s, not %.8s)", peer, ErrStranger, cluster, own)
	case own == "" || cluster == "":
		if !f.member(peer) {
			return fmt.Errorf("peer %s: the message names no group, and its sender is no member", peer)
		}
	}
	return nil
}

// stampMark ends the address in a stamped one. No address has such a byte.
const stampMark = 0

// Stamp has addr, the sender's in an RPC, name the group as well.
func Stamp(addr []byte, cluster string) []byte {
	stamped := make([]byte, 0, len(addr)+1+len(cluster))
	return append(append(append(stamped, addr...), stampMark), cluster...)
}

// Unstamp is the opposite of Stamp.
func Unstamp(stamped []byte) (addr []byte, cluster string, is bool) {
	addr, name, is := bytes.Cut(stamped, []byte{stampMark})
	return addr, string(name), is
}
