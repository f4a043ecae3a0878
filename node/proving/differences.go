package proving

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"appliance/status"
)

// FrontendsKey is the part of what a node serves that lists its frontends, separated by blanks.
const FrontendsKey = "frontends"

// outvotedFor is how long a node must have lacked a frontend that most nodes have: files are changed one by one.
const outvotedFor = 10 * time.Second

// compare names what differs between this node and a peer. A node of an older version says nothing of itself.
func compare(peer string, here, there map[string]string) (ds []status.Difference) {
	if len(there) == 0 {
		return nil
	}
	keys := maps.Clone(here)
	maps.Copy(keys, there)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if here[key] != there[key] {
			ds = append(ds, status.Difference{Peer: peer, Key: key, Here: here[key], There: there[key]})
		}
	}
	return ds
}

// lacks are the frontends that more than half of all nodes have and this one has not, with the nodes that have them.
func lacks(here map[string]string, others map[string]map[string]string) string {
	have := strings.Fields(here[FrontendsKey])
	by := make(map[string][]string)
	for id, serves := range others {
		for _, f := range strings.Fields(serves[FrontendsKey]) {
			if !slices.Contains(have, f) {
				by[f] = append(by[f], id)
			}
		}
	}
	for _, f := range slices.Sorted(maps.Keys(by)) {
		if ids := by[f]; 2*len(ids) > len(others)+1 {
			slices.Sort(ids)
			return fmt.Sprintf("%s, which %s serve, is not in this node's configuration", f, strings.Join(ids, " and "))
		}
	}
	return ""
}

// learn takes what a peer serves.
func (t *Trials) learn(peer string, serves map[string]string) {
	here := t.cfg.Serves()
	t.mu.Lock()
	before := compare(peer, t.compared[peer], t.serves[peer])
	t.serves[peer], t.compared[peer] = serves, here
	now := compare(peer, here, serves)
	why := lacks(here, t.serves)
	switch {
	case why == "":
		t.lacking = time.Time{}
	case t.lacking.IsZero():
		t.lacking = time.Now()
	}
	t.lack = why
	t.mu.Unlock()
	if slices.Equal(before, now) {
		return
	}
	for _, d := range now {
		if slices.Contains(before, d) {
			continue
		}
		t.cfg.Log.Warn("this node and a peer do not serve the same; make their configurations alike",
			"peer", peer, "key", d.Key, "here", d.Here, "there", d.There)
		t.cfg.Note(status.Event{Time: time.Now(), Kind: status.OfPeer, Bad: true, Subject: peer,
			What: "does not serve what this node serves", Reason: d.String()})
	}
	if len(now) == 0 {
		t.cfg.Log.Info("this node and a peer serve the same again", "peer", peer)
	}
}

// forget drops what was learned of nodes that are no members any more.
func (t *Trials) forget(members map[string]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	gone := func(id string, _ map[string]string) bool { return !members[id] }
	maps.DeleteFunc(t.serves, gone)
	maps.DeleteFunc(t.compared, gone)
}

// Differences are what this node and its peers do not have in common.
func (t *Trials) Differences() (ds []status.Difference) {
	here := t.cfg.Serves()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, peer := range slices.Sorted(maps.Keys(t.serves)) {
		ds = append(ds, compare(peer, here, t.serves[peer])...)
	}
	return ds
}

// Outvoted says why this node should not hold: it does not have what most nodes serve.
func (t *Trials) Outvoted() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lacking.IsZero() || time.Since(t.lacking) < outvotedFor {
		return ""
	}
	return t.lack
}
