package bgp

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/jwhited/corebgp"
)

const (
	// retryFirst is the pause before a neighbour is dialled again; it doubles up to retryMost while there is no session.
	// A router that restarts is back within seconds, and one try costs three packets.
	retryFirst = 250 * time.Millisecond
	retryMost  = 4 * time.Second
)

// A neighbour is one router and what it has been told. It is corebgp's plugin.
type neighbour struct {
	Neighbour
	speaker *Speaker
	woken   chan struct{} // has room for one: there may be something to tell
	changed chan struct{} // has room for one: the connection is another

	mu      sync.Mutex
	conn    *conn // nil: there is none
	dialing bool
	why     string    // why there is no session; empty while there is one
	since   time.Time // when the session began or ended
	cause   string    // why the last connection ended
	begun   uint64    // sessions that were established
	flaps   uint64    // those that ended

	writer   corebgp.UpdateMessageWriter // nil unless the session is established
	families map[uint16]bool             // those that both sides know
	extended bool                        // the router takes next hops of IPv6 for routes of IPv4
	routerID netip.Addr
	told     map[netip.Addr]announcement
	untold   map[netip.Addr]string // why a virtual address is not announced here
}

func newNeighbour(s *Speaker, n Neighbour) *neighbour {
	return &neighbour{
		Neighbour: n, speaker: s, woken: make(chan struct{}, 1), changed: make(chan struct{}, 1), since: time.Now(),
		why: "not connected yet",
	}
}

func (n *neighbour) internal() bool { return n.AS == n.speaker.cfg.AS }

func (n *neighbour) wake() {
	select {
	case n.woken <- struct{}{}:
	default:
	}
}

// run keeps a connection to the neighbour until ctx ends.
func (n *neighbour) run(ctx context.Context) error {
	pause, sessions := retryFirst, n.sessions()
	for ctx.Err() == nil {
		if !n.Passive && !n.connected() {
			n.connect(ctx)
		}
		if n.connected() {
			select {
			case <-ctx.Done():
				continue
			case <-n.changed:
			}
		}
		// A router that ends each session at once is not to be kept busy with new ones.
		if now := n.sessions(); now != sessions {
			pause, sessions = retryFirst, now
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, retryMost)
		}
	}
	for n.connected() {
		<-n.changed // corebgp ends the session, and closes its connection
	}
	return nil
}

// sessions counts those that were established.
func (n *neighbour) sessions() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.begun
}

func (n *neighbour) connected() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.conn != nil
}

// connect dials the neighbour.
func (n *neighbour) connect(ctx context.Context) {
	n.mu.Lock()
	n.dialing = true
	n.mu.Unlock()
	c, err := dial(ctx, n.Neighbour, n.internal())
	n.mu.Lock()
	n.dialing = false
	if err != nil && ctx.Err() == nil && n.conn == nil {
		n.why = err.Error()
	}
	n.mu.Unlock()
	if err == nil {
		n.offer(ctx, c)
	}
}

// offer hands a connection to corebgp, unless there is one already. The machine of the neighbour begins anew for it:
// corebgp would keep a neighbour waiting for a minute after an error, a router that restarted, too.
func (n *neighbour) offer(ctx context.Context, raw net.Conn) {
	n.mu.Lock()
	if n.conn != nil {
		n.mu.Unlock()
		raw.Close()
		return
	}
	c := newConn(raw, n.ended)
	n.conn, n.cause = c, ""
	n.mu.Unlock()
	_ = n.speaker.machine.DeletePeer(n.Addr)
	err := n.speaker.machine.AddPeer(corebgp.PeerConfig{
		RemoteAddress: n.Addr, LocalAS: n.speaker.cfg.AS, RemoteAS: n.AS,
	}, n, corebgp.WithPassive(), corebgp.WithHoldTime(uint16(n.speaker.cfg.HoldTime/time.Second)))
	if err != nil {
		n.speaker.cfg.Log.Error("a BGP session cannot begin", "neighbour", n.Addr, "error", err)
		c.Close()
		return
	}
	select {
	case n.speaker.offered.conns <- c:
	case <-ctx.Done():
		c.Close()
	}
}

