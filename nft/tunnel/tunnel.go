package tunnel

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appliance/nft/ruleset"
	"appliance/sysctl"
)

const (
	// Name is that of the device. Other versions, and Cleanup after them, know it.
	Name = "appliance0"
	// vni is the VXLAN network identifier (RFC 7348 section 5), by which a device of this name is known as ours.
	vni = 0x61706c

	// noAddress is the dummy address of RFC 7600 section 4.8. A device without any IPv4 address takes no packet whose
	// source is behind another one, even where rp_filter is loose. Scope host keeps it from being anybody's source.
	noAddress = "192.0.0.8/32"
)

// An End is another node, to which the tunnel leads.
type End struct {
	// At is where the node takes what is tunnelled, and sends from.
	At netip.Addr
	// Addrs are all addresses of the node.
	Addrs []netip.Addr
}

// Config is what New needs to know.
type Config struct {
	Port uint16
	// VIPs are the addresses to which packets may come out of the tunnel.
	VIPs []netip.Addr
	// Owner owns the tables.
	Owner *ruleset.Owner
	// Untouched has Lead only look whether it could.
	Untouched bool
	// Sysctls is where kernel parameters can be written; empty for the usual place.
	Sysctls string
}

// A Device is this node's part in the tunnel. On it each End has a MAC address that is known beforehand, so that
// nothing is asked or learned there. The process that made the device may end; the next one takes it over.
//
// What comes from elsewhere than an End, and what is for other addresses than VIPs, is dropped.
type Device struct {
	cfg Config

	mu      sync.Mutex
	tables  [3]ruleset.Reconciler
	carries int
}

// New returns a tunnel that leads nowhere yet. It touches nothing.
func New(cfg Config) *Device {
	t := &Device{cfg: cfg}
	for i := range t.tables {
		t.tables[i].Owner = cfg.Owner
	}
	return t
}

// MAC is the address on the device of the node at an address. All nodes derive the same.
func MAC(at netip.Addr) (mac [6]byte) {
	sum := sha256.Sum256(append([]byte("appliance tunnel\x00"), at.AsSlice()...))
	copy(mac[:], sum[:])
	mac[0] = mac[0]&^1 | 2 // of one machine, locally administered
	return mac
}

// Via is the next hop on the device that has this MAC address, for packets that the stack sends there. The kernel needs a
// route to it by the device, and the node's own addresses have others. That of IPv6 is link-local (RFC 4291 appendix A);
// that of IPv4 is reserved (RFC 1112 section 4), so that it is nobody's, and 27 bits tell nodes apart. Neither is ever in
// a packet.
func Via(mac [6]byte, is4 bool) netip.Addr {
	if is4 {
		return netip.AddrFrom4([4]byte{0xf0 | mac[2]&0x0f, mac[3], mac[4], mac[5] &^ 1})
	}
	return netip.AddrFrom16([16]byte{
		0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5],
	})
}

// Carries is how long a packet may be that is carried in one piece.
func (t *Device) Carries() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.carries
}

// Lead has the tunnel lead from this node's own address to the ends, which are of the same family. It repairs what others
// have changed. Without any ends, there is no device.
func (t *Device) Lead(own netip.Addr, ends []End) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(ends) == 0 {
		return t.remove()
	}
	whole, err := mtu(ends)
	if err != nil {
		return err
	}
	if t.cfg.Untouched {
		_, err := ours()
		return err
	}
	t.carries = whole - overhead(own)
	// The outer packets of IPv4 are fragmented where they are too long. Those of IPv6 are dropped.
	if own.Is6() {
		whole = t.carries
	}
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: Name, MTU: whole, TxQLen: -1},
		VxlanId:   vni, SrcAddr: own.AsSlice(), Port: int(t.cfg.Port), UDPCSum: own.Is4(),
	}
	mac := MAC(own)
	want.HardwareAddr = mac[:]
	// The filter of what arrives is there before anything can.
	for i, table := range t.outer(own, ends) {
		if table.Chains == nil {
			_, err = t.tables[i].Remove(table)
		} else {
			_, err = t.tables[i].Apply(table)
		}
		if err != nil {
			return err
		}
	}
	l, isNew, err := ensure(want)
	if err != nil {
		return err
	}
	if isNew { // a chain of the device before it may be left
		if _, err := t.tables[2].Remove(innerTable()); err != nil {
			return err
		}
	}
	if _, err := t.tables[2].Apply(t.inner(ends)); err != nil {
		return err
	}
	if err := errors.Join(t.settle(l), netlink.LinkSetUp(l)); err != nil {
		return fmt.Errorf("device %s: %w", Name, err)
	}
	return errors.Join(hops(l.Attrs().Index, ends), neighbours(l.Attrs().Index, ends))
}

// Close removes the device and its rules.
func (t *Device) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.remove()
}

