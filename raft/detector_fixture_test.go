package raft

import (
	"net/netip"
	"slices"
	"time"
)

// packets is the network of a test for datagrams: a cut direction loses them.
func (w *wires) packets(from string) func(netip.AddrPort) (packets, error) {
	return func(bind netip.AddrPort) (packets, error) {
		p, err := listenPackets(bind)
		if err != nil {
			return nil, err
		}
		return &lossy{packets: p, w: w, from: from}, nil
	}
}

type lossy struct {
	packets
	w    *wires
	from string
}

func (l *lossy) write(b []byte, to netip.AddrPort) error {
	l.w.mu.Lock()
	cut := l.w.cut[[2]string{l.from, l.w.addrs[to]}] || l.w.noUDP
	delay := l.w.delay
	l.w.mu.Unlock()
	switch {
	case cut:
	case delay > 0:
		b = slices.Clone(b)
		time.AfterFunc(delay, func() { l.packets.write(b, to) })
	default:
		return l.packets.write(b, to)
	}
	return nil
}
