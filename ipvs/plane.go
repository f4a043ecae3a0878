package ipvs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloudflare/ipvs"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/sysctl"
)

// MasqueradeRules give connections to frontends an address of this host as their source, so that the backends' answers
// come back through it. Frontends are the whole set; an empty one removes every rule.
type MasqueradeRules interface {
	Masquerade(ctx context.Context, frontends []netip.AddrPort) (repaired int, err error)
}

// RejectRules make new connections to frontends end at once with a reset. Frontends are the whole set; an empty one
// removes every rule. IPVS itself answers for a service without backends by an ICMP error, about once per second to one
// client, and IPv6 clients react only to the second one: other clients would wait. A rule for local clients has to come
// before the output hook of IPVS, whose priority is -99 (NF_IP_PRI_NAT_DST + 1).
type RejectRules interface {
	Refuse(ctx context.Context, frontends []netip.AddrPort) (repaired int, err error)
}

// Config is what the plane needs of its host.
type Config struct {
	// Masquerader must not be nil.
	Masquerader MasqueradeRules
	// Refuser may be nil; clients of a load balancer without backends are then refused by ICMP, at the rate that the
	// kernel allows.
	Refuser RejectRules
	// Tuning returns what a load balancer wants of IPVS in particular, in every Apply. Nil means nothing for all of
	// them.
	Tuning func(loadBalancer string) Tuning
	// Sysctls is where the kernel parameters are; empty means /proc/sys.
	Sysctls string
	// Log gets what the operator should do about other programs; nil means slog.Default().
	Log *slog.Logger
}

// VirtualServer is the data plane "ipvs". It works in the network namespace of the thread that calls it. Apply and
// Close belong to one goroutine; Usable and Stats may be called by any. A network namespace has room for one
// VirtualServer: it takes every service that has its label for its own, so that a new process goes on with what a
// killed one left, and cuts no connection.
type VirtualServer struct {
	config Config
	dial   func() (kernel, error)
	loaded func() bool

	cutsAtOnce bool // see the function
	sysctls    sysctl.Tree

	last       []virtual // what the last Apply wanted of the kernel
	known      bool      // last was applied in full, so that what differs now is damage
	lastCut    time.Time // when the kernel was last told to cut connections
	warnedOnce bool      // about kube-proxy in ipvs mode
}

var _ balancer.Plane = (*VirtualServer)(nil)

// New makes a plane that has not touched anything yet.
func New(c Config) (*VirtualServer, error) {
	if c.Masquerader == nil {
		return nil, errors.New("ipvs: Config.Masquerader is nil; pass the one of package nft")
	}
	if c.Tuning == nil {
		c.Tuning = func(string) Tuning { return Tuning{} }
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &VirtualServer{
		config:  c,
		dial:    dial,
		loaded:  loaded,
		sysctls: sysctl.Tree{Root: c.Sysctls},

		cutsAtOnce: cutsAtOnce(),
	}, nil
}

// Name implements balancer.Plane.
func (p *VirtualServer) Name() balancer.PlaneName { return balancer.IPVS }

// Apply makes the kernel serve exactly the services in list. Rules and parameters come before the first service, so
// that no connection begins without them. repaired counts what others had changed.
func (p *VirtualServer) Apply(ctx context.Context, list []balancer.Service) (repaired int, err error) {
	if len(list) == 0 && !p.loaded() {
		return 0, nil
	}
	k, err := p.dial()
	if err != nil {
		return 0, err
	}
	defer closeKernel(k)
	have, foreign, err := read(k, p.last)
	if err != nil {
		return 0, err
	}

	want, errs := p.want(list, foreign)
	var ready error // nil if the host is as the services need it
	if len(want) > 0 {
		p.warnOfKubeProxy(want)
		need := parameters(want)
		if !p.cutsAtOnce {
			need = append(need, expireNodest())
		}
		repaired, ready = p.sysctls.Set(need...)
	}
	// Connections to a service that goes keep their rules until it is gone.
	n, err := p.rules(ctx, slices.Concat(want, have))
	repaired += n
	if ready = errors.Join(ready, err); ready != nil {
		errs = append(errs, ready)
		// Begin nothing that cannot work. Services that exist keep following their backends.
		want = slices.DeleteFunc(want, func(w virtual) bool {
			return !slices.ContainsFunc(have, func(h virtual) bool { return key(h.service) == key(w.service) })
		})
	}

	if p.known {
		repaired += deviations(have, p.last, want)
	}
	ops := diff(have, want)
	errs = append(errs, p.cut(ops))
	missing, err := perform(k, ops)
	p.last, p.known = slices.DeleteFunc(want, func(w virtual) bool { return missing[key(w.service)] }), err == nil
	errs = append(errs, err)
	if slices.ContainsFunc(ops, func(o op) bool { return o.verb == removeService }) {
		_, err := p.rules(ctx, p.last)
		errs = append(errs, err)
	}
	return repaired, errors.Join(errs...)
}

// cutsWithin is longer than the kernel takes to cut the connections of a backend: one tick, and a walk over the table.
const cutsWithin = 2 * time.Second

// cut lets the kernel cut connections only while we take backends out ourselves. Those of backends that others flush go
// on after the repair.
func (p *VirtualServer) cut(ops []op) error {
	switch {
	case !p.cutsAtOnce:
		return nil // it is on all the time
	case slices.ContainsFunc(ops, func(o op) bool { return rank(o.verb) > 0 }):
		p.lastCut = time.Now()
		_, err := p.sysctls.Set(expireNodest())
		return err
	case !p.lastCut.IsZero() && time.Since(p.lastCut) > cutsWithin:
		p.lastCut = time.Time{}
		return p.sysctls.RestoreFunc(func(key string) bool { return key == expireNodest().Key })
	}
	return nil
}

// cutsAtOnce reports whether the kernel cuts connections when their backend is taken out. Before Linux 5.9 it waits for
// their next packet, and reads the parameter then.
func cutsAtOnce() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 5 || major == 5 && minor >= 9
}

