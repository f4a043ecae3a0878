package balancer

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestAdmits(t *testing.T) {
	ps := func(list ...string) (out []netip.Prefix) {
		for _, p := range list {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	tests := []struct {
		allow, deny []netip.Prefix
		client      string
		want        bool
	}{
		{nil, nil, "192.0.2.1", true},
		{ps("192.0.2.0/24"), nil, "192.0.2.1", true},
		{ps("192.0.2.0/24"), nil, "::ffff:192.0.2.1", true},
		{ps("192.0.2.0/24"), nil, "198.51.100.1", false},
		{ps("192.0.2.0/24"), nil, "2001:db8::1", false},
		{ps("192.0.2.0/24"), ps("192.0.2.1/32"), "192.0.2.1", false},
		{nil, ps("fe80::/10"), "fe80::1%eth0", false},
		{nil, ps("192.0.2.0/24"), "198.51.100.1", true},
	}
	for _, tt := range tests {
		if got := (ConnOptions{Allow: tt.allow, Deny: tt.deny}).Admits(netip.MustParseAddr(tt.client)); got != tt.want {
			t.Errorf("allow %v deny %v: %s is admitted: %v", tt.allow, tt.deny, tt.client, got)
		}
	}
}

func TestNeedsUserSpace(t *testing.T) {
	everybody := []netip.Prefix{netip.MustParsePrefix("::/0")}
	lb := LoadBalancer{Name: "lb", ConnOptions: ConnOptions{Allow: everybody, Retries: 5, QueueTimeout: time.Second}}
	if err := lb.NeedsUserSpace(NFTables); err != nil {
		t.Errorf("what every plane does, or none needs: %v", err)
	}
	lb.ConnOptions.Persistence, lb.ConnOptions.SendProxy = time.Minute, "v2"
	lb.Backends = []Backend{{MaxConn: 1, SendProxy: ProxyOff}, {MaxConn: 1, SlowStart: time.Second, SendProxy: "v1"}}
	err := lb.NeedsUserSpace(IPVS)
	want := "needs user space: timeouts.queue, sendProxy, backends.maxconn, backends.sendProxy, " +
		"backends.slowstart; set dataPlane"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error is %v", err)
	}
	lb = LoadBalancer{Name: "lb", Plane: IPVS, Backends: []Backend{{MaxConn: 1}}}
	if err := lb.NeedsUserSpace(IPVS); err != nil {
		t.Errorf("a threshold of a data plane that was asked for: %v", err)
	}
	lb.Backends[0].MaxQueue = 1
	if err := lb.NeedsUserSpace(IPVS); err == nil || !strings.Contains(err.Error(), "backends.maxqueue") {
		t.Errorf("a queue there: error is %v", err)
	}
}
