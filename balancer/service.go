package balancer

import (
	"cmp"
	"context"
	"net/netip"
	"time"
)

// A Backend is one server of a load balancer. Addr is its identity: two
// Backends with the same Addr are the same server with other settings. It
// carries no health, which is measured; see Health.
type Backend struct {
	// Name is for people; empty means that Addr is the name.
	Name string `json:"name,omitempty"`
	// Addr is where the server listens.
	Addr netip.AddrPort `json:"address"`
	// Weight is the server's share of new connections relative to the other
	// backends, 0 to 256. With 0 it gets no new connections and keeps its open ones.
	Weight int `json:"weight"`
	// MaxConn bounds the open connections from each frontend of this node,
	// MaxQueue the clients that wait for one of them to end. Zero means no limit.
	MaxConn  int `json:"maxconn,omitempty"`
	MaxQueue int `json:"maxqueue,omitempty"`
	// SlowStart is the time in which the share grows from nothing to Weight after
	// the backend came into rotation. Zero means off.
	SlowStart time.Duration `json:"slowstart,omitempty"`
	// Backup backends get connections only while no other backend can take any.
	Backup bool `json:"backup,omitempty"`
	// Disabled backends get no connections until an operator orders Enable.
	Disabled bool `json:"disabled,omitempty"`
	// SendProxy is the version of the PROXY header that this backend gets, v1 or v2, or ProxyOff for none. Empty means
	// what the ConnOptions say.
	SendProxy string `json:"sendProxy,omitempty"`
	// OnMarkedDown is what happens to the open connections of this backend when it is marked down: KeepSessions or
	// EndSessions. Empty means what the ConnOptions say.
	OnMarkedDown string `json:"onMarkedDown,omitempty"`
	// MaxFails and FailTimeout are those of this backend; zero means what the load balancer says, and a MaxFails of
	// NeverOut that failed connections of clients never take it out of rotation.
	MaxFails    int           `json:"maxFails,omitempty"`
	FailTimeout time.Duration `json:"failTimeout,omitempty"`
	// Check is how this backend is checked; nil means as the load balancer says.
	Check *Check `json:"-"`
}

// NeverOut is the MaxFails of a backend that checks alone take out of rotation.
const NeverOut = -1

// ProxyOff is the SendProxy of a backend that gets no PROXY header whatever the load balancer says.
const ProxyOff = "off"

// What may happen to the open connections of a backend that is marked down.
const (
	KeepSessions = "keep"
	EndSessions  = "shutdown-sessions"
)

// keepsDown reports whether the open connections of b, a backend of lb, are left alone when it is marked down.
func (lb LoadBalancer) keepsDown(b Backend) bool {
	if b.OnMarkedDown == "" {
		return lb.ConnOptions.KeepDown
	}
	return b.OnMarkedDown == KeepSessions
}

// fails says how many failed connections of clients within what time bar b, a backend of lb; 0 is never.
func (lb LoadBalancer) fails(b Backend) (most int, within time.Duration) {
	return max(0, cmp.Or(b.MaxFails, lb.MaxFails)), cmp.Or(b.FailTimeout, lb.FailTimeout)
}

// check is how b, a backend of lb, is checked.
func (lb LoadBalancer) check(b Backend) Check {
	if b.Check != nil {
		return *b.Check
	}
	return lb.Check
}

// String is the name, or the address where there is no name.
func (b Backend) String() string {
	if b.Name != "" {
		return b.Name
	}
	return b.Addr.String()
}

// Scheduler names the way in which a backend is chosen for a new connection,
// by the names that IPVS gave them (rr, wrr, lc, wlc, sh, ...).
type Scheduler string

// The schedulers of the user-space data plane. IPVS has further ones.
const (
	RoundRobin         Scheduler = "rr"
	WeightedRoundRobin Scheduler = "wrr"
	LeastConn          Scheduler = "lc"
	WeightedLeastConn  Scheduler = "wlc"
	SourceHash         Scheduler = "sh"
	Random             Scheduler = "random"
	First              Scheduler = "first"
)

// A Service is what a data plane is asked to serve: one address that clients
// connect to, and the backends that may get its connections at this moment.
type Service struct {
	// LoadBalancer is the name of the config entry that this is part of.
	LoadBalancer string
	// Frontend is the address that clients connect to: VIP:port, an address of
	// the node, or an unspecified address for every address of the host.
	Frontend netip.AddrPort
	// Scheduler chooses the backend for a new connection.
	Scheduler Scheduler
	// Backends get the new connections; they may be of either family. An empty
	// set means that new connections are refused at once with a reset.
	Backends []Backend
	// Draining backends get no new connection and keep their open ones. A backend
	// in neither set is gone: its open connections are reset.
	Draining []Backend
	// ConnectTimeout bounds one dial in data planes that dial themselves.
	ConnectTimeout time.Duration
	ConnOptions    ConnOptions
	// MaxFails is the load balancer's.
	MaxFails int
}

