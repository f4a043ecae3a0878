package kubevip

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// Read reads kube-vip 0.1's config.yaml.
func Read(d *draft.Draft, file string, data []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: is not YAML: %s", syntax.Printable(file), strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: has a second document; put it into a file of its own", syntax.Printable(file))
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%s: is not kube-vip's config.yaml, which is a mapping", syntax.Place{File: file, Line: root.Line})
	}
	d.Group = true
	for _, p := range pairs(d, file, root) {
		key(d, p)
	}
	return nil
}

// A pair is a key with its value, which is empty where more is nested below.
type pair struct {
	syntax.Statement
	key, value string
	node       *yaml.Node
}

// pairs are the keys of a mapping, in small letters as kube-vip compared them.
func pairs(d *draft.Draft, file string, n *yaml.Node) []pair {
	var list []pair
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		p := pair{Statement: syntax.Statement{Place: syntax.Place{File: file, Line: k.Line}, Words: []string{k.Value + ":"}}, key: strings.ToLower(k.Value), node: v}
		if v.Kind == yaml.AliasNode {
			d.Note(nil, p.Statement, "is a YAML alias; write the value out")
			continue
		}
		if v.Kind == yaml.ScalarNode && v.ShortTag() != "!!null" {
			p.value = v.Value
			p.Words = append(p.Words, v.Value)
		}
		if v.Kind != yaml.MappingNode && v.Kind != yaml.SequenceNode {
			d.Statements++
		}
		list = append(list, p)
	}
	return list
}

// items are the elements of a list that are mappings.
func items(d *draft.Draft, owner *draft.LB, p pair) []*yaml.Node {
	if p.node.Kind != yaml.SequenceNode {
		if p.value != "" || p.node.Kind == yaml.MappingNode {
			d.Note(owner, p.Statement, "is not a list; write one line with - for each")
		}
		return nil
	}
	if len(p.node.Content) > draft.MaxList {
		d.Note(owner, p.Statement, "has more than %d entries", draft.MaxList)
		return nil
	}
	for _, n := range p.node.Content {
		if n.Kind != yaml.MappingNode {
			d.Note(owner, syntax.Statement{Place: syntax.Place{File: p.File, Line: n.Line}, Words: []string{"-", n.Value}}, "is not a mapping; write address: and port:")
		}
	}
	return p.node.Content
}

func key(d *draft.Draft, p pair) {
	switch p.key {
	case "vip":
		if p.value == "" {
			return
		}
		d.AddVIP(syntax.Statement{Place: p.Place, Words: []string{p.value}})
	case "interface":
		if p.value != "" {
			d.SetInterface(p.Statement)
		}
	case "localpeer":
		readPeer(d, p.Place, pairs(d, p.File, p.node))
	case "remotepeers":
		for _, n := range items(d, nil, p) {
			readPeer(d, syntax.Place{File: p.File, Line: n.Line}, pairs(d, p.File, n))
		}
	case "singlenode":
		d.Single = p.value == "true"
	case "startasleader":
		if p.value == "true" {
			d.Note(nil, p.Statement, "is for one node alone, and this file fits all: give --start-as-leader to the first node of a new cluster")
		}
	case "addpeersasbackends":
		d.PeersAsBackends = p.value == "true"
	case "loadbalancers":
		for _, n := range items(d, nil, p) {
			loadBalancer(d, syntax.Place{File: p.File, Line: n.Line}, pairs(d, p.File, n))
		}
	case "gratuitousarp", "vipcidr", "enableloadbalancer":
		d.Moot(nil, p.Statement, "%s", draft.IsAlways)
	case "address":
		if p.value != "" {
			d.Note(nil, p.Statement, "names are not looked up; write the address in vips")
		}
	case "enableleaderelection", "leaseduration", "renewdeadline", "retryperiod":
		d.Moot(nil, p.Statement, "the peers elect among themselves, without Kubernetes")
	case "enablebgp", "bgpconfig", "bgppeerconfig":
		d.Note(nil, p.Statement, "the virtual address is answered for on the link, not routed")
	case "enablepacket", "packetapikey", "packetproject":
		d.Note(nil, p.Statement, "no cloud's interface is called")
	default:
		d.Note(nil, p.Statement, "is not known")
	}
}

