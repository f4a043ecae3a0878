package arp

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	ethernetHeaderLen = 14
	ipv6HeaderLen     = 40

	// Offsets in the frame.
	offSourceMAC = 6
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

// admissionFilter drops frames of blocked sources, and in a flood from ever other sources all but a sample of those
// from sources that are not known.
func admissionFilter(a admission) (f []bpf.Instruction) {
	for _, mac := range a.blocked {
		f = append(f, fromSource(mac, drop())...)
	}
	if a.sample == 0 {
		return f
	}
	sampling := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtRand},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 1<<a.sample - 1, SkipTrue: 1},
		drop(),
	}
	left := len(a.known) * len(fromSource("\x00\x00\x00\x00\x00\x00", drop()))
	for _, mac := range a.known {
		left -= len(fromSource(mac, drop()))
		f = append(f, fromSource(mac, bpf.Jump{Skip: uint32(left + len(sampling))})...)
	}
	return append(f, sampling...)
}

// fromSource executes then for frames whose source is mac.
func fromSource(mac string, then bpf.Instruction) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: offSourceMAC + 2, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32([]byte(mac[2:6])), SkipTrue: 3},
		bpf.LoadAbsolute{Off: offSourceMAC, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(binary.BigEndian.Uint16([]byte(mac[:2]))), SkipTrue: 1},
		then,
	}
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

const (
	// meterWindow is the time over which frames are counted.
	meterWindow = 100 * time.Millisecond

	// sourceMax is how many frames about VIPs one source may send in a window, a thousand a second, or framesPerVIP for
	// each, if that is more. A machine that looks for a VIP sends one in a second; a holder announces all at once.
	sourceMax    = 100
	framesPerVIP = 4

	// blockFor is how long the kernel drops the frames of a source that sent more.
	blockFor = time.Second

	// strangersMax is how many frames all sources that are not known may send in a window. What is more comes from many
	// machines or forged sources, and only a sample of it passes the filter.
	strangersMax = 120

	// A source is known that has been heard over knownAfter: forged sources are ever others. In a flood of those, a
	// known source may send acquaintanceMax frames in a window that no sampling thins out.
	knownAfter      = time.Second
	acquaintanceMax = 20

	// Bounds on what a flood makes us remember, and on the length of the filter.
	blockedMax = 64
	knownMax   = 64
	sourcesMax = 1024

	// sampleMax is the coarsest sample, one frame of 65,536.
	sampleMax = 16
)

// An admission is what the filter of a socket does with sources of frames, each a MAC of 6 bytes.
type admission struct {
	blocked []string
	// sample is how often the share of frames that pass is halved; known sources are exempt.
	sample int
	known  []string
}

func (a admission) equal(b admission) bool {
	return a.sample == b.sample && slices.Equal(a.blocked, b.blocked) && slices.Equal(a.known, b.known)
}

// A meter counts the frames that a socket receives, and decides which the kernel should drop. Its zero value is ready
// for use by one goroutine.
type meter struct {
	sources   map[string]*meterSource
	admitted  admission
	began     time.Time // the window
	strangers int       // frames in it from sources that are not exempt from sampling
	sampled   time.Time // when the sample was last made coarser or finer
	vips      int
}

// atMost is most, or what the VIPs need.
func (m *meter) atMost(most int) int { return max(most, framesPerVIP*m.vips) }

type meterSource struct {
	first, last time.Time
	window      time.Time // the one that frames belongs to
	frames      int
	until       time.Time // while it is blocked
}

func (s *meterSource) known() bool { return s.last.Sub(s.first) >= knownAfter }

// take counts a frame and reports whether it is to be handled. changed says that the filter is to be set anew from
// admitted. flooder says that the source has just been blocked.
func (m *meter) take(mac string, now time.Time) (handle, changed, flooder bool) {
	changed = m.look(now)
	s := m.source(mac, now)
	if s == nil {
		return m.takeStranger(now, changed)
	}
	if s.window != m.began {
		s.window, s.frames = m.began, 0
	}
	s.frames++
	s.last = now
	switch {
	case now.Before(s.until):
		return false, changed, false // it was on its way when the filter was set
	case s.frames > m.atMost(sourceMax) && len(m.admitted.blocked) < blockedMax:
		s.until, s.first = now.Add(blockFor), now
		m.admitted.blocked = append(slices.Clone(m.admitted.blocked), mac)
		m.forget(mac)
		return false, true, true
	case s.frames > m.atMost(sourceMax):
		return false, changed, false
	case slices.Contains(m.admitted.known, mac):
		if s.frames > m.atMost(acquaintanceMax) {
			m.forget(mac)
			changed = true
		}
		return true, changed, false
	}
	return m.takeStranger(now, changed)
}

