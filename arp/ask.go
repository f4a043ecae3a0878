package arp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/ndp"
	rawpacket "github.com/mdlayher/packet"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// askAgain is how often a question is repeated while Ask waits: a frame may be lost.
const askAgain = 3

// Ask asks on the link of an interface who has addr, and returns the MAC addresses of all that answer within the
// time. It claims nothing: an ARP probe has no sender address (RFC 5227 section 2.1.1), and a solicitation comes from
// the interface's own address. The host's own answers are not heard.
func Ask(iface string, addr netip.Addr, within time.Duration) ([]net.HardwareAddr, error) {
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, fmt.Errorf("arp: interface %s: %w", iface, err)
	}
	ask := askNDP
	if addr = addr.Unmap(); addr.Is4() {
		ask = askARP
	}
	var all []net.HardwareAddr
	err = ask(ifi, addr, time.Now().Add(within), func(mac net.HardwareAddr) {
		same := func(m net.HardwareAddr) bool { return slices.Equal(m, mac) }
		if !same(ifi.HardwareAddr) && !slices.ContainsFunc(all, same) {
			all = append(all, slices.Clone(mac))
		}
	})
	return all, err
}

// questions sends a question several times until end, and reads answers in between.
func questions(end time.Time, send func() error, setDeadline func(time.Time) error, read func() error) error {
	pause := time.Until(end) / askAgain
	for range askAgain {
		if err := send(); err != nil {
			return err
		}
		if err := setDeadline(time.Now().Add(pause)); err != nil {
			return err
		}
		for {
			err := read()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func askARP(ifi *net.Interface, addr netip.Addr, end time.Time, found func(net.HardwareAddr)) error {
	conn, err := rawpacket.Listen(ifi, rawpacket.Raw, unix.ETH_P_ARP, nil)
	if err != nil {
		return fmt.Errorf("arp: open packet socket on %s: %w: run as root or give CAP_NET_RAW", ifi.Name, err)
	}
	defer conn.Close()
	if len(ifi.HardwareAddr) != ethernetAddrLen {
		return fmt.Errorf("arp: interface %s has no MAC address, so nobody can be asked there", ifi.Name)
	}
	p, err := arp.NewPacket(arp.OperationRequest, ifi.HardwareAddr, netip.IPv4Unspecified(), make(net.HardwareAddr,
		ethernetAddrLen), addr)
	if err != nil {
		return err
	}
	payload, err := p.MarshalBinary()
	if err != nil {
		return err
	}
	f := ethernet.Frame{
		Destination: ethernet.Broadcast, Source: ifi.HardwareAddr, EtherType: ethernet.EtherTypeARP, Payload: payload,
	}
	question, err := f.MarshalBinary()
	if err != nil {
		return err
	}
	send := func() error {
		if _, err := conn.WriteTo(question, &rawpacket.Addr{HardwareAddr: ethernet.Broadcast}); err != nil {
			return fmt.Errorf("arp: ask on %s: %w", ifi.Name, err)
		}
		return nil
	}
	b := make([]byte, ethernetHeaderLen+arpLen)
	read := func() error {
		n, _, err := conn.ReadFrom(b)
		if err != nil || n < len(b) {
			return err
		}
		var p arp.Packet
		if p.UnmarshalBinary(b[ethernetHeaderLen:n]) == nil && p.Operation == arp.OperationReply && p.SenderIP == addr {
			found(p.SenderHardwareAddr)
		}
		return nil
	}
	return questions(end, send, conn.SetReadDeadline, read)
}

func askNDP(ifi *net.Interface, addr netip.Addr, end time.Time, found func(net.HardwareAddr)) error {
	conn, _, err := ndp.Listen(ifi, ndp.LinkLocal)
	if err != nil {
		return fmt.Errorf("arp: open ICMPv6 socket on %s: %w: run as root or give CAP_NET_RAW", ifi.Name, err)
	}
	defer conn.Close()
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeNeighborAdvertisement)
	if err := conn.SetICMPFilter(&filter); err != nil {
		return fmt.Errorf("arp: set ICMPv6 filter: %w", err)
	}
	group, err := ndp.SolicitedNodeMulticast(addr) // RFC 4291 section 2.7.1
	if err != nil {
		return err
	}
	question := &ndp.NeighborSolicitation{
		TargetAddress: addr,
		Options:       []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: ifi.HardwareAddr}},
	}
	send := func() error {
		if err := conn.WriteTo(question, nil, group); err != nil {
			return fmt.Errorf("arp: ask on %s: %w", ifi.Name, err)
		}
		return nil
	}
	read := func() error {
		m, _, _, err := conn.ReadFrom()
		if err != nil {
			return err
		}
		if a, ok := m.(*ndp.NeighborAdvertisement); ok && a.TargetAddress == addr {
			if mac := linkLayer(a.Options, ndp.Target); mac != "" {
				found(net.HardwareAddr(mac))
			}
		}
		return nil
	}
	return questions(end, send, conn.SetReadDeadline, read)
}