// ended notes the end of a connection.
func (n *neighbour) ended(c *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != c {
		return
	}
	n.conn, n.cause = nil, cmp.Or(c.why(), "the connection broke")
	n.why = n.cause
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// capExtendedNextHop is the code of Extended Next Hop Encoding (RFC 8950, section 4), and extendedNextHop its value for
// routes of IPv4 by next hops of IPv6.
const capExtendedNextHop = 5

var extendedNextHop = []byte{0, afiIPv4, 0, safiUnicast, 0, afiIPv6}

// GetCapabilities implements corebgp.Plugin: both families over a session of either (RFC 4760, section 8). Next hops of
// IPv6 for IPv4 are for networks without IPv4, whose sessions are of IPv6.
func (n *neighbour) GetCapabilities(corebgp.PeerConfig) []corebgp.Capability {
	list := []corebgp.Capability{
		corebgp.NewMPExtensionsCapability(afiIPv4, safiUnicast), corebgp.NewMPExtensionsCapability(afiIPv6, safiUnicast),
	}
	if n.Addr.Is6() {
		list = append(list, corebgp.Capability{Code: capExtendedNextHop, Value: extendedNextHop})
	}
	return list
}

// OnOpenMessage implements corebgp.Plugin.
func (n *neighbour) OnOpenMessage(
	_ corebgp.PeerConfig, id netip.Addr, capabilities []corebgp.Capability,
) *corebgp.Notification {
	families, said, extended := make(map[uint16]bool), false, false
	for _, c := range capabilities {
		if c.Code == capExtendedNextHop && n.Addr.Is6() {
			for one := range slices.Chunk(c.Value, len(extendedNextHop)) {
				extended = extended || slices.Equal(one, extendedNextHop)
			}
		}
		if c.Code == corebgp.CAP_MP_EXTENSIONS && len(c.Value) == 4 {
			said = true
			if c.Value[3] == safiUnicast {
				families[uint16(c.Value[0])<<8|uint16(c.Value[1])] = true
			}
		}
	}
	if !said {
		families[afiIPv4] = true // RFC 4760, section 8: it knows nothing else
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.families, n.routerID, n.extended = families, id, extended
	return nil
}

// OnEstablished implements corebgp.Plugin. What the neighbour announces is not read.
func (n *neighbour) OnEstablished(
	_ corebgp.PeerConfig, w corebgp.UpdateMessageWriter,
) corebgp.UpdateMessageHandler {
	n.mu.Lock()
	n.writer, n.why, n.since = w, "", time.Now()
	n.begun++
	n.told, n.untold = make(map[netip.Addr]announcement), make(map[netip.Addr]string)
	n.mu.Unlock()
	n.wake()
	n.speaker.cfg.Log.Info("BGP session is established", "neighbour", n.Addr, "as", n.AS)
	n.speaker.cfg.OnChange(SessionChange{Neighbour: n.Addr, Established: true})
	return nil
}

// OnClose implements corebgp.Plugin.
func (n *neighbour) OnClose(corebgp.PeerConfig) {
	n.mu.Lock()
	why, lasted := n.cause, time.Since(n.since)
	n.writer, n.told, n.untold, n.why, n.since = nil, nil, nil, why, time.Now()
	n.flaps++
	n.mu.Unlock()
	n.speaker.cfg.Log.Warn("BGP session has ended", "neighbour", n.Addr, "reason", why, "lasted", lasted)
	n.speaker.cfg.OnChange(SessionChange{Neighbour: n.Addr, Reason: why, Lasted: lasted})
}

// advertise tells the neighbour what has changed, until ctx ends.
func (n *neighbour) advertise(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.woken:
			if err := n.tell(); err != nil {
				n.speaker.cfg.Log.Debug("a neighbour was not told", "neighbour", n.Addr, "error", err)
			}
		}
	}
}

// plan is what the neighbour should know, and why it is not told of the rest. The caller holds mu.
func (n *neighbour) plan(local netip.Addr) (want map[netip.Addr]announcement, untold map[netip.Addr]string) {
	want, untold = make(map[netip.Addr]announcement), make(map[netip.Addr]string)
	for vip, path := range n.speaker.wanted() {
		if !n.families[afi(vip)] {
			untold[vip] = fmt.Sprintf("the router takes no %s routes over this session; activate the family there",
				familyName(vip))
			continue
		}
		hop, err := n.speaker.cfg.NextHop(local, vip.Is4(), n.extended)
		if err != nil {
			untold[vip] = err.Error()
			continue
		}
		want[vip] = announcement{RoutePath: path, nextHop: hop}
	}
	return want, untold
}

