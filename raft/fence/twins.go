package fence

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Twins notices that two processes live which say that they are the same peer. A restart is not that: the process
// before it may still say what its kernel sends late, and no more ([maxLate]).
type Twins struct {
	mu   sync.Mutex
	seen map[string]*voices
}

// voices are the processes that speak as one peer.
type voices struct {
	now    voice
	former []voice // those that others have followed
	text   string
	until  time.Time // text is true until then
}

type voice struct {
	process string
	at      string
	last    time.Time
	words   int // since another one followed it
}

// TwinLasts is for how long two processes count as alive after the last proof of it. As both go on, they prove it every
// few seconds; and one that is restarted has come back by then, so that the other does not take its place meanwhile.
const TwinLasts = 30 * time.Second

// Hear notes that process spoke as peer, from an address. It says what is wrong when that shows for the first time.
func (t *Twins) Hear(peer, process string, from netip.Addr, now time.Time) (began string) {
	if process == "" {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.voices(peer)
	if v == nil {
		return ""
	}
	at := from.Unmap().String()
	if process == v.now.process {
		v.now.at, v.now.last = at, now
		return ""
	}
	again := voice{process: process, at: at, last: now}
	i := slices.IndexFunc(v.former, func(f voice) bool { return f.process == process })
	if i >= 0 {
		again.words = v.former[i].words + 1
		if v.former[i] = again; again.words <= maxLate {
			return ""
		}
		v.former = slices.Delete(v.former, i, i+1)
	}
	other := v.now
	again.words, other.words = 0, 0
	v.now = again
	if other.process != "" {
		v.former = last(append(v.former, other))
	}
	if i < 0 || now.Sub(other.last) > TwinLasts {
		return ""
	}
	return v.prove(peer, other.at, at, now)
}

// Prove notes that two processes of peer live, at a and at b. It is as Hear.
func (t *Twins) Prove(peer, a, b string, now time.Time) (began string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.voices(peer)
	if v == nil {
		return ""
	}
	return v.prove(peer, a, b, now)
}

func (v *voices) prove(peer, a, b string, now time.Time) (began string) {
	was := v.text != "" && now.Before(v.until)
	v.text, v.until = Twice(peer, a, b), now.Add(TwinLasts)
	if was {
		return ""
	}
	return v.text
}

// voices are those of peer, nil if too many peers are known. The caller holds mu.
func (t *Twins) voices(peer string) *voices {
	v := t.seen[peer]
	if v == nil && len(t.seen) < maxPeers {
		if t.seen == nil {
			t.seen = make(map[string]*voices)
		}
		v = &voices{}
		t.seen[peer] = v
	}
	return v
}

// Of says what is wrong with peer, or "".
func (t *Twins) Of(peer string, now time.Time) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v := t.seen[peer]; v != nil && now.Before(v.until) {
		return v.text
	}
	return ""
}

// Twice says that two processes run with the id of peer, and what to do.
func Twice(peer, a, b string) string {
	where, own := fmt.Sprintf("one at %s and one at %s", a, b), "another localPeer.id"
	if a == b {
		where, own = fmt.Sprintf("both at %s", a), "another address and localPeer.id"
	}
	return fmt.Sprintf("two processes run with the id %s, %s: stop the one that does not belong there, give it %s, and "+
		"remove its data directory", peer, where, own)
}
