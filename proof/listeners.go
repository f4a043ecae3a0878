package proof

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Listening says whether a socket of this host takes connections to the frontend, or why none does although one takes
// them at own, with the same port: the server is bound to that address alone. It says neither where that is not known:
// no server runs, or it runs in another network namespace.
func Listening(frontend netip.AddrPort, own netip.Addr) (takes bool, why string, err error) {
	at, err := listeners(frontend.Port(), own.Is4())
	if err != nil {
		return false, "", err
	}
	takes, why = listening(frontend.Addr(), own, at)
	return takes, why, nil
}

func listening(vip, own netip.Addr, at []netip.Addr) (takes bool, why string) {
	switch {
	case slices.ContainsFunc(at, func(a netip.Addr) bool { return a.IsUnspecified() || a == vip }):
		return true, ""
	case !slices.Contains(at, own):
		return false, ""
	}
	all := "0.0.0.0"
	if own.Is6() {
		all = "::"
	}
	return false, fmt.Sprintf("the server on this node listens on %s only, and this data plane needs it to take %s too: "+
		"have it listen on %s, or use the next data plane", own, vip, all)
}

// listeners are the addresses at which sockets listen on a port. A socket at [::] may take IPv4 too, so it counts for
// both families.
func listeners(port uint16, is4 bool) ([]netip.Addr, error) {
	at, err := dumpListeners(unix.AF_INET6, port)
	if err != nil || !is4 {
		return at, err
	}
	at = slices.DeleteFunc(at, func(a netip.Addr) bool { return !a.IsUnspecified() && !a.Is4() })
	more, err := dumpListeners(unix.AF_INET, port)
	return append(at, more...), err
}

// dumpListeners asks the kernel: sock_diag(7).
func dumpListeners(family byte, port uint16) (at []netip.Addr, err error) {
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddData(listenQuery{family, port})
	msgs, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	if err != nil {
		return nil, fmt.Errorf("which sockets listen: %w", err)
	}
	for _, m := range msgs {
		// struct inet_diag_msg: family, state, timer, retrans, then the ports and addresses in network order.
		if len(m) < 24 || m[0] != family || binary.BigEndian.Uint16(m[4:]) != port {
			continue
		}
		if family == unix.AF_INET {
			at = append(at, netip.AddrFrom4([4]byte(m[8:12])))
		} else {
			at = append(at, netip.AddrFrom16([16]byte(m[8:24])).Unmap())
		}
	}
	return at, nil
}

// A listenQuery is struct inet_diag_req_v2, for TCP sockets of one family that listen on one port.
type listenQuery struct {
	family byte
	port   uint16
}

// Len implements nl.NetlinkRequestData.
func (listenQuery) Len() int { return 56 }

// Serialize implements nl.NetlinkRequestData.
func (q listenQuery) Serialize() []byte {
	b := make([]byte, q.Len())
	b[0], b[1] = q.family, unix.IPPROTO_TCP
	const listen = 10 // TCP_LISTEN
	binary.NativeEndian.PutUint32(b[4:], 1<<listen)
	binary.BigEndian.PutUint16(b[8:], q.port) // a kernel that does not look at it sends all
	return b
}
