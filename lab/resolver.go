package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Resolve says how a Resolver asks for an address.
type Resolve struct {
	// VIP is the address in question.
	VIP netip.Addr
	// Every is the time between two requests. Zero means 5 ms.
	Every time.Duration
	// Unicast are machines that are asked one by one, too. With them, requests
	// take every form that a client may use: to everybody and to one, with and
	// without the asker's link-layer address, and as probes, which come from
	// the unspecified address.
	Unicast []net.HardwareAddr
}

// A requestForm is one way to ask. The zero requestForm asks everybody.
type requestForm struct {
	to      net.HardwareAddr // nil: everybody
	unnamed bool             // without the link-layer address, where that is an option
	probes  bool             // from the unspecified address
}

func (w Resolve) forms() []requestForm {
	forms := []requestForm{{}}
	for _, mac := range w.Unicast {
		forms = append(forms, requestForm{to: mac}, requestForm{to: mac, unnamed: true})
		if w.VIP.Is4() {
			forms = append(forms, requestForm{to: mac, probes: true})
		}
	}
	if len(w.Unicast) > 0 {
		forms = append(forms, requestForm{unnamed: true}, requestForm{probes: true})
	}
	return forms
}

// A Resolver asks the link for the owner of an address all the time (ARP requests
// or neighbour solicitations) and keeps every answer, with the kernel's own
// time stamps of arrival.
//
// Neither protocol's answer says which request it answers, so a Resolver asks in
// turn from each address of the VIP's family that its machine has on eth0: an
// answer belongs to the last request from the address that it is sent to. An
// answer that comes later than len(addresses) × Every is taken for one to a
// newer request; give the machine 32 addresses or more (see Range).
//
// Give a Resolver a machine of its own: its answers also refresh the machine's
// neighbour cache, so a client beside it would never see a stale entry.
type Resolver struct {
	asks    Resolve
	conn    *packet.Conn
	mac     net.HardwareAddr
	sources []netip.Addr
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	asked   map[netip.Addr][]time.Time // requests by source, oldest first
	replies []Reply
	err     error
}

// Resolve starts to ask for w.VIP from the machine until Stop or the end of ctx.
func (n *Machine) Resolve(ctx context.Context, w Resolve) (*Resolver, error) {
	if w.Every == 0 {
		w.Every = 5 * time.Millisecond
	}
	r := &Resolver{asks: w, mac: n.MAC(), asked: map[netip.Addr][]time.Time{}}
	for _, a := range n.ports[0].addrs {
		if a.Addr().Is4() == w.VIP.Is4() {
			r.sources = append(r.sources, a.Addr())
		}
	}
	if len(r.sources) == 0 {
		return nil, fmt.Errorf("lab: %s has no address of the family of %s: give it some (see Range)", n.Name, w.VIP)
	}
	if err := n.Do(r.listen); err != nil {
		return nil, fmt.Errorf("lab: ask for %s from %s: %w", w.VIP, n.Name, err)
	}
	ctx, r.cancel = context.WithCancel(ctx)
	r.wg.Go(func() { r.ask(ctx) })
	r.wg.Go(func() { r.receive(ctx) })
	return r, nil
}

func (r *Resolver) listen() error {
	ifi, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	protocol, filter := ethernet.EtherTypeARP, []bpf.Instruction{bpf.RetConstant{Val: 1 << 16}}
	if r.asks.VIP.Is6() {
		// Only neighbour solicitations (135) and advertisements (136)
		// without extension headers, RFC 4861 section 4.3 and 4.4.
		protocol, filter = ethernet.EtherTypeIPv6, []bpf.Instruction{
			bpf.LoadAbsolute{Off: 14 + 6, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 3},
			bpf.LoadAbsolute{Off: 14 + 40, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 135, SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 136, SkipTrue: 1},
			bpf.RetConstant{Val: 0},
			bpf.RetConstant{Val: 1 << 16},
		}
	}
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return err
	}
	r.conn, err = packet.Listen(ifi, packet.Raw, int(protocol), &packet.Config{Filter: raw})
	if err != nil {
		return err
	}
	rc, err := r.conn.SyscallConn()
	if err != nil {
		return err
	}
	var opt error
	err = rc.Control(func(fd uintptr) {
		opt = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	})
	return errors.Join(err, opt)
}