// forget ends a source's exemption from sampling.
func (m *meter) forget(mac string) {
	m.admitted.known = slices.DeleteFunc(slices.Clone(m.admitted.known), func(k string) bool { return k == mac })
}

// takeStranger counts a frame of a source that is not exempt from sampling.
func (m *meter) takeStranger(now time.Time, filter bool) (handle, changed, flooder bool) {
	if m.strangers++; m.strangers <= m.atMost(strangersMax) {
		return true, filter, false
	}
	// So many have come in part of a window. Let half of what is allowed pass.
	times := 2 * int(meterWindow/max(now.Sub(m.began), meterWindow/1024))
	if m.admitted.sample == 0 {
		m.admitted.known = m.acquaintances()
	}
	m.admitted.sample = min(m.admitted.sample+max(bits.Len(uint(times))-1, 1), sampleMax)
	m.sampled = now
	m.began, m.strangers = now, 0
	return false, true, false
}

// look begins a new window when it is time, and lets in again whom the filter has kept out for long enough.
func (m *meter) look(now time.Time) (changed bool) {
	if now.Sub(m.began) < meterWindow {
		return false
	}
	before := m.admitted
	few := m.strangers < m.atMost(strangersMax)/4
	m.began, m.strangers = now, 0
	m.admitted.blocked = slices.DeleteFunc(slices.Clone(m.admitted.blocked), func(mac string) bool {
		s := m.sources[mac]
		return s == nil || !now.Before(s.until)
	})
	if m.admitted.sample > 0 && few && now.Sub(m.sampled) >= blockFor {
		m.admitted.sample--
		m.sampled = now
		if m.admitted.sample == 0 {
			m.admitted.known = nil
		}
	}
	return !before.equal(m.admitted)
}

// next is when look is to be called although no frame has come; zero is never.
func (m *meter) next() time.Time {
	if m.admitted.sample == 0 && len(m.admitted.blocked) == 0 {
		return time.Time{}
	}
	return m.began.Add(meterWindow)
}

// source finds or makes the record of a source. It is nil where no more are remembered.
func (m *meter) source(mac string, now time.Time) *meterSource {
	if s := m.sources[mac]; s != nil {
		return s
	}
	if len(m.sources) >= sourcesMax {
		if m.admitted.sample > 0 {
			return nil // forged sources push out no other
		}
		m.prune(now)
	}
	s := &meterSource{first: now}
	if m.sources == nil {
		m.sources = make(map[string]*meterSource)
	}
	m.sources[mac] = s
	return s
}

// prune forgets strangers that have not been heard for long, and at least half of all sources, known ones last.
func (m *meter) prune(now time.Time) {
	for mac, s := range m.sources {
		if !s.known() && now.Sub(s.last) >= knownAfter && !now.Before(s.until) {
			delete(m.sources, mac)
		}
	}
	if len(m.sources) <= sourcesMax/2 {
		return
	}
	macs := make([]string, 0, len(m.sources))
	for mac := range m.sources {
		macs = append(macs, mac)
	}
	known := func(mac string) int {
		if m.sources[mac].known() {
			return 1
		}
		return 0
	}
	slices.SortFunc(macs, func(a, b string) int {
		return cmp.Or(known(a)-known(b), m.sources[a].last.Compare(m.sources[b].last))
	})
	for _, mac := range macs[:len(macs)/2] {
		if !now.Before(m.sources[mac].until) {
			delete(m.sources, mac)
		}
	}
}

// acquaintances lists the known sources, those that have been known for longest.
func (m *meter) acquaintances() (macs []string) {
	for mac, s := range m.sources {
		if s.known() && s.frames <= acquaintanceMax {
			macs = append(macs, mac)
		}
	}
	slices.SortFunc(macs, func(a, b string) int {
		return cmp.Or(m.sources[a].first.Compare(m.sources[b].first), cmp.Compare(a, b))
	})
	return macs[:min(len(macs), knownMax)]
}
