package overview

import (
	"errors"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/status"
	"appliance/status/report"
	"appliance/status/statustest"
)

// view is the overview of n1 after change.
func view(t *testing.T, change func(c *statustest.Cluster, others peers)) Overview {
	t.Helper()
	now := time.Now()
	c := statustest.New(t, now, 2, 3)
	for id := range c.Snapshots { // nobody waits
		c.Edit(id, func(s *status.Snapshot) {
			s.LoadBalancers[1].Queued, s.LoadBalancers[1].Backends[0].Traffic.Queued = 0, 0
		})
	}
	others := peers{}
	for _, id := range []string{"n2", "n3"} {
		others[id] = report.PeerReport{ID: id, At: now}
	}
	if change != nil {
		change(c, others)
	}
	for id, one := range others {
		if one.Err == nil && one.Report == nil {
			r := report.Make(c.Snapshots[id], c.Journals[id], c.Samples[id])
			one.Report = &r
			others[id] = one
		}
	}
	r := report.Make(c.Snapshots["n1"], c.Journals["n1"], c.Samples["n1"])
	return New(report.PeerReport{ID: "n1", Report: &r, At: now}, others, c.Samples["n1"])
}

// peers are the reports of the other nodes by id.
type peers = map[string]report.PeerReport

func TestVerdict(t *testing.T) {
	mend := func(c *statustest.Cluster) { // the one backend that is down in a cast
		for id := range c.Snapshots {
			c.Edit(id, func(s *status.Snapshot) { s.LoadBalancers[0].Backends[2].State = balancer.Up })
		}
	}
	for name, tt := range map[string]struct {
		change func(c *statustest.Cluster, others peers)
		level  level
		say    string
	}{
		"well": {func(c *statustest.Cluster, _ peers) { mend(c) }, good, "All is well: n2 answers for the virtual addresses"},
		"a backend is down": {nil, warn, "Clients are served, with one thing to look at: " +
			"kube-apiserver / 10.77.0.13:6443 is down: connection refused"},
		"a peer is gone": {func(c *statustest.Cluster, o peers) {
			mend(c)
			o["n3"] = report.PeerReport{ID: "n3", Err: errors.New("refused")}
		}, warn, "one thing to look at: n3 does not answer n1"},
		"nobody holds": {func(c *statustest.Cluster, o peers) {
			o["n2"] = report.PeerReport{ID: "n2", Err: errors.New("refused")}
			for _, id := range []string{"n1", "n3"} {
				c.Edit(id, func(s *status.Snapshot) { s.Holder = "" })
			}
		}, bad, "Trouble: nobody answers for the virtual addresses"},
		"two hold": {func(c *statustest.Cluster, _ peers) {
			c.Edit("n3", func(s *status.Snapshot) { s.Group.Holding, s.Holder = true, "n3" })
		}, bad, "n2 and n3 say at once that they hold"},
		"a peer disagrees": {func(c *statustest.Cluster, _ peers) {
			c.Edit("n3", func(s *status.Snapshot) { s.Holder = "n1" })
		}, bad, "n3 says that n1 holds"},
		"the holder has no backend": {func(c *statustest.Cluster, _ peers) {
			c.Edit("n2", func(s *status.Snapshot) {
				for i := range s.LoadBalancers[0].Backends {
					s.LoadBalancers[0].Backends[i].State = balancer.Down
				}
			})
		}, bad, "kube-apiserver has no healthy backend; its clients are refused"},
		"only this node has no backend": {func(c *statustest.Cluster, _ peers) {
			c.Edit("n1", func(s *status.Snapshot) {
				for i := range s.LoadBalancers[0].Backends {
					s.LoadBalancers[0].Backends[i].State = balancer.Down
				}
			})
		}, warn, "Clients are served, with 3 things to look at"},
		"a stranger claims": {func(c *statustest.Cluster, _ peers) {
			mend(c)
			c.Edit("n2", func(s *status.Snapshot) {
				s.VIPs[0].ForeignClaims, s.VIPs[0].ForeignMAC, s.VIPs[0].ForeignAt = 1, "02:bad", s.Time.Add(-time.Minute)
			})
		}, bad, "another machine (02:bad) has claimed 10.77.0.10"},
		"a backend is down elsewhere": {func(c *statustest.Cluster, _ peers) {
			mend(c)
			c.Edit("n3", func(s *status.Snapshot) { s.LoadBalancers[1].Backends[0].State = balancer.Down })
		}, warn, "ingress / 10.77.1.11:6444 is down on n3"},
		"a backend is passed over": {func(c *statustest.Cluster, _ peers) {
			mend(c)
			c.Edit("n2", func(s *status.Snapshot) { s.LoadBalancers[1].Backends[0].PassedOver = "no path to n1" })
		}, warn, "ingress / 10.77.1.11:6444 gets no new connections from n2: no path to n1"},
		"a host with a backend of each is down": {func(c *statustest.Cluster, _ peers) {
			mend(c)
			c.Edit("n1", func(s *status.Snapshot) {
				for i := range s.LoadBalancers {
					for k := range 2 {
						be := &s.LoadBalancers[i].Backends[k]
						be.State, be.Reason = balancer.Down, "gone"
					}
				}
			})
		}, warn, "4 backends (of ingress, kube-apiserver) are down: gone"},
		"all backends are passed over": {func(c *statustest.Cluster, _ peers) {
			mend(c)
			c.Edit("n2", func(s *status.Snapshot) {
				for i := range s.LoadBalancers[1].Backends {
					s.LoadBalancers[1].Backends[i].PassedOver = "no path"
				}
			})
		}, bad, "ingress has no healthy backend; its clients are refused"},
		"clients wait": {func(c *statustest.Cluster, _ peers) {
			mend(c)
			c.Edit("n1", func(s *status.Snapshot) { s.LoadBalancers[1].Queued = 2 })
			c.Edit("n2", func(s *status.Snapshot) { s.LoadBalancers[1].Backends[0].Traffic.Queued = 4 })
		}, warn, "ingress has 6 connections in its queue"},
		"a node is unfit": {func(c *statustest.Cluster, _ peers) {
			mend(c)
			c.Edit("n1", func(s *status.Snapshot) { s.Group.Peers[2].Unfit = "track uplink: exit code 1" })
		}, warn, "n3 would rather not hold: track uplink: exit code 1"},
		"a node runs twice": {func(c *statustest.Cluster, _ peers) {
			mend(c)
			c.Edit("n3", func(s *status.Snapshot) { s.Group.Peers[2].Doubled = "two processes run with the id n3" })
		}, warn, "one thing to look at: two processes run with the id n3"},
		"a node is short of files": {func(c *statustest.Cluster, _ peers) {
			mend(c)
			c.Edit("n3", func(s *status.Snapshot) {
				s.Shortages = []balancer.Shortage{
					{Of: "files", At: "accept", Active: true}, {Of: "ports", At: "dial"}, // the second is over
				}
			})
		}, warn, "n3 is " + balancer.Shortage{Of: "files", At: "accept"}.Words()},
		"a node is not ready": {func(c *statustest.Cluster, _ peers) {
			mend(c)
			c.Edit("n3", func(s *status.Snapshot) { s.NotReady = []status.NotReady{{Kind: status.NoCarrier, Subject: "eth0"}} })
		}, warn, "n3: eth0 has no carrier"},
		"the dead holder's last word": {func(c *statustest.Cluster, o peers) {
			mend(c)
			r := report.Make(c.Snapshots["n2"], c.Journals["n2"], c.Samples["n2"])
			o["n2"] = report.PeerReport{ID: "n2", Report: &r, At: c.Time}
			for _, id := range []string{"n1", "n3"} {
				c.Edit(id, func(s *status.Snapshot) { s.Term, s.Holder = 5, "n3" })
			}
			c.Edit("n3", func(s *status.Snapshot) { s.Group.Holding = true })
		}, good, "All is well: n3 answers for the virtual addresses"},
	} {
		t.Run(name, func(t *testing.T) {
			m := view(t, tt.change)
			all := m.Verdict.Headline
			for _, p := range m.Verdict.Problems {
				all += "\n" + p.Text
			}
			if m.Verdict.Level != tt.level || !strings.Contains(all, tt.say) {
				t.Errorf("%s: %s", m.Verdict.Level, all)
			}
		})
	}
}

