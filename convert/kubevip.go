package convert

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// kubeVIP reads kube-vip 0.1's config.yaml.
func (d *draft) kubeVIP(file string, data []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: is not YAML: %s", printable(file), strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: has a second document; put it into a file of its own", printable(file))
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%s: is not kube-vip's config.yaml, which is a mapping", place{file, root.Line})
	}
	d.group = true
	for _, p := range d.pairs(file, root) {
		d.kubeVIPKey(p)
	}
	return nil
}

// A pair is a key with its value, which is empty where more is nested below.
type pair struct {
	statement
	key, value string
	node       *yaml.Node
}

// pairs are the keys of a mapping, in small letters as kube-vip compared them.
func (d *draft) pairs(file string, n *yaml.Node) []pair {
	var list []pair
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		p := pair{statement: statement{place: place{file, k.Line}, words: []string{k.Value + ":"}}, key: strings.ToLower(k.Value), node: v}
		if v.Kind == yaml.AliasNode {
			d.note(nil, p.statement, "is a YAML alias; write the value out")
			continue
		}
		if v.Kind == yaml.ScalarNode && v.ShortTag() != "!!null" {
			p.value = v.Value
			p.words = append(p.words, v.Value)
		}
		if v.Kind != yaml.MappingNode && v.Kind != yaml.SequenceNode {
			d.lines++
		}
		list = append(list, p)
	}
	return list
}

// items are the elements of a list that are mappings.
func (d *draft) items(owner *service, p pair) []*yaml.Node {
	if p.node.Kind != yaml.SequenceNode {
		if p.value != "" || p.node.Kind == yaml.MappingNode {
			d.note(owner, p.statement, "is not a list; write one line with - for each")
		}
		return nil
	}
	if len(p.node.Content) > maxList {
		d.note(owner, p.statement, "has more than %d entries", maxList)
		return nil
	}
	for _, n := range p.node.Content {
		if n.Kind != yaml.MappingNode {
			d.note(owner, statement{place: place{p.file, n.Line}, words: []string{"-", n.Value}}, "is not a mapping; write address: and port:")
		}
	}
	return p.node.Content
}

func (d *draft) kubeVIPKey(p pair) {
	switch p.key {
	case "vip":
		if p.value == "" {
			return
		}
		d.vrrpAddress(statement{place: p.place, words: []string{p.value}})
	case "interface":
		if p.value != "" {
			d.vrrpInterface(p.statement)
		}
	case "localpeer":
		d.kubeVIPPeer(p.place, d.pairs(p.file, p.node))
	case "remotepeers":
		for _, n := range d.items(nil, p) {
			d.kubeVIPPeer(place{p.file, n.Line}, d.pairs(p.file, n))
		}
	case "singlenode":
		d.single = p.value == "true"
	case "startasleader":
		if p.value == "true" {
			d.note(nil, p.statement, "is for one node alone, and this file fits all: give --start-as-leader to the first node of a new cluster")
		}
	case "addpeersasbackends":
		d.peersAsBackends = p.value == "true"
	case "loadbalancers":
		for _, n := range d.items(nil, p) {
			d.kubeVIPBalancer(place{p.file, n.Line}, d.pairs(p.file, n))
		}
	case "gratuitousarp", "vipcidr", "enableloadbalancer":
		d.moot(nil, p.statement, "%s", isAlways)
	case "address":
		if p.value != "" {
			d.note(nil, p.statement, "names are not looked up; write the address in vips")
		}
	case "enableleaderelection", "leaseduration", "renewdeadline", "retryperiod":
		d.moot(nil, p.statement, "the peers elect among themselves, without Kubernetes")
	case "enablebgp", "bgpconfig", "bgppeerconfig":
		d.note(nil, p.statement, "the virtual address is answered for on the link, not routed")
	case "enablepacket", "packetapikey", "packetproject":
		d.note(nil, p.statement, "no cloud's interface is called")
	default:
		d.note(nil, p.statement, "is not known")
	}
}

func (d *draft) kubeVIPPeer(at place, pairs []pair) {
	one := peer{place: at}
	ok := false
	for _, p := range pairs {
		switch p.key {
		case "id":
			one.id = p.value
		case "address":
			if one.addr, ok = readAddr(p.value); !ok {
				d.note(nil, p.statement, "%s", wrongAddr(p.value))
			}
		case "port":
			one.port, _ = readPort(p.value)
		default:
			d.note(nil, p.statement, "is not known")
		}
	}
	if ok {
		d.peers = append(d.peers, one)
	}
}

func (d *draft) kubeVIPBalancer(at place, pairs []pair) {
	s := &service{statement: statement{place: at, words: []string{"loadBalancers"}}}
	b := bind{statement: s.statement, virtual: true}
	own := true
	for _, p := range pairs {
		switch p.key {
		case "name":
			s.name = p.value
		case "type":
			if p.value == "http" {
				d.advise(s, p.statement, "%s", isHTTP)
			}
		case "port":
			port, ok := readPort(p.value)
			if !ok {
				d.note(s, p.statement, "is no port; write a number from 1 to 65535")
			}
			b.port, b.statement = port, p.statement
		case "bindtovip":
			own = p.value != "false"
		case "backendport":
			s.backendPort, _ = readPort(p.value)
		case "backends":
			for _, n := range d.items(s, p) {
				d.kubeVIPBackend(s, place{p.file, n.Line}, d.pairs(p.file, n))
			}
		default:
			d.note(s, p.statement, "is not known")
		}
	}
	s.everywhere = !own
	if b.port == 0 {
		s.refused = "it has no port"
	} else {
		s.binds = append(s.binds, b)
	}
	s.peersAsBackends = d.peersAsBackends && (len(d.services) == 0 || len(s.servers) == 0)
	d.services = append(d.services, s)
}

func (d *draft) kubeVIPBackend(s *service, at place, pairs []pair) {
	srv := server{statement: statement{place: at, words: []string{"backend"}}}
	ok := false
	for _, p := range pairs {
		switch p.key {
		case "address":
			if p.value == "" {
				continue
			}
			if srv.addr, ok = readAddr(p.value); !ok {
				d.note(s, p.statement, "%s", wrongAddr(p.value))
			}
		case "port":
			if p.value != "0" {
				srv.port, _ = readPort(p.value)
			}
		case "url", "rawurl":
			if p.value == "" {
				continue
			}
			_, rest, _ := strings.Cut(p.value, "://")
			host, port := splitPort(strings.TrimSuffix(rest, "/"))
			if srv.addr, ok = readAddr(host); !ok {
				d.note(s, p.statement, "%s", wrongAddr(host))
				continue
			}
			if srv.port, _ = readPort(port); srv.port == 0 {
				srv.port = map[bool]uint16{true: 443, false: 80}[strings.HasPrefix(p.value, "https:")]
			}
		case "parsedurl":
		default:
			d.note(s, p.statement, "is not known")
		}
	}
	if !ok {
		return
	}
	if srv.port == 0 {
		srv.port = s.backendPort
	}
	srv.words = []string{srv.addr.String(), strconv.Itoa(int(srv.port))}
	s.servers = append(s.servers, srv)
}
