// Package raft answers one question: which peer of the group holds.
//
// It and its subfolders are the only packages that know hashicorp/raft. These are the goroutines and what each
// owns; [Group.Run] starts them all and waits for them:
//
//	accept       the peer port; hands each connection to its own handler
//	handler      one connection until it ends: raft, watch or control
//	roster       one watcher and one greeter per other peer, as the roster changes
//	watcher      the watch connection to a peer, and the proof that its process is dead: package deathwatch
//	greeter      hellos to a peer: round trip, reach, its fitness and heartbeat
//	detector     the UDP port, and who has been heard when: package detector
//	candidate    one election that the detector has asked for
//	raft.*       hashicorp/raft's own, ended by its Shutdown
//	relay        RPCs from the port to raft, noted as possible grants first: package transport
//	signals      raft's NotifyCh and observations, passed on as changes
//	leader loop  what only a leader does: name the group, promote, keep the record, give way
//	report       who leads and what is wrong, for the events
//
// [Group.Lead] runs hold in a goroutine of its own and waits for it.
//
// Package lease says why two peers never hold at once.
package raft
