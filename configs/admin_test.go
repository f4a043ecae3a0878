package configs

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	group = "vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n"
	// hash is of "correct horse".
	hash = "$2a$10$XJiKEHY8h5DS82iO4QbPTeVp98SLqthTPZX9Vnq3Qu0IP/zggfxua"
)

func TestAdmin(t *testing.T) {
	def := Admin{Listen: []string{"127.0.0.1:10001"}, Path: "/"}
	tests := []struct {
		name, file string
		flags      map[string]string
		want       Admin
		warns      bool
	}{
		{name: "nothing said", want: def},
		{name: "the reference file", file: string(Sample()), want: def},
		{name: "off", file: "admin: {listen: ['off']}", want: Admin{Path: "/"}},
		{name: "in every form",
			file: "admin:\n  listen: ['[::1]:9000', '127.0.0.2', 'unix:/run/a.sock']\n  path: /stats/\n" +
				"  hosts: [VIP.example.org.]\n  hideVersion: true\n",
			want: Admin{Listen: []string{"[::1]:9000", "127.0.0.2:10001", "unix:/run/a.sock"}, Path: "/stats",
				Hosts: []string{"vip.example.org"}, HideVersion: true}},
		{name: "everywhere, with a certificate",
			file: "admin: {listen: [':9000'], certFile: /c, certKeyFile: /k}",
			want: Admin{Listen: []string{"[::]:9000"}, Path: "/", CertFile: "/c", CertKeyFile: "/k"}},
		{name: "orders, on loopback",
			file: "admin: {operate: true, listen: ['127.0.0.1:9000'], users: [{name: a, passwordHash: '" + hash + "'}]}",
			want: Admin{Listen: []string{"127.0.0.1:9000"}, Path: "/", Users: []User{{"a", hash}}, Operate: true}},
		{name: "orders, over TLS",
			file: "admin: {operate: true, listen: [':9000'], certFile: /c, certKeyFile: /k, users: [{name: a, passwordHash: '" +
				hash + "'}]}",
			want: Admin{Listen: []string{"[::]:9000"}, Path: "/", CertFile: "/c", CertKeyFile: "/k",
				Users: []User{{"a", hash}}, Operate: true}},
		{name: "a password in clear",
			file: "admin: {listen: ['192.0.2.11:9000'], users: [{name: a, passwordHash: '" + hash + "'}]}",
			want: Admin{Listen: []string{"192.0.2.11:9000"}, Path: "/", Users: []User{{"a", hash}}}, warns: true},
		{name: "a token in clear",
			file: "admin: {listen: ['192.0.2.11:9000'], tokenFile: /t}",
			want: Admin{Listen: []string{"192.0.2.11:9000"}, Path: "/", TokenFile: "/t"}, warns: true},
		{name: "the flag wins", file: "admin: {listen: ['127.0.0.1:1', '127.0.0.1:2']}",
			flags: map[string]string{"admin-listen": "[::1]:3,127.0.0.1:4"},
			want:  Admin{Listen: []string{"[::1]:3", "127.0.0.1:4"}, Path: "/"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := tt.file
			if !strings.Contains(file, "vips:") {
				file = group + file
			}
			c, err := Parse("f.yaml", []byte(file), source(tt.flags, nil))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, c.Admin); diff != "" {
				t.Error(diff)
			}
			if got := c.Admin.IsDefault(); got != cmp.Equal(tt.want, def) {
				t.Errorf("IsDefault is %v", got)
			}
			warned := false
			for _, w := range c.Warnings {
				warned = warned || strings.Contains(w.String(), "in clear")
			}
			if warned != tt.warns {
				t.Errorf("warned of clear text: %v, want %v", warned, tt.warns)
			}
			for _, v := range c.Show() {
				if strings.Contains(v.Value, "$2a$") {
					t.Errorf("config show prints the hash: %v", v)
				}
			}
		})
	}
}

func TestAdminRefused(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{"admin: {listen: ['192.0.2.11:9000']}", "f.yaml:3: admin.listen: 192.0.2.11:9000 can be reached by other " +
			"machines, and nothing keeps anybody out; write certFile"},
		{"admin: {listen: [':9000']}", "[::]:9000 can be reached by other machines"},
		{"admin: {listen: ['0.0.0.0:9000'], certFile: /c}", "certFile and certKeyFile are needed together"},
		{"admin: {listen: ['192.0.2.10:9000'], tokenFile: /t}", "is a virtual address, which moves"},
		{"admin: {listen: ['192.0.2.11:10000'], tokenFile: /t}", "10000 is the port on which peers talk to each other"},
		{"admin: {listen: [':10000'], tokenFile: /t}", "10000 is the port on which peers talk to each other"},
		{"admin: {listen: ['127.0.0.1:9000', '127.0.0.1:9000']}", "127.0.0.1:9000 is there twice"},
		{"admin: {listen: ['127.0.0.1:9000', 'off']}", "off is there beside addresses"},
		{"admin: {listen: [localhost]}", "localhost is no address; write 127.0.0.1:10001"},
		{"admin: {listen: ['127.0.0.1:0']}", "127.0.0.1:0 is no address"},
		{"admin: {listen: ['unix:run/a']}", "unix:run/a is no socket"},
		{"admin: {operate: true}",
			"admin.operate: is true, but nobody is named who may give orders; write users below admin"},
		{"admin: {operate: true, tokenFile: /t}", "but nobody is named who may give orders"},
		{"admin: {operate: true, listen: ['192.0.2.11:9000'], users: [{name: a, passwordHash: '" + hash + "'}]}",
			"passwords for 192.0.2.11:9000 would cross the network in clear; write certFile and certKeyFile"},
		{"admin: {path: stats}", "stats is not a path; write one that begins with /"},
		{"admin: {path: '/a?b'}", "/a?b has characters that a path here cannot have"},
		{"admin: {path: /a//b}", "/a//b is not a path"},
		{"admin: {hosts: ['https://x']}", "https://x is not the name of a host"},
		{"admin: {users: [{name: a}]}", "admin.users[0].passwordHash: is missing; `appliance passwd` prints one"},
		{"admin: {users: [{name: 'a:b', passwordHash: '" + hash + "'}]}", "a:b is not a user's name"},
		{"admin: {users: [{name: a, passwordHash: '" + hash + "'}, {name: a, passwordHash: '" + hash + "'}]}",
			"a is there twice"},
		{"admin: {users: [{name: a, passwordHash: hunter2}]}", "is not a bcrypt hash"},
		{"admin: {users: [{name: a, passwordHash: '" + strings.Replace(hash, "$10$", "$20$", 1) + "'}]}", "has a cost of 20"},
		{"admin: {listen: ['127.0.0.1:6443']}\nloadBalancers: [{port: 6443, bindToVip: false, backends: ['192.0.2.31']}]",
			"6443 is the port of load balancer lb-6443"},
	} {
		_, err := Parse("f.yaml", []byte(group+tt.file), source(nil, nil))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n got %v\nwant %s", tt.file, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the password is repeated: %v", err)
		}
	}
}
