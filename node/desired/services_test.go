package desired

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/configs"
)

// What the file says reaches the data planes, whole.
func TestHandling(t *testing.T) {
	allow, deny := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.66/32")
	c := configs.LoadBalancer{KeepDown: true, EndBackup: true, Handling: configs.Handling{
		MaxConn: 1, Persistence: 2, ClientTimeout: 3, ServerTimeout: 4, QueueTimeout: 5, Retries: 6, RequireTLS: time.Second,
		AcceptProxyFrom: []netip.Prefix{allow}, SendProxy: "v1", Allow: []netip.Prefix{allow}, Deny: []netip.Prefix{deny},
	}}
	got := handling(c)
	want := balancer.Handling{
		MaxConn: 1, Persistence: 2, ClientTimeout: 3, ServerTimeout: 4, QueueTimeout: 5, Retries: 6, RequireTLS: time.Second,
		AcceptProxyFrom: []netip.Prefix{allow}, SendProxy: "v1", Allow: []netip.Prefix{allow}, Deny: []netip.Prefix{deny},
		KeepDown: true, EndBackup: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	// A field that somebody adds must not be forgotten here.
	for i, v := 0, reflect.ValueOf(got); i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("%s is lost", v.Type().Field(i).Name)
		}
	}
	// None is none, and not the balancer's default.
	c.Handling.Retries = 0
	if got := handling(c).Retries; got >= 0 {
		t.Errorf("retries: 0 became %d", got)
	}
}
