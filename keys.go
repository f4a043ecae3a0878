package main

import (
	"context"
	"slices"
	"time"
)

// keyRound is the time between two looks at the key files: who rotates keys
// goes from node to node, and is not quicker.
const keyRound = 2 * time.Second

// followKeys puts changed group keys into force without a restart. A file that
// cannot be read changes nothing.
func (n *node) followKeys(ctx context.Context) error {
	now, told := n.site.security.Keys, ""
	if len(now) == 0 {
		<-ctx.Done()
		return nil
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
