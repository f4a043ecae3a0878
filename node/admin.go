package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"appliance/host"
	"appliance/nft/conntrack"
	"appliance/node/desired"
	"appliance/raft"
	"appliance/status"
	"appliance/status/web"
)

// handler answers on the root-only unix socket: what status shows, and the few requests that change something.
func (n *node) handler(book *host.Log, more ...func(*http.ServeMux)) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /", web.Handler(n.snapshot))
	events := web.EventHandler(n.observer.Journal)
	mux.Handle("GET /events", events)
	mux.Handle("GET /events.json", events)
	mux.Handle("GET /metrics", n.observer.Metrics.Handler())
	book.Handle(mux)
	for _, handle := range more {
		handle(mux)
	}
	mux.HandleFunc("POST /transfer", func(w http.ResponseWriter, r *http.Request) {
		to := r.URL.Query().Get("to")
		if n.group == nil {
			http.Error(w, n.noGroup().Error(), http.StatusConflict)
			return
		}
		if err := n.group.Transfer(r.Context(), to); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		fmt.Fprintln(w, "handed over")
	})
	return mux
}

// handleBackends answers POST /backends on the root-only socket.
func (n *node) handleBackends(mux *http.ServeMux) {
	mux.HandleFunc("POST /backends", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		said, err := n.override(r.Context(), q.Get("do"), q.Get("name"), q.Get("weight"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		fmt.Fprintln(w, strings.Join(said, "\n"))
	})
}

// override changes the group's overrides of backends, and returns what it has changed.
func (n *node) override(ctx context.Context, do, name, weight string) (said []string, err error) {
	if n.group == nil {
		return nil, errors.New("this is a worker, which is in no group; " +
			"give the order on one of the peers, and edit a worker's own file")
	}
	change, err := desired.Override(n.state.Load().Config, n.group.Settings(), do, name, weight)
	if err != nil {
		return nil, err
	}
	if err := n.group.Propose(ctx, change.Set, change.Remove...); err != nil {
		return nil, fmt.Errorf("the group does not take the order: %w", err)
	}
	return change.Said, nil
}

// openConnections counts the clients' connections that a stop of this host would cut.
func (n *node) openConnections() (int, error) {
	var frontends, backends []netip.AddrPort
	for _, lb := range n.snapshot().LoadBalancers {
		frontends = append(frontends, lb.Frontends...)
		for _, b := range lb.Backends {
			backends = append(backends, b.Address)
		}
	}
	return conntrack.Open(frontends, backends)
}

// handlePeers answers GET and POST /peers, and GET /connections, on the root-only socket.
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
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n",
				p.ID, peerAddrs(p), peerRole(p), connected(p), p.Priority, p.Version, peerNote(s, p))
		}
		t.Flush()
		if s.Trouble != "" {
			fmt.Fprintln(w, "\n"+s.Trouble)
		}
	})
	mux.HandleFunc("GET /connections", func(w http.ResponseWriter, _ *http.Request) {
		open, err := n.openConnections()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, open)
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

// peerAddrs returns the addresses of a peer in the form that `peers add` reads.
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
		{p.ID == s.Leader && p.Role == "voter", "holder"},
		{p.Drained, "drained"}, {p.Pinned, "pinned"}, {p.Standby, "demoted"},
		{p.Conflict != "", p.Conflict}, {p.Doubled != "", p.Doubled}, {p.Unfit != "", p.Unfit},
	} {
		if n.is {
			notes = append(notes, n.word)
		}
	}
	return strings.Join(notes, ", ")
}

// noGroup says why this node has no group.
func (n *node) noGroup() error {
	if n.broken != nil {
		return n.broken
	}
	return errors.New("this is a worker, which is in no group; ask one of the peers")
}

// changePeers changes the members of the group, or who may hold.
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
		said = fmt.Sprintf("%s is expected at %s; "+
			"start it there with --join and one of these peers, or with a file that lists it", p.ID, p.Addr)
		return said, g.AddPeer(ctx, p, force)
	case "remove":
		return id + " is removed", g.RemovePeer(ctx, id, force)
	case "promote":
		return id + " gets a vote as soon as it has caught up", g.PromotePeer(ctx, id, force)
	case "demote":
		return id + " has no vote any more", g.DemotePeer(ctx, id, force)
	default:
		return n.orderPeer(ctx, do, id)
	}
}

// orderPeer changes who may hold. An empty id is this node, and with pin off nobody.
func (n *node) orderPeer(ctx context.Context, do, id string) (said string, err error) {
	g := n.group
	switch do {
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
		return "", fmt.Errorf("%q is not an order about peers", do)
	}
}

// pageOrders are the orders that users may give on the page.
func (n *node) pageOrders() *web.PageOrders {
	return &web.PageOrders{
		Backends: func() (names []string) {
			for _, lb := range n.state.Load().Config.LoadBalancers {
				for _, b := range lb.Backends {
					if b.Resolved() {
						names = append(names, lb.Name+"/"+b.Addr.String())
					}
				}
			}
			return names
		},
		Nodes: func() (ids []string) {
			if n.group == nil {
				return nil
			}
			for _, p := range n.group.Status().Peers {
				ids = append(ids, p.ID)
			}
			return ids
		},
		Give: n.givePageOrder,
	}
}

// givePageOrder does what user orders on the page, and notes who it was.
func (n *node) givePageOrder(ctx context.Context, user string, o web.PageOrder) (said string, err error) {
	if n.group == nil {
		return "", n.noGroup()
	}
	kind := status.OfPeer
	switch o.Do {
	case "drain-node", "undrain-node":
		said, err = n.orderPeer(ctx, strings.TrimSuffix(o.Do, "-node"), o.To)
	case "pin":
		said, err = n.orderPeer(ctx, "pin", o.To)
	case "unpin":
		said, err = n.orderPeer(ctx, "pin", "off")
	case "transfer":
		said, err = "handed over to "+o.To, n.group.Transfer(ctx, o.To)
	default:
		kind = status.OfBackend
		var lines []string
		lines, err = n.override(ctx, o.Do, o.To, o.Weight)
		said = strings.Join(lines, "; ")
	}
	e := status.Event{Kind: kind, Subject: o.To, What: "ordered on the page: " + strings.TrimSpace(o.Do+" "+o.Weight),
		Reason: "by " + user}
	if err != nil {
		e.What, e.Reason = "refused on the page: "+strings.TrimSpace(o.Do+" "+o.Weight), "by "+user+": "+err.Error()
	}
	n.observer.Note(e)
	n.log.Info("a user gave an order on the page", "user", user, "order", o.Do, "to", o.To, "weight", o.Weight,
		"error", err)
	return said, err
}

// parsePeer reads ID=ADDRESS[:PORT][+ADDRESS...], or an address that is the id too.
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
			return raft.Peer{}, fmt.Errorf("%q is not an address, in %q; "+
				"write ID=ADDRESS+ADDRESS, such as node-4=192.0.2.14+2001:db8::14", more, text)
		}
		if err == nil {
			further = append(further, a.Unmap())
		}
	}
	addr, err := netip.ParseAddrPort(at)
	if err != nil {
		a, err := netip.ParseAddr(strings.Trim(at, "[]"))
		if err != nil {
			return raft.Peer{}, fmt.Errorf("%q is not a peer; "+
				"write ID=ADDRESS or ID=ADDRESS:PORT, such as node-4=192.0.2.14", text)
		}
		addr = netip.AddrPortFrom(a, port)
	}
	if !named {
		id = addr.Addr().String()
	}
	return raft.Peer{ID: id, Addr: addr, Further: further}, nil
}
