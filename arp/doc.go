// Package arp is the virtual IP (VIP) on the wire: bound on lo of every node, answered for and announced by the holder
// alone.
//
// It is the one door to mdlayher/arp, mdlayher/ndp and the link and address parts of vishvananda/netlink. A Wire keeps
// the VIPs bound and the kernel from answering for them, in the order that binder.go explains; Wire.Answer answers
// for them (tenure.go), through one responder per interface and protocol, which holds an ARP or NDP socket (arp.go,
// ndp.go) for as long as the interface stays the same (links.go).
//
// The goroutines of a running Wire, and what each owns:
//
//	Wire.Run      waits for the others
//	binder        the silenced kernel and the addresses on lo
//	monitor       the netlink subscription; only wakes the others
//	responder     one socket per interface and protocol, opened anew when the interface has been replaced
//	  receiver    reads that socket and hands messages to the tenure
//	Wire.Answer   the tenure: the only goroutine that sends packets; Wire.Ask, before one, sends probes
package arp
