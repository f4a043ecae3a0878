package configs

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"appliance/balancer"
)

const peers3 = "vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n"

func parseHere(text string) (*Config, error) {
	return Parse("f", []byte(text), Source{FileExists: func(string) bool { return true }})
}

func TestTracksAndHooks(t *testing.T) {
	cfg, err := parseHere(peers3 + `
tracks:
- exec: [/etc/check.sh, eth1]
  user: '1000'
  inter: 10s
  weight: 20
- name: api
  check: {type: tcp, address: "[::1]:6443"}
hooks:
- on: [holder, released]
  exec: [/etc/notify.sh]
  user: monitor
- on: [backend-down]
  url: https://alerts.example.org/x
  timeout: 1s
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []TrackEntry{
		{Name: "check.sh", Exec: []string{"/etc/check.sh", "eth1"}, User: "1000", Inter: 10 * time.Second,
			Timeout: 10 * time.Second, Rise: 2, Fall: 2, Weight: 20},
		{Name: "api", Check: balancer.Check{Type: "tcp", Inter: trackConnectTime},
			Address: netip.MustParseAddrPort("[::1]:6443"), Inter: 2 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 2},
	}
	origins := cmpopts.IgnoreTypes(Origin{})
	if diff := cmp.Diff(want, cfg.Tracks, origins, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]HookEntry{
		{On: []string{"holder", "released"}, Exec: []string{"/etc/notify.sh"}, User: "monitor", Timeout: 10 * time.Second},
		{On: []string{"backend-down"}, URL: "https://alerts.example.org/x", Timeout: time.Second},
	}, cfg.Hooks, origins); diff != "" {
		t.Error(diff)
	}
}

func TestTracksAndHooksRefused(t *testing.T) {
	for _, tt := range []struct{ yaml, want string }{
		{"tracks: [{name: a}]", "f:3: tracks[0].exec: is missing; write exec:"},
		{"tracks: [{exec: [check.sh]}]", "f:3: tracks[0].exec[0]: check.sh is not an absolute path"},
		{"tracks: [{exec: /check.sh}]", "f:3: tracks[0].exec: must be a list"},
		{"tracks: [{exec: [/a], check: {address: '127.0.0.1:1'}}]", "keep one of them"},
		{"tracks: [{check: {type: tcp}}]", "tracks[0].check.address: is missing"},
		{"tracks: [{check: {address: 127.0.0.1}}]", "lacks a port; write 127.0.0.1:6443"},
		{"tracks: [{check: {address: localhost}}]", "only the names of servers are looked up"},
		{"tracks: [{check: {address: '127.0.0.1:1', port: 2}}]", "tracks[0].check.port: is 2, but address says 1"},
		{"tracks: [{check: {type: tcp, address: '127.0.0.1:1', path: /x}}]", "means nothing to a check of type tcp"},
		{"tracks: [{check: {address: '127.0.0.1:1', inter: 1s}}]", "tracks[0].check.inter: is not a known key"},
		{"tracks: [{check: {address: '127.0.0.1:1'}, user: a}]",
			"tracks[0].user: is who a program runs as, and there is none"},
		{"hooks: [{on: [holder], exec: [/a], user: 'a:b'}]", "hooks[0].user: a:b is not the name of a user"},
		{"tracks: [{exec: [/a], rise: 0}]", "tracks[0].rise: 0 is not a number"},
		{"tracks: [{exec: [/a], weight: 0}]", "tracks[0].weight: 0 is not a number from 1 to 1000"},
		{"tracks: [{exec: [/a], inter: 1s, timeout: 2s}]", "tracks[0].timeout: 2s is longer than inter, 1s"},
		{"tracks: [{exec: [/a], inter: 24h}]", "within a day"},
		{"tracks: [{exec: [/a]}, {exec: [/b/a]}]", "a is the name of two tracks"},
		{"hooks: [{exec: [/a]}]", "f:3: hooks[0].on: is missing"},
		{"hooks: [{on: [holder]}]", "hooks[0].exec: is missing"},
		{"hooks: [{on: [master], exec: [/a]}]", "hooks[0].on[0]: master is not known; " +
			"write holder, released, fault, recovered, stopped, backend-up or backend-down"},
		{"hooks: [{on: [holder, holder], exec: [/a]}]", "holder is there twice"},
		{"hooks: [{on: [holder], exec: [/a], url: 'http://a'}]", "keep one of them"},
		{"hooks: [{on: [holder], url: 'ftp://a/b'}]", "write https://host/path"},
		{"hooks: [{on: [holder], exec: [/a], timeout: 1h}]", "hooks[0].timeout: 1h is out of range"},
	} {
		_, err := parseHere(peers3 + tt.yaml)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n  %v\nwant %s", tt.yaml, err, tt.want)
		}
	}
}

func keys(changes []Change) string {
	var names []string
	for _, c := range changes {
		names = append(names, c.Key)
	}
	return strings.Join(names, " ")
}

// Keys that need a restart are named with their place, also if the value is hidden or was
// removed.
func TestChangesSayWhere(t *testing.T) {
	const base = peers3 + "linger: 1m\nadmin:\n  hosts: [a.example, b.example]\n  users:\n  - name: a\n" +
		"    passwordHash: '" + hash + "'\n"
	const other = "$2a$10$8K1p/a0dL1LXMIgoEDFrwOfMQbLgtnOoKsWc.6U6H0llP3puzeeEu"
	for _, tt := range []struct{ old, new, want string }{
		{hash, other, "[admin.users (f:8)]"},
		{", b.example", "", "[admin.hosts (f:5)]"},
		{"linger: 1m\n", "", "[linger (no longer set)]"},
		{"linger: 1m", "linger: 2m", "[linger (f:3)]"},
	} {
		c, err := parseHere(base)
		if err != nil {
			t.Fatal(err)
		}
		next, err := parseHere(strings.Replace(base, tt.old, tt.new, 1))
		if err != nil {
			t.Fatal(err)
		}
		if _, restart := c.Changes(next); fmt.Sprint(restart) != tt.want {
			t.Errorf("%q becomes %q: %v, want %s", tt.old, tt.new, restart, tt.want)
		}
	}
}

func TestChanges(t *testing.T) {
	const base = peers3 + "loadBalancers:\n- port: 6443\n  backends: [192.0.2.21]\n"
	for _, tt := range []struct{ next, live, restart string }{
		{base, "", ""},
		{base + "# a comment\n", "", ""},
		{strings.Replace(base, "192.0.2.21", "192.0.2.22", 1), "loadBalancers", ""},
		{strings.Replace(base, "[192.0.2.21]", "[192.0.2.21, 192.0.2.22]", 1), "loadBalancers", ""},
		{base + "log: {level: debug, format: json}\n", "log.level", "log.format"},
		{base + "tracks: [{exec: [/a]}]\nhooks: [{on: [holder], exec: [/a]}]\n", "tracks hooks", ""},
		{base + "dataDir: /d\nsocket: /s\ngroup: {heartbeat: 1s}\n", "", "group.heartbeat dataDir socket"},
		{strings.Replace(base, "192.0.2.13", "192.0.2.14", 1), "", "peers"},
		{strings.Replace(base, "[192.0.2.10]", "[192.0.2.20]", 1), "", "vips"},
		{peers3, "loadBalancers", ""},
		{base + "admin: {listen: [127.0.0.1:9000], path: /stats, hideVersion: true}\n", "",
			"admin.path admin.hideVersion admin.listen"},
		{base + "admin: {users: [{name: a, passwordHash: '" + hash + "'}]}\n", "", "admin.users"},
	} {
		c, err := parseHere(base)
		if err != nil {
			t.Fatal(err)
		}
		next, err := parseHere(tt.next)
		if err != nil {
			t.Fatal(err)
		}
		live, restart := c.Changes(next)
		if strings.Join(live, " ") != tt.live || keys(restart) != tt.restart {
			t.Errorf("%s: live %q, restart %q", tt.next, live, restart)
		}
		// Afterwards the same restart is needed, and nothing else.
		live, again := c.WithLive(next).Changes(next)
		if len(live) > 0 || fmt.Sprint(again) != fmt.Sprint(restart) {
			t.Errorf("%s: later live %q, restart %q", tt.next, live, again)
		}
		if got := c.WithLive(next).LoadBalancers[0].VIPs; got[0] != c.VIPs[0] {
			t.Errorf("%s: listens on %v, which is not bound", tt.next, got)
		}
	}
}
