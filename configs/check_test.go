package configs

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"appliance/balancer"
)

// withCheck is a file whose check begins in line 5.
func withCheck(lines string) string {
	return "vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\nloadBalancers:\n- port: 6443\n  check: " +
		lines +
		"\n  backends: [192.0.2.21, 192.0.2.22]\n"
}

var sameAddr = cmpopts.EquateComparable(netip.Addr{})

// TestOwnCheck: a backend's own check says what differs, and has the rest of the load balancer's.
func TestOwnCheck(t *testing.T) {
	head := "vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\nloadBalancers:\n- port: 443\n" +
		"  check: {type: https, path: /up, inter: 4s, fall: 7, timeout: 9s, port: 81, host: a, headers: {X-A: b},\n" +
		"    expect: {status: [204, 205]}, tls: {caFile: /ca, serverName: one}}\n  backends:\n  - 192.0.2.20\n"
	parse := func(own string) (*Config, error) {
		return Parse("f", []byte(head+"  - {address: 192.0.2.21, check: "+own+"}\n"),
			Source{FileExists: func(string) bool { return true }})
	}
	cfg, err := parse("{}")
	if err != nil {
		t.Fatal(err)
	}
	usual := cfg.LoadBalancers[0].Check
	with := func(f func(*balancer.Check)) balancer.Check {
		c := usual
		f(&c)
		return c
	}
	for own, want := range map[string]balancer.Check{
		"{}":         usual,
		"{port: 82}": with(func(c *balancer.Check) { c.Port = 82 }),
		"{address: 192.0.2.99, expect: {status: [200]}, tls: {serverName: two}, " +
			"sendProxy: v2}": with(func(c *balancer.Check) {
			c.Address, c.TLS.ServerName, c.SendProxy = addr("192.0.2.99"), "two", "v2"
			c.Expect.Status = []balancer.StatusRange{{First: 200, Last: 200}}
		}),
		"{headers: {X-C: d}, type: https, inter: 10s}": with(func(c *balancer.Check) {
			c.Headers, c.Inter = []balancer.Header{{Name: "X-C", Value: "d"}}, 10*time.Second
		}),
		"{type: program, exec: [/bin/check, -v], user: www}": {Type: "program",
			Exec: []string{"/bin/check", "-v"}, User: "www",
			Inter: 4 * time.Second, Timeout: 4 * time.Second, Rise: 2, Fall: 7},
		"{type: tcp}": {Type: "tcp", Inter: 4 * time.Second, Timeout: 4 * time.Second, Rise: 2, Fall: 7},
	} {
		cfg, err := parse(own)
		if err != nil {
			t.Errorf("%s: %v", own, err)
			continue
		}
		lb := cfg.LoadBalancers[0]
		if diff := cmp.Diff(want, lb.CheckOf(lb.Backends[1]), sameAddr); diff != "" {
			t.Errorf("%s: %s", own, diff)
		}
		if lb.Backends[0].Check != nil || !cmp.Equal(usual, lb.CheckOf(lb.Backends[0]), sameAddr) {
			t.Errorf("%s: the other backend has %+v", own, lb.Backends[0].Check)
		}
		if got := cfg.ForBalancer()[0].Backends[1].Check; !cmp.Equal(&want, got, sameAddr) {
			t.Errorf("%s: the balancer gets %+v", own, got)
		}
	}
	for own, want := range map[string]string{
		"{type: tcp, path: /}": "f:9: loadBalancers[0].backends[1].check.path: means nothing to a check of type tcp; " +
			"remove it, or write type: https",
		"{type: tcp, sendProxy: v1}": "check.sendProxy: means nothing to a check of type tcp; remove it, or write type: tls",
		"{address: web}":             "backends[1].check.address: web is a name, not an address; write the address",
		"{type: program}":            "check.exec: is missing; write exec: [/path/of/a/program]",
		"{type: program, exec: [a]}": "check.exec[0]: a is not an absolute path; begin it with /",
		"{type: program, exec: [/a], inter: 900ms}": "check.inter: 900ms is too often for a program, each run of which is " +
			"a process more; write inter: 5s",
		"{type: program, exec: [/a], fastinter: 1ms}":       "check.fastinter: 1ms is",
		"{type: program, exec: [/a], tls: {verify: false}}": "check.tls: means nothing to a check of type program",
		"{type: tcp, exec: [/a]}": "check.exec: means nothing to a check of type tcp; remove it, " +
			"or write type: program",
		"{fall: 0}":   "backends[1].check.fall: 0 is not a number from 1 to 1000; write one",
		"{pause: 1s}": "backends[1].check.pause: is not a known key",
	} {
		if _, err := parse(own); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", own, err, want)
		}
	}
	// What is wrong with the load balancer's check is said once.
	bad := strings.Replace(head, "fall: 7", "fall: 0", 1) + "  - {address: 192.0.2.21, check: {}}\n"
	if _, err := parseHere(bad); err == nil || strings.Count(err.Error(), "fall") != 1 {
		t.Errorf("error %v", err)
	}
}

