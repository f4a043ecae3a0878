package raft

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// The datagrams between peers
//
// They go from the UDP port to the UDP port that have the number of the peer
// port. Every datagram is a probe, which wants an answer, such an answer, or a
// sign that its sender is there, which wants none. What it says is in type
// datagram; nothing in it is secret.
//
// Authentication. Each process makes a random secret and derives one key per
// peer from it. It tells a peer its key in the reply to hello, so over mutual
// TLS, and accepts from that peer only what carries a MAC made with that key.
// So a group key, an operator's own CA and a rotation of either need no
// provision here, and insecure mode is as insecure here as it is there.
//
// Replay. A datagram names the life of its sender and the life of its receiver
// that it is meant for, both random per process, and carries a number that
// only grows within a life: what has been received before, or by an
// earlier process, is dropped. It also echoes a number of the receiver's; only
// if that is one of the last freshWindow the datagram is a sign of life.
// So one that was held back is none, and neither is one from a peer that
// cannot hear us.

const (
	datagramMagic = 0x61704431 // "apD1": another format gets another
	datagramProbe = 'P'
	datagramReply = 'R'
	datagramSign  = 'S'

	// maxDatagram is far more than nine peers need, and less than any MTU.
	maxDatagram = 1200
	macSize     = 16

	// freshWindow is counted in datagrams, not in time, so that a process that was
	// kept from sending does not take the silence that follows for the other's.
	// One is sent per probe interval: this is 120 ms by default.
	freshWindow = 12
)

// datagram is one message from a peer to another.
type datagram struct {
	kind     byte
	from     string
	life, to incarnation // of the sender, and of the receiver as the sender knows it
	seq      uint64
	// echo is in a reply the number of the probe, else the highest number that
	// has come from the receiver.
	echo uint64
	// term is in a probe the term that the sender leads, 0 for none, in a reply the term
	// that the sender grants, 0 for none: package lease, step 1.
	term uint64
	// silence is how long the sender has not heard other peers.
	silence []silenceOf
}

type silenceOf struct {
	id string
	ms uint16
}

var errDatagram = errors.New("no datagram of this group")

// seal appends the datagram with its MAC to b.
func (d *datagram) seal(b, key []byte) []byte {
	from := len(b)
	b = binary.BigEndian.AppendUint32(b, datagramMagic)
	b = append(b, d.kind, byte(len(d.from)))
	b = append(b, d.from...)
	b = append(append(b, d.life[:]...), d.to[:]...)
	for _, n := range []uint64{d.seq, d.echo, d.term} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(b, byte(len(d.silence)))
	for _, s := range d.silence {
		b = append(append(b, byte(len(s.id))), s.id...)
		b = binary.BigEndian.AppendUint16(b, s.ms)
	}
	return append(b, mac(key, b[from:])...)
}

// open reads a sealed datagram; key finds the key for a sender.
func openDatagram(b []byte, key func(from string) []byte) (d datagram, err error) {
	if len(b) < macSize {
		return d, errDatagram
	}
	r := reader{b: b[:len(b)-macSize]}
	magic := binary.BigEndian.Uint32(r.take(4))
	d.kind = r.take(1)[0]
	d.from = r.text()
	if r.short || magic != datagramMagic || (d.kind != datagramProbe && d.kind != datagramReply && d.kind != datagramSign) {
		return d, errDatagram
	}
	k := key(d.from)
	if k == nil || !hmac.Equal(mac(k, r.b), b[len(b)-macSize:]) {
		return d, errDatagram
	}
	copy(d.life[:], r.take(8))
	copy(d.to[:], r.take(8))
	d.seq, d.echo, d.term = r.number(), r.number(), r.number()
	for range r.take(1)[0] {
		id := r.text()
		d.silence = append(d.silence, silenceOf{id, binary.BigEndian.Uint16(r.take(2))})
	}
	if r.short {
		return d, errDatagram
	}
	return d, nil // what follows is a later version's
}

// reader takes fields off a message; short says that there was too little of it.
type reader struct {
	b     []byte
	at    int
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || len(r.b)-r.at < n {
		r.short = true
		return make([]byte, n)
	}
	r.at += n
	return r.b[r.at-n : r.at]
}

func (r *reader) number() uint64 { return binary.BigEndian.Uint64(r.take(8)) }
func (r *reader) text() string   { return string(r.take(int(r.take(1)[0]))) }

func mac(key, msg []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(msg)
	return h.Sum(nil)[:macSize]
}

// datagramSecret is what the keys of one process are derived from.
type datagramSecret [32]byte

// keyOf is the key that peer has to use towards this process.
func (s *datagramSecret) keyOf(peer string) []byte {
	h := hmac.New(sha256.New, s[:])
	h.Write([]byte("appliance datagrams v1 from " + peer))
	return h.Sum(nil)
}

// packets is the way to the UDP ports of others, and from them.
type packets interface {
	// readNow reads a datagram that has come; it does not wait for one.
	readNow(b []byte) (int, error)
	write(b []byte, to netip.AddrPort) error
	close()
}

// udp is packets over a real socket. Who sent a datagram is in the datagram.
type udp struct{ *net.UDPConn }

func listenPackets(bind netip.AddrPort) (packets, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(bind))
	if err != nil {
		return nil, err
	}
	return udp{c}, nil
}

// readNow asks the kernel, and not the runtime's poller, which would wait. The
// runtime has made the socket non-blocking.
func (u udp) readNow(b []byte) (n int, err error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), b) }); e != nil {
		return 0, e
	}
	return max(n, 0), err
}

// write gives up when the socket's buffer is full of what waits for hosts that
// are gone: those that are there must not wait with it.
func (u udp) write(b []byte, to netip.AddrPort) error {
	if err := u.SetWriteDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return err
	}
	_, err := u.WriteToUDPAddrPort(b, to)
	return err
}

func (u udp) close() { u.Close() }
