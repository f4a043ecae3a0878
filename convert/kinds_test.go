package convert_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"appliance/convert"
)

const galera = "frontend db\n  bind 192.0.2.10:3306\n  default_backend galera\nbackend galera\n"

// httpchk is a load balancer of haproxy with lines about its check, urls one of keepalived with what its HTTP_GET has.
func httpchk(lines string) string {
	return galera + "  option httpchk GET /\n" + lines + haproxyServers
}

func urls(text string) string {
	return "virtual_server 192.0.2.10 80 {\n  protocol TCP\n  real_server 192.0.2.11 80 { HTTP_GET {\n" + text +
		"  } }\n}\n"
}

// TestKinds checks what is easily taken for something weaker, wider or other than it is.
func TestKinds(t *testing.T) {
	stream := func(text string) string { return "stream {\n" + nginxAPI + text + "\n}\n" }
	keepalived := func(text string) string { return "vrrp_instance a {\n  interface eth0\n" + text + "}\n" }
	for _, tt := range []struct {
		name      string
		kind      convert.Format
		text      string
		want, not []string
	}{
		{
			"all clients on one server", convert.HAProxy,
			galera + "  balance leastconn\n  stick-table type ip size 1\n  stick on dst\n" + haproxyServers,
			[]string{"scheduler: first\n", "f:7: stick on dst: keeps all clients on one server"},
			[]string{"persistence:"},
		},
		{
			"a server with the state of another", convert.HAProxy,
			galera + "  server a 192.0.2.11:6443 track web/a\n  server b 192.0.2.12:6443 track c\n" +
				"  server c 192.0.2.13:6443 check inter 5s\n" +
				"backend web\n  option httpchk GET /w\n  http-check expect status 200\n  server a 192.0.2.11:80 check\n",
			[]string{"{name: a, address: 192.0.2.11, port: 6443, check: {type: http, timeout: 2s, port: 80, method: GET, " +
				"path: /w, expect: {status: [200]}}}", "{name: c, address: 192.0.2.13, port: 6443, check: {inter: 5s}}",
				"{name: b, address: 192.0.2.12, port: 6443, check: {inter: 5s, port: 6443, address: 192.0.2.13}}",
				"f:5: server a 192.0.2.11:6443 track web/a: has the state of web/a"},
			[]string{"carried over without"},
		},
		{
			"a table that only counts", convert.HAProxy,
			galera + "  stick-table type ip size 1m expire 30s store conn_rate(3s)\n" + haproxyServers,
			[]string{"f:5: stick-table", "keeps nobody on a server"},
			[]string{"persistence:"},
		},
		{
			"a table with its stick line", convert.HAProxy,
			galera + "  stick on src\n  stick-table type ip size 1m\n" + haproxyServers,
			[]string{"persistence: 30m", "f:6: stick-table type ip size 1m: never forgets a client"},
			nil,
		},
		{
			"two texts, both of which have to be there", convert.HAProxy,
			galera + "  option httpchk GET /\n  http-check expect status 200-299\n  http-check expect string primary\n" +
				"  http-check expect string syn.ced\n  http-check expect ! status 204\n" + haproxyServers,
			[]string{"expect: {status: [200-203, 205-299], contains: primary, matches: \"syn\\\\.ced\"}"}, nil,
		},
		{
			"an answer of any status", convert.HAProxy,
			galera + "  option httpchk GET /\n  http-check expect rstring ^primary$\n" + haproxyServers,
			[]string{`expect: {status: [200-599], matches: "^primary\\n?$"}`}, nil,
		},
		{
			"a check of another place", convert.HAProxy,
			galera + "  option httpchk GET /\n  http-check connect addr 192.0.2.50 port 8008\n" + haproxyServers,
			[]string{"type: http\n", "{name: a, address: 192.0.2.11, port: 6443, check: {address: 192.0.2.50}}",
				"{name: b, address: 192.0.2.12, port: 6443, check: {address: 192.0.2.50}}", "    port: 8008\n"}, nil,
		},
		{
			"a conversation with another place", convert.HAProxy,
			galera + "  option tcp-check\n  tcp-check connect addr 192.0.2.50\n  tcp-check send-lf 100%%\n" +
				"  tcp-check expect string OK\n" + haproxyServers,
			[]string{`{name: b, address: 192.0.2.12, port: 6443, check: {address: 192.0.2.50}}`,
				`steps: [{send: "100%"}, {expect: OK}]`}, nil,
		},
		{
			"a server's check at another address and port", convert.HAProxy,
			galera + "  server a 192.0.2.11:6443 check addr 192.0.2.51:9200\n",
			[]string{"check: {address: 192.0.2.51}}", "    port: 9200\n"}, nil,
		},
		{
			"a connect line without default has not what the server's line says", convert.HAProxy,
			galera + "  option httpchk GET /\n  http-check connect\n  http-check send meth GET uri /a\n" +
				"  server a 192.0.2.11:6443 check check-ssl verify none\n",
			[]string{"type: http\n", "path: /a\n"}, []string{"https"},
		},
		{
			"a connect line with default has", convert.HAProxy,
			galera + "  option httpchk GET /\n  http-check connect default\n  http-check send meth GET uri /a\n" +
				"  server a 192.0.2.11:6443 check check-ssl verify none\n",
			[]string{"type: https\n", "path: /a\n"}, nil,
		},
		{
			"option httpchk of its own leaves the lines of defaults out", convert.HAProxy,
			"defaults\n  mode tcp\n  option httpchk GET /d\n  http-check expect status 404\n" + galera +
				"  option httpchk GET /own\n" + haproxyServers,
			[]string{"path: /own\n    expect: {status: [200-399]}", "f:4: http-check expect status 404: is not in force"}, nil,
		},
		{
			"lines of its own are no more than its own", convert.HAProxy,
			"defaults\n  mode tcp\n  option tcp-check\n  tcp-check expect string a\n" + galera +
				"  tcp-check expect string b\n" + haproxyServers,
			[]string{"steps: [{expect: b}]"}, nil,
		},
		{
			"option tcp-check of its own keeps those of defaults", convert.HAProxy,
			"defaults\n  mode tcp\n  option tcp-check\n  tcp-check expect string a\n" + galera +
				"  option tcp-check\n" + haproxyServers,
			[]string{"steps: [{expect: a}]"}, nil,
		},
		{
			"the password of a program", convert.Keepalived,
			"vrrp_script s {\n  script \"/etc/track.sh -p hunter2\"\n}\n" +
				keepalived("  notify_master \"/etc/n.sh -u a:hunter2\"\n  track_script {\n    s\n  }\n") +
				"virtual_server 192.0.2.10 80 {\n  protocol TCP\n  real_server 192.0.2.11 80 {\n" +
				"    notify_up \"/bin/clustercheck user hunter2\"\n    MISC_CHECK { misc_path \"/etc/chk.sh -phunter2\"\n } }\n" +
				"  real_server 192.0.2.12 80 { MISC_CHECK { misc_path \"/etc/chk.sh -port 80 -p 81 -p /run/x -p tcp\"\n } }\n}\n",
			[]string{"f:2: script /etc/track.sh -p ****: has a secret", "f:6: notify_master /etc/n.sh -u a:****: has a secret",
				"f:14: notify_up /bin/clustercheck user ****: has a secret", "f:15: MISC_CHECK: has a secret",
				`exec: [/etc/chk.sh, "-port", 80, "-p", 81, "-p", /run/x, "-p", tcp]`},
			[]string{"hunter2"},
		},
		{
			"sections around a condition", convert.HAProxy,
			"defaults\n  mode tcp\n.if defined(X)\nlisten a\n  bind 192.0.2.10:1\n  server a 192.0.2.11:1\n.endif\n" +
				"listen b\n  bind 192.0.2.10:2\n  server a 192.0.2.11:2\n",
			[]string{"# 1 OF 2", "f:4: listen a: was not carried over: f:3 decides", "- name: b\n"}, nil,
		},
		{
			"kube-vip looks at no server", convert.KubeVIP,
			"vip: 192.0.2.10\nloadBalancers:\n- port: 80\n  backends: [{address: 192.0.2.11, port: 8080}]\n" +
				"- port: 6443\n  backends: [{address: 192.0.2.11, port: 6444}]\n",
			[]string{"- name: lb-80\n  port: 80\n  check:\n    type: tcp\n", "port: 6443\n  backends:"}, nil,
		},
		{
			"addresses that may be included", convert.Keepalived,
			keepalived("  include vips.inc\n  virtual_ipaddress {\n    192.0.2.10\n  }\n"),
			[]string{"f:3: include vips.inc: is not among these files, and may have virtual addresses", "loadBalancers: []"},
			[]string{"not known"},
		},
		{
			"failed connections take out the servers that say so", convert.HAProxy,
			galera + "  default-server observe layer4 error-limit 5\n  server a 192.0.2.11:6443 check\n" +
				"  server b 192.0.2.12:6443 check error-limit 7 on-error mark-down\n" +
				"  server c 192.0.2.13:6443 check on-error fastinter\n  server d 192.0.2.14:6443 check observe layer7\n",
			[]string{"  maxFails: 5\n", "{name: a, address: 192.0.2.11, port: 6443}", "f:6: ", "has maxFails: 5",
				"{name: b, address: 192.0.2.12, port: 6443, maxFails: 7}", "{name: c, address: 192.0.2.13, port: 6443, maxFails: 0}",
				"{name: d, address: 192.0.2.14, port: 6443, maxFails: 0}", `carried over without "observe layer7"`}, nil,
		},
		{
			"error-limit alone does nothing in haproxy", convert.HAProxy,
			galera + "  server a 192.0.2.11:6443 check error-limit 5\n  server b 192.0.2.12:6443 check\n",
			nil, []string{"maxFails"},
		},
		{
			"each server of nginx fails in its own way", convert.Nginx,
			stream("server { listen 192.0.2.10:1; proxy_pass u; }\nupstream u { server 192.0.2.11:1 max_fails=3;\n" +
				"server 192.0.2.12:1; server 192.0.2.13:1 max_fails=0 fail_timeout=30s; }"),
			[]string{"  maxFails: 3\n  failTimeout: 10s\n", "- {address: 192.0.2.11}\n",
				"- {address: 192.0.2.12, maxFails: 1}\n", "- {address: 192.0.2.13, maxFails: 0, failTimeout: 30s}\n"}, nil,
		},
		{
			"addresses alone, with what looks after the servers there", convert.Keepalived,
			"vrrp_script nginx {\n  script \"killall -0 nginx\"\n  interval 2\n}\n" +
				"vrrp_script haproxy {\n  script \"/usr/bin/pidof haproxy\"\n  user root\n}\n" +
				keepalived("  virtual_ipaddress {\n    192.0.2.10\n  }\n  track_script {\n    nginx\n    haproxy\n  }\n"+
					"  notify_master \"/usr/bin/systemctl reload nginx\"\n"),
			[]string{"\nloadBalancers: []\n", "# Nothing is balanced in these files", "exec: [/usr/bin/killall, \"-0\", nginx]",
				"f:2: script killall -0 nginx: became /usr/bin/killall", "f:2: script killall -0 nginx: runs as nobody, who may not",
				"exec: [/usr/bin/pidof, haproxy]\n  user: root\n", "exec: [/usr/bin/systemctl, reload, nginx]"},
			[]string{"not needed any more"},
		},
		{
			"addresses that nobody answers for", convert.Keepalived,
			keepalived("  virtual_ipaddress {\n    192.0.2.10/24\n    192.0.2.20/32 dev lo\n  }\n") + lvs +
				strings.ReplaceAll(lvs, "192.0.2.10", "192.0.2.20"),
			[]string{"vips: [192.0.2.10]", "f:5: 192.0.2.20/32 dev lo: is put on lo"},
			[]string{"vips: [192.0.2.10, 192.0.2.20]"},
		},
		{
			"a backup that never serves", convert.HAProxy,
			galera + "  server a 192.0.2.11:6443\n  server b 192.0.2.12:6443 check backup\n",
			[]string{"f:6: server b 192.0.2.12:6443 check backup: was left out, because it never serves in haproxy: line 5"},
			[]string{"name: b", "maxFails"},
		},
		{
			"a backup while checks find the server well", convert.HAProxy,
			galera + "  server a 192.0.2.11:6443 check\n  server b 192.0.2.12:6443 check backup\n",
			[]string{"maxFails: 0\n"}, nil,
		},
		{
			"words behind what is expected", convert.HAProxy,
			galera + "  option httpchk GET /\n  http-check expect string ok comment x\n" + haproxyServers,
			[]string{"expect: {status: [200-599], contains: ok}"}, nil,
		},
		{
			"an address of another section in mode http", convert.HAProxy,
			"frontend web\n  bind 192.0.2.10:443\n  mode http\n  default_backend x\nlisten all\n  bind :443\n" + haproxyServers +
				"listen other\n  bind 192.0.2.10:80\n" + haproxyServers,
			[]string{"# 2 OF 3 LOAD BALANCERS", "f:1: frontend web: was not carried over: it is in mode http",
				"f:5: listen all: was not carried over: none of its addresses"},
			[]string{"port: 443"},
		},
		{
			"servers that are sections of the file", convert.HAProxy,
			"listen in\n  bind 192.0.2.10:80\n  server a 192.0.2.2:8080 check\n  server b 192.0.2.50:8080 check\n" +
				"listen out\n  bind :8080\n  server a 192.0.2.11:80 check\n",
			[]string{"f:3: server a 192.0.2.2:8080 check: 192.0.2.2:8080 is another load balancer",
				"{name: b, address: 192.0.2.50, port: 8080}"},
			[]string{"address: 192.0.2.2,"},
		},
		{
			"a semicolon behind a port", convert.HAProxy, "listen a\n  bind 192.0.2.10:6443;\n" + haproxyServers,
			[]string{"port: 6443\n"}, nil,
		},
		{
			"the authorities of the system", convert.HAProxy,
			galera + "  server a 192.0.2.11:6443 check check-ssl verify required ca-file @system-ca\n",
			[]string{"tls: {verify: true}", "haproxy asks for no name in the certificates"}, []string{"caFile", "absolute"},
		},
		{
			"a program that cannot be run is not replaced by that of another server", convert.Keepalived,
			"virtual_server 192.0.2.10 80 {\n  protocol TCP\n  real_server 192.0.2.11 80 {\n" +
				"    MISC_CHECK { misc_path \"/bin/c .11 -P x9x\"\n } }\n" +
				"  real_server 192.0.2.12 80 { MISC_CHECK { misc_path \"/bin/c .12\"\n } }\n}\n",
			[]string{"    type: tcp", "{address: 192.0.2.11}", `exec: [/bin/c, ".12"]`}, []string{"x9x", "x9"},
		},
		{
			"a data plane for an address that is the node's own", convert.Keepalived,
			lvs + strings.Replace(lvs, "192.0.2.10 6443 {", "127.0.0.1 6444 {\n  lb_kind NAT", 1),
			[]string{"no data plane was forced, because user space serves", "listen: [127.0.0.1]"}, []string{"dataPlane"},
		},
		{
			"the host that a check asks for", convert.Keepalived,
			"virtual_server 192.0.2.10 80 {\n  protocol TCP\n  virtualhost vs.example\n  retry 0\n" +
				"  real_server 192.0.2.11 80 { HTTP_GET {\n    url { path /\n      virtualhost url.example\n }\n" +
				"    virtualhost get.example\n  } }\n  real_server 192.0.2.12 80 { HTTP_GET {\n    url { path /\n }\n" +
				"    virtualhost get.example\n  } }\n  real_server 192.0.2.13 80 {\n    virtualhost rs.example\n" +
				"    HTTP_GET { url { path /\n } } }\n}\n",
			[]string{"    host: url.example\n", "{address: 192.0.2.12, check: {host: get.example}}", "    fall: 2\n",
				"{address: 192.0.2.13, check: {host: rs.example}}"}, nil,
		},
		{
			"words of a program in quotes", convert.Keepalived,
			"virtual_server 192.0.2.10 80 {\n  protocol TCP\n  real_server 192.0.2.11 80 {\n" +
				"    MISC_CHECK { misc_path \"/bin/c 'a b' c\\ d\"\n } }\n}\n",
			[]string{`exec: [/bin/c, "a b", "c d"]`}, nil,
		},
		{
			"texts that must not be there", convert.HAProxy,
			httpchk("  http-check expect ! string read.only\n  http-check expect ! rstring ^(bad$|worse)\n" +
				"  http-check expect status 200\n"),
			[]string{`expect: {status: [200], matches: "(?s).", absent: read.only, mismatches: "^(bad\\n?$|worse)"}`}, nil,
		},
		{
			"two texts that must not be there, and one that must", convert.HAProxy,
			httpchk("  http-check expect ! string a\n  http-check expect string ok\n  http-check expect ! string b.\n"),
			[]string{`expect: {status: [200-599], contains: ok, absent: a, mismatches: "b\\."}`}, nil,
		},
		{
			"a pattern that must not be there", convert.Keepalived,
			urls("url {\n path /h\n regex bad$\n regex_no_match\n }\n"),
			[]string{`expect: {status: [200-299], mismatches: "bad\\n?$"}`}, []string{"matches: bad", "(?s)"},
		},
		{
			"an acl that never is so lets nobody in, and leads nobody elsewhere", convert.HAProxy,
			"frontend f\n  bind 192.0.2.10:80\n  acl no always_false\n  acl net always_false\n  acl net src 10.0.0.0/8\n" +
				"  tcp-request connection reject unless net\n  use_backend x if no\n  default_backend galera\n" +
				"backend x\n  server a 192.0.2.99:80\n" + galera + haproxyServers,
			[]string{"allow: [10.0.0.0/8]"}, []string{"address: 192.0.2.99"},
		},
		{
			"the first server, and no other", convert.HAProxy,
			"defaults\n  mode tcp\n  option redispatch\n" + galera + "  balance first\n  no option redispatch\n" + haproxyServers,
			[]string{"scheduler: first\n  retries: 0\n  maxFails: 0\n", "f:7: backend galera: has retries: 0, because"}, nil,
		},
		{
			"the first server, or the next one", convert.HAProxy,
			galera + "  balance first\n  option redispatch\n  retries 2\n" + haproxyServers,
			[]string{"scheduler: first\n  retries: 2\n  maxFails: 0\n"}, []string{"has retries: 0"},
		},
		{
			"any version of TLS", convert.HAProxy,
			galera + haproxyServers + "frontend f\n  bind 192.0.2.10:80\n  tcp-request content reject unless { req.ssl_ver gt 3 }\n" +
				"  default_backend galera\n",
			[]string{"requireTLS: 5s"}, nil,
		},
		{
			"what send does not say is as option httpchk has it", convert.HAProxy,
			galera + "  option httpchk HEAD /own\n  http-check send hdr X-A y\n" + haproxyServers,
			[]string{"method: HEAD\n    path: /own\n    headers: {X-A: y}"}, nil,
		},
		{
			"names of services", convert.HAProxy,
			galera + "  server-template s 3 _db._tcp.example.org check\n  server b _db._tcp.example.org check\n" +
				haproxyServers,
			[]string{"f:5: server-template s 3 _db._tcp.example.org check: is looked up by", "f:6: server b"},
			[]string{"address: _db", `address: "_db`},
		},
		{
			"servers that answer 404 get no connections", convert.HAProxy,
			galera + "  option httpchk GET /\n  http-check disable-on-404\n  http-check expect string ok\n" + haproxyServers,
			[]string{"expect: {status: [200-403, 405-599], contains: ok}"}, nil,
		},
		{
			"a check that opens a connection as well", convert.Keepalived,
			"virtual_server 192.0.2.10 80 {\n  protocol TCP\n  real_server 192.0.2.11 80 {\n    TCP_CHECK {\n" +
				"      connect_timeout 3\n    }\n    HTTP_GET { url { path /h\n } }\n  }\n}\n",
			[]string{"type: http\n", "f:4: TCP_CHECK: the other check of the server opens a connection"}, nil,
		},
		{
			"processes that run", convert.Keepalived,
			"vrrp_track_process a {\n  process gluster.daemon-of-all\n}\nvrrp_track_process b {\n  process python3 \"/x y\"\n" +
				"  weight 0\n  terminate_delay 1.5\n}\nvrrp_track_process c {\n  process c\n  full_command\n  delay 2\n}\n" +
				"vrrp_track_process d {\n  process d\n}\nvrrp_script d {\n  script /bin/d\n}\n" +
				keepalived("  track_process {\n    a\n    b\n    c weight 9\n  }\n  track_script {\n    d\n  }\n") + lvs,
			[]string{
				"- name: a\n  exec: [/usr/bin/pgrep, \"-x\", \"gluster\\\\.daemon-\"]\n  inter: 1s\n  rise: 1\n  fall: 1\n  weight: 1\n",
				"- name: b\n  exec: [/usr/bin/pgrep, \"-fx\", \"python3 /x y\"]\n  inter: 1s\n  rise: 1\n  fall: 3\n- name: c",
				"- name: c\n  exec: [/usr/bin/pgrep, \"-fx\", c]\n  inter: 1s\n  rise: 3\n  fall: 3\n  weight: 9\n",
				"f:2: process gluster.daemon-of-all: became a track that asks pgrep",
				"- name: d-2\n  exec: [/bin/d]\n", "f:14: vrrp_track_process d: no track_process names it",
			},
			nil,
		},
		{
			"processes that pgrep does not find so", convert.Keepalived,
			"vrrp_track_process a {\n  process x\n  quorum 2\n}\nvrrp_track_process b {\n  process x\n  quorum_max 0\n}\n" +
				"vrrp_track_process c {\n  process /bin/x\n}\nvrrp_track_process d {\n  process haproxy\n}\n" +
				"vrrp_track_process e {\n  process x\n  weight 1 reverse\n}\nvrrp_track_process f {\n}\n" +
				"vrrp_track_process g {\n  process x\n  param_match initial\n}\n" +
				keepalived("  track_process {\n    a\n    b\n    c\n    d\n    e\n    f\n    g\n  }\n") + lvs,
			[]string{"f:3: quorum 2: is more than pgrep looks for", "f:7: quorum_max 0: is more than", "f:10: process /bin/x: is a path",
				"f:13: process haproxy: looks after a program", "f:17: weight 1 reverse: a track fails",
				"f:19: vrrp_track_process f: names no process", "f:23: param_match initial: is more than"},
			[]string{"pgrep,", "became a track"},
		},
		{
			"a server that is down and that clients come back to", convert.Keepalived,
			strings.Replace(lvs, "  protocol TCP\n", "  protocol TCP\n  inhibit_on_failure\n  persistence_timeout 60\n", 1),
			[]string{"f:3: inhibit_on_failure: keeps open connections; clients who come back", "onMarkedDown: keep"}, nil,
		},
		{
			"a quorum that any server is", convert.Keepalived,
			strings.Replace(lvs, "  protocol TCP\n", "  protocol TCP\n  quorum 2\n  hysteresis 1\n", 1) + "virtual_server 192.0.2.10 80 {\n" +
				"  protocol TCP\n  quorum 2\n  sorry_server 192.0.2.13 80\n  real_server 192.0.2.11 80 {\n    weight 2\n    TCP_CHECK {\n" +
				"    }\n  }\n}\n",
			[]string{"hysteresis 1: decides about a sorry_server, and there is none", "- {address: 192.0.2.13, backup: true,"},
			[]string{"quorum 2: lets"},
		},
		{
			"a script that fails when it succeeds", convert.Keepalived,
			"vrrp_script s {\n  script /bin/s\n}\nvrrp_script r {\n  script /bin/r\n  weight 5 reverse\n}\n" +
				"vrrp_script e {\n  script /bin/e\n  weight\n}\n" +
				keepalived("  track_script {\n    s weight -10 reverse\n    r\n    e weight\n  }\n") + lvs,
			[]string{"f:6: weight 5 reverse: a track fails", "f:15: s weight -10 reverse: a track fails"},
			[]string{"name: s", "name: r"},
		},
		{
			"the script of a sync group", convert.Keepalived,
			"vrrp_script s {\n  script /bin/s\n}\n" +
				"vrrp_sync_group g {\n  group {\n    a\n  }\n  track_script {\n    s\n  }\n}\n" +
				keepalived("") + lvs,
			[]string{"tracks:\n- name: s\n"},
			[]string{"no track_script names it", "not known"},
		},
		{
			"addresses of no machine", convert.Keepalived,
			keepalived("  virtual_ipaddress {\n    192.0.2.10\n    fe80::10/64\n    224.0.0.9\n  }\n") + lvs,
			[]string{"f:5: fe80::10/64: is no address that", "f:6: 224.0.0.9: is no address that"}, []string{"is a name"},
		},
		{
			"no protocol", convert.Keepalived, strings.Replace(lvs, "  protocol TCP\n", "", 1),
			[]string{"f:1: virtual_server 192.0.2.10 6443: has no protocol, which keepalived 2 takes for UDP"}, nil,
		},
		{
			"marks and ranges of a group", convert.Keepalived,
			"virtual_server_group g {\n  192.0.2.10 6443\n  fwmark 3\n  192.0.2.20-22 80\n}\n" +
				strings.Replace(lvs, "192.0.2.10 6443 {", "group g {", 1),
			[]string{"f:3: fwmark 3: it serves marked packets", "f:4: 192.0.2.20-22 80: is a range of addresses"}, nil,
		},
		{
			"ports that are none in kube-vip", convert.KubeVIP,
			"vip: 192.0.2.10\nlocalPeer: {address: 192.0.2.2}\nremotePeers: [{address: 192.0.2.3}, {address: 192.0.2.4}]\n" +
				"loadBalancers:\n- {type: tcp, port: 80, bindToVip: False, backends: [{address: 192.0.2.11, port: 99999}, " +
				"{port: 0, address: 192.0.2.12}, {url: \"http://192.0.2.13:81/x\"}]}\n" +
				"- {type: udp, port: 53, backends: [{address: 192.0.2.11}]}\n" +
				"- {port: 54, backendPort: 70000, backends: [{address: 192.0.2.11}]}\n",
			[]string{"port: 99999: is no port", "bindToVip: false",
				"- {address: 192.0.2.12}\n  - {address: 192.0.2.13, port: 81}",
				"it is udp, and TCP is carried", "its backendPort is no port"},
			[]string{"65535}", "address: 192.0.2.11", "port: 53\n", "port: 54\n", "names the other boxes only"},
		},
		{
			"whose PROXY header is believed", convert.Nginx,
			stream("server { listen 192.0.2.10:80 proxy_protocol; set_real_ip_from 10.0.0.0/8; proxy_pass api; }"),
			[]string{"acceptProxyFrom: [10.0.0.0/8]", "all others come in without one"}, []string{"of anybody"},
		},
		{
			"one server without a PROXY header, and one whose address is for HTTP", convert.Nginx,
			"http { server { listen 192.0.2.10:80; } }\n" + stream("proxy_protocol on;\n"+
				"server { listen 192.0.2.10:81; proxy_protocol off; proxy_pass api; }\n"+
				"server { listen 80; proxy_pass api; }"),
			[]string{"port: 81\n", "# 2 OF 3 LOAD BALANCERS"}, []string{"sendProxy", "port: 80"},
		},
		{
			"a range of ports in nginx", convert.Nginx,
			stream("server { listen 192.0.2.10:81-83; listen 192.0.2.10:80; proxy_pass api; }"),
			[]string{"listen 192.0.2.10:81-83: is a range of ports"}, []string{"port: 81"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := convert.Convert([]convert.File{{Name: "f", Format: tt.kind, Data: []byte(tt.text)}}, group)
			if err != nil {
				t.Fatal(err)
			}
			has(t, string(res.YAML), tt.want, tt.not)
		})
	}
	const onlyBackups = "none of its servers but backups has an address that can be used"
	const keepOut = "not carried over, and without it the check takes servers that it is there to keep out"
	for _, tt := range []struct {
		name string
		kind convert.Format
		text string
		want string
	}{
		{"definitions in a circle", convert.Keepalived, "$A= \\\n  x \\\n  $B\n$B= \\\n  y \\\n  $A\n$A\n" + lvs,
			"f:6: definitions use each other in a circle"},
		{"a block without an end", convert.Keepalived, "~SEQ(A, 1, 0, 5) $B\n" + lvs, "f:1: ~SEQ(A, 1, 0, 5) is no block"},
		{"what is served may be included", convert.Keepalived, "include /etc/keepalived/conf.d/*.conf\n" +
			keepalived("  virtual_ipaddress {\n    192.0.2.10\n  }\n"), "nothing in these files is served"},
		{"three texts", convert.HAProxy, httpchk("  http-check expect string a\n  http-check expect string b\n" +
			"  http-check expect string c\n"), "f:8 is " + keepOut},
		{"three texts that must not be there", convert.HAProxy, httpchk("  http-check expect ! string a\n" +
			"  http-check expect ! string b\n  http-check expect ! string c\n"), "f:8 is " + keepOut},
		{"versions of TLS", convert.HAProxy, "listen a\n  bind 192.0.2.10:80\n" +
			"  tcp-request content reject unless { req.ssl_ver ge 3.3 }\n" + haproxyServers,
			"f:3 refuses some connections, and which is not understood"},
		{"answers that are refused", convert.HAProxy, galera + "  tcp-response inspect-delay 1s\n" +
			"  tcp-response content reject if { res.len gt 9 }\n" + haproxyServers, "f:6 ends connections by what servers send"},
		{"two patterns", convert.HAProxy, httpchk("  http-check expect rstring a\n  http-check expect rstring b\n"),
			"f:7 is " + keepOut},
		{"contrary statuses", convert.HAProxy, httpchk("  http-check expect status 200\n  http-check expect status 201\n"),
			"f:7 is " + keepOut},
		{"a status that no check knows", convert.HAProxy, httpchk("  http-check expect status 101\n"), "f:6 is " + keepOut},
		{"a pattern of another kind", convert.HAProxy, httpchk("  http-check expect rstring (?<!x)y\n"), "f:6 is " + keepOut},
		{"a header that has to come", convert.HAProxy, httpchk("  http-check expect hdr name x value y\n"),
			"f:6 is " + keepOut},
		{"a body that is sent", convert.HAProxy, httpchk("  http-check send meth POST uri / body ping\n"),
			"f:6 is " + keepOut},
		{"the answer to a second request", convert.HAProxy, httpchk("  http-check send meth GET uri /a\n" +
			"  http-check connect port 8080\n  http-check send meth GET uri /b\n  http-check expect status 204\n"),
			"f:7 is " + keepOut},
		{"a check of a place by name", convert.HAProxy, httpchk("  http-check connect addr db.example.org\n"),
			"f:6 is not carried over, and without it another place is checked"},
		{"a check of a computed port", convert.HAProxy,
			galera + "  option tcp-check\n  tcp-check connect port sc_port\n" + haproxyServers,
			"f:6 is not carried over, and without it another place is checked"},
		{"a server's check at a name", convert.HAProxy, galera + "  server a 192.0.2.11:6443 check addr db.example.org\n",
			"f:5 checks another place, and addr db.example.org is no address"},
		{"a file that is not there, in nginx", convert.Nginx,
			stream("server { listen 192.0.2.10:443; include acl.inc; proxy_pass api; }"),
			"includes a file that is not among these"},
		{"a file that is not there, beside the servers", convert.Nginx,
			stream("include acl.inc;\nserver { listen 192.0.2.10:443; proxy_pass api; }"),
			"f:3 includes a file that is not among these"},
		{"a file that is not there, in keepalived", convert.Keepalived,
			"virtual_server 192.0.2.10 80 {\n  protocol TCP\n  real_server 192.0.2.11 80 {\n    include check.conf\n  }\n}\n",
			"f:4 includes a file that is not among these"},
		{"the state of nobody", convert.HAProxy, galera + "  server a 192.0.2.11:6443 track web/a\n",
			"f:5 has the state of web/a, which is not in these files"},
		{"a quote of a program that is left open", convert.Keepalived,
			"virtual_server 192.0.2.10 80 {\n  protocol UDP\n  real_server 192.0.2.11 80 {\n" +
				"    MISC_CHECK { misc_path \"/bin/c 'a b\"\n } }\n}\n", "has a quote that is left open"},
		{"a password in a header", convert.HAProxy, galera + "  option tcp-check\n" +
			"  tcp-check send GET\\ /\\ HTTP/1.0\\r\\nAuthorization:\\ Basic\\ aHVudGVyMg==\\r\\n\\r\\n\n" +
			"  tcp-check expect string 200\n" + haproxyServers, "f:6 is not carried over"},
		{"a password of LDAP", convert.HAProxy, galera + "  option tcp-check\n" +
			"  tcp-check send-binary 301a0201016015020103\n  tcp-check send-binary 0404636e3d61\n" +
			"  tcp-check send-binary 800768756e74657232\n  tcp-check expect binary 0a0100\n" +
			haproxyServers, "its tcp-check lines send a password"},
		{"404 alone, which keeps servers out", convert.HAProxy,
			httpchk("  http-check expect status 404\n  http-check disable-on-404\n"), "expects the status 404 alone"},
		{"an agent", convert.HAProxy, galera + "  server a 192.0.2.11:6443 check agent-check agent-port 9\n",
			"f:5 asks an agent for the server's state"},
		{"a sorry server beside others", convert.Keepalived, "virtual_server 192.0.2.10 80 {\n  protocol TCP\n  quorum 1\n" +
			"  hysteresis 1\n  sorry_server 192.0.2.13 80\n  real_server 192.0.2.11 80 {\n    TCP_CHECK {\n    }\n  }\n}\n",
			"f:4 has the sorry_server take over from servers that are left"},
		{"a quorum to be filled in", convert.Keepalived, "virtual_server 192.0.2.10 80 {\n  protocol TCP\n  quorum <n>\n" +
			"  sorry_server 192.0.2.13 80\n  real_server 192.0.2.11 80 {\n    TCP_CHECK {\n    }\n  }\n}\n",
			"f:3 has the sorry_server take over from servers that are left"},
		{"backups in the place of a server that is not read", convert.HAProxy, galera +
			"  server a ${A}:3306 check\n  server b 192.0.2.12:3306 check backup\n", onlyBackups},
		{"backups in the place of servers by records", convert.HAProxy, galera +
			"  server-template a 2 _db._tcp.example.org check\n  server b 192.0.2.12:3306 check backup\n", onlyBackups},
		{"a backup in the place of a socket", convert.Nginx, "stream {\nupstream u {\nserver unix:/x;\nserver 192.0.2.12:80 backup;\n}\n" +
			"server { listen 192.0.2.10:80; proxy_pass u; }\n}\n", onlyBackups},
		{"a sorry server in the place of one that is not read", convert.Keepalived, "virtual_server 192.0.2.10 80 {\n  protocol TCP\n" +
			"  sorry_server 192.0.2.13 80\n  real_server <ip> 80 {\n    TCP_CHECK {\n    }\n  }\n}\n", onlyBackups},
		{"a digest", convert.Keepalived, urls("url {\n path /h\n digest 640205b7b0fc66c1ea91c463fac6334d\n }\n"),
			"f:6 is " + keepOut},
		{"two URLs", convert.Keepalived, urls("url {\n path /a\n }\nurl {\n path /b\n }\n"), "f:7 is " + keepOut},
		{"two checks of one server", convert.Keepalived, urls("url {\n path /a\n }\n } MISC_CHECK { misc_path /bin/x\n"),
			"f:7 is " + keepOut},
		{
			"sorry servers alone can be used", convert.Keepalived,
			"virtual_server 192.0.2.10 80 {\n  protocol TCP\n  sorry_server 192.0.2.13 80\n" +
				"  real_server 192.0.2.10 80 { TCP_CHECK { } }\n}\n",
			onlyBackups,
		},
		{
			"rules about the sender of a PROXY header", convert.HAProxy,
			"listen a\n  bind 192.0.2.10:80 accept-proxy\n  tcp-request connection reject if !{ src 10.0.0.0/8 }\n" +
				haproxyServers,
			"f:3 looks at who sends the PROXY header",
		},
		{
			"a backend that is looked up", convert.HAProxy,
			"frontend a\n  bind 192.0.2.10:80\n  use_backend %[src,map(/m)]\n  default_backend b\nbackend b\n" + haproxyServers,
			"f:3 chooses the backend by something of the connection",
		},
		{
			"rules about the sender of a PROXY header in nginx", convert.Nginx,
			stream("server { listen 192.0.2.10:80 proxy_protocol; allow 10.0.0.0/8; deny all; proxy_pass api; }"),
			"look at who sends the PROXY header",
		},
		{
			"a PROXY header on one of two ports", convert.HAProxy,
			"listen a\n  bind 192.0.2.10:80\n  bind 192.0.2.10:81 accept-proxy\n" + haproxyServers,
			"f:3 wants a PROXY header on some of its addresses alone",
		},
		{
			"a PROXY header on one of two ports in nginx", convert.Nginx,
			stream("server { listen 192.0.2.10:80;\nlisten 192.0.2.10:81 proxy_protocol; proxy_pass api; }"),
			"f:4 wants a PROXY header on some of its addresses alone",
		},
		{
			"servers told apart by their names", convert.Nginx,
			stream("server { listen 192.0.2.10:443; server_name a.example.org; proxy_pass api; }\n" +
				"server { listen 192.0.2.10:443; server_name b.example.org; proxy_pass 192.0.2.13:443; }"),
			"none of the 2 load balancers",
		},
		{
			"another script decides in nginx", convert.Nginx,
			stream("server { listen 192.0.2.10:443; access_by_lua_block { x; } proxy_pass api; }"), "has a script decide",
		},
		{
			"a script decides in nginx", convert.Nginx,
			stream("server { listen 192.0.2.10:443; js_access main.check; proxy_pass api; }"), "has a script decide",
		},
		{
			"TLS towards the servers in nginx", convert.Nginx,
			stream("server { listen 192.0.2.10:443; proxy_ssl on; proxy_pass api; }"), "begins TLS towards the servers",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := convert.Convert([]convert.File{{Name: "f", Format: tt.kind, Data: []byte(tt.text)}}, group)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q\n%s", err, tt.want, res.YAML)
			}
		})
	}
}

