package nflog

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"appliance/connlog"
)

const (
	// tryAgain is the time between two attempts to listen, and between two looks at the counter of what was too much.
	tryAgain = 10 * time.Second
	// buffer is that of the socket: some 10,000 beginnings.
	buffer = 4 << 20
	// recent is how many beginnings are remembered, in a table without order, to know which SYN is sent again.
	recent = 4096
)

// The messages of NFLOG: linux/netfilter/nfnetlink_log.h.
const (
	msgPacket = unix.NFNL_SUBSYS_ULOG << 8   // NFULNL_MSG_PACKET
	msgConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG

	cfgCmd, cfgMode, cfgTimeout, cfgFlags = 1, 2, 4, 6 // NFULA_CFG_*
	cmdBind                               = 1          // NFULNL_CFG_CMD_BIND
	copyPacket                            = 2          // NFULNL_COPY_PACKET
	flagSequence                          = 1          // NFULNL_CFG_F_SEQ

	attrPayload, attrSequence = 9, 12 // NFULA_*
)

// A beginning is the first packet of a connection.
type beginning struct {
	client, frontend netip.AddrPort
	sequence         uint32 // of TCP
}

// heard is what was heard since the socket was opened.
type heard struct {
	seed   maphash.Seed
	recent [recent]beginning
	// next is the number that the kernel's next message should have; known is false before the first.
	next  uint32
	known bool
	// beyond is what the counter said last.
	beyond uint64
}

// Run writes lines until ctx ends. It opens the socket when the first load balancer wants its beginnings logged.
func (w *BeginWatcher) Run(ctx context.Context) error {
	retry := time.NewTicker(tryAgain)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		}
		err := w.listen(ctx)
		if ctx.Err() != nil {
			return nil
		}
		w.applying.Lock()
		w.note(err)
		w.applying.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
		}
	}
}

// listen hears until ctx ends or the socket fails.
func (w *BeginWatcher) listen(ctx context.Context) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetReadBuffer(buffer) // with less, more is lost, and that is counted
	if _, err := conn.Send(bind()); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	h := heard{seed: maphash.MakeSeed(), beyond: lost(0)}
	looked := time.Now()
	for {
		_ = conn.SetReadDeadline(looked.Add(tryAgain))
		if ctx.Err() != nil {
			return nil // the line above may have overwritten the deadline in the past
		}
		messages, err := conn.Receive()
		var timeout interface{ Timeout() bool }
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // the gap in the numbers says how many are lost
		case errors.As(err, &timeout) && timeout.Timeout():
		case errors.Is(err, unix.EBUSY):
			return errNoGroup
		case err != nil:
			return err
		}
		for _, m := range messages {
			if m.Header.Type == msgPacket {
				w.hear(&h, m.Data, time.Now())
			}
		}
		if time.Since(looked) >= tryAgain {
			looked = time.Now()
			if beyond := lost(h.beyond); beyond > h.beyond {
				w.lines.Lose(beyond - h.beyond)
				h.beyond = beyond
			} else {
				h.beyond = beyond // somebody made the table anew
			}
		}
	}
}

// bind asks for the packets of the group: their beginnings, soon, and numbered.
func bind() netlink.Message {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Bytes(cfgCmd, []byte{cmdBind})
	mode := binary.BigEndian.AppendUint32(nil, snapLen)
	e.Bytes(cfgMode, append(mode, copyPacket, 0))
	e.Uint32(cfgTimeout, 10) // hundredths of a second
	e.Uint16(cfgFlags, flagSequence)
	attributes, err := e.Encode()
	if err != nil {
		panic(err) // of constants
	}
	// struct nfgenmsg: family, version, and the group.
	head := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, group)
	return netlink.Message{
		Header: netlink.Header{Type: msgConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(head, attributes...),
	}
}

// hear writes the line of one message.
func (w *BeginWatcher) hear(h *heard, data []byte, now time.Time) {
	payload, number, ok := message(data)
	if !ok {
		return
	}
	if h.known && number != h.next {
		w.lines.Lose(uint64(number - h.next))
	}
	h.next, h.known = number+1, true
	b, ok := packet(payload)
	if !ok || h.again(b) {
		return
	}
	w.mu.Lock()
	to, ok := w.watched[b.frontend]
	w.mu.Unlock()
	if !ok {
		return // it is not wanted any more
	}
	switch to.sampler.Judge(to.options.LogEvery, to.options.LogRate, now.UnixNano()) {
	case connlog.NotItsTurn:
	case connlog.TooMany:
		w.lines.Skip()
	default:
		w.lines.Write(line(b, to, now))
	}
}

// again reports whether b was heard before, and remembers it.
func (h *heard) again(b beginning) bool {
	at := &h.recent[maphash.Comparable(h.seed, b)%recent]
	if *at == b {
		return true
	}
	*at = b
	return false
}

// message reads the packet in a message, and the message's number.
func message(data []byte) (payload []byte, number uint32, ok bool) {
	if len(data) < 4 { // struct nfgenmsg
		return nil, 0, false
	}
	d, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return nil, 0, false
	}
	d.ByteOrder = binary.BigEndian
	numbered := false
	for d.Next() {
		switch d.Type() {
		case attrPayload:
			payload = d.Bytes()
		case attrSequence:
			number, numbered = d.Uint32(), true
		}
	}
	return payload, number, d.Err() == nil && numbered && payload != nil
}

// packet reads the addresses of a TCP packet (RFC 791, RFC 8200, RFC 9293).
func packet(p []byte) (b beginning, ok bool) {
	if len(p) < 20 {
		return b, false
	}
	var src, dst netip.Addr
	head, next := 0, p[9]
	switch p[0] >> 4 {
	case 4:
		src, dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		if head = int(p[0]&0xf) * 4; head < 20 {
			return b, false
		}
	case 6:
		if len(p) < 40 {
			return b, false
		}
		src, dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		head, next = 40, p[6]
		// Hop-by-hop options, routing and destination options (RFC 8200, sections 4.3, 4.4, 4.6).
		for next == unix.IPPROTO_HOPOPTS || next == unix.IPPROTO_ROUTING || next == unix.IPPROTO_DSTOPTS {
			if len(p) < head+8 {
				return b, false
			}
			next, head = p[head], head+8*(int(p[head+1])+1)
		}
	default:
		return b, false
	}
	if next != unix.IPPROTO_TCP || len(p) < head+8 {
		return b, false
	}
	tcp := p[head:]
	return beginning{
		client:   netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp)),
		frontend: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:])),
		sequence: binary.BigEndian.Uint32(tcp[4:]),
	}, true
}

// A BeginRecord is what is known of a connection that begins. Its server is chosen later, and nobody sees its end.
type BeginRecord struct {
	LoadBalancer string         `json:"loadBalancer"`
	Client       netip.AddrPort `json:"client"`
	Frontend     netip.AddrPort `json:"frontend"`
	Plane        string         `json:"plane"`
	Began        time.Time      `json:"time"`
	Event        string         `json:"event"` // begins
}

// line is what is written of a beginning.
func line(b beginning, to watched, now time.Time) string {
	if to.options.LogBegin == "json" {
		text, err := json.Marshal(BeginRecord{to.loadBalancer, b.client, b.frontend, string(to.plane), now, "begins"})
		if err == nil { // no value is without a JSON
			return string(text)
		}
	}
	return fmt.Sprintf("%s [%s] %s begins to=%s plane=%s",
		b.client, now.Format("02/Jan/2006:15:04:05.000"), to.loadBalancer, b.frontend, to.plane)
}
