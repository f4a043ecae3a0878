package conntrack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"appliance/segment"
)

// resetIdle sends each flow's client one bare acknowledgement in the name of the
// frontend, with a sequence number outside its window. The client answers with its
// own numbers (RFC 9293 section 3.10.7.4, first step: "If an incoming segment is
// not acceptable, an acknowledgment should be sent in reply"). That answer belongs
// to no connection any more, so the rules reset it, and with it a client that had
// nothing to send. A client that still waits for an answer to its SYN learns that
// there is none (RFC 9293 section 3.10.7.3). Linux then sends another SYN at once,
// which gets to another backend. A firewall in between may drop the
// acknowledgement; such a client is reset when it sends.
func resetIdle(flows []flow) error {
	var errs []error
	sockets := make(map[int]int) // by family
	defer func() {
		for _, s := range sockets {
			unix.Close(s)
		}
	}()
	for _, f := range flows {
		family := unix.AF_INET6
		if f.client.Addr().Is4() {
			family = unix.AF_INET
		}
		s, ok := sockets[family]
		if !ok {
			var err error
			// IPPROTO_RAW: the packet has its own IP header, and nothing is received.
			s, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
			if err != nil {
				return fmt.Errorf("raw socket: %w; give the container the capability NET_RAW", err)
			}
			sockets[family] = s
		}
		// A raw destination has no port.
		var to unix.Sockaddr = &unix.SockaddrInet6{Addr: f.client.Addr().As16()}
		if family == unix.AF_INET {
			to = &unix.SockaddrInet4{Addr: f.client.Addr().As4()}
		}
		errs = append(errs, unix.Sendto(s, segment.Packet(f.frontend, f.client, 0, segment.ACK, nil), 0, to))
	}
	return errors.Join(errs...)
}
