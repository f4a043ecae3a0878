// Package founding decides which of two groups with one key goes on when they meet.
//
// Two such groups come about when peers with startAsLeader could not ask each other, for example on new disks
// while the switch between them did not forward yet. While they are apart, nothing tells either that the other
// exists. When a member of one meets a member of the other, both apply [Loses] to the same facts and arrive at
// the same answer: exactly one of the groups ends.
package founding