func (t *Device) remove() error {
	_, err := Cleanup()
	errs := []error{err}
	for i, table := range []ruleset.Table{outerTable(true), outerTable(false), innerTable()} {
		_, err := t.tables[i].Remove(table)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Cleanup removes the device that an earlier process may have left.
func Cleanup() (removed []string, err error) {
	l, err := ours()
	if l == nil || err != nil {
		return nil, nil // a device of others is not ours to remove
	}
	if err := netlink.LinkDel(l); err != nil {
		return nil, fmt.Errorf("removing device %s: %w", Name, err)
	}
	return []string{"device " + Name}, nil
}

// ours is the device, or nil. The error says that somebody else's has its name.
func ours() (*netlink.Vxlan, error) {
	l, err := netlink.LinkByName(Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("device %s: %w", Name, err)
	}
	v, ok := l.(*netlink.Vxlan)
	if !ok || v.VxlanId != vni {
		return nil, fmt.Errorf("device %s is not the appliance's: rename it", Name)
	}
	return v, nil
}

// ensure makes the device, unless it is there as it is wanted.
func ensure(want *netlink.Vxlan) (have *netlink.Vxlan, isNew bool, err error) {
	if have, err = ours(); err != nil {
		return nil, false, err
	}
	if have != nil {
		if have.SrcAddr.Equal(want.SrcAddr) && have.Port == want.Port && !have.Learning &&
			bytes.Equal(have.HardwareAddr, want.HardwareAddr) {
			if have.MTU != want.MTU {
				err = netlink.LinkSetMTU(have, want.MTU)
			}
			return have, false, err
		}
		if err := netlink.LinkDel(have); err != nil {
			return nil, false, fmt.Errorf("replacing device %s: %w", Name, err)
		}
	}
	if err := netlink.LinkAdd(want); err != nil {
		return nil, false, fmt.Errorf("making the VXLAN device %s: %w; the kernel needs CONFIG_VXLAN", Name, err)
	}
	have, err = ours()
	if have == nil && err == nil {
		err = fmt.Errorf("device %s is gone again", Name)
	}
	return have, true, err
}

// settle has the kernel take packets from the device although their sources are behind another one.
func (t *Device) settle(l netlink.Link) error {
	a, err := netlink.ParseAddr(noAddress)
	if err != nil {
		return err
	}
	a.Scope = unix.RT_SCOPE_HOST
	if err := netlink.AddrAdd(l, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	tree, strict := sysctl.Tree{Root: t.cfg.Sysctls}, false
	for _, which := range []string{"all", Name} {
		have, err := tree.Read("net/ipv4/conf/" + which + "/rp_filter")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if have == "2" {
			return nil // the higher one holds
		}
		strict = strict || have == "1"
	}
	if !strict {
		return nil
	}
	_, err = tree.Set(sysctl.Parameter{Key: "net/ipv4/conf/" + Name + "/rp_filter", Value: "2",
		Why: "answers to clients leave by another device than their packets come in"})
	return err
}

// hops has routes to the next hops of IPv4. To those of IPv6 the kernel has one by itself.
func hops(index int, ends []End) error {
	wanted := make(map[netip.Addr]bool)
	for _, e := range ends {
		wanted[Via(MAC(e.At), true)] = true
	}
	have, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF)
	if err != nil {
		return fmt.Errorf("reading the routes of %s: %w", Name, err)
	}
	var errs []error
	for _, r := range have {
		if to, ok := netip.AddrFromSlice(r.Dst.IP); ok && !wanted[to.Unmap()] {
			errs = append(errs, netlink.RouteDel(&r))
		} else {
			delete(wanted, to.Unmap())
		}
	}
	for to := range wanted {
		dst := &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(32, 32)}
		errs = append(errs, netlink.RouteReplace(&netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: dst}))
	}
	return errors.Join(errs...)
}

// neighbours has the ends known on the device, and nobody else.
func neighbours(index int, ends []End) error {
	type entry struct {
		family int
		addr   netip.Addr
		mac    [6]byte
	}
	wanted := make(map[entry]bool)
	for _, e := range ends {
		mac := MAC(e.At)
		wanted[entry{unix.AF_BRIDGE, e.At, mac}] = true
		for _, a := range append(slices.Clone(e.Addrs), Via(mac, true), Via(mac, false)) {
			family := netlink.FAMILY_V6
			if a.Is4() {
				family = netlink.FAMILY_V4
			}
			wanted[entry{family, a, mac}] = true
		}
	}
	var errs []error
	for _, family := range []int{unix.AF_BRIDGE, netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := netlink.NeighList(index, family)
		if err != nil {
			return fmt.Errorf("reading the neighbours on %s: %w", Name, err)
		}
		for _, n := range have {
			addr, ok := netip.AddrFromSlice(n.IP)
			if !ok || len(n.HardwareAddr) != 6 || n.State&unix.NUD_PERMANENT == 0 {
				continue
			}
			e := entry{family, addr.Unmap(), [6]byte(n.HardwareAddr)}
			if !wanted[e] {
				errs = append(errs, netlink.NeighDel(&n))
			}
			delete(wanted, e)
		}
	}
	for e := range wanted {
		n := &netlink.Neigh{LinkIndex: index, Family: e.family, State: unix.NUD_PERMANENT, IP: e.addr.AsSlice(),
			HardwareAddr: net.HardwareAddr(e.mac[:])}
		if e.family == unix.AF_BRIDGE {
			n.State |= unix.NUD_NOARP
			n.Flags = netlink.NTF_SELF
		}
		if err := netlink.NeighSet(n); err != nil {
			errs = append(errs, fmt.Errorf("making %v known on %s: %w", e.addr, Name, err))
		}
	}
	return errors.Join(errs...)
}

// overhead is how much longer a packet gets in the tunnel: IP, UDP, VXLAN, and an Ethernet header (RFC 7348 section 5).
func overhead(own netip.Addr) int {
	if own.Is4() {
		return 20 + 8 + 8 + 14
	}
	return 40 + 8 + 8 + 14
}

// mtu is the smallest of those of the ways to the ends, as far as this node knows.
func mtu(ends []End) (least int, err error) {
	for _, e := range ends {
		routes, err := netlink.RouteGet(e.At.AsSlice())
		if err != nil || len(routes) == 0 {
			return 0, fmt.Errorf("there is no route to %v: %w", e.At, err)
		}
		l, err := netlink.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return 0, fmt.Errorf("the interface towards %v: %w", e.At, err)
		}
		here := l.Attrs().MTU
		if r := routes[0].MTU; r > 0 {
			here = min(here, r)
		}
		if least == 0 || here < least {
			least = here
		}
	}
	return least, nil
}
