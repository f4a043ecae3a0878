package web

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// flood guesses from n addresses without pause until the test ends.
func flood(g *guesses, stop <-chan struct{}, n int, at func(i int) string) *sync.WaitGroup {
	var all sync.WaitGroup
	for i := range n {
		for range 3 {
			all.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if done, ok := g.wait(at(i)); ok {
						time.Sleep(60 * time.Millisecond) // as long as bcrypt takes
						done(false)
					} else {
						time.Sleep(100 * time.Millisecond)
					}
				}
			})
		}
	}
	return &all
}

// Whoever guesses, from however many addresses, does not keep out somebody who comes from another one.
func TestGuessesLockNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuesses()
		stop := make(chan struct{})
		all := flood(g, stop, 50, func(i int) string { return fmt.Sprintf("198.51.100.%d:4000", i) })
		time.Sleep(20 * time.Second)
		for i := range 20 {
			began := time.Now()
			done, ok := g.wait(fmt.Sprintf("[2001:db8::%x:1]:5000", i))
			if !ok {
				t.Fatalf("visitor %d is sent away after %s", i, time.Since(began))
			}
			done(true)
			time.Sleep(time.Second)
		}
		close(stop)
		all.Wait()
	})
}

// Somebody at the guesser's own address gets in too, after some tries.
func TestGuessesFromTheSameAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuesses()
		stop := make(chan struct{})
		all := flood(g, stop, 1, func(int) string { return "192.0.2.1:4000" })
		time.Sleep(20 * time.Second)
		for try := 0; ; try++ {
			if done, ok := g.wait("192.0.2.1:5000"); ok {
				done(true)
				break
			}
			if try == 1000 {
				t.Fatal("kept out for good")
			}
		}
		close(stop)
		all.Wait()
	})
}

// All guesses together cost a bounded part of one core, and a bounded memory.
func TestGuessesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuesses()
		var mu sync.Mutex
		n, most := 0, 0
		for i := range 5000 {
			go func() {
				if done, ok := g.wait(fmt.Sprintf("[2001:db8:%x::1]:4000", i)); ok {
					done(false)
					mu.Lock()
					n++
					mu.Unlock()
				}
			}()
			if i%100 == 0 {
				time.Sleep(100 * time.Millisecond)
			}
			g.mu.Lock()
			most = max(most, len(g.guessers))
			g.mu.Unlock()
		}
		time.Sleep(2 * turnWithin)
		mu.Lock()
		defer mu.Unlock()
		if limit := checkBurst + 10*checksPerSecond; n > limit || n == 0 {
			t.Errorf("%d of 5000 guesses were checked within 7 s", n)
		}
		if most > maxGuessers {
			t.Errorf("%d addresses are remembered", most)
		}
	})
}
