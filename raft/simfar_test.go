package raft

import (
	"fmt"
	"testing"
	"time"
)

// TestSimFarPeers: peers that are far apart take a longer heartbeat by themselves, and then rest; a lost holder has a
// successor within about what Status says.
func TestSimFarPeers(t *testing.T) {
	for _, trip := range []time.Duration{50 * ms, 150 * ms, 300 * ms} {
		t.Run(fmt.Sprint(trip), func(t *testing.T) {
			simulate(t, 1, 3, func(s *sim) {
				s.net.base, s.net.spread, s.slow = trip/2, trip/50, 20*time.Second
				for _, h := range s.hosts {
					s.boot(h, s.newDir(h.id))
				}
				began := time.Now()
				stretched := func() bool {
					for _, p := range s.running() {
						g := p.group.Load()
						if g == nil || g.cfg.Heartbeat < 7*trip {
							return false
						}
					}
					return true
				}
				s.await("all have the longer heartbeat, and one holds", 30*time.Second, func() bool {
					return stretched() && s.complete()
				})
				holder := s.holder()
				if holder == nil {
					return
				}
				status := holder.proc.group.Load().Status()
				t.Logf("after %v: heartbeat %v, a failover of %v is expected", time.Since(began), status.Heartbeat, status.Failover)
				s.slow = 0
				term := status.Term
				time.Sleep(30 * time.Second)
				if h := s.holder(); h != holder || h.proc.group.Load().Status().Term != term {
					s.wrong("the holder changed at rest")
					return
				}
				lost := time.Now()
				dir := s.crash(holder, true)
				s.await("a successor", 4*status.Failover, func() bool { return s.holder() != nil })
				t.Logf("a lost holder has a successor after %v", time.Since(lost))
				s.boot(holder, dir)
				s.await("all are back", 30*time.Second, s.complete)
				if h := s.holder(); h == nil || !stretched() {
					s.wrong("a peer that came back has another heartbeat")
				}
			})
		})
	}
}