func TestCheck(t *testing.T) {
	const pin = "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="
	kubernetes := balancer.Check{Type: "https", Inter: 500 * time.Millisecond, Timeout: 2 * time.Second, Rise: 2, Fall: 2,
		Method: "GET", Path: "/readyz", Expect: balancer.Expect{Status: []balancer.StatusRange{{First: 200, Last: 200}}}}
	with := func(f func(*balancer.Check)) balancer.Check {
		c := kubernetes
		f(&c)
		return c
	}
	for _, tt := range []struct {
		yaml string
		want balancer.Check
	}{
		{"{}", kubernetes},
		{"{inter: 10s, downinter: 5s, fastinter: 100ms, rise: 3, fall: 4}", with(func(c *balancer.Check) {
			c.Inter, c.DownInter, c.FastInter, c.Rise, c.Fall, c.Timeout = 10*time.Second, 5*time.Second, 100*time.Millisecond,
				3, 4, 40*time.Second
		})},
		{"{type: tcp, port: 9000}", balancer.Check{Type: "tcp", Port: 9000, Inter: 500 * time.Millisecond,
			Timeout: 500 * time.Millisecond, Rise: 2, Fall: 2}},
		{"{type: none}", balancer.Check{Type: "none", Inter: 500 * time.Millisecond, Timeout: 500 * time.Millisecond,
			Rise: 2, Fall: 2}},
		{"{type: tls, tls: {caFile: /ca.crt, serverName: etcd}}", balancer.Check{Type: "tls", Inter: 500 * time.Millisecond,
			Timeout: 500 * time.Millisecond, Rise: 2, Fall: 2,
			TLS: balancer.TLSOptions{Verify: true, CAFile: "/ca.crt", ServerName: "etcd"}}},
		{"{type: http, method: HEAD, path: '/healthz?v=1', host: 'a.example:80', expect: {status: [200, 401-403]}}",
			with(func(c *balancer.Check) {
				c.Type, c.Method, c.Path, c.Host = "http", "HEAD", "/healthz?v=1", "a.example:80"
				c.Expect.Status = []balancer.StatusRange{{First: 200, Last: 200}, {First: 401, Last: 403}}
			})},
		{"{headers: {X-A: 'b: c', Accept: text/plain}, expect: {contains: ok, matches: '^o'}}", with(func(c *balancer.Check) {
			c.Headers = []balancer.Header{{Name: "X-A", Value: "b: c"}, {Name: "Accept", Value: "text/plain"}}
			c.Expect.Contains, c.Expect.Matches = "ok", "^o"
		})},
		{"{expect: {absent: bad, mismatches: '^e'}}", with(func(c *balancer.Check) {
			c.Expect.Absent, c.Expect.Mismatches = "bad", "^e"
		})},
		{"{headers: ['X-A: b'], bearerTokenFile: /token, tls: {pin: " + pin + ", certFile: /c, keyFile: /k}}",
			with(func(c *balancer.Check) {
				c.Headers, c.BearerTokenFile = []balancer.Header{{Name: "X-A", Value: "b"}}, "/token"
				c.TLS = balancer.TLSOptions{Pin: pin, CertFile: "/c", KeyFile: "/k"}
			})},
	} {
		cfg, err := Parse("f", []byte(withCheck(tt.yaml)), Source{FileExists: func(string) bool { return true }})
		if err != nil {
			t.Errorf("%s: %v", tt.yaml, err)
			continue
		}
		if diff := cmp.Diff(tt.want, cfg.LoadBalancers[0].Check, sameAddr); diff != "" {
			t.Errorf("%s: %s", tt.yaml, diff)
		}
	}
}

