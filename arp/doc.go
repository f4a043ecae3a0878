// Package arp is the virtual IP (VIP) on the wire: bound on lo by every node,
// and answered for and announced by the holder alone.
//
// It is the one door to mdlayher/arp, mdlayher/ndp and the link and address
// parts of vishvananda/netlink.
//
// The goroutines of a running Wire, and what each owns:
//
//	Wire.Run      waits for the rest
//	keeper        the kernel's silence and the addresses on lo
//	watcher       the netlink subscription; only wakes the others
//	port          one socket pair per interface and family, opened anew when
//	              the interface comes back as another one
//	  receiver    reads that socket and hands what it heard to the tenure
//	Wire.Answer   the tenure: the only goroutine that sends a packet
package arp
