// Package lab builds machines out of network namespaces, joined by bridges,
// so that tests, benchmarks and the demo can break a network for real.
//
// No namespace, bridge or link of a lab has a name outside of it, and nothing
// of it is ever part of the host's own namespace: every namespace lives in
// the file descriptors and threads of the process that built it. So a lab
// needs no clean-up after a crash, two labs never meet, and Close only has to
// end what it started.
//
// Goroutines of a lab, each with what it owns:
//
//	threads.work    one OS thread inside a namespace; runs what Do hands it
//	Process.wait    one started process, until it has ended
//	RunningProbe    the ticker of a probe, and one goroutine per open try
//	Conns           a reader and a writer per open connection
//	Resolver        a sender and a reader of one packet socket
//	Servers         an accept loop per server, a goroutine per connection
package lab
