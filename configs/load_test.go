package configs

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"appliance/balancer"
)

// source makes a Source of maps. The group key is in its default place.
func source(flags, env map[string]string) Source {
	return Source{
		Flag:       func(name string) (string, bool) { v, ok := flags[name]; return v, ok },
		Env:        func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		FileExists: func(path string) bool { return path == DefaultKeyFile },
	}
}

// noOrigin compares what is in force, and not where it came from.
var noOrigin = cmp.Options{
	cmpopts.IgnoreTypes(Origin{}),
	cmpopts.IgnoreUnexported(Config{}),
	cmpopts.IgnoreTypes(ResolverSettings{}),                                // see TestNames
	cmpopts.IgnoreFields(LogSettings{}, "Copy", "Connections", "Facility"), // see TestConnectionLog
	cmpopts.IgnoreFields(Config{}, "Admin"),                                // see admin_test.go
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

var defaultCheck = balancer.Check{Type: "https", Inter: 500 * time.Millisecond, Timeout: 2 * time.Second, Rise: 2,
	Fall:   2,
	Method: "GET", Path: "/readyz", Expect: balancer.Expect{Status: []balancer.StatusRange{{First: 200, Last: 200}}}}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// server is a backend whose other settings are the defaults.
func server(name, address string, weight int) BackendEntry {
	return BackendEntry{Backend: balancer.Backend{Name: name, Addr: netip.MustParseAddrPort(address), Weight: weight}}
}

// threePeers is what `--vip 192.0.2.10 --peers …` must mean.
func threePeers() *Config {
	return &Config{
		VIPs: []netip.Addr{addr("192.0.2.10")},
		Peers: []PeerEntry{
			{ID: "192.0.2.11", Address: addr("192.0.2.11"), Port: 10000, Role: RolePeer},
			{ID: "192.0.2.12", Address: addr("192.0.2.12"), Port: 10000, Role: RolePeer},
			{ID: "192.0.2.13", Address: addr("192.0.2.13"), Port: 10000, Role: RolePeer},
		},
		Priority:  100,
		Group:     GroupSettings{Port: 10000, KeyFile: DefaultKeyFile, Heartbeat: 150 * time.Millisecond},
		DataPlane: "auto",
		LoadBalancers: []LoadBalancerEntry{{
			Name: "kube-apiserver", Port: 6443, BindToVIP: true, VIPs: []netip.Addr{addr("192.0.2.10")},
			AddPeersAt: 6443,
			Scheduler:  "rr", DataPlane: "auto", ConnectTimeout: time.Second, ConnOptions: balancer.ConnOptions{Retries: 3},
			Check: defaultCheck, MaxFails: 3, FailTimeout: 10 * time.Second,
			Backends: []BackendEntry{
				server("", "192.0.2.11:6443", 1),
				server("", "192.0.2.12:6443", 1),
				server("", "192.0.2.13:6443", 1),
			},
		}},
		DataDir: "/var/lib/appliance", Socket: "/run/appliance/appliance.sock", Linger: 30 * time.Second,
		Log: LogSettings{Level: "info", Format: "text"},
		Announce: AnnounceSettings{
			Grace: time.Second, TunnelPort: 10002, BGP: BGPSettings{Port: 179, HoldTime: 9 * time.Second},
			Routes: RouteSettings{Table: 254, Protocol: 86},
		},
	}
}

func TestLoadFromFlagsAlone(t *testing.T) {
	got, err := Load("", source(map[string]string{"vip": "192.0.2.10", "peers": "192.0.2.11,192.0.2.12, 192.0.2.13"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(threePeers(), got, noOrigin); diff != "" {
		t.Error(diff)
	}
}

// The reference file has the values that are in force without it.
func TestReferenceIsTheDefaults(t *testing.T) {
	got, err := Parse("reference.yaml", Sample(), source(nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	want := threePeers()
	want.LoadBalancers[0].AddPeersAt = 0 // it writes them down
	if diff := cmp.Diff(want, got, noOrigin); diff != "" {
		t.Error(diff)
	}
	for _, v := range got.Show() {
		s, ok := setting(v.Key)
		if !ok {
			t.Errorf("config show has %s, which is no setting", v.Key)
		} else if s.Default != "" && v.Value != s.Default {
			t.Errorf("%s is %s in the reference file, but its default is %s", v.Key, v.Value, s.Default)
		}
	}
}

func TestFiles(t *testing.T) {
	api := func(lb LoadBalancerEntry, vips ...netip.Addr) LoadBalancerEntry {
		lb.BindToVIP, lb.VIPs, lb.ConnectTimeout = true, vips, time.Second
		lb.MaxFails, lb.FailTimeout = 3, 10*time.Second
		lb.ConnOptions.Retries = 3
		if lb.Scheduler == "" {
			lb.Scheduler = "rr"
		}
		if lb.DataPlane == "" {
			lb.DataPlane = "auto"
		}
		if lb.Check.Type == "" {
			lb.Check = defaultCheck
		}
		return lb
	}
	base := func() *Config {
		c := threePeers()
		c.LoadBalancers = nil
		return c
	}
	tests := []struct {
		file     string
		want     func() *Config
		warnings []string
	}{
		{
			file: "kube-vip-0.1.yaml",
			want: func() *Config {
				c := base()
				c.ID, c.Interface, c.StartAsLeader, c.VIPs = "server1", "ens192", true, []netip.Addr{addr("192.0.2.75")}
				c.Peers = []PeerEntry{
					{ID: "server1", Address: addr("192.0.2.70"), Port: 10000, Role: RolePeer},
					{ID: "server2", Address: addr("192.0.2.71"), Port: 10000, Role: RolePeer},
					{ID: "server3", Address: addr("192.0.2.72"), Port: 10000, Role: RolePeer},
				}
				c.LoadBalancers = []LoadBalancerEntry{api(LoadBalancerEntry{Name: "Kubernetes Control Plane", Port: 6443,
					Backends: []BackendEntry{
						server("", "192.0.2.70:6444", 1),
						server("", "192.0.2.71:6444", 1),
						server("", "192.0.2.72:6444", 1),
					}}, c.VIPs...)}
				return c
			},
			warnings: []string{"testdata/kube-vip-0.1.yaml:14: gratuitousARP: is not needed any more: " +
				"the holder always announces itself; remove the line"},
		},
		{
			file: "kube-vip-0.1-dumped.yaml",
			want: func() *Config {
				c := base()
				c.ID, c.Interface, c.VIPs = "cp01", "ens18", []netip.Addr{addr("192.0.2.20")}
				c.Peers = []PeerEntry{
					{ID: "cp01", Address: addr("192.0.2.21"), Port: 10000, Role: RolePeer},
					{ID: "cp02", Address: addr("192.0.2.22"), Port: 10000, Role: RolePeer},
					{ID: "cp03", Address: addr("192.0.2.23"), Port: 10000, Role: RolePeer},
				}
				c.LoadBalancers = []LoadBalancerEntry{api(LoadBalancerEntry{Name: "Kubernetes Control Plane", Port: 8443,
					AddPeersAt: 6444, Backends: []BackendEntry{
						server("", "192.0.2.21:6444", 1),
						server("cp02", "192.0.2.22:6444", 1),
						server("cp03", "192.0.2.23:6444", 1),
					}}, c.VIPs...)}
				return c
			},
			warnings: []string{
				"testdata/kube-vip-0.1-dumped.yaml:1: AddPeersAsBackends: is read as addPeersAsBackends; " +
					"write keys as the reference file does",
				"testdata/kube-vip-0.1-dumped.yaml:2: EnableLeaderElection: has no effect: " +
					"the peers elect among themselves, without Kubernetes; remove the line",
				"testdata/kube-vip-0.1-dumped.yaml:3: GratuitousARP: is not needed any more: " +
					"the holder always announces itself; remove the line",
				"testdata/kube-vip-0.1-dumped.yaml:5: LeaseDuration: has no effect: " +
					"group.heartbeat is the time after which peers elect; remove the line",
				"testdata/kube-vip-0.1-dumped.yaml:10: loadBalancers[0].backends[0].ParsedURL: has no effect: url says it; " +
					"remove the line",
				"testdata/kube-vip-0.1-dumped.yaml:16: loadBalancers[0].type: http is carried as tcp, unread; write tcp",
			},
		},
		{
			file: "kube-vip-0.1-single.yaml",
			want: func() *Config {
				c := base()
				c.ID, c.SingleNode, c.VIPs = "only", true, []netip.Addr{addr("192.0.2.75")}
				c.Peers = []PeerEntry{{ID: "only", Address: addr("192.0.2.70"), Port: 10000, Role: RolePeer}}
				c.LoadBalancers = []LoadBalancerEntry{api(LoadBalancerEntry{Name: "api", Port: 6443,
					Backends: []BackendEntry{server("", "192.0.2.70:6443", 1)}}, c.VIPs...)}
				return c
			},
		},
		{
			file: "dual-stack.yaml",
			want: func() *Config {
				c := base()
				c.VIPs = []netip.Addr{addr("192.0.2.10"), addr("2001:db8::10")}
				c.DataPlane = "nftables"
				c.Peers = []PeerEntry{
					{ID: "a", Address: addr("192.0.2.11"), Port: 10000, Role: RolePeer},
					{ID: "b", Address: addr("192.0.2.12"), Port: 10001, Role: RolePeer},
					{ID: "w", Address: addr("2001:db8::13"), Port: 10002, Role: RoleWitness},
				}
				c.Group = GroupSettings{Port: 10000, CAFile: "/etc/appliance/ca.crt", CertFile: "/etc/appliance/peer.crt",
					CertKeyFile: "/etc/appliance/peer.key", Heartbeat: time.Second}
				c.LoadBalancers = []LoadBalancerEntry{
					api(LoadBalancerEntry{Name: "lb-6443", Port: 6443, AddPeersAt: 6443, Backends: []BackendEntry{
						server("a", "192.0.2.11:6443", 1),
						server("b", "192.0.2.12:6443", 1),
					}}, c.VIPs...),
					api(LoadBalancerEntry{Name: "https", Port: 443, Scheduler: "wlc", DataPlane: "nftables",
						Check: balancer.Check{Type: "tcp", Inter: 2 * time.Second, Timeout: time.Second, Rise: 3, Fall: 4},
						Backends: []BackendEntry{
							server("", "192.0.2.31:8443", 1),
							server("", "[2001:db8::31]:9443", 1),
							server("big", "192.0.2.32:8443", 3),
						}}, c.VIPs...),
				}
				return c
			},
			warnings: []string{"testdata/dual-stack.yaml:1: vips[0]: /24 is ignored: " +
				"a virtual address is bound as a host address; write 192.0.2.10"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			got, err := Load(filepath.Join("testdata", tt.file), source(nil, nil))
			if err != nil {
				t.Fatal(err)
			}
			var warnings []string
			for _, w := range got.Warnings {
				warnings = append(warnings, w.String())
			}
			if diff := cmp.Diff(tt.warnings, warnings); diff != "" {
				t.Error("warnings:", diff)
			}
			shown := map[string]bool{}
			for _, v := range got.Show() {
				if shown[v.Key] {
					t.Errorf("config show has %s twice", v.Key)
				}
				shown[v.Key] = true
			}
			got.Warnings = nil
			if diff := cmp.Diff(tt.want(), got, noOrigin); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPrecedence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	file := "vips: [192.0.2.10]\npeers: [192.0.2.11]\nsingleNode: true\nlog:\n  level: warn\ninterface: eth0\n" +
		"dataDir: /file\n"
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load("", source(
		map[string]string{"config": path, "interface": "eth2", "vip": "192.0.2.9"},
		map[string]string{"APPLIANCE_INTERFACE": "eth1", "APPLIANCE_DATA_DIR": "/env", "APPLIANCE_SOCKET": "",
			"APPLIANCE_VIP": "192.0.2.8"},
	))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"vips[0]":          "192.0.2.9 from flag --vip",
		"interface":        "eth2 from flag --interface",
		"dataDir":          "/env from env APPLIANCE_DATA_DIR",
		"log.level":        "warn from " + path + ":5",
		"log.format":       "text from default",
		"socket":           "/run/appliance/appliance.sock from default",
		"peers[0].address": "192.0.2.11:10000 from " + path + ":2",
	}
	for _, v := range got.Show() {
		if w, ok := want[v.Key]; ok && w != v.Value+" from "+v.Origin.String() {
			t.Errorf("%s is %s from %s, want %s", v.Key, v.Value, v.Origin, w)
		}
		delete(want, v.Key)
	}
	for key := range want {
		t.Errorf("config show lacks %s", key)
	}
	if len(got.VIPs) != 1 || got.VIPs[0] != addr("192.0.2.9") {
		t.Errorf("VIPs are %v: the flag's must replace the file's", got.VIPs)
	}
}

// The flag --peers replaces every form in which the file can list the group.
func TestPeersAreNamedInPlace(t *testing.T) {
	cfg, err := Parse("f", []byte("vips: [192.0.2.10]\npeers: [a=192.0.2.11, {address: "+
		"\"b=[2001:db8::1]:11\"}, 192.0.2.13]\ngroup: {insecure: true}\n"), Source{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range cfg.Peers {
		got = append(got, p.ID+" "+p.AddrPort().String())
	}
	want := []string{"a 192.0.2.11:10000", "b [2001:db8::1]:11", "192.0.2.13 192.0.2.13:10000"}
	if !slices.Equal(got, want) {
		t.Errorf("peers %q, want %q", got, want)
	}
	_, err = Parse("f", []byte("vips: [192.0.2.10]\npeers:\n- id: a\n  address: b=192.0.2.11\nsingleNode: true\n"),
		Source{})
	if err == nil || !strings.Contains(err.Error(), "f:3: peers[0].id: is a, but the address says b") {
		t.Errorf("two names for one peer: error %v", err)
	}
}

// Hosts of both families serve clients of both, each family with its own backends.
func TestPeersOfBothFamiliesAreBackends(t *testing.T) {
	const rest = "group: {insecure: true}\nloadBalancers:\n- port: 6443\n  backends: [192.0.2.50]\n"
	for name, tt := range map[string]struct {
		vips, peers string
		want        string
		warnings    int
	}{
		"both families": {"192.0.2.10, '2001:db8::10'", "a=192.0.2.11+2001:db8::11, {address: 192.0.2.12, addresses: " +
			"['2001:db8::12']}, w=192.0.2.13",
			"a 192.0.2.11:6443, a [2001:db8::11]:6443,  192.0.2.12:6443,  [2001:db8::12]:6443, w 192.0.2.13:6443", 1},
		"one family": {"'2001:db8::10'", "a=192.0.2.11+2001:db8::11, b=192.0.2.12+2001:db8::12, " +
			"c=2001:db8::13", "a [2001:db8::11]:6443, b [2001:db8::12]:6443, c [2001:db8::13]:6443", 0},
		"two cards": {"192.0.2.10", "a=192.0.2.11+192.0.2.111, b=192.0.2.12, c=192.0.2.13",
			"a 192.0.2.11:6443, b 192.0.2.12:6443, c 192.0.2.13:6443", 0},
		"none of the VIPs' family": {"'2001:db8::10'", "a=192.0.2.11, b=192.0.2.12, c=192.0.2.13",
			"a 192.0.2.11:6443, b 192.0.2.12:6443, c 192.0.2.13:6443", 0},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := Parse("f", []byte("vips: ["+tt.vips+"]\npeers: ["+tt.peers+"]\naddPeersAsBackends: true\n"+rest),
				Source{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, b := range cfg.LoadBalancers[0].Backends[1:] {
				got = append(got, b.Name+" "+b.Addr.String())
			}
			if all := strings.Join(got, ", "); all != tt.want {
				t.Errorf("backends %s\nwant     %s", all, tt.want)
			}
			n := 0
			for _, w := range cfg.Warnings {
				if strings.Contains(w.Text, "get the servers of other peers only") {
					n++
				}
			}
			if n != tt.warnings {
				t.Errorf("%d warnings about families, want %d: %v", n, tt.warnings, cfg.Warnings)
			}
		})
	}
}

func TestPeersFlagReplacesKubeVIPsGroup(t *testing.T) {
	got, err := Load("testdata/kube-vip-0.1.yaml", source(map[string]string{"peers": "192.0.2.1,192.0.2.2,192.0.2.3"},
		nil))
	if err != nil {
		t.Fatal(err)
	}
	if ids := peerIDs(got.Peers); ids != "192.0.2.1, 192.0.2.2, 192.0.2.3" || got.ID != "" {
		t.Errorf("peers are %s and this one %q", ids, got.ID)
	}
}

func TestGroupKeyAtItsDefaultPlace(t *testing.T) {
	flags := map[string]string{"vip": "192.0.2.10", "peers": "192.0.2.11,192.0.2.12,192.0.2.13"}
	src := source(flags, nil)
	src.FileExists = func(string) bool { return false }
	_, err := Load("", src)
	if err == nil || !strings.Contains(err.Error(), "appliance keygen > "+DefaultKeyFile) {
		t.Errorf("without a key: %v, want the remedy", err)
	}
	flags["insecure"] = "true"
	c, err := Load("", source(flags, nil))
	if err != nil {
		t.Fatal(err)
	}
	if c.Group.KeyFile != "" {
		t.Error("--insecure was said, but the key at the default place is used")
	}
	if len(c.Warnings) != 1 || c.Warnings[0].Key != "group.insecure" {
		t.Errorf("warnings are %v, want one about --insecure", c.Warnings)
	}
}

func TestTwoVotersAreExplained(t *testing.T) {
	c, err := Load("", source(map[string]string{"vip": "192.0.2.10", "peers": "192.0.2.11,192.0.2.12"}, nil))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0].Text, "role: witness") {
		t.Errorf("warnings are %v, want what two voters mean", c.Warnings)
	}
}

func TestArgsPassEverythingOn(t *testing.T) {
	src := source(map[string]string{"peers": "192.0.2.11,192.0.2.12", "insecure": "true"},
		map[string]string{"APPLIANCE_VIP": "192.0.2.10"})
	want := []string{"--vip=192.0.2.10", "--peers=192.0.2.11,192.0.2.12", "--insecure=true"}
	if diff := cmp.Diff(want, src.Args()); diff != "" {
		t.Error(diff)
	}
}

func TestJoin(t *testing.T) {
	got, err := Parse("", nil, source(map[string]string{
		"vip": "192.0.2.10", "join": "192.0.2.11,[2001:db8::12]:10001", "group-key": "/k", "priority": "7",
	}, nil))
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.11:10000"), netip.MustParseAddrPort("[2001:db8::12]:10001")}
	if diff := cmp.Diff(want, got.Join, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if got.Priority != 7 || len(got.Peers) != 0 || len(got.LoadBalancers) != 1 || got.LoadBalancers[0].AddPeersAt != 6443 {
		t.Errorf("%+v", got)
	}
	for text, want := range map[string]string{
		"startAsLeader: true":              "startAsLeader: true begins one",
		"group: {preempt: now}":            "is none of off, immediate",
		"join: [192.0.2.10]":               "is a virtual address",
		"join: [192.0.2.9]\nrole: nothing": "is not known",
	} {
		flags := map[string]string{"vip": "192.0.2.10"}
		if !strings.Contains(text, "join") {
			flags["join"] = "192.0.2.11"
		}
		flags["group-key"] = "/k"
		if _, err := Parse("f", []byte(text), source(flags, nil)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	for text, want := range map[string]Preempt{"off": {}, "immediate": {On: true},
		"5m": {On: true, After: 5 * time.Minute}} {
		got, err := Parse("f", []byte("group: {preempt: \""+text+"\"}"),
			source(map[string]string{"vip": "192.0.2.10", "join": "192.0.2.11", "group-key": "/k"}, nil))
		if err != nil || got.Group.Preempt != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

// TestFlagsOfTheLoadBalancer: --listen leaves what other flags say of the one load balancer.
func TestFlagsOfTheLoadBalancer(t *testing.T) {
	set := map[string]string{
		"vip": "192.0.2.10", "peers": "192.0.2.11,192.0.2.12,192.0.2.13", "lb-port": "443", "listen": "127.0.0.1",
		"backend-port": "6443", "check": "tcp",
	}
	for name, src := range map[string]Source{
		"flags": source(set, nil),
		"environment": source(nil, map[string]string{
			"APPLIANCE_VIP": set["vip"], "APPLIANCE_PEERS": set["peers"], "APPLIANCE_LB_PORT": set["lb-port"],
			"APPLIANCE_LISTEN": set["listen"], "APPLIANCE_BACKEND_PORT": set["backend-port"], "APPLIANCE_CHECK": set["check"],
		}),
	} {
		cfg, err := Parse("", nil, src)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		lb := cfg.LoadBalancers[0]
		if lb.Port != 443 || !slices.Equal(lb.Listen, []netip.Addr{addr("127.0.0.1")}) || lb.Check.Type != "tcp" ||
			lb.Backends[0].Addr != netip.MustParseAddrPort("192.0.2.11:6443") {
			t.Errorf("%s: port %d, listen %v, check %s, backends %v", name, lb.Port, lb.Listen, lb.Check.Type, lb.Backends)
		}
	}
}
