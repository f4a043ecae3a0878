package proof

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"appliance/neighbours"
	"appliance/segment"
)

// A Result says what became of one handshake.
type Result string

// The results. A handshake is a SYN, its answer, and a reset: it is never completed, so no server accepts a
// connection, and none has a line in its log.
const (
	Served      Result = "served"      // a SYN-ACK came
	Refused     Result = "refused"     // a reset came
	Unreachable Result = "unreachable" // an ICMP error came
	Silent      Result = "silent"      // nothing came
)

// A Trial is one frontend to try, with how many handshakes from as many ports: each port may lead to another
// backend.
type Trial struct {
	Frontend netip.AddrPort `json:"frontend"`
	Count    int            `json:"count,omitempty"`
}

// A TrialResult is what a Trial has found: Served if all handshakes were, otherwise the worst of the others.
type TrialResult struct {
	Frontend netip.AddrPort `json:"frontend"`
	Result   Result         `json:"result"`
	// Of handshakes, Failed were not served.
	Of     int `json:"of"`
	Failed int `json:"failed,omitempty"`
	// Late ones were served from another port only, after the first had no answer: a packet was lost, or another
	// backend took it.
	Late int `json:"late,omitempty"`
}

// lost says whether so many connections had to be begun again that a backend may be out of reach.
func (f TrialResult) lost() bool {
	return f.Result == Served && 4*f.Late >= f.Of && (f.Late > 1 || f.Of == 1)
}

const (
	// MaxTrials and MaxCount bound one question, so that nobody is flooded by mistake.
	MaxTrials = 32
	MaxCount  = 8
	// patience is how long an answer may take, with SYNs from other ports meanwhile: a lost packet or a busy host
	// is no failure.
	patience = 900 * time.Millisecond
)

// attempts is how many SYNs a handshake takes. Each has a port of its own: where rules choose a backend for each SYN,
// the same one again would hide that the first went to a backend that is out of reach.
const attempts = 3

// resend is when the SYN of the next attempt is sent, if there is no answer.
func resend() []time.Duration { return []time.Duration{200 * time.Millisecond, 500 * time.Millisecond} }

// A knock is one attempt at a handshake.
type knock struct {
	trial  int
	port   uint16
	seq    uint32
	result Result
}

// FromLink tries the frontends, all of the family of own, of the machine with this MAC address on the link. It sends
// frames by a packet socket, so that no rule of this host is on the way; own is this host's address. The kernel does
// not see the answers as its own: to it, the frontends are local addresses, from which nothing comes by the link
// (RFC 1812 section 5.3.8).
func FromLink(
	ctx context.Context, link neighbours.Link, mac [6]byte, own netip.Addr, trials []Trial,
) ([]TrialResult, error) {
	ethertype := uint16(unix.ETH_P_IPV6)
	if own.Is4() {
		ethertype = unix.ETH_P_IP
	}
	// The socket lives as long as the handshakes: one that stays would cost every packet of the host.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w; give the container the capability NET_RAW", err)
	}
	socket := os.NewFile(uintptr(fd), "packet socket")
	defer socket.Close()
	h := newHandshakes(trials)
	filter := answersTo(own, h.first, len(h.knocks))
	if err := attach(fd, filter); err != nil {
		return nil, err
	}
	// Linux before 4.20 has no such option, and the filter drops what goes out.
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	at := &unix.SockaddrLinklayer{Protocol: hostToNetwork(unix.ETH_P_ALL), Ifindex: int(link.Index)}
	if err := unix.Bind(fd, at); err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", link.Name, err)
	}
	header := binary.BigEndian.AppendUint16(append(append([]byte(nil), mac[:]...), link.MAC[:]...), ethertype)
	h.send = func(k *knock, to netip.AddrPort, seq uint32, flags byte) {
		packet := segment.Packet(netip.AddrPortFrom(own, k.port), to, seq, flags, nil)
		_, _ = socket.Write(append(append([]byte(nil), header...), packet...)) // lost, as on the way
	}
	h.parse = func(frame []byte) (answer, bool) {
		if len(frame) < len(header) {
			return answer{}, false
		}
		return parseAnswer(frame[len(header):])
	}
	return h.run(ctx, socket)
}

