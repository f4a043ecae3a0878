// Package pathprobe proves that the network carries clients' packets from this node to another.
package pathprobe
