package configs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParse gives the loader arbitrary input: it must not panic, every error must name
// the file in one line, and a configuration that it accepts must be complete.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds:", err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add(Sample())
	f.Add(spelledOut())
	for _, s := range []string{
		good, withLB, "", "~", "a: &a [*a]", "<<: {vip: 1}", "vip: !!float .nan", "peers: [[]]", "peers: {}",
		"vips: [192.0.2.1/]",
		"? {a: b}\n: c", "vip: \"\\x00\"", "localPeer: {id: \"\\e[31m\"}",
		"loadBalancers: [{backends: [{url: 'http://[::1%25a]:1'}]}]",
		withCheck("{type: http, path: /healthz, headers: {X-A: b}, expect: {status: [200, 300-399], contains: " +
			"ok, matches: ^ok}}"),
		withCheck("{tls: {caFile: /ca.crt, serverName: a, certFile: /c, keyFile: /k}, bearerTokenFile: /t, expect: " +
			"{matches: '('}}"),
		peers3 + "tracks: [{exec: [/a, b], inter: 3s, weight: 2}, {name: x, check: {type: tcp, address: '[::1]:1'}}]\n" +
			"hooks: [{on: [holder], exec: [/a]}, {on: [backend-up], url: 'http://a/b'}]\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data, source(nil, nil))
		for _, e := range unjoin(err) {
			if s := e.Error(); !strings.HasPrefix(s, "f:") || strings.ContainsAny(s, "\n\x1b\x00") {
				t.Errorf("error %q", s)
			}
		}
		if err != nil {
			return
		}
		if len(c.VIPs) == 0 || len(c.LoadBalancers) == 0 || len(c.Peers) == 0 && !c.SingleNode {
			t.Fatalf("accepted without VIP, load balancer or peer: %+v", c)
		}
		for _, v := range c.VIPs {
			if !v.IsValid() || v.Is4In6() || v.IsLoopback() || v.IsMulticast() || v.IsUnspecified() {
				t.Errorf("accepted VIP %s", v)
			}
		}
		for _, lb := range c.LoadBalancers {
			if len(lb.Backends) == 0 || lb.Port == 0 || lb.Check.Rise < 1 || lb.Check.Fall < 1 {
				t.Errorf("accepted %+v", lb)
			}
			for _, be := range lb.Backends {
				if !be.Addr.IsValid() || be.Addr.Port() == 0 || be.Weight < 0 || be.Weight > 256 {
					t.Errorf("accepted backend %+v", be)
				}
			}
		}
		for _, v := range c.Show() {
			if !utf8.ValidString(v.Value) {
				t.Errorf("config show prints %q for %s", v.Value, v.Key)
			}
		}
	})
}
