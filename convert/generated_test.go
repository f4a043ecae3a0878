package convert_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
)

// A generator makes configurations of what is common in the files of the field.
type generator struct {
	*rand.Rand
	servers map[string]*testServer
	names   []string
	ports   []uint16
	// at are the addresses of keepalived's servers, which with moves are those of vrrp_instances.
	at    []netip.Addr
	moves bool
	// sticky are the places whose clients stay with one server, even those where they are spread by weight; one without an
	// address is its port on all of them.
	sticky, even map[netip.AddrPort]bool
}

// anywhere is a port on all addresses.
func anywhere(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, port) }

// one is one of some words.
func (g *generator) one(words ...string) string { return words[g.IntN(len(words))] }

// some are n servers in some order.
func (g *generator) some(n int) (list []*testServer) {
	for _, i := range g.Perm(len(g.names))[:n] {
		list = append(list, g.servers[g.names[i]])
	}
	return list
}

// source is a prefix around some of the clients.
func (g *generator) source() string {
	a := clients[g.IntN(len(clients))]
	return netip.PrefixFrom(a, 24+g.IntN(9)).Masked().String()
}

// places are the addresses that a section listens on; empty means all.
func (g *generator) places() []string {
	switch g.IntN(4) {
	case 0:
		return []string{""}
	case 1:
		return []string{addresses[0].String(), addresses[1].String()}
	}
	return []string{addresses[g.IntN(len(addresses))].String()}
}

func (g *generator) haproxy() string {
	g.sticky, g.even = map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	var b strings.Builder
	b.WriteString("global\n maxconn 2000\ndefaults\n mode tcp\n retries 1\n timeout connect 100ms\n timeout client 10s\n" +
		" timeout server 10s\n timeout check 150ms\n default-server inter 200ms rise 1 fall 1\n")
	if g.IntN(2) == 0 {
		b.WriteString(" option redispatch\n")
	}
	condition := func() string {
		return g.one("", " if { src "+g.source()+" }", " unless { src "+g.source()+" }", " if !{ src "+g.source()+" }",
			" if { src "+g.source()+" } or { src "+g.source()+" }", " if { src "+g.source()+" } !{ src "+g.source()+" }")
	}
	rules := func(stages ...string) {
		for range max(0, g.IntN(5)-2) {
			fmt.Fprintf(&b, " tcp-request %s %s%s\n", g.one(stages...), g.one("accept", "reject"), condition())
		}
	}
	usual := g.one("", "", "tcp", "http")
	switch usual {
	case "tcp":
		fmt.Fprintf(&b, " option tcp-check\n tcp-check expect %s\n", g.text())
	case "http":
		fmt.Fprintf(&b, " option httpchk GET /\n http-check expect %s\n", g.answer())
	}
	for i, port := range g.ports {
		fmt.Fprintf(&b, "frontend f%d\n", i)
		for _, at := range g.places() {
			fmt.Fprintf(&b, " bind %s:%d\n", at, port)
		}
		rules("connection", "content")
		fmt.Fprintf(&b, " default_backend b%d\nbackend b%d\n", i, i)
		rules("content")
		balance := g.one("", "roundrobin", "leastconn", "source", "first", "static-rr")
		if balance != "" {
			fmt.Fprintf(&b, " balance %s\n", balance)
		}
		if g.IntN(6) == 0 {
			b.WriteString(" stick-table type ip size 1k expire 30s\n stick on src\n")
			g.sticky[anywhere(port)] = true
		}
		g.sticky[anywhere(port)] = g.sticky[anywhere(port)] || balance == "source"
		g.even[anywhere(port)] = balance == "roundrobin" || balance == "static-rr" || balance == ""
		g.haproxyServers(&b, g.haproxyCheck(&b, usual))
	}
	return b.String()
}

// text is what tcp-check expects of a server's greeting, answer what http-check expects of its page.
func (g *generator) text() string {
	name := g.one(g.names...)
	return g.one("string "+name, "! string "+name, "rstring ^["+name+"x]", "! rstring ^["+name+"d]$", "binary 61")
}

func (g *generator) answer() string {
	return g.one("status 200", "status 200-404", "! status 404", "rstatus ^[23]", "! rstatus ^5", "string am",
		`string "am b"`, "comment x ! status 503",
		"rstring [ab]$", "status 200-302,404", "! string am", `! string "am a"`, "! rstring (am|[bc])$")
}