// TestFolders checks that a file belongs to the include that names its folder.
func TestFolders(t *testing.T) {
	main := "include /etc/nginx/modules-enabled/*.conf;\nhttp { include /etc/nginx/conf.d/*.conf; }\n" +
		"stream { include /etc/nginx/stream.d/*.conf; allow 10.0.0.0/8; deny all; }\n"
	res, err := convert.Convert([]convert.File{
		{Name: "nginx.conf", Data: []byte(main)},
		{Name: "stream.d/lb.conf", Data: []byte("server { listen 192.0.2.10:80; proxy_pass 10.0.0.1:80; }\n")},
		{Name: "conf.d/web.conf", Data: []byte("server { listen 81; location / { proxy_pass http://10.0.0.1; } }\n")},
	}, group)
	if err != nil || !strings.Contains(string(res.YAML), "port: 80\n  allow: [10.0.0.0/8]") || res.LoadBalancers != 1 {
		t.Errorf("error %v\n%s", err, res.YAML)
	}
	_, err = convert.Convert([]convert.File{
		{Name: "nginx.conf", Data: []byte(main)},
		{Name: "x/lb.conf", Data: []byte("server { listen 192.0.2.10:80; proxy_pass 10.0.0.1:80; }\n")},
	}, group)
	if err == nil || !strings.Contains(err.Error(), "may be included by nginx.conf:") {
		t.Errorf("error %v", err)
	}
}

