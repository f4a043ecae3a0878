package doctor

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"appliance/configs"
	"appliance/nft/ruleset"
)

// fakeHost answers what a test wants. Its zero value is a host in good order, with eth0 at 192.0.2.11/24.
type fakeHost struct {
	files    fstest.MapFS
	ifs      []Interface
	answers  map[string][]net.HardwareAddr // by address
	askErr   error
	rules    error
	assign   error
	taken    error
	chains   []ruleset.ForeignChain
	readOnly bool
	trip     time.Duration
	dial     map[string]error // by address and port
	datagram error
	cert     *x509.Certificate
	commit   time.Duration
	diskErr  error
	noNTP    bool
}

var (
	peerMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	otherMAC = net.HardwareAddr{0, 0, 0x5e, 0, 1, 0x33}
)

func (h *fakeHost) Files() fs.FS { return h.files }

func (h *fakeHost) Interfaces() ([]Interface, error) {
	if h.ifs != nil {
		return h.ifs, nil
	}
	return []Interface{
		{Name: "lo", MTU: 65536, Up: true, Carrier: true, Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}},
		{Name: "eth0", MTU: 1500, Up: true, Carrier: true, Addrs: []netip.Prefix{
			netip.MustParsePrefix("192.0.2.11/24"), netip.MustParsePrefix("2001:db8::11/64"),
		}},
	}, nil
}

func (h *fakeHost) FindInterface(vip netip.Addr, _ string) (string, error) {
	ifs, _ := h.Interfaces()
	for _, i := range ifs {
		if slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Contains(vip) && !p.IsSingleIP() }) {
			return i.Name, nil
		}
	}
	return "", errors.New("no interface has VIP " + vip.String() + " in its subnet")
}

func (h *fakeHost) Ask(_ string, addr netip.Addr) ([]net.HardwareAddr, error) {
	return h.answers[addr.String()], h.askErr
}
func (h *fakeHost) TryRules() error                         { return h.rules }
func (h *fakeHost) TryAssign() error                        { return h.assign }
func (h *fakeHost) Taken([]netip.AddrPort) error            { return h.taken }
func (h *fakeHost) Chains() ([]ruleset.ForeignChain, error) { return h.chains, nil }
func (h *fakeHost) Writable(string) bool                    { return !h.readOnly }
func (h *fakeHost) ClockSynchronised() (bool, error)        { return !h.noNTP, nil }
func (h *fakeHost) Commit(string) ([]time.Duration, error) {
	return []time.Duration{h.commit}, h.diskErr
}

func (h *fakeHost) Dial(_ context.Context, to netip.AddrPort) (time.Duration, error) {
	return max(h.trip, time.Microsecond), h.dial[to.String()]
}
func (h *fakeHost) Datagram(context.Context, netip.AddrPort) error { return h.datagram }

func (h *fakeHost) Certificate(context.Context, netip.AddrPort) (*x509.Certificate, error) {
	if h.cert == nil {
		return nil, syscall.ECONNREFUSED
	}
	return h.cert, nil
}

// goodFiles is a host in good order.
func goodFiles(more map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for path, text := range map[string]string{
		"proc/self/status":                        "Name:\tx\nCapEff:\t000001ffffffffff\n",
		"proc/sys/kernel/hostname":                "node1\n",
		"proc/sys/kernel/osrelease":               "6.1.0-18-amd64\n",
		"proc/sys/net/ipv4/ip_forward":            "1\n",
		"proc/sys/net/ipv6/conf/all/forwarding":   "1\n",
		"proc/sys/net/ipv6/conf/all/disable_ipv6": "0\n",
		"proc/net/ip_vs":                          "",
		"proc/net/tcp":                            socketsHeader,
		"proc/net/udp":                            socketsHeader,
		"sys/class/dmi/id/sys_vendor":             "Dell Inc.\n",
		"sys/class/dmi/id/product_name":           "PowerEdge\n",
	} {
		m[path] = &fstest.MapFile{Data: []byte(text), Mode: 0o644}
	}
	for path, text := range more {
		m[path] = &fstest.MapFile{Data: []byte(text), Mode: 0o600}
	}
	return m
}

