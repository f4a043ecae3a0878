// Package bgp tells routers where virtual addresses are: a BGP-4 speaker (RFC 4271) that announces and accepts no
// routes.
//
// corebgp is the machine of a session's states. What it does not have is here: the messages about routes, and the
// connections, which are opened, accepted and watched by a transport of our own. So a connection's end has a reason, a
// router that comes back is not made to wait, and a hold time of zero is refused.
//
//	goroutine   owns
//	Run         one per neighbour that dials it, one that accepts, and corebgp's own
//	advertise   one per neighbour: what it has been told
package bgp