func readPeer(d *draft.Draft, at syntax.Place, list []pair) {
	one := draft.PeerEntry{Place: at}
	ok := false
	for _, p := range list {
		switch p.key {
		case "id":
			one.ID = p.value
		case "address":
			if one.Addr, ok = draft.ReadAddr(p.value); !ok {
				d.Note(nil, p.Statement, "%s", draft.WrongAddr(p.value))
			}
		case "port":
			one.Port, _ = draft.ReadPort(p.value)
		default:
			d.Note(nil, p.Statement, "is not known")
		}
	}
	if ok {
		d.Peers = append(d.Peers, one)
	}
}

func loadBalancer(d *draft.Draft, at syntax.Place, list []pair) {
	s := &draft.LB{Statement: syntax.Statement{Place: at, Words: []string{"loadBalancers"}}}
	b := draft.Bind{Statement: s.Statement, Virtual: true}
	own := true
	for _, p := range list {
		switch p.key {
		case "name":
			s.Name = p.value
		case "type":
			if p.value == "http" {
				d.Advise(s, p.Statement, "%s", draft.IsHTTP)
			}
		case "port":
			port, ok := draft.ReadPort(p.value)
			if !ok {
				d.Note(s, p.Statement, "is no port; write a number from 1 to 65535")
			}
			b.Port, b.Statement = port, p.Statement
		case "bindtovip":
			own = p.value != "false"
		case "backendport":
			s.BackendPort, _ = draft.ReadPort(p.value)
		case "backends":
			for _, n := range items(d, s, p) {
				readBackend(d, s, syntax.Place{File: p.File, Line: n.Line}, pairs(d, p.File, n))
			}
		default:
			d.Note(s, p.Statement, "is not known")
		}
	}
	s.Everywhere = !own
	if b.Port == 0 {
		s.Refused = "it has no port"
	} else {
		s.Binds = append(s.Binds, b)
	}
	s.PeersAsBackends = d.PeersAsBackends && (len(d.Services) == 0 || len(s.Servers) == 0)
	d.Services = append(d.Services, s)
}

func readBackend(d *draft.Draft, s *draft.LB, at syntax.Place, list []pair) {
	srv := draft.ServerEntry{Statement: syntax.Statement{Place: at, Words: []string{"backend"}}}
	ok := false
	for _, p := range list {
		switch p.key {
		case "address":
			if p.value == "" {
				continue
			}
			if srv.Addr, ok = draft.ReadAddr(p.value); !ok {
				d.Note(s, p.Statement, "%s", draft.WrongAddr(p.value))
			}
		case "port":
			if p.value != "0" {
				srv.Port, _ = draft.ReadPort(p.value)
			}
		case "url", "rawurl":
			if p.value == "" {
				continue
			}
			_, rest, _ := strings.Cut(p.value, "://")
			host, port := draft.SplitPort(strings.TrimSuffix(rest, "/"))
			if srv.Addr, ok = draft.ReadAddr(host); !ok {
				d.Note(s, p.Statement, "%s", draft.WrongAddr(host))
				continue
			}
			if srv.Port, _ = draft.ReadPort(port); srv.Port == 0 {
				srv.Port = map[bool]uint16{true: 443, false: 80}[strings.HasPrefix(p.value, "https:")]
			}
		case "parsedurl":
		default:
			d.Note(s, p.Statement, "is not known")
		}
	}
	if !ok {
		return
	}
	if srv.Port == 0 {
		srv.Port = s.BackendPort
	}
	srv.Words = []string{srv.Addr.String(), strconv.Itoa(int(srv.Port))}
	s.Servers = append(s.Servers, srv)
}
