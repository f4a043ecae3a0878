package flood

import (
	"encoding/binary"

	"golang.org/x/net/bpf"
)

// Offsets in the frame.
const (
	offSourceMAC = 6
	macLen       = 6
	headerLen    = 14
)

// Scratch memory of the filter: the first two bytes of the source, and the other four.
const (
	scratchFirst = iota
	scratchRest
)

// admissionFilter drops frames of blocked sources, and in a flood from ever other sources all but a sample of those
// from sources that are not known.
func admissionFilter(a admission) (f []bpf.Instruction) {
	if len(a.blocked) == 0 && a.sample == 0 {
		return nil
	}
	f = []bpf.Instruction{
		bpf.LoadAbsolute{Off: offSourceMAC, Size: 2},
		bpf.StoreScratch{Src: bpf.RegA, N: scratchFirst},
		bpf.LoadAbsolute{Off: offSourceMAC + 2, Size: 4},
		bpf.StoreScratch{Src: bpf.RegA, N: scratchRest},
	}
	drop := bpf.RetConstant{Val: 0}
	for _, mac := range a.blocked {
		f = append(f, fromSource(mac, drop)...)
	}
	if a.sample == 0 {
		return f
	}
	sampling := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtRand},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 1<<a.sample - 1, SkipTrue: 1},
		drop,
	}
	left := len(a.known) * len(fromSource("\x00\x00\x00\x00\x00\x00", drop))
	for _, mac := range a.known {
		left -= len(fromSource(mac, drop))
		f = append(f, fromSource(mac, bpf.Jump{Skip: uint32(left + len(sampling) + 1)})...)
	}
	return append(f, sampling...)
}

// FilterMax is how many instructions of a filter the admission of sources may take.
const FilterMax = 7 + 5*(blockedMax+knownMax+trustedMax)

// fromSource executes then for frames whose source is mac. The register has scratchRest before and after it: each load
// of the packet would be many instructions of the kernel's, which has room for few (net.core.optmem_max).
func fromSource(mac string, then bpf.Instruction) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32([]byte(mac[2:6])), SkipTrue: 4},
		bpf.LoadScratch{Dst: bpf.RegA, N: scratchFirst},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(binary.BigEndian.Uint16([]byte(mac[:2]))), SkipTrue: 1},
		then,
		bpf.LoadScratch{Dst: bpf.RegA, N: scratchRest},
	}
}
