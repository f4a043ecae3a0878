package kubevip

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
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
	d.Group, d.Usual = true, true
	for _, p := range pairs(d, nil, file, root) {
		readKey(d, p)
	}
	return nil
}

// A pair is a key with its value, which is empty if more is nested below.
type pair struct {
	draft.Line
	key, value string
	node       *yaml.Node
}

// isTrue reports whether the value is YAML's true, however it is written.
func (p pair) isTrue() bool { return strings.EqualFold(p.value, "true") }

// port reads the value as a port. What is none is noted.
func (p pair) port() (port uint16, ok bool) {
	if port, ok = draft.ReadPort(p.value); !ok {
		p.Note("is no port; write a number from 1 to 65535")
	}
	return port, ok
}

// within is the place of a node in the file of p.
func (p pair) within(n *yaml.Node) syntax.Place { return syntax.Place{File: p.File, Line: n.Line} }

// pairs are the keys of a mapping, in lower case as kube-vip compared them.
func pairs(d *draft.Draft, owner *draft.LB, file string, n *yaml.Node) []pair {
	var list []pair
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		p := pair{Line: draft.Line{Draft: d, Owner: owner}, key: strings.ToLower(k.Value), node: v}
		p.Place, p.Words = syntax.Place{File: file, Line: k.Line}, []string{k.Value + ":"}
		if v.Kind == yaml.AliasNode {
			p.Owner = nil
			p.Note("is a YAML alias; write the value out")
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

// items calls read with each mapping in the list p.
func items(p pair, read func(p pair, n *yaml.Node)) {
	if p.node.Kind != yaml.SequenceNode {
		if p.value != "" || p.node.Kind == yaml.MappingNode {
			p.Note("is not a list; write one line with - for each")
		}
		return
	}
	if len(p.node.Content) > draft.MaxList {
		p.Note("has more than %d entries", draft.MaxList)
		return
	}
	for _, n := range p.node.Content {
		if n.Kind != yaml.MappingNode {
			p.Draft.Note(p.Owner, syntax.Statement{Place: p.within(n), Words: []string{"-", n.Value}},
				"is not a mapping; write address: and port:")
		}
	}
	for _, n := range p.node.Content {
		read(p, n)
	}
}

// readKey reads a key at the top.
func readKey(d *draft.Draft, p pair) {
	set := p.value != ""
	switch p.key {
	case "vip":
		if set {
			d.AddVIP(syntax.Statement{Place: p.Place, Words: []string{p.value}}, "")
		}
	case "interface":
		if set {
			d.Interface = d.ReadInterface(p.Statement)
		}
	case "localpeer":
		named := len(d.Peers)
		readPeer(p, p.node)
		d.AllNamed = d.AllNamed || len(d.Peers) > named
	case "remotepeers":
		items(p, readPeer)
	case "singlenode":
		d.Single = p.isTrue()
	case "startasleader":
		if p.isTrue() {
			p.Note("is for one node alone, and this file fits all: " +
				"give --start-as-leader to the first node of a new cluster")
		}
	case "addpeersasbackends":
		d.PeersAsBackends = p.isTrue()
	case "loadbalancers":
		items(p, readLoadBalancer)
	case "address":
		if set {
			p.Note("names are not looked up; write the address in vips")
		}
	default:
		if !p.Remark(remarks, p.key) {
			p.Note(draft.IsUnknown)
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

// Keywords lists the keys of config.yaml, and what becomes of them.
func Keywords() []draft.Keyword {
	return slices.Concat(
		draft.Keywords("top", []string{"vip", "interface", "localpeer", "remotepeers", "singlenode", "addpeersasbackends",
			"loadbalancers"}, remarks, draft.NewRemarks(
			draft.Remark{Keywords: "startasleader", Text: "is for one node alone: give --start-as-leader to the first node"},
			draft.Remark{Keywords: "address", Text: "names are not looked up; write the address in vips"})),
		draft.Keywords("localpeer, remotepeers", []string{"id", "address", "port"}),
		draft.Keywords("loadbalancers", []string{"name", "type", "port", "bindtovip", "backendport", "backends"}),
		draft.Keywords("backends", []string{"address", "port", "url", "rawurl"},
			draft.NewRemarks(draft.Remark{Keywords: "parsedurl", Moot: true, Text: "url says it"})),
	)
}

func readPeer(of pair, n *yaml.Node) {
	peer := draft.PeerDraft{Place: of.within(n)}
	ok := false
	for _, p := range pairs(of.Draft, nil, of.File, n) {
		switch p.key {
		case "id":
			peer.ID = p.value
		case "address":
			if peer.Addr, ok = draft.ReadAddr(p.value); !ok {
				p.Note("%s", draft.WrongAddr(p.value))
			}
		case "port":
			peer.Port, _ = p.port()
		default:
			p.Note(draft.IsUnknown)
		}
	}
	if ok {
		of.Peers = append(of.Peers, peer)
	}
}

func readLoadBalancer(of pair, n *yaml.Node) {
	d := of.Draft
	lb := &draft.LB{Statement: syntax.Statement{Place: of.within(n), Words: []string{"loadBalancers"}}}
	b := draft.Bind{Statement: lb.Statement, Virtual: true}
	for _, p := range pairs(d, lb, of.File, n) {
		switch p.key {
		case "name":
			lb.Name = p.value
		case "type":
			switch strings.ToLower(p.value) {
			case "", "tcp":
			case "http":
				p.Advise(draft.IsHTTP)
			default:
				lb.Refused = p.Place.String() + ": it is " + syntax.Printable(p.value) + ", and TCP is carried"
			}
		case "port":
			b.Port, _ = p.port()
			b.Statement = p.Statement
		case "bindtovip":
			lb.Everywhere = strings.EqualFold(p.value, "false")
		case "backendport":
			ok := p.value == "" || p.value == "0"
			if !ok {
				lb.BackendPort, ok = p.port()
			}
			if !ok {
				lb.Refused = p.Place.String() + ": its backendPort is no port"
			}
		case "backends":
			items(p, readBackend)
		default:
			p.Note(draft.IsUnknown)
		}
	}
	if b.Port == 0 {
		lb.Refused = "it has no port"
	} else {
		lb.Binds = append(lb.Binds, b)
	}
	const apiserver, beside = 6443, 6444 // the second is kube-vip's example for a server beside it
	is := func(port uint16) bool { return port == apiserver || port == beside }
	if !is(b.Port) && !is(lb.BackendPort) &&
		!slices.ContainsFunc(lb.Servers, func(srv draft.ServerEntry) bool { return is(srv.Port) }) {
		lb.Check.Type = "tcp"
		d.Advise(lb, lb.Statement, "kube-vip looks at no server, so check: {type: tcp} was added; for kube-apiservers remove "+
			"it, which asks https /readyz")
	}
	lb.PeersAsBackends = d.PeersAsBackends && (len(d.LoadBalancers) == 0 || len(lb.Servers) == 0)
	d.LoadBalancers = append(d.LoadBalancers, lb)
}

func readBackend(of pair, n *yaml.Node) {
	lb := of.Owner
	srv := draft.ServerEntry{}
	ok, wrong := false, false
	for _, p := range pairs(of.Draft, lb, of.File, n) {
		switch p.key {
		case "address":
			if p.value == "" {
				continue
			}
			if ok = srv.SetHost(p.value); !ok {
				p.Note("%s", draft.WrongAddr(p.value))
			}
		case "port":
			if p.value != "" && p.value != "0" {
				port, isPort := p.port()
				srv.Port, wrong = port, !isPort
			}
		case "url", "rawurl":
			if p.value == "" {
				continue
			}
			scheme, rest, _ := strings.Cut(p.value, "://")
			rest, _, _ = strings.Cut(rest, "/")
			host, port := draft.SplitPort(rest)
			if ok = srv.SetHost(host); !ok {
				p.Note("%s", draft.WrongAddr(host))
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
			p.Note(draft.IsUnknown)
		}
	}
	if !ok || wrong {
		return
	}
	srv.Port = cmp.Or(srv.Port, lb.BackendPort)
	srv.Place, srv.Words = of.within(n), []string{srv.Where(), strconv.Itoa(int(srv.Port))}
	lb.Servers = append(lb.Servers, srv)
}
