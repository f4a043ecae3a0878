// Package raftlog passes on what hashicorp/raft logs, without what says nothing to an operator.
//
// The library reports every failed heartbeat and every election step. What an operator has to know is logged
// by package raft, one line per change of state. The library's own lines come through as follows: errors and
// warnings as Warn, each text once in a while, the rest as Debug.
package raftlog