// ask sends a request each tick, from the next source each time.
func (r *Resolver) ask(ctx context.Context) {
	defer r.conn.Close() // ends receive
	tick := time.NewTicker(r.asks.Every)
	defer tick.Stop()
	forms := r.asks.forms()
	for i := 0; ; i++ {
		src := r.sources[i%len(r.sources)]
		form := forms[i%len(forms)]
		frame, to, err := r.request(src, form)
		if err != nil {
			r.fail(err)
			return
		}
		// The time is taken before sending, so that "sent after X" is
		// true whenever it is said. Without the monotonic clock: it is
		// compared with the kernel's stamps.
		if !form.probes {
			r.mu.Lock()
			r.asked[src] = append(r.asked[src], time.Now().Round(0))
			r.mu.Unlock()
		}
		if _, err := r.conn.WriteTo(frame, &packet.Addr{HardwareAddr: to}); err != nil &&
			!errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.ENOBUFS) {
			r.fail(err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// request is an ARP request (RFC 826) or a neighbour solicitation (RFC 4861
// section 4.3) for the VIP, and the address that its frame goes to.
func (r *Resolver) request(src netip.Addr, form requestForm) ([]byte, net.HardwareAddr, error) {
	f := &ethernet.Frame{Source: r.mac}
	if r.asks.VIP.Is4() {
		if form.probes {
			src = netip.IPv4Unspecified() // RFC 5227 section 1.1
		}
		p, err := arp.NewPacket(arp.OperationRequest, r.mac, src, make(net.HardwareAddr, 6), r.asks.VIP)
		if err != nil {
			return nil, nil, err
		}
		f.Destination, f.EtherType = ethernet.Broadcast, ethernet.EtherTypeARP
		if form.to != nil {
			f.Destination = form.to
		}
		if f.Payload, err = p.MarshalBinary(); err != nil {
			return nil, nil, err
		}
	} else {
		dst, err := ndp.SolicitedNodeMulticast(r.asks.VIP)
		if err != nil {
			return nil, nil, err
		}
		g := dst.As16()
		// RFC 2464 section 7: 33:33 and the last four octets.
		f.Destination = net.HardwareAddr{0x33, 0x33, g[12], g[13], g[14], g[15]}
		ask := &ndp.NeighborSolicitation{TargetAddress: r.asks.VIP}
		switch {
		case form.probes:
			src = netip.IPv6Unspecified() // RFC 4862 section 5.4.2
		case !form.unnamed:
			ask.Options = []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: r.mac}}
		}
		if form.to != nil {
			f.Destination, dst = form.to, r.asks.VIP
		}
		msg, err := ndp.MarshalMessageChecksum(ask, src, dst)
		if err != nil {
			return nil, nil, err
		}
		f.EtherType = ethernet.EtherTypeIPv6
		f.Payload = append(ipv6Header(src, dst, len(msg)), msg...)
	}
	b, err := f.MarshalBinary()
	return b, f.Destination, err
}

// ipv6Header is a header for ICMPv6 with the hop limit that RFC 4861 section
// 7.1 wants.
func ipv6Header(src, dst netip.Addr, payload int) []byte {
	h := make([]byte, 8, 40+payload)
	h[0] = 6 << 4
	binary.BigEndian.PutUint16(h[4:], uint16(payload))
	h[6], h[7] = unix.IPPROTO_ICMPV6, ndp.HopLimit
	h = append(h, src.AsSlice()...)
	return append(h, dst.AsSlice()...)
}

// receive keeps every reply about the VIP until ask closes the socket.
func (r *Resolver) receive(ctx context.Context) {
	rc, err := r.conn.SyscallConn()
	if err != nil {
		r.fail(err)
		return
	}
	buf, oob := make([]byte, 1600), make([]byte, 64)
	for {
		var n, oobn int
		var rerr error
		err := rc.Read(func(fd uintptr) bool {
			n, oobn, _, _, rerr = unix.Recvmsg(int(fd), buf, oob, 0)
			return !errors.Is(rerr, unix.EAGAIN) && !errors.Is(rerr, unix.EINTR)
		})
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(rerr, unix.ENETDOWN):
			continue // the link went down; the socket goes on
		case err != nil || rerr != nil:
			r.fail(errors.Join(err, rerr))
			return
		}
		var f ethernet.Frame
		if f.UnmarshalBinary(buf[:n]) != nil {
			continue
		}
		c, ok := r.parse(&f)
		if !ok {
			continue
		}
		c.At = arrival(oob[:oobn])
		r.keep(c)
	}
}

