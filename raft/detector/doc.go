// Package detector finds out within half a heartbeat that a host has vanished.
//
// Raft notices a silent leader after one to two heartbeat timeouts. The detector sends a datagram to every
// other peer fifteen times per heartbeat, and needs little more than a third of one:
//
//	heartbeat / 30      tick      5 ms by default; a peer that misses no other skips every second one
//	heartbeat / 15      probe    10 ms   to every peer; the holder's are answered at the next tick
//	heartbeat * 3/10    lease    45 ms   after that the holder is silent: package lease
//	heartbeat * 11/30   silence  55 ms   after that a silent peer is suspected
//
// The order of the last two makes failovers quick, not safe: a new leader waits for older leases whoever has
// elected it and why. With lease < silence there is nothing left to wait for.
//
// Silence is counted in ticks of this process, not by the clock: a late tick counts for at most one tick more
// than those after which it was due, and everything that has arrived is read before anybody is judged. So a
// process that was frozen, or had to wait for a core, suspects nobody when it goes on. The detector also learns
// the pauses that busy hosts make: a peer is suspected after twice its longest recent pause, if that is more
// than the above.
//
// Silence of a process says little of its host where every core is busy. So a peer that misses two probes asks the
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
