package node

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"appliance/configs"
	"appliance/raft"
)

// handlePeers answers GET and POST /peers on the root-only socket.
func (n *node) handlePeers(mux *http.ServeMux) {
	mux.HandleFunc("GET /peers", func(w http.ResponseWriter, _ *http.Request) {
		if n.group == nil {
			http.Error(w, n.noGroup().Error(), http.StatusConflict)
			return
		}
		s := n.group.Status()
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "PEER\tADDRESS\tROLE\tCONNECTED\tPRIORITY\tVERSION\tNOTE")
		for _, p := range s.Peers {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", p.ID, peerAddrs(p), peerRole(p), connected(p), p.Priority, p.Version, peerNote(s, p))
		}
		t.Flush()
		if s.Trouble != "" {
			fmt.Fprintln(w, "\n"+s.Trouble)
		}
	})
	mux.HandleFunc("POST /peers", func(w http.ResponseWriter, r *http.Request) {
		said, err := n.changePeers(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		fmt.Fprintln(w, said)
	})
}

// peerAddrs is where the peer is, as `peers add` reads it.
func peerAddrs(p raft.PeerStatus) string {
	at := p.Addr.String()
	for _, a := range p.Further {
		at += "+" + a.String()
	}
	return at
}

func peerRole(p raft.PeerStatus) string {
	switch {
	case p.Role == "" && p.Expected:
		return "expected"
	case p.Role == "":
		return "not a member"
	}
	return p.Role
}

func connected(p raft.PeerStatus) string {
	switch {
	case p.Self:
		return "this node"
	case p.Connected:
		return "yes, for " + time.Since(p.Since).Round(time.Second).String()
	case p.Since.IsZero():
		return "never"
	}
	return "no, for " + time.Since(p.Since).Round(time.Second).String()
}

func peerNote(s raft.Status, p raft.PeerStatus) string {
	var notes []string
	for _, n := range []struct {
		is   bool
		word string
	}{
		{p.ID == s.Leader && p.Role == "voter", "holder"}, {p.Drained, "drained"}, {p.Pinned, "pinned"}, {p.Standby, "demoted"},
		{p.Conflict != "", p.Conflict}, {p.Unfit != "", p.Unfit},
	} {
		if n.is {
			notes = append(notes, n.word)
		}
	}
	return strings.Join(notes, ", ")
}

// noGroup says why this node has none.
func (n *node) noGroup() error {
	if n.broken != nil {
		return n.broken
	}
	return errors.New("this is a worker, which is in no group; ask one of the peers")
}

// changePeers does one order about the group's members.
func (n *node) changePeers(r *http.Request) (said string, err error) {
	if n.group == nil {
		return "", n.noGroup()
	}
	q, ctx, g := r.URL.Query(), r.Context(), n.group
	id, force := q.Get("peer"), q.Get("force") != ""
	switch do := q.Get("do"); do {
	case "add":
		p, err := parsePeer(id, n.cfg.Group.Port)
		if err != nil {
			return "", err
		}
		p.Witness = q.Get("witness") != ""
		return fmt.Sprintf("%s is expected at %s; start it there with --join and one of these peers, or with a file that lists it", p.ID, p.Addr), g.AddPeer(ctx, p, force)
	case "remove":
		return id + " is removed", g.RemovePeer(ctx, id, force)
	case "promote":
		return id + " gets a vote as soon as it has caught up", g.PromotePeer(ctx, id, force)
	case "demote":
		return id + " has no vote any more", g.DemotePeer(ctx, id, force)
	case "drain", "undrain":
		if id == "" {
			id = n.site.self.ID
		}
		if do == "undrain" {
			return id + " takes part again", g.Undrain(ctx, id)
		}
		return id + " is drained: it holds only if nobody else can, and its servers get no new connections", g.Drain(ctx, id)
	case "pin":
		if id == "off" {
			return "nobody is pinned", g.Pin(ctx, "")
		}
		return id + " is to hold whenever it can", g.Pin(ctx, id)
	default:
		return "", fmt.Errorf("%q is no order about peers", do)
	}
}

// parsePeer reads ID=ADDRESS[:PORT][+ADDRESS...], or an address that is the id
// too.
func parsePeer(text string, port uint16) (raft.Peer, error) {
	id, at, named := strings.Cut(text, "=")
	if !named {
		at = text
	}
	at, more, _ := strings.Cut(at, "+")
	var further []netip.Addr
	for more := range strings.SplitSeq(more, "+") {
		a, err := netip.ParseAddr(strings.Trim(more, "[]"))
		if err != nil && more != "" {
			return raft.Peer{}, fmt.Errorf("%q is no address, in %q; write ID=ADDRESS+ADDRESS, such as node-4=192.0.2.14+2001:db8::14", more, text)
		}
		if err == nil {
			further = append(further, a.Unmap())
		}
	}
	addr, err := netip.ParseAddrPort(at)
	if err != nil {
		a, err := netip.ParseAddr(strings.Trim(at, "[]"))
		if err != nil {
			return raft.Peer{}, fmt.Errorf("%q is no peer; write ID=ADDRESS or ID=ADDRESS:PORT, such as node-4=192.0.2.14", text)
		}
		addr = netip.AddrPortFrom(a, port)
	}
	if !named {
		id = addr.Addr().String()
	}
	return raft.Peer{ID: id, Addr: addr, Further: further}, nil
}

// raftPeers are the listed peers, or this node alone where none is listed.
func raftPeers(cfg *configs.Config, self configs.Peer) []raft.Peer {
	listed := cfg.Peers
	if len(listed) == 0 {
		listed = []configs.Peer{self}
	}
	var peers []raft.Peer
	for _, p := range listed {
		role := p.Role
		if p.ID == self.ID {
			role = self.Role // its own word goes first
		}
		peers = append(peers, raft.Peer{ID: p.ID, Addr: p.AddrPort(), Further: p.Further, Witness: role == configs.RoleWitness})
	}
	return peers
}
