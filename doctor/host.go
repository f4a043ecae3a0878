package doctor

import (
	"context"
	"crypto/x509"
	"io/fs"
	"net"
	"net/netip"
	"time"

	"appliance/nft/ruleset"
)

// A HostView is what the doctor asks of the machine that it looks at.
type HostView interface {
	// Files is the root of the file system: /proc, /sys and /etc are read there.
	Files() fs.FS
	Interfaces() ([]Interface, error)
	// FindInterface is arp.FindInterface.
	FindInterface(vip netip.Addr, pattern string) (string, error)
	// Ask returns the MAC addresses that answer for addr on the link of an interface, within a second.
	Ask(iface string, addr netip.Addr) ([]net.HardwareAddr, error)
	// TryRules has the kernel check the rules that the appliance needs.
	TryRules() error
	// TryAssign has the kernel check the rule that hands clients' packets to user space as they are.
	TryAssign() error
	// Taken is nft.PortConflicts: an error for each frontend that somebody else's rule translates.
	Taken(frontends []netip.AddrPort) error
	// Chains lists the nf_tables base chains of others.
	Chains() ([]ruleset.ForeignChain, error)
	// Writable says whether this process may write a file below /proc/sys.
	Writable(path string) bool
	// Dial connects by TCP, closes, and returns how long the connecting took, also where it is refused.
	Dial(ctx context.Context, to netip.AddrPort) (time.Duration, error)
	// Datagram sends one datagram and waits a moment for an answer or a refusal; nil means an answer came.
	Datagram(ctx context.Context, to netip.AddrPort) error
	// Certificate returns the certificate that a TLS server shows.
	Certificate(ctx context.Context, at netip.AddrPort) (*x509.Certificate, error)
	// Commit writes one block in dir, or the nearest parent that exists, has it put on disk several times, and returns
	// how long each time took.
	Commit(dir string) ([]time.Duration, error)
	// ClockSynchronised says whether the kernel knows its clock to be kept by NTP or the like.
	ClockSynchronised() (bool, error)
}

// An Interface is one network interface and its addresses.
type Interface struct {
	Name    string
	Kind    string // as `ip -d link` names it: veth, bond, vlan, ipvs; "device" for hardware
	MTU     int    // bytes
	Up      bool   // administratively
	Carrier bool
	MAC     net.HardwareAddr
	Addrs   []netip.Prefix
}
