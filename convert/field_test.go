package convert_test

import (
	"strings"
	"testing"

	"appliance/convert"
)

// TestFilesOfAMachine: a file that says nothing of what it is belongs to the program whose file includes it, and a web
// server's files have nothing that is balanced here.
func TestFilesOfAMachine(t *testing.T) {
	const instance = "vrrp_instance a {\n  interface eth0\n  include vips.inc\n}\n"
	for _, tt := range []struct {
		name      string
		files     map[string]string
		order     []string
		want, not []string
	}{
		{"included files", map[string]string{"k.conf": instance + lvs, "vips.inc": "virtual_ipaddress {\n  192.0.2.10\n}\n",
			"nginx.conf": "include conf.d/*.conf;\nevents { }\nstream { include s/lb.conf; }\n",
			"user.conf":  "user nginx;\n"},
			[]string{"k.conf", "vips.inc", "nginx.conf", "user.conf"},
			[]string{"vips: [192.0.2.10]\n", "user.conf:1: user nginx: is the business of systemd"}, nil},
		{"a web server", map[string]string{
			"k.conf":     "vrrp_instance a {\n  interface eth0\n  virtual_ipaddress {\n    192.0.2.10\n  }\n}\n",
			"nginx.conf": "user www;\nevents { }\nhttp { server { listen 192.0.2.10:80; } }\n"},
			[]string{"k.conf", "nginx.conf"},
			[]string{"loadBalancers: []", "nginx.conf:3: http: only TCP is carried", "user www: is the business of systemd"},
			[]string{"not known"}},
		{"a program that goes on", map[string]string{
			"h.cfg": "listen a\n  mode http\n  bind :80\n  server a 192.0.2.11:80\nlisten b\n  bind :81\n  server a 192.0.2.11:81\n",
			"k.conf": "vrrp_script h {\n  script \"/usr/bin/pidof haproxy\"\n}\nvrrp_instance a {\n  interface eth0\n" +
				"  virtual_ipaddress {\n    192.0.2.10\n  }\n  track_script {\n    h\n  }\n}\n"},
			[]string{"h.cfg", "k.conf"},
			[]string{"exec: [/usr/bin/pidof, haproxy]"}, []string{"not needed any more"}},
		{"a program that is not needed any more", map[string]string{
			"h.cfg": "listen b\n  mode tcp\n  bind :81\n  server a 192.0.2.11:81\n",
			"k.conf": "vrrp_script h {\n  script \"/usr/bin/pidof haproxy\"\n}\nvrrp_instance a {\n  interface eth0\n" +
				"  virtual_ipaddress {\n    192.0.2.10\n  }\n  track_script {\n    h\n  }\n}\n"},
			[]string{"h.cfg", "k.conf"},
			[]string{"not needed any more"}, []string{"exec: [/usr/bin/pidof"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var files []convert.File
			for _, name := range tt.order {
				files = append(files, convert.File{Name: name, Data: []byte(tt.files[name])})
			}
			res, err := convert.Convert(files, convert.Addresses{Peers: group.Peers})
			if err != nil {
				t.Fatal(err)
			}
			has(t, string(res.YAML), tt.want, tt.not)
		})
	}
	_, err := convert.Convert([]convert.File{{Name: "f", Format: convert.Keepalived, Data: []byte(lvs)}},
		convert.Addresses{VIPs: group.VIPs, Peers: append(group.VIPs[:1:1], group.Peers...)})
	if err == nil || !strings.Contains(err.Error(), "192.0.2.10 is given as a peer and is a virtual address") {
		t.Errorf("a peer that is a virtual address: error %v", err)
	}
}

