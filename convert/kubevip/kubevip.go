package kubevip

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"appliance/convert/draft"
	"appliance/convert/syntax"
)

// Read adds what a config.yaml of kube-vip 0.1 says to d.
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
		return fmt.Errorf("%s: is not kube-vip's config.yaml, which is a mapping",
			syntax.Place{File: file, Line: root.Line})
	}
	d.Group = true
	for _, p := range pairs(d, file, root) {
		readKey(d, p)
	}
	return nil
}

// A pair is a key with its value, which is empty if more is nested below.
type pair struct {
	syntax.Statement
	key, value string
	node       *yaml.Node
}

// within is the place of a node in the file of p.
func (p pair) within(n *yaml.Node) syntax.Place { return syntax.Place{File: p.File, Line: n.Line} }

// pairs are the keys of a mapping, in lower case as kube-vip compared them.
func pairs(d *draft.Draft, file string, n *yaml.Node) []pair {
	var list []pair
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		p := pair{key: strings.ToLower(k.Value), node: v}
		p.Place, p.Words = syntax.Place{File: file, Line: k.Line}, []string{k.Value + ":"}
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

// items calls read with the place and the pairs of each mapping in the list p.
func items(d *draft.Draft, owner *draft.LB, p pair, read func(at syntax.Place, list []pair)) {
	if p.node.Kind != yaml.SequenceNode {
		if p.value != "" || p.node.Kind == yaml.MappingNode {
			d.Note(owner, p.Statement, "is not a list; write one line with - for each")
		}
		return
	}
	if len(p.node.Content) > draft.MaxList {
		d.Note(owner, p.Statement, "has more than %d entries", draft.MaxList)
		return
	}
	for _, n := range p.node.Content {
		if n.Kind != yaml.MappingNode {
			d.Note(owner, syntax.Statement{Place: p.within(n), Words: []string{"-", n.Value}},
				"is not a mapping; write address: and port:")
		}
	}
	for _, n := range p.node.Content {
		read(p.within(n), pairs(d, p.File, n))
	}
}

// readKey reads a key at the top.
func readKey(d *draft.Draft, p pair) {
	addPeer := func(at syntax.Place, list []pair) { readPeer(d, at, list) }
	set := p.value != ""
	switch p.key {
	case "vip":
		if set {
			d.AddVIP(syntax.Statement{Place: p.Place, Words: []string{p.value}})
		}
	case "interface":
		if set {
			d.SetInterface(p.Statement)
		}
	case "localpeer":
		addPeer(p.Place, pairs(d, p.File, p.node))
	case "remotepeers":
		items(d, nil, p, addPeer)
	case "singlenode":
		d.Single = p.value == "true"
	case "startasleader":
		if p.value == "true" {
			d.Note(nil, p.Statement, "is for one node alone, and this file fits all: "+
				"give --start-as-leader to the first node of a new cluster")
		}
	case "addpeersasbackends":
		d.PeersAsBackends = p.value == "true"
	case "loadbalancers":
		items(d, nil, p, func(at syntax.Place, list []pair) { readLoadBalancer(d, at, list) })
	case "address":
		if set {
			d.Note(nil, p.Statement, "names are not looked up; write the address in vips")
		}
	default:
		if !d.Remark(remarks, p.key, nil, p.Statement) {
			d.Note(nil, p.Statement, draft.IsUnknown)
		}
	}
}

// remarks are the keys at the top that are noted and nothing else.
var remarks = draft.NewRemarks(
	draft.Remark{Keywords: "gratuitousarp vipcidr enableloadbalancer", Moot: true, Text: draft.IsAlways},
	draft.Remark{Keywords: "enableleaderelection leaseduration renewdeadline retryperiod", Moot: true,
		Text: "the peers elect among themselves, without Kubernetes"},
	draft.Remark{Keywords: "enablebgp bgpconfig bgppeerconfig",
		Text: "the virtual address is answered for on the link, not routed"},
	draft.Remark{Keywords: "enablepacket packetapikey packetproject", Text: "no cloud's interface is called"},
)

func readPeer(d *draft.Draft, at syntax.Place, list []pair) {
	peer := draft.PeerEntry{Place: at}
	ok := false
	for _, p := range list {
		switch p.key {
		case "id":
			peer.ID = p.value
		case "address":
			if peer.Addr, ok = draft.ReadAddr(p.value); !ok {
				d.Note(nil, p.Statement, "%s", draft.WrongAddr(p.value))
			}
		case "port":
			peer.Port, _ = draft.ReadPort(p.value)
		default:
			d.Note(nil, p.Statement, draft.IsUnknown)
		}
	}
	if ok {
		d.Peers = append(d.Peers, peer)
	}
}

func readLoadBalancer(d *draft.Draft, at syntax.Place, list []pair) {
	lb := &draft.LB{Statement: syntax.Statement{Place: at, Words: []string{"loadBalancers"}}}
	b := draft.Bind{Statement: lb.Statement, Virtual: true}
	for _, p := range list {
		switch p.key {
		case "name":
			lb.Name = p.value
		case "type":
			if p.value == "http" {
				d.Advise(lb, p.Statement, draft.IsHTTP)
			}
		case "port":
			port, ok := draft.ReadPort(p.value)
			if !ok {
				d.Note(lb, p.Statement, "is no port; write a number from 1 to 65535")
			}
			b.Port, b.Statement = port, p.Statement
		case "bindtovip":
			lb.Everywhere = p.value == "false"
		case "backendport":
			lb.BackendPort, _ = draft.ReadPort(p.value)
		case "backends":
			items(d, lb, p, func(at syntax.Place, list []pair) { readBackend(d, lb, at, list) })
		default:
			d.Note(lb, p.Statement, draft.IsUnknown)
		}
	}
	if b.Port == 0 {
		lb.Refused = "it has no port"
	} else {
		lb.Binds = append(lb.Binds, b)
	}
	lb.PeersAsBackends = d.PeersAsBackends && (len(d.LoadBalancers) == 0 || len(lb.Servers) == 0)
	d.LoadBalancers = append(d.LoadBalancers, lb)
}

func readBackend(d *draft.Draft, lb *draft.LB, at syntax.Place, list []pair) {
	srv := draft.ServerEntry{}
	ok := false
	for _, p := range list {
		switch p.key {
		case "address":
			if p.value == "" {
				continue
			}
			if srv.Addr, ok = draft.ReadAddr(p.value); !ok {
				d.Note(lb, p.Statement, "%s", draft.WrongAddr(p.value))
			}
		case "port":
			if p.value != "0" {
				srv.Port, _ = draft.ReadPort(p.value)
			}
		case "url", "rawurl":
			if p.value == "" {
				continue
			}
			scheme, rest, _ := strings.Cut(p.value, "://")
			host, port := draft.SplitPort(strings.TrimSuffix(rest, "/"))
			if srv.Addr, ok = draft.ReadAddr(host); !ok {
				d.Note(lb, p.Statement, "%s", draft.WrongAddr(host))
				continue
			}
			if srv.Port, _ = draft.ReadPort(port); srv.Port == 0 {
				srv.Port = 80
				if scheme == "https" {
					srv.Port = 443
				}
			}
		case "parsedurl":
		default:
			d.Note(lb, p.Statement, draft.IsUnknown)
		}
	}
	if !ok {
		return
	}
	srv.Port = cmp.Or(srv.Port, lb.BackendPort)
	srv.Place, srv.Words = at, []string{srv.Addr.String(), strconv.Itoa(int(srv.Port))}
	lb.Servers = append(lb.Servers, srv)
}
