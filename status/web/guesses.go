package web

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Wrong passwords cost time: bcrypt is slow on purpose, and the node has other work. So there is one check at a time,
// few per second, and fewer for an address from which wrong ones come. Nobody is shut out for the guesses of others:
// who comes from an address without wrong guesses goes first, and chance decides between equals.
const (
	checksPerSecond = 5 // of all addresses
	checkBurst      = 10
	guessEvery      = 2 * time.Second // of one address, after guessBurst
	guessBurst      = 10
	// turnWithin is how long somebody waits for a turn before being told to come again.
	turnWithin = time.Second
	// maxWaiting and maxWaitingHere bound those who wait, of all addresses and of one.
	maxWaiting, maxWaitingHere = 64, 4
	// maxGuessers bounds the addresses that are remembered, and guesserFor how long.
	maxGuessers = 1024
	guesserFor  = 10 * time.Minute
	lookAgain   = 50 * time.Millisecond
)

// guesses decides whose password is checked next.
type guesses struct {
	checks *rate.Limiter

	mu       sync.Mutex
	guessers map[netip.Prefix]*guesser
	waiting  []*guess
	busy     bool
	looking  bool // a timer will look again
}

// guesser is an address, of IPv6 its /64, as one host has.
type guesser struct {
	limit   *rate.Limiter
	wrong   int
	waiting int
	last    time.Time
}

// guess is a password that waits to be checked.
type guess struct {
	of   *guesser
	turn chan bool // false: others come first
}

func newGuesses() *guesses {
	return &guesses{checks: rate.NewLimiter(checksPerSecond, checkBurst), guessers: make(map[netip.Prefix]*guesser)}
}

// wait waits for a turn. Whoever gets one calls done with the outcome.
func (g *guesses) wait(remote string) (done func(right bool), ok bool) {
	g.mu.Lock()
	of := g.guesser(remote)
	if of.waiting >= maxWaitingHere || len(g.waiting) >= maxWaiting && !g.displace(of) {
		g.mu.Unlock()
		return nil, false
	}
	me := &guess{of, make(chan bool, 1)}
	of.waiting++
	g.waiting = append(g.waiting, me)
	g.next()
	g.mu.Unlock()

	late := time.NewTimer(turnWithin)
	defer late.Stop()
	select {
	case ok = <-me.turn:
	case <-late.C:
		g.mu.Lock()
		if i := slices.Index(g.waiting, me); i >= 0 {
			g.remove(i)
		} else {
			ok = <-me.turn // it has come meanwhile
		}
		g.mu.Unlock()
	}
	if !ok {
		return nil, false
	}
	return func(right bool) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.busy = false; right {
			of.wrong = 0
		} else {
			of.wrong++
		}
		g.next()
	}, true
}

// guesser is who comes from an address. The caller holds mu.
func (g *guesses) guesser(remote string) *guesser {
	key, now := hostOf(remote), time.Now()
	of := g.guessers[key]
	if of == nil {
		if len(g.guessers) >= maxGuessers {
			g.forget(now)
		}
		of = &guesser{limit: rate.NewLimiter(rate.Every(guessEvery), guessBurst)}
		g.guessers[key] = of
	}
	of.last = now
	return of
}

// forget makes room for another address. The caller holds mu.
func (g *guesses) forget(now time.Time) {
	var least netip.Prefix
	found := false
	for key, of := range g.guessers {
		switch {
		case of.waiting > 0:
		case now.Sub(of.last) > guesserFor:
			delete(g.guessers, key)
		case !found || of.wrong < g.guessers[least].wrong:
			least, found = key, true
		}
	}
	if len(g.guessers) >= maxGuessers {
		delete(g.guessers, least)
	}
}

// displace sends away somebody with more wrong guesses than of. The caller holds mu.
func (g *guesses) displace(of *guesser) bool {
	worst := slices.MaxFunc(g.waiting, func(a, b *guess) int { return a.of.wrong - b.of.wrong })
	if worst.of.wrong <= of.wrong {
		return false
	}
	g.remove(slices.Index(g.waiting, worst))
	worst.turn <- false
	return true
}

// remove takes one out of those who wait. The caller holds mu.
func (g *guesses) remove(i int) {
	g.waiting[i].of.waiting--
	g.waiting = slices.Delete(g.waiting, i, i+1)
}

// next gives somebody a turn, if it is time for one. The caller holds mu.
func (g *guesses) next() {
	if g.busy || len(g.waiting) == 0 {
		return
	}
	best, equals := -1, 0
	for i, w := range g.waiting {
		if w.of.limit.Tokens() < 1 {
			continue
		}
		switch {
		case best < 0 || w.of.wrong < g.waiting[best].of.wrong:
			best, equals = i, 1
		case w.of.wrong == g.waiting[best].of.wrong:
			if equals++; rand.IntN(equals) == 0 {
				best = i
			}
		}
	}
	if best < 0 || !g.checks.Allow() {
		if !g.looking {
			g.looking = true
			time.AfterFunc(lookAgain, func() {
				g.mu.Lock()
				defer g.mu.Unlock()
				g.looking = false
				g.next()
			})
		}
		return
	}
	w := g.waiting[best]
	w.of.limit.Allow()
	g.remove(best)
	g.busy = true
	w.turn <- true
}
