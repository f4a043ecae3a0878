package arp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// loopback is where every node binds the VIP.
	loopback = "lo"

	// marker is the address protocol (IFA_PROTO, Linux 5.18) that tells our addresses from those of others: `ip addr`
	// shows it as "proto 0x56". The kernel itself uses 1 to 3; 0x56 is V.
	marker = 0x56

	// ifaProto is IFA_PROTO of linux/if_addr.h.
	ifaProto = 11

	// forever is INFINITY_LIFE_TIME of linux/if_addr.h.
	forever = 0xffffffff

	// longestLifetime is the longest lifetime of an address that is ours without our marker, see address.ours.
	longestLifetime = 24 * time.Hour
)

// An address is one address of one interface, as the kernel lists it.
type address struct {
	addr  netip.Addr
	bits  int
	index int
	scope uint8
	flags uint32
	proto uint8
	valid uint32 // lifetime in seconds
}

func (a address) String() string { return fmt.Sprintf("%s/%d", a.addr, a.bits) }

func (a address) single() bool { return a.bits == a.addr.BitLen() }

// marked reports whether an address carries our marker.
func (a address) marked() bool { return a.proto == marker }

// ours reports whether an appliance has bound the address, which is on lo or is a VIP. Kernels before 5.18 drop the
// marker. There, a single address that expires within a day is ours, because nobody else gives lifetimes to addresses
// on lo.
func (a address) ours() bool {
	if a.proto != 0 {
		return a.marked()
	}
	return a.single() && a.valid != forever && time.Duration(a.valid)*time.Second <= longestLifetime
}

var errAddressMessage = errors.New("arp: netlink address message cut short")

// parseAddress reads an RTM_NEWADDR or RTM_DELADDR message. The netlink package's own parser leaves out IFA_PROTO.
func parseAddress(b []byte) (address, error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return address{}, errAddressMessage
	}
	a := address{
		bits:  int(b[1]),
		flags: uint32(b[2]),
		scope: b[3],
		index: int(binary.NativeEndian.Uint32(b[4:8])),
		valid: forever,
	}
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfAddrmsg:])
	if err != nil {
		return address{}, fmt.Errorf("%w: %w", errAddressMessage, err)
	}
	var local, peer netip.Addr
	for _, at := range attrs {
		switch v := at.Value; at.Attr.Type {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS:
			peer, _ = netip.AddrFromSlice(v)
		case unix.IFA_FLAGS:
			if len(v) >= 4 {
				a.flags = binary.NativeEndian.Uint32(v)
			}
		case unix.IFA_CACHEINFO:
			if len(v) >= unix.SizeofIfaCacheinfo {
				a.valid = binary.NativeEndian.Uint32(v[4:8])
			}
		case ifaProto:
			if len(v) >= 1 {
				a.proto = v[0]
			}
		}
	}
	// An IPv6 address is in IFA_ADDRESS, an IPv4 address in IFA_LOCAL.
	if a.addr = local; !a.addr.IsValid() {
		a.addr = peer
	}
	if !a.addr.IsValid() {
		return address{}, errAddressMessage
	}
	return a, nil
}

// addresses lists the host's addresses of both families.
func addresses() ([]address, error) {
	msgs, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	})
	if err != nil {
		return nil, fmt.Errorf("arp: list addresses: %w", err)
	}
	all := make([]address, 0, len(msgs))
	for _, m := range msgs {
		a, err := parseAddress(m)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// dumpTries bounds how often a list that changes meanwhile is requested.
const dumpTries = 20

// dump calls list until the list is consistent. Where addresses and links of containers come and go, the kernel marks a
// list that took several messages as interrupted (NLM_F_DUMP_INTR): entries may be missing.
func dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range dumpTries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// bind puts vip on the loopback interface, or renews it there.
func bind(vip netip.Addr, lo int, lifetime time.Duration) error {
	valid := uint32(lifetime / time.Second)
	msg := nl.NewIfAddrmsg(family(vip))
	msg.Prefixlen = uint8(vip.BitLen())
	msg.Index = uint32(lo)
	cache := nl.IfaCacheInfo{IfaCacheinfo: unix.IfaCacheinfo{Valid: valid, Prefered: valid}}
	var flags uint32
	if vip.Is4() {
		// Scope host keeps the kernel from choosing it as the source of packets to other machines. IPv4 has no
		// deprecated addresses for that.
		msg.Scope = unix.RT_SCOPE_HOST
	} else {
		// Other peers have it too, so duplicate address detection (RFC 4862, section 5.4) would disable it.
		flags = unix.IFA_F_NODAD
		// Deprecated from the start: the kernel prefers every other source address (RFC 6724, section 5, rule 3).
		cache.Prefered = 0
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, vip.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, vip.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, binary.NativeEndian.AppendUint32(nil, flags)))
	req.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, cache.Serialize()))
	req.AddData(nl.NewRtAttr(ifaProto, []byte{marker}))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("arp: bind %s on lo: %w%s", vip, err, remedy(err, vip))
	}
	return nil
}

// unbind removes an address. A missing one is no error.
func unbind(a address) error {
	msg := nl.NewIfAddrmsg(family(a.addr))
	msg.Prefixlen = uint8(a.bits)
	msg.Index = uint32(a.index)
	req := nl.NewNetlinkRequest(unix.RTM_DELADDR, unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.addr.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.addr.AsSlice()))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("arp: unbind %s from lo: %w%s", a.addr, err, remedy(err, a.addr))
	}
	return nil
}

// remedy adds to an error of the kernel what to do.
func remedy(err error, vip netip.Addr) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return ": run as root or give CAP_NET_ADMIN"
	case vip.Is6() && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EOPNOTSUPP)):
		return ": IPv6 is off on lo: set net.ipv6.conf.lo.disable_ipv6=0"
	}
	return ""
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// loIndex is the index of lo.
func loIndex() (int, error) {
	lo, err := netlink.LinkByName(loopback)
	if err != nil {
		return 0, fmt.Errorf("arp: look up lo: %w", err)
	}
	return lo.Attrs().Index, nil
}

// loAndAddresses is the index of lo, and the host's addresses.
func loAndAddresses() (lo int, all []address, err error) {
	if lo, err = loIndex(); err != nil {
		return 0, nil, err
	}
	all, err = addresses()
	return lo, all, err
}

// Cleanup removes from lo what a crashed process left: every address that carries our marker, and those of vips that
// are ours by their lifetime. It returns what it has removed.
func Cleanup(vips []netip.Addr) (removed []string, err error) {
	lo, all, err := loAndAddresses()
	if err != nil {
		return nil, err
	}
	known := make(map[netip.Addr]bool, len(vips))
	for _, v := range vips {
		known[v] = true
	}
	var errs []error
	for _, a := range all {
		if a.index != lo || !a.marked() && !(known[a.addr] && a.ours()) {
			continue
		}
		if err := unbind(a); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, a.String()+" from lo")
	}
	return removed, errors.Join(errs...)
}