// want translates what can be served of list, and returns an error for each of the others.
func (p *VirtualServer) want(list []balancer.Service, foreign []ipvs.Service) (want []virtual, errs []error) {
	taken := make(map[ipvs.Service]ipvs.Service, len(foreign))
	for _, f := range foreign {
		taken[key(f)] = f
	}
	owner := make(map[ipvs.Service]string, len(list))
	for _, s := range list {
		v, err := translate(s, p.config.Tuning(s.LoadBalancer))
		if err != nil {
			errs = append(errs, fmt.Errorf("ipvs: load balancer %s: %w", s.LoadBalancer, err))
			continue
		}
		id := key(v.service)
		if f, is := taken[id]; is {
			errs = append(errs, fmt.Errorf("ipvs: load balancer %s: %w", s.LoadBalancer, conflict(f)))
			continue
		}
		if other, is := owner[id]; is {
			errs = append(errs, fmt.Errorf("ipvs: load balancers %s and %s both want %s; give one of them another port",
				other, s.LoadBalancer, name(id)))
			continue
		}
		owner[id] = s.LoadBalancer
		want = append(want, v)
	}
	return want, errs
}

// conflict is the error of a frontend that is another program's.
func conflict(f ipvs.Service) error {
	return fmt.Errorf("the kernel's IPVS has a service %s (scheduler %s) that somebody else made, "+
		"such as keepalived, lvscare, kube-vip or kube-proxy; "+
		"stop that program and run ipvsadm -D -t %s, or take another port, or set dataPlane: nftables",
		name(f), f.Scheduler, name(f))
}

// rules hands over what these services need of the packet filter.
func (p *VirtualServer) rules(ctx context.Context, all []virtual) (repaired int, err error) {
	var served, refused []netip.AddrPort
	for _, v := range all {
		at := netip.AddrPortFrom(v.service.Address, v.service.Port)
		if v.service.FWMark != 0 || slices.Contains(served, at) {
			continue // a probe that an earlier process left has no address
		}
		served = append(served, at)
		if !slices.ContainsFunc(v.destinations, func(d ipvs.Destination) bool { return d.Weight > 0 }) {
			refused = append(refused, at)
		}
	}
	repaired, err = p.config.Masquerader.Masquerade(ctx, served)
	if err != nil {
		return repaired, fmt.Errorf("ipvs: masquerade: %w", err)
	}
	if p.config.Refuser == nil {
		return repaired, nil
	}
	n, err := p.config.Refuser.Refuse(ctx, refused)
	if err != nil {
		return repaired + n, fmt.Errorf("ipvs: refuse connections: %w", err)
	}
	return repaired + n, nil
}

// warnOfKubeProxy logs once how kube-proxy has to be configured: in its ipvs mode it removes every service that it does
// not know.
func (p *VirtualServer) warnOfKubeProxy(want []virtual) {
	if p.warnedOnce {
		return
	}
	if _, err := net.InterfaceByName("kube-ipvs0"); err != nil {
		return
	}
	p.warnedOnce = true
	var prefixes []string
	for _, v := range want {
		s := strconv.Quote(netip.PrefixFrom(v.service.Address, v.service.Address.BitLen()).String())
		if !slices.Contains(prefixes, s) {
			prefixes = append(prefixes, s)
		}
	}
	p.config.Log.Warn("kube-proxy runs here in ipvs mode and removes services that it does not know; "+
		"they come back, but connections break",
		"remedy", "in ConfigMap kube-system/kube-proxy, write into config.conf the line below, and restart kube-proxy",
		"line", "ipvs: {excludeCIDRs: ["+strings.Join(prefixes, ", ")+"], strictARP: true}")
}

// Close removes the services and the rules, and restores the parameters. The kernel cuts the connections with their
// service. A process that the next one follows at once should not call it: what it leaves goes on, and the next process
// takes it over.
func (p *VirtualServer) Close() error {
	var errs []error
	if p.loaded() {
		_, err := cleanup(p.dial, &p.sysctls, p.last)
		errs = append(errs, err)
	}
	_, err := p.rules(context.Background(), nil)
	errs = append(errs, err, p.sysctls.Restore())
	p.last, p.known, p.lastCut = nil, false, time.Time{}
	return errors.Join(errs...)
}

// Cleanup removes the services that an earlier process left, and names them. It leaves alone services of others, and
// the rules of the packet filter.
func Cleanup() (removed []string, err error) {
	if !loaded() {
		return nil, nil
	}
	var s sysctl.Tree
	removed, err = cleanup(dial, &s, nil)
	return removed, errors.Join(err, s.Restore())
}

func cleanup(dial func() (kernel, error), s *sysctl.Tree, made []virtual) (removed []string, err error) {
	k, err := dial()
	if err != nil {
		return nil, err
	}
	defer closeKernel(k)
	have, _, err := read(k, made)
	if err != nil {
		return nil, err
	}
	if len(have) > 0 {
		// Without this, packets of open connections are dropped until they time out, even if another data plane serves
		// the same address. Where it cannot be set, the services still have to go.
		_, _ = s.Set(expireNodest())
	}
	var errs []error
	for _, o := range diff(have, nil) {
		if err := o.call(k); err != nil {
			errs = append(errs, explain(o, err))
			continue
		}
		removed = append(removed, "ipvs service "+name(o.service))
	}
	return removed, errors.Join(errs...)
}
