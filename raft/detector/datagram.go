package detector

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
)

// The datagrams between peers
//
// Datagrams go between UDP ports that have the number of the peer port. A datagram is a probe, which wants a
// reply, such a reply, or a sign that its sender is there, which wants none. Type datagram has the content;
// nothing in it is secret.
//
// Authentication. Each process makes a random secret and derives one key per peer from it. It tells a peer
// its key in the reply to hello, so over mutual TLS, and accepts from that peer only what carries a MAC made
// with that key. So group keys, an operator's own CA and rotations of either need no code here, and insecure
// mode is as insecure here as on TCP.
//
// Replay. A datagram names the process of its sender and the process of its receiver, both by a random
// number, and carries a sequence number that only grows within a process: what was received before, or was
// meant for an earlier process, is dropped. It also echoes a number of the receiver's. Only if that is one of
// the last freshWindow, the datagram is a sign of life. So a datagram that was held back is none, and neither
// is one from a peer that cannot hear this one.

const (
	datagramMagic = 0x61704431 // "apD1": another format gets another
	datagramProbe = 'P'
	datagramReply = 'R'
	datagramSign  = 'S'

	// markRefreshed stands behind the silences, if at all, and markWrites behind it.
	markRefreshed = 'H'
	markWrites    = 'W'

	// maxDatagram is far more than nine peers need, and less than any MTU.
	maxDatagram = 1200
	macSize     = 16

	// freshWindow is counted in datagrams, not in time, so that a process that could not send for a while
	// does not take the resulting silence for the other's. A follower answers one probe each 10 to 30 ms by
	// default: the window is 80 to 240 ms.
	freshWindow = 8
)

// datagram is one message from a peer to another.
type datagram struct {
	kind        byte
	from        string
	process, to [8]byte // of the sender, and of the receiver as the sender knows it
	seq         uint64
	// echo, in a reply, is the number of the probe; otherwise it is the highest number that has come from the
	// receiver.
	echo uint64
	// term, in a probe, is the term that the sender leads, and in a reply the term that the sender grants; 0
	// for none: package lease, step 1.
	term uint64
	// silence is how long the sender has not heard other peers.
	silence []silenceOf
	// refreshed, in a reply, says that the sender's raft takes the probe for a heartbeat. Earlier versions neither
	// say it nor read it.
	refreshed bool
	// writes says beside it that the sender's raft waits for its disk.
	writes bool
}

type silenceOf struct {
	id string
	ms uint16
}

var errDatagram = errors.New("no datagram of this group")

// seal appends the datagram with its MAC to b.
func (d *datagram) seal(b []byte, key *macKey) []byte {
	from := len(b)
	b = binary.BigEndian.AppendUint32(b, datagramMagic)
	b = append(b, d.kind, byte(len(d.from)))
	b = append(b, d.from...)
	b = append(append(b, d.process[:]...), d.to[:]...)
	for _, n := range []uint64{d.seq, d.echo, d.term} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = append(b, byte(len(d.silence)))
	for _, s := range d.silence {
		b = append(append(b, byte(len(s.id))), s.id...)
		b = binary.BigEndian.AppendUint16(b, s.ms)
	}
	if d.refreshed {
		b = append(b, markRefreshed)
		if d.writes {
			b = append(b, markWrites)
		}
	}
	return append(b, key.mac(b[from:])...)
}

// openDatagram reads a sealed datagram; key finds the key for a sender.
func openDatagram(b []byte, key func(from string) *macKey) (d datagram, err error) {
	if len(b) < macSize {
		return d, errDatagram
	}
	r := reader{b: b[:len(b)-macSize]}
	magic := binary.BigEndian.Uint32(r.take(4))
	d.kind = r.take(1)[0]
	d.from = r.text()
	if r.short || magic != datagramMagic || (d.kind != datagramProbe && d.kind != datagramReply &&
		d.kind != datagramSign) {
		return d, errDatagram
	}
	k := key(d.from)
	if k == nil || !hmac.Equal(k.mac(r.b), b[len(b)-macSize:]) {
		return d, errDatagram
	}
	copy(d.process[:], r.take(8))
	copy(d.to[:], r.take(8))
	d.seq, d.echo, d.term = r.number(), r.number(), r.number()
	for range r.take(1)[0] {
		id := r.text()
		d.silence = append(d.silence, silenceOf{id, binary.BigEndian.Uint16(r.take(2))})
	}
	if r.short {
		return d, errDatagram
	}
	d.refreshed = r.take(1)[0] == markRefreshed
	d.writes = d.refreshed && r.take(1)[0] == markWrites // what follows is a later version's
	return d, nil
}

// reader takes fields off a message; short says that the message was too short.
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

// macKey is a key that is ready for many MACs, one after the other.
type macKey struct {
	key []byte
	h   hash.Hash
	sum [sha256.Size]byte
}

func newMacKey(key []byte) *macKey { return &macKey{key: key, h: hmac.New(sha256.New, key)} }

// mac is that of msg. It is valid until the next call.
func (k *macKey) mac(msg []byte) []byte {
	k.h.Reset()
	k.h.Write(msg)
	return k.h.Sum(k.sum[:0])[:macSize]
}

// datagramSecret is what the keys of one process are derived from.
type datagramSecret [32]byte

// keyOf is the key that peer has to use towards this process.
func (s *datagramSecret) keyOf(peer string) []byte {
	h := hmac.New(sha256.New, s[:])
	h.Write([]byte("appliance datagrams v1 from " + peer))
	return h.Sum(nil)
}