// Clients behind routers are served by whoever announces; nobody has to answer on the link.
func TestVerdictOfRoutedAddresses(t *testing.T) {
	edit := func(c *statustest.Cluster, id string, f func(a *status.AnnounceView)) {
		c.Edit(id, func(s *status.Snapshot) { f(s.Announce) })
	}
	withdraw := func(c *statustest.Cluster, id string) {
		edit(c, id, func(a *status.AnnounceView) {
			a.Addresses[0].Announced, a.Addresses[0].Reason = false, "this node is drained"
			for i := range a.Sessions {
				a.Sessions[i].Announced = nil
			}
		})
	}
	for name, tt := range map[string]struct {
		change func(c *statustest.Cluster)
		level  level
		say    string
	}{
		"well": {func(*statustest.Cluster) {}, good, "All is well: n1, n2 and n3 announce the virtual addresses"},
		"drained": {func(c *statustest.Cluster) { withdraw(c, "n1") }, good,
			"All is well: n2 and n3 announce the virtual addresses"},
		"one left": {func(c *statustest.Cluster) { withdraw(c, "n1"); withdraw(c, "n3") }, good,
			"All is well: n2 announces the virtual addresses"},
		"others stand by": {func(c *statustest.Cluster) {
			for _, id := range []string{"n1", "n3"} {
				edit(c, id, func(a *status.AnnounceView) { a.Addresses[0].Standby = true })
			}
		}, good, "All is well: n2 announces the virtual addresses"},
		"all stand by": {func(c *statustest.Cluster) {
			for _, id := range []string{"n1", "n2", "n3"} {
				edit(c, id, func(a *status.AnnounceView) { a.Addresses[0].Standby = true })
			}
		}, good, "All is well: n1, n2 and n3 announce the virtual addresses"},
		"nobody": {func(c *statustest.Cluster) { withdraw(c, "n1"); withdraw(c, "n2"); withdraw(c, "n3") }, bad,
			"Trouble: no node tells routers of 198.51.100.10; n1: this node is drained; n2: "},
		"a lost router": {func(c *statustest.Cluster) {
			for _, id := range []string{"n1", "n2"} {
				edit(c, id, func(a *status.AnnounceView) {
					a.Sessions[0].State, a.Sessions[0].Reason, a.Sessions[0].Announced = "connecting", "gone", nil
				})
			}
		}, warn, "one thing to look at: n1, n2: no BGP session with router 10.77.0.1: gone"},
		"all routers are lost to all": {func(c *statustest.Cluster) {
			for _, id := range []string{"n1", "n2", "n3"} {
				edit(c, id, func(a *status.AnnounceView) {
					for i := range a.Sessions {
						a.Sessions[i].State, a.Sessions[i].Reason, a.Sessions[i].Announced = "idle", "gone", nil
					}
				})
			}
		}, bad, "Trouble: no node tells routers of 198.51.100.10; n1: no router has been told; n2: "},
		"no BFD": {func(c *statustest.Cluster) {
			edit(c, "n2", func(a *status.AnnounceView) { a.Sessions[1].BFD.State = "down" })
		}, warn, "n2: router 10.77.0.2 is not heard by BFD, so its end would be noticed late"},
		"untold": {func(c *statustest.Cluster) {
			edit(c, "n2", func(a *status.AnnounceView) { a.Sessions[1].Untold = []string{"fd00::1: no family"} })
		}, warn, "n2: router 10.77.0.2 is not told of fd00::1: no family"},
		"nobody holds": {func(c *statustest.Cluster) {
			for _, id := range []string{"n1", "n2", "n3"} {
				c.Edit(id, func(s *status.Snapshot) { s.Holder, s.Group.Holding = "", false })
			}
		}, warn, "one thing to look at: nobody holds, as far as n1 knows"},
	} {
		t.Run(name, func(t *testing.T) {
			m := view(t, func(c *statustest.Cluster, _ peers) {
				c.Route()
				for id := range c.Snapshots {
					c.Edit(id, func(s *status.Snapshot) {
						s.VIPs = s.VIPs[2:] // those of the link
						s.LoadBalancers[0].Backends[2].State = balancer.Up
						other := &s.Announce.Sessions[1] // which n3 lacks in a cast
						other.State, other.Reason, other.Announced = "established", "", s.Announce.Sessions[0].Announced
						other.BFD = &status.BFDView{State: "up"}
					})
				}
				tt.change(c)
			})
			all := m.Verdict.Headline
			for _, p := range m.Verdict.Problems {
				all += "\n" + p.Text
			}
			if m.Verdict.Level != tt.level || !strings.Contains(all, tt.say) {
				t.Errorf("%s: %s", m.Verdict.Level, all)
			}
		})
	}
}

