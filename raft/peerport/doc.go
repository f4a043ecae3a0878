// Package peerport is the one TCP port on which peers and workers talk to a peer.
package peerport
