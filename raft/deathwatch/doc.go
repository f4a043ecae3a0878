// Package deathwatch proves that the process of another peer has ended.
//
// Every peer keeps a watch connection to every other. The server's side sends its incarnation (random, per
// process), then the term of each of its tenures before it answers in it, that it is silent for ever when it
// has begun to leave, and goodbye before it closes. The client's side sends nothing after the preamble.
//
// So when the client reads the end of the stream (a FIN) without a goodbye, the process at the other end is
// gone: a process that lives never closes a watch connection without goodbye, it resets it (SO_LINGER 0); and
// the kernel of a process that died sends FIN, not RST, because there never is unread data. The kernel closes
// files after the last thread has ended, so nothing that the process might have sent comes later. A reset, an
// ICMP error or silence proves nothing: firewalls and routers make those too.
//
// As a second witness the port is dialled again: it has to refuse, or another incarnation has to answer.
//
// What is proved is "the process that led term t is dead", for the last t that came over this very
// connection. A later process of that peer leads later terms only, since t is on its disk. It does not matter
// that the client may have been frozen for a while.
package deathwatch
