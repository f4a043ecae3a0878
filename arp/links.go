package arp

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// resubscribeAfter is the pause before a broken netlink subscription is renewed.
const resubscribeAfter = time.Second

// A linkState is what must stay the same for an open socket to stay useful, and whether the link can send.
type linkState struct {
	index int
	mtu   int
	mac   string // 6 bytes; a string so that states compare
	admin bool   // set up by the administrator
	// up is IFF_UP and IFF_RUNNING: set up, with carrier, and with whatever else bonds, bridges, VLANs and 802.1X need
	// (ifOperStatus of RFC 2863).
	up bool
	// master says whose port the interface is, if that takes all that comes in: "the bridge br-ex".
	master string
}

// identity is the state without what may change on the same interface.
func (s linkState) identity() linkState {
	s.up, s.master = false, ""
	return s
}

// usable reports whether the interface sends and hears.
func (s linkState) usable() bool { return s.up && s.master == "" }

// fault says why the interface is not usable, or "".
func (s linkState) fault() string {
	switch {
	case s.master != "":
		return "is a port of " + s.master + " and hears nothing itself"
	case !s.admin:
		return "is down"
	case !s.up:
		return "has no carrier"
	}
	return ""
}

// A Fault is why this host cannot answer for its VIPs on the wire. The zero Fault is none.
type Fault struct {
	Interface string
	Reason    string // goes on after the interface's name
}

func (f Fault) String() string {
	if f == (Fault{}) {
		return ""
	}
	return f.Interface + " " + f.Reason
}

func (s linkState) netInterface(name string) *net.Interface {
	return &net.Interface{Index: s.index, Name: name, MTU: s.mtu, HardwareAddr: net.HardwareAddr(s.mac)}
}

// links holds the last known state of the interfaces of the VIPs.
type links struct {
	names []string

	mu      sync.Mutex
	states  map[string]linkState // no entry: the interface does not exist
	lost    map[string]string    // by interface: the subnet of a VIP that it had, see subnetWatch
	changed chan struct{}        // closed and replaced with every change
}

func newLinks(names []string) *links {
	slices.Sort(names)
	return &links{
		names:   slices.Compact(names),
		states:  make(map[string]linkState),
		lost:    make(map[string]string),
		changed: make(chan struct{}),
	}
}

// refresh asks the kernel. A missing interface is an error for Open; later it may come back.
func (l *links) refresh() error {
	states := make(map[string]linkState, len(l.names))
	var errs []error
	for _, name := range l.names {
		link, err := netlink.LinkByName(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("arp: interface %s: %w: name one that exists (ip -br link lists them)",
				name, err))
			var missing netlink.LinkNotFoundError
			if !errors.As(err, &missing) {
				return errors.Join(errs...) // the state is unknown, so nothing has changed
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

			master: masterOf(a),
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !maps.Equal(states, l.states) {
		l.states = states
		l.tell()
	}
	return errors.Join(errs...)
}

// tell says that something has changed. Its caller has locked l.
func (l *links) tell() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// masterOf names the master of an interface that takes all that comes in: a bridge, a bond, a team or Open vSwitch, but
// not a VRF, which is about routes only.
func masterOf(a *netlink.LinkAttrs) string {
	if a.MasterIndex == 0 {
		return ""
	}
	m, err := netlink.LinkByIndex(a.MasterIndex)
	if err != nil {
		return "another interface" // it comes or goes at this moment, and another event tells
	}
	if m.Type() == "vrf" {
		return ""
	}
	return fmt.Sprintf("the %s %s", m.Type(), m.Attrs().Name)
}

// portOfAnother is an error if an interface is the port of another one, where no VIP can ever be answered.
func (l *links) portOfAnother() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, name := range l.names {
		if s := l.states[name]; s.master != "" {
			errs = append(errs, fmt.Errorf("arp: interface %s %s: set the interface to its master, or to another one",
				name, s.fault()))
		}
	}
	return errors.Join(errs...)
}

// setLost records that the interface no longer has the subnets of VIPs that it had, or, without a reason, that it has.
func (l *links) setLost(name, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost[name] == reason {
		return
	}
	if l.lost[name] = reason; reason == "" {
		delete(l.lost, name)
	}
	l.tell()
}

// fault is what is wrong with an interface; its caller has locked l.
func (l *links) fault(name string) string {
	s, ok := l.states[name]
	if !ok {
		return "does not exist"
	}
	return cmp.Or(s.fault(), l.lost[name])
}

func (l *links) get(name string) (s linkState, ok bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok = l.states[name]
	return s, ok, l.changed
}

// look is the state of an interface and what is wrong with it.
func (l *links) look(name string) (s linkState, fault string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.states[name], l.fault(name)
}

// firstFault is the fault of the first interface that has one, and a channel that is closed when that may change.
func (l *links) firstFault() (Fault, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range l.names {
		if reason := l.fault(name); reason != "" {
			return Fault{name, reason}, l.changed
		}
	}
	return Fault{}, l.changed
}

// monitor follows the kernel's link and address events. An event only wakes others, who read the state themselves.
func (w *Wire) monitor(ctx context.Context) error {
	for ctx.Err() == nil {
		err := w.subscribe(ctx)
		if ctx.Err() != nil {
			return nil
		}
		w.log.Debug("netlink subscription broke and is renewed", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(resubscribeAfter):
		}
	}
	return nil
}

func (w *Wire) subscribe(ctx context.Context) error {
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
	w.refreshLinks() // for what happened before the subscription
	w.binder.wake()
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
			w.binder.wake()
		}
	}
}

func (w *Wire) refreshLinks() {
	if err := w.links.refresh(); err != nil {
		w.log.Debug("links", "error", err)
	}
	w.logFault()
}

// concernsLink reports whether an event is about an interface of ours. There may be many about those of containers.
func (w *Wire) concernsLink(m syscall.NetlinkMessage) bool {
	if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg {
		return false
	}
	index := int(int32(binary.NativeEndian.Uint32(m.Data[4:8])))
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return true // an unneeded refresh is better than a missed one
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

// concernsAddr reports whether an event is about a VIP and no renewal of ours, or about the address of an interface of
// ours, which gives it the VIP's subnet.
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
	if w.vips[a.addr] != nil {
		return true
	}
	for _, name := range w.links.names {
		if s, ok, _ := w.links.get(name); ok && s.index == a.index {
			return true
		}
	}
	return false
}
