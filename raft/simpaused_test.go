package raft

import (
	"testing"
	"time"
)

// TestSimPausedMachine: a holder whose machine is paused together with its clock has most of its lease left when it goes
// on. It uses none of it, because the clock of the hypervisor shows the pause.
func TestSimPausedMachine(t *testing.T) {
	playDisks(t, func(s *sim) {
		for round := range 20 {
			s.await("a whole group", time.Minute, s.complete)
			h := s.holder()
			if h == nil {
				continue
			}
			before := h.proc.group.Load().Status().Counters.Standstills
			time.Sleep(time.Duration(round) * 7 * ms) // anywhere in the course of a lease
			s.say("the machine of %s is paused", h.id)
			d := time.Duration(200+50*round) * ms
			h.pause(d)
			s.await("a successor", simBound, func() bool { return s.holder() != nil && s.holder() != h })
			time.Sleep(d)
			if n := h.proc.group.Load().Status().Counters.Standstills; n == before {
				s.wrong("%s does not say that its machine stood still", h.id)
			}
		}
	})
}

// TestSimThreads: at each place where the code meets the world, a thread of the holder stands still for longer than a
// lease, and meanwhile the holder is cut off.
func TestSimThreads(t *testing.T) {
	playDisks(t, func(s *sim) {
		for round := range 12 * int(beforeAnswer+1) {
			if !s.await("a whole group", time.Minute, s.complete) {
				return
			}
			h := s.holder()
			if h == nil {
				continue
			}
			at, d := place(round%int(beforeAnswer+1)), time.Duration(60+s.rnd.IntN(200))*ms
			h.arm(at, d)
			time.Sleep(time.Duration(s.rnd.IntN(15)) * ms)
			(&unrest{sim: s}).cut("%s is cut off", h, true, true)
			time.Sleep(d + 100*ms)
			h.disarm()
			s.net.heal()
			s.net.mu.Lock()
			s.calm = time.Now()
			s.net.mu.Unlock()
		}
	})
}
