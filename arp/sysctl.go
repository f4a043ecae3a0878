package arp

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"appliance/sysctl"
)

// A confKey is a parameter of an interface that keeps the kernel from answering for a VIP.
type confKey struct {
	name   string
	value  int
	enough []int // the values that do
	why    string
}

// Documentation/networking/ip-sysctl.rst has the values.
func arpIgnore() confKey {
	// 3: answer for no address of scope host, which the VIP on lo has, and other people's hardly ever.
	return confKey{"arp_ignore", 3, []int{1, 2, 3, 8}, "the kernel answers ARP requests for the VIP unless it is 3"}
}

func arpAnnounce() confKey {
	// 2: the sender of a request is the interface's best address for the target, whichever packet waits for the answer.
	return confKey{"arp_announce", 2, []int{2}, "the kernel names the VIP as the sender of ARP requests unless it is 2"}
}

// Sysctls is the Silencer for kernels without nf_tables. It silences by arp_ignore and arp_announce of the interface,
// and so not for the VIP alone. The empty set restores what was changed; after a crash it stays, and is harmless.
type Sysctls struct {
	tree sysctl.Tree
	keys []confKey
}

// NewSysctls makes a Silencer of the parameters below root; empty means /proc/sys. That one may be read-only in a
// container, with the host's mounted elsewhere.
func NewSysctls(root string) *Sysctls {
	return &Sysctls{tree: sysctl.Tree{Root: root}, keys: []confKey{arpIgnore(), arpAnnounce()}}
}

// NewIgnoreOnly makes a Silencer that sets arp_ignore alone. It stands behind rules that do more, for the moment in
// which somebody has flushed them.
func NewIgnoreOnly(root string) *Sysctls {
	return &Sysctls{tree: sysctl.Tree{Root: root}, keys: []confKey{arpIgnore()}}
}

// Silence implements Silencer. Its caller is one goroutine.
func (s *Sysctls) Silence(_ context.Context, set []Silenced) (repaired int, err error) {
	var wanted []string
	for _, v := range set {
		for _, k := range s.keys {
			wanted = append(wanted, conf(v.Interface, k.name))
			n, err := s.ensure(v.Interface, k)
			if err != nil {
				return repaired, fmt.Errorf("arp: %w", err)
			}
			repaired += n
		}
	}
	if err := s.tree.RestoreFunc(func(key string) bool { return !slices.Contains(wanted, key) }); err != nil {
		return repaired, fmt.Errorf("arp: %w", err)
	}
	return repaired, nil
}

// ensure sets k unless what is in force is enough: the greater of the interface's value and that of "all".
func (s *Sysctls) ensure(iface string, k confKey) (repaired int, err error) {
	all, err := s.read("all", k.name)
	if err != nil {
		return 0, err
	}
	have, err := s.read(iface, k.name)
	if err != nil || slices.Contains(k.enough, max(all, have)) {
		return 0, err
	}
	if !slices.Contains(k.enough, max(all, k.value)) {
		return 0, fmt.Errorf("net.ipv4.conf.all.%s=%d lets the kernel answer for VIPs: set it to 0 or %d",
			k.name, all, k.value)
	}
	return s.tree.Set(sysctl.Parameter{Key: conf(iface, k.name), Value: strconv.Itoa(k.value), Why: k.why})
}

func (s *Sysctls) read(iface, name string) (int, error) {
	text, err := s.tree.Read(conf(iface, name))
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", conf(iface, name), err)
	}
	return n, nil
}

func conf(iface, name string) string { return "net/ipv4/conf/" + iface + "/" + name }
