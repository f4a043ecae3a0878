// Package lease decides how long a leader may answer, so that no two peers ever answer at once.
//
// # Why no two peers may answer at once
//
// A holder answers while its lease runs. The argument below uses three facts only: a peer votes at most once
// per term (the vote is on disk), a peer that has seen a term never acknowledges an older one, and the clocks
// of different hosts run at the same rate within a known drift. It uses neither synchronized clocks nor
// hashicorp/raft's habit of refusing votes while a leader is known: that habit has exceptions (TimeoutNow, a
// restarted follower, a leader forgotten when a higher term was refused). VerifyLeader does not prove what a
// lease needs either: it counts responses to heartbeats that were sent before it was called, and responses of
// non-voters.
//
//  1. Grant. Whenever an AppendEntries or RequestVote of term T reaches a voter, the voter notes the
//     sender, T and the time of arrival in its [Grants] before raft sees the message. The sender takes
//     the time t0 before it sends, and counts the voter at t0 if the response is a success in term T.
//     So t0 <= arrival.
//     A leader's probe grants as well. It does not pass through raft, so the voter looks at raft's term
//     itself after it has made the entry, and acknowledges the probe only if the term is T at that
//     moment. The echoed number tells the sender which t0 belongs to the reply. Heartbeats of raft that probes
//     make needless are not sent, and count for nothing: package transport.
//  2. Lease. The leader X of T may answer until (the latest moment that a majority of voters, itself
//     included, has been counted at) + the length of the lease. Messages pass through raft's main loop
//     one by one. The fast path for heartbeats is off: with it a heartbeat can be acknowledged in the
//     old term while a vote for the new one is being written to disk.
//  3. Waiting out. The new leader Y of T' > T asks the voters for their grants. A reply counts only if
//     its voter has reached T'. Such a voter acknowledges nothing older any more that its grants do not
//     hold yet: it reads its term before its grants, and whoever had seen an older term before that had
//     made the entry earlier still. As soon as a majority has replied, that majority shares a voter with
//     every majority that an older lease rests on. So every older lease that may still run is in the
//     replies, with the time that has passed since. Y waits until the youngest entry is older than the
//     lease, times the drift. If nobody replies, Y waits a whole lease from the moment of its election:
//     its voters had reached T' by then, and they too share a voter with every older majority. (A voter
//     that is still about to acknowledge a probe of an older term has seen that term, and so noted the
//     arrival, before it voted.)
//  4. Proof of silence. An entry of X need not be waited out if X itself has replied from T' (it may
//     never answer in an older term again) and no answer that it began before is under way, if X's process
//     is dead, or if X has said that it never answers again. An answer begins with a look at the lease; a
//     thread may stand still between that and the packet, while others of its process go on. So X replies
//     when what answers has ended, or says that it has not.
//  5. A voter that restarted has lost its grants: it says how long its process has lived, and that
//     counts like an entry of an unknown leader. The old process is gone when the new one starts: the
//     lock of the database says so.
//     A disk that was restored from an older copy has also forgotten votes, so that one term may have two
//     leaders: package fence keeps such a peer from voting where others remember it. Leases rest on one thing
//     more: a voter's process grants to one leader per term ([Grants.Follow]). So two leases of one term need a
//     voter that restarted in that term, besides the disk.
//  6. Membership changes by one voter at a time, and only a leader that has waited out older leases
//     changes it, so majorities of neighbouring configurations share a voter. A peer that is removed
//     this way has no lease left: the leader that removed it has waited out every older one, and a
//     leader gives up its own before it is removed itself. So the id may go to another machine, which
//     votes only when it has the log, and therefore a later term.
//
// Usually there is nothing to wait for. After a silence that the detector acts on, or a heartbeat timeout,
// the entries are older than the lease, because the lease is shorter than both. After a hand-over the old
// holder replies. After a kill its death is proved.
//
// # Why every lease has the same length
//
// Steps 2 and 3 need a new leader to wait for as long as an older lease may run. The length of a lease comes
// from group.heartbeat, which is in a file on each host. So peers grant only if they have the same heartbeat,
// and both sides look ([Heartbeats]): unless a peer has told this process, in a hello, the heartbeat that
// this process has, a voter takes from it no AppendEntries, no request for a vote and (by withholding its
// key) no probe, a leader counts none of its answers and a candidate none of its votes.
//
// That suffices although either may have restarted with another heartbeat since it told. Of the two processes
// at the moment of a grant one is the younger. What it has been told since it began came from the process
// that the other still is, because that one is older. So their heartbeats are the same.
//
// Then let X's lease rest on a majority of voters. All of them have X's length, and all of those who elected
// Y, or whose accounts Y counts, have Y's. Some voter is in both majorities. If it is one process, X and Y
// have the same length. If it has restarted in between, its former process granted before this one began; and
// this one waits for the longer of both heartbeats (the former is on disk) before it takes part, so what was
// granted before is over.
//
// Therefore the heartbeat of a running group may be changed on one peer after the other. Those with the old
// value go on until they are no majority any more; then those with the new one elect. A peer of a version
// that tells no heartbeat is taken for one that has the same.
//
// Peers that are too far apart for their heartbeat take a longer one ([Fitting]) in the same way: whoever finds that
// out, or meets a peer that has it, leaves the group and begins anew as another process would.
//
// # What is tested, and how far
//
// TestModelNeverTwo plays this package at random, with clocks of different rates, freezes, restarts and proofs
// of death. TestExhaustively visits every interleaving of a smaller world up to a number of steps that it logs:
// three voters, two terms, two messages under way, one restart or one restored disk; not membership, nor clocks
// of different rates. One test per ordering holds the real code still between two steps (order_test.go in
// packages raft and transport), and `make mutants` changes one line after the other and checks that the test
// that is named for it fails.
//
// TestSim in package raft runs whole groups of the real code in virtual time (simnet_test.go): hashicorp/raft,
// transport, detector, fence, founding, hand-over and TLS, over streams and datagrams that are late, lost, doubled
// and overtaken, cut in one direction or both, with crashes of processes and hosts, disks that take their time, are
// older copies or empty, clocks of different rates, machines that are paused with their clocks, and changes of members.
// A thread, or its whole process, stands still for up to 400 ms (nine leases) where the code meets that world: before
// and after it reads the clock (which is before it locks lease or grants), before it sends, after it has received, before
// and after it dials or writes to disk, and where hold returns, with whatever locks it has; not between any two
// instructions. Each millisecond, and whenever a holder has read its clock, it looks for two that may answer, and for one
// without a majority; besides, that a majority that can talk has a holder within 10 s, or as much longer as a disk that
// is known to be slow makes elections take, and that what was acknowledged is everywhere in the end. TestSimThreads has
// a thread of the holder stand still at each place in turn, and cuts the holder off. A second of one core plays about a
// minute: the test command plays about half an hour, `make sim SIM_HOURS=48` two days. A seed gives the same faults
// again, but not the same order of goroutines.
//
// # What a program cannot do
//
// A virtual machine that is paused may stop CLOCK_BOOTTIME, so that a lease goes on when the machine does, with
// what was left of it: at most its length. Package standstill sees that where the hypervisor shows it, and then the
// lease ends ([Lease.Lapse]). Only a holder's lease is in danger: a voter whose clock stood still tells of grants that
// are younger than they are, and a new leader waits longer than it would have to.
//
// The gap between the look at the lease and the packet on the wire cannot be closed by a program: a process
// that is frozen exactly between the two sends one packet when it thaws. So the lease must be looked at
// immediately before each packet; the new holder's repeated announcements repair what one late packet did.
package lease
