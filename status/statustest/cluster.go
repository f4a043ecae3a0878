package statustest

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/status"
	"appliance/status/history"
	"appliance/status/journal"
	"appliance/status/report"
)

// A Cluster is a made-up group of n1, n2 and n3, of which n2 is the holder. The maps are by node.
type Cluster struct {
	Snapshots map[string]status.Snapshot
	Journals  map[string]*journal.Journal
	Samples   map[string]*history.Samples
	// Time is that of the snapshots.
	Time time.Time

	loadBalancers, backends int // backends of each load balancer
}

// New makes a cluster with lbs load balancers of each backends. The last backend of the first load balancer is down.
func New(t testing.TB, at time.Time, lbs, each int) *Cluster {
	c := &Cluster{
		Time: at, loadBalancers: lbs, backends: each, Snapshots: map[string]status.Snapshot{},
		Journals: map[string]*journal.Journal{}, Samples: map[string]*history.Samples{},
	}
	for i, id := range []string{"n1", "n2", "n3"} {
		c.Snapshots[id] = c.snapshot(id, i)
		c.Journals[id] = journal.Open(t.TempDir(), id, slog.New(slog.DiscardHandler))
		c.Samples[id] = history.New()
	}
	for _, id := range []string{"n1", "n2", "n3"} {
		j := c.Journals[id]
		j.Add(status.Event{Time: at.Add(-50 * time.Hour), Kind: status.OfProcess, What: "started", Reason: "version v0.1.0"})
		j.Add(status.Event{
			Time: at.Add(-49 * time.Hour), Kind: status.OfHolder, Subject: "n3", What: "holds", To: "n3",
			Reason: "the first that this node knows of in this run", Term: 2,
		})
		j.Add(status.Event{
			Time: at.Add(-26 * time.Hour), Kind: status.OfHolder, Subject: "n1", What: "holds", From: "n3", To: "n1",
			Reason: "handed over by n3", Took: 11 * time.Millisecond, Term: 3,
		})
		j.Add(status.Event{
			Time: at.Add(-90 * time.Minute), Kind: status.OfHolder, Bad: true, Subject: "n2", What: "holds", From: "n1",
			To: "n2", Reason: "the process of n1 ended", Took: 14 * time.Millisecond, Term: 4,
		})
		if id == "n2" {
			j.Add(status.Event{
				Time: at.Add(-4 * time.Minute), Kind: status.OfBackend, Bad: true, Subject: "kube-apiserver / 10.77.0.13:6443",
				What: "is down", Reason: "connection refused", From: "up", To: "down",
			})
		}
	}
	return c
}

func (c *Cluster) snapshot(id string, i int) status.Snapshot {
	s := status.Snapshot{
		Version: "v0.1.0", Time: c.Time, Started: c.Time.Add(-50 * time.Hour), ID: id, Role: "peer", Holder: "n2", Term: 4,
		Group: status.GroupView{State: "follower", Elections: 1, TenuresEnded: map[string]uint64{"handover": 1}},
	}
	if id == "n2" {
		s.Shortages = []balancer.Shortage{{Of: "ports", At: "dial", Count: 3}}
		s.Group.State, s.Group.Holding, s.Group.Since, s.Group.Tenures = "leader", true, c.Time.Add(-90*time.Minute), 1
	}
	flow := true
	for k, other := range []string{"n1", "n2", "n3"} {
		s.Group.Peers = append(s.Group.Peers, status.PeerView{
			ID: other, Address: netip.MustParseAddrPort(fmt.Sprintf("10.77.0.%d:10000", 11+k)), Version: "v0.1.0", Role: "voter",
			Holder: other == "n2", Self: other == id, Connected: true, ConnectedSince: c.Time.Add(-49 * time.Hour),
			LastContact: 9 * time.Millisecond, RoundTrip: 180 * time.Microsecond, Datagrams: &flow,
		})
	}
	for _, vip := range []string{"10.77.0.10", "fd77::10"} {
		s.VIPs = append(s.VIPs, status.VIPView{
			Address: netip.MustParseAddr(vip), Interface: "eth0", MAC: fmt.Sprintf("02:00:00:00:00:1%d", i+1), Bound: true,
			Answering: id == "n2", Carrier: true, Answers: 1200 * uint64(i), Announcements: 182 * uint64(i),
		})
	}
	tried := c.Time.Add(-3 * time.Second)
	names := []string{"kube-apiserver", "ingress", "etcd"}
	for l := range c.loadBalancers {
		name := fmt.Sprintf("lb-%d", l)
		if l < len(names) {
			name = names[l]
		}
		lb := balancer.LoadBalancerStatus{
			Name: name, Frontends: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("10.77.0.10"), uint16(6443+l))},
			Scheduler: "rr", Plane: balancer.IPVS, Reason: "the first that can serve it",
			Refused: []balancer.Refusal{{Plane: balancer.Direct, Reason: "10.77.0.21:6443 is no node of the group"}},
			Check:   "https GET /readyz",
			Proof: &balancer.ProofStatus{State: balancer.Proved, Last: &tried, By: "n3",
				Local: &balancer.ProofStatus{State: balancer.Proved, Last: &tried, By: id}},
		}
		for b := range c.backends {
			at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 77, byte(l), byte(11 + b)}), uint16(6443+l))
			checked := c.Time.Add(-200 * time.Millisecond)
			be := balancer.BackendStatus{
				Name: at.String(), Address: at, Weight: 1, State: balancer.Up,
				Since: c.Time.Add(-49 * time.Hour), Reason: "the check succeeds",
				LastCheck: &checked, LatencyMS: 0.4 + float64(b)/5,
				Traffic: &balancer.Traffic{Open: 12, Total: 90_000, Failed: 3, In: 7 << 30, Out: 31 << 30},
			}
			if l == 2 && b == 0 {
				be.Check = "tcp at port 2381"
			}
			if l == 0 && b == c.backends-1 {
				be.State, be.Since, be.Reason = balancer.Down, c.Time.Add(-4*time.Minute), "connection refused"
			}
			if l == 1 && b == 0 {
				be.Traffic.Queued, be.Traffic.SlowStart = 4, .25
			}
			lb.Backends = append(lb.Backends, be)
		}
		if l == 1 {
			lb.Plane, lb.Reason, lb.Queued = balancer.UserSpace, "it asks for maxconn, which only user space has", 2
		}
		s.LoadBalancers = append(s.LoadBalancers, lb)
	}
	s.ConnectionLog = &status.LogCounts{Written: 9, Dropped: 1, Skipped: 3}
	s.OwnLog = &status.LogCounts{Written: 7, Dropped: 2}
	s.Names = []status.NameView{{
		Name: "api.example.org", Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.11")},
		Answered: c.Time.Add(-time.Minute), Error: "i/o timeout",
	}}
	s.Hooks = &status.HookCounts{Told: 12, Failed: 1}
	applied := c.Time.Add(-time.Second)
	s.Planes = []balancer.PlaneStatus{{Name: balancer.IPVS, Services: c.loadBalancers, Applied: &applied}}
	return s
}

