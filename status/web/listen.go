package web

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// maxAdminConns bounds the connections of one admin listener: every page keeps one open, and nobody may use up the
// file descriptors of the process.
const maxAdminConns = 512

// Listen opens one address of the admin listener, address:port or unix:/path. It closes connections to the VIPs even if
// it listens on every address: viewers must know which node they see, and clients of a VIP have no business here.
func Listen(at string, vips []netip.Addr) (net.Listener, error) {
	if file, ok := strings.CutPrefix(at, "unix:"); ok {
		// Whoever may write to the socket may look; the operator can share it with a group.
		l, err := listenUnix(file, 0o660)
		if err != nil {
			return nil, fmt.Errorf("admin.listen: %w", err)
		}
		return newPlaces(l, maxAdminConns), nil
	}
	l, err := net.Listen("tcp", at)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("admin.listen %s: another program listens there; "+
			"stop it or write another port: %w", at, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("admin.listen %s: this host has no such address; "+
			"write one that `ip address` shows: %w", at, err)
	case err != nil:
		return nil, fmt.Errorf("admin.listen %s: %w", at, err)
	}
	return newPlaces(withoutVIPs{l, vips}, maxAdminConns), nil
}

// withoutVIPs is a listener that closes connections to VIPs.
type withoutVIPs struct {
	net.Listener
	vips []netip.Addr
}

func (l withoutVIPs) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		local, _ := netip.ParseAddrPort(c.LocalAddr().String())
		if !slices.Contains(l.vips, local.Addr().Unmap()) {
			return c, nil
		}
		c.Close()
	}
}
