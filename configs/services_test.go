package configs

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"appliance/balancer"
)

// The balancer gets everything that the file says about connections and checks.
func TestForBalancerIsWhole(t *testing.T) {
	c, err := Parse("f", []byte(`vips: [192.0.2.10]
peers: [192.0.2.11, 192.0.2.12, 192.0.2.13]
loadBalancers:
- name: all
  port: 6443
  scheduler: wlc
  dataPlane: userspace
  timeouts: {connect: 2s, client: 3s, server: 4s, queue: 5s}
  maxconn: 1
  persistence: 6s
  retries: 7
  requireTLS: 1s
  acceptProxy: true
  acceptProxyFrom: [192.0.2.0/24]
  sendProxy: v1
  log: json
  logBegin: text
  logEvery: 10
  logRate: 11
  allow: [192.0.2.0/24]
  deny: [192.0.2.66]
  maxFails: 8
  failTimeout: 9s
  whenAllDown: try
  onMarkedDown: keep
  onMarkedUp: shutdown-backup-sessions
  backends:
  - {address: 192.0.2.21, name: a, weight: 2, maxconn: 3, maxqueue: 4, slowstart: 5s, onMarkedDown: shutdown-sessions,
    maxFails: 0, failTimeout: 7s}
  - {address: 192.0.2.22, backup: true, disabled: true, maxFails: 6, sendProxy: "off", check: {port: 1}}
`), source(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	own := defaultCheck
	own.Port = 1
	net := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	want := []balancer.LoadBalancer{{
		Name: "all", Scheduler: balancer.WeightedLeastConn, Plane: balancer.UserSpace,
		Frontends:      []netip.AddrPort{netip.MustParseAddrPort("192.0.2.10:6443")},
		ConnectTimeout: 2 * time.Second, MaxFails: 8, FailTimeout: 9 * time.Second, TryDown: true, Check: defaultCheck,
		ConnOptions: balancer.ConnOptions{
			MaxConn: 1, Persistence: 6 * time.Second, ClientTimeout: 3 * time.Second, ServerTimeout: 4 * time.Second,
			QueueTimeout: 5 * time.Second, Retries: 7, RequireTLS: time.Second, AcceptProxyFrom: net, SendProxy: "v1",
			Log: "json", LogBegin: "text", LogEvery: 10, LogRate: 11,
			Allow: net, Deny: []netip.Prefix{netip.MustParsePrefix("192.0.2.66/32")}, KeepDown: true, EndBackup: true,
		},
		Backends: []balancer.Backend{
			{Name: "a", Addr: netip.MustParseAddrPort("192.0.2.21:6443"), Weight: 2, MaxConn: 3, MaxQueue: 4,
				SlowStart: 5 * time.Second, OnMarkedDown: balancer.EndSessions, MaxFails: balancer.NeverOut,
				FailTimeout: 7 * time.Second},
			{Addr: netip.MustParseAddrPort("192.0.2.22:6443"), Weight: 1, Backup: true, Disabled: true, SendProxy: "off",
				MaxFails: 6, Check: &own},
		},
	}}
	got := c.ForBalancer()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
	// A field that somebody adds must not be forgotten here.
	for _, v := range []reflect.Value{reflect.ValueOf(got[0]), reflect.ValueOf(got[0].ConnOptions)} {
		for i := range v.NumField() {
			if v.Field(i).IsZero() && v.Type().Field(i).Name != "Missing" { // see TestNames
				t.Errorf("%s is lost", v.Type().Field(i).Name)
			}
		}
	}
}

// retries: 0 means none, not the balancer's default.
func TestNoRetries(t *testing.T) {
	c, err := parseHere(peers3 + "loadBalancers: [{port: 6443, retries: 0, backends: [192.0.2.21]}]\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.ForBalancer()[0].ConnOptions.Retries; got >= 0 {
		t.Errorf("retries: 0 became %d", got)
	}
}

func TestForBalancerFrontends(t *testing.T) {
	vips := []netip.Addr{addr("192.0.2.10"), addr("2001:db8::10")}
	both := []BackendEntry{server("a", "192.0.2.11:6443", 1), server("a", "[2001:db8::11]:6443", 1)}
	for _, tt := range []struct {
		name string
		in   LoadBalancerEntry
		want []string
	}{
		{"one family", LoadBalancerEntry{BindToVIP: true, VIPs: vips[:1], Backends: both},
			[]string{"lb auto [192.0.2.10:6443] to [192.0.2.11:6443 [2001:db8::11]:6443]"}},
		{"both families", LoadBalancerEntry{BindToVIP: true, VIPs: vips, Backends: both},
			[]string{
				"lb auto [192.0.2.10:6443] to [192.0.2.11:6443]",
				"lb-ipv6 auto [[2001:db8::10]:6443] to [[2001:db8::11]:6443]",
			}},
		{"every address", LoadBalancerEntry{Backends: both},
			[]string{
				"lb auto [0.0.0.0:6443] to [192.0.2.11:6443]",
				"lb-ipv6 auto [[::]:6443] to [[2001:db8::11]:6443]",
			}},
		{"a server of both families is there once for the node itself",
			LoadBalancerEntry{BindToVIP: true, Listen: []netip.Addr{addr("127.0.0.1"), addr("::1")}, Backends: both},
			[]string{"lb-local userspace [127.0.0.1:6443 [::1]:6443] to [192.0.2.11:6443]"}},
		{"a worker that listens nowhere", LoadBalancerEntry{BindToVIP: true, Backends: both}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.in.Name, tt.in.Port, tt.in.DataPlane = "lb", 6443, balancer.Auto
			var got []string
			for _, lb := range tt.in.ForBalancer() {
				var servers []netip.AddrPort
				for _, b := range lb.Backends {
					servers = append(servers, b.Addr)
				}
				got = append(got, fmt.Sprint(lb.Name, " ", lb.Plane, " ", lb.Frontends, " to ", servers))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestByFamily(t *testing.T) {
	at := netip.MustParseAddrPort
	four, six := at("192.0.2.10:6443"), at("[2001:db8::10]:6443")
	backend4 := balancer.Backend{Addr: at("192.0.2.11:6443")}
	backend6 := balancer.Backend{Addr: at("[2001:db8::11]:6443")}
	type lb = balancer.LoadBalancer
	for name, test := range map[string]struct {
		in   lb
		want []lb
	}{
		"one family stays whole": {
			lb{Name: "a", Frontends: []netip.AddrPort{four}, Backends: []balancer.Backend{backend4, backend6}},
			[]lb{{Name: "a", Frontends: []netip.AddrPort{four}, Backends: []balancer.Backend{backend4, backend6}}},
		},
		"each family has its own backends": {
			lb{Name: "a", Frontends: []netip.AddrPort{six, four}, Backends: []balancer.Backend{backend4, backend6}},
			[]lb{
				{Name: "a", Frontends: []netip.AddrPort{four}, Backends: []balancer.Backend{backend4}},
				{Name: "a-ipv6", Frontends: []netip.AddrPort{six}, Backends: []balancer.Backend{backend6}},
			},
		},
		"a family without backends borrows": {
			lb{Name: "a", Frontends: []netip.AddrPort{four, six}, Backends: []balancer.Backend{backend4}},
			[]lb{
				{Name: "a", Frontends: []netip.AddrPort{four}, Backends: []balancer.Backend{backend4}},
				{Name: "a-ipv6", Frontends: []netip.AddrPort{six}, Backends: []balancer.Backend{backend4}},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(test.want, byFamily(test.in), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestNames: servers by name have a name and a port, and are missing until they have an address.
func TestNames(t *testing.T) {
	c, err := parseHere(peers3 + "loadBalancers:\n- port: 6443\n  dataPlane: nftables\n  backends:\n" +
		"  - API.example.org.\n  - {address: 'db.example.org:5432', name: db, maxAddresses: 1, weight: 2}\n" +
		"  - url: https://web\n  - 192.0.2.21\nresolver: {nameservers: [192.0.2.53, '[2001:db8::53]:5353'], minTTL: 1s}\n")
	if err != nil {
		t.Fatal(err)
	}
	var where []string
	for _, be := range c.LoadBalancers[0].Backends {
		where = append(where, be.Where())
	}
	wanted := []string{"api.example.org:6443", "db.example.org:5432", "web:443", "192.0.2.21:6443"}
	if !slices.Equal(where, wanted) {
		t.Errorf("backends %v, want %v", where, wanted)
	}
	if want := []string{"api.example.org", "db.example.org", "web"}; !slices.Equal(c.Hosts(), want) {
		t.Errorf("names %v, want %v", c.Hosts(), want)
	}
	lb := c.ForBalancer()[0]
	if len(lb.Backends) != 1 || len(lb.Missing) != 3 || lb.Missing[0].Name != "api.example.org:6443" ||
		lb.Missing[1].Name != "db" || lb.Missing[1].Reason == "" {
		t.Errorf("backends %v, missing %v", lb.Backends, lb.Missing)
	}
	want := ResolverSettings{MinTTL: time.Second, MaxTTL: 5 * time.Minute, Nameservers: []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("[2001:db8::53]:5353")}}
	if !reflect.DeepEqual(c.Resolver, want) {
		t.Errorf("%+v", c.Resolver)
	}
}

func TestConnectionLog(t *testing.T) {
	c, err := parseHere(peers3 + "loadBalancers:\n- {port: 1, log: text, backends: [192.0.2.21]}\n" +
		"- {port: 2, backends: [192.0.2.21]}\n" +
		"log: {connections: 'udp://[2001:db8::5]:514', facility: local7, copy: syslog}\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.LoadBalancers[0].ConnOptions.Log != "text" || c.LoadBalancers[1].ConnOptions.Log != "" ||
		c.Log.Connections != "udp://[2001:db8::5]:514" || c.Log.Facility != "local7" || c.Log.Copy != "syslog" {
		t.Errorf("%+v, %+v", c.LoadBalancers, c.Log)
	}
	for text, want := range map[string]string{
		"log: {copy: stderr}":                   "log.copy: stderr is none of off, syslog, unix:/path",
		"log: {connections: relative}":          "log.connections: relative is none of stderr, syslog, unix:/path",
		"log: {connections: 'udp://host:514'}":  "udp://host:514 is no address and port; write udp://192.0.2.5:514",
		"log: {connections: 'tcp:192.0.2.1:1'}": "is no address and port; write tcp://192.0.2.5:514",
		"loadBalancers: [{port: 1, logBegin: text, bindToVip: false, backends: [192.0.2.21]}]": "logBegin: is for virtual " +
			"addresses, and lb-1 is served on none; remove it, or write vips",
		"loadBalancers: [{port: 1, logRate: 9, backends: [192.0.2.21]}]": "logRate: has no effect " +
			"without a log; write log: text",
		"loadBalancers: [{port: 1, log: text, logEvery: 0, backends: [192.0.2.21]}]": "logEvery: 0 is not",
		"log: {facility: local9}": "log.facility: local9 is not known; did you mean local",
		"loadBalancers: [{port: 1, log: text, dataPlane: nftables, backends: [192.0.2.21]}]": "log: is done by user space, " +
			"but dataPlane is nftables; write dataPlane: auto or userspace, or remove it",
	} {
		if _, err := parseHere(peers3 + text + "\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", text, err, want)
		}
	}
}
