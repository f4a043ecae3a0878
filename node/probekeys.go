package node

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"appliance/raft/auth"
)

// keyRound is the time between two looks at the key files. An operator who rotates keys goes from node to node and is
// not quicker.
const keyRound = 2 * time.Second

// followKeys puts changed group keys into force without a restart. A file that cannot be read changes nothing.
func (n *node) followKeys(ctx context.Context) error {
	now, told := n.site.security.Keys, ""
	switch {
	case len(now) > 0:
	case n.witness(): // it sends no path probes
		<-ctx.Done()
		return nil
	default:
		return n.shareProbeKey(ctx)
	}
	tick := time.NewTicker(keyRound)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		next, err := security(n.cfg)
		if err == nil && !slices.Equal(next.Keys, now) {
			if err = n.group.SetKeys(next.Keys); err == nil {
				now = next.Keys
				if !n.witness() {
					n.changeSecrets(ctx, probeKeys(now))
				}
				n.log.Info("the group keys have changed; new connections use them", "keys", len(now))
			}
		}
		switch {
		case err == nil:
			told = ""
		case err.Error() != told:
			told = err.Error()
			n.log.Error("the group keys cannot be read again; those in force stay", "error", err)
		}
	}
}

// changeSecrets signs path probes with the group's new secrets, and tells the workers.
func (n *node) changeSecrets(ctx context.Context, own [][]byte) {
	s := n.secretsFrom(own)
	if err := n.ask(ctx, request{secrets: &s}); err != nil && ctx.Err() == nil {
		n.log.Error("path probes keep the old secrets", "error", err)
	}
}

// probeKeys returns the secrets that keep strangers from forging path probes of the direct data plane.
func probeKeys(keys []auth.Key) [][]byte {
	var secrets [][]byte
	for _, k := range keys {
		secrets = append(secrets, []byte(k.Text()))
	}
	return secrets
}

// probeSecrets sign path probes: own between the nodes of the group, workers between those and workers.
type probeSecrets struct{ own, workers [][]byte }

// firstSecrets returns the secrets that this node begins with.
func (n *node) firstSecrets() probeSecrets {
	if !n.cfg.Worker() {
		return n.secretsFrom(probeKeys(n.site.security.Keys))
	}
	if !n.site.follows(n.cfg) {
		trusting := [][]byte{nil} // as those of a group without a key
		return probeSecrets{trusting, trusting}
	}
	if l := n.inputs.list; l != nil {
		if s, ok := n.secretsFromPeers(l.ProbeKeys); ok {
			return s
		}
	}
	random := [][]byte{[]byte(rand.Text())} // which no node accepts, until the peers' list arrives
	return probeSecrets{random, random}
}

// open says that a group has neither a key nor certificates: it trusts everybody.
func open(s auth.Security) bool { return len(s.Keys) == 0 && s.CA == "" }

// secretsFrom returns the secrets of a peer whose group has these. The workers' secrets do not reveal the group's. A
// group without a key, whose workers nobody could tell from strangers, has an empty one; a group of certificates has
// none until it has agreed on its own.
func (n *node) secretsFrom(own [][]byte) probeSecrets {
	if open(n.site.security) {
		return probeSecrets{own, [][]byte{nil}}
	}
	var workers [][]byte
	for _, o := range own {
		mac := hmac.New(sha256.New, o)
		mac.Write([]byte("appliance path probes of workers v1"))
		workers = append(workers, hex.AppendEncode(nil, mac.Sum(nil)))
	}
	return probeSecrets{own, workers}
}

// secretsFromPeers returns the secrets that the peers gave this worker, if they gave any: peers of an older version
// send no path probes to workers.
func (n *node) secretsFromPeers(keys []string) (s probeSecrets, ok bool) {
	if len(keys) == 0 || !n.site.follows(n.cfg) {
		return probeSecrets{}, false
	}
	for _, k := range keys {
		s.own = append(s.own, []byte(k))
	}
	s.workers = s.own
	return s, true
}

// keysForWorkers returns what workers that follow this peer sign their path probes with.
func (n *node) keysForWorkers() []string {
	if open(n.site.security) {
		return nil
	}
	var keys []string
	for _, k := range n.inputs.secrets.workers {
		keys = append(keys, string(k))
	}
	return keys
}

// probeKeySetting is the group's setting with the secret of the path probes, if there is no group key to derive it
// from.
const probeKeySetting = "probe/key"

// shareProbeKey gives a group without a group key a secret for the path probes, and follows it. Without one, whoever
// can send frames on the link can forge probes.
func (n *node) shareProbeKey(ctx context.Context) error {
	in := ""
	for {
		changed := n.group.Changed()
		switch secret := n.group.Settings()[probeKeySetting]; {
		case secret != "" && secret != in:
			n.changeSecrets(ctx, [][]byte{[]byte(secret)})
			in = secret
			n.log.Info("path probes are signed with the group's own key")
		case secret == "" && n.group.Status().Role == "leader":
			err := n.group.Propose(ctx, map[string]string{probeKeySetting: rand.Text()})
			if err != nil && ctx.Err() == nil {
				n.log.Debug("no key for path probes yet", "error", err)
			}
		}
		var again <-chan time.Time
		if in == "" {
			again = time.After(keyRound)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		}
	}
}
