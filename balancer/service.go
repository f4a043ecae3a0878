package balancer

import (
	"context"
	"net/netip"
	"time"
)

// A Backend is one server of a load balancer. Addr is its identity: two
// Backends with the same Addr are the same server under other settings.
// It carries no health; health is measured, see Health.
type Backend struct {
	// Name is for people. Empty means that Addr is the name.
	Name string `json:"name,omitempty"`
	// Addr is where the server listens.
	Addr netip.AddrPort `json:"address"`
	// Weight is the server's share of new connections relative to its
	// fellows, 0 to 256. Zero gets no new connections and keeps open ones.
	Weight int `json:"weight"`
	// MaxConn bounds the connections open with it on this node, MaxQueue those
	// that wait for one of them to end. Zero means no limit.
	MaxConn  int `json:"maxconn,omitempty"`
	MaxQueue int `json:"maxqueue,omitempty"`
	// SlowStart is the time in which its share grows from nothing to Weight
	// after it has come into rotation.
	SlowStart time.Duration `json:"slowstart,omitempty"`
	// Backup gets connections only while no backend that is none can take any.
	Backup bool `json:"backup,omitempty"`
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

// Schedulers that every data plane or the user-space one knows.
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
	// Frontend is the address that clients connect to: VIP:port, a loopback
	// address, or an unspecified address for every address of the host.
	Frontend netip.AddrPort
	// Scheduler chooses the backend for a new connection.
	Scheduler Scheduler
	// Backends are in rotation now: healthy, of either family. An empty set
	// means that new connections are refused at once with a reset (R19).
	Backends []Backend
	// Draining backends get no new connection and keep their open ones.
	// A backend in neither set is gone: its open connections are reset (R6).
	Draining []Backend
	// ConnectTimeout bounds one dial in planes that dial themselves.
	ConnectTimeout time.Duration
	Handling       Handling
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
// called one at a time; Usable may be called at any moment, also twice at once.
type Plane interface {
	Name() PlaneName
	// Usable tries what lb needs on this host and network. Nil means that
	// the plane can serve lb; the error says what is missing and the remedy.
	Usable(ctx context.Context, lb LoadBalancer) error
	// Apply makes the plane serve exactly services, whatever it served
	// before, and touches nothing that is right already. It is called on
	// every change, and every few seconds so that state flushed by somebody
	// else heals. repaired counts what had been ours and was found missing.
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
	Check     Check
	// Plane is the data plane that the operator wants; Auto or empty leaves
	// the choice to what the host can do.
	Plane PlaneName
	// ConnectTimeout bounds one dial of a backend; zero means 1 s.
	ConnectTimeout time.Duration
	Handling       Handling
	// MaxFails connections that clients could not get to a backend within
	// FailTimeout take it out of rotation for as long. Zero never does.
	MaxFails    int
	FailTimeout time.Duration
	// TryDown spreads connections over all backends when all are down; else
	// they are refused.
	TryDown bool
}

// A Target is one backend of one load balancer: the identity to which health
// and traffic belong. Without a Backend it is all of them together.
type Target struct {
	LoadBalancer string
	Backend      netip.AddrPort
}

// Traffic is what a data plane counted for one target since it began.
type Traffic struct {
	Open   uint64 `json:"open"`
	Total  uint64 `json:"total"`
	Failed uint64 `json:"failed"`
	// In is from the clients to the backend, Out the other way, in bytes.
	In  uint64 `json:"bytesIn"`
	Out uint64 `json:"bytesOut"`
	// Queued are the connections that wait at this moment for room (maxconn).
	// Those that wait for any backend are the traffic of the Target without one.
	Queued uint64 `json:"queued"`
	// SlowStart is the part of its weight, above 0 and below 1, that a backend
	// has reached in its slow start; 0 when none is going on.
	SlowStart float64 `json:"slowStart,omitempty"`
}

// Add sums the traffic of one target on several frontends or planes.
func (t Traffic) Add(u Traffic) Traffic {
	slow := min(t.SlowStart, u.SlowStart)
	if slow == 0 { // one of the two is over, or knows none
		slow = max(t.SlowStart, u.SlowStart)
	}
	return Traffic{t.Open + u.Open, t.Total + u.Total, t.Failed + u.Failed, t.In + u.In, t.Out + u.Out, t.Queued + u.Queued, slow}
}

// A Meter is a Plane that counts; not every data plane can. Stats may be called
// at any moment.
type Meter interface {
	Stats() map[Target]Traffic
}

// A Picky plane may give a backend in rotation no new connections. PassedOver
// says why, and may be called at any moment.
type Picky interface {
	PassedOver() map[Target]string
}
