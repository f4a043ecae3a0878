// Package transport carries the RPCs of hashicorp/raft over the peer port.
package transport