// handshakes are those of one question.
type handshakes struct {
	trials []Trial
	knocks []knock // all first attempts, then all second ones, and so on
	n      int     // handshakes
	sent   int     // attempts of each
	first  uint16  // the source port of the first; the others follow
	send   func(k *knock, to netip.AddrPort, seq uint32, flags byte)
	parse  func(packet []byte) (answer, bool)
}

func newHandshakes(trials []Trial) *handshakes {
	h := &handshakes{trials: trials}
	// Above the ports that servers listen on, and so that all fit.
	h.first = uint16(32768 + rand.N(32768-attempts*MaxTrials*MaxCount))
	for range attempts {
		for i, t := range trials[:min(len(trials), MaxTrials)] {
			for range min(max(t.Count, 1), MaxCount) {
				h.knocks = append(h.knocks, knock{trial: i, port: h.first + uint16(len(h.knocks)), seq: rand.Uint32()})
			}
		}
	}
	h.n = len(h.knocks) / attempts
	return h
}

// run sends the SYNs and waits until all are answered, or patience ends.
func (h *handshakes) run(ctx context.Context, socket *os.File) ([]TrialResult, error) {
	begun, again := time.Now(), resend()
	h.begin()
	buf := make([]byte, 2048)
	for late := false; !late && h.open() > 0 && ctx.Err() == nil; {
		until := begun.Add(patience)
		if len(again) > 0 {
			until = begun.Add(again[0])
		}
		if err := socket.SetReadDeadline(until); err != nil {
			return nil, err
		}
		n, err := socket.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && len(again) > 0:
			again = again[1:]
			h.begin()
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			late = true
			continue
		case errors.Is(err, unix.ENETDOWN):
			return nil, fmt.Errorf("the link is down: %w", err)
		case err != nil:
			return nil, err
		}
		if a, ok := h.parse(buf[:n]); ok {
			h.hear(a)
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	// What was not answered may be half open somewhere all the same.
	for i := range h.knocks[:h.n*h.sent] {
		if k := &h.knocks[i]; k.result == "" {
			h.send(k, h.trials[k.trial].Frontend, k.seq+1, segment.RST)
		}
	}
	return h.findings(), nil
}

// begin sends the SYNs of the next attempt, for every handshake that has no answer yet.
func (h *handshakes) begin() {
	for i := range h.n {
		if k := &h.knocks[h.sent*h.n+i]; h.outcome(i) == "" {
			h.send(k, h.trials[k.trial].Frontend, k.seq, segment.SYN)
		}
	}
	h.sent++
}

// open counts the first attempts without an answer: one may still come.
func (h *handshakes) open() (open int) {
	for i := range h.n {
		if h.knocks[i].result == "" {
			open++
		}
	}
	return open
}

// outcome is the answer to the first attempt at the i-th handshake that has one.
func (h *handshakes) outcome(i int) Result {
	for attempt := range attempts {
		if r := h.knocks[attempt*h.n+i].result; r != "" {
			return r
		}
	}
	return ""
}

// hear takes an answer, and says whether it is the first to its handshake.
func (h *handshakes) hear(a answer) bool {
	i := int(a.port) - int(h.first)
	if i < 0 || i >= len(h.knocks) {
		return false
	}
	k := &h.knocks[i]
	frontend := h.trials[k.trial].Frontend
	if k.result != "" || a.frontend != frontend || a.result != Unreachable && a.ack != k.seq+1 {
		return false
	}
	k.result = a.result
	if a.result == Served && h.send != nil {
		h.send(k, frontend, a.ack, segment.RST)
	}
	return true
}

func (h *handshakes) findings() []TrialResult {
	worse := map[Result]int{Served: 0, Refused: 1, Unreachable: 2, Silent: 3}
	out := make([]TrialResult, len(h.trials))
	for i, t := range h.trials {
		out[i] = TrialResult{Frontend: t.Frontend, Result: Served}
	}
	for i, k := range h.knocks[:h.n] {
		r := cmp.Or(h.outcome(i), Silent)
		f := &out[k.trial]
		f.Of++
		switch {
		case r != Served:
			f.Failed++
		case k.result == "":
			f.Late++
		}
		if worse[r] > worse[f.Result] {
			f.Result = r
		}
	}
	return out
}

// An answer is a packet that may belong to a handshake.
type answer struct {
	frontend netip.AddrPort
	port     uint16 // ours
	ack      uint32
	result   Result
}

// parseAnswer reads an IP packet: a SYN-ACK, a reset, or an ICMP error about a SYN.
func parseAnswer(ip []byte) (a answer, ok bool) {
	src, _, proto, rest, ok := parseIP(ip)
	if !ok {
		return a, false
	}
	switch proto {
	case unix.IPPROTO_TCP:
		return parseTCP(src, rest)
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		// Destination Unreachable: RFC 792, and RFC 4443 section 3.1. After eight bytes it quotes the packet.
		unreachable := proto == unix.IPPROTO_ICMP && rest[0] == 3 || proto == unix.IPPROTO_ICMPV6 && rest[0] == 1
		if !unreachable || len(rest) < 8 {
			return a, false
		}
		_, dst, quoted, tcp, ok := parseIP(rest[8:])
		if !ok || quoted != unix.IPPROTO_TCP {
			return a, false
		}
		return answer{
			frontend: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:])), port: binary.BigEndian.Uint16(tcp),
			result: Unreachable,
		}, true
	}
	return a, false
}

