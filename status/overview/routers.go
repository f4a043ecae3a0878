package overview

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"appliance/status"
	"appliance/status/report"
)

// A routerSession is one node's BGP session with one router, by that node's own report.
type routerSession struct {
	Node string
	status.SessionView
	Level level
}

// routerSessions are the sessions of all nodes, by router.
func routerSessions(reports []report.PeerReport) (all []routerSession) {
	for _, r := range reports {
		s := &r.Report.Snapshot
		if s.Announce == nil {
			continue
		}
		for _, one := range s.Announce.Sessions {
			m := routerSession{Node: s.ID, SessionView: one, Level: good}
			switch {
			case !one.Established():
				m.Level = bad
			case len(one.Untold) > 0 || m.unwatched():
				m.Level = warn
			}
			all = append(all, m)
		}
	}
	slices.SortFunc(all, func(x, y routerSession) int {
		if n := x.Neighbour.Compare(y.Neighbour); n != 0 {
			return n
		}
		return strings.Compare(x.Node, y.Node)
	})
	return all
}

// unwatched reports whether BFD should hear the router and does not, although there is a session.
func (r *routerSession) unwatched() bool {
	return r.Established() && r.BFD != nil && r.BFD.State != "up"
}

// sessionProblems names the nodes that have the same problem together: a router that is gone is one thing to look at.
func sessionProblems(all []routerSession) (problems []problem) {
	nodes := make(map[string][]string)
	var order []string
	note := func(node, format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		if nodes[text] == nil {
			order = append(order, text)
		}
		nodes[text] = append(nodes[text], node)
	}
	for _, r := range all {
		if !r.Established() {
			note(r.Node, "no BGP session with router %s: %s", r.Neighbour, r.Reason)
		}
		if r.unwatched() {
			note(r.Node, "router %s is not heard by BFD, so its end would be noticed late", r.Neighbour)
		}
		for _, why := range r.Untold {
			note(r.Node, "router %s is not told of %s", r.Neighbour, why)
		}
	}
	for _, text := range order {
		problems = append(problems, problem{Text: strings.Join(nodes[text], ", ") + ": " + text})
	}
	return problems
}

// announcement is what a node does for a VIP that is announced to routers, and ok whether it is.
func announcement(s *status.Snapshot, vip netip.Addr) (v status.AnnouncedView, ok bool) {
	if s.Announce == nil {
		return v, false
	}
	i := slices.IndexFunc(s.Announce.Addresses, func(a status.AnnouncedView) bool { return a.Address == vip })
	if i < 0 {
		return v, false
	}
	v = s.Announce.Addresses[i]
	told := func(r status.SessionView) bool { return slices.Contains(r.Announced, vip) }
	if v.By == "bgp" && v.Announced && !slices.ContainsFunc(s.Announce.Sessions, told) {
		v.Announced, v.Leaving, v.Standby, v.Reason = false, false, false, "no router has been told"
	}
	return v, true
}

// onLink reports whether the holder answers for some VIP.
func (o *Overview) onLink() bool {
	return slices.ContainsFunc(o.Addresses, func(a address) bool { return a.By == "" })
}

// announcers are the nodes that routers prefer for some VIP.
func (o *Overview) announcers() (ids []string) {
	for _, a := range o.Addresses {
		for _, n := range a.Nodes {
			if n.Announced && (!n.Standby || !a.preferred()) && !slices.Contains(ids, n.ID) {
				ids = append(ids, n.ID)
			}
		}
	}
	slices.Sort(ids)
	return ids
}

// preferred reports whether some node announces the address with the shortest path.
func (a *address) preferred() bool {
	return slices.ContainsFunc(a.Nodes, func(n addressNode) bool { return n.Announced && !n.Standby })
}

// serving says by whom clients reach the VIPs.
func (o *Overview) serving() string {
	switch ids := o.announcers(); {
	case o.onLink() || len(ids) == 0:
		return o.Holder + " answers for the virtual addresses"
	case len(ids) == 1:
		return ids[0] + " announces the virtual addresses"
	default:
		return strings.Join(ids[:len(ids)-1], ", ") + " and " + ids[len(ids)-1] + " announce the virtual addresses"
	}
}