// Fill gives every node 15 minutes of samples; seed decides which.
func (c *Cluster) Fill(seed uint64) {
	dice := rand.New(rand.NewPCG(seed, 1))
	for id, s := range c.Snapshots {
		for i := range history.Points {
			s.Time = c.Time.Add(-time.Duration(history.Points-1-i) * history.Interval)
			for l := range s.LoadBalancers {
				for b := range s.LoadBalancers[l].Backends {
					be := &s.LoadBalancers[l].Backends[b]
					t := *be.Traffic
					if id == "n2" {
						t.Total += uint64(40 + dice.IntN(50) + 30*b)
					}
					be.Traffic = &t
					be.LatencyMS = 0.4 + float64(b)/5 + dice.Float64()/4
				}
			}
			c.Samples[id].Add(s)
		}
	}
}

// Routed is a VIP that all nodes announce after Route.
var Routed = netip.MustParseAddr("198.51.100.10")

// Route has all nodes announce Routed to two routers, and gives the first load balancer a frontend there. The second
// router does not speak to n3.
func (c *Cluster) Route() {
	for id := range c.Snapshots {
		c.Edit(id, func(s *status.Snapshot) {
			s.VIPs = append(s.VIPs, status.VIPView{Address: Routed, Interface: "eth0", Bound: true, Carrier: true})
			s.Announce = &status.AnnounceView{
				Who: "all", Addresses: []status.AnnouncedView{{Address: Routed, By: "bgp", Announced: true}},
			}
			for _, router := range []string{"10.77.0.1", "10.77.0.2"} {
				one := status.SessionView{
					Neighbour: netip.MustParseAddr(router), AS: 64500, State: "established", Since: c.Time.Add(-50 * time.Hour),
					HoldTime: 9 * time.Second, Announced: []netip.Addr{Routed}, Sent: 70, Received: 60,
					BFD: &status.BFDView{State: "up", Since: c.Time.Add(-50 * time.Hour), Detection: 150 * time.Millisecond},
				}
				if id == "n3" && router == "10.77.0.2" {
					one = status.SessionView{
						Neighbour: one.Neighbour, AS: one.AS, State: "idle", Since: c.Time.Add(-time.Minute), Ended: 1,
						Reason: "BFD: nothing was heard for 150ms",
						BFD:    &status.BFDView{State: "down", Since: c.Time.Add(-time.Minute), Lost: 1},
					}
				}
				s.Announce.Sessions = append(s.Announce.Sessions, one)
			}
			if len(s.LoadBalancers) > 0 {
				lb := &s.LoadBalancers[0]
				lb.Frontends = append(slices.Clone(lb.Frontends), netip.AddrPortFrom(Routed, 6443))
			}
		})
	}
}

// Report is the packed report of a node, as of now.
func (c *Cluster) Report(id string) ([]byte, error) {
	s := c.Snapshots[id]
	s.Time = time.Now()
	return report.Make(s, c.Journals[id], c.Samples[id]).Pack()
}

// Edit changes the snapshot of a node.
func (c *Cluster) Edit(id string, f func(s *status.Snapshot)) {
	s := c.Snapshots[id]
	f(&s)
	c.Snapshots[id] = s
}
