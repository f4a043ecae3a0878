package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"appliance/arp"
	"appliance/balancer"
	"appliance/configs"
	"appliance/connlog"
	"appliance/nft"
	"appliance/node/desired"
	"appliance/node/observe"
	"appliance/node/planes"
	"appliance/pathprobe"
	"appliance/raft/auth"
	"appliance/raft/store"
)

// A site is what the host adds to a configuration: which peer this node is, on which interface it answers for each VIP,
// and the keys that it may read.
type site struct {
	self     configs.PeerEntry
	vips     []arp.VIP
	security auth.Security
	worker   *auth.WorkerKey // only on a worker that follows the peers
}

// survey finds out whether cfg can be put into force on this host, and changes nothing on it. The error lists
// everything that is missing.
func survey(cfg *configs.Config) (site, error) {
	var s site
	var problems []error
	note := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}

	note(socketPlace(cfg.Socket))
	local, err := arp.LocalAddrs()
	note(err)
	s.self, err = selfAmong(cfg, local)
	note(err)
	if err == nil {
		note(cfg.CheckSelfAddrs(local, s.self))
	}
	if cfg.Worker() {
		note(s.workerAccess(cfg))
		if s.follows(cfg) {
			note(writable(cfg.DataDir))
		}
	}
	if !cfg.Worker() {
		s.security, err = security(cfg)
		note(err)
		note(writable(cfg.DataDir))
	}
	if s.self.Role != configs.RoleWitness {
		note(capabilities(cfg))
		s.vips, err = findInterfaces(cfg, s.self)
		note(err)
	}
	return s, errors.Join(problems...)
}

// CheckHost says whether Run would put cfg into force on this host, with the same errors, and whether routers could be
// given next hops. It changes nothing on the host.
// tried says whether the data planes were tried too: they are not beside an appliance that runs, whose ports and rules
// they would find.
func CheckHost(ctx context.Context, cfg *configs.Config, log *slog.Logger) (tried bool, err error) {
	s, err := survey(cfg)
	_, programs := openPrograms(cfg)
	if err := errors.Join(err, programs, observe.CheckToken(cfg.Admin)); err != nil {
		return false, err
	}
	if conn, err := net.Dial("unix", cfg.Socket); err == nil {
		conn.Close()
		return false, nil
	}
	n := &node{cfg: cfg, site: s, log: log, inputs: inputs{config: cfg}}
	n.state.Store(&desired.State{Config: cfg})
	if n.witness() {
		return true, nil
	}
	n.inputs.secrets = n.firstSecrets()
	first := n.compute()
	n.state.Store(&first)
	// Nothing is closed: closing removes rules, and none have been made.
	n.planes, err = planes.Open(planes.Config{
		Interfaces: n.interfaces(), Routed: cfg.RoutedVIPs(), TunnelPort: cfg.Announce.TunnelPort,
		Untouched: true, Self: s.self.ID, Worker: cfg.Worker(), Nodes: first.Nodes,
		Secrets: n.inputs.secrets.own, WorkerSecrets: n.inputs.secrets.workers,
		Report: func(balancer.Target, error) {}, Log: log, Takeover: cfg.Takeover,
		Shortages: &balancer.Shortages{Log: log}, ConnLog: connlog.New(connlog.Config{Log: log}),
	})
	if err != nil {
		return true, err
	}
	n.balancer, err = balancer.New(balancer.Config{
		Planes: n.planes.List, LoadBalancers: first.LoadBalancers, Log: log,
	})
	if err != nil {
		return true, err
	}
	if err := n.openAnnouncer(); err != nil {
		return true, err
	}
	err = errors.Join(n.checkConflicts(), n.checkAnnouncer(ctx), n.check(ctx))
	if n.announcer != nil {
		err = errors.Join(err, n.announcer.CheckNextHops())
	}
	return true, err
}

// Self finds which node of cfg this host is.
func Self(cfg *configs.Config) (configs.PeerEntry, error) {
	local, err := arp.LocalAddrs()
	if err != nil {
		return configs.PeerEntry{}, err
	}
	return selfAmong(cfg, local)
}

func selfAmong(cfg *configs.Config, local []netip.Addr) (configs.PeerEntry, error) {
	return cfg.Self(towards(cfg.Join, local), "")
}

// towards puts first the address from which this host reaches the group that it joins. It sends nothing.
func towards(join []netip.AddrPort, local []netip.Addr) []netip.Addr {
	for _, at := range join {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		if err != nil {
			continue // no route; the peer port reports it
		}
		from, _ := netip.ParseAddrPort(conn.LocalAddr().String())
		conn.Close()
		return append([]netip.Addr{from.Addr()}, local...)
	}
	return local
}

