// Package store keeps the log, the term and the vote of hashicorp/raft on disk.
package store
