package configs

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// good is a valid file; each test adds a mistake.
const good = `vips: [192.0.2.10]
peers: [192.0.2.11, 192.0.2.12, 192.0.2.13]
`

// withLB is good with one load balancer that begins at line 4.
const withLB = good + "loadBalancers:\n- port: 6443\n"

func TestErrors(t *testing.T) {
	const servers = "  backends: [192.0.2.21, 192.0.2.22]\n"
	tests := []struct {
		name string
		file string
		want []string // lines, without "f:"
	}{
		// The file as YAML.
		{"syntax", "vips: [192.0.2.10\npeers: x\n", []string{"1: is not YAML: did not find expected ',' or ']'; " +
			"compare with `appliance config sample`"}},
		{"binary", "\x00\x01", []string{" is not YAML: control characters are not allowed; " +
			"compare with `appliance config sample`"}},
		{"two documents", good + "---\n" + good, []string{"3: begins a second document; write one document, without ---"}},
		{"list", "- a\n", []string{"1: must be a mapping, not a list; compare with `appliance config sample`"}},
		{"alias", "vips: [192.0.2.10]\npeers: &p [192.0.2.11]\nremotePeers: *p\nsingleNode: true\n",
			[]string{"3: remotePeers: is a YAML alias; write the value out, so that its line is its own"}},
		{"tag", good + "interface: !!binary ZXRoMA==\n", []string{"3: interface: has the YAML tag !!binary; " +
			"write the plain value"}},
		{"too large", strings.Repeat("# comment\n", maxFile/9), []string{" is larger than 1048576 bytes, " +
			"which no configuration is; check the path"}},
		{"mapping for value", good + "interface: {name: eth0}\n", []string{"3: interface: must be one value, not a mapping"}},
		{"value for mapping", good + "log: debug\n", []string{"3: log: must be a mapping, not \"debug\"; " +
			"write level: …, format: …, copy: …, connections: … or " +
			"facility: … below it"}},
		{"value for list", "vips: 192.0.2.10\npeers: [192.0.2.11]\nsingleNode: true\n",
			[]string{"1: vips: must be a list, not \"192.0.2.10\"; write one line with - for each"}},
		{"empty element", "vips: [192.0.2.10, ~]\npeers: [192.0.2.11]\nsingleNode: true\n",
			[]string{"1: vips[1]: is empty; write a value or remove the line"}},
		{"endless list", good + "remotePeers: [" + strings.Repeat("a, ", 1001) + "]\n",
			[]string{"3: remotePeers: has 1001 entries; write 1000 at most"}},
		{"list as key", good + "[a]: b\n", []string{"3: has a list as a key; write a name"}},

		{"peers as backends of nothing", good + "loadBalancers: []\naddPeersAsBackends: true\n",
			[]string{"4: addPeersAsBackends: is true, but loadBalancers (line 3) is empty, which balances nothing; " +
				"remove one of the two"}},
		{"worker without load balancers", "role: worker\nloadBalancers: []\n",
			[]string{"1: role: is worker, which serves load balancers, and loadBalancers (line 2) is empty; " +
				"write role: peer, or list some"}},

		// Keys.
		{"unknown key", good + "interfcae: eth0\n", []string{"3: interfcae: is not a known key; did you mean interface?"}},
		{"unknown key below", withLB + "  chekc: {}\n" + servers, []string{"5: loadBalancers[0].chekc: " +
			"is not a known key; did you mean check?"}},
		{"unknown key, none near", good + "log:\n  colour: red\n",
			[]string{"4: log.colour: is not a known key; remove it; known here: level, format, copy, connections, facility"}},
		{"duplicate key", good + "role: peer\nrole: witness\n", []string{"4: role: is already set in line 3; " +
			"keep one of the two"}},
		{"duplicate key, other capitals", good + "role: peer\nRole: witness\n",
			[]string{"4: role: is already set in line 3; keep one of the two"}},
		{"unknown key, known below another", good + "insecure: true\n",
			[]string{"3: insecure: is not a known key; it belongs elsewhere: group.insecure"}},
		{"misspelt, not missing", "vip: 192.0.2.10\npeeers: [192.0.2.11]\n",
			[]string{"2: peeers: is not a known key; did you mean peers?"}},

		// What must be there.
		{"nothing", "", []string{
			" vips: is missing; write vips: [192.0.2.10] with a free address of the network, or give --vip",
			" peers: is missing; list every node's address, or write singleNode: true for a group of one"}},
		{"no backends", withLB, []string{"4: loadBalancers[0].backends: is missing; " +
			"list the servers' addresses, or write addPeersAsBackends: true to take the peers"}},
		{"single without servers", "vip: 192.0.2.10\nsingleNode: true\n",
			[]string{" loadBalancers[0].backends: is missing, and there are no peers to take; " +
				"list the servers' addresses, or this node's own in peers"}},
		{"no local peer", "vip: 192.0.2.10\nremotePeers:\n- address: 192.0.2.11\n",
			[]string{" localPeer.address: is missing; write this node's own address, or list all nodes in peers"}},
		{"peer without address", "vip: 192.0.2.10\npeers:\n- id: a\n- 192.0.2.11\n",
			[]string{"3: peers[0].address: is missing; write the peer's address"}},
		{"backend without address", withLB + "  backends:\n  - port: 1\n",
			[]string{"6: loadBalancers[0].backends[0].address: is missing; write the server's address, such as 192.0.2.11"}},

		// Values.
		{"port", withLB + "  backendPort: 70000\n" + servers, []string{"5: loadBalancers[0].backendPort: " +
			"70000 is not a port; write a number from 1 to 65535"}},
		{"port, octal", withLB + "  backendPort: 0100\n" + servers,
			[]string{"5: loadBalancers[0].backendPort: 0100 is not a port; write a number from 1 to 65535"}},
		{"port 0", good + "group: {port: 0}\n", []string{"3: group.port: 0 is not a port; write a number from 1 to 65535"}},
		{"port in address", withLB + "  backends: ['192.0.2.21:99999']\n",
			[]string{"5: loadBalancers[0].backends[0].address: 99999 is not a port; write a number from 1 to 65535"}},
		{"bool", good + "startAsLeader: yes\n", []string{"3: startAsLeader: yes is neither true nor false; " +
			"write one of them"}},
		{"duration without unit", good + "group: {heartbeat: 100}\n",
			[]string{"3: group.heartbeat: 100 is not a duration; write a number and its unit, such as 150ms"}},
		{"heartbeat short", good + "group: {heartbeat: 10ms}\n", []string{"3: group.heartbeat: 10ms is out of range; " +
			"write a duration from 50ms to 10s"}},
		{"heartbeat long", good + "group: {heartbeat: 1h}\n", []string{"3: group.heartbeat: 1h is out of range; " +
			"write a duration from 50ms to 10s"}},
		{"rise 0", withLB + "  check: {rise: 0}\n" + servers, []string{"5: loadBalancers[0].check.rise: " +
			"0 is not a number from 1 to 1000; write one"}},
		{"weight", withLB + "  backends:\n  - {address: 192.0.2.21, weight: 257}\n",
			[]string{"6: loadBalancers[0].backends[0].weight: 257 is not a number from 0 to 256; write one"}},
		{"scheduler", withLB + "  scheduler: roundrobin\n" + servers,
			[]string{"5: loadBalancers[0].scheduler: roundrobin is not known; write rr, wrr, lc, wlc, sh, random, first, mh, " +
				"sed, nq, dh, lblc, lblcr, ovf, fo or twos"}},
		{"data plane", good + "dataPlane: ivps\n", []string{"3: dataPlane: ivps is not known; did you mean ipvs?"}},
		{"role", good + "role: master\n", []string{"3: role: master is not known; write peer, witness or worker"}},
		{"worker that leads", good + "role: worker\nstartAsLeader: true\n",
			[]string{"3: role: is worker, which is outside the group, but startAsLeader or singleNode is true; " +
				"write role: peer, or remove them"}},
		{"worker that listens nowhere", "role: worker\npeers: [192.0.2.11]\n",
			[]string{" vips: is missing, and kube-apiserver listens nowhere else; " +
				"write vips, or loadBalancers[0].listen: [127.0.0.1, \"::1\"] (--listen)"}},
		{"listening on a virtual address", withLB + "  listen: [192.0.2.10]\n" + servers,
			[]string{"5: loadBalancers[0].listen[0]: 192.0.2.10 is a virtual address, which bindToVip listens on; " +
				"remove it here"}},
		{"type", withLB + "  type: udp\n" + servers, []string{"5: loadBalancers[0].type: udp is not known; write tcp"}},
		{"path", good + "dataDir: data\n", []string{"3: dataDir: data is not an absolute path; begin it with /"}},
		{"interface", good + "interface: a-very-long-interface\n",
			[]string{"3: interface: a-very-long-interface cannot be an interface's name; " +
				"write one that `ip link` shows, or nothing to have it found by the virtual address's subnet"}},
		{"name", withLB + "  name: \"a\\nb\"\n" + servers, []string{"5: loadBalancers[0].name: \"a\\n" +
			"b\" has characters that a name cannot have; use letters, digits, spaces, - and ."}},
		{"long name", withLB + "  name: " + strings.Repeat("x", 65) + "\n" + servers,
			[]string{"5: loadBalancers[0].name: is longer than 64 characters; write a shorter name"}},

		// Addresses.
		{"name for address", "vip: vip.example.org\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n",
			[]string{"1: vip: vip.example.org is a name, not an address; write the address: " +
				"only the names of servers are looked up, because the DNS may be what is down when this is needed"}},
		{"no address", "vip: 192.0.2.300\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n",
			[]string{"1: vip: 192.0.2.300 is not an IP address; write one such as 192.0.2.10 or 2001:db8::10"}},
		{"subnet", "vip: 192.0.2.10\npeers: [192.0.2.11/24, 192.0.2.12, 192.0.2.13]\n",
			[]string{"2: peers[0].address: 192.0.2.11/24 is a subnet; write one address, without the /"}},
		{"prefix", "vip: 192.0.2.10/33\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n",
			[]string{"1: vip: /33 is not the length of a prefix; write 192.0.2.10"}},
		{"VIP with port", "vip: 192.0.2.10:6443\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n",
			[]string{"1: vip: 192.0.2.10:6443 has a port; write the address alone"}},
		{"multicast VIP", "vip: 224.0.0.1\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n",
			[]string{"1: vip: 224.0.0.1 is a multicast address; write the address of one machine"}},
		{"unspecified VIP", "vip: '::'\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n",
			[]string{"1: vip: :: means no address at all; write the address of one machine"}},
		{"broadcast VIP", "vip: 255.255.255.255\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n",
			[]string{"1: vip: 255.255.255.255 is the broadcast address; write the address of one machine"}},
		{"loopback VIP", "vip: ::1\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n",
			[]string{"1: vip: ::1 is a loopback address, which no other machine can reach; " +
				"write a free address of the network"}},
		{"loopback peer", "vip: 192.0.2.10\npeers: [127.0.0.1, 192.0.2.12, 192.0.2.13]\n",
			[]string{"2: peers: 127.0.0.1 is a loopback address, at which no other peer can reach this one; " +
				"write its address on the network"}},
		{"link-local without zone", "vip: 2001:db8::1\npeers: ['fe80::1', 'fe80::2%eth0', 'fe80::3%eth0']\n",
			[]string{"2: peers[0].address: fe80::1 is link-local, which means nothing without its interface; " +
				"write fe80::1%eth0 with the interface's name"}},
		{"zone without link-local", "vip: 2001:db8::1%eth0\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n",
			[]string{"1: vip: 2001:db8::1%eth0 has a zone, which only link-local addresses have; write 2001:db8::1"}},
		{"URL", withLB + "  backends: [{url: nonsense}]\n", []string{"5: loadBalancers[0].backends[0].url: " +
			"nonsense is not a URL; write https://192.0.2.11:6443, or address and port instead"}},
		{"URL with path", withLB + "  backends: [{url: 'https://192.0.2.21:6443/healthz'}]\n",
			[]string{"5: loadBalancers[0].backends[0].url: https://192.0.2.21:6443/healthz says more than an address and a " +
				"port, and TCP can carry no more; write https://192.0.2.21:6443"}},
		{"maxAddresses of an address", withLB + "  backends: [{address: 192.0.2.21, maxAddresses: 2}]\n",
			[]string{"5: loadBalancers[0].backends[0].maxAddresses: is for a server by name, " +
				"and 192.0.2.21:6443 is an address; remove it"}},
		{"name twice", withLB + "  backends: [api.example.org, 'API.example.org:6443']\n",
			[]string{"5: loadBalancers[0].backends[1]: api.example.org:6443 is already a backend; " +
				"remove one of the two, weight says how much it gets"}},
		{"name that cannot be one", withLB + "  backends: [-a.example.org, 'b..example.org:1']\n",
			[]string{"5: loadBalancers[0].backends[0].address: -a.example.org is a name, not an address; " +
				"write the address: only the names of servers are looked up, " +
				"because the DNS may be what is down when this is needed",
				"5: loadBalancers[0].backends[1].address: b..example.org is a name, not an address; " +
					"write the address: only the names of servers are looked up, " +
					"because the DNS may be what is down when this is needed"}},
		{"resolver", withLB + servers + "resolver:\n  nameservers: [dns.example.org]\n  minTTL: 1m\n  maxTTL: 30s\n",
			[]string{"7: resolver.nameservers[0]: dns.example.org is a name, not an address; " +
				"write the address: only the names of servers are looked up, " +
				"because the DNS may be what is down when this is needed",
				"9: resolver.maxTTL: 30s is shorter than resolver.minTTL, 1m (line 8); write more, or less there"}},
		{"URL of another kind", withLB + "  backends: [{url: 'udp://192.0.2.21:53'}]\n",
			[]string{"5: loadBalancers[0].backends[0].url: udp is not a scheme of TCP servers; write https://192.0.2.21:53"}},
		{"URL and address", withLB + "  backends: [{url: 'https://192.0.2.21', address: 192.0.2.21}]\n",
			[]string{"5: loadBalancers[0].backends[0].url: says again what address says; keep one of the two"}},
		{"two ports", withLB + "  backends: [{address: '192.0.2.21:1', port: 2}]\n",
			[]string{"5: loadBalancers[0].backends[0].port: is 2, but address says 1; write one of them"}},
		{"two peer ports", "vip: 192.0.2.10\npeers:\n- {address: '192.0.2.11:1', port: 2}\n- 192.0.2.12\n- 192.0.2.13\n",
			[]string{"3: peers[0].port: is 2, but the address says 1; write one of them"}},

		// Values that contradict each other.
		{"VIP twice", "vip: 192.0.2.10\nvips: ['::ffff:192.0.2.10']\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n",
			[]string{"2: vips[0]: 192.0.2.10 is there twice (line 1); remove one of the two"}},
		{"VIP is a peer", "vip: 192.0.2.10\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.10]\n",
			[]string{"2: peers: 192.0.2.10 is a virtual address (line 1); a peer's own address never moves, write that"}},
		{"VIP is a backend", withLB + "  backends: [192.0.2.10]\n",
			[]string{"5: loadBalancers[0].backends: 192.0.2.10 is a virtual address (line 1), " +
				"so connections would go in circles; write the server's own address"}},
		{"backend is the peer port", withLB + "  backends: ['192.0.2.11:10000']\n",
			[]string{"5: loadBalancers[0].backends: 192.0.2.11:10000 is where peer 192.0.2.11 talks to the group, " +
				"not a server; write the server's port"}},
		{"same id", "vip: 192.0.2.10\npeers:\n- {id: a, address: 192.0.2.11}\n- {id: a, address: 192.0.2.12}\n" +
			"- 192.0.2.13\n", []string{"4: peers: id a is there twice (line 3); every peer needs its own"}},
		{"same address", "vip: 192.0.2.10\npeers:\n- {id: a, address: 192.0.2.11}\n- {id: b, address: 192.0.2.11}\n" +
			"- 192.0.2.13\n", []string{"4: peers: 192.0.2.11 is there twice (line 3); every peer is another machine"}},
		{"further address twice", "vip: 192.0.2.10\npeers:\n- address: 192.0.2.11\n  addresses:\n  - 2001:db8::11\n" +
			"  - 2001:db8::11\n- 192.0.2.12\n- 192.0.2.13\n", []string{"6: peers[0].addresses[1]: " +
			"2001:db8::11 is there twice; remove one of the two"}},
		{"further address is the first", "vip: 192.0.2.10\npeers: [192.0.2.11+192.0.2.11, 192.0.2.12, 192.0.2.13]\n",
			[]string{"2: peers[0].addresses[0]: 192.0.2.11 is there twice; remove one of the two"}},
		{"further address with a port", "vip: 192.0.2.10\npeers: ['192.0.2.11+[2001:db8::11]:1', 192.0.2.12, 192.0.2.13]\n",
			[]string{"2: peers[0].addresses[0]: [2001:db8::11]:1 has a port; write the address alone"}},
		{"further address of two", "vip: 192.0.2.10\npeers:\n- 192.0.2.11+2001:db8::11\n" +
			"- {address: 192.0.2.12, addresses: [2001:db8::11]}\n- 192.0.2.13\n",
			[]string{"4: peers: 2001:db8::11 is there twice (line 3); every peer is another machine"}},
		{"further address is a VIP", "vip: 2001:db8::10\npeers: [192.0.2.11+2001:db8::10, 192.0.2.12, 192.0.2.13]\n",
			[]string{"2: peers: 2001:db8::10 is a virtual address (line 1); a peer's own address never moves, write that"}},
		{"both forms", good + "remotePeers: [{address: 192.0.2.14}]\n",
			[]string{"3: remotePeers: says again what peers (line 2) says; keep peers, which can be the same on every node"}},
		{"both forms, local", good + "localPeer: {address: 192.0.2.14}\n",
			[]string{"3: localPeer.address: says again what peers (line 2) says; " +
				"keep peers, which can be the same on every node"}},
		{"unknown id", good + "localPeer: {id: x}\n", []string{"3: localPeer.id: x is none of the peers; " +
			"write one of 192.0.2.11, 192.0.2.12, 192.0.2.13"}},
		{"single of three", good + "singleNode: true\n", []string{"3: singleNode: is true, but 3 peers are listed; " +
			"write singleNode: false, or list only this node"}},
		{"all witnesses", "vip: 192.0.2.10\npeers: [{address: 192.0.2.11, role: witness}]\nloadBalancers:\n" +
			"- backends: [192.0.2.21]\n", []string{"2: peers: all are witnesses, which never hold; " +
			"write role: peer for the nodes that serve the virtual address"}},
		{"half a CA", good + "group:\n  caFile: /ca\n", []string{
			"3: group.certFile: is missing; caFile, certFile and certKeyFile are needed together",
			"3: group.certKeyFile: is missing; caFile, certFile and certKeyFile are needed together"}},
		{"key and CA", good + "group: {keyFile: /k, caFile: /ca, certFile: /c, certKeyFile: /ck}\n",
			[]string{"3: group.keyFile: and group.caFile are two ways to trust each other; keep one of them"}},
		{"insecure with key", good + "group: {keyFile: /k, insecure: true}\n",
			[]string{"3: group.insecure: is true, but keys are given; remove one of the two"}},
		{"backend twice", withLB + "  backends:\n  - 192.0.2.21\n  - 192.0.2.21:6443\n",
			[]string{"7: loadBalancers[0].backends[1]: 192.0.2.21:6443 is already a backend (line 6); " +
				"remove one of the two, weight says how much it gets"}},
		{"backend name twice", withLB + "  backends:\n  - {address: 192.0.2.21, name: a}\n" +
			"  - {address: 192.0.2.22, name: a}\n", []string{"7: loadBalancers[0].backends[1].name: " +
			"a is already the name of 192.0.2.21:6443; names are how you call them, write another"}},
		{"load balancer's port twice", withLB + servers + "- name: other\n  port: 6443\n" + servers,
			[]string{"7: loadBalancers[1].port: 6443 is already the port of lb-6443 (line 4); " +
				"write another, or make the two one"}},
		{"load balancer's name twice", withLB + servers + "- name: lb-6443\n  port: 443\n" + servers,
			[]string{"6: loadBalancers[1].name: lb-6443 is the name of two load balancers (line 4); write another"}},
		{"every address takes the peer port", good + "loadBalancers:\n- port: 10000\n  bindToVip: false\n" + servers,
			[]string{"4: loadBalancers[0].port: 10000 is the port on which peers talk to each other, and bindToVip: " +
				"false takes it on every address; write another, or bindToVip: true"}},
		{"every address takes the server's", withLB + "  bindToVip: false\n  backends: [192.0.2.11]\n",
			[]string{"6: loadBalancers[0].backends: 192.0.2.11:6443 is where bindToVip: false listens on that peer itself; " +
				"write bindToVip: true, or another port"}},
		{"every address takes loopback's", withLB + "  bindToVip: false\n  backends: ['[::1]:6443']\n",
			[]string{"6: loadBalancers[0].backends: [::1]:6443 is where bindToVip: false listens, so connections would go in " +
				"circles; write bindToVip: true, or another port"}},
		{"listens at its backend", withLB + "  listen: [127.0.0.1, 192.0.2.11]\n  backends: [127.0.0.1, 192.0.2.11]\n",
			[]string{"6: loadBalancers[0].backends: 127.0.0.1:6443 is where this load balancer itself listens, so " +
				"connections would go in circles; write the server's own address, or another port",
				"6: loadBalancers[0].backends: 192.0.2.11:6443 is where this load balancer itself listens, so " +
					"connections would go in circles; write the server's own address, or another port"}},
		{"load balancers in a circle", withLB + "  listen: [127.0.0.1]\n  backends: ['127.0.0.1:81']\n" +
			"- port: 81\n  listen: [127.0.0.1]\n  backends: ['127.0.0.1:6443', 192.0.2.21]\n",
			[]string{"6: loadBalancers[0].backends: 127.0.0.1:81 is another load balancer, which leads back to this one, so " +
				"connections would go in circles; write the server's own address",
				"9: loadBalancers[1].backends: 127.0.0.1:6443 is another load balancer, which leads back to this one, so " +
					"connections would go in circles; write the server's own address"}},
		{"timeout and inter", withLB + "  check: {type: tcp, inter: 1s, timeout: 2s}\n" + servers,
			[]string{"5: loadBalancers[0].check.timeout: 2s is longer than inter, 1s, " +
				"which only checks may be that wait for an answer; write at most 1s"}},
		{"fall longer than a day", withLB + "  check: {inter: 1h, fall: 25}\n" + servers,
			[]string{"5: loadBalancers[0].check.fall: 25 failures 4h apart take longer than a day to be believed; write less"}},
		{"families, forced", "vips: [192.0.2.10, '2001:db8::10']\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\n" +
			"dataPlane: ipvs\n", []string{"3: dataPlane: ipvs cannot carry IPv6 clients to IPv4 backends, " +
			"and kube-apiserver has no other; add IPv6 backends, or write auto or userspace"}},
		{"families, no VIP", withLB + "  dataPlane: direct\n  backends: [192.0.2.21, '2001:db8::21']\n",
			[]string{"5: loadBalancers[0].dataPlane: direct cannot carry IPv4 clients to IPv6 backends, " +
				"and there is no IPv6 virtual address; add one, or write auto or userspace"}},
		{"direct to another port", withLB + "  dataPlane: direct\n  backends: ['192.0.2.11:6443', '192.0.2.12:8443']\n",
			[]string{"6: loadBalancers[0].backends: 192.0.2.12:8443 cannot be served by direct, " +
				"which leaves packets as they are: the server must listen on 6443; change its port, or write dataPlane: auto"}},
		{"no weight", withLB + "  backends: [{address: 192.0.2.21, weight: 0}]\n",
			[]string{"5: loadBalancers[0].backends: all have weight 0, so none gets a connection; " +
				"write 1 for one of them at least"}},

		// Connection options.
		{"queue without limit", withLB + "  backends: [{address: 192.0.2.21, maxqueue: 5}]\n",
			[]string{"5: loadBalancers[0].backends: 192.0.2.21:6443 has maxqueue without maxconn, " +
				"so nobody ever queues for it; write maxconn, or remove maxqueue"}},
		{"queue's timeout without limit", withLB + "  timeouts: {queue: 1s}\n" + servers,
			[]string{"5: loadBalancers[0].timeouts.queue: has no effect: no backend has maxconn, so nobody ever queues; " +
				"write maxconn for the backends, or remove it"}},
		{"queue in ipvs", withLB + "  dataPlane: ipvs\n  timeouts: {queue: 1s}\n" +
			"  backends: [{address: 192.0.2.21, maxconn: 5, maxqueue: 5}]\n", []string{
			"5: loadBalancers[0].dataPlane: backends.maxqueue is done by user space, but dataPlane is ipvs; " +
				"write dataPlane: auto or userspace, or remove it",
			"6: loadBalancers[0].timeouts.queue: is done by user space, but dataPlane is ipvs; " +
				"write dataPlane: auto or userspace, or remove it"}},
		{"negative limit", withLB + "  maxconn: -1\n" + servers, []string{"5: loadBalancers[0].maxconn: " +
			"-1 is not a number from 0 to 1000000; write one"}},
		{"retries", withLB + "  retries: many\n" + servers, []string{"5: loadBalancers[0].retries: " +
			"many is not a number from 0 to 100; write one"}},
		{"PROXY from nobody", withLB + "  acceptProxy: true\n" + servers,
			[]string{"5: loadBalancers[0].acceptProxy: is true, but nobody is named who may send the header; " +
				"write acceptProxyFrom: [192.0.2.5] with the addresses of the proxies before this one"}},
		{"PROXY not accepted", withLB + "  acceptProxyFrom: [192.0.2.5]\n" + servers,
			[]string{"5: loadBalancers[0].acceptProxyFrom: has no effect without acceptProxy: true; " +
				"write it, or remove the list"}},
		{"PROXY version", withLB + "  sendProxy: v3\n" + servers, []string{"5: loadBalancers[0].sendProxy: " +
			"v3 is not known; write v1 or v2"}},
		{"prefix", withLB + "  allow: [example.org]\n" + servers, []string{"5: loadBalancers[0].allow[0]: " +
			"example.org is neither an address nor a prefix; write one such as 192.0.2.0/24 or 2001:db8::/32"}},
		{"prefix with host", withLB + "  deny: [192.0.2.1/24]\n" + servers,
			[]string{"5: loadBalancers[0].deny[0]: 192.0.2.1/24 has bits beyond its length; " +
				"write 192.0.2.0/24, or 192.0.2.1 for the one address"}},
		{"prefix twice", withLB + "  allow: [192.0.2.1, 192.0.2.1/32]\n" + servers,
			[]string{"5: loadBalancers[0].allow[1]: 192.0.2.1/32 is there twice; remove one of the two"}},
		{"allowed and denied", withLB + "  allow: [192.0.2.0/24]\n  deny: [192.0.2.0/24]\n" + servers,
			[]string{"6: loadBalancers[0].deny: 192.0.2.0/24 is in allow (line 5) too, where it has no effect: deny wins; " +
				"remove one of the two"}},
		{"user space, forced elsewhere", withLB + "  dataPlane: nftables\n  requireTLS: 5s\n  persistence: 30m\n" + servers,
			[]string{
				"6: loadBalancers[0].requireTLS: is done by user space, but dataPlane is nftables; " +
					"write dataPlane: auto or userspace, or remove it",
				"7: loadBalancers[0].persistence: is done by user space, but dataPlane is nftables; " +
					"write dataPlane: auto or userspace, or remove it"}},
		{"kernel's scheduler elsewhere", withLB + "  dataPlane: userspace\n  scheduler: mh\n" + servers,
			[]string{"6: loadBalancers[0].scheduler: mh is the kernel's, which only the data plane ipvs asks; " +
				"write dataPlane: ipvs, or another scheduler"}},

		// Several at once, in the order of the file.
		{"several", "log: {level: loud}\nvip: 0.0.0.0\ncolour: red\npeers: [192.0.2.11, host, 192.0.2.13]\n" +
			"group: {port: none}\n", []string{
			"1: log.level: loud is not known; write debug, info, warn or error",
			"2: vip: 0.0.0.0 means no address at all; write the address of one machine",
			"3: colour: is not a known key; remove it; known here: vip, vips, interface, peers, localPeer, remotePeers, " +
				"role, singleNode, startAsLeader, takeover, join, priority, addPeersAsBackends, group, dataPlane, " +
				"loadBalancers, " +
				"resolver, announce, tracks, hooks, dataDir, linger, socket, admin, log",
			"4: peers[1].address: host is a name, not an address; write the address: " +
				"only the names of servers are looked up, because the DNS may be what is down when this is needed",
			"5: group.port: none is not a port; write a number from 1 to 65535"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.file), source(nil, nil))
			var got []string
			for _, e := range unjoin(err) {
				got = append(got, strings.TrimPrefix(e.Error(), "f:"))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	if err != nil {
		return []error{err}
	}
	return nil
}

// Problems with flags and variables use the names that were typed.
func TestErrorsBesideTheFile(t *testing.T) {
	flags := func(m map[string]string) map[string]string {
		all := map[string]string{"vip": "192.0.2.10", "peers": "192.0.2.11,192.0.2.12,192.0.2.13"}
		for k, v := range m {
			all[k] = v
		}
		return all
	}
	tests := []struct {
		name       string
		file       string
		flags, env map[string]string
		want       string
	}{
		{"flag", "", flags(map[string]string{"lb-port": "x"}), nil,
			"--lb-port: x is not a port; write a number from 1 to 65535"},
		{"variable", "", flags(nil), map[string]string{"APPLIANCE_LOG_LEVEL": "wran"},
			"APPLIANCE_LOG_LEVEL: wran is not known; did you mean warn?"},
		{"address in a list", "", flags(map[string]string{"peers": "192.0.2.11,nope,192.0.2.13"}), nil,
			"--peers: nope is a name, not an address; write the address: only the names of servers are looked up, " +
				"because the DNS may be what is down when this is needed"},
		{"empty list", "", flags(map[string]string{"vip": ","}), nil,
			"--vip: is empty; write addresses joined by commas, or leave it out"},
		{"VIP is a peer", "", flags(map[string]string{"vip": "192.0.2.12"}), nil,
			"--peers: 192.0.2.12 is a virtual address; a peer's own address never moves, write that"},
		{"unknown id", "", flags(map[string]string{"id": "x"}), nil,
			"--id: x is none of the peers; write one of 192.0.2.11, 192.0.2.12, 192.0.2.13"},
		{"load balancer's port beside a list", withLB + "  backends: [192.0.2.21]\n", map[string]string{"lb-port": "443"},
			nil,
			"--lb-port: is for the load balancer that is made when none is listed, but f:3 lists some; " +
				"set loadBalancers[0].port there"},
		{"load balancer's port and none", good + "loadBalancers: []\n", map[string]string{"lb-port": "443"}, nil,
			"--lb-port: is for a load balancer, but f:3 says that there is none; remove one of the two"},
		{"listen and none", good + "loadBalancers: []\n", map[string]string{"listen": "127.0.0.1"}, nil,
			"--listen: is for a load balancer, but f:3 says that there is none; remove one of the two"},
		{"nothing", "", nil, nil, "vips: is missing; write vips: [192.0.2.10] with a free address of the network, " +
			"or give --vip\n" +
			"peers: is missing; list every node's address, or write singleNode: true for a group of one"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := ""
			if tt.file != "" {
				name = "f"
			}
			_, err := Parse(name, []byte(tt.file), source(tt.flags, tt.env))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestProblemCanBeFound(t *testing.T) {
	_, err := Parse("f", []byte(good+"role: boss\n"), source(nil, nil))
	var p Problem
	if !errors.As(err, &p) || p.Key != "role" || p.Origin.Line != 3 {
		t.Errorf("the problem in %v is %+v, want role in line 3", err, p)
	}
}

func TestUnreadableFile(t *testing.T) {
	_, err := Load("/nonexistent/config.yaml", source(nil, nil))
	want := "/nonexistent/config.yaml: no such file or directory; write one with `appliance config sample > " +
		"/nonexistent/config.yaml`, or give --vip and --peers"
	if err == nil || err.Error() != want {
		t.Errorf("error is %v\nwant     %s", err, want)
	}
}

// TestNoFile gives what is no file: its error says what it is, and neither a pipe without a writer nor a disk keeps the
// program.
func TestNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo, socket := filepath.Join(dir, "fifo"), filepath.Join(dir, "socket")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for path, want := range map[string]string{
		dir:         dir + ": is a directory; give the path of a YAML file",
		fifo:        fifo + ": is a pipe that gives nothing: nobody writes to it, or it has been read; give the path of a YAML file",
		socket:      socket + ": is a socket or a device that is not there; give the path of a YAML file",
		"/dev/zero": "/dev/zero: is a device; give the path of a YAML file",
	} {
		_, err := Load(path, source(nil, nil))
		var p Problem
		if !errors.As(err, &p) || err.Error() != want {
			t.Errorf("error is %v\nwant     %s, as a Problem", err, want)
		}
	}
	// What a shell's <(...) is.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fmt.Fprint(w, "vips: [192.0.2.10]\npeers: [192.0.2.11, 192.0.2.12, 192.0.2.13]\ngroup: {insecure: true}\n")
	w.Close()
	if cfg, err := Load(fmt.Sprintf("/dev/fd/%d", r.Fd()), source(nil, nil)); err != nil || len(cfg.VIPs) != 1 {
		t.Errorf("a pipe with a configuration: %v", err)
	}
	if _, err := Load(os.DevNull, source(map[string]string{"vip": "192.0.2.10", "peers": "192.0.2.11,192.0.2.12,192.0.2.13",
		"backends": "192.0.2.21"}, nil)); err != nil {
		t.Errorf("%s is not as good as an empty file: %v", os.DevNull, err)
	}
}
