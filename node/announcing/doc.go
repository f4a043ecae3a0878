// Package announcing tells routers of a node's virtual addresses as long as the node serves them.
//
//	goroutine   owns
//	Run         what is announced of each virtual address, and since when it leaves
//
// Beside it run those of the rooms bgp and bfd.
package announcing
