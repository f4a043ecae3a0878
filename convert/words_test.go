package convert_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appliance/convert"
)

// group are the addresses of --vip and --peers for tests that are not about them.
var group = convert.Addresses{
	VIPs: []netip.Addr{netip.MustParseAddr("192.0.2.10")},
	Peers: []netip.Addr{
		netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("192.0.2.4"),
	},
}

const (
	haproxyServers = "  server a 192.0.2.11:6443 check\n  server b 192.0.2.12:6443 check\n"
	haproxyListen  = "listen api\n  bind 192.0.2.10:6443\n"
	nginxAPI       = "upstream api { server 192.0.2.11:6443; server 192.0.2.12:6443; }\n"
	lvs            = "virtual_server 192.0.2.10 6443 {\n  protocol TCP\n" + lvsServers + "}\n"
	lvsServers     = "  real_server 192.0.2.11 6443 { TCP_CHECK { } }\n  real_server 192.0.2.12 6443 { TCP_CHECK { } }\n"
)

// TestWords checks what becomes of single words of each program.
func TestWords(t *testing.T) {
	tests := []struct {
		name string
		kind convert.Format
		text string
		want []string
		not  []string
	}{
		{"weights need the scheduler that counts them", convert.HAProxy,
			haproxyListen + "  balance leastconn\n  server a 192.0.2.11:6443 weight 2\n  server b 192.0.2.12:6443 weight 1\n",
			[]string{"scheduler: wlc", "{name: a, address: 192.0.2.11, weight: 2}"}, nil},
		{
			"a server by name has one address at a time", convert.HAProxy,
			"resolvers d\n  nameserver a 192.0.2.53:53\n  hold valid 3s\n  hold nx 30s\n  resolve_retries 3\n" + haproxyListen +
				"  server a api-1.example.org:6443 check resolvers d init-addr last,none\n" +
				"  server b API-1.example.org:6443 check\n  server c -x.example.org:6443 check\n",
			[]string{"- {name: a, address: api-1.example.org, maxAddresses: 1}", "f:9: ", "is there twice", "f:10: ",
				"resolver:\n  nameservers: [\"192.0.2.53:53\"]\n  minTTL: 3s\n  maxTTL: 3s\n"},
			[]string{"carried over without", "name: b", "name: c"},
		},
		{
			"a template has as many addresses as it says", convert.HAProxy,
			haproxyListen + "  server-template web 3 web.example.org:80 check weight 4\n" +
				"  server-template x 5-6 x.example.org:81 check\n" +
				"  server-template y many y.example.org:80\n  server-template z 2 192.0.2.7:80\n",
			[]string{"- {name: web, address: web.example.org, maxAddresses: 3, port: 80, weight: 4}",
				"- {name: x, address: x.example.org, maxAddresses: 2, port: 81}", "f:5: ", "f:6: "},
			[]string{"name: y", "name: z", "resolver:"},
		},
		{
			"all addresses of a name serve in nginx", convert.Nginx,
			"stream { resolver 192.0.2.53 [2001:db8::53]:5353 valid=30s ipv6=off;\n" +
				"upstream a { server a.example.org:1 resolve; server b.example.org:1; server unix:/x; }\n" +
				"server { listen 192.0.2.10:1; proxy_pass a; } server { listen 192.0.2.10:2; proxy_pass c.example.org:2; } }\n",
			[]string{"- {address: a.example.org}\n  - {address: b.example.org}\n", "- {address: c.example.org}",
				"resolver:\n  nameservers: [\"192.0.2.53:53\", \"[2001:db8::53]:5353\"]\n  maxTTL: 30s\n",
				"carried over without ipv6=off"},
			[]string{"maxAddresses"},
		},
		{
			"keepalived passes over a server by name", convert.Keepalived,
			"virtual_server 192.0.2.10 6443 {\n" + lvsServers + "  real_server api.example.org 6443 { TCP_CHECK { } }\n}\n",
			[]string{"keepalived passes over such servers"},
			[]string{"address: api.example.org"},
		},
		{
			"a program as a check, as it is run there", convert.Keepalived,
			"global_defs {\n  script_user checks\n}\nvirtual_server 192.0.2.10 6443 {\n  delay_loop 0.5\n  protocol TCP\n" +
				"  real_server 192.0.2.11 6443 { MISC_CHECK { misc_path \"/usr/bin/check -a\"\n" +
				" misc_timeout 3\n retry 2\n } }\n}\n",
			[]string{"type: program\n    inter: 1s\n    fastinter: 1s\n", "fall: 3\n",
				"exec: [/usr/bin/check, \"-a\"]\n    user: checks\n",
				"500ms between two runs became 1s", "misc_timeout became 1s"},
			nil,
		},
		{
			"programs that no check runs", convert.Keepalived,
			"virtual_server 192.0.2.10 6443 {\n  protocol TCP\n" +
				"  real_server 192.0.2.11 6443 { MISC_CHECK { misc_path \"/usr/bin/check | grep ok\"\n } }\n" +
				"  real_server 192.0.2.12 6443 { MISC_CHECK { misc_path /usr/bin/check\n misc_dynamic\n } }\n}\n",
			[]string{"MISC_CHECK: is for a shell", "gives the server a weight", "type: tcp"},
			[]string{"exec:"},
		},
		{
			"connections are logged where a log is named and tcplog says so", convert.HAProxy,
			"global\n  log 192.0.2.5:1514 len 4096 local3 info\ndefaults\n  log global\n  option tcplog\n" + haproxyListen +
				haproxyServers + "listen b\n  no log\n  bind 192.0.2.10:80\n  server a 192.0.2.11:80\n",
			[]string{"- name: api\n  port: 6443\n  log: text\n", "- name: b\n  port: 80\n  check:",
				"log:\n  connections: \"udp://192.0.2.5:1514\"\n  facility: local3\n", "f:5: option tcplog: became log: text"},
			nil,
		},
		{
			"a share of the lines is one of so many connections", convert.HAProxy,
			"global\n  log /dev/log sample 1-2,4:10 local0\ndefaults\n  log global\n  option tcplog\n" + haproxyListen +
				haproxyServers,
			[]string{"  log: text\n  logEvery: 3\n", "sample 1-2,4:10 is a share of 3 in 10, and became one in 3"},
			nil,
		},
		{
			"what is no share", convert.HAProxy,
			"global\n  log /dev/log sample 1:x local0\ndefaults\n  log global\n  option tcplog\n" + haproxyListen +
				haproxyServers,
			[]string{"  log: text\n", "sample 1:x is no share; write logEvery"},
			[]string{"logEvery: "},
		},
		{
			"a log without tcplog, and tcplog without a log", convert.HAProxy,
			"global\n  log /dev/log local0\ndefaults\n  log global\n" + haproxyListen + haproxyServers +
				"defaults\n  option tcplog\nlisten b\n  bind 192.0.2.10:80\n  server a 192.0.2.11:80\n",
			nil, []string{"log: text", "connections:"},
		},
		{
			"a bare number is milliseconds", convert.HAProxy,
			"defaults\n  timeout connect 4500\n" + haproxyListen + haproxyServers,
			[]string{"connect: 4.5s"},
			nil,
		},
		{
			"0 is without end, and not 0", convert.HAProxy,
			haproxyListen + "  timeout connect 0\n  timeout client 0\n" + haproxyServers,
			[]string{"f:3: timeout connect 0: 0 is without end", "timeouts: {client: 0s}"},
			[]string{"connect: 0", "connect: 1ms"},
		},
		{
			"the last defaults section before counts", convert.HAProxy,
			"defaults\n  retries 7\n" + haproxyListen + haproxyServers + "defaults\n  timeout connect 2s\nlisten b\n" +
				"  bind 192.0.2.10:80\n  server a 192.0.2.11:80\n",
			[]string{"- name: api\n  port: 6443\n  retries: 7\n", "- name: b\n  port: 80\n  timeouts: {connect: 2s}\n"},
			nil,
		},
		{"servers without check are not checked", convert.HAProxy, haproxyListen + "  server a 192.0.2.11:6443\n",
			[]string{"type: none"}, nil},
		{
			"check alone opens a connection", convert.HAProxy,
			haproxyListen + haproxyServers,
			[]string{"type: tcp"},
			[]string{"tls:"},
		},
		{
			"check-ssl alone makes a handshake", convert.HAProxy,
			haproxyListen + "  server a 192.0.2.11:6443 check check-ssl verify none\n",
			[]string{"type: tls", "tls: {verify: false}"},
			nil,
		},
		{"httpchk means 2xx and 3xx", convert.HAProxy, haproxyListen + "  option httpchk GET /healthz\n" + haproxyServers,
			[]string{"type: http\n", "path: /healthz", "expect: {status: [200-399]}"}, nil},
		{
			"http-check connect ssl is https", convert.HAProxy,
			haproxyListen + "  option httpchk\n  http-check connect ssl\n  http-check send meth GET uri /healthz\n" +
				"  http-check expect status 200\n" + haproxyServers,
			[]string{"type: https", "method: GET", "path: /healthz", "expect: {status: [200]}"},
			[]string{"not known"},
		},
		{
			"the last option about checks wins", convert.HAProxy,
			haproxyListen + "  option httpchk GET /healthz\n  option ssl-hello-chk\n" + haproxyServers,
			[]string{"type: tls", "f:3: option httpchk GET /healthz: is overridden by line 4"},
			[]string{"path: /healthz\n"},
		},
		{
			"an IPv6 address and its port", convert.HAProxy,
			haproxyListen + "  server a 2001:db8::11:6443\n  server b [2001:db8::12]:6444\n  server c [2001:db8::13]\n",
			[]string{`address: "2001:db8::11"}`, `address: "2001:db8::12", port: 6444}`, `address: "2001:db8::13"}`},
			nil,
		},
		{
			"accept some, reject the rest", convert.HAProxy,
			haproxyListen + "  acl a src 10.0.0.0/8\n  tcp-request connection accept if a || { src 192.168.0.0/16 }\n" +
				"  tcp-request connection reject\n" + haproxyServers,
			[]string{"allow: [10.0.0.0/8, 192.168.0.0/16]"},
			[]string{"deny:"},
		},
		{
			"reject unless", convert.HAProxy,
			haproxyListen + "  tcp-request connection reject unless { src 10.0.0.0/8 }\n" + haproxyServers,
			[]string{"allow: [10.0.0.0/8]"},
			[]string{"deny:"},
		},
		{"conditions side by side mean and", convert.HAProxy,
			haproxyListen + "  tcp-request connection reject if { src 10.0.0.0/8 } ! { src 10.1.0.0/16 }\n" + haproxyServers,
			[]string{"deny: [10.0.0.0/16, 10.2.0.0/15,"}, []string{"allow:"}},
		{
			"accept without reject keeps nobody out", convert.HAProxy,
			haproxyListen + "  tcp-request connection accept if { src 10.0.0.0/8 }\n" + haproxyServers,
			nil,
			[]string{"deny:", "allow:"},
		},
		{
			"a ClientHello is required", convert.HAProxy,
			haproxyListen + "  tcp-request inspect-delay 3s\n  tcp-request content accept if { req_ssl_hello_type 1 }\n" +
				haproxyServers,
			[]string{
				"requireTLS: 3s",
				"f:4: tcp-request content accept if { req_ssl_hello_type 1 }: haproxy lets everything else in",
			},
			nil,
		},
		{
			"a page on loopback is carried over", convert.HAProxy,
			"listen stats\n  mode http\n  bind 127.0.0.1:9000\n  stats uri /stats\n  stats hide-version\n" + haproxyListen +
				haproxyServers,
			[]string{`listen: ["127.0.0.1:9000"]`, "path: /stats", "hideVersion: true"},
			nil,
		},
		{
			"a page for others needs a password", convert.HAProxy,
			"listen stats\n  mode http\n  bind *:9000\n  stats uri /stats\n  stats auth joe:hunter2\n" + haproxyListen +
				haproxyServers,
			[]string{`write admin: {listen: [":9000"], path: /stats, users: [{name: joe, passwordHash: ...}]}`},
			[]string{"hunter2", "\nadmin:"},
		},
		{
			"one port per load balancer", convert.HAProxy,
			"listen api\n  bind 192.0.2.10:6443\n  bind 192.0.2.10:443\n" + haproxyServers,
			[]string{"- name: api\n  port: 6443\n", "- name: api-443\n  port: 443\n", "address: 192.0.2.11, port: 6443}"},
			nil,
		},
		{
			"a load balancer on loopback of a node with a virtual address", convert.HAProxy,
			"listen api\n  bind 127.0.0.1:6443\n" + haproxyServers,
			[]string{"vips: [off]", "listen: [127.0.0.1]"},
			nil,
		},
		{"a queue needs a limit", convert.HAProxy, haproxyListen + "  timeout queue 9s\n" + haproxyServers,
			[]string{"f:3: timeout queue 9s: nobody queues"}, []string{"queue: 9s"}},

		{"deny, then the rest", convert.Nginx, nginxAPI + "server { listen 6443; deny 10.1.0.0/16; proxy_pass api; }",
			[]string{"deny: [10.1.0.0/16]"}, []string{"allow:"}},
		{
			"allow without deny all keeps nobody out", convert.Nginx,
			nginxAPI + "server { listen 6443; allow 10.1.0.0/16; proxy_pass api; }",
			[]string{"its allow lines keep nobody out"},
			[]string{"\n  allow:"},
		},
		{
			"what stands in server replaces what stands in stream", convert.Nginx,
			"stream { allow 10.0.0.0/8; deny all; proxy_timeout 2h; " + nginxAPI +
				"server { listen 6443; allow 172.16.0.0/12; deny all; proxy_timeout 3h; proxy_pass api; } }",
			[]string{"allow: [172.16.0.0/12]", "client: 3h, server: 3h"},
			nil,
		},
		{
			"words in quotes, over lines", convert.Nginx,
			"log_format x 'a {'\n '};';\n" + nginxAPI + "server { listen \"6443\"; proxy_pass api; }",
			[]string{"port: 6443"},
			nil,
		},
		{
			"the port of the list of one file", convert.Nginx,
			"server { listen 2379; proxy_pass [2001:db8::1]:2379; }",
			[]string{`{address: "2001:db8::1"}`},
			nil,
		},

		{
			"direct routing leaves the choice", convert.Keepalived,
			"virtual_server 192.0.2.10 6443 {\n lb_kind DR\n lb_algo rr\n" + lvsServers + "}",
			[]string{"scheduler: rr"},
			[]string{"dataPlane"},
		},
		{
			"translation is ipvs", convert.Keepalived,
			"virtual_server 192.0.2.10 6443 {\n lb_kind NAT\n" + lvsServers + "}",
			[]string{"dataPlane: ipvs"},
			nil,
		},
		{
			"retries of a check", convert.Keepalived,
			"virtual_server 192.0.2.10 6443 {\n delay_loop 10\n real_server 192.0.2.11 6443 { TCP_CHECK {\n retry 2\n" +
				" delay_before_retry 3\n connect_timeout 5\n } }\n}",
			[]string{"inter: 10s", "fastinter: 3s", "timeout: 5s", "fall: 3"},
			nil,
		},
		{
			"persistence without a time", convert.Keepalived,
			"virtual_server 192.0.2.10 6443 {\n persistence_timeout\n" + lvsServers + "}",
			[]string{"persistence: 6m"},
			nil,
		},
		{
			"a comment that begins with !", convert.Keepalived,
			"! virtual_server\nvirtual_server 192.0.2.10 6443 { ! here\n" + lvsServers + "}",
			[]string{"port: 6443"},
			[]string{"here"},
		},
		{
			"a weight of 0 bars", convert.Keepalived,
			"vrrp_script x {\n script /bin/x\n weight 0\n}\nvrrp_instance i {\n track_script {\n x\n }\n}\n" + lvs,
			[]string{"- name: x\n  exec: [/bin/x]\n\n"},
			[]string{"weight:"},
		},
		{
			"the instance's own weight", convert.Keepalived,
			"vrrp_script x {\n script \"/bin/x -a\"\n weight 5\n}\nvrrp_instance i {\n track_script {\n x weight -7\n }\n" +
				"}\n" + lvs,
			[]string{"exec: [/bin/x, \"-a\"]\n  weight: 7"},
			nil,
		},
		{
			"who looks after haproxy is not needed", convert.Keepalived,
			"vrrp_script x {\n script \"/usr/bin/killall -0 haproxy\"\n}\nvrrp_instance i {\n track_script {\n x\n }\n}\n" + lvs,
			[]string{"gives way by itself"},
			[]string{"tracks:"},
		},

		{
			"keys in any capitals", convert.KubeVIP,
			"VIP: 192.0.2.20\nLoadBalancers:\n- Port: 80\n  Backends:\n  - Address: 192.0.2.11\n    Port: 8080\n",
			[]string{"port: 80\n", "{address: 192.0.2.11, port: 8080}"},
			nil,
		},
	}
	for _, tt := range tests {
		t.Run(string(tt.kind)+" "+tt.name, func(t *testing.T) {
			res, err := convert.Convert([]convert.File{{Name: "f", Format: tt.kind, Data: []byte(tt.text)}}, group)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := load(res.YAML); err != nil {
				t.Errorf("does not load: %v", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(string(res.YAML), want) {
					t.Errorf("%q is not there", want)
				}
			}
			for _, not := range tt.not {
				if strings.Contains(string(res.YAML), not) {
					t.Errorf("%q is there", not)
				}
			}
			if t.Failed() {
				t.Logf("%s", res.YAML)
			}
		})
	}
}

// TestRefused checks the errors about what cannot be converted.
func TestRefused(t *testing.T) {
	const instance = "vrrp_instance a {\n virtual_ipaddress {\n 192.0.2.10\n }\n"
	tests := []struct {
		name string
		kind convert.Format
		text string
		want string
	}{
		{"empty", convert.HAProxy, "# nothing\n", "f: has nothing in it; check the path"},
		{"too large", convert.HAProxy, strings.Repeat("#\n", 1<<20), "is larger than"},
		{
			"too many lines", convert.HAProxy,
			"listen a\n" + strings.Repeat("server a 192.0.2.1:1\n", 30_000),
			"has more than 20000 statements",
		},
		{"defaults of defaults", convert.HAProxy, defaultsOfDefaults(), "the defaults of all sections together"},
		{"an open quote", convert.HAProxy, "global\n  log \"x\n", "f:2: a quote is left open"},
		{"an open brace", convert.Nginx, "stream {\n server {\n}\n", "f:1: the { of stream is never closed"},
		{"a closing brace too many", convert.Nginx, "stream {\n}\n}\n", "f:3: } closes nothing"},
		{"no semicolon", convert.Nginx, "stream {\n server {\n listen 443\n }\n}\n", "f:3: listen 443 lacks its semicolon"},
		{"braces without end", convert.Nginx, strings.Repeat("a {", 100), "braces in each other"},
		{"not YAML", convert.KubeVIP, "vip: [", "f: is not YAML"},
		{"a list", convert.KubeVIP, "- vip", "f:1: is not kube-vip's config.yaml"},
		{
			"nothing of TCP", convert.HAProxy,
			"listen web\n  mode http\n  bind *:80\n  server a 192.0.2.11:80\n",
			"f:1: listen web: was not carried over: it is in mode http",
		},
		{
			"a condition decides about a line", convert.HAProxy,
			haproxyListen + "  .if defined(X)\n  maxconn 5\n  .endif\n" + haproxyServers,
			"f:3 decides about some of its lines, and conditions are not looked at",
		},
		{
			"some are refused by what is not understood", convert.HAProxy,
			haproxyListen + "  tcp-request connection reject if { src 10.0.0.0/8 } { dst_port 80 }\n" + haproxyServers,
			"f:3 refuses some connections, and which is not understood",
		},
		{"multicast, and nobody to guess from", convert.Keepalived, instance + "}\n", "say it with --peers"},
		{"itself alone", convert.Keepalived, instance + " unicast_src_ip 192.0.2.2\n}\n", "say it with --peers"},
		{
			"itself alone, in kube-vip", convert.KubeVIP,
			"vip: 192.0.2.10\nlocalPeer: {id: a, address: 192.0.2.2}\n",
			"say it with --peers",
		},
		{
			"peers and no address", convert.KubeVIP,
			"localPeer: {address: 192.0.2.2}\nremotePeers: [{address: 192.0.2.3}]\n",
			"say it with --vip",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			res, err := convert.Convert([]convert.File{{Name: "f", Format: tt.kind, Data: []byte(tt.text)}}, convert.Addresses{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q\n%s", err, tt.want, res.YAML)
			}
		})
	}
}

// A machine whose own address is not among the servers is no peer of theirs.
func TestNoGuessAgainstTheFile(t *testing.T) {
	files := []convert.File{
		{Name: "k", Data: []byte("vrrp_instance a {\n unicast_src_ip 192.0.2.2\n virtual_ipaddress {\n 192.0.2.10\n }\n}\n")},
		{Name: "h", Data: []byte("frontend f\n bind *:6443\n default_backend b\nbackend b\n" + haproxyServers)},
	}
	if res, err := convert.Convert(files, convert.Addresses{}); err == nil || !strings.Contains(err.Error(), "--peers") {
		t.Errorf("error %v\n%s", err, res.YAML)
	}
	files[0].Data = []byte(strings.Replace(string(files[0].Data), "192.0.2.2", "192.0.2.11", 1))
	res, err := convert.Convert(files, convert.Addresses{})
	if err != nil || !strings.Contains(string(res.YAML), "peers:\n- 192.0.2.11\n- 192.0.2.12\n") {
		t.Errorf("error %v\n%s", err, res.YAML)
	}
}

func TestDetect(t *testing.T) {
	for sample, files := range samples(t) {
		for _, f := range files {
			program, _, _ := strings.Cut(strings.TrimSuffix(f.Name, filepath.Ext(f.Name)), "-")
			want := map[string]convert.Format{"haproxy": convert.HAProxy, "keepalived": convert.Keepalived,
				"nginx": convert.Nginx, "stream": convert.Nginx, "config": convert.KubeVIP}[program]
			if got, err := convert.Detect(f.Name, f.Data); got != want {
				t.Errorf("%s/%s: %q, %v", sample, f.Name, got, err)
			}
		}
	}
	for _, text := range []string{"", "hello", "{}", "a: b", "\x00"} {
		if got, err := convert.Detect("f", []byte(text)); err == nil || !strings.Contains(err.Error(), "--from") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

// defaultsOfDefaults is a chain of defaults that would be a hundred million lines together.
func defaultsOfDefaults() string {
	var b strings.Builder
	b.WriteString("defaults d0\n")
	for i := range 9000 {
		fmt.Fprintf(&b, "retries 1\ndefaults d%d from d%d\n", i+1, i)
	}
	return b.String()
}

// TestTime checks that the largest files that are read do not take too long.
func TestTime(t *testing.T) {
	var servers, sections, script strings.Builder
	servers.WriteString("listen a\nbind :1\n")
	for i := range 19_000 {
		fmt.Fprintf(&servers, "server s%d 10.%d.%d.1:1\n", i, i/256, i%256)
	}
	for i := range 6_000 {
		fmt.Fprintf(&sections, "listen s%d\nbind :%d\nserver a 192.0.2.1:1\n", i, i+1)
	}
	script.WriteString("vrrp_instance a {\nvirtual_ipaddress {\n")
	for i := range 19_000 {
		fmt.Fprintf(&script, "10.%d.%d.1\n", i/256, i%256)
	}
	script.WriteString("}\n}\n")
	var rules, growing strings.Builder
	rules.WriteString("listen a\nbind :1\nserver a 192.0.2.1:1\n")
	growing.WriteString("listen a\nbind :1\nserver a 192.0.2.1:1\n")
	for i := range 9_000 {
		action := []string{"accept", "reject"}[i%2]
		fmt.Fprintf(&rules, "tcp-request connection %s if { src 10.%d.%d.0/30 }\n", action, i/256, i%256)
		fmt.Fprintf(&growing, "acl x src 10.%d.%d.0/30\ntcp-request connection %s if !x { src 10.0.%d.%d }\n",
			i/256, i%256, action, i/256, i%256)
	}
	for _, f := range []convert.File{
		{Name: "rules", Format: convert.HAProxy, Data: []byte(rules.String())},
		{Name: "growing", Format: convert.HAProxy, Data: []byte(growing.String())},
		{Name: "servers", Format: convert.HAProxy, Data: []byte(servers.String())},
		{Name: "sections", Format: convert.HAProxy, Data: []byte(sections.String())},
		{Name: "addresses", Format: convert.Keepalived, Data: []byte(script.String())},
	} {
		begun := time.Now()
		_, err := convert.Convert([]convert.File{f}, group)
		if took := time.Since(begun); took > time.Minute {
			t.Errorf("%s took %v, error %v", f.Name, took, err)
		} else {
			t.Logf("%s: %v, error %.200v", f.Name, took, err)
		}
	}
}