// Each message has the line, the key and what to write.
func TestCheckRefused(t *testing.T) {
	for _, tt := range []struct{ yaml, want string }{
		{"{rise: 0}", "f:5: loadBalancers[0].check.rise: 0 is not a number from 1 to 1000; write one"},
		{"{interval: 1s}", "f:5: loadBalancers[0].check.interval: is not a known key; did you mean inter?"},
		{"{type: icmp}", "write tcp, tls, http, https, none, exchange, redis, smtp, mysql, pgsql, ldap or program"},
		{"{type: tcp, path: /x}", "check.path: means nothing to a check of type tcp; remove it, or write type: https"},
		{"{type: http, tls: {verify: true}}", "check.tls: means nothing to a check of type http; " +
			"remove it, or write type: https"},
		{"{type: none, rise: 2}", "check.rise: means nothing to a check of type none"},
		{"{fastinter: 1s}", "check.fastinter: 1s is longer than inter, 500ms"},
		{"{type: tls, timeout: 1s}", "write at most 500ms"},
		{"{downinter: 10h, rise: 3}", "check.rise: 3 successes 10h apart"},
		{"{inter: 1ms}", "write a duration from 10ms to 24h"},
		{"{path: readyz}", "begin it with /"},
		{"{path: '/a b'}", "begin it with /"},
		{"{host: 'a/b'}", "is not a host"},
		{"{method: TRACE}", "write GET, HEAD, OPTIONS or POST"},
		{"{headers: {'X A': b}}", "is not a header; write name: value"},
		{"{headers: {Host: b}}", "write host: b"},
		{"{headers: {X-A: \"b\\r\\nX-B: c\"}}", "characters that a header cannot have"},
		{"{headers: {X-A: [b]}}", "must be lines of name: value"},
		{"{headers: x}", "must be a list"},
		{"{expect: {status: [100]}}", "is no status of an answer"},
		{"{expect: {status: [300-200]}}", "is no status of an answer"},
		{"{expect: {status: 200}}", "must be a list"},
		{"{expect: {matches: '('}}", "is not a regular expression"},
		{"{method: HEAD, expect: {contains: ok}}", "write method: GET"},
		{"{tls: {serverName: 'a b'}}", "is not a name that a certificate has"},
		{"{expect: {matches: \"(\\n\"}}", "write contains"},
		{"{tls: {pin: abc}}", "is not a SHA-256 in base64"},
		{"{tls: {caFile: /ca, verify: false}}", "is of no use while verify is false"},
		{"{tls: {certFile: /c}}", "keyFile are needed together"},
		{"{bearerTokenFile: /t}", "would give the token to whoever answers"},
		{"{type: http, bearerTokenFile: /t}", "would send the token in clear"},
		{"{tls: {caFile: ca.crt}}", "is not an absolute path"},
	} {
		_, err := Parse("f", []byte(withCheck(tt.yaml)), Source{FileExists: func(string) bool { return true }})
		if err == nil || !strings.Contains(err.Error(), tt.want) ||
			!strings.Contains(err.Error(), "f:5: loadBalancers[0].check") {
			t.Errorf("%s:\n  %v\nwant %s", tt.yaml, err, tt.want)
		}
	}
	for _, tt := range []struct{ yaml, want string }{
		{"{}\n  maxFails: -1", "f:6: loadBalancers[0].maxFails: -1 is not a number"},
		{"{}\n  failTimeout: 1ms", "f:6: loadBalancers[0].failTimeout: 1ms is out of range"},
		{"{}\n  whenAllDown: retry", "f:6: loadBalancers[0].whenAllDown: retry is not known"},
		{"{}\n  onMarkedDown: drop", "f:6: loadBalancers[0].onMarkedDown: drop is not known"},
	} {
		_, err := Parse("f", []byte(withCheck(tt.yaml)), Source{FileExists: func(string) bool { return true }})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s:\n  %v\nwant %s", tt.yaml, err, tt.want)
		}
	}
	all := strings.Replace(withCheck("{}"), "[192.0.2.21, 192.0.2.22]", "[{address: 192.0.2.21, backup: true}]", 1)
	if _, err := Parse("f", []byte(all), Source{FileExists: func(string) bool { return true }}); err == nil ||
		!strings.Contains(err.Error(), "are all backups") {
		t.Error(err)
	}
}

