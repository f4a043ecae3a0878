package bgp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/jwhited/corebgp"
	"golang.org/x/sys/unix"
)

// dialWithin bounds one try to connect.
const dialWithin = 3 * time.Second

// maxTTL is where every packet begins under GTSM (RFC 5082, section 3).
const maxTTL = 255

// setTTL says how far packets to a neighbour go, and with GTSM from how far its packets may come.
func setTTL(fd int, n Neighbour, internal bool) error {
	ttl := n.Hops
	if internal {
		ttl = max(ttl, 64) // RFC 4271 has no limit for neighbours of the same AS; 64 is the kernel's default
	}
	least := 0
	if n.TTLSecurity {
		ttl, least = maxTTL, maxTTL+1-n.Hops
	}
	if n.Addr.Is4() {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, ttl),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, least),
		)
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, least),
	)
}

// setPassword has the kernel sign and check what is exchanged with a neighbour (RFC 2385).
func setPassword(fd int, n Neighbour) error {
	if n.Password == "" {
		return nil
	}
	if err := corebgp.SetTCPMD5Signature(fd, n.Addr, uint8(n.Addr.BitLen()), n.Password); err != nil {
		return fmt.Errorf("bgp: the kernel takes no password for %s (TCP MD5): %w; "+
			"remove passwordFile here and the password there, or use a kernel with CONFIG_TCP_MD5SIG", n.Addr, err)
	}
	return nil
}

// control runs set on a socket before it is used.
func control(set func(fd int) error) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = set(int(fd)) }), err)
	}
}

// dial connects to a neighbour.
func dial(ctx context.Context, n Neighbour, internal bool) (net.Conn, error) {
	d := net.Dialer{Timeout: dialWithin, Control: control(func(fd int) error {
		return errors.Join(setTTL(fd, n, internal), setPassword(fd, n))
	})}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(n.Addr, n.Port).String())
	if err == nil {
		return c, nil
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%s refuses connections on port %d; start BGP there, and name this node as its neighbour",
			n.Addr, n.Port)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		hint := "see whether a firewall drops TCP, and whether it wants a password"
		if n.Password != "" {
			hint = "see whether both sides have the same password, and whether a firewall drops TCP"
		}
		return nil, fmt.Errorf("%s does not answer on port %d; %s", n.Addr, n.Port, hint)
	}
	return nil, err
}

// listen opens a port for the neighbours of one family.
func listen(ctx context.Context, port uint16, is4 bool, neighbours []Neighbour) (net.Listener, error) {
	network, any := "tcp6", netip.IPv6Unspecified()
	if is4 {
		network, any = "tcp4", netip.IPv4Unspecified()
	}
	far := false
	lc := net.ListenConfig{Control: control(func(fd int) error {
		for _, n := range neighbours {
			if n.Addr.Is4() != is4 {
				continue
			}
			far = far || n.TTLSecurity
			if err := setPassword(fd, n); err != nil {
				return err
			}
		}
		switch {
		case far && is4: // its SYN-ACK must already pass the router's check
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, maxTTL)
		case far:
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, maxTTL)
		}
		return nil
	})}
	l, err := lc.Listen(ctx, network, net.JoinHostPort(any.String(), strconv.Itoa(int(port))))
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("bgp: port %d is taken by another program of this host, a BGP daemon mostly; "+
			"write announce.bgp.port: 0 for this node to connect only, or have that daemon announce (by: routes)", port)
	}
	return l, err
}

// remoteOf is whose connection it is.
func remoteOf(c net.Conn) netip.Addr { return addrOf(c.RemoteAddr()) }

func addrOf(a net.Addr) netip.Addr {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// setOptions sets on an accepted connection what dial sets on its own.
func setOptions(c net.Conn, n Neighbour, internal bool) error {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	return control(func(fd int) error { return setTTL(fd, n, internal) })("", "", raw)
}
