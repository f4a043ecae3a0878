package metrics

import (
	"cmp"
	"runtime"
	"time"

	dto "github.com/prometheus/client_model/go"

	"appliance/balancer"
	"appliance/status"
)

// A family is one metric with its samples, in Prometheus's terms. The samples lie in one piece of memory, and those of
// one thing share their labels.
type family struct {
	name, help string
	kind       dto.MetricType
	labels     [][]*dto.LabelPair
	values     []float64
}

func (f *family) add(value float64, labels []*dto.LabelPair) {
	f.labels, f.values = append(f.labels, labels), append(f.values, value)
}

// message is the family in the form of the client library, nil if it is empty.
func (f *family) message() *dto.MetricFamily {
	if len(f.values) == 0 {
		return nil
	}
	metrics := make([]dto.Metric, len(f.values))
	out := &dto.MetricFamily{Name: &f.name, Help: &f.help, Type: &f.kind, Metric: make([]*dto.Metric, len(f.values))}
	if f.kind == dto.MetricType_COUNTER {
		counters := make([]dto.Counter, len(f.values))
		for i := range f.values {
			counters[i].Value = &f.values[i]
			metrics[i].Counter = &counters[i]
		}
	} else {
		gauges := make([]dto.Gauge, len(f.values))
		for i := range f.values {
			gauges[i].Value = &f.values[i]
			metrics[i].Gauge = &gauges[i]
		}
	}
	for i := range metrics {
		metrics[i].Label = f.labels[i]
		out.Metric[i] = &metrics[i]
	}
	return out
}

// label makes label pairs of alternating names and values; the names must be in alphabetical order.
func label(pairs ...string) []*dto.LabelPair {
	out := make([]*dto.LabelPair, 0, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		out = append(out, &dto.LabelPair{Name: &pairs[i], Value: &pairs[i+1]})
	}
	return out
}

// snapshotMetrics collects the metrics of a snapshot.
type snapshotMetrics struct {
	all []*family
}

func (s *snapshotMetrics) family(kind dto.MetricType, name, help string) *family {
	f := &family{name: "appliance_" + name, help: help, kind: kind}
	s.all = append(s.all, f)
	return f
}

func (s *snapshotMetrics) gauge(name, help string) *family {
	return s.family(dto.MetricType_GAUGE, name, help)
}

func (s *snapshotMetrics) counter(name, help string) *family {
	return s.family(dto.MetricType_COUNTER, name, help)
}

// fromSnapshot makes the metrics of a snapshot.
func fromSnapshot(snap status.Snapshot, version string) []*dto.MetricFamily {
	s := &snapshotMetrics{}
	s.node(snap, version)
	s.group(snap)
	s.addresses(snap)
	s.announce(snap.Announce)
	s.loadBalancers(snap)
	s.planes(snap)
	out := make([]*dto.MetricFamily, 0, len(s.all))
	for _, f := range s.all {
		if m := f.message(); m != nil {
			out = append(out, m)
		}
	}
	return out
}

func (s *snapshotMetrics) node(n status.Snapshot, version string) {
	s.gauge("build_info", "Always 1; the labels say what runs.").
		add(1, label("goversion", runtime.Version(), "role", n.Role, "version", version))
	s.gauge("ready", "Whether this node would serve the virtual addresses now.").
		add(truth(len(n.NotReady) == 0), nil)
	short := s.counter("shortages_total",
		"Times that this host was short of something (files, ports, buffers, memory, processes); "+
			"no server is blamed for that.")
	refused := s.counter("shortage_refused_total",
		"Clients of user space that were refused because this host was short of something.")
	for _, one := range n.Shortages {
		labels := label("at", one.At, "of", one.Of)
		short.add(float64(one.Count), labels)
		refused.add(float64(one.Refused), labels)
	}
	if c := n.ConnectionLog; c != nil {
		lines := s.counter("connection_log_lines_total", "Lines about connections, by what came of them "+
			"(written; dropped because their reader was slow or gone; skipped because logRate left no room).")
		lines.add(float64(c.Dropped), label("result", "dropped"))
		lines.add(float64(c.Skipped), label("result", "skipped"))
		lines.add(float64(c.Written), label("result", "written"))
	}
	if c := n.OwnLog; c != nil {
		lines := s.counter("log_lines_total", "Lines for log.copy, by what came of them "+
			"(written, or dropped because their reader was slow or gone).")
		lines.add(float64(c.Dropped), label("result", "dropped"))
		lines.add(float64(c.Written), label("result", "written"))
	}
	addresses := s.gauge("name_addresses", "Addresses that are in force of a server's name.")
	failing := s.gauge("name_failing", "Whether the last look-up of a server's name failed; its last addresses stay.")
	for _, one := range n.Names {
		addresses.add(float64(len(one.Addresses)), label("name", one.Name))
		failing.add(truth(one.Error != ""), label("name", one.Name))
	}
	if h := n.Hooks; h != nil {
		events := s.counter("hook_events_total",
			"Events for hooks, by what came of them (told, failed, dropped because the hook was too slow).")
		events.add(float64(h.Dropped), label("result", "dropped"))
		events.add(float64(h.Failed), label("result", "failed"))
		events.add(float64(h.Told), label("result", "told"))
	}
}

