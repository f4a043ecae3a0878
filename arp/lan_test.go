package arp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/ethernet"
	rawpacket "github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A lan is a bridge in a namespace of its own. It learns nothing and floods
// everything, so that the tap gets every frame.
type lan struct {
	t  *testing.T
	ns netns.NsHandle
	br int // index of the bridge, in ns
}

// A host is a network namespace with eth0 on the lan.
type host struct {
	lan *lan
	ns  netns.NsHandle
	mac net.HardwareAddr
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	l := &lan{t: t, ns: newNS(t)}
	within(t, l.ns, func() error {
		var zero uint32
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}, AgeingTime: &zero}
		if err := netlink.LinkAdd(br); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		l.br = br.Attrs().Index
		return netlink.LinkSetUp(br)
	})
	return l
}

// newNS makes an unnamed namespace with lo up and IPv6 addresses usable at
// once. The test's end removes it.
func newNS(t *testing.T) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	onThread(t, func() (err error) {
		if ns, err = netns.New(); err != nil {
			return fmt.Errorf("new namespace: %w", err)
		}
		for _, c := range []string{"all", "default"} {
			if err := writeSysctl("net/ipv6/conf/"+c+"/accept_dad", "0"); err != nil {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	t.Cleanup(func() { ns.Close() })
	return ns
}

// onThread runs f on a thread that ends with f, which may change its namespace.
func onThread(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// within runs f in ns.
func within(t *testing.T, ns netns.NsHandle, f func() error) {
	t.Helper()
	onThread(t, func() error {
		if err := netns.Set(ns); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return f()
	})
}

// host plugs a new machine in, with addresses like "192.0.2.11/24".
func (l *lan) host(addrs ...string) *host {
	l.t.Helper()
	h := &host{lan: l, ns: newNS(l.t)}
	h.plug(addrs...)
	return h
}

// plug makes eth0 as a new device.
func (h *host) plug(addrs ...string) {
	h.lan.t.Helper()
	h.card("eth0")
	h.use("eth0", addrs...)
}

// card plugs in a device of that name, and returns the index of the lan's end.
func (h *host) card(name string) (index int) {
	t := h.lan.t
	t.Helper()
	within(t, h.lan.ns, func() error {
		port := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{MasterIndex: h.lan.br},
			PeerName:      name,
			PeerNamespace: netlink.NsFd(h.ns),
		}
		port.Name = fmt.Sprintf("p%d", time.Now().UnixNano()%1e12)
		if err := netlink.LinkAdd(port); err != nil {
			return fmt.Errorf("add veth: %w", err)
		}
		index = port.Attrs().Index
		return netlink.LinkSetUp(port)
	})
	return index
}

// use gives an interface its addresses and brings it up. Nodes on h answer with its MAC.
func (h *host) use(name string, addrs ...string) {
	t := h.lan.t
	t.Helper()
	within(t, h.ns, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		h.mac = link.Attrs().HardwareAddr
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if addr.IP.To4() == nil {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add address %s: %w", a, err)
			}
		}
		return netlink.LinkSetUp(link)
	})
}

// eth0 changes the host's interface.
func (h *host) eth0(f func(netlink.Link) error) {
	h.lan.t.Helper()
	h.link("eth0", f)
}

func (h *host) link(name string, f func(netlink.Link) error) {
	h.lan.t.Helper()
	within(h.lan.t, h.ns, func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return f(l)
	})
}

// loAddrs lists what is bound on lo.
func (h *host) loAddrs() (found []address) {
	h.lan.t.Helper()
	within(h.lan.t, h.ns, func() error {
		lo, err := loIndex()
		if err != nil {
			return err
		}
		all, err := addresses()
		for _, a := range all {
			if a.index == lo && !a.addr.IsLoopback() {
				found = append(found, a)
			}
		}
		return err
	})
	return found
}

// resolve makes the kernel look for vip and returns the MAC that it finds in time, or empty. fresh makes it forget the
// MAC that it knew.
func (h *host) resolve(vip netip.Addr, fresh bool, wait time.Duration) string {
	h.lan.t.Helper()
	var mac string
	within(h.lan.t, h.ns, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		index := eth.Attrs().Index
		if fresh {
			known := &netlink.Neigh{LinkIndex: index, IP: vip.AsSlice(), Family: family(vip)}
			_ = netlink.NeighDel(known) // there may be none
		}
		for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if c, err := net.Dial("udp", netip.AddrPortFrom(vip, 9).String()); err == nil {
				_, _ = c.Write([]byte{0}) // only the lookup matters
				c.Close()
			}
			n, err := h.neighbour(index, vip)
			if err != nil {
				return err
			}
			if n != nil && n.State&netlink.NUD_REACHABLE != 0 {
				mac = n.HardwareAddr.String()
				return nil
			}
		}
		return nil
	})
	return mac
}

