package configs

import (
	"net/netip"
	"slices"
	"time"
)

// Config is what is in force, valid as a whole. It ends at main, which hands
// each room what that room needs.
type Config struct {
	// VIPs are the virtual addresses, in the order written.
	VIPs []netip.Addr
	// Interface is where the VIPs are answered for. Empty means the one whose
	// subnet contains the first VIP of a family.
	Interface string
	// ID says which of the peers this node is; see Self.
	ID string
	// Peers are all members of the group, this node included. Only with
	// SingleNode it may be empty.
	Peers []Peer
	// SingleNode is a group of one.
	SingleNode bool
	// StartAsLeader founds the group alone if it does not exist.
	StartAsLeader bool
	// Join are members of the group that this node joins; Peers may be empty.
	Join []netip.AddrPort
	// Priority is how much this node is preferred as holder.
	Priority int
	Group    Group
	// DataPlane is the wish for load balancers that have none of their own.
	DataPlane     string
	LoadBalancers []LoadBalancer
	Tracks        []Track
	Hooks         []Hook
	DataDir       string
	// Linger is how long after a stop the VIPs stay on lo.
	Linger time.Duration
	Socket string
	Log    Log
	Admin  Admin
	// Warnings are for the operator; everything in them works.
	Warnings []Warning

	role     cell // this node's own role, if the file says it apart
	idOrigin Origin
	peersKey string // "peers" or "localPeer", for messages
	values   []Value
}

// A Role is what a peer may do.
type Role string

// The roles. A witness votes and never holds. A worker is outside the group:
// it has the VIPs and load balancers for itself and never answers for anybody.
const (
	RolePeer    Role = "peer"
	RoleWitness Role = "witness"
	RoleWorker  Role = "worker"
)

// A Peer is one voting member of the group.
type Peer struct {
	// ID is unique in the group; the address where the operator gave none.
	ID      string
	Address netip.Addr
	// Further are its host's other addresses, of either family. The group does
	// not speak there: backends and the direct data plane are.
	Further []netip.Addr
	Port    uint16
	Role    Role
	// Origin is where it was written.
	Origin Origin
}

// Addrs are all addresses of the peer's host that are known, Address first.
func (p Peer) Addrs() []netip.Addr { return append([]netip.Addr{p.Address}, p.Further...) }

// ServersAt are those of a peer's addresses at which its server is a backend by
// default: one of each family that vips have, so that no server is there twice
// for a client; else the first.
func ServersAt(addrs, vips []netip.Addr) []netip.Addr {
	var at []netip.Addr
	for i, a := range addrs {
		same := func(b netip.Addr) bool { return a.Is4() == b.Is4() }
		if slices.ContainsFunc(vips, same) && !slices.ContainsFunc(addrs[:i], same) {
			at = append(at, a)
		}
	}
	if len(at) == 0 {
		return addrs[:min(1, len(addrs))]
	}
	return at
}

// AddrPort is where the peer's Raft port is.
func (p Peer) AddrPort() netip.AddrPort { return netip.AddrPortFrom(p.Address, p.Port) }

// Group says how the peers trust and watch each other: by KeyFile, or by the
// three files of a CA, or, with Insecure, not at all.
type Group struct {
	Port    uint16
	KeyFile string
	// OldKeyFile is accepted beside KeyFile, during a rotation.
	OldKeyFile  string
	CAFile      string
	CertFile    string
	CertKeyFile string
	Insecure    bool
	Heartbeat   time.Duration
	Preempt     Preempt
}

// A LoadBalancer is one port, spread over backends.
type LoadBalancer struct {
	Name string
	Port uint16
	// BindToVIP listens on the VIPs only, else on every address of the node.
	BindToVIP bool
	// VIPs are the addresses it listens on; empty unless BindToVIP.
	VIPs []netip.Addr
	// Listen are further addresses, such as 127.0.0.1 and ::1.
	Listen    []netip.Addr
	Scheduler string
	// DataPlane is never empty: its own or the global one.
	DataPlane      string
	ConnectTimeout time.Duration
	Handling       Handling
	Check          Check
	// MaxFails within FailTimeout; zero is off.
	MaxFails    int
	FailTimeout time.Duration
	// TryDown is whenAllDown: try; KeepDown onMarkedDown: keep; EndBackup
	// onMarkedUp: shutdown-backup-sessions.
	TryDown, KeepDown, EndBackup bool
	Backends                     []Backend
	// AddPeersAt is the port at which the peers that can hold are backends, or
	// 0 if they are none; Backends has those that are listed.
	AddPeersAt uint16
	Origin     Origin
}

// A Backend is one server.
type Backend struct {
	// Name is empty where the address is the name.
	Name    string
	Address netip.AddrPort
	Weight  int
	Backup  bool
	// MaxConn, MaxQueue and SlowStart are zero where there is none.
	MaxConn, MaxQueue int
	SlowStart         time.Duration
	Origin            Origin
}

// Log says what the program writes to stderr.
type Log struct {
	Level  string
	Format string
}

// A Value is one line of `appliance config show`.
type Value struct {
	Key    string
	Value  string
	Origin Origin
	// secret is what Value hides, so that a change of it is seen.
	secret string
}

// Worker says that this node is outside the group.
func (c *Config) Worker() bool { return Role(c.role.value) == RoleWorker }

// Show lists every value in force, and where it came from.
func (c *Config) Show() []Value { return append([]Value(nil), c.values...) }
