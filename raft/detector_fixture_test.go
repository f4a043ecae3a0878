package raft

import (
	"net/netip"
	"slices"
	"time"

	"appliance/raft/detector"
)

// packets is a test's network for datagrams: a cut direction loses them.
func (w *wires) packets(from string) func(netip.AddrPort) (detector.Packets, error) {
	return func(bind netip.AddrPort) (detector.Packets, error) {
		p, err := detector.Listen(bind)
		if err != nil {
			return nil, err
		}
		return &lossy{Packets: p, w: w, from: from}, nil
	}
}

type lossy struct {
	detector.Packets
	w    *wires
	from string
}

func (l *lossy) Write(b []byte, to netip.AddrPort) error {
	l.w.mu.Lock()
	cut := l.w.cut[[2]string{l.from, l.w.addrs[to]}] || l.w.noUDP
	delay := l.w.delay
	l.w.mu.Unlock()
	switch {
	case cut:
	case delay > 0:
		b = slices.Clone(b)
		time.AfterFunc(delay, func() { l.Packets.Write(b, to) })
	default:
		return l.Packets.Write(b, to)
	}
	return nil
}