func (h *host) neighbour(index int, vip netip.Addr) (*netlink.Neigh, error) {
	all, err := netlink.NeighList(index, family(vip))
	if err != nil {
		return nil, err
	}
	for _, n := range all {
		if n.IP.Equal(vip.AsSlice()) {
			return &n, nil
		}
	}
	return nil, nil
}

// write sends a raw frame from eth0.
func (h *host) write(frame []byte) {
	t := h.lan.t
	t.Helper()
	within(t, h.ns, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err := rawpacket.Listen(ifi, rawpacket.Raw, 0, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo(frame, &rawpacket.Addr{HardwareAddr: net.HardwareAddr(frame[:6])})
		return err
	})
}

// A tap receives every frame on the lan.
type tap struct {
	t      *testing.T
	beacon *rawpacket.Conn // a socket does not receive what it sends
	mu     sync.Mutex
	frames []ethernet.Frame
	synced uint64 // the number in the last of our own frames that was received
}

// etherTypeSync is for local experiments (IEEE 802, section 9.2.4).
const etherTypeSync = 0x88b5

func (l *lan) tap() *tap {
	l.t.Helper()
	h := l.host()
	var c, beacon *rawpacket.Conn
	within(l.t, h.ns, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if beacon, err = rawpacket.Listen(ifi, rawpacket.Raw, 0, nil); err != nil {
			return err
		}
		if c, err = rawpacket.Listen(ifi, rawpacket.Raw, unix.ETH_P_ALL, nil); err != nil {
			return err
		}
		return c.SetPromiscuous(true)
	})
	tp := &tap{t: l.t, beacon: beacon}
	var closing atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				if !closing.Load() {
					l.t.Errorf("the tap broke: %v", err)
				}
				return
			}
			var f ethernet.Frame
			if f.UnmarshalBinary(b[:n]) == nil {
				tp.add(f)
			}
		}
	}()
	l.t.Cleanup(func() { closing.Store(true); c.Close(); beacon.Close(); <-done })
	return tp
}

func (tp *tap) add(f ethernet.Frame) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	if f.EtherType == etherTypeSync {
		tp.synced = max(tp.synced, binary.BigEndian.Uint64(f.Payload))
		return
	}
	tp.frames = append(tp.frames, f)
}

// sync waits until all that was sent before has been received.
func (tp *tap) sync() {
	tp.t.Helper()
	n := uint64(time.Now().UnixNano())
	f := ethernet.Frame{
		Destination: net.HardwareAddr{2, 0, 0, 0, 0, 0xee}, Source: net.HardwareAddr{2, 0, 0, 0, 0, 0xef},
		EtherType: etherTypeSync, Payload: binary.BigEndian.AppendUint64(nil, n),
	}
	b, err := f.MarshalBinary()
	if err != nil {
		tp.t.Fatal(err)
	}
	eventually(tp.t, "the tap receives its own frame", func() bool {
		// Again and again, because a busy kernel may drop what it copies for taps.
		if _, err := tp.beacon.WriteTo(b, &rawpacket.Addr{HardwareAddr: f.Destination}); err != nil {
			tp.t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		tp.mu.Lock()
		defer tp.mu.Unlock()
		return tp.synced >= n
	})
}

// claimants are the MACs that claimed vip on the wire since the frame mark.
func (tp *tap) claimants(vip netip.Addr, mark int) []string {
	tp.t.Helper()
	tp.sync()
	tp.mu.Lock()
	defer tp.mu.Unlock()
	var macs []string
	for _, f := range tp.frames[mark:] {
		if mac, ok := claimant(f, vip); ok && !slices.Contains(macs, mac) {
			macs = append(macs, mac)
		}
	}
	return macs
}

// claimant is the MAC with which f claims vip.
func claimant(f ethernet.Frame, vip netip.Addr) (string, bool) {
	b, err := f.MarshalBinary()
	if err != nil {
		return "", false
	}
	var h message
	switch f.EtherType {
	case ethernet.EtherTypeARP:
		h, _ = parseARP(b, "", []netip.Addr{vip})
	case ethernet.EtherTypeIPv6:
		h, _ = parseNDPFrame(b, "none", []netip.Addr{vip})
	}
	return net.HardwareAddr(h.mac).String(), h.kind == claim
}

func (tp *tap) mark() int {
	tp.t.Helper()
	tp.sync()
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return len(tp.frames)
}

// from are the frames that mac sent since mark.
func (tp *tap) from(mac net.HardwareAddr, mark int) (found []ethernet.Frame) {
	tp.t.Helper()
	tp.sync()
	tp.mu.Lock()
	defer tp.mu.Unlock()
	for _, f := range tp.frames[mark:] {
		if f.Source.String() == mac.String() {
			found = append(found, f)
		}
	}
	return found
}

// eventually waits for f, with a bound for the slowest machine.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("did not happen: %s", what)
}

// writeSysctl sets a key of the thread's namespace, like "net/ipv4/ip_forward".
func writeSysctl(key, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
}