// parseTCP reads a segment from src.
func parseTCP(src netip.Addr, tcp []byte) (a answer, ok bool) {
	if len(tcp) < segment.HeaderLen {
		return a, false
	}
	a = answer{
		frontend: netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp)), port: binary.BigEndian.Uint16(tcp[2:]),
		ack: binary.BigEndian.Uint32(tcp[8:]),
	}
	switch flags := tcp[13]; {
	case flags&segment.RST != 0:
		a.result = Refused
	case flags&(segment.SYN|segment.ACK) == segment.SYN|segment.ACK:
		a.result = Served
	default:
		return a, false
	}
	return a, true
}

// parseIP returns at least eight bytes of what an IP packet without extension headers carries.
func parseIP(ip []byte) (src, dst netip.Addr, proto byte, rest []byte, ok bool) {
	switch {
	case len(ip) >= 20 && ip[0]>>4 == 4:
		header := int(ip[0]&0xf) * 4
		if header < 20 || len(ip) < header+8 {
			return src, dst, 0, nil, false
		}
		return netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20])), ip[9], ip[header:], true
	case len(ip) >= 48 && ip[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40])), ip[6], ip[40:], true
	}
	return src, dst, 0, nil, false
}

// answersTo lets a packet socket see TCP to own at n ports from first on, and ICMP errors to own.
func answersTo(own netip.Addr, first uint16, n int) []bpf.Instruction {
	const ether = 14
	ethertype, proto, dst, tcp := uint32(unix.ETH_P_IPV6), uint32(ether+6), uint32(ether+36), uint32(ether+40)
	icmp := uint32(unix.IPPROTO_ICMPV6)
	if own.Is4() {
		ethertype, proto, dst, tcp = unix.ETH_P_IP, ether+9, ether+16, ether+20
		icmp = unix.IPPROTO_ICMP
	}
	last := own.AsSlice()
	// The last four bytes of an IPv6 address tell hosts of a link apart well enough for a filter.
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: ethertype, SkipFalse: 9},
		bpf.LoadAbsolute{Off: dst, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(last[len(last)-4:]), SkipFalse: 7},
		bpf.LoadAbsolute{Off: proto, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: icmp, SkipTrue: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_TCP, SkipFalse: 4},
		bpf.LoadAbsolute{Off: tcp + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(first), SkipFalse: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: uint32(first) + uint32(n), SkipTrue: 1},
		bpf.RetConstant{Val: 2048},
		bpf.RetConstant{Val: 0},
	}
}

func attach(fd int, filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return err
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

func hostToNetwork(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