func TestTalkingChecks(t *testing.T) {
	for yaml, want := range map[string]balancer.Check{
		"{type: redis}":                                 {Type: "redis"},
		"{type: mysql, tls: {on: true}}":                {Type: "mysql", TLS: balancer.TLSOptions{On: true}},
		"{type: redis, tls: {on: true, serverName: r}}": {Type: "redis", TLS: balancer.TLSOptions{On: true, ServerName: "r"}},
		"{type: ldap, tls: true}":                       {Type: "ldap", TLS: balancer.TLSOptions{On: true}},
		"{type: smtp}":                                  {Type: "smtp", Hello: "HELO localhost"},
		"{type: smtp, helo: EHLO mx.example.org}":       {Type: "smtp", Hello: "EHLO mx.example.org"},
		"{type: mysql}":                                 {Type: "mysql"},
		"{type: mysql, user: check}":                    {Type: "mysql", User: "check"},
		"{type: pgsql, user: check}":                    {Type: "pgsql", User: "check"},
		`{type: exchange, steps: [{expect: "220 "}, {sendHex: "00 ff"}, {expectHex: "fe"}, {send: "a\r\n"}, ` +
			`{matches: "^b"}]}`: {Type: "exchange", Steps: []balancer.CheckStep{
			{Expect: "220 "}, {Send: "\x00\xff"}, {Expect: "\xfe"}, {Send: "a\r\n"}, {Matches: "^b"}}},
	} {
		want.Inter, want.Timeout, want.Rise, want.Fall = 500*time.Millisecond, 2*time.Second, 2, 2
		cfg, err := parseHere(withCheck(yaml))
		if err != nil {
			t.Errorf("%s: %v", yaml, err)
			continue
		}
		if diff := cmp.Diff(want, cfg.LoadBalancers[0].Check, sameAddr); diff != "" {
			t.Errorf("%s: %s", yaml, diff)
		}
		if _, err := balancer.NewChecker(cfg.LoadBalancers[0].Check); err != nil {
			t.Errorf("%s: %v", yaml, err)
		}
	}
	for _, tt := range [][2]string{
		{"{type: pgsql}", "check.user: is missing, and PostgreSQL begins with a name"},
		{"{type: redis, user: a}", "check.user: means nothing to a check of type redis; remove it, or write type: mysql"},
		{"{type: http, steps: [{send: a}]}",
			"check.steps: means nothing to a check of type http; remove it, or write type: exchange"},
		{"{type: redis, path: /}", "check.path: means nothing to a check of type redis"},
		{"{type: mysql, tls: {verify: true}}", "check.tls.verify: has no effect in clear; write tls: {on: true} beside it"},
		{"{type: https, tls: {on: true}}", "check.tls.on: means nothing to a check of type https"},
		{"{type: ldap, tls: {caFile: /a}}", "check.tls.caFile: has no effect in clear; write tls: {on: true} beside it"},
		{"{type: smtp, helo: mx}", "check.helo: mx is no greeting; write HELO name or EHLO name"},
		{"{type: smtp, helo: 'HELO a b'}", "check.helo: HELO a b is no greeting"},
		{"{type: exchange}", "check.steps: has 0 steps; write from 1 to 50"},
		{"{type: exchange, steps: [{}]}",
			"check.steps[0]: says 0 things; write one of send, sendHex, expect, expectHex, matches, " +
				"absent, absentHex and mismatches"},
		{"{type: exchange, steps: [{send: a, expect: b}]}", "check.steps[0]: says 2 things"},
		{"{type: exchange, steps: [{sendHex: 0g}]}", "check.steps[0].sendHex: 0g is not hexadecimal"},
		{"{type: exchange, steps: [{matches: '('}]}", "check.steps[0].matches: ( is not a regular expression"},
		{"{type: exchange, steps: [{send: " + strings.Repeat("a", 4097) + "}]}", "has 4097 bytes; write 4096 at most"},
		{"{type: exchange, steps: [" + strings.Repeat("{send: a},", 51) + "]}", "has 51 steps; write from 1 to 50"},
	} {
		yaml, want := tt[0], tt[1]
		if _, err := parseHere(withCheck(yaml)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", yaml, err, want)
		}
	}
	// A server's own check has the steps of its load balancer's, or its own.
	cfg, err := parseHere("vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n" +
		"loadBalancers:\n- port: 6379\n" +
		"  check: {type: exchange, steps: [{send: a}, {expect: b}]}\n" +
		"  backends: [{address: 192.0.2.21, check: {port: 1}}, {address: 192.0.2.22, check: {steps: [{expect: c}]}}]\n")
	if err != nil {
		t.Fatal(err)
	}
	lb := cfg.LoadBalancers[0]
	for i, want := range [][]balancer.CheckStep{{{Send: "a"}, {Expect: "b"}}, {{Expect: "c"}}} {
		if got := lb.CheckOf(lb.Backends[i]).Steps; !cmp.Equal(got, want) {
			t.Errorf("steps %v, want %v", got, want)
		}
	}
}