const socketsHeader = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout " +
	"inode\n"

// socketLine is a line of /proc/net/tcp on a little-endian machine.
func socketLine(at, state, inode string) string {
	return "   0: " + at + " 00000000:0000 " + state + " 00000000:00000000 00:00000000 00000000     0        0 " + inode +
		" 1 0000000000000000 100 0 0 10 0\n"
}

func load(t *testing.T, text string) *configs.Config {
	t.Helper()
	cfg, err := configs.Parse("test", []byte(text), configs.Source{FileExists: func(string) bool { return false }})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

const three = "vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\ngroup: {insecure: true}\n"

func TestExamine(t *testing.T) {
	vip := "192.0.2.10"
	withCert := func(names []string, ips ...string) *x509.Certificate {
		c := &x509.Certificate{DNSNames: names}
		for _, ip := range ips {
			c.IPAddresses = append(c.IPAddresses, net.ParseIP(ip))
		}
		return c
	}
	kube := []string{"kubernetes", "kubernetes.default.svc", "node1"}
	for name, tt := range map[string]struct {
		change   func(*fakeHost)
		cfg      string
		severity Severity
		check    string
		what     string // part of What
		mend     string // part of Mend
	}{
		"not root": {func(h *fakeHost) { h.files["proc/self/status"].Data = []byte("CapEff:\t0000000000002000\n") }, three,
			Problem, "privileges", "lacks CAP_NET_ADMIN", "as root"},
		"no nf_tables": {func(h *fakeHost) { h.rules = errors.New("no nf_tables") }, three, Problem, "nf_tables",
			"no nf_tables", "modprobe"},
		"no tproxy": {func(h *fakeHost) { h.assign = errors.New("no such expression") }, three, Hint, "nf_tables",
			"nft_tproxy", "ct status dnat"},
		"ipvs there": {nil, three, Fine, "ip_vs", "loaded", ""},
		"ipvs forced": {func(h *fakeHost) { delete(h.files, "proc/net/ip_vs") }, three + "dataPlane: ipvs\n", Problem,
			"ip_vs", "asks for it", "linux-image"},
		"ipvs as module": {func(h *fakeHost) {
			delete(h.files, "proc/net/ip_vs")
			h.files["lib/modules/6.1.0-18-amd64/modules.dep"] = &fstest.MapFile{Data: []byte(
				"kernel/net/netfilter/ipvs/ip_vs.ko.xz: kernel/x.ko\n")}
		}, three, Fine, "ip_vs", "module", ""},
		"old kernel": {func(h *fakeHost) { h.files["proc/sys/kernel/osrelease"].Data = []byte("5.10.0-1\n") }, three,
			Hint, "kernel", "5.18", "cleanup --vip"},
		"no IPv6": {func(h *fakeHost) { h.files["proc/sys/net/ipv6/conf/all/disable_ipv6"].Data = []byte("1\n") },
			strings.Replace(three, vip, "2001:db8::10", 1), Problem, "ipv6", "is off", "disable_ipv6=0"},
		"outside": {nil, strings.Replace(three, vip, "198.51.100.1", 1), Problem, "interface", "198.51.100.1",
			"ip -brief"},
		"no carrier": {func(h *fakeHost) { h.ifs, _ = h.Interfaces(); h.ifs[1].Carrier = false }, three, Problem,
			"interface", "no carrier", "cable"},
		"down": {func(h *fakeHost) { h.ifs, _ = h.Interfaces(); h.ifs[1].Up = false }, three, Problem, "interface",
			"is down", "set eth0 up"},
		"small MTU": {func(h *fakeHost) { h.ifs, _ = h.Interfaces(); h.ifs[1].MTU = 1450 }, three, Hint, "mtu", "1450",
			"ip -brief"},
		"not a peer": {nil, strings.Replace(three, "192.0.2.11", "192.0.2.14", 1), Problem, "self", "none is this host",
			"--id"},
		"free": {nil, three, Fine, "vip-free", "nobody else", ""},
		"taken by VRRP": {func(h *fakeHost) { h.answers[vip] = []net.HardwareAddr{otherMAC} }, three, Problem, "vip-free",
			"VRRP router", "arping"},
		"held by a peer": {func(h *fakeHost) { h.answers[vip] = []net.HardwareAddr{peerMAC} }, three, Fine, "vip-free",
			"the peer 192.0.2.12", ""},
		"two answer": {func(h *fakeHost) { h.answers[vip] = []net.HardwareAddr{peerMAC, otherMAC} }, three, Problem,
			"vip-free", " and ", "arping"},
		"cannot ask": {func(h *fakeHost) { h.askErr = errors.New("not permitted") }, three, Hint, "vip-free", "unknown",
			"root"},
		"bound by others": {func(h *fakeHost) {
			h.ifs, _ = h.Interfaces()
			h.ifs[1].Addrs = append(h.ifs[1].Addrs, netip.MustParsePrefix("192.0.2.10/32"))
		}, three, Problem, "vip-here", "bound to eth0", "ip address del"},
		"on kube-ipvs0": {func(h *fakeHost) {
			h.ifs, _ = h.Interfaces()
			h.ifs = append(h.ifs, Interface{Name: "kube-ipvs0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/32")}})
		}, three, Problem, "vip-here", "kube-ipvs0", "externalIPs"},
		"kube-proxy ipvs": {func(h *fakeHost) {
			h.ifs, _ = h.Interfaces()
			h.ifs = append(h.ifs,
				Interface{Name: "kube-ipvs0"})
		}, three, Hint, "kube-proxy", "mode ipvs", "excludeCIDRs: [192.0.2.10/32]"},
		"kube-proxy tables": {func(h *fakeHost) { h.chains = []ruleset.ForeignChain{{Table: "kube-proxy"}} }, three, Fine,
			"kube-proxy", "nftables", ""},
		"port taken": {func(h *fakeHost) {
			h.files["proc/net/tcp"].Data = []byte(socketsHeader + socketLine("0B0200C0:2710", "0A", "77"))
			h.files["proc/12/comm"] = &fstest.MapFile{Data: []byte("webmin\n")}
			h.files["proc/12/fd/3"] = &fstest.MapFile{Data: []byte("socket:[77]"), Mode: fs.ModeSymlink}
		}, three, Problem, "ports", "webmin (pid 12) has tcp 192.0.2.11:10000", "group.port"},
		"port ours": {func(h *fakeHost) {
			h.files["proc/net/tcp"].Data = []byte(socketsHeader + socketLine("0B0200C0:2710", "0A", "77"))
			h.files["proc/12/comm"] = &fstest.MapFile{Data: []byte("appliance\n")}
			h.files["proc/12/fd/3"] = &fstest.MapFile{Data: []byte("socket:[77]"), Mode: fs.ModeSymlink}
		}, three, Fine, "ports", "appliance (pid 12) has", ""},
		"rule in the way": {func(h *fakeHost) { h.taken = errors.New("192.0.2.10:6443 is taken") }, three, Problem, "rules",
			"is taken", "nft -a"},
		"peer unreachable": {func(h *fakeHost) { h.dial["192.0.2.12:10000"] = os.ErrDeadlineExceeded }, three, Problem,
			"peer", "192.0.2.12", "endpoints"},
		"peer not started": {func(h *fakeHost) { h.dial["192.0.2.12:10000"] = syscall.ECONNREFUSED }, three, Hint, "peer",
			"refuses TCP", "--answer"},
		"UDP refused": {func(h *fakeHost) { h.datagram = syscall.ECONNREFUSED }, three, Problem, "peer", "refuses UDP",
			"UDP 10000"},
		"UDP answers": {nil, three, Fine, "peer", "by TCP and UDP", ""},
		"far away": {func(h *fakeHost) { h.trip = 30 * time.Millisecond }, three, Hint, "heartbeat", "30ms",
			"heartbeat: 300ms"},
		"too far away": {func(h *fakeHost) { h.trip = 2 * time.Second }, three, Problem, "heartbeat", "2s", "closer"},
		"insecure":     {nil, three, Hint, "group", "insecure", "keygen"},
		"two peers":    {nil, strings.Replace(three, ", 192.0.2.13", "", 1), Hint, "group", "two peers", "witness"},
		"slow disk":    {func(h *fakeHost) { h.commit = time.Second }, three, Problem, "disk", "1s", "faster disk"},
		"lame disk":    {func(h *fakeHost) { h.commit = 40 * time.Millisecond }, three, Hint, "disk", "40ms", "fio"},
		"no disk": {func(h *fakeHost) { h.diskErr = errors.New("read-only file system") }, three, Problem, "disk",
			"read-only", "mkdir"},
		"clock": {func(h *fakeHost) { h.noNTP = true }, three, Hint, "clock", "nothing keeps", "chrony"},
		"certificate": {func(h *fakeHost) { h.cert = withCert(kube, "192.0.2.11") }, three, Problem, "certificate",
			"not valid for 192.0.2.10", "--apiserver-cert-extra-sans=192.0.2.10,node1,192.0.2.11"},
		"certificate fits": {func(h *fakeHost) { h.cert = withCert(kube, vip) }, three, Fine, "certificate",
			"is valid for 192.0.2.10", ""},
		"other server": {func(h *fakeHost) { h.cert = withCert([]string{"db.example.org"}) }, three, Hint, "certificate",
			"not valid", "IP:192.0.2.10"},
		"apiserver on its loopback": {func(h *fakeHost) {
			h.files["proc/net/tcp"].Data = []byte(socketsHeader + socketLine("0100007F:192B", "0A", "5"))
		}, three, Problem, "bind-address", "127.0.0.1:6443 only", "--bind-address=0.0.0.0"},
		"apiserver on the VIP": {func(h *fakeHost) {
			h.files["proc/net/tcp"].Data = []byte(socketsHeader + socketLine("0A0200C0:192B", "0A", "5"))
		}, three, Problem, "bind-address", "listens on 192.0.2.10:6443 itself", "--advertise-address"},
		"apiserver everywhere": {func(h *fakeHost) {
			h.files["proc/net/tcp"].Data = []byte(socketsHeader + socketLine("00000000:192B", "0A", "5"))
		}, three, Fine, "bind-address", "0.0.0.0:6443", ""},
		"networkd": {func(h *fakeHost) {
			h.files["run/systemd/netif/state"] = &fstest.MapFile{}
			h.files["etc/systemd/network/all.network"] = &fstest.MapFile{Data: []byte("[Match]\nName = *\n")}
		}, three, Hint, "managers", "all.network", "KeepConfiguration"},
		"NetworkManager": {func(h *fakeHost) {
			h.files["run/NetworkManager/x"] = &fstest.MapFile{}
			h.files["etc/NetworkManager/system-connections/lo.nmconnection"] = &fstest.MapFile{Data: []byte(
				"interface-name=lo\n")}
		}, three, Hint, "managers", "lo.nmconnection", "unmanaged-devices"},
		"netplan": {func(h *fakeHost) {
			h.files["etc/netplan/01.yaml"] = &fstest.MapFile{Data: []byte("addresses: [192.0.2.10/24]\n")}
		}, three, Problem, "managers", "01.yaml names 192.0.2.10", "remove it"},
		"keepalived": {func(h *fakeHost) {
			h.files["etc/keepalived/keepalived.conf"] = &fstest.MapFile{Data: []byte("  192.0.2.10/24 dev eth0\n")}
		}, three, Hint, "managers", "keepalived", "disable --now"},
		"EC2": {func(h *fakeHost) { h.files["sys/class/dmi/id/sys_vendor"].Data = []byte("Amazon EC2\n") }, three,
			Problem, "platform", "Amazon EC2", "role worker"},
		"OpenStack": {func(h *fakeHost) { h.files["sys/class/dmi/id/product_name"].Data = []byte("OpenStack Nova\n") }, three,
			Hint, "platform", "OpenStack", "allowed-address"},
		"Proxmox": {func(h *fakeHost) { h.files["sys/class/dmi/id/sys_vendor"].Data = []byte("QEMU\n") }, three, Hint,
			"platform", "Proxmox", "ipfilter-net0"},
		"firewalld": {func(h *fakeHost) {
			h.chains = []ruleset.ForeignChain{{Family: "inet", Table: "firewalld", Chain: "filter_INPUT", Hook: "input"}}
		}, three, Hint, "firewall", "firewalld", "--add-port={6443,10000}/tcp"},
		"input drops": {func(h *fakeHost) {
			h.chains = []ruleset.ForeignChain{{Family: "inet", Table: "filter", Chain: "input", Hook: "input", Drops: true,
				Rules: 3}}
		}, three, Hint, "firewall", "chain input", "nft add rule inet filter input tcp dport { 6443, 10000 } accept"},
		"forward drops": {func(h *fakeHost) {
			h.chains = []ruleset.ForeignChain{{Family: "ip", Table: "filter", Chain: "FORWARD", Hook: "forward", Drops: true}}
		}, three, Hint, "firewall", "forward", "ct status dnat"},
		"flushing": {func(h *fakeHost) {
			h.files["etc/nftables.conf"] = &fstest.MapFile{Data: []byte("flush ruleset\n")}
			h.files["etc/systemd/system/sysinit.target.wants/nftables.service"] = &fstest.MapFile{}
		}, three, Hint, "firewall", "empties the whole ruleset", "delete table"},
		"SELinux": {func(h *fakeHost) { h.files["sys/fs/selinux/enforce"] = &fstest.MapFile{Data: []byte("1")} }, three, Hint,
			"confinement", "SELinux", "restorecon"},
		"AppArmor": {func(h *fakeHost) {
			h.files["proc/self/attr/current"] = &fstest.MapFile{Data: []byte("cri-containerd (enforce)\n")}
		}, three, Hint, "confinement", "cri-containerd", "apparmor"},
		"sysctls": {func(h *fakeHost) { h.readOnly = true }, three, Hint, "sysctls", "cannot be written",
			"/host/proc/sys/net"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := &fakeHost{files: goodFiles(nil), dial: map[string]error{},
				answers: map[string][]net.HardwareAddr{"192.0.2.12": {peerMAC}}}
			if tt.change != nil {
				tt.change(h)
			}
			r := Examine(t.Context(), h, Request{Version: "v1", About: "test", Config: load(t, tt.cfg)})
			for _, f := range r.Findings {
				if f.Check == tt.check && f.Severity == tt.severity && strings.Contains(f.What, tt.what) && strings.Contains(f.Mend,
					tt.mend) {
					if f.Severity != Fine && f.Mend == "" {
						t.Errorf("no remedy: %+v", f)
					}
					return
				}
			}
			var b strings.Builder
			r.Text(&b, false)
			t.Errorf("no %s of %s with %q and %q in\n%s", tt.severity, tt.check, tt.what, tt.mend, &b)
		})
	}
}