// security reads the keys or certificates that make this node a peer.
func security(cfg *configs.Config) (auth.Security, error) {
	g := cfg.Group
	switch {
	case g.Insecure:
		return auth.Security{Insecure: true}, nil
	case g.CAFile != "" || g.CertFile != "" || g.CertKeyFile != "":
		return auth.Security{CA: g.CAFile, Cert: g.CertFile, Key: g.CertKeyFile}, nil
	case g.KeyFile != "":
		keys, err := auth.LoadKeys(g.KeyFile)
		if err != nil {
			return auth.Security{}, unlessMissing("group.keyFile", err)
		}
		if g.OldKeyFile != "" {
			old, err := auth.LoadKey(g.OldKeyFile)
			if err != nil {
				return auth.Security{}, unlessMissing("group.oldKeyFile", err)
			}
			keys = append(keys, old)
		}
		return auth.Security{Keys: keys, KeyFile: g.KeyFile}, nil
	}
	return auth.Security{}, nil
}

// unlessMissing makes err one about a key of the configuration, which no retry mends. A file that does not exist may
// be there in a moment.
func unlessMissing(key string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return err
	}
	return placed{configs.Problem{Key: key, Text: err.Error()}, err}
}

// socketPlace says what keeps path from ever being the socket of the commands. A directory that is missing is made, and
// one that cannot be written may be a mount that is late.
func socketPlace(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, unix.ENOTDIR):
		return configs.Problem{Key: "socket", Text: fmt.Sprintf("%s: a part of the path is a file, not a directory; "+
			"set socket to another path", path)}
	case err == nil && info.Mode()&os.ModeSocket == 0:
		return configs.Problem{Key: "socket", Text: fmt.Sprintf("%s: a file that is not a socket is there; remove it, or "+
			"set socket to another path", path)}
	}
	return nil // what else is wrong may be right in a moment, and is said by who opens it
}

// writable proves that dir, or its nearest parent that exists, takes a file.
func writable(dir string) error {
	at := dir
	for {
		info, err := os.Stat(at)
		if err == nil && !info.IsDir() {
			return configs.Problem{Key: "dataDir", Text: fmt.Sprintf("%s: %s is not a directory; set dataDir to a directory "+
				"that survives a reboot", dir, at)}
		}
		if err == nil {
			break
		}
		if errors.Is(err, unix.ENOTDIR) {
			at = filepath.Dir(at)
			continue // a file is on the way: the next look says which
		}
		if !errors.Is(err, os.ErrNotExist) || at == filepath.Dir(at) {
			return fmt.Errorf("dataDir %s: %w", dir, err)
		}
		at = filepath.Dir(at)
	}
	f, err := os.CreateTemp(at, ".appliance-*")
	if full(err) {
		return noRoom(dir, at, err)
	}
	if err != nil {
		return fmt.Errorf("dataDir %s cannot be written: %w; the group's votes have to be on disk; make it writable, or "+
			"set dataDir to a directory that is", dir, err)
	}
	defer os.Remove(f.Name())
	// A full disk refuses the first block, not the file.
	if _, err = f.Write(make([]byte, 4096)); err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if full(err) {
		return noRoom(dir, at, err)
	}
	if err != nil {
		return fmt.Errorf("dataDir %s takes no data: %w; the group's votes have to be on disk", dir, err)
	}
	return nil
}

// full says whether err means a file system without room, or a user over quota.
func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// noRoom is the error of a peer that cannot vote, since the group's votes have to be on disk. Nothing has been touched,
// so a restart does no harm.
func noRoom(dir, at string, err error) error {
	return fmt.Errorf("dataDir %s is full (%w; free at %s: %s), and the group's votes have to be on disk; "+
		"free some room there, or set dataDir to another disk, and start again", dir, err, at, store.Free(at))
}

