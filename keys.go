package main

import (
	"context"
	"crypto/rand"
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

func (n *node) speakIn(secrets [][]byte) {
	if n.prober != nil {
		n.prober.SetKeys(secrets)
	}
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
