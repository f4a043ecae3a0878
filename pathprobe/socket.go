package pathprobe

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/mdlayher/packet"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"appliance/flood"
	"appliance/neighbours"
)

// A probeSocket sees the probes on one interface, as long as that exists.
type probeSocket struct {
	link neighbours.Link
	conn *packet.Conn
}

// listen opens a socket on every interface that has none, or that is another
// interface now. A node that is alone listens on none.
func (p *EthernetProber) listen(sockets map[string]probeSocket, g *errgroup.Group, changed func()) error {
	p.mu.Lock()
	alone := len(p.nodes) < 2
	p.mu.Unlock()
	var errs []error
	names := slices.Compact(slices.Sorted(maps.Values(p.cfg.Interfaces)))
	if p.cfg.Tunnel != "" {
		names = append(names, p.cfg.Tunnel)
	}
	for _, name := range names {
		l, err := neighbours.ReadLink(name)
		have, open := sockets[name]
		if open && (alone || err != nil || have.link != l) {
			have.conn.Close()
			delete(sockets, name)
			open = false
		}
		if err != nil && !alone && name != p.cfg.Tunnel { // it is there when it is needed
			errs = append(errs, err)
		}
		if err != nil || open || alone {
			continue
		}
		gate := p.gate()
		filter, err := gate.Filter()
		if err != nil {
			return err
		}
		conn, err := packet.Listen(&net.Interface{Index: int(l.Index), Name: name, MTU: 1500, HardwareAddr: l.MAC[:]},
			packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
		if err != nil {
			errs = append(errs, fmt.Errorf("packet socket on %s: %w; give the container the capability NET_RAW", name, err))
			continue
		}
		prepare(conn)
		s := probeSocket{l, conn}
		sockets[name] = s
		g.Go(func() error {
			p.receive(s, gate, changed)
			return nil
		})
	}
	return errors.Join(errs...)
}

// receiveBuffer is for the probes and answers of a round about hundreds of VIPs, each of which takes a kilobyte of it.
const receiveBuffer = 4 << 20

// prepare spares the kernel a copy of each packet that it sends, which the
// filter would drop, and gives the socket room. Linux before 4.20 makes the copies.
func prepare(conn *packet.Conn) {
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
			// Beyond the system's limit; in a user namespace, up to it.
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			}
		})
	}
}

// write signs a probe and sends it to a MAC address, if there is a key for the
// node. A probe that is lost here is like one that is lost on the way.
func (p *EthernetProber) write(s probeSocket, m probe, mac [6]byte, isWorker bool) {
	if key, ok := p.keys.to(m.to, isWorker); ok {
		m.process, m.number = p.process, p.sent.Add(1)
		_, _ = s.conn.WriteTo(m.frame(s.link.MAC, mac, key[:]), &packet.Addr{HardwareAddr: mac[:]})
	}
}

// send sends a probe.
func (p *EthernetProber) send(o outgoing) {
	m := probe{
		kind: o.kind, nonce: o.nonce, from: o.own, to: o.its, frontend: o.frontend,
		src: netip.AddrPortFrom(o.own, probePort), dst: netip.AddrPortFrom(o.its, probePort),
	}
	if o.kind == kindPath {
		m.src, m.dst = madeUpClient(o.frontend.Addr(), o.nonce), o.frontend
	}
	p.write(o.sock, m, o.mac, o.isWorker)
}

// gate keeps floods of what only looks like probes from a socket. Frames of other nodes' known processes always pass.
// Until a node is known, it may ask and answer about all frontends at once.
func (p *EthernetProber) gate() *flood.Gate {
	p.mu.Lock()
	defer p.mu.Unlock()
	return flood.NewGate(nil, probeFilter(), max(len(p.cfg.Interfaces), len(p.wanted)))
}

// receive takes probes until the socket is closed or its interface is gone.
func (p *EthernetProber) receive(s probeSocket, gate *flood.Gate, changed func()) {
	for {
		err := gate.Frames(s.conn, 2048, func(mac string) {
			p.cfg.Log.Debug("the kernel drops path probes of a machine that sends too many", "interface", s.link.Name,
				"mac", net.HardwareAddr(mac).String())
		}, func(frame []byte) (known bool) { return p.take(s, frame, changed) })
		// The link goes down, and may come up again; or the kernel has no room for another filter, and the one before holds.
		if !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, unix.ENOMEM) {
			return
		}
	}
}

// take handles a frame that looks like a probe, and says whether it is one of the known process of another node.
func (p *EthernetProber) take(s probeSocket, frame []byte, changed func()) (known bool) {
	isWorker := func(addr netip.Addr) bool {
		n, _ := p.nodeAt(addr)
		return n.Worker
	}
	m, mac, ok := p.keys.verify(frame, isWorker)
	if !ok {
		return false
	}
	if self, _ := p.nodeAt(m.to); self.ID != p.cfg.Self || !p.comesBy(s.link.Name, m.frontend.Addr()) {
		return false // our own on its way out, handed on, or for a VIP of another interface
	}
	if m.isSecondForm() && [6]byte(frame[:6]) != s.link.MAC {
		return false // seen by a card that shows all frames
	}
	admitted, moved, challenge, due := p.admit(s.link.Name, m, mac)
	if !admitted {
		return false
	}
	if moved {
		select {
		case p.moved <- sender{s.link, m.from, mac}:
		default:
			p.forgetMAC(s.link.Name, m.from) // the next challenge will do
		}
	}
	if due {
		p.write(s, probe{
			kind: kindControl, nonce: challenge, from: m.to, to: m.from, frontend: m.frontend,
			src: netip.AddrPortFrom(m.to, probePort), dst: netip.AddrPortFrom(m.from, probePort),
		}, mac, isWorker(m.from))
	}
	p.noteSender(m.from)
	switch m.kind {
	case kindControl, kindPath:
		p.write(s, probe{
			kind: p.answerTo(m), nonce: m.nonce, from: m.to, to: m.from, frontend: m.frontend,
			src: m.dst, dst: netip.AddrPortFrom(m.from, probePort),
		}, mac, isWorker(m.from))
	case kindAskAgain:
		p.askAgain(m)
	default:
		if p.hear(m) {
			changed()
		}
	}
	return p.isKnown(s.link.Name, m)
}

// comesBy says whether packets for a VIP may come by a link.
func (p *EthernetProber) comesBy(link string, vip netip.Addr) bool {
	return p.cfg.Interfaces[vip] == link || link == p.cfg.Tunnel && slices.Contains(p.cfg.Routed, vip)
}

// noteSender has a machine called at once that has sent something and has no
// proof.
func (p *EthernetProber) noteSender(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n, ok := NodeAt(p.nodes, addr); ok && p.workers.heard(n) {
		p.Hurry()
	}
}