func (s *snapshotMetrics) group(n status.Snapshot) {
	g := n.Group
	s.gauge("holding", "Whether this node may answer for the virtual addresses now.").add(truth(g.Holding), nil)
	s.gauge("holder_known", "Whether this node knows of a holder, itself or another.").add(truth(n.Holder != ""), nil)
	s.gauge("raft_term", "Raft term of this peer.").add(float64(n.Term), nil)
	state := s.gauge("raft_state", "Raft state of this peer: 1 for the one that it is in.")
	for _, one := range []string{"follower", "candidate", "leader"} {
		state.add(truth(g.State == one), label("state", one))
	}
	s.counter("tenures_total", "Tenures of this node.").add(float64(g.Tenures), nil)
	ended := s.counter("tenures_ended_total",
		"Ends of tenures of this node, by cause (deposed, leaving, handover, failed).")
	for _, cause := range []string{"deposed", "leaving", "handover", "failed"} {
		ended.add(float64(g.TenuresEnded[cause]), label("cause", cause))
	}
	s.counter("elections_total", "Elections that this peer stood in.").add(float64(g.Elections), nil)
	s.counter("holder_deaths_total",
		"Holders' processes whose end this peer proved and stood in for.").add(float64(g.Deaths), nil)
	s.counter("holders_missed_total",
		"Holders that fell silent for a majority of peers, this one among them, which "+
			"stood.").add(float64(g.Missed), nil)
	s.counter("standstills_total",
		"How often this node's machine was seen to have stood still, and its clock with it: its leases ended at "+
			"once.").add(float64(g.Standstills), nil)
	if g.Holding {
		s.gauge("tenure_start_timestamp_seconds",
			"When the tenure of this node began; absent while it is not the holder.").
			add(seconds(g.Since), nil)
	}
	s.counter("peer_connections_refused_total",
		"Connections to the peer port that were no peer's.").add(float64(g.Refused), nil)

	differs := s.gauge("peer_differs", "1 for each part of what it serves in which the peer differs from this node.")
	for _, d := range n.Differences {
		differs.add(1, label("key", d.Key, "peer", d.Peer))
	}
	unfit := s.gauge("unfit",
		"Whether this node would rather not hold: a track fails, or it sees no backend where others may.")
	up := s.gauge("peer_connected", "Whether this node reaches the peer.")
	datagrams := s.gauge("peer_datagrams",
		"Whether datagrams come from the peer; absent while it is out of reach, or has just come into reach.")
	contact := s.gauge("peer_last_contact_seconds",
		"How long ago the holder heard from the peer, or this peer from the holder.")
	trip := s.gauge("peer_round_trip_seconds", "Time of a question and its answer over the peer port.")
	doubled := s.gauge("id_doubled", "Whether two processes run with the id, of a peer or this node.")
	for _, p := range g.Peers {
		doubled.add(truth(p.Doubled != ""), label("id", p.ID))
		if p.Self {
			unfit.add(truth(p.Unfit != ""), nil)
			continue
		}
		peer := label("peer", p.ID)
		up.add(truth(p.Connected), peer)
		if p.Datagrams != nil {
			datagrams.add(truth(*p.Datagrams), peer)
		}
		if p.LastContact > 0 {
			contact.add(p.LastContact.Seconds(), peer)
		}
		if p.RoundTrip > 0 {
			trip.add(p.RoundTrip.Seconds(), peer)
		}
	}
}