// haproxyCheck writes how the servers of a backend are checked, and returns which kind of check that is.
func (g *generator) haproxyCheck(b *strings.Builder, usual string) (kind string) {
	switch own := g.IntN(6); {
	case own == 0:
		kind = "http"
		b.WriteString(" option httpchk " + g.one("", "GET /", "GET /other", "HEAD /other") + "\n")
		asks := g.one("", "", " http-check connect default\n", " http-check connect\n http-check send meth GET\n",
			" http-check send hdr X y\n", " http-check send uri /other\n")
		b.WriteString(asks + g.one("", "", "", " http-check disable-on-404\n"))
		expects := g.IntN(3)
		if strings.Contains(asks, "connect") && !strings.Contains(asks, "send") {
			expects = 0 // haproxy then wants a send line
		}
		for range expects {
			fmt.Fprintf(b, " http-check expect %s\n", g.answer())
		}
	case own == 1, own == 2 && usual == "tcp":
		kind = "tcp"
		if own == 1 {
			b.WriteString(" option tcp-check\n")
		}
		if g.IntN(2) == 0 {
			fmt.Fprintf(b, " tcp-check connect\n tcp-check expect %s\n", g.text())
		}
	default:
		kind = usual
	}
	return kind
}

// haproxyServers writes the servers of a backend. Of several ordinary servers with several backups, ours has one
// backup, which a comment says; this is left out here.
func (g *generator) haproxyServers(b *strings.Builder, check string) {
	list := g.some(1 + g.IntN(4))
	backups := g.IntN(2)
	switch {
	case len(list) == 1:
		backups = 0
	case g.IntN(3) == 0:
		backups = len(list) - 1
	case g.IntN(4) == 0:
		b.WriteString(" option allbackups\n")
		backups = g.IntN(len(list))
	}
	checks := g.IntN(5) > 0
	for n, s := range list {
		fmt.Fprintf(b, " server %s %s", s.name, s.at)
		if checks {
			b.WriteString(" check")
			if check == "http" {
				fmt.Fprintf(b, " port %d", s.page)
			}
		}
		if n >= len(list)-backups {
			b.WriteString(" backup")
		} else {
			b.WriteString(g.one("", "", " weight 1", " weight 3"))
		}
		if n > 0 && g.IntN(8) == 0 {
			b.WriteString(" disabled")
		}
		b.WriteString("\n")
	}
}

func (g *generator) nginx() string {
	g.sticky, g.even = map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	var b strings.Builder
	b.WriteString("load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nworker_processes 1;\npid DIR/pid;\n" +
		"error_log DIR/log;\nevents { worker_connections 500; }\nstream {\n" +
		" proxy_connect_timeout 100ms;\n proxy_timeout 10s;\n")
	rules := func() {
		for range max(0, g.IntN(5)-2) {
			fmt.Fprintf(&b, " %s %s;\n", g.one("allow", "deny"), g.source())
		}
		if g.IntN(4) == 0 {
			fmt.Fprintf(&b, " allow %s;\n deny all;\n", g.source())
		}
	}
	if g.IntN(3) == 0 {
		rules()
	}
	for i, port := range g.ports {
		list := g.some(1 + g.IntN(4))
		to := list[0].at.String()
		if len(list) > 1 || g.IntN(2) == 0 {
			to = fmt.Sprintf("u%d", i)
			method := g.one("", "", "least_conn;", "hash $remote_addr consistent;", "hash $remote_addr;", "random;")
			g.sticky[anywhere(port)] = strings.HasPrefix(method, "hash")
			g.even[anywhere(port)] = method == ""
			fmt.Fprintf(&b, " upstream %s {\n %s\n", to, method)
			for n, s := range list {
				words := g.one("", "", " weight=3", " max_fails=2")
				if n > 0 && (method == "" || method == "least_conn;") {
					words += g.one("", "", " backup", " down")
				}
				fmt.Fprintf(&b, " server %s%s fail_timeout=1s;\n", s.at, words)
			}
			b.WriteString(" }\n")
		}
		b.WriteString(" server {\n")
		for _, at := range g.places() {
			fmt.Fprintf(&b, " listen %s%d;\n", map[bool]string{true: at + ":"}[at != ""], port)
		}
		if g.IntN(2) == 0 {
			rules()
		}
		fmt.Fprintf(&b, " proxy_pass %s;\n }\n", to)
	}
	return b.String() + "}\n"
}

// keepalived has at least one check for each server: without any, LVS knows no server that is down. Where the machine
// has addresses for it, they are those of vrrp_instances, or on no interface of theirs.
func (g *generator) keepalived() string {
	g.sticky, g.even = map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	var b strings.Builder
	b.WriteString("$DELAY=2\nglobal_defs {\n router_id x\n}\n")
	if g.moves {
		g.vrrp(&b)
	}
	for n, port := range g.ports {
		if g.IntN(4) == 0 {
			fmt.Fprintf(&b, "virtual_server_group g%d {\n", n)
			for _, at := range g.at {
				fmt.Fprintf(&b, " %s %d\n", at, port)
			}
			b.WriteString("}\n")
			g.virtualServer(&b, fmt.Sprintf("group g%d", n), port, g.at)
			continue
		}
		for i, at := range g.at[:1+g.IntN(len(g.at))] {
			g.virtualServer(&b, fmt.Sprintf("%s %d", at, port), port, g.at[i:i+1])
		}
	}
	if g.IntN(2) == 0 { // is refused, and nothing of it may be served
		fmt.Fprintf(&b, "virtual_server fwmark 1 {\n protocol TCP\n delay_loop 1\n real_server %s %d {\n  TCP_CHECK {\n  }\n }\n}\n",
			g.servers["a"].at.Addr(), g.servers["a"].at.Port())
	}
	return b.String()
}