// A message is the body of an UPDATE message about one virtual address.
type message struct {
	vip  netip.Addr
	body []byte
	is   *announcement // nil: withdrawn
}

// diff is what has to be said for have to become want: announcements first, so that a router that chooses among
// addresses never has none of them.
func diff(have, want map[netip.Addr]announcement, own, theirs uint32) (ms []message, err error) {
	for _, vip := range slices.SortedFunc(maps.Keys(want), netip.Addr.Compare) {
		a := want[vip]
		if was, ok := have[vip]; ok && was.equal(a) {
			continue
		}
		body, err := encodeAnnounce(vip, a, own, theirs)
		if err != nil {
			return nil, err
		}
		ms = append(ms, message{vip, body, &a})
	}
	for _, vip := range slices.SortedFunc(maps.Keys(have), netip.Addr.Compare) {
		if _, ok := want[vip]; !ok {
			ms = append(ms, message{vip, encodeWithdraw(vip, have[vip]), nil})
		}
	}
	return ms, nil
}

// tell tells the neighbour all that it does not know. Only advertise calls it.
func (n *neighbour) tell() error {
	n.mu.Lock()
	w, c := n.writer, n.conn
	if w == nil || c == nil {
		n.mu.Unlock()
		return nil
	}
	want, untold := n.plan(addrOf(c.LocalAddr()))
	n.untold = untold
	ms, err := diff(n.told, want, n.speaker.cfg.AS, n.AS)
	n.mu.Unlock()
	if err != nil {
		return err
	}
	for _, m := range ms {
		if err := w.WriteUpdate(m.body); err != nil {
			return err // the session ends, and the next one begins from nothing
		}
		n.mu.Lock()
		if n.writer == w && m.is != nil {
			n.told[m.vip] = *m.is
		} else if n.writer == w {
			delete(n.told, m.vip)
		}
		n.mu.Unlock()
	}
	return nil
}

// behind reports whether the neighbour has a session and has not been told of everything.
func (n *neighbour) behind() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.writer == nil || n.conn == nil {
		return false
	}
	want, _ := n.plan(addrOf(n.conn.LocalAddr()))
	return !maps.EqualFunc(n.told, want, announcement.equal)
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// A SessionStatus is what is known of a session now.
type SessionStatus struct {
	Neighbour netip.Addr
	AS        uint32
	// State is idle, connecting, opening or established.
	State string
	Since time.Time
	// Why says why there is no session.
	Why      string
	RouterID netip.Addr
	Local    netip.Addr
	// HoldTime is the smaller one of both sides.
	HoldTime time.Duration
	// Announced are the virtual addresses that the neighbour was told of, Untold those that it should have been, and why
	// not.
	Announced []netip.Addr
	Untold    map[netip.Addr]string
	// NextHops are where the neighbour sends packets for what it was told of.
	NextHops []netip.Addr
	// Flaps counts the sessions that ended. Sent and Received count the messages of this one.
	Flaps, Sent, Received uint64
}

// Status lists the sessions in the order of the configuration.
func (s *Speaker) Status() (list []SessionStatus) {
	for _, of := range s.cfg.Neighbours {
		list = append(list, s.neighbours[of.Addr].status())
	}
	return list
}

// state is idle, connecting, opening or established. The caller holds mu.
func (n *neighbour) state() string {
	switch {
	case n.writer != nil:
		return "established"
	case n.conn != nil:
		return "opening"
	case n.dialing:
		return "connecting"
	}
	return "idle"
}

func (n *neighbour) status() SessionStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := SessionStatus{
		Neighbour: n.Addr, AS: n.AS, State: n.state(), Since: n.since, Why: n.why, Flaps: n.flaps,
		Announced: slices.SortedFunc(maps.Keys(n.told), netip.Addr.Compare), Untold: maps.Clone(n.untold),
	}
	for _, a := range n.told {
		st.NextHops = append(st.NextHops, a.nextHop)
	}
	slices.SortFunc(st.NextHops, netip.Addr.Compare)
	st.NextHops = slices.Compact(st.NextHops)
	if c := n.conn; c != nil {
		st.Local, st.RouterID = addrOf(c.LocalAddr()), n.routerID
		c.mu.Lock()
		st.HoldTime, st.Sent, st.Received = min(c.hold, n.speaker.cfg.HoldTime), c.sent, c.rcvd
		c.mu.Unlock()
	}
	return st
}
