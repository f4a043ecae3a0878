package nft

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"appliance/balancer"
	"appliance/sysctl"
)

const (
	ipv4Forward = "net/ipv4/ip_forward"
	ipv6Forward = "net/ipv6/conf/all/forwarding"
)

// readSetting reads a kernel parameter of the thread's namespace.
func readSetting(key string) (string, error) {
	var t sysctl.Tree
	return t.Read(key)
}

// writeSetting sets a kernel parameter of the thread's namespace.
func writeSetting(key, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
}

// In a container without privileges, /proc/sys is read-only: the error names what cannot be changed, with the line that
// changes it, and no rule is made.
func TestForwardingThatCannotBeChanged(t *testing.T) {
	needRoot(t)
	m := newMachine(t, "m")
	type result struct {
		step string
		err  error
	}
	results := make(chan result, 8)
	go func() {
		defer close(results)
		// The thread gets a mount namespace of its own. It is never unlocked,
		// so it ends with this goroutine.
		runtime.LockOSThread()
		for step, f := range []func() error{
			func() error { return netns.Set(m.ns) },
			func() error { return unix.Unshare(unix.CLONE_NEWNS) },
			func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
			func() error { return unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, "") },
			func() error { return unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "") },
		} {
			if err := f(); err != nil {
				results <- result{"setup", err}
				t.Errorf("setup step %d: %v", step, err)
				return
			}
		}
		lb := balancer.LoadBalancer{
			Name:      "api",
			Frontends: []netip.AddrPort{netip.AddrPortFrom(vip4, 6443)},
			Backends:  []balancer.Backend{{Addr: netip.MustParseAddrPort("10.0.0.11:6443"), Weight: 1}},
		}
		results <- result{"Usable", NewNAT("", nil).Usable(context.Background(), lb)}
		service := balancer.Service{Frontend: lb.Frontends[0], Backends: lb.Backends}
		_, err := NewNAT("", nil).Apply(context.Background(), []balancer.Service{service})
		results <- result{"Apply", err}
	}()
	for r := range results {
		if r.err == nil || !strings.Contains(r.err.Error(), `"net.ipv4.ip_forward = 1"`) ||
			!strings.Contains(r.err.Error(), "/etc/sysctl.d") {
			t.Errorf("%s: got %v, want an error with the line for /etc/sysctl.d", r.step, r.err)
		}
	}
	if rules := m.ruleset(); rules != "" {
		t.Errorf("half-done rules stay:\n%s", rules)
	}
}
