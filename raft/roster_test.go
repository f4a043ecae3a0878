package raft

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	hraft "github.com/hashicorp/raft"

	"appliance/raft/settings"
)

// What a peer learned of the others when it joined, or knew when it ended, counts until it has read the log:
// it forgets nobody for a moment, and no further addresses either.
func TestRosterWhileTheLogIsRead(t *testing.T) {
	peer := func(id string, more ...string) Peer {
		p := Peer{ID: id, Addr: netip.MustParseAddrPort("192.0.2." + id[1:] + ":10000")}
		for _, a := range more {
			p.Further = append(p.Further, netip.MustParseAddr(a))
		}
		return p
	}
	server := func(id string) hraft.Server {
		return hraft.Server{ID: hraft.ServerID(id), Address: hraft.ServerAddress(peer(id).Addr.String())}
	}
	record := func(p Peer) string {
		return settings.Member{Addr: p.Addr, Further: p.Further, Witness: p.Witness}.Text()
	}
	met := []Peer{peer("p1", "2001:db8::1"), peer("p2", "2001:db8::2")}
	met[1].Witness = true
	joiner := &Config{ID: "p3", Peers: []Peer{peer("p3", "2001:db8::3")}, Join: []netip.AddrPort{peer("p1").Addr}}
	const all = "p1[2001:db8::1] p2[2001:db8::2]w p3[2001:db8::3]"
	for _, c := range []struct {
		name       string
		settings   map[string]string
		configured []hraft.Server
		want       string
	}{
		{"no log", nil, nil, all},
		{"a log of the group's beginning", nil, []hraft.Server{server("p1")}, all},
		{"the newest members, without what is known of them", nil, []hraft.Server{server("p1"), server("p2"),
			server("p3")}, all},
		{"records of some", map[string]string{settings.MemberPrefix + "p1": record(peer("p1", "2001:db8::11"))},
			[]hraft.Server{server("p1"), server("p2"), server("p3")}, strings.Replace(all, "::1]", "::11]", 1)},
		{"a record without further addresses", map[string]string{settings.MemberPrefix + "p1": record(peer("p1"))},
			[]hraft.Server{server("p1"), server("p2"), server("p3")}, strings.Replace(all, "2001:db8::1]", "]", 1)},
		{"one has been removed", map[string]string{settings.RemovedPrefix + "p2": "2026-01-02T03:04:05Z"},
			[]hraft.Server{server("p1")}, "p1[2001:db8::1] p3[2001:db8::3]"},
		{"all is read, and one has gone", map[string]string{settings.MemberPrefix + "p1": record(met[0]),
			settings.MemberPrefix + "p3": record(joiner.Peers[0])},
			[]hraft.Server{server("p1"), server("p3")}, "p1[2001:db8::1] p3[2001:db8::3]"},
	} {
		var got []string
		for _, p := range rosterOf(joiner, met, c.settings, c.configured) {
			got = append(got, p.ID+fmt.Sprint(p.Further)+map[bool]string{true: "w"}[p.Witness])
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%s: %s, want %s", c.name, g, c.want)
		}
	}
}
