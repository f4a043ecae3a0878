package raft

import (
	"fmt"
	"strings"
	"time"
)

// helloRequest asks another peer who it is. Every one tells the heartbeat: without
// it, it would be that of a version that does not tell.
func (g *Group) helloRequest() request {
	return request{Op: opHello, From: g.cfg.ID, Heartbeat: g.cfg.Heartbeat}
}

// differ says that two peers have another heartbeat, or "".
func differ(a, b hello) string {
	if a.Heartbeat == 0 || b.Heartbeat == 0 || a.Heartbeat == b.Heartbeat {
		return ""
	}
	return fmt.Sprintf("group.heartbeat is %v on peer %s and %v on peer %s; write the same value on every peer and restart the appliance there",
		a.Heartbeat, a.ID, b.Heartbeat, b.ID)
}

// oddHeartbeat says that the voters with this peer's heartbeat are no majority, or "".
func (g *Group) oddHeartbeat() string {
	if g.running() == nil {
		return ""
	}
	var others []string
	voters := g.voters(nil)
	for _, id := range voters {
		if beat, known := g.heartbeats.Of(id); id != g.cfg.ID && known && !g.heartbeats.Fits(beat) {
			others = append(others, fmt.Sprintf("%v on peer %s", beat, id))
		}
	}
	if len(others) == 0 || len(voters)-len(others) > len(voters)/2 {
		return ""
	}
	return fmt.Sprintf("group.heartbeat is %v here and %s: this peer neither votes nor holds until a majority has the same; write one value on every peer and restart the appliance there",
		g.cfg.Heartbeat, strings.Join(others, ", "))
}

// heartbeatKey is where the heartbeat is on disk that this peer last took part with.
const heartbeatKey = "heartbeat"

// lastHeartbeat is that of the process before this one, 0 if it is not known.
func (g *Group) lastHeartbeat() time.Duration {
	text, err := g.store.Get([]byte(heartbeatKey))
	if err != nil {
		return 0 // none is stored
	}
	beat, _ := time.ParseDuration(string(text))
	return beat
}

// rememberHeartbeat comes before the first grant of this process.
func (g *Group) rememberHeartbeat() error {
	if g.lastHeartbeat() == g.cfg.Heartbeat {
		return nil
	}
	if err := g.store.BoltStore.Set([]byte(heartbeatKey), []byte(g.cfg.Heartbeat.String())); err != nil {
		return fmt.Errorf("data directory %s: %w; free some space, and start again", g.cfg.DataDir, err)
	}
	return nil
}
