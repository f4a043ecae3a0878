package arp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	procSys  = "/proc/sys"
	ipv4Conf = "net/ipv4/conf"

	// arp_ignore 3: reply for no address of scope host, which the VIP on lo has,
	// and other people's hardly ever (Documentation/networking/ip-sysctl.rst).
	ignoreHostScope = 3
	// arp_announce 2: the sender of a request is the best address of the
	// interface for the target, whatever the packet that waits for it.
	announceOwn = 2
)

// Sysctls is the Silencer for kernels without nf_tables. It silences by
// arp_ignore and arp_announce of the interface, and so not for the VIP alone. A
// value that was changed is restored by the empty set; after a crash it stays,
// and is harmless.
type Sysctls struct {
	dir     string         // of the per-interface settings
	changed map[string]int // the value before, by file
	belt    bool
}

// NewSysctls makes a Silencer of the sysctls below root; empty means /proc/sys.
// In a container that one may be read only, and the host's be mounted elsewhere.
func NewSysctls(root string) *Sysctls {
	return &Sysctls{dir: filepath.Join(cmp.Or(root, procSys), ipv4Conf), changed: make(map[string]int)}
}

// NewBelt is for those who silence by other means: it makes a Silencer that only
// keeps the kernel from answering, by arp_ignore, while rules that do more have been
// flushed by somebody. It leaves the host as it is where it may not do that.
func NewBelt(root string) *Sysctls {
	s := NewSysctls(root)
	s.belt = true
	return s
}

// Silence implements Silencer. Its caller is one goroutine.
func (s *Sysctls) Silence(_ context.Context, set []Silenced) (repaired int, err error) {
	wanted := make(map[string]bool)
	for _, v := range set {
		for _, k := range []struct {
			key    string
			want   int
			enough func(int) bool
		}{
			{"arp_ignore", ignoreHostScope, func(v int) bool { return v == 1 || v == 2 || v == 3 || v == 8 }},
			{"arp_announce", announceOwn, func(v int) bool { return v == announceOwn }},
		} {
			if s.belt && k.key != "arp_ignore" {
				continue
			}
			file := filepath.Join(s.dir, v.Interface, k.key)
			wanted[file] = true
			did, err := s.ensure(file, v.Interface, k.key, k.want, k.enough)
			if err != nil {
				return repaired, err
			}
			if did {
				repaired++
			}
		}
	}
	var errs []error
	for _, file := range slices.Sorted(maps.Keys(s.changed)) {
		if !wanted[file] {
			errs = append(errs, s.restore(file))
		}
	}
	return repaired, errors.Join(errs...)
}

// ensure writes want unless what is in force is enough; it is the greater of
// the interface's value and that of "all".
func (s *Sysctls) ensure(file, iface, key string, want int, enough func(int) bool) (repaired bool, err error) {
	all, err := readInt(filepath.Join(s.dir, "all", key))
	if err != nil {
		return false, err
	}
	have, err := readInt(file)
	if err != nil {
		return false, err
	}
	if enough(max(all, have)) {
		return false, nil
	}
	if !enough(max(all, want)) {
		return false, fmt.Errorf("arp: net.ipv4.conf.all.%s=%d lets the kernel answer for VIPs: set it to 0 or %d", key, all, want)
	}
	if err := os.WriteFile(file, []byte(strconv.Itoa(want)), 0); err != nil {
		return false, fmt.Errorf("arp: %w: put net.ipv4.conf.%s.%s=%d into /etc/sysctl.d/90-appliance.conf on the host and run: sysctl --system", err, sysctlName(iface), key, want)
	}
	if _, ours := s.changed[file]; ours {
		return true, nil // somebody else has set it back
	}
	s.changed[file] = have
	return false, nil
}

// restore writes the old value back. The interface may be gone.
func (s *Sysctls) restore(file string) error {
	err := os.WriteFile(file, []byte(strconv.Itoa(s.changed[file])), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("arp: restore: %w: write %d there by hand", err, s.changed[file])
	}
	delete(s.changed, file)
	return nil
}

func readInt(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("arp: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("arp: %s: %w", file, err)
	}
	return n, nil
}

// sysctlName writes an interface as sysctl(8) wants it: in a dotted key, a dot
// of the name becomes a slash.
func sysctlName(iface string) string { return strings.ReplaceAll(iface, ".", "/") }
