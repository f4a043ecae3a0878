package convert_test

import (
	"fmt"
	"net/netip"

	"appliance/convert"
)

// A haproxy.cfg becomes a configuration of ours. Whatever was not carried over is in a comment, with its line.
func Example() {
	file := convert.File{Name: "haproxy.cfg", Data: []byte(`
defaults
  mode tcp
  timeout client 24h
  timeout server 24h

frontend apiserver
  bind 192.0.2.10:6443
  default_backend control-plane

backend control-plane
  option httpchk GET /readyz
  balance leastconn
  source 192.0.2.1
  server cp1 192.0.2.11:6443 check check-ssl verify none
  server cp2 192.0.2.12:6443 check check-ssl verify none
`)}
	out, err := convert.Convert([]convert.File{file}, convert.Addresses{
		Peers: []netip.Addr{
			netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("192.0.2.4"),
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%d statements, %d to decide\n\n%s", out.Statements, out.Decide, out.YAML)
	// Output:
	// 13 statements, 1 to decide
	//
	// # Made by `appliance convert` of haproxy.cfg.
	// # A comment with a file and a line is about something that was not carried over, or not as it was.
	//
	// # The addresses that are listened on. If they are not virtual, write the one that is.
	// vips: [192.0.2.10]
	// peers:
	// - 192.0.2.2
	// - 192.0.2.3
	// - 192.0.2.4
	// group:
	//   # Make it with `appliance keygen`, and copy it to every peer.
	//   keyFile: /etc/appliance/group.key
	//
	// loadBalancers:
	// # haproxy.cfg:14: source 192.0.2.1: the kernel's routes choose the source address
	// - name: apiserver
	//   port: 6443
	//   scheduler: lc
	//   onMarkedDown: keep
	//   timeouts: {client: 24h, server: 24h}
	//   check:
	//     type: https
	//     inter: 2s
	//     timeout: 2s
	//     rise: 2
	//     fall: 3
	//     method: GET
	//     path: /readyz
	//     expect: {status: [200-399]}
	//     tls: {verify: false}
	//   backends:
	//   - {name: cp1, address: 192.0.2.11}
	//   - {name: cp2, address: 192.0.2.12}
}