// FollowsChecks reports whether checks alone say which backend is the first that can: where it is b, connections of
// clients that fail lead no others to the next one, which may be a database's second writer.
func (s Service) FollowsChecks(b Backend) bool {
	return s.Scheduler == First && max(0, cmp.Or(b.MaxFails, s.MaxFails)) == 0
}

// PlaneName names a data plane in configuration, logs and status.
type PlaneName string

// The data planes, in the order in which Auto tries them.
const (
	Auto      PlaneName = "auto"
	Direct    PlaneName = "direct"
	IPVS      PlaneName = "ipvs"
	NFTables  PlaneName = "nftables"
	UserSpace PlaneName = "userspace"
)

// A Plane is one way to move the packets of services. Apply and Close are
// called one at a time; Usable may be called at any moment, also concurrently.
type Plane interface {
	Name() PlaneName
	// Usable tries what lb needs on this host and network. Nil means that the
	// plane can serve lb; the error says what is missing and what to do.
	Usable(ctx context.Context, lb LoadBalancer) error
	// Apply makes the plane serve exactly services, whatever it served before,
	// and touches nothing that is right already. It is called on every change,
	// and every few seconds to restore what somebody else flushed. repaired
	// counts what had been ours and was missing.
	Apply(ctx context.Context, services []Service) (repaired int, err error)
	// Close stops serving and removes every trace from the host.
	Close() error
}

// LoadBalancer is one config entry: a port on one or more addresses, spread
// over backends.
type LoadBalancer struct {
	Name      string
	Frontends []netip.AddrPort
	Scheduler Scheduler
	Backends  []Backend
	// Missing are servers of which no address is known. They get nothing, and Status shows them as down.
	Missing []MissingBackend
	Check   Check
	// Plane is the data plane that the operator forces. With Auto, or empty, the
	// first one that works on this host is chosen.
	Plane PlaneName
	// ConnectTimeout bounds one dial of a backend; zero means DefaultConnectTimeout.
	ConnectTimeout time.Duration
	ConnOptions    ConnOptions
	// MaxFails connections of clients that fail within FailTimeout take the
	// backend out of rotation for FailTimeout. A MaxFails of zero means never; a
	// FailTimeout of zero means DefaultFailTimeout.
	MaxFails    int
	FailTimeout time.Duration
	// TryDown spreads new connections over all backends while all are down.
	// Otherwise they are refused.
	TryDown bool
}

// A MissingBackend is a server of which no address is known.
type MissingBackend struct {
	// Name is its name and port, or what the operator calls it.
	Name string
	// Reason says why there is no address.
	Reason string
}

// A Target is one backend of one load balancer: the identity to which health
// and traffic belong. Without Backend it is the load balancer as a whole.
type Target struct {
	LoadBalancer string
	Backend      netip.AddrPort
}

// Traffic is what a data plane has counted for one target since it started.
type Traffic struct {
	Open   uint64 `json:"open"`
	Total  uint64 `json:"total"`
	Failed uint64 `json:"failed"`
	// In is from the clients to the backend, Out the other way, in bytes.
	In  uint64 `json:"bytesIn"`
	Out uint64 `json:"bytesOut"`
	// Queued is the number of connections that wait now for room (maxconn). Those
	// that wait for any backend belong to the Target without Backend.
	Queued uint64 `json:"queued"`
	// SlowStart is the part of its weight, above 0 and below 1, that a backend has
	// reached in its slow start; 0 while there is no slow start.
	SlowStart float64 `json:"slowStart,omitempty"`
}

// Add sums the traffic of one target on several frontends or planes.
func (t Traffic) Add(u Traffic) Traffic {
	slow := min(t.SlowStart, u.SlowStart)
	if slow == 0 { // one of the two has no slow start
		slow = max(t.SlowStart, u.SlowStart)
	}
	return Traffic{
		Open: t.Open + u.Open, Total: t.Total + u.Total, Failed: t.Failed + u.Failed,
		In: t.In + u.In, Out: t.Out + u.Out, Queued: t.Queued + u.Queued, SlowStart: slow,
	}
}

// A TrafficCounter is a Plane that counts traffic; not every data plane can.
// Stats may be called at any moment.
type TrafficCounter interface {
	Stats() map[Target]Traffic
}

// WithTraffic is a plane that wraps another one, and counts traffic if that does.
func WithTraffic(wrapper, plane Plane) Plane {
	if m, ok := plane.(TrafficCounter); ok {
		return struct {
			Plane
			TrafficCounter
		}{wrapper, m}
	}
	return wrapper
}

// A Selective plane may give no new connections to a backend that is in
// rotation. PassedOver says why, and may be called at any moment.
type Selective interface {
	PassedOver() map[Target]string
}

// A Prover knows which planes were tried as a client would, and serve nobody.
type Prover interface {
	// Unproved says why plane should not serve lb although it is usable, or "". It may be called at any moment, also
	// concurrently.
	Unproved(lb LoadBalancer, plane PlaneName) string
}
