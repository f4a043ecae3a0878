//go:build !sim

package raft

// durableLocks: see simlocks_test.go. Without it a thread never stands still with a lock.
const durableLocks = false

func letTimePass() {}
