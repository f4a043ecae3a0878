package ipvs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A setting is a sysctl with the value that the plane needs, and why.
type setting struct {
	key   string // with slashes: an interface's name may have dots
	value string
	why   string
}

// dotted is the key as sysctl(8) writes it.
func (s setting) dotted() string {
	return strings.NewReplacer("/", ".", ".", "/").Replace(s.key)
}

// expireNodest makes the kernel cut the connections of a backend that is taken
// out. While it is off, connections wait for their backend: one that somebody
// else flushed comes back with the next Apply, and they go on.
var expireNodest = setting{"net/ipv4/vs/expire_nodest_conn", "1", "open connections to a backend that is gone are cut at once instead of hanging"}

// settings is what services of these kinds need. The order matters: accept_ra
// is set before forwarding, which would throw the routes away.
func settings(ip4, ip6, persistent bool, routersOn []string) []setting {
	need := []setting{
		{"net/ipv4/vs/conntrack", "1", "packets that IPVS moves can be masqueraded only if they are tracked"},
		expireNodest,
	}
	if persistent {
		need = append(need, setting{"net/ipv4/vs/expire_quiescent_template", "1",
			"clients with persistence leave a backend that drains"})
	}
	if ip4 {
		need = append(need, setting{"net/ipv4/ip_forward", "1", "answers of backends pass through this host to the client"})
	}
	if ip6 {
		for _, i := range routersOn {
			need = append(need, setting{"net/ipv6/conf/" + i + "/accept_ra", "2",
				"with forwarding on, the kernel drops the default route that it learned from router advertisements unless this is 2"})
		}
		need = append(need, setting{"net/ipv6/conf/all/forwarding", "1", "answers of backends pass through this host to the client"})
	}
	return need
}

// sysctls reads and writes settings below a directory and remembers what it
// found, so that it can be put back.
type sysctls struct {
	root  string // /proc/sys
	found []setting
}

// check is nil if every setting has its value or could be given it.
func (s *sysctls) check(need []setting) error {
	var errs []error
	for _, n := range need {
		have, err := s.read(n)
		if err != nil || have == n.value {
			errs = append(errs, err)
			continue
		}
		// Opening for writing is what fails on a read-only mount and without
		// the right; nothing is written.
		f, err := os.OpenFile(filepath.Join(s.root, n.key), os.O_WRONLY, 0)
		if err != nil {
			errs = append(errs, refused(n, have, err))
			continue
		}
		f.Close()
	}
	return errors.Join(errs...)
}

// set gives every setting its value and counts those that somebody had turned
// back after an earlier call.
func (s *sysctls) set(need []setting) (repaired int, err error) {
	var errs []error
	for _, n := range need {
		have, err := s.read(n)
		if err != nil || have == n.value {
			errs = append(errs, err)
			continue
		}
		if err := s.write(n.key, n.value); err != nil {
			errs = append(errs, refused(n, have, err))
			continue
		}
		if s.remembered(n.key) {
			repaired++
			continue
		}
		s.found = append(s.found, setting{key: n.key, value: have})
	}
	return repaired, errors.Join(errs...)
}

// restore puts back what set found, last first.
func (s *sysctls) restore() error {
	var errs []error
	for i := len(s.found) - 1; i >= 0; i-- {
		f := s.found[i]
		// An interface that is gone has taken its settings along.
		if err := s.write(f.key, f.value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("put %s back to %s: %w; run sysctl -w %s=%s", f.dotted(), f.value, err, f.dotted(), f.value))
		}
	}
	s.found = nil
	return errors.Join(errs...)
}

// unset puts one setting back, if set has changed it.
func (s *sysctls) unset(n setting) error {
	i := slices.IndexFunc(s.found, func(f setting) bool { return f.key == n.key })
	if i < 0 {
		return nil
	}
	one := sysctls{root: s.root, found: []setting{s.found[i]}}
	s.found = slices.Delete(s.found, i, i+1)
	return one.restore()
}

func (s *sysctls) remembered(key string) bool {
	for _, f := range s.found {
		if f.key == key {
			return true
		}
	}
	return false
}

func (s *sysctls) read(n setting) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.root, n.key))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the kernel has no %s, but %s; take a kernel with %s, or set dataPlane: nftables", n.dotted(), n.why, option(n.key))
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", n.dotted(), err)
	}
	return string(bytes.TrimSpace(b)), nil
}

// option is what a kernel without the setting was built or started without.
func option(key string) string {
	switch {
	case key == "net/ipv4/vs/conntrack":
		return "CONFIG_IP_VS_NFCT"
	case strings.HasPrefix(key, "net/ipv6/"):
		return "IPv6, not started with ipv6.disable=1"
	default:
		return "CONFIG_IP_VS and CONFIG_SYSCTL, Linux 4.19 or newer"
	}
}

func (s *sysctls) write(key, value string) error {
	return os.WriteFile(filepath.Join(s.root, key), []byte(value), 0)
}

// refused tells the operator what to write, and where. The kernel has the
// settings of IPVS only while the module is there.
func refused(n setting, have string, err error) error {
	module := ""
	if strings.HasPrefix(n.key, "net/ipv4/vs/") {
		module = ", the line \"ip_vs\" into /etc/modules-load.d/appliance.conf"
	}
	return fmt.Errorf("%s is %s and cannot be set from here (%w), but %s; on the host, put the line \"%s = %s\" into /etc/sysctl.d/90-appliance.conf%s, and run sysctl --system",
		n.dotted(), have, err, n.why, n.dotted(), n.value, module)
}

// Flags of a route in /proc/net/ipv6_route (include/uapi/linux/ipv6_route.h).
const (
	routeDefault  = 0x00010000 // RTF_DEFAULT: learned from a router advertisement
	routeAddrconf = 0x00040000 // RTF_ADDRCONF
)

// advertised is the interfaces with a default route that came by router
// advertisement (RFC 4861, section 6.3.4), in the form of /proc/net/ipv6_route.
func advertised(routes []byte) []string {
	var on []string
	sc := bufio.NewScanner(bytes.NewReader(routes))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) != 10 || f[1] != "00" {
			continue
		}
		flags, err := strconv.ParseUint(f[8], 16, 32)
		if err == nil && flags&(routeDefault|routeAddrconf) == routeDefault|routeAddrconf {
			on = append(on, f[9])
		}
	}
	return on
}
