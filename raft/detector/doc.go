// Package detector finds out within half a heartbeat that a host has vanished.
//
// Raft notices a silent leader after one to two heartbeat timeouts. The detector needs little more than a third of one:
// the leader and each follower hear each other every 30 ms by default, by a probe and its answer.
//
//	heartbeat / 30      tick       5 ms by default
//	heartbeat / 15      doubt     10 ms   probes of who has not answered, and of everybody where there is no leader
//	heartbeat * 2/15    haste     20 ms   the leader's probes where it or a peer was late lately
//	heartbeat / 5       probe     30 ms   the leader's; they are answered as they come
//	heartbeat * 4/15    missing   40 ms   after that each tick counts, and the other host's kernel is asked
//	heartbeat * 3/10    lease     45 ms   after that the holder is silent: package lease
//	heartbeat * 11/30   silence   55 ms   after that a silent peer is suspected
//	heartbeat * 2/3     sign     100 ms   between peers of which none leads; as much more silence is usual there
//
// Followers do not depend on each other until the leader is lost, and then they ask each other at once. So the datagrams
// of a group grow with its size, and not with the square of it.
//
// The order of the last two makes failovers quick, not safe: a new leader waits for older leases whoever has
// elected it and why. With lease < silence there is nothing left to wait for.
//
// Silence is counted by the looks of this process, not by the clock: a late look counts for at most one tick more
// than it was due after, and everything that has arrived is read before anybody is judged. So a
// process that was frozen, or had to wait for a core, suspects nobody when it goes on. The detector also learns
// the pauses that busy hosts make: a peer that was missing is suspected after twice its longest recent pause, if that is
// more than the above. And a leader that was late itself, or missed somebody, probes more often for some seconds: a lease
// has room for a probe that is 15 ms late, or 25 ms in haste.
//
// A leader reads the answers of several followers together, 2 ms after it has probed them: a wake-up costs more than
// the answer does.
//
// Silence of a process says little of its host where every core is busy. So a peer that misses a probe asks the
// other host's kernel by ICMP echo, every tick. While that answers, the process is only late, and nobody says that it
// has vanished, for three heartbeats at most. Where user space serves clients there is no such patience: they wait for the
// process. A process that has ended is noticed without any of this: package deathwatch. Raft's own clocks have four
// heartbeats, so that they do not run out before.
//
// Probes of a leader also keep the clocks of raft from running out, on both sides, so raft's own heartbeats are
// sent only to peers that do not say so in their replies, and when replies are missing: package transport. The
// silence above is what finds a lost host either way.
//
// One peer alone deposes nobody. A peer that suspects the leader asks the others, and stands for election only
// if a majority of the voters, itself included, has not heard the leader either. The first in rank does so at
// once and the next a heartbeat later, so that a slow disk of the first does not make two candidates that split
// the votes. In a group of two, both are needed for a majority, so the detector never elects there.
//
// Where a firewall swallows the datagrams, nobody is ever heard, so nobody is suspected, and Raft's heartbeat
// timeout, four to eight heartbeats, has to do. Raft's own messages keep up the lease then: they renew it two to
// three times in its length.
package detector
