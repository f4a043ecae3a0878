package pathprobe

import (
	"net/netip"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// frontends are a VIP of each family.
var frontends = []netip.AddrPort{
	netip.MustParseAddrPort("10.77.0.10:6443"),
	netip.MustParseAddrPort("[fd77::10]:6443"),
}

func eachFrontend(t *testing.T, test func(t *testing.T, f netip.AddrPort)) {
	for i, f := range frontends {
		t.Run([]string{"IPv4", "IPv6"}[i], func(t *testing.T) { test(t, f) })
	}
}

func workerAt(a netip.Addr) string { return "worker " + a.String() }