// What the new holder measured itself counts more than what others saw.
func TestTenures(t *testing.T) {
	m := view(t, func(c *statustest.Cluster, _ peers) {
		for _, id := range []string{"n1", "n2"} {
			took := map[string]time.Duration{"n1": 90 * time.Millisecond, "n2": 12 * time.Millisecond}[id]
			c.Journals[id].Add(status.Event{
				Kind: status.OfHolder, What: "holds", Subject: "n2", From: "n1", To: "n2", Term: 9, Took: took,
				Reason: "by " + id, Time: c.Time.Add(-time.Second),
			})
		}
	})
	last := m.Tenures[0]
	if last.Holder != "n2" || last.Took != 12*time.Millisecond || last.Cause != "by n2" || !last.ByNewHolder ||
		!last.Until.IsZero() {
		t.Errorf("the last tenure is %+v", last)
	}
	before := m.Tenures[1]
	if want := 90*time.Minute - time.Second; before.Lasted.Round(time.Second) != want ||
		before.Took != 14*time.Millisecond {
		t.Errorf("the one before lasted %s, want %s: %+v", before.Lasted, want, before)
	}
}

// An event that all nodes saw is shown once.
func TestEventsOfAllNodes(t *testing.T) {
	m := view(t, nil)
	found := false
	for _, e := range m.Events {
		if e.Kind == status.OfHolder && e.Term == 4 {
			if found {
				t.Error("told twice")
			}
			found = strings.Join(e.Nodes, " ") == "n1 n2 n3"
		}
	}
	if !found {
		t.Errorf("the holder's event is missing, or not of all nodes: %+v", m.Events)
	}
	if e := m.Events[0]; e.Kind != status.OfBackend || strings.Join(e.Nodes, " ") != "n2" {
		t.Errorf("the newest is %+v", e)
	}
}
