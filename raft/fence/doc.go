// Package fence keeps two kinds of peers that have the group's key away from its votes and leases: those of
// another group, and those whose disk went backwards.
//
// # Another group
//
// Every RPC names the group of its sender ([Stamp]), and every answer to hello does. Both sides look: a peer
// hands raft no RPC of a stranger ([Fence.Admits]), counts no answer of one and gives it no key for datagrams
// ([Fence.Refusal]). A process belongs to one group for as long as it runs, so what it has told of itself stays
// true until another process has its place; that one tells anew before anything of it counts.
//
// A group has no name for a moment after it began. Meanwhile a peer is known by being a member of this peer's
// configuration. A peer of a version that stamps nothing is known by what it has told in hello.
//
// # A disk that went backwards
//
// A peer whose disk was restored from an older copy has forgotten votes, and may give a second one in the same
// term. Every peer therefore remembers of every other how often it had been started, its term and its commit
// index, as told. If a later process of a peer tells less ([Fence.Learn]), its votes and grants do not count
// until it says that it votes in no term up to one that a leader has brought it up to ([Told.Floor]).
//
// A word of a process that another one has followed counts for nothing: it comes late, and would look like an older
// disk.
//
// What this cannot see: a copy that is put back while nobody runs who remembers, or that is no older than what
// the others were last told (at most a second). Then one term may be led twice. Leases do not meet even so,
// because within a term a voter's process grants to one leader only ([lease.Grants.Follow]).
//
// [lease.Grants.Follow]: ../lease/grants.go
package fence
