// Package planes opens the data planes that a node has on its host.
package planes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"appliance/arp"
	"appliance/balancer"
	"appliance/balancer/forward"
	"appliance/ipvs"
	"appliance/manifest"
	"appliance/nft"
	"appliance/nft/direct"
	"appliance/nft/nflog"
	"appliance/nft/ruleset"
	"appliance/nft/tunnel"
	"appliance/pathprobe"
)

// Config is what the data planes of a node depend on.
type Config struct {
	// Interfaces are those of the VIPs. Without VIPs, as on a worker that listens on addresses of its own, nothing is
	// needed of the kernel.
	Interfaces map[netip.Addr]string
	// Routed are those of the VIPs that are announced to routers, and TunnelPort is where nodes behind another one take
	// what is handed to them for these; 0: nowhere.
	Routed     []netip.Addr
	TunnelPort uint16
	// Untouched has nothing changed on the host, whatever is asked.
	Untouched bool
	// Self, Worker, Nodes, Secrets and Reached are for the direct data plane, see pathprobe.Config.
	Self                   string
	Worker                 bool
	Nodes                  []pathprobe.Node
	Secrets, WorkerSecrets [][]byte
	Reached                []netip.Addr
	// Takeover has user space serve listening addresses on loopback beside the program that is to be replaced there.
	Takeover bool
	// Grouped nodes give connections back to the previous holder.
	Grouped bool
	// Files is how many files clients may hold in user space. Shortages takes what user space is short of.
	Files     int
	Shortages *balancer.Shortages
	// ConnLog takes the lines about connections.
	ConnLog nflog.LineTaker
	// Report takes what real connections saw of a backend.
	Report func(balancer.Target, error)
	Log    *slog.Logger
}

// Planes are the data planes of a node, and the kernel's rules that they stand on.
type Planes struct {
	List     []balancer.Plane // in the order of preference
	Silencer arp.Silencer     // nil without VIPs
	// NFTables says that rules of ours are in nf_tables. Without it, the fields below are nil.
	NFTables bool
	Direct   *direct.DataPlane
	Prober   *pathprobe.EthernetProber
	Refusals *nft.ResetMonitor   // of the kernel's planes that translate addresses
	Handback *nft.PreviousHolder // nil unless Grouped
	Begins   *nflog.BeginWatcher // which connections begin

	// process and kernel are what Close closes, in this order.
	process, kernel []io.Closer
	owner           *ruleset.Owner // of the tables that stay, and closed last
}