func (s *snapshotMetrics) addresses(n status.Snapshot) {
	bound := s.gauge("vip_bound", "Whether the virtual address is on this node.")
	answering := s.gauge("vip_answering", "Whether this node answers for the virtual address on the wire.")
	carrier := s.gauge("vip_carrier", "Whether the interface of the virtual address has a carrier.")
	answers := s.counter("vip_answers_total", "Answers sent to ARP requests and neighbour solicitations.")
	announced := s.counter("vip_announcements_total",
		"Announcements sent: gratuitous ARP and unsolicited neighbour advertisements.")
	suppressed := s.counter("vip_suppressed_total", "Packets that were not sent because the lease was over.")
	foreign := s.counter("vip_foreign_claims_total", "Packets by which other machines claimed the virtual address.")
	repairs := s.counter("vip_repairs_total",
		"Times that the address or the kernel's silence had been taken away and was restored.")
	for _, v := range n.VIPs {
		vip := label("vip", v.Address.String())
		bound.add(truth(v.Bound), vip)
		answering.add(truth(v.Answering), vip)
		carrier.add(truth(v.Carrier), vip)
		answers.add(float64(v.Answers), vip)
		announced.add(float64(v.Announcements), vip)
		suppressed.add(float64(v.Suppressed), vip)
		foreign.add(float64(v.ForeignClaims), vip)
		repairs.add(float64(v.Repairs), vip)
	}
}

func (s *snapshotMetrics) announce(a *status.AnnounceView) {
	if a == nil {
		return
	}
	routed := s.gauge("vip_routed", "Whether routers are told of the virtual address, where it is announced to any.")
	standby := s.gauge("vip_standby",
		"Whether this node announces the virtual address with a longer path than the holder.")
	for _, v := range a.Addresses {
		routed.add(truth(v.Announced), label("by", v.By, "vip", v.Address.String()))
		standby.add(truth(v.Standby), label("vip", v.Address.String()))
	}
	up := s.gauge("bgp_session_up", "Whether the BGP session with the router is established.")
	told := s.gauge("bgp_session_announced", "Virtual addresses that the router was told of.")
	untold := s.gauge("bgp_session_untold", "Virtual addresses that the router should have been told of, and was not.")
	since := s.gauge("bgp_session_last_change_timestamp_seconds", "When the BGP session with the router began or ended.")
	messages := s.counter("bgp_session_messages_total", "BGP messages of the session that is there now.")
	ended := s.counter("bgp_sessions_ended_total", "BGP sessions with the router that ended.")
	watched := s.gauge("bfd_up", "Whether BFD hears the router, where it is watched by it.")
	detection := s.gauge("bfd_detection_seconds", "How long the router may be silent before BFD takes it for gone.")
	lost := s.counter("bfd_lost_total", "Times that BFD heard the router no more.")
	for _, r := range a.Sessions {
		router := label("router", r.Neighbour.String())
		up.add(truth(r.Established()), router)
		told.add(float64(len(r.Announced)), router)
		untold.add(float64(len(r.Untold)), router)
		since.add(seconds(r.Since), router)
		messages.add(float64(r.Sent), label("direction", "sent", "router", r.Neighbour.String()))
		messages.add(float64(r.Received), label("direction", "received", "router", r.Neighbour.String()))
		ended.add(float64(r.Ended), router)
		if r.BFD != nil {
			watched.add(truth(r.BFD.State == "up"), router)
			if r.BFD.Detection > 0 {
				detection.add(r.BFD.Detection.Seconds(), router)
			}
			lost.add(float64(r.BFD.Lost), router)
		}
	}
}

