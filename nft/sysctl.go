package nft

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"appliance/balancer"
)

// forwarding sees to it that the kernel passes packets on to backends on
// other hosts. The zero forwarding has changed nothing yet.
type forwarding struct {
	// root is where settings are written, procSys if empty. A container's own
	// is read-only; the host's may be mounted elsewhere.
	root string
	// changed are the settings that we wrote, in that order, with what they
	// were before.
	changed []setting
}

// A setting is a file below /proc/sys and a value.
type setting struct{ path, value string }

func (s setting) String() string {
	return strings.NewReplacer("/", ".", ".", "/").Replace(s.path) + " = " + s.value
}

const (
	procSys     = "/proc/sys"
	ipv4Forward = "net/ipv4/ip_forward"
	ipv6Forward = "net/ipv6/conf/all/forwarding"
)

// need turns forwarding on for the families of backends on other hosts, if it
// is off. repaired counts what we had turned on and somebody turned off.
func (f *forwarding) need(services []balancer.Service) (repaired int, err error) {
	missing, err := missing(services)
	if err != nil {
		return 0, err
	}
	for _, s := range missing {
		old, err := readSetting(s.path)
		if err != nil {
			return repaired, err
		}
		if err := writeSetting(f.root, s); err != nil {
			return repaired, err
		}
		if f.wrote(s.path) {
			repaired++
			continue
		}
		f.changed = append(f.changed, setting{s.path, old})
	}
	return repaired, nil
}

func (f *forwarding) wrote(path string) bool {
	for _, c := range f.changed {
		if c.path == path {
			return true
		}
	}
	return false
}

// restore puts everything back, the last change first.
func (f *forwarding) restore() error {
	var errs []error
	for i := len(f.changed) - 1; i >= 0; i-- {
		err := writeSetting(f.root, f.changed[i])
		if errors.Is(err, os.ErrNotExist) {
			err = nil // an interface that is gone takes its settings along
		}
		errs = append(errs, err)
	}
	f.changed = nil
	return errors.Join(errs...)
}

// possible tells whether need would succeed. It changes nothing.
func (f *forwarding) possible(services []balancer.Service) error {
	missing, err := missing(services)
	if err != nil {
		return err
	}
	for _, s := range missing {
		// Opening for writing asks the kernel for the right to do so.
		file, err := os.OpenFile(filepath.Join(cmp.Or(f.root, procSys), s.path), os.O_WRONLY, 0)
		if err != nil {
			return unwritable(s, err)
		}
		file.Close()
	}
	return nil
}

// missing lists what must be written, in this order.
func missing(services []balancer.Service) ([]setting, error) {
	remote4, remote6, err := remote(services)
	if err != nil {
		return nil, err
	}
	var list []setting
	if remote4 {
		v, err := readSetting(ipv4Forward)
		if err != nil {
			return nil, err
		}
		if v == "0" {
			list = append(list, setting{ipv4Forward, "1"})
		}
	}
	if !remote6 {
		return list, nil
	}
	v, err := readSetting(ipv6Forward)
	if err != nil {
		return nil, err
	}
	if v != "0" {
		return list, nil
	}
	// A host that forwards stops listening to router advertisements and
	// drops the default routes that it has from them, unless accept_ra is 2
	// (Documentation/networking/ip-sysctl.rst). So that comes first.
	paths, err := filepath.Glob(procSys + "/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		p = strings.TrimPrefix(p, procSys+"/")
		switch v, err := readSetting(p); {
		case errors.Is(err, os.ErrNotExist):
			continue // the interface went away
		case err != nil:
			return nil, err
		case v == "1":
			list = append(list, setting{p, "2"})
		}
	}
	return append(list, setting{ipv6Forward, "1"}), nil
}

// remote tells whether there are backends on other hosts, by family.
func remote(services []balancer.Service) (remote4, remote6 bool, err error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false, false, fmt.Errorf("listing the host's addresses: %w", err)
	}
	local := make(map[netip.Addr]bool)
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			local[p.Addr().Unmap()] = true
		}
	}
	for _, s := range services {
		for _, b := range serving(s) {
			switch a := b.Addr.Addr().Unmap(); {
			case local[a]:
			case a.Is4():
				remote4 = true
			default:
				remote6 = true
			}
		}
	}
	return remote4, remote6, nil
}

func readSetting(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(procSys, path))
	if err != nil {
		return "", fmt.Errorf("reading a kernel setting: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSetting(root string, s setting) error {
	if err := os.WriteFile(filepath.Join(cmp.Or(root, procSys), s.path), []byte(s.value), 0); err != nil {
		return unwritable(s, err)
	}
	return nil
}

func unwritable(s setting, err error) error {
	return fmt.Errorf("backends on other hosts need the kernel to forward packets, and the setting cannot be changed from here: %w; put the line %q into /etc/sysctl.d/90-appliance.conf and run `sysctl --system`", err, s.String())
}
