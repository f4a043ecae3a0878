package desired

import (
	"net/netip"
	"time"

	"appliance/balancer"
	"appliance/configs"
	"appliance/dns"
	"appliance/pathprobe"
	"appliance/raft"
)

// Known is what a node knows when it asks what it should serve.
type Known struct {
	// Config is what the file says.
	Config *configs.Config
	// Self is the id of this node, and Local are the addresses of its host, which matter on a worker only.
	Self  string
	Local []netip.Addr
	// Group and Settings are what the group says; Group is nil on a worker.
	Group    *raft.Status
	Settings map[string]string
	// List is what the peers told this worker; nil: nothing yet.
	List *List
	// Names are the addresses of the names in Config.
	Names map[string]dns.NameAnswer
	// ProbeKeys are what workers sign their path probes with.
	ProbeKeys []string
	// Before is the state that is in force, the zero State at the start.
	Before State
	Now    time.Time
}

// State is what a node should serve, whole.
type State struct {
	// Config is the file's configuration with the backends that the group or the peers' list adds.
	Config *configs.Config
	// LoadBalancers are those of Config in the balancer's terms, and Overrides what operators ordered for their
	// backends.
	LoadBalancers []balancer.LoadBalancer
	Overrides     map[balancer.Target]balancer.Override
	// Nodes are the machines that the direct data plane hands packets to. Departed workers are among them until
	// their time is over.
	Nodes    []pathprobe.Node
	Departed map[netip.Addr]time.Time
	// List is what this peer tells its workers.
	List List
}

// Compute returns what a node should serve. It reads nothing but k.
func Compute(k Known) State {
	file := withNames(k.Config, k.Names)
	s := State{Config: file}
	var ordered map[BackendRef]balancer.Override
	switch {
	case k.Group != nil:
		s.Config = withMembers(file, k.Group.Peers)
		ordered = withDrained(ReadOverrides(k.Settings), s.Config, *k.Group)
		s.List = listOf(s.Config, ordered, *k.Group, k.ProbeKeys)
	case k.List != nil:
		s.Config, ordered = withList(file, k.List)
	}
	s.LoadBalancers = s.Config.ForBalancer()
	s.Overrides = targets(s.Config, ordered)
	s.Nodes, s.Departed = nodes(k, s.Config)
	return s
}