// Open chooses what keeps the kernel silent, and lists the data planes. It changes nothing on the host.
func Open(c Config) (*Planes, error) {
	user := forward.Config{
		Report: c.Report, Log: c.ConnLog.Write, Unlogged: c.ConnLog.Skip, Shortages: c.Shortages, Files: c.Files,
		Loops: min(runtime.GOMAXPROCS(0), maxLoops), Takeover: c.Takeover,
	}
	// Go's scheduler gets a place more for each loop: the group's timers must not wait for a loop that waits for clients,
	// and no place has to change hands whenever one does.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + user.Loops)
	if len(c.Interfaces) == 0 {
		if !c.Takeover || nft.Available() != nil {
			return userSpaceOnly(user, nil), nil
		}
		owner := ruleset.NewOwner()
		redirector := nft.NewRedirector(owner)
		redirector.Log, user.Redirector = c.Log, redirector
		p := userSpaceOnly(user, nil)
		p.process, p.owner = append(p.process, redirector), owner
		return p, nil
	}
	sysctls := sysctlRoot()
	if missing := nft.Available(); missing != nil {
		c.Log.Warn("nf_tables is missing: "+
			"sysctls keep the kernel silent, user space forwards on the load balancers' own ports, and no beginnings of "+
			"connections are logged", "reason", missing)
		return userSpaceOnly(user, arp.NewSysctls(sysctls)), nil
	}

	// Nobody's `nft flush ruleset` takes the tables away, where the kernel can see to it.
	owner := ruleset.NewOwner()
	silencer, redirector := nft.NewARPFilter(owner), nft.NewRedirector(owner)
	masquerader, refuser, access := nft.NewIPVSMasquerade(owner), nft.NewRejecter(owner), nft.NewACL(owner)
	redirector.Log = c.Log
	virtual, err := ipvs.New(ipvs.Config{Masquerader: masquerader, Refuser: refuser, Sysctls: sysctls, Log: c.Log})
	if err != nil {
		return nil, err
	}
	nat := nft.NewNAT(sysctls, owner)
	user.Redirector = redirector
	forwarder := forward.New(user)
	refusals := nft.NewResetMonitor(func(t balancer.Target) { c.Report(t, errRefused) }, c.Log, owner)
	begins := nflog.New(owner, c.ConnLog, c.Log)
	var out direct.Tunnel
	var outName string
	var outCloser []io.Closer
	if c.TunnelPort != 0 && len(c.Routed) > 0 && !c.Worker {
		t := tunnel.New(tunnel.Config{Port: c.TunnelPort, VIPs: c.Routed, Owner: owner, Sysctls: sysctls,
			Untouched: c.Untouched})
		out, outName, outCloser = t, tunnel.Name, []io.Closer{t}
	}
	prober := pathprobe.New(pathprobe.Config{
		Interfaces:    c.Interfaces,
		Tunnel:        outName,
		Routed:        c.Routed,
		Nodes:         c.Nodes,
		Self:          c.Self,
		Worker:        c.Worker,
		Keys:          c.Secrets,
		WorkerKeys:    c.WorkerSecrets,
		ProvedWorkers: c.Reached,
		Log:           c.Log,
	})
	direct := direct.New(direct.Config{
		Interfaces: c.Interfaces,
		Nodes:      c.Nodes,
		Self:       c.Self,
		Worker:     c.Worker,
		Tunnel:     out,
		Routed:     c.Routed,
		Prober:     prober,
		Owner:      owner,
		Log:        c.Log,
	})
	p := &Planes{
		List: []balancer.Plane{
			countDirect(access.Guard(begins.Watch(direct)), direct),
			countIPVS(access.Guard(begins.Watch(refusals.Monitor(virtual, nft.RetryByIPVS))), virtual),
			countNAT(access.Guard(begins.Watch(refusals.Monitor(nat, nft.RetryByNAT))), nat),
			begins.Watch(forwarder),
		},
		Silencer: silence{silencer, arp.NewIgnoreOnly(sysctls), c.Log, new(sync.Once)},
		NFTables: true, Direct: direct, Prober: prober, Refusals: refusals, Begins: begins,
		// Planes are closed before the rules that they stand on.
		process: []io.Closer{forwarder, redirector, begins},
		kernel:  append([]io.Closer{direct, virtual, nat, refusals, access, refuser, masquerader, silencer}, outCloser...),
		owner:   owner,
	}
	if c.Grouped {
		p.Handback = nft.NewPreviousHolder(owner)
	}
	return p, nil
}

func userSpaceOnly(c forward.Config, silencer arp.Silencer) *Planes {
	forwarder := forward.New(c)
	return &Planes{List: []balancer.Plane{forwarder}, Silencer: silencer, process: []io.Closer{forwarder}}
}

// Close closes the data planes. If the node lingers, what goes on without the process stays.
func (p *Planes) Close(lingers bool) error {
	closers := p.process
	if !lingers {
		closers = append(closers, p.kernel...)
	}
	var errs []error
	for _, c := range closers {
		errs = append(errs, c.Close())
	}
	errs = append(errs, p.owner.Close())
	return errors.Join(errs...)
}

// errRefused is what a packet says that refuses a client.
var errRefused = fmt.Errorf("refuses connections of clients: %w", unix.ECONNREFUSED)

// sysctlRoot is where kernel settings can be written: where the manifest mounts the host's, or the usual place, which
// is empty here.
func sysctlRoot() string {
	if _, err := os.Stat(manifest.HostSysctls); err == nil {
		return manifest.HostSysctls
	}
	return ""
}

// silence passes the wire's wishes on to nf_tables; the two rooms do not know each other. The belt keeps the kernel
// from answering for the VIPs between somebody's `nft flush ruleset` and the repair.
type silence struct {
	*nft.ARPFilter
	belt *arp.Sysctls
	log  *slog.Logger
	said *sync.Once
}

func (s silence) Silence(ctx context.Context, set []arp.Silenced) (repaired int, err error) {
	if _, err := s.belt.Silence(ctx, set); err != nil {
		s.said.Do(func() { s.log.Debug("the rules alone keep the kernel silent", "reason", err) })
	}
	wanted := make([]nft.FilteredVIP, len(set))
	for i, one := range set {
		wanted[i] = nft.FilteredVIP(one)
	}
	return s.ARPFilter.Apply(ctx, wanted)
}

// maxLoops bounds the threads that move connections in user space: one moves more than most networks carry.
const maxLoops = 8
