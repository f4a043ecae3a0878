package routes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// DefaultProtocol is the protocol number of our routes, which marks what is ours: 0x56 is V, as the addresses on lo
// have it. The kernel itself uses 1 to 3, and daemons have numbers of their own (rtnetlink(7)).
const DefaultProtocol = 86

// lifetime is how long the kernel keeps a route of IPv6 that nobody renews. A route of IPv4 has no lifetime, but goes
// with its source, the virtual address, which has one.
const lifetime = 60 * time.Second

// A KernelTable is where the routes are kept.
type KernelTable struct {
	// Number is the kernel's routing table; 254 is main. Metric 0 is the kernel's own choice.
	Number, Metric int
	// Protocol is 5 to 255. Routes of this protocol in the table are ours: those that are not wanted are removed.
	Protocol int
}

// Keep makes vips, each with its interface, the whole set of virtual addresses that have a route in the table. Packets
// do not take the route, since the address is on lo; with lo as its interface, the kernel would make one of IPv6
// unreachable. Call it often, and twice in 60 s at least. changed counts the routes that were added or removed.
func (t KernelTable) Keep(vips map[netip.Addr]string) (changed int, err error) {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		have, err := t.list(family)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, r := range have {
			if vip, ok := destination(r); ok && vips[vip] != "" {
				continue
			}
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("routes: remove %s from table %d: %w", r.Dst, t.Number, err))
				continue
			}
			changed++
		}
		for _, vip := range slices.SortedFunc(maps.Keys(vips), netip.Addr.Compare) {
			if vip.Is4() != (family == unix.AF_INET) {
				continue
			}
			there := slices.ContainsFunc(have, func(r netlink.Route) bool { at, ok := destination(r); return ok && at == vip })
			if there && vip.Is4() {
				continue
			}
			if err := t.add(vip, vips[vip]); err != nil {
				errs = append(errs, fmt.Errorf("routes: add %s to table %d: %w%s", vip, t.Number, err, remedy(err)))
				continue
			}
			if !there {
				changed++
			}
		}
	}
	return changed, errors.Join(errs...)
}

func remedy(err error) string {
	if errors.Is(err, unix.EPERM) {
		return ": run as root or give CAP_NET_ADMIN"
	}
	return ""
}

// add adds or renews the route for vip.
func (t KernelTable) add(vip netip.Addr, on string) error {
	link, err := netlink.LinkByName(on)
	if err != nil {
		return err
	}
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	m := nl.NewRtMsg()
	m.Family, m.Dst_len, m.Protocol = unix.AF_INET, uint8(vip.BitLen()), uint8(t.Protocol)
	m.Table = unix.RT_TABLE_UNSPEC // the attribute holds all 32 bits
	number := func(kind int, n uint32) { req.AddData(nl.NewRtAttr(kind, binary.NativeEndian.AppendUint32(nil, n))) }
	if vip.Is4() {
		m.Scope = unix.RT_SCOPE_LINK
	} else {
		m.Family = unix.AF_INET6
	}
	req.AddData(m)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, vip.AsSlice()))
	number(unix.RTA_OIF, uint32(link.Attrs().Index))
	number(unix.RTA_TABLE, uint32(t.Number))
	if t.Metric > 0 {
		number(unix.RTA_PRIORITY, uint32(t.Metric))
	}
	if vip.Is4() {
		req.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, vip.AsSlice()))
	} else {
		number(unix.RTA_EXPIRES, uint32(lifetime/time.Second))
	}
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// list is what the table has of ours.
func (t KernelTable) list(family int) ([]netlink.Route, error) {
	filter := &netlink.Route{Table: t.Number, Protocol: netlink.RouteProtocol(t.Protocol)}
	var all []netlink.Route
	var err error
	// A list that changes while it is read may lack entries (NLM_F_DUMP_INTR).
	for range 20 {
		all, err = netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("routes: list table %d: %w", t.Number, err)
	}
	return all, nil
}

// destination is the one address that a route leads to.
func destination(r netlink.Route) (netip.Addr, bool) {
	if r.Dst == nil {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(r.Dst.IP)
	ones, bits := r.Dst.Mask.Size()
	return a.Unmap(), ok && ones == bits
}

// Cleanup removes the routes of DefaultProtocol from every table, and says which. Those of another number are of the
// operator's choice, and go with a table of their own.
func Cleanup() (removed []string, err error) {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Protocol: DefaultProtocol}
		all, err := netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			errs = append(errs, fmt.Errorf("routes: list: %w", err))
			continue
		}
		for _, r := range all {
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("routes: remove %s: %w", r.Dst, err))
				continue
			}
			removed = append(removed, fmt.Sprintf("route to %s from table %d", r.Dst, r.Table))
		}
	}
	return removed, errors.Join(errs...)
}