// TestOneFamily: a node that listens on every address of one family lets nobody in by the other.
func TestOneFamily(t *testing.T) {
	const server = "\n  server a 192.0.2.11:80 check\n"
	for _, tt := range []struct {
		kind convert.Format
		text string
		want string // of deny; empty if there is none
	}{
		{convert.HAProxy, "listen a\n  bind :80" + server, `["::/0"]`},
		{convert.HAProxy, "listen a\n  bind *:80\n  tcp-request connection reject if { src 192.0.2.7 }" + server,
			`[192.0.2.7/32, "::/0"]`},
		{convert.HAProxy, "listen a\n  bind :::80 v6only" + server, "[0.0.0.0/0]"},
		{convert.HAProxy, "listen a\n  bind :::80" + server, ""},
		{convert.HAProxy, "listen a\n  bind :80\n  bind :::80 v6only" + server, ""},
		{convert.HAProxy, "listen a\n  bind :80\n  tcp-request connection reject unless { src 192.0.2.0/24 }" + server, ""},
		{convert.HAProxy, "listen a\n  bind :80 accept-proxy" + server, ""},
		{convert.Nginx, "stream { server { listen 80; proxy_pass 192.0.2.11:80; } }\n", `["::/0"]`},
		{convert.Nginx, "stream { server { listen 80; listen [::]:80; proxy_pass 192.0.2.11:80; } }\n", ""},
	} {
		res, err := convert.Convert([]convert.File{{Name: "f", Format: tt.kind, Data: []byte(tt.text)}}, convert.Addresses{})
		if err != nil {
			t.Fatal(err)
		}
		if text := string(res.YAML); !strings.Contains(text, "bindToVip: false\n") ||
			strings.Contains(text, "  deny: "+tt.want) != (tt.want != "") || tt.want == "" && strings.Contains(text, "deny: [") {
			t.Errorf("%s\nwant deny %s:\n%s", tt.text, tt.want, text)
		}
	}
}

// TestDefinitions reads keepalived's own definitions as keepalived.conf(5) has them: replaced where they are used, by
// what they mean then, over several lines too, and in blocks that are read several times.
func TestDefinitions(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{
			"several lines", `
$NET=192.0.${SUB}
$SUB=9
$INSTANCE= \
  vrrp_instance v${NUM} { \
    interface eth${NUM} \
    virtual_ipaddress { \
      ${NET}.1${NUM}/24 \
    } \
  }
$SUB=2
$NUM=0
$INSTANCE
$NUM=1
  $INSTANCE
$RS= \
  real_server ${NET}.${N} $PORT { \

    TCP_CHECK { \
    } \
  }
$PORT=80
virtual_server 192.0.2.10 $PORT {
  protocol TCP
  frobnicate
  $N=21
  $RS
  $N=22
  ${RS}
  ~SEQ(N, 31, 33) $RS
  ~SEQx(N, 0x20, 0x10, 0x30) ~LST({P, Q}, {1, 2}, {3, 4}) real_server 192.0.2.1${P}${Q} 8${Q} { }
}
`, []string{"- {address: 192.0.2.10, interface: eth0}\n- {address: 192.0.2.11, interface: eth1}\n",
				"  - {address: 192.0.2.21}\n  - {address: 192.0.2.22}\n  - {address: 192.0.2.31}\n  - {address: 192.0.2.32}\n" +
					"  - {address: 192.0.2.33}\n  - {address: 192.0.2.112, port: 82, check: {type: none}}\n" +
					"  - {address: 192.0.2.134, port: 84, check: {type: none}}\n", "f:25: frobnicate: is not known"},
		},
		{
			"what is no definition's name", `
$N=0
vrrp_instance a {
  interface eth0
  virtual_ipaddress {
    192.0.2.1$N
    192.0.2.1${N}
    192.0.2.$N/24
    192.0.2.${UNKNOWN}
  }
}
` + lvs, []string{"f:8: 192.0.2.$N/24: ", "f:9: 192.0.2.${UNKNOWN}: ", "vips: [192.0.2.10]\n"},
		},
		{"a secret", "$VRRP_PASSWORD=hunter2\nvrrp_instance a {\n  authentication {\n    auth_pass ${VRRP_PASSWORD}\n  }\n" +
			"  virtual_ipaddress { 192.0.2.10\n }\n}\n" + lvs, []string{"auth_pass ****"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := convert.Convert([]convert.File{{Name: "f", Format: convert.Keepalived, Data: []byte(tt.text)}},
				convert.Addresses{Peers: group.Peers})
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range tt.want {
				if !strings.Contains(string(res.YAML), want) {
					t.Errorf("lacks %q:\n%s", want, res.YAML)
				}
			}
		})
	}
}
