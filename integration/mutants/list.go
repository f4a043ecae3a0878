package main

// A mutant is one change that would break the argument in raft/lease/doc.go, and the test that has to fail.
type mutant struct {
	name     string
	file     string
	old, new string
	test     string // in the folder of file
}

var mutants = []mutant{
	// Step 1: grant.
	{"t0 of a heartbeat is taken after the call", "raft/transport/transport.go",
		"resp.Success && resp.Term == args.Term {\n\t\tt.rules.Granted(string(id), args.Term, t0)",
		"resp.Success && resp.Term == args.Term {\n\t\t_ = t0\n\t\tt.rules.Granted(string(id), args.Term, t.rules.Now())",
		"TestGrantCountsFromBeforeTheCall"},
	{"t0 of a vote is taken after the call", "raft/transport/transport.go",
		"resp.Granted && resp.Term == args.Term {\n\t\tt.rules.Granted(string(id), args.Term, t0)",
		"resp.Granted && resp.Term == args.Term {\n\t\t_ = t0\n\t\tt.rules.Granted(string(id), args.Term, t.rules.Now())",
		"TestGrantCountsFromBeforeTheCall"},
	{"a refused heartbeat counts", "raft/transport/transport.go",
		"err == nil && resp.Success && resp.Term == args.Term", "err == nil && resp.Term == args.Term",
		"TestGrantCountsFromBeforeTheCall"},
	{"an answer from a newer term counts", "raft/transport/transport.go",
		"err == nil && resp.Success && resp.Term == args.Term", "err == nil && resp.Success",
		"TestGrantCountsFromBeforeTheCall"},
	{"a heartbeat that was not sent counts", "raft/transport/transport.go",
		"if t.rest(id, args) {",
		"if t.rest(id, args) {\n\t\tt.rules.Granted(string(id), args.Term, t.rules.Now())",
		"TestProbesSpareHeartbeats"},
	{"raft sees a heartbeat before it is noted", "raft/transport/transport.go",
		"case *hraft.AppendEntriesRequest:\n\t\t\t\tt.rules.Heard(string(cmd.ID), cmd.Term)",
		"case *hraft.AppendEntriesRequest:\n\t\t\t\tdefer t.rules.Heard(string(cmd.ID), cmd.Term)",
		"TestGrantIsNotedBeforeRaftSeesTheMessage"},
	{"raft sees a request for a vote before it is noted", "raft/transport/transport.go",
		"case *hraft.RequestVoteRequest:\n\t\t\t\tt.rules.Heard(string(cmd.ID), cmd.Term)",
		"case *hraft.RequestVoteRequest:\n\t\t\t\tdefer t.rules.Heard(string(cmd.ID), cmd.Term)",
		"TestGrantIsNotedBeforeRaftSeesTheMessage"},
	{"heartbeats take the fast path", "raft/transport/transport.go",
		"func (t *Transport) SetHeartbeatHandler(func(hraft.RPC)) {}",
		"func (t *Transport) SetHeartbeatHandler(f func(hraft.RPC)) { t.NetworkTransport.SetHeartbeatHandler(f) }",
		"TestHeartbeatsPassThroughTheMainLoop"},
	{"a probe is granted by the term before the entry", "raft/detector/detector.go",
		"may := d.elections.HeardFrom(c.ID, m.term) // first the entry in the grants,\n" +
			"\t\tif d.elections.Term() == m.term && may {",
		"same := d.elections.Term() == m.term\n\t\tif may := d.elections.HeardFrom(c.ID, m.term); same && may {",
		"TestProbeIsGrantedByTheTermAfterTheEntry"},
	{"t0 of a probe is taken when the answer comes", "raft/detector/detector.go",
		"d.elections.Granted(c.ID, m.term, s.t0)", "d.elections.Granted(c.ID, m.term, d.now())",
		"TestProbeCountsFromBeforeItWasSent"},
	{"a held-back message hides a newer entry", "raft/lease/grants.go",
		"term: max(e.term, term)", "term: term", "TestEntriesOnlyGetMoreCautious"},
	{"two leaders of one term are granted leases", "raft/lease/grants.go",
		"return term < g.term || leader == g.leader", "return true || leader == g.leader",
		"TestGrantsOfOneTermGoToOneLeader"},

	// Step 2: lease.
	{"an answer is given before older leases are over", "raft/lease/lease.go",
		"if l.waitedOut != term {", "if false {", "TestLeaseNeedsAMajorityThatGrantedLately"},
	{"a minority is enough", "raft/lease/lease.go",
		"return at[len(voters)/2]", "return at[(len(voters)-1)/2]", "TestLeaseNeedsAMajorityThatGrantedLately"},
	{"grants of an older term count", "raft/lease/lease.go",
		"if term < l.term {\n\t\treturn", "if false {\n\t\treturn", "TestLeaseNeedsAMajorityThatGrantedLately"},

	// Step 3: waiting out.
	{"the lease begins before the wait", "raft/tenure.go",
		"ctx, cancel := context.WithCancel(ctx)\n\ttype report", "g.lease.Begin(term)\n" +
			"\tctx, cancel := context.WithCancel(ctx)\n\ttype report",
		"TestNothingHappensBeforeOlderLeasesAreOver"},
	{"the grants are read before the term", "raft/control.go",
		"a := g.grants.Account(raft.CurrentTerm())", "a := g.grants.Account(0)\n\t\ta.Term = raft.CurrentTerm()",
		"TestAccountReadsTheTermFirst"},
	{"an account from an older term counts", "raft/lease/grants.go",
		"return a.Term >= term && (a.Lease", "return (a.Lease", "TestWait"},
	{"clocks are taken for exact", "raft/lease/lease.go",
		"return span * driftNum / driftDen", "return span * driftDen / driftDen", "TestWait"},

	// Step 4: proof of silence.
	{"a peer is silent although it spoke from an older term", "raft/lease/grants.go",
		"if x, ok := accounts[g.To]; ok && x.Term >= term {", "if _, ok := accounts[g.To]; ok {", "TestWait"},
	{"silence is said before hold has returned", "raft/group.go",
		"g.holding <- struct{}{} // hold has returned",
		"g.watched.Silent()\n\tg.holding <- struct{}{} // hold has returned",
		"TestSilenceIsSaidAfterHoldHasReturned"},
	{"leadership is handed over before hold has returned", "raft/tenure.go",
		"if !errors.Is(cause, errHoldOver) {", "if !errors.Is(cause, errHoldOver) && request == nil {",
		"TestHandOverComesAfterHoldHasReturned"},
	{"may goes on after a hand-over was asked for", "raft/tenure.go",
		"over.Store(true) // no answer", "over.Store(false) // no answer", "TestHandOverComesAfterHoldHasReturned"},
	{"hold runs before the watchers know the term", "raft/tenure.go",
		"\tg.watched.Leads(term)\n", "\tdefer g.watched.Leads(term)\n", "TestWatchersKnowTheTermBeforeTheFirstAnswer"},
	{"the death of an earlier process counts", "raft/lease/grants.go",
		"g.To == self || g.Term <= dead[g.To]", "g.To == self || dead[g.To] > 0", "TestWait"},

	// Step 5: restarts and disks.
	{"a voter that restarted has nothing to say", "raft/lease/grants.go",
		"longest = max(longest, stretched-a.Lived)", "longest = max(longest, 0)", "TestWait"},
	{"a restart waits for its own heartbeat only", "raft/group.go",
		"max(g.cfg.Heartbeat, g.lastHeartbeat())", "g.cfg.Heartbeat",
		"TestRestartWaitsForWhatTheFormerProcessGranted"},
	{"a term that was not written is taken for written", "raft/store/store.go",
		"err := s.busy(write)\n\t\tif err == nil {\n\t\t\treturn nil",
		"err := s.busy(write)\n\t\tif true {\n\t\t\treturn nil",
		"TestTermIsNeverForgotten"},
	{"an older copy of a disk votes", "raft/fence/fence.go",
		"case t.Boots <= was.Boots:", "case t.Boots < was.Boots:", "TestDiskThatWentBackwards"},
	{"a late word of a former process is taken for an older disk", "raft/fence/fence.go",
		"if f.isLate(peer, t.Process) {", "if false {", "TestLateWordOfAFormerProcess"},
	{"a restored disk is asked for its vote", "raft/transport/transport.go",
		"return errors.Join(t.rules.Refusal(string(header.ID)), t.rules.Withheld())",
		"return t.rules.Refusal(string(header.ID))", "TestWhatRaftNeverSees"},

	// Step 6: members.
	{"members change before older leases are over", "raft/members.go",
		"if err := g.awaitLease(ctx); err != nil {\n\t\treturn err\n\t}\n\tif g.settings.Get(settings.ClusterKey)",
		"if g.settings.Get(settings.ClusterKey)", "TestNothingHappensBeforeOlderLeasesAreOver"},
	{"peers are admitted before older leases are over", "raft/members.go",
		"if err := g.awaitLease(ctx); err != nil {\n\t\treturn err\n\t}\n\tif g.cluster()",
		"if g.cluster()", "TestNothingHappensBeforeOlderLeasesAreOver"},
	{"members get a vote before older leases are over", "raft/leaderloop.go",
		"ok && g.lease.Begun(term) {\n\t\t\tg.giveWay(ctx)", "ok && term > 0 {\n\t\t\tg.giveWay(ctx)",
		"TestNobodyIsPromotedBeforeOlderLeasesAreOver"},

	// Other groups.
	{"raft sees the messages of another group", "raft/fence/fence.go",
		"case own != \"\" && cluster != \"\" && own != cluster:", "case own == \"?\":", "TestStrangers"},
	{"of two groups, both end", "raft/founding/founding.go",
		"return order(own, other) < 0", "return order(own, other) != 0", "TestExactlyOneLoses"},
	{"a group with the majority ends", "raft/founding/founding.go",
		"case am != bm:\n\t\treturn yes(am)", "case am != bm:\n\t\treturn yes(bm)", "TestExactlyOneLoses"},
}
