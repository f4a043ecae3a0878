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
