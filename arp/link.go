package arp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// subscribeAgain is the pause before a broken netlink subscription is renewed.
const subscribeAgain = time.Second

// A linkState is what must stay the same for an open socket to stay useful,
// and whether the link can send.
type linkState struct {
	index int
	mtu   int
	mac   string // 6 bytes; a string so that states compare
	admin bool   // set up by the administrator
	// up is the kernel's IFF_RUNNING: administratively up, carrier, and for
	// bonds, bridges, VLANs and 802.1X whatever they need (RFC 2863).
	up bool
}

// identity is the state without what comes and goes on the same interface.
func (s linkState) identity() linkState {
	s.up = false
	return s
}

func (s linkState) netInterface(name string) *net.Interface {
	return &net.Interface{Index: s.index, Name: name, MTU: s.mtu, HardwareAddr: net.HardwareAddr(s.mac)}
}

// links is the last known state of the interfaces of the VIPs.
type links struct {
	names []string

	mu      sync.Mutex
	states  map[string]linkState // no entry: the interface does not exist
	changed chan struct{}        // closed and replaced with every change
}

func newLinks(names []string) *links {
	slices.Sort(names)
	return &links{
		names:   slices.Compact(names),
		states:  make(map[string]linkState),
		changed: make(chan struct{}),
	}
}

// refresh asks the kernel. An interface that does not exist is an error only
// for Open, as later it may come back.
func (l *links) refresh() error {
	states := make(map[string]linkState, len(l.names))
	var errs []error
	for _, name := range l.names {
		link, err := netlink.LinkByName(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("arp: interface %s: %w: name one that exists (ip -br link lists them)", name, err))
			var missing netlink.LinkNotFoundError
			if !errors.As(err, &missing) {
				return errors.Join(errs...) // nothing is known, so nothing has changed
			}
			continue
		}
		a := link.Attrs()
		states[name] = linkState{
			index: a.Index,
			mtu:   a.MTU,
			mac:   string(a.HardwareAddr),
			admin: a.RawFlags&unix.IFF_UP != 0,
			up:    a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_RUNNING != 0,
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	same := len(states) == len(l.states)
	for name, s := range states {
		if old, ok := l.states[name]; !ok || old != s {
			same = false
		}
	}
	if !same {
		l.states = states
		close(l.changed)
		l.changed = make(chan struct{})
	}
	return errors.Join(errs...)
}

func (l *links) get(name string) (s linkState, ok bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok = l.states[name]
	return s, ok, l.changed
}

func (l *links) carrier() (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range l.names {
		if !l.states[name].up {
			return false, l.changed
		}
	}
	return true, l.changed
}

// watch follows the kernel's link and address events. Events are only edges:
// what is true is read again by those whom they wake.
func (w *Wire) watch(ctx context.Context) error {
	for ctx.Err() == nil {
		err := w.subscription(ctx)
		if ctx.Err() != nil {
			return nil
		}
		w.log.Debug("netlink subscription broke and is renewed", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(subscribeAgain):
		}
	}
	return nil
}

func (w *Wire) subscription(ctx context.Context) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return fmt.Errorf("arp: subscribe to netlink: %w", err)
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { s.Close(); close(closed) })
	defer func() {
		if stop() {
			s.Close()
			return
		}
		<-closed
	}()
	w.refreshLinks() // what happened before we subscribed
	w.keeper.wake()
	for {
		msgs, from, err := s.Receive()
		if err != nil {
			return fmt.Errorf("arp: receive from netlink: %w", err)
		}
		if from.Pid != nl.PidKernel {
			continue
		}
		var link, addr bool
		for _, m := range msgs {
			link = link || w.concernsLink(m)
			addr = addr || w.concernsAddr(m)
		}
		if link {
			w.refreshLinks()
		}
		if link || addr {
			w.keeper.wake()
		}
	}
}

func (w *Wire) refreshLinks() {
	if err := w.links.refresh(); err != nil {
		w.log.Debug("links", "error", err)
	}
}

// concernsLink tells events of our interfaces from those of the many that come
// and go with containers.
func (w *Wire) concernsLink(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg {
		return false
	}
	index := int(int32(binary.NativeEndian.Uint32(m.Data[4:8])))
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return true // better once too often
	}
	for _, name := range w.links.names {
		if s, ok, _ := w.links.get(name); ok && s.index == index {
			return true
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_IFNAME && nl.BytesToString(a.Value) == name {
				return true
			}
		}
	}
	return false
}

// concernsAddr is true for the addresses that are VIPs, but for our own
// renewals on lo.
func (w *Wire) concernsAddr(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWADDR && m.Header.Type != unix.RTM_DELADDR {
		return false
	}
	a, err := parseAddress(m.Data)
	if err != nil {
		return true
	}
	if m.Header.Type == unix.RTM_NEWADDR && a.ours() {
		return false
	}
	return w.vips[a.addr] != nil
}
