// Package raft answers one question: which peer of the group holds.
//
// It is the only package that knows hashicorp/raft. Goroutines, and what each
// owns; [Group.Run] starts them all and waits for them:
//
//	accept          the peer port; hands each connection to its own handler
//	handler         one connection until it ends: raft, watch or control
//	watcher         one per listed peer: the watch connection to it, and the
//	                proof that its process is dead
//	prober          one per listed peer: round trip and reachability
//	detector        the UDP port, and who has been heard when: detector.go
//	standing        one election that the detector has asked for
//	raft.*          hashicorp/raft's own, ended by its Shutdown
//	relay           RPCs from the port to raft, stamped in the ledger
//	signals         raft's NotifyCh and observations, turned into one beacon
//	duty            what only a leader does: admit, promote, cluster id
//
// [Group.Lead] runs hold in a goroutine of its own and waits for it.
//
// Why two peers never hold at once is written in package lease.
package raft
