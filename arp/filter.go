package arp

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	ethernetHeaderLen = 14
	ipv6HeaderLen     = 40

	// Offsets in the frame.
	offEtherType = 12

	offHardware = ethernetHeaderLen      // RFC 826 ar$hrd and ar$pro
	offLengths  = ethernetHeaderLen + 4  // ar$hln and ar$pln
	offOp       = ethernetHeaderLen + 6  // ar$op
	offSenderIP = ethernetHeaderLen + 14 // ar$spa
	offTargetIP = ethernetHeaderLen + 24 // ar$tpa

	offNextHeader = ethernetHeaderLen + 6 // RFC 8200, section 3; the hop limit comes next
	offICMP       = ethernetHeaderLen + ipv6HeaderLen
	offTarget     = offICMP + 8 // RFC 4861, sections 4.3 and 4.4

	// filteredVIPs is the largest number of VIPs that a filter names, within the kernel's limit of 4096 instructions.
	filteredVIPs = 256
)

func drop() bpf.Instruction { return bpf.RetConstant{Val: 0} }

// only drops what does not have value in the register.
func only(value uint32) []bpf.Instruction {
	return []bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: value, SkipTrue: 1}, drop()}
}

// linkFilter passes on untagged frames of that EtherType to this host on the interface with that index. Without it, the
// socket would also get packets of VLANs, their tags removed: of a VLAN interface on top of its own, and of VLANs for
// which this host has no interface.
func linkFilter(index int, etherType uint32) (f []bpf.Instruction) {
	f = append(f,
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: unix.PACKET_OTHERHOST, SkipTrue: 1},
		drop(), // for another host, or our own
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
	)
	f = append(f, only(uint32(index))...)
	f = append(f, bpf.LoadExtension{Num: bpf.ExtVLANTagPresent})
	f = append(f, only(0)...)
	f = append(f, bpf.LoadAbsolute{Off: offEtherType, Size: 2})
	return append(f, only(etherType)...)
}

// arpFilter accepts ARP packets that claim a VIP or ask for one.
func arpFilter(vips []netip.Addr) (f []bpf.Instruction) {
	accept := bpf.RetConstant{Val: ethernetHeaderLen + arpLen}
	f = append(f, bpf.LoadAbsolute{Off: offHardware, Size: 4})
	f = append(f, only(arpHardwareEthernet<<16|unix.ETH_P_IP)...)
	f = append(f, bpf.LoadAbsolute{Off: offLengths, Size: 2})
	f = append(f, only(ethernetAddrLen<<8|net.IPv4len)...)
	if len(vips) > filteredVIPs {
		return append(f, accept)
	}
	names := func(off uint32) {
		f = append(f, bpf.LoadAbsolute{Off: off, Size: 4})
		for _, vip := range vips {
			a := vip.As4()
			f = append(f, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(a[:]), SkipTrue: 1}, accept)
		}
	}
	names(offSenderIP)
	f = append(f, bpf.LoadAbsolute{Off: offOp, Size: 2})
	f = append(f, only(arpRequest)...)
	names(offTargetIP)
	return append(f, drop())
}

// ndpFilter accepts solicitations and advertisements of VIPs that have not come through a router. Neither has extension
// headers in practice, and the filter demands none.
func ndpFilter(vips []netip.Addr) (f []bpf.Instruction) {
	accept := bpf.RetConstant{Val: ndpFrameMax}
	f = append(f, bpf.LoadAbsolute{Off: offNextHeader, Size: 2})
	f = append(f, only(icmpv6<<8|hopLimit)...)
	f = append(f,
		bpf.LoadAbsolute{Off: offICMP, Size: 2}, // type and code
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmpSolicitation << 8, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmpAdvertisement << 8, SkipTrue: 1},
		drop(),
	)
	if len(vips) > filteredVIPs {
		return append(f, accept)
	}
	for _, vip := range vips {
		a := vip.As16()
		// The last bytes first, in which VIPs differ from most other addresses.
		for word := 3; word >= 0; word-- {
			f = append(f,
				bpf.LoadAbsolute{Off: offTarget + 4*uint32(word), Size: 4},
				bpf.JumpIf{
					Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(a[4*word:]), SkipTrue: uint8(2*word + 1),
				})
		}
		f = append(f, accept)
	}
	return append(f, drop())
}
