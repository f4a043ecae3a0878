package nft

import (
	"context"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

func TestSettingString(t *testing.T) {
	for s, want := range map[setting]string{
		{ipv4Forward, "1"}: "net.ipv4.ip_forward = 1",
		// A dot in an interface's name is a slash for sysctl(8).
		{"net/ipv6/conf/eth0.100/accept_ra", "2"}: "net.ipv6.conf.eth0/100.accept_ra = 2",
	} {
		if got := s.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// As in a container without privileges, /proc/sys is read-only: what cannot be
// changed is named, with the line that changes it, and no rule is made.
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
		results <- result{"Usable", NewNAT("").Usable(context.Background(), lb)}
		_, err := NewNAT("").Apply(context.Background(), []balancer.Service{{Frontend: lb.Frontends[0], Backends: lb.Backends}})
		results <- result{"Apply", err}
	}()
	for r := range results {
		if r.err == nil || !strings.Contains(r.err.Error(), `"net.ipv4.ip_forward = 1"`) || !strings.Contains(r.err.Error(), "/etc/sysctl.d") {
			t.Errorf("%s: got %v, want an error with the line for /etc/sysctl.d", r.step, r.err)
		}
	}
	if rules := m.ruleset(); rules != "" {
		t.Errorf("half-done rules stay:\n%s", rules)
	}
}
