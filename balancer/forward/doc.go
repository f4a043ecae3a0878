// Package forward is the data plane that moves connections in user space.
//
// Its goroutines, all of which Close waits for:
//
//	loop (one per core)   owns its connections from accept to close:
//	                      both sockets, timers, and what waits to be written
//	drain (one per call)  waits for the last connection
//
// A connection passes through four states in its loop: inspecting (the client's
// first bytes decide), waiting (for a backend with room), dialing, and relaying.
// Nothing in a loop blocks, so each of ten thousand silent connections costs its two
// sockets and a few hundred bytes.
package forward
