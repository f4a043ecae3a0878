package nft

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"appliance/balancer"
)

func TestAvailableAndCleanup(t *testing.T) {
	needRoot(t)
	m := newMachine(t, "m")
	m.in(func() {
		if err := Available(); err != nil {
			t.Fatal(err)
		}
	})
	if rules := m.ruleset(); rules != "" {
		t.Errorf("Available left\n%s", rules)
	}

	// A process that crashed leaves everything, beside what belongs to others.
	m.run("nft", "add table inet firewall; add chain inet firewall input { type filter hook input priority 0; }; "+
		"add table inet appliance_like")
	others := m.ruleset()
	frontend := netip.AddrPortFrom(vip4, 6443)
	m.in(func() {
		ctx := context.Background()
		if _, err := new(ARPFilter).Apply(ctx, []FilteredVIP{{VIP: vip4}}); err != nil {
			t.Fatal(err)
		}
		ports := map[netip.AddrPort]netip.AddrPort{frontend: netip.AddrPortFrom(vip4, 1)}
		if _, err := new(Redirector).Redirect(ctx, ports); err != nil {
			t.Fatal(err)
		}
		if _, err := new(IPVSMasquerade).Masquerade(ctx, []netip.AddrPort{frontend,
			netip.AddrPortFrom(vip6, 6443)}); err != nil {
			t.Fatal(err)
		}
		if _, err := NewNAT("", nil).Apply(ctx, []balancer.Service{{Frontend: netip.AddrPortFrom(vip4, 7443)},
			{Frontend: netip.AddrPortFrom(vip6, 7443)}}); err != nil {
			t.Fatal(err)
		}
	})
	m.in(func() {
		removed, err := Cleanup()
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(removed)
		want := []string{
			"nf_tables table arp appliance_silence",
			"nf_tables table inet appliance_ipvs",
			"nf_tables table inet appliance_redirect",
			"nf_tables table ip appliance_nat",
			"nf_tables table ip6 appliance_nat",
		}
		if !slices.Equal(removed, want) {
			t.Errorf("removed %q, want %q", removed, want)
		}
		if removed, err = Cleanup(); err != nil || len(removed) != 0 {
			t.Errorf("second Cleanup removed %q, %v", removed, err)
		}
	})
	if left := m.ruleset(); left != others {
		t.Errorf("Cleanup left\n%s\nwant what belongs to others\n%s", left, others)
	}
}

func TestAvailableWithoutTheCapability(t *testing.T) {
	needRoot(t)
	m := newMachine(t, "m")
	done := make(chan error)
	go func() {
		// The thread gives up a capability. It is never unlocked, so it ends
		// with this goroutine.
		runtime.LockOSThread()
		if err := netns.Set(m.ns); err != nil {
			done <- err
			return
		}
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		if err := unix.Capget(&header, &sets[0]); err != nil {
			done <- err
			return
		}
		sets[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &sets[0]); err != nil {
			done <- err
			return
		}
		done <- Available()
	}()
	if err := <-done; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "capability NET_ADMIN") {
		t.Errorf("got %v, want EPERM and what to do", err)
	}
}