// A host in good order has no problem, with and without a configuration.
func TestExamineGood(t *testing.T) {
	h := &fakeHost{files: goodFiles(nil), dial: map[string]error{}}
	for _, s := range []Request{{}, {Config: load(t, three)}} {
		if r := Examine(t.Context(), h, s); r.Problems != 0 {
			t.Errorf("%+v", r)
		}
	}
	if r := Examine(t.Context(), h, Request{Invalid: errors.New("line 3")}); r.Problems != 1 ||
		r.Findings[0].Check != "config" {
		t.Errorf("%+v", r)
	}
}

func TestKeys(t *testing.T) {
	h := &fakeHost{files: goodFiles(nil)}
	cfg := load(t, three)
	cfg.Group.Insecure, cfg.Group.KeyFile = false, "/nonexistent/group.key"
	v := &visit{HostView: h, files: h.files, cfg: cfg}
	if f := v.keys(); len(f) != 1 || f[0].Severity != Problem || !strings.Contains(f[0].What, "does not exist") {
		t.Errorf("%+v", f)
	}
	cfg.Group.KeyFile = ""
	if f := v.keys(); len(f) != 1 || f[0].Severity != Problem || !strings.Contains(f[0].Mend, "appliance keygen") {
		t.Errorf("%+v", f)
	}
}

