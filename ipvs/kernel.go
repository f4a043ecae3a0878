package ipvs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cloudflare/ipvs"
	"golang.org/x/sys/unix"
)

// A kernel is the part of ipvs.Client that the plane needs.
type kernel interface {
	Services() ([]ipvs.ServiceExtended, error)
	CreateService(ipvs.Service) error
	UpdateService(ipvs.Service) error
	RemoveService(ipvs.Service) error
	Destinations(ipvs.Service) ([]ipvs.DestinationExtended, error)
	CreateDestination(ipvs.Service, ipvs.Destination) error
	UpdateDestination(ipvs.Service, ipvs.Destination) error
	RemoveDestination(ipvs.Service, ipvs.Destination) error
}

var errNoIPVS = errors.New("the kernel has no ip_vs and could not load it; " +
	"install the distribution's full set of kernel modules and run modprobe ip_vs, or set dataPlane: nftables")

// dial opens the kernel's IPVS in the network namespace of the calling thread. Resolving the family by name makes the
// kernel load ip_vs.
func dial() (kernel, error) {
	return open(func() (kernel, error) { return ipvs.New() }, "/sys/module/ip_vs/initstate")
}

// loadingFor bounds the wait for a module that is being loaded: a starved host took more than ten seconds.
const loadingFor = time.Minute

// open resolves the family. While somebody else has the kernel load ip_vs, such as kube-proxy at boot, there is no such
// family yet, and to ask for it loads nothing more.
func open(resolve func() (kernel, error), initState string) (kernel, error) {
	for end := time.Now().Add(loadingFor); ; time.Sleep(20 * time.Millisecond) {
		state, _ := os.ReadFile(initState) // read first: it may be ready a moment later
		c, err := resolve()
		switch {
		case err == nil:
			return c, nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("open IPVS over generic netlink: %w; give the process CAP_NET_ADMIN", err)
		case strings.TrimSpace(string(state)) == "coming" && time.Now().Before(end):
			continue
		}
		// It may have begun between the two.
		if now, _ := os.ReadFile(initState); len(now) > 0 && len(state) == 0 {
			continue
		}
		return nil, errNoIPVS
	}
}

// loaded reports whether the kernel has loaded ip_vs, without making it. If not, nothing was left in it.
func loaded() bool {
	_, err := os.Stat("/proc/thread-self/net/ip_vs")
	return err == nil
}

// closeKernel closes k. The library's interface has no Close, its client has.
func closeKernel(k kernel) {
	if c, ok := k.(io.Closer); ok {
		c.Close()
	}
}

// services lists what the kernel has. An empty list is no error here.
func services(k kernel) ([]ipvs.ServiceExtended, error) {
	all, err := k.Services()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list IPVS services: %w; give the process CAP_NET_ADMIN", err)
	}
	return all, nil
}

func destinations(k kernel, s ipvs.Service) ([]ipvs.DestinationExtended, error) {
	all, err := k.Destinations(key(s))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the backends of IPVS service %s: %w", name(s), err)
	}
	return all, nil
}

// read lists our services with their destinations, and the services of others. What this process has made is ours even
// without the label, because ipvsadm -E removes it.
func read(k kernel, made []virtual) (have []virtual, foreign []ipvs.Service, err error) {
	all, err := services(k)
	if err != nil {
		return nil, nil, err
	}
	for _, s := range all {
		mine := slices.ContainsFunc(made, func(m virtual) bool { return key(m.service) == key(s.Service) })
		if s.Flags&ours == 0 && !mine {
			foreign = append(foreign, s.Service)
			continue
		}
		ds, err := destinations(k, s.Service)
		if err != nil {
			return nil, nil, err
		}
		v := virtual{service: s.Service}
		for _, d := range ds {
			v.destinations = append(v.destinations, d.Destination)
		}
		slices.SortFunc(v.destinations, order)
		have = append(have, v)
	}
	return have, foreign, nil
}

// perform makes the kernel do ops in order and goes on after a failure, so that one bad service does not hold up the
// others. A service that could not be made in full is removed again: without one of its backends, it would be neither
// what was asked for nor what the next Apply counts from. missing has the keys of services that do not exist in the
// end.
func perform(k kernel, ops []op) (missing map[ipvs.Service]bool, err error) {
	var errs []error
	created := make(map[ipvs.Service]bool)
	missing = make(map[ipvs.Service]bool)
	for _, o := range ops {
		id := key(o.service)
		if missing[id] {
			continue
		}
		err := o.call(k)
		if err == nil {
			created[id] = created[id] || o.verb == createService
			continue
		}
		errs = append(errs, explain(o, err))
		if created[id] {
			errs = append(errs, k.RemoveService(id))
		}
		missing[id] = created[id] || o.verb == createService
	}
	return missing, errors.Join(errs...)
}

func (o op) call(k kernel) error {
	id := key(o.service)
	switch o.verb {
	case createService:
		return k.CreateService(o.service)
	case updateService:
		return k.UpdateService(o.service)
	case removeService:
		return gone(k.RemoveService(id))
	case createDestination:
		return k.CreateDestination(id, o.destination)
	case updateDestination:
		return k.UpdateDestination(id, o.destination)
	case removeDestination:
		return gone(k.RemoveDestination(id, o.destination))
	}
	return fmt.Errorf("no such operation: %d", o.verb)
}

// gone takes the absence of what was to be removed for success: somebody flushed it after we had read it. The kernel
// returns ESRCH for a service and ENOENT for a destination.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// explain adds the remedy to an error of the kernel.
func explain(o op, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT) && (o.verb == createService || o.verb == updateService):
		return noScheduler(o.service.Scheduler)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("ipvs: cannot %v: %w; give the process CAP_NET_ADMIN", o, err)
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("ipvs: cannot %v: the kernel's IPVS has no IPv6; "+
			"take a kernel with CONFIG_IP_VS_IPV6, or set dataPlane: nftables", o)
	}
	return fmt.Errorf("ipvs: cannot %v: %w; it is tried again in the next round", o, err)
}

func noScheduler(name string) error {
	return fmt.Errorf("ipvs: the kernel has no scheduler %q (no module ip_vs_%s); "+
		"take one of rr, wrr, lc, wlc, sh, mh, sed, nq, or set dataPlane: userspace", name, name)
}