// parse tells whether a frame says who has the VIP.
func (r *Resolver) parse(f *ethernet.Frame) (c Reply, ok bool) {
	switch f.EtherType {
	case ethernet.EtherTypeARP:
		var p arp.Packet
		// Every ARP packet tells its receivers who its sender is.
		if p.UnmarshalBinary(f.Payload) != nil || p.SenderIP != r.asks.VIP {
			return c, false
		}
		c.MAC = p.SenderHardwareAddr.String()
		if p.Operation == arp.OperationReply && !bytes.Equal(f.Destination, ethernet.Broadcast) {
			c.To = p.TargetIP
		}
		return c, true
	case ethernet.EtherTypeIPv6:
		if len(f.Payload) < 40 {
			return c, false
		}
		src, dst := netip.AddrFrom16([16]byte(f.Payload[8:24])), netip.AddrFrom16([16]byte(f.Payload[24:40]))
		end := 40 + int(binary.BigEndian.Uint16(f.Payload[4:]))
		if end > len(f.Payload) {
			return c, false
		}
		m, err := ndp.ParseMessage(f.Payload[40:end])
		if err != nil {
			return c, false
		}
		switch m := m.(type) {
		case *ndp.NeighborAdvertisement:
			if m.TargetAddress != r.asks.VIP {
				return c, false
			}
			c.MAC = linkLayer(m.Options, ndp.Target, f.Source)
			if m.Solicited {
				c.To = dst
			}
			return c, true
		case *ndp.NeighborSolicitation:
			c.MAC = linkLayer(m.Options, ndp.Source, f.Source)
			return c, src == r.asks.VIP
		}
	}
	return c, false
}

func linkLayer(options []ndp.Option, d ndp.Direction, other net.HardwareAddr) string {
	for _, o := range options {
		if l, ok := o.(*ndp.LinkLayerAddress); ok && l.Direction == d {
			return l.Addr.String()
		}
	}
	return other.String()
}

// keep adds a reply with the time of the request that it answers.
func (r *Resolver) keep(c Reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range slices.Backward(r.asked[c.To]) {
		if !t.After(c.At) {
			c.Asked = t
			break
		}
	}
	r.replies = append(r.replies, c)
}

// arrival is the kernel's time stamp of a frame.
func arrival(oob []byte) time.Time {
	if msgs, err := unix.ParseSocketControlMessage(oob); err == nil {
		for _, m := range msgs {
			if m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now().Round(0)
}

func (r *Resolver) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
}

// Replies are all replies so far in the order of arrival.
func (r *Resolver) Replies() Replies {
	r.mu.Lock()
	cs := slices.Clone(r.replies)
	r.mu.Unlock()
	slices.SortStableFunc(cs, func(a, b Reply) int { return a.At.Compare(b.At) })
	return cs
}

// Last is the reply that arrived last, if there was any.
func (r *Resolver) Last() (Reply, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.replies) == 0 {
		return Reply{}, false
	}
	return r.replies[len(r.replies)-1], true
}

// Stop ends the questions and returns what went wrong, if anything: a
// Resolver that failed has seen too little.
func (r *Resolver) Stop() error {
	r.cancel()
	r.wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return fmt.Errorf("lab: the questions for %s ended early: %w", r.asks.VIP, r.err)
	}
	return nil
}
