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

// reopenAfter is the pause before a socket that broke is opened again, if no link event comes first.
const reopenAfter = 500 * time.Millisecond

type responderKey struct {
	iface string
	ipv6  bool
}

// A responder is one protocol on one interface. It outlives its socket when the interface is replaced.
type responder struct {
	responderKey
	wire *Wire
	vips []netip.Addr

	mu      sync.Mutex
	current socket // nil while the interface is away

	ready   sync.Once
	failing string // the error that was last logged
	floods  damper
}

func newResponder(w *Wire, k responderKey, vips []netip.Addr) *responder {
	return &responder{responderKey: k, wire: w, vips: vips}
}

func (r *responder) String() string {
	if r.ipv6 {
		return "NDP on " + r.iface
	}
	return "ARP on " + r.iface
}

// announcement lists the packets that tell everybody on the link where vip is.
func (r *responder) announcement(vip netip.Addr) []packet {
	if r.ipv6 {
		return []packet{{kind: advertise, vip: vip}}
	}
	// Some stacks update their caches on requests only, some on replies only.
	return []packet{{kind: announceRequest, vip: vip}, {kind: announceReply, vip: vip}}
}

func (r *responder) send(p packet, may func() bool) error {
	if link, _, _ := r.wire.links.get(r.iface); !link.usable() {
		return errNoCarrier
	}
	r.mu.Lock()
	s := r.current
	r.mu.Unlock()
	if s == nil {
		return errNotOpen
	}
	err := s.send(p, may)
	if err != nil && !errors.Is(err, errNotAllowed) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.current != s {
			return errNotOpen // it was closed meanwhile
		}
	}
	return err
}

func (r *responder) deliver(m message) {
	m.via = r
	r.wire.deliver(m)
}

// logFlood says that the kernel drops the frames of a machine for a while. Only the receiver calls it.
func (r *responder) logFlood(mac string) {
	if r.floods.due(time.Now()) {
		r.wire.log.Warn("a machine sends more packets about the VIPs than any needs, and most are dropped unread: "+
			"find it by its MAC", "what", r.String(), "mac", net.HardwareAddr(mac).String())
	}
}

func (r *responder) open() (socket, linkState, error) {
	s, ok, _ := r.wire.links.get(r.iface)
	switch {
	case !ok:
		return nil, s, fmt.Errorf("arp: interface %s does not exist", r.iface)
	case len(s.mac) != ethernetAddrLen:
		return nil, s, fmt.Errorf("arp: interface %s has no Ethernet address, so nothing can be answered there: "+
			"choose one that has", r.iface)
	}
	var st socket
	var err error
	if r.ipv6 {
		st, err = openNDP(s.netInterface(r.iface), r.vips)
	} else {
		st, err = openARP(s.netInterface(r.iface), r.vips)
	}
	return st, s, err
}

// tryOpen proves that the socket may be opened.
func (r *responder) tryOpen() error {
	st, _, err := r.open()
	if err != nil {
		return err
	}
	return st.close()
}

// run keeps a socket open until ctx ends.
func (r *responder) run(ctx context.Context) error {
	for {
		_, _, changed := r.wire.links.get(r.iface)
		r.logFailure(r.serve(ctx))
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(reopenAfter):
		}
	}
}

// logFailure logs an error when it appears or changes. An interface that is only down is logged with the link.
func (r *responder) logFailure(err error) {
	if err == nil || err.Error() == r.failing {
		return
	}
	r.failing = err.Error()
	r.wire.log.Warn("cannot listen, retrying", "what", r.String(), "error", err)
}

// serve opens a socket and receives until the socket breaks or its interface has been replaced.
func (r *responder) serve(ctx context.Context) error {
	if s, ok, _ := r.wire.links.get(r.iface); ok && !s.admin {
		r.ready.Do(r.wire.oneReady)
		return nil // its sockets would only fail because it is down
	}
	st, opened, err := r.open()
	if err != nil {
		return err
	}
	r.set(st)
	defer r.set(nil)
	r.ready.Do(r.wire.oneReady)
	if r.failing != "" {
		r.failing = ""
		r.wire.log.Info("listening again", "what", r.String())
	}
	r.wire.Announce() // neighbours may have taken us for gone

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := st.receive(r.deliver, r.logFlood); ctx.Err() == nil {
			return fmt.Errorf("%s: receive: %w", r, err)
		}
		return nil
	})
	g.Go(func() error {
		r.follow(ctx, opened)
		r.set(nil)
		stop() // so that the receiver does not report the close as an error
		return st.close()
	})
	return g.Wait()
}

// follow returns when the interface is no longer the opened one, or ctx ends. It announces the VIPs when the interface
// is usable again.
func (r *responder) follow(ctx context.Context, opened linkState) {
	up := opened.usable()
	for {
		s, ok, changed := r.wire.links.get(r.iface)
		if !ok || s.identity() != opened.identity() {
			return
		}
		if s.usable() != up {
			if up = s.usable(); up {
				r.wire.Announce()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (r *responder) set(st socket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = st
}