func TestParseSockets(t *testing.T) {
	if !littleEndian {
		t.Skip("the lines are of a little-endian machine")
	}
	text := socketsHeader + socketLine("0100007F:1F90", "0A", "42") + socketLine("0100007F:1F91", "01", "43") +
		socketLine("B80D0120000000000000000001000000:192B", "0A", "44")
	want := []socket{{"tcp", netip.MustParseAddrPort("127.0.0.1:8080"), "42"}, {"tcp",
		netip.MustParseAddrPort("[2001:db8::1]:6443"), "44"}}
	if got := parseSockets("tcp", text); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCollides(t *testing.T) {
	for _, tt := range []struct {
		have, want string
		collide    bool
	}{
		{"192.0.2.1:80", "192.0.2.1:80", true},
		{"192.0.2.1:80", "192.0.2.2:80", false},
		{"192.0.2.1:80", "192.0.2.1:81", false},
		{"0.0.0.0:80", "192.0.2.1:80", true},
		{"0.0.0.0:80", "[2001:db8::1]:80", false},
		{"[::]:80", "192.0.2.1:80", true},
		{"192.0.2.1:80", "[::]:80", true},
		{"[2001:db8::1]:80", "0.0.0.0:80", false},
	} {
		have, want := socket{"tcp", netip.MustParseAddrPort(tt.have), ""}, listener{network: "tcp",
			at: netip.MustParseAddrPort(tt.want)}
		if got := collides(have, want); got != tt.collide {
			t.Errorf("%s and %s: %t", tt.have, tt.want, got)
		}
	}
}

func TestMask(t *testing.T) {
	for secret, keep := range map[string]string{
		"appliance-group-key-1:AAAAsecret":                  "appliance-group-key-1:",
		"https://op:secret@example.org/x":                   "example.org/x",
		"password: secret":                                  "password",
		`"token":"secret"`:                                  "token",
		"Authorization: Bearer secret":                      "Bearer",
		"https://example.org/hook?a=1&token=secret&b=2":     "&b=2",
		"$2a$10$secretsecretsecret":                         "$2a$10$",
		"-----BEGIN PRIVATE KEY-----\nsecret\n-----END":     "-----END",
		"-----BEGIN EC PRIVATE KEY-----\nsecret\nAA\n-----": "BEGIN EC PRIVATE KEY",
	} {
		if got := Mask(secret); strings.Contains(got, "secret") || !strings.Contains(got, keep) {
			t.Errorf("%q became %q", secret, got)
		}
	}
	if text := "the token of the group moves; 192.0.2.10:6443 up"; Mask(text) != text {
		t.Errorf("%q", Mask(text))
	}
}

func TestBundleHasNoSecrets(t *testing.T) {
	var b bytes.Buffer
	docs := append(Facts(&fakeHost{files: goodFiles(nil)}), Document{"config.txt", "password=hunter22"})
	if err := WriteBundle(&b, docs, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	text := unpack(t, &b)
	if strings.Contains(text, "hunter22") || !strings.Contains(text, "appliance-doctor/host/interfaces.txt") ||
		!strings.Contains(text, "192.0.2.11/24") {
		t.Error(text)
	}
}
