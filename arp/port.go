package arp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// reopenAfter is the pause before a socket that broke is opened again, if
	// no link event comes first.
	reopenAfter = 500 * time.Millisecond

	// sendWithin bounds one send, so that a stuck device delays nothing else.
	sendWithin = 100 * time.Millisecond

	ethernetAddrLen = 6
)

var (
	errNotOpen    = errors.New("arp: socket is not open")
	errNoCarrier  = errors.New("arp: link is down")
	errNotAllowed = errors.New("arp: the time to answer is over")
)

// A packet is one thing to say on the wire, in either protocol.
type packet struct {
	kind packetKind
	vip  netip.Addr
	// to is who asked: for replies only.
	to    netip.Addr
	toMAC net.HardwareAddr // empty where the question did not tell
}

type packetKind int

const (
	reply           packetKind = iota
	announceRequest            // gratuitous ARP request
	announceReply              // gratuitous ARP reply
	advertise                  // unsolicited neighbour advertisement
	probe                      // is there another owner?
)

// heard is what the tenure is told of a received packet.
type heard struct {
	kind heardKind
	vip  netip.Addr
	from netip.Addr // protocol address of who spoke, unspecified in a probe
	mac  string     // 6 bytes, or empty if unknown
	port *port
}

type heardKind int

const (
	nothing heardKind = iota
	question
	claim
)

// A deaf reason says why a received packet was nothing to us.
type deaf string

const (
	listened  deaf = ""
	malformed deaf = "malformed"
	ownPacket deaf = "sent by this host"
	notAVIP   deaf = "not about a VIP of this interface"
	noMAC     deaf = "tells no usable link-layer address"
)

// A station is one opened socket pair: it sends for one protocol on one
// interface as it is now.
type station interface {
	// send sends if may says so, which it asks as late as possible: this process
	// may be kept waiting anywhere.
	send(p packet, may func() bool) error
	// receive hands over what it hears until close.
	receive(hear func(heard)) error
	close() error
}

type portKey struct {
	iface string
	ipv6  bool
}

// A port is one protocol on one interface, whatever becomes of the interface.
type port struct {
	portKey
	wire *Wire
	vips []netip.Addr

	mu  sync.Mutex
	now station // nil while the interface is away

	ready   sync.Once
	failing string // the error that was last logged
}

func newPort(w *Wire, k portKey, vips []netip.Addr) *port {
	return &port{portKey: k, wire: w, vips: vips}
}

func (p *port) String() string {
	if p.ipv6 {
		return "NDP on " + p.iface
	}
	return "ARP on " + p.iface
}

// announcement is what tells everybody on the link where vip is.
func (p *port) announcement(vip netip.Addr) []packet {
	if p.ipv6 {
		return []packet{{kind: advertise, vip: vip}}
	}
	// Some stacks listen to the one form only, some to the other.
	return []packet{{kind: announceRequest, vip: vip}, {kind: announceReply, vip: vip}}
}

func (p *port) send(pk packet, may func() bool) error {
	if s, _, _ := p.wire.links.get(p.iface); !s.up {
		return errNoCarrier
	}
	p.mu.Lock()
	st := p.now
	p.mu.Unlock()
	if st == nil {
		return errNotOpen
	}
	err := st.send(pk, may)
	if err != nil && !errors.Is(err, errNotAllowed) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.now != st {
			return errNotOpen // it was closed under our hands
		}
	}
	return err
}

func (p *port) hear(h heard) {
	h.port = p
	p.wire.hear(h)
}

func (p *port) open() (station, linkState, error) {
	s, ok, _ := p.wire.links.get(p.iface)
	switch {
	case !ok:
		return nil, s, fmt.Errorf("arp: interface %s does not exist", p.iface)
	case len(s.mac) != ethernetAddrLen:
		return nil, s, fmt.Errorf("arp: interface %s has no Ethernet address, so nothing can be answered there: choose one that has", p.iface)
	}
	var st station
	var err error
	if p.ipv6 {
		st, err = openNDP(s.netInterface(p.iface), p.vips)
	} else {
		st, err = openARP(s.netInterface(p.iface), p.vips)
	}
	return st, s, err
}

// try proves that the sockets may be opened.
func (p *port) try() error {
	st, _, err := p.open()
	if err != nil {
		return err
	}
	return st.close()
}

// run keeps a station open until ctx ends.
func (p *port) run(ctx context.Context) error {
	for {
		_, _, changed := p.wire.links.get(p.iface)
		p.note(p.serve(ctx))
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(reopenAfter):
		}
	}
}

// note logs an error when it appears or changes. An interface that is merely
// down is logged with the link.
func (p *port) note(err error) {
	if err == nil || err.Error() == p.failing {
		return
	}
	p.failing = err.Error()
	p.wire.log.Warn("cannot listen, retrying", "what", p.String(), "error", err)
}

// serve opens a station and receives until it breaks or is of no use, as the
// interface is no longer the one that it was opened on.
func (p *port) serve(ctx context.Context) error {
	if s, ok, _ := p.wire.links.get(p.iface); ok && !s.admin {
		p.ready.Do(p.wire.partReady)
		return nil // sockets on it only tell that it is down
	}
	st, opened, err := p.open()
	if err != nil {
		return err
	}
	p.set(st)
	defer p.set(nil)
	p.ready.Do(p.wire.partReady)
	if p.failing != "" {
		p.failing = ""
		p.wire.log.Info("listening again", "what", p.String())
	}
	p.wire.Announce() // whoever held us to be gone

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := st.receive(p.hear); ctx.Err() == nil {
			return fmt.Errorf("%s: receive: %w", p, err)
		}
		return nil
	})
	g.Go(func() error {
		p.follow(ctx, opened)
		p.set(nil)
		stop() // so that the receiver takes its end for the wanted one
		return st.close()
	})
	return g.Wait()
}

// follow returns when the interface is no longer the opened one, or ctx ends.
// When the carrier returns, everybody is told where the VIPs are.
func (p *port) follow(ctx context.Context, opened linkState) {
	up := opened.up
	for {
		s, ok, changed := p.wire.links.get(p.iface)
		if !ok || s.identity() != opened.identity() {
			return
		}
		if s.up != up {
			up = s.up
			p.wire.log.Info("link changed", "what", p.String(), "up", up)
			if up {
				p.wire.Announce()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (p *port) set(st station) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = st
}