// capabilities compares what the process may do with what cfg needs.
func capabilities(cfg *configs.Config) error {
	have, err := effectiveCapabilities()
	if err != nil {
		return err
	}
	var missing []string
	need := func(bit int, name, why string) {
		if have&(1<<bit) == 0 {
			missing = append(missing, name+" ("+why+")")
		}
	}
	if len(cfg.VIPs) > 0 {
		need(unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "to bind the virtual addresses and to program the kernel")
		need(unix.CAP_NET_RAW, "CAP_NET_RAW", "to answer ARP and neighbour solicitations")
	}
	if port := cfg.Announce.BGP.Port; cfg.SpeaksBGP() && !cfg.Worker() && port > 0 && port < 1024 {
		need(unix.CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE", fmt.Sprintf("to have routers connect to port %d", port))
	}
	for _, lb := range cfg.LoadBalancers {
		if lb.Port < 1024 && (!lb.BindToVIP || len(lb.Listen) > 0) {
			need(unix.CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE", fmt.Sprintf("to listen on port %d", lb.Port))
			break
		}
	}
	if len(missing) > 0 {
		return configs.Problem{Text: fmt.Sprintf("this process lacks %s; run it as root, or give the capabilities as the "+
			"manifest and the systemd unit do", strings.Join(missing, " and "))} // a restart gives it no more
	}
	return nil
}

// effectiveCapabilities returns the CapEff mask of this thread, which has those of the process, see proc(5).
func effectiveCapabilities() (uint64, error) {
	f, err := os.Open("/proc/thread-self/status")
	if err != nil {
		return 0, fmt.Errorf("find out the capabilities of this process: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if mask, ok := strings.CutPrefix(lines.Text(), "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		}
	}
	return 0, errors.New("find out the capabilities of this process: /proc/thread-self/status has no CapEff line")
}

// preflight finds, before anything is touched, what would keep the load balancers from being served.
func (n *node) preflight(ctx context.Context) error {
	if n.balancer == nil {
		return nil
	}
	return errors.Join(n.checkConflicts(), n.checkAnnouncer(ctx), n.check(ctx))
}

// checkAnnouncer finds what would keep routers from being told.
func (n *node) checkAnnouncer(ctx context.Context) error {
	if n.announcer == nil {
		return nil
	}
	return n.announcer.Check(ctx)
}

// checkConflicts refuses frontends that somebody else's rules translate: which rules come first would be a matter of
// priorities, and the other's clients would be served by the wrong program.
func (n *node) checkConflicts() error {
	if !n.planes.NFTables {
		return nil
	}
	var frontends []netip.AddrPort
	for _, lb := range n.cfg.ForBalancer() {
		for _, f := range lb.Frontends {
			if slices.Contains(n.cfg.VIPs, f.Addr()) {
				frontends = append(frontends, f)
			}
		}
	}
	return nft.PortConflicts(frontends)
}

// check asks, before anything is touched, whether the load balancers can be served. If some must have the direct data
// plane, it asks meanwhile whether the workers are there.
func (n *node) check(ctx context.Context) error {
	err := n.checkNow(ctx)
	if err == nil || n.inputs.list == nil {
		return err
	}
	// The list is as old as the last run of this node; a newer one arrives once it runs.
	n.log.Warn("the last good list of backends is of no use", "path", listPath(n.cfg), "error", err)
	n.inputs.list, n.recalledList = nil, false
	next := n.compute()
	err = n.serve(next, n.setLoadBalancers)
	n.state.Store(&next)
	return errors.Join(err, n.checkNow(ctx))
}

func (n *node) checkNow(ctx context.Context) error {
	forced := slices.ContainsFunc(n.cfg.LoadBalancers, func(lb configs.LoadBalancerEntry) bool {
		return lb.DataPlane == balancer.Direct
	})
	workers := slices.ContainsFunc(n.state.Load().Nodes, func(o pathprobe.Node) bool { return o.Worker })
	if n.planes.Direct == nil || !forced || !workers {
		return n.balancer.Check(ctx)
	}
	probing, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- n.planes.Prober.Run(probing, func() {}) }()
	err := n.balancer.Check(ctx)
	stop()
	return errors.Join(err, <-done)
}

// usableWithin bounds how long a node waits for its own IPv6 address at the start. Duplicate address detection takes a
// second or two once there is carrier (RFC 4862, section 5.4).
const usableWithin = time.Minute

// findInterfaces finds on which interface each VIP is answered.
func findInterfaces(cfg *configs.Config, self configs.PeerEntry) (found []arp.VIP, err error) {
	var errs []error
	for _, vip := range cfg.VIPs {
		routed := cfg.AnnouncedBy(vip) != configs.ByARP
		name, err := arp.FindInterface(vip, cfg.InterfaceOf(vip))
		if err != nil && routed && cfg.InterfaceOf(vip) == "" { // in no subnet of this host
			name, err = arp.InterfaceOf(towardsRouter(cfg, self))
		}
		errs = append(errs, err)
		found = append(found, arp.VIP{Addr: vip, Interface: name})
	}
	return found, errors.Join(errs...)
}

// towardsRouter is the address of this host from which it reaches its first router, else the one by which its peers
// know it. It sends nothing.
func towardsRouter(cfg *configs.Config, self configs.PeerEntry) netip.Addr {
	for _, r := range cfg.Announce.BGP.Neighbours {
		return towards([]netip.AddrPort{netip.AddrPortFrom(r.Addr, r.Port)}, []netip.Addr{self.Address})[0]
	}
	return self.Address
}

// awaitAddress waits until this host may use its own address, which for IPv6 takes as long as duplicate address
// detection, and for that carrier: nothing can listen there before.
func awaitAddress(ctx context.Context, own netip.Addr, log *slog.Logger) error {
	end := time.Now().Add(usableWithin)
	for waits := false; ; waits = true {
		tentative, err := arp.Tentative(own)
		switch {
		case err != nil:
			return err
		case !tentative && waits:
			log.Info("this node's own address can be used now", "address", own)
			return nil
		case !tentative:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("this node's own address %s is still tentative after %v (RFC 4862): "+
				"see whether its link has carrier, or add the address with nodad", own, usableWithin)
		case !waits:
			log.Warn("this node's own address is tentative: the start waits for duplicate address detection, which takes "+
				"carrier", "address", own, "atMost", usableWithin)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
