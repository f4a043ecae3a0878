package proving

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"appliance/arp"
	"appliance/neighbours"
	"appliance/proof"
	"appliance/raft"
)

// A question asks another node to try this one.
type question struct {
	Node   string        `json:"node"`
	Trials []proof.Trial `json:"trials,omitempty"`
}

// A questionAnswer is what the other node has found, and what it serves itself.
type questionAnswer struct {
	Findings []proof.TrialResult `json:"findings,omitempty"`
	Problem  string              `json:"problem,omitempty"`
	Serves   map[string]string   `json:"serves,omitempty"`
}

// ask has a peer try this node.
func (t *Trials) ask(ctx context.Context, asker raft.PeerStatus, trials []proof.Trial) ([]proof.TrialResult, error) {
	data, err := json.Marshal(question{Node: t.cfg.Self, Trials: trials})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	data, err = t.cfg.Ask(ctx, asker.ID, data)
	if err != nil {
		if strings.Contains(err.Error(), "unknown request") {
			return nil, errors.New("it runs an older version")
		}
		return nil, err
	}
	var a questionAnswer
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, err
	}
	if len(a.Serves) > 0 {
		t.learn(asker.ID, a.Serves)
	}
	if a.Problem != "" {
		return nil, errors.New(a.Problem)
	}
	return a.Findings, nil
}

// Answer tries another node of the group, which has asked for it.
func (t *Trials) Answer(ctx context.Context, data []byte) ([]byte, error) {
	var q question
	if err := json.Unmarshal(data, &q); err != nil {
		return nil, err
	}
	a := questionAnswer{Serves: t.cfg.Serves()}
	if len(q.Trials) > 0 {
		var err error
		if a.Findings, err = t.tryNode(ctx, q); err != nil {
			a.Problem = err.Error()
		}
	}
	return json.Marshal(a)
}

// tryNode does what a question asks for. It sends to nobody but peers, and for no address but this node's own VIPs: the
// kernel drops the answers for those, whose address is its own.
func (t *Trials) tryNode(ctx context.Context, q question) (all []proof.TrialResult, err error) {
	peers := t.peers()
	i := slices.IndexFunc(peers, func(o raft.PeerStatus) bool { return o.ID == q.Node })
	if i < 0 {
		return nil, fmt.Errorf("%s is no peer in reach", q.Node)
	}
	// One question of each node at a time bounds what they can have this one send. Those of several do not wait for each
	// other: when all have trouble, that would double the time until they know.
	t.mu.Lock()
	busy := t.answering[q.Node]
	t.answering[q.Node] = true
	t.mu.Unlock()
	if busy {
		return nil, fmt.Errorf("a question of %s is being answered", q.Node)
	}
	defer func() {
		t.mu.Lock()
		delete(t.answering, q.Node)
		t.mu.Unlock()
	}()
	type way struct {
		on  string
		is4 bool
	}
	by := make(map[way][]proof.Trial)
	on := t.cfg.Interfaces
	for _, one := range q.Trials {
		name := on[one.Frontend.Addr()]
		if name == "" {
			return nil, fmt.Errorf("%s is not among its own virtual addresses", one.Frontend.Addr())
		}
		w := way{name, one.Frontend.Addr().Is4()}
		by[w] = append(by[w], one)
	}
	for w, trials := range by {
		link, err := neighbours.ReadLink(w.on)
		if err != nil {
			return nil, err
		}
		theirs := slices.DeleteFunc(append(peers[i].Addrs(), peers[i].OnLink...), func(a netip.Addr) bool {
			return a.Is4() != w.is4
		})
		mac, ok := firstMAC(link, theirs)
		onLink, err := arp.AddrsOn(w.on)
		if err != nil {
			return nil, err
		}
		own, haveOwn := t.ownAddress(w.is4, onLink)
		if !ok || !haveOwn {
			return nil, fmt.Errorf("%s is not on its link %s", q.Node, w.on)
		}
		findings, err := proof.FromLink(ctx, link, mac, own, trials)
		if err != nil {
			return nil, err
		}
		all = append(all, findings...)
	}
	return all, nil
}

// firstMAC is the MAC address of the first of a node's addresses that is on the link.
func firstMAC(link neighbours.Link, addrs []netip.Addr) (mac [6]byte, ok bool) {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return link.OffLink(a) != "" })
	macs := link.Find(addrs, true)
	for _, a := range addrs {
		if mac, ok := macs[a]; ok {
			return mac, true
		}
	}
	return mac, false
}

// ownAddress is this node's address of a family, as the other nodes know it: one of those on the link, if there is any,
// as an answer to another leaves by another link.
func (t *Trials) ownAddress(is4 bool, onLink []netip.Addr) (own netip.Addr, ok bool) {
	for _, o := range t.cfg.Peers() {
		if !o.Self {
			continue
		}
		for _, a := range append(o.Addrs(), o.OnLink...) {
			switch {
			case a.Is4() != is4:
			case slices.Contains(onLink, a):
				return a, true
			case !ok:
				own, ok = a, true
			}
		}
	}
	return own, ok
}
