package node

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"appliance/raft"
)

// keyRound is the time between two looks at the key files: who rotates keys
// goes from node to node, and is not quicker.
const keyRound = 2 * time.Second

// followKeys puts changed group keys into force without a restart. A file that
// cannot be read changes nothing.
func (n *node) followKeys(ctx context.Context) error {
	now, told := n.site.security.Keys, ""
	if len(now) == 0 {
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
				n.speakIn(probeKeys(now))
				n.log.Info("the group keys have changed; new connections use them", "keys", len(now))
			}
		}
		switch {
		case err == nil:
			told = ""
		case err.Error() != told:
			told = err.Error()
			n.log.Error("the group keys were not read again, and those of before stay", "error", err)
		}
	}
}

// probeKeys are the secrets that keep strangers from speaking for nodes in the
// path probes of the direct data plane.
func probeKeys(keys []raft.Key) [][]byte {
	var secrets [][]byte
	for _, k := range keys {
		secrets = append(secrets, []byte(k.Text()))
	}
	return secrets
}

// probeSecrets are what a node's path probes are signed with: among the nodes of
// the group, and between those and workers.
type probeSecrets struct{ own, workers [][]byte }

// probeSecrets are what this node begins with.
func (n *node) probeSecrets() probeSecrets {
	own := probeKeys(n.site.security.Keys)
	switch {
	case !n.cfg.Worker():
		return probeSecrets{own, n.workerSecrets(own)}
	case n.site.follows(n.cfg):
		own = [][]byte{[]byte(rand.Text())} // which nobody understands, until it has the peers' list
		if l := n.list.Load(); l != nil && len(l.ProbeKeys) > 0 {
			own = secretsOf(l.ProbeKeys)
		}
	default:
		own = [][]byte{nil} // as those of a group that trusts everybody
	}
	return probeSecrets{own, own}
}

// workerSecrets are the secrets between workers and a group with secrets of its
// own, which do not come out of them. A group without a key, whose workers
// nobody could tell one from, has an empty one; and one of certificates, none
// until it has agreed on its own.
func (n *node) workerSecrets(own [][]byte) [][]byte {
	if s := n.site.security; len(s.Keys) == 0 && s.CA == "" {
		return [][]byte{nil}
	}
	var secrets [][]byte
	for _, o := range own {
		mac := hmac.New(sha256.New, o)
		mac.Write([]byte("appliance path probes of workers v1"))
		secrets = append(secrets, hex.AppendEncode(nil, mac.Sum(nil)))
	}
	return secrets
}

// speakIn signs path probes with the group's new secrets, and tells the workers.
func (n *node) speakIn(own [][]byte) {
	n.speak(probeSecrets{own, n.workerSecrets(own)})
	n.republish()
}

// speakAsWorker signs a worker's path probes with what the peers have told it.
// Peers of a version that tells nothing speak to no worker.
func (n *node) speakAsWorker(keys []string) {
	if len(keys) == 0 || !n.site.follows(n.cfg) {
		return
	}
	secrets := secretsOf(keys)
	n.speak(probeSecrets{secrets, secrets})
}

func secretsOf(keys []string) (secrets [][]byte) {
	for _, k := range keys {
		secrets = append(secrets, []byte(k))
	}
	return secrets
}

func (n *node) speak(s probeSecrets) {
	n.probing.Store(&s)
	if n.prober != nil {
		n.prober.SetKeys(s.own, s.workers)
	}
}

// probeKeysForWorkers are what workers that follow this peer are to speak with.
func (n *node) probeKeysForWorkers() []string {
	s := n.probing.Load()
	if s == nil || len(n.site.security.Keys) == 0 && n.site.security.CA == "" {
		return nil
	}
	var keys []string
	for _, k := range s.workers {
		keys = append(keys, string(k))
	}
	return keys
}

// probeKeySetting is the group's setting with the secret of the path probes,
// where there is no group key to make it of.
const probeKeySetting = "probe/key"

// shareProbeKey gives a group without a group key a secret for the path probes,
// and follows it. Without one nothing is kept from whoever can send frames on
// the link.
func (n *node) shareProbeKey(ctx context.Context) error {
	in := ""
	for {
		changed := n.group.Changed()
		switch secret := n.group.Settings()[probeKeySetting]; {
		case secret != "" && secret != in:
			n.speakIn([][]byte{[]byte(secret)})
			in = secret
			n.log.Info("path probes are signed with the group's own key")
		case secret == "" && n.group.Status().Role == "leader":
			if err := n.group.Propose(ctx, map[string]string{probeKeySetting: rand.Text()}); err != nil && ctx.Err() == nil {
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
