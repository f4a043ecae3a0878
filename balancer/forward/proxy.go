package forward

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/balancer/rawtcp"
)

const (
	// maxProxyHeader is more bytes than any sender needs for addresses and the usual
	// TLVs. Version 1 has at most 107 bytes.
	maxProxyHeader = 2048
	maxProxyV1     = 107
	// proxyTime is how long a client may take to send its PROXY header. Proxies send
	// it at once.
	proxyTime = 5 * time.Second
)

// errProxy is why a client is refused that must begin with a PROXY header.
var errProxy = errors.New("no PROXY header")

// inspectTime bounds the wait for the bytes that decide about a client.
func inspectTime(h *balancer.ConnOptions) time.Duration {
	if h.RequireTLS > 0 {
		return h.RequireTLS
	}
	return proxyTime
}

// inspect looks at the client's first bytes without taking them from the kernel.
func (c *conn) inspect() {
	o, l := c.opening, c.loop
	h := &o.table.options
	for {
		n, errno := sysPeek(c.client.fd, l.buf[:maxProxyHeader])
		if errno == unix.EAGAIN {
			return
		}
		if errno != 0 || n == 0 || c.client.broken {
			c.abort(endLeft[inspecting])
			return
		}
		b := l.buf[:n]
		if o.awaitsProxy {
			p, size, err := readProxy(b)
			switch {
			case err != nil:
				c.abort(endNoProxy)
				return
			case size == 0:
				c.undecided()
				return
			}
			// The header is for us; what follows is for the backend.
			if got, errno := sysRead(c.client.fd, b[:size]); errno != 0 || got != size {
				c.abort(endLeft[inspecting])
				return
			}
			o.awaitsProxy = false
			if p.source.IsValid() {
				c.source, o.to = p.source, p.to
			}
			if !h.Admits(c.source.Addr()) {
				c.abort(endDenied)
				return
			}
			if h.RequireTLS > 0 {
				continue
			}
		} else {
			switch clientHello(b) {
			case notTLS:
				c.abort(endNotTLS)
				return
			case undecided:
				c.undecided()
				return
			}
		}
		c.connect()
		return
	}
}

// undecided waits for more bytes, unless none will come.
func (c *conn) undecided() {
	if c.client.fin {
		c.abort(endLeft[inspecting])
	}
}

// proxied is what a PROXY header says. Without addresses the client is the sender itself.
type proxied struct{ source, to netip.AddrPort }

var (
	proxyV1 = []byte("PROXY ")
	proxyV2 = []byte("\r\n\r\n\x00\r\nQUIT\n")
)

// readProxy reads the PROXY header at the beginning of b. A size of zero means that more
// bytes are needed.
func readProxy(b []byte) (p proxied, size int, err error) {
	begins := func(with []byte) bool { n := min(len(b), len(with)); return bytes.Equal(b[:n], with[:n]) }
	switch {
	case begins(proxyV2):
		if len(b) < 16 {
			return p, 0, nil
		}
		size = 16 + int(binary.BigEndian.Uint16(b[14:]))
		if size > maxProxyHeader {
			return p, 0, errProxy
		}
		if len(b) < size {
			return p, 0, nil
		}
	case begins(proxyV1):
		i := bytes.Index(b[:min(len(b), maxProxyV1)], []byte("\r\n"))
		if i < 0 {
			if len(b) >= maxProxyV1 {
				return p, 0, errProxy
			}
			return p, 0, nil
		}
		size = i + 2
	default:
		return p, 0, errProxy
	}
	header, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(b[:size]), maxProxyHeader))
	if err != nil {
		return p, 0, fmt.Errorf("%w: %w", errProxy, err)
	}
	if header.Command.IsLocal() || !header.TransportProtocol.IsStream() {
		return p, size, nil
	}
	from, ok := header.SourceAddr.(*net.TCPAddr)
	to, ok2 := header.DestinationAddr.(*net.TCPAddr)
	if !ok || !ok2 {
		return p, size, nil
	}
	unmap := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
	return proxied{unmap(from.AddrPort()), unmap(to.AddrPort())}, size, nil
}

// proxyHeader is the PROXY header that tells a backend about the client. to is the
// destination in the client's own header; without one it is the address that the client
// connected to.
func proxyHeader(version string, source, to netip.AddrPort, fd int, frontend netip.AddrPort) ([]byte, error) {
	if !to.IsValid() {
		// The socket has another port if the connection was redirected.
		to = netip.AddrPortFrom(frontend.Addr().Unmap(), frontend.Port())
		if to.Addr().IsUnspecified() {
			to = rawtcp.LocalAddr(fd)
		}
	}
	v := byte(1)
	if version == "v2" {
		v = 2
	}
	if source.Addr().Is4() != to.Addr().Is4() { // a header has one family only
		nowhere := netip.IPv6Unspecified()
		if source.Addr().Is4() {
			nowhere = netip.IPv4Unspecified()
		}
		to = netip.AddrPortFrom(nowhere, to.Port())
	}
	return proxyproto.HeaderProxyFromAddrs(v, net.TCPAddrFromAddrPort(source), net.TCPAddrFromAddrPort(to)).Format()
}