// TestTimeOfAddresses checks that thousands of load balancers on one port, which have to share names, do not take too
// long.
func TestTimeOfAddresses(t *testing.T) {
	var text strings.Builder
	text.WriteString("stream {\n")
	for i := range 6_000 {
		fmt.Fprintf(&text, "server { listen 10.1.%d.%d:80; proxy_pass 10.0.0.1:80; }\n", i/256, i%256)
	}
	text.WriteString("}\n")
	begun := time.Now()
	peers := convert.Addresses{Peers: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}}
	for _, given := range []convert.Addresses{{}, peers} {
		_, err := convert.Convert([]convert.File{{Name: "f", Data: []byte(text.String())}}, given)
		if took := time.Since(begun); took > time.Minute || err == nil || !strings.Contains(err.Error(), "more than 1000") {
			t.Errorf("took %v, error %v", took, err)
		}
	}
	text.Reset()
	for i := range 900 {
		fmt.Fprintf(&text, "frontend f%d\nbind 192.0.2.10:%d\ndefault_backend b\n", i, i+1)
	}
	text.WriteString("backend b\n")
	for i := range 900 {
		fmt.Fprintf(&text, "server s%d 10.0.%d.%d:80 check inter %ds\n", i, i/256, i%256, i+1)
	}
	begun = time.Now()
	_, err := convert.Convert([]convert.File{{Name: "f", Data: []byte(text.String())}}, peers)
	if took := time.Since(begun); took > time.Minute || err == nil || !strings.Contains(err.Error(), "fewer frontends") {
		t.Errorf("took %v, error %v", took, err)
	}
}

// has checks what a configuration has to have, and what it must not.
func has(t *testing.T, yaml string, want, not []string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(yaml, w) {
			t.Errorf("lacks %q:\n%s", w, yaml)
		}
	}
	for _, n := range not {
		if strings.Contains(yaml, n) {
			t.Errorf("has %q:\n%s", n, yaml)
		}
	}
}
