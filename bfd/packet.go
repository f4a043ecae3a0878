package bfd

import (
	"encoding/binary"
	"fmt"
	"time"
)

// A Liveness is that of one side of a session (RFC 5880, section 4.1).
type Liveness uint8

// The states.
const (
	AdminDown Liveness = iota
	Down
	Init
	Up
)

func (s Liveness) String() string { return [...]string{"admin-down", "down", "init", "up"}[s&3] }

// Diagnostics (RFC 5880, section 4.1): why a side is down.
const (
	diagNone          = 0
	diagExpired       = 1
	diagNeighbourDown = 3
	diagAdminDown     = 7
)

const (
	packetSize = 24
	version    = 1

	flagPoll       = 0x20
	flagFinal      = 0x10
	flagAuth       = 0x04
	flagMultipoint = 0x01
)

// A packet is a BFD Control packet (RFC 5880, section 4.1) without authentication.
type packet struct {
	diag         uint8
	state        Liveness
	poll, final  bool
	mult         uint8
	mine, yours  uint32 // discriminators
	minTx, minRx time.Duration
}

func (p packet) encode() []byte {
	b := make([]byte, packetSize)
	b[0], b[1], b[2], b[3] = version<<5|p.diag, byte(p.state)<<6, p.mult, packetSize
	if p.poll {
		b[1] |= flagPoll
	}
	if p.final {
		b[1] |= flagFinal
	}
	binary.BigEndian.PutUint32(b[4:], p.mine)
	binary.BigEndian.PutUint32(b[8:], p.yours)
	binary.BigEndian.PutUint32(b[12:], uint32(p.minTx/time.Microsecond))
	binary.BigEndian.PutUint32(b[16:], uint32(p.minRx/time.Microsecond))
	return b // no echo: the last field is zero
}

// decode reads a packet, or says why it is to be dropped (RFC 5880, section 6.8.6).
func decode(b []byte) (p packet, err error) {
	switch {
	case len(b) < packetSize || int(b[3]) < packetSize || int(b[3]) > len(b):
		return p, fmt.Errorf("bfd: %d bytes are no packet", len(b))
	case b[0]>>5 != version:
		return p, fmt.Errorf("bfd: version %d", b[0]>>5)
	case b[2] == 0:
		return p, fmt.Errorf("bfd: a multiplier of zero")
	case b[1]&flagMultipoint != 0:
		return p, fmt.Errorf("bfd: the multipoint flag")
	case b[1]&flagAuth != 0:
		return p, fmt.Errorf("bfd: the router wants authentication, which is not there")
	}
	p = packet{
		diag: b[0] & 0x1f, state: Liveness(b[1] >> 6), poll: b[1]&flagPoll != 0, final: b[1]&flagFinal != 0, mult: b[2],
		mine: binary.BigEndian.Uint32(b[4:]), yours: binary.BigEndian.Uint32(b[8:]),
		minTx: time.Duration(binary.BigEndian.Uint32(b[12:])) * time.Microsecond,
		minRx: time.Duration(binary.BigEndian.Uint32(b[16:])) * time.Microsecond,
	}
	switch {
	case p.mine == 0:
		return p, fmt.Errorf("bfd: no discriminator")
	case p.yours == 0 && p.state != Down && p.state != AdminDown:
		return p, fmt.Errorf("bfd: no discriminator of ours in state %s", p.state)
	}
	return p, nil
}
