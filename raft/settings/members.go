package settings

import (
	"encoding/json"
	"net/netip"
	"strings"
)

// These settings belong to the group itself. Raft's own configuration says who votes and where; everything
// else about a member is here.
const (
	ClusterKey    = "cluster"  // tells one group from another
	MemberPrefix  = "member/"  // + id: a member, or one that is expected
	RemovedPrefix = "removed/" // + id: when it was removed
	DrainPrefix   = "drain/"   // + id: it gives up holding
	PinKey        = "pin"      // the id of who shall hold
	ReplacesKey   = "replaces" // the group that an operator has recovered as this one
)

// Reserved says that a setting is not for Propose to change.
func Reserved(key string) bool {
	return key == ClusterKey || key == ReplacesKey ||
		strings.HasPrefix(key, MemberPrefix) || strings.HasPrefix(key, RemovedPrefix)
}

// A Member is what the group knows of one of its peers.
type Member struct {
	Addr    netip.AddrPort `json:"address"`
	Further []netip.Addr   `json:"addresses,omitempty"`
	Witness bool           `json:"witness,omitempty"`
	// Standby has the log and no vote, until it is promoted.
	Standby bool   `json:"standby,omitempty"`
	Version string `json:"version,omitempty"`
}

// MemberOf reads what the group knows of id.
func MemberOf(settings map[string]string, id string) (m Member, ok bool) {
	text, ok := settings[MemberPrefix+id]
	if !ok || json.Unmarshal([]byte(text), &m) != nil {
		return Member{}, false
	}
	return m, true
}

// Text is the member as a setting.
func (m Member) Text() string {
	text, err := json.Marshal(m)
	if err != nil {
		panic("settings: a member has no text: " + err.Error()) // strings and booleans always have one
	}
	return string(text)
}