// vrrp writes instances for the addresses, together or each of its own.
func (g *generator) vrrp(b *strings.Builder) {
	fmt.Fprintf(b, "vrrp_script t {\n script \"/bin/true\"\n interval 1\n%s}\n", g.one("", " weight -20\n", " fall 2\n rise 2\n"))
	list := [][]netip.Addr{g.at}
	if g.IntN(2) == 0 {
		list = [][]netip.Addr{g.at[:1], g.at[1:]}
	}
	for n, some := range list {
		fmt.Fprintf(b, "vrrp_instance v%d {\n interface eth0\n state %s\n priority %s\n virtual_router_id %d\n%s"+
			" unicast_src_ip 192.0.2.1\n unicast_peer {\n  192.0.2.2\n  192.0.2.3\n }\n%s virtual_ipaddress {\n", n,
			g.one("MASTER", "BACKUP"), g.one("100", "150"), n+1, g.one("", " nopreempt\n", " preempt_delay 5\n"),
			g.one("", " track_script {\n  t\n }\n", " track_script {\n  t weight 5\n }\n"))
		for _, at := range some {
			fmt.Fprintf(b, "  %s/32\n", at)
		}
		b.WriteString(" }\n}\n")
	}
}

// virtualServer writes one, which listens on a port of some addresses.
func (g *generator) virtualServer(b *strings.Builder, at string, port uint16, on []netip.Addr) {
	algo := g.one("rr", "wrr", "lc", "wlc", "sh", "")
	stays := algo == "sh"
	fmt.Fprintf(b, "virtual_server %s {\n delay_loop $DELAY\n delay_before_retry 1\n lb_kind NAT\n protocol TCP\n", at)
	if algo != "" {
		fmt.Fprintf(b, " %s %s\n", g.one("lb_algo", "lvs_sched"), algo)
	}
	persists := g.IntN(5) == 0
	if persists {
		b.WriteString(g.one(" persistence_timeout 300\n", " persistence_timeout\n"))
		stays = true
	}
	for _, a := range on {
		g.sticky[netip.AddrPortFrom(a, port)] = stays
		g.even[netip.AddrPortFrom(a, port)] = algo == "rr" || algo == "wrr"
	}
	inhibit := func(line string) string { // with persistence, clients come back to servers that are down
		if persists {
			return ""
		}
		return g.one("", line)
	}
	list := g.some(2 + g.IntN(3))
	if g.IntN(3) == 0 {
		fmt.Fprintf(b, " sorry_server %s %d\n%s", list[0].at.Addr(), list[0].at.Port(), inhibit(" sorry_server_inhibit\n"))
		list = list[1:]
	}
	if g.IntN(4) == 0 {
		b.WriteString(" retry 2\n")
	}
	for _, s := range list {
		fmt.Fprintf(b, " real_server %s %d {\n  weight %s\n", s.at.Addr(), s.at.Port(), g.one("1", "1", "3", "2"))
		if g.IntN(3) == 0 {
			b.WriteString(inhibit("  inhibit_on_failure\n"))
		}
		page := func(kind string, port uint16) string {
			return fmt.Sprintf("  %s {\n   url {\n    path %s\n%s   }\n   connect_port %d\n   connect_timeout 9\n  }\n", kind,
				g.one("/", "/other"), g.one("", "", "    status_code 404\n", "    status_code 200-302\n", "    regex am.[ab]\n", "    regex am.[ab]\n    regex_no_match\n"), port)
		}
		switch g.IntN(9) {
		case 0:
			b.WriteString(page("HTTP_GET", s.page))
		case 1:
			b.WriteString(page("SSL_GET", s.safe))
		case 2:
			fmt.Fprintf(b, "  SMTP_CHECK {\n   connect_port %d\n   connect_timeout 9\n   helo_name x.example.org\n  }\n",
				[]uint16{s.mail, s.mail, s.page}[g.IntN(3)])
		case 3:
			fmt.Fprintf(b, "  delay_loop 9\n  MISC_CHECK {\n   misc_path \"/bin/%s\"\n   misc_timeout 9\n   user root\n  }\n",
				g.one("true", "true", "false"))
		default:
			b.WriteString("  TCP_CHECK {\n   connect_timeout 2\n   retry 2\n  }\n")
		}
		b.WriteString(" }\n")
	}
	b.WriteString("}\n")
}
