package configs

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"appliance/balancer"
)

// Config is what is in force, valid as a whole. It ends at the node, which hands
// every package what that package needs.
type Config struct {
	// VIPs are the virtual addresses, in the order written.
	VIPs []netip.Addr
	// Interface is where the VIPs are answered for. Empty means the interface
	// whose subnet contains the first VIP of a family.
	Interface string
	// vipInterfaces are the interfaces of the VIPs that name their own.
	vipInterfaces map[netip.Addr]string
	// vipAnnounces say how each of the VIPs is announced.
	vipAnnounces map[netip.Addr]vipAnnounce
	// Announce is for VIPs that are not answered for on the link.
	Announce AnnounceSettings
	// ID says which of the peers this node is; see Self.
	ID string
	// Peers are all members of the group, this node included. They may be empty
	// with SingleNode, with Join, and on a worker.
	Peers []PeerEntry
	// SingleNode is a group of one.
	SingleNode bool
	// StartAsLeader founds the group alone if it does not exist.
	StartAsLeader bool
	// Takeover leaves a VIP that another program has on this host to it, until that gives it up.
	Takeover bool
	// Join are members of the group that this node joins.
	Join []netip.AddrPort
	// Priority is how much this node is preferred as holder, 0 to 255.
	Priority int
	Group    GroupSettings
	// DataPlane is for load balancers that name none of their own.
	DataPlane     balancer.PlaneName
	LoadBalancers []LoadBalancerEntry
	Resolver      ResolverSettings
	Tracks        []TrackEntry
	Hooks         []HookEntry
	DataDir       string
	// Linger is how long the VIPs stay on lo after a stop.
	Linger time.Duration
	Socket string
	Log    LogSettings
	Admin  Admin
	// Warnings are for the operator; everything that they are about works.
	Warnings []Warning

	role     rawValue // this node's own role, if the file says it apart from peers
	idOrigin Origin
	peersKey string // "peers" or "localPeer and remotePeers", for messages
	values   []Value
}

// GroupSettings say how the peers trust and watch each other. They trust each
// other by KeyFile, or by the three files of a CA, or, with Insecure, blindly.
type GroupSettings struct {
	Port    uint16
	KeyFile string
	// OldKeyFile is accepted beside KeyFile, while the key is replaced.
	OldKeyFile  string
	CAFile      string
	CertFile    string
	CertKeyFile string
	Insecure    bool
	Heartbeat   time.Duration
	Preempt     Preempt
}

// Preempt is when a holder gives way to a peer of a higher priority.
type Preempt struct {
	On bool
	// After is how long that peer must have been connected.
	After time.Duration
}

// ResolverSettings say how the names of servers are looked up.
type ResolverSettings struct {
	// Nameservers are those to ask; none means those of /etc/resolv.conf.
	Nameservers []netip.AddrPort
	// MinTTL and MaxTTL bound how long an answer is good for.
	MinTTL, MaxTTL time.Duration
}

// LogSettings say what the program writes to stderr.
type LogSettings struct {
	Level  string
	Format string
	// Copy is where the program's own log goes besides stderr; empty: nowhere. Connections is where load balancers with
	// a log write. Facility is that of both in a syslog.
	Copy        string
	Connections string
	Facility    string
}

// A Value is one line of `appliance config show`.
type Value struct {
	Key    string
	Value  string
	Origin Origin
	// secret is what Value hides. It is compared, so that a change is noticed.
	secret string
}

// InterfaceOf is the interface on which vip is answered for: its own or that of all. Empty means that it is found by
// vip's subnet.
func (c *Config) InterfaceOf(vip netip.Addr) string { return cmp.Or(c.vipInterfaces[vip], c.Interface) }

// Worker reports whether this node is outside the group.
func (c *Config) Worker() bool { return Role(c.role.value) == RoleWorker }

// Show lists every value in force, and where it came from.
func (c *Config) Show() []Value { return slices.Clone(c.values) }

// liveKeys begin the keys that a running appliance can put into force. All other
// keys need a restart.
var liveKeys = []string{keyLBs, keyTracks, keyHooks, "dataPlane", "addPeersAsBackends", "log.level"}

// A Change is a key whose value has changed, without the number of a list element,
// and where it stands now. A key that was removed stands nowhere.
type Change struct {
	Key    string
	Origin Origin
}

func (c Change) String() string {
	if c.Origin.IsDefault() {
		return c.Key + " (no longer set)"
	}
	return c.Key + " (" + c.Origin.String() + ")"
}

// Changes says which keys differ between c, which is in force, and next: those that
// can change live, and those that need a restart.
func (c *Config) Changes(next *Config) (live []string, restart []Change) {
	before, after := c.byKey(), next.byKey()
	note := func(key string, o Origin) {
		name, _, _ := strings.Cut(key, "[")
		switch {
		case isLive(key) && !slices.Contains(live, name):
			live = append(live, name)
		case !isLive(key) && !slices.ContainsFunc(restart, func(c Change) bool { return c.Key == name }):
			restart = append(restart, Change{name, o})
		}
	}
	for _, v := range next.values {
		if was, ok := before[v.Key]; !ok || was != v.Value+v.secret {
			note(v.Key, v.Origin)
		}
	}
	for _, v := range c.values {
		if _, ok := after[v.Key]; !ok {
			note(v.Key, next.listOrigin(v.Key))
		}
	}
	return live, restart
}

// listOrigin is where the list begins that has lost the element key.
func (c *Config) listOrigin(key string) Origin {
	list, _, _ := strings.Cut(key, "[")
	for _, v := range c.values {
		if other, _, _ := strings.Cut(v.Key, "["); other == list {
			return v.Origin
		}
	}
	return Origin{}
}

func isLive(key string) bool {
	key, _, _ = strings.Cut(key, "[")
	return slices.Contains(liveKeys, key)
}

func (c *Config) byKey() map[string]string {
	m := make(map[string]string, len(c.values))
	for _, v := range c.values {
		m[v.Key] = v.Value + v.secret
	}
	return m
}

// WithLive is c with everything from next that can change live.
func (c *Config) WithLive(next *Config) *Config {
	out := *c
	out.DataPlane, out.Tracks, out.Hooks = next.DataPlane, next.Tracks, next.Hooks
	out.Log.Level = next.Log.Level
	out.Warnings = next.Warnings
	out.LoadBalancers = slices.Clone(next.LoadBalancers)
	for i, lb := range out.LoadBalancers {
		switch {
		case lb.OwnVIPs: // those of its VIPs that are in force
			out.LoadBalancers[i].VIPs, _ = partition(lb.VIPs, func(a netip.Addr) bool { return slices.Contains(c.VIPs, a) })
		case lb.BindToVIP:
			out.LoadBalancers[i].VIPs = c.VIPs
		}
	}
	out.values = nil
	for _, v := range next.values {
		if isLive(v.Key) {
			out.values = append(out.values, v)
		}
	}
	for _, v := range c.values {
		if !isLive(v.Key) {
			out.values = append(out.values, v)
		}
	}
	return &out
}
