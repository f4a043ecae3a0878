package endpoints

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appliance/configs"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestGolden(t *testing.T) {
	const insecure = "\ngroup: {insecure: true}\n"
	for name, tt := range map[string]struct{ config, name string }{
		"kube-apiservers": {"vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]" + insecure, ""},
		"dual-stack-by-name": {"vips: [192.0.2.10, '2001:db8::10']\n" +
			"peers: [192.0.2.11+2001:db8::11, 192.0.2.12+2001:db8::12, 192.0.2.13+2001:db8::13]" + insecure, "api.example.org"},
		"ipv6-only": {"vips: ['2001:db8::10']\npeers: ['2001:db8::11', '2001:db8::12', '2001:db8::13']" + insecure, ""},
		"boxes": {"vips: [192.0.2.10]\npeers: [192.0.2.2, 192.0.2.3, {address: 192.0.2.4, role: witness}]\nloadBalancers:\n" +
			"- {name: kube-apiserver, port: 6443, backends: [192.0.2.11, 192.0.2.12]}\n" +
			"- {name: rke2, port: 9345, check: {type: tcp}, backends: [192.0.2.11, 192.0.2.12]}\n" +
			"- {name: ingress, port: 443, backendPort: 8443, bindToVip: false, check: {type: tcp}, backends: [192.0.2.21]}\n" +
			"- {name: etcd, port: 2379, check: {type: tcp}, backends: [192.0.2.11, 192.0.2.12]}" + insecure, ""},
		"checks": {"vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12]\nloadBalancers:\n" +
			"- {name: web, port: 443, check: {type: http, port: 8081}, backends: [192.0.2.11, 192.0.2.21, web.example.org, " +
			"{address: 192.0.2.22, check: {port: 443}}, {address: 192.0.2.23, check: {type: none}}, " +
			"{address: 192.0.2.24, check: {address: 192.0.2.25}}, {address: 192.0.2.26, check: {address: 127.0.0.1}}]}" +
			insecure, ""},
		"worker": {"role: worker\nloadBalancers:\n- {port: 6443, listen: [127.0.0.1], backends: [192.0.2.11, 192.0.2.12]}\n",
			""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := configs.Parse(name, []byte(tt.config), configs.Source{FileExists: func(string) bool { return false }})
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			if err := New(cfg, tt.name).Text(&b); err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatalf("%v; write it with go test -update", err)
			}
			if b.String() != string(want) {
				t.Errorf("got\n%s\nwant\n%s", &b, want)
			}
		})
	}
}
