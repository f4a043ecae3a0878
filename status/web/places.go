package web

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// places is a listener that has a bounded number of connections open. When all places are taken, whoever comes gets the
// oldest of the host that has most, if that has at least two more: one host that takes every place and says nothing
// keeps nobody else from looking. Otherwise the connection is closed, and nobody waits.
type places struct {
	net.Listener
	most int

	mu   sync.Mutex
	open int
	of   map[netip.Prefix][]*place // the oldest first
}

func newPlaces(l net.Listener, most int) *places {
	return &places{Listener: l, most: most, of: make(map[netip.Prefix][]*place)}
}

// Accept returns the next connection that has a place.
func (p *places) Accept() (net.Conn, error) {
	for {
		c, err := p.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if mine, ok := p.take(c); ok {
			return mine, nil
		}
		c.Close()
	}
}

func (p *places) take(c net.Conn) (*place, bool) {
	mine := &place{Conn: c, of: p, host: hostOf(c.RemoteAddr().String())}
	var gone *place
	p.mu.Lock()
	if p.open >= p.most {
		most := mine.host
		for host, list := range p.of {
			if len(list) > len(p.of[most]) {
				most = host
			}
		}
		if len(p.of[most]) < len(p.of[mine.host])+2 {
			p.mu.Unlock()
			return nil, false
		}
		gone = p.of[most][0]
		p.remove(gone)
	}
	p.open++
	p.of[mine.host] = append(p.of[mine.host], mine)
	p.mu.Unlock()
	if gone != nil {
		gone.Conn.Close()
	}
	return mine, true
}

// remove gives the place of c free, once. The caller holds mu.
func (p *places) remove(c *place) {
	i := slices.Index(p.of[c.host], c)
	if i < 0 {
		return
	}
	p.open--
	if p.of[c.host] = slices.Delete(p.of[c.host], i, i+1); len(p.of[c.host]) == 0 {
		delete(p.of, c.host)
	}
}

// place is a connection that gives its place free when it is closed.
type place struct {
	net.Conn
	of   *places
	host netip.Prefix
}

func (c *place) Close() error {
	c.of.mu.Lock()
	c.of.remove(c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// hostOf is who connects: an address, of IPv6 its /64, as one host has. All who use a unix socket are one.
func hostOf(remote string) (host netip.Prefix) {
	if at, err := netip.ParseAddrPort(remote); err == nil {
		a, bits := at.Addr().Unmap().WithZone(""), 32
		if a.Is6() {
			bits = 64
		}
		host, _ = a.Prefix(bits)
	}
	return host
}