func (s *snapshotMetrics) loadBalancers(n status.Snapshot) {
	plane := s.gauge("loadbalancer_plane", "1 for the data plane that serves the load balancer.")
	repairs := s.counter("loadbalancer_repairs_total",
		"What the data plane found missing while it served the load balancer, and put back.")
	up := s.gauge("backend_up", "Whether the backend is healthy, by this node's checks.")
	disabled := s.gauge("backend_disabled", "Whether the configuration, or an order, keeps the backend out.")
	weight := s.gauge("backend_weight", "The backend's share of new connections.")
	since := s.gauge("backend_last_change_timestamp_seconds", "When the backend's state changed last.")
	latency := s.gauge("backend_check_seconds", "Time that the last check took.")
	passed := s.gauge("backend_passed_over",
		"Whether the data plane gives the backend no new connections although its checks succeed.")
	queued := s.gauge("backend_queued_connections",
		"Connections that wait for room at this backend and no other, where the data plane has a queue.")
	waiting := s.gauge("loadbalancer_queued_connections",
		"Connections that wait for room at any backend, where the data plane has a queue.")
	starting := s.gauge("backend_slow_start_ratio",
		"Part of its weight that the backend has: below 1 during its slow start, where the data plane has one.")
	open := s.gauge("backend_connections", "Connections that are open now, where the data plane counts.")
	total := s.counter("backend_connections_total",
		"Connections, where the data plane counts; direct counts on each node those at its own "+
			"backend, and of clients on it.")
	failed := s.counter("backend_connection_failures_total", "Connections that failed, where the data plane counts.")
	in := s.counter("backend_sent_bytes_total", "Bytes from clients to the backend, where the data plane counts.")
	out := s.counter("backend_received_bytes_total", "Bytes from the backend to clients, where the data plane counts.")
	proved := s.gauge("loadbalancer_proved",
		"Whether clients are served, as trials say: of the link, and of this node; absent while nobody has tried.")
	at := s.gauge("loadbalancer_proof_timestamp_seconds", "When a trial last succeeded, in the data plane that serves.")
	tried := s.counter("loadbalancer_proof_failures_total",
		"Trials that failed, in the data plane that serves, by what came back (refused, unreachable, silent).")
	planes := []balancer.PlaneName{balancer.Direct, balancer.IPVS, balancer.NFTables, balancer.UserSpace}
	for _, lb := range n.LoadBalancers {
		for _, p := range planes {
			plane.add(truth(lb.Plane == p), label("loadbalancer", lb.Name, "plane", string(p)))
		}
		repairs.add(float64(lb.Repairs), label("loadbalancer", lb.Name))
		if lb.Proof != nil {
			for _, of := range []struct {
				clients string
				*balancer.ProofStatus
			}{{"link", lb.Proof}, {"node", lb.Proof.Local}} {
				if of.ProofStatus == nil {
					continue
				}
				clients := label("clients", of.clients, "loadbalancer", lb.Name)
				if of.State != balancer.NotTried {
					proved.add(truth(of.State == balancer.Proved), clients)
				}
				if of.Last != nil {
					at.add(seconds(*of.Last), clients)
				}
				for _, result := range []string{"refused", "silent", "unreachable"} {
					tried.add(float64(of.Failures[result]), label("clients", of.clients, "loadbalancer", lb.Name, "result", result))
				}
			}
		}
		if status.Dials(lb.Plane) {
			waiting.add(float64(lb.Queued), label("loadbalancer", lb.Name))
		}
		seen := make(map[string]bool, len(lb.Backends))
		for _, be := range lb.Backends {
			if seen[be.Name] {
				continue // two samples with the same labels would spoil the whole scrape
			}
			seen[be.Name] = true
			labels := label("backend", be.Name, "loadbalancer", lb.Name)
			up.add(truth(be.State == balancer.Up), labels)
			disabled.add(truth(be.Disabled), labels)
			weight.add(float64(be.Weight), labels)
			passed.add(truth(be.PassedOver != ""), labels)
			since.add(seconds(be.Since), labels)
			if be.LastCheck != nil {
				latency.add(be.LatencyMS/1000, labels)
			}
			if t := be.Traffic; t != nil {
				total.add(float64(t.Total), labels)
				if status.CountsNewOnly(lb.Plane) {
					continue // what is not counted is not zero
				}
				if status.Dials(lb.Plane) {
					queued.add(float64(t.Queued), labels)
					starting.add(cmp.Or(t.SlowStart, 1), labels)
					failed.add(float64(t.Failed), labels)
				}
				open.add(float64(t.Open), labels)
				in.add(float64(t.In), labels)
				out.add(float64(t.Out), labels)
			}
		}
	}
}

func (s *snapshotMetrics) planes(n status.Snapshot) {
	services := s.gauge("plane_services", "Services that the data plane has been given.")
	repairs := s.counter("plane_repairs_total",
		"What had been ours in the kernel, was found missing, and was put back.")
	applied := s.gauge("plane_last_apply_timestamp_seconds",
		"When the kernel's state was last compared with what is wanted.")
	failing := s.gauge("plane_failing", "Whether the last comparison ended in an error.")
	for _, p := range n.Planes {
		plane := label("plane", string(p.Name))
		services.add(float64(p.Services), plane)
		repairs.add(float64(p.Repairs), plane)
		failing.add(truth(p.Error != ""), plane)
		if p.Applied != nil {
			applied.add(seconds(*p.Applied), plane)
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
