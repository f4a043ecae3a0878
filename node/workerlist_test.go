package node

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"appliance/balancer"
)

// TestListOfTheFirstVersion: workers and peers are not upgraded at once. What
// the first version says stays readable, and what this one says is the same
// for as long as listFormat is.
func TestListOfTheFirstVersion(t *testing.T) {
	const first = `{"format":1,"loadBalancers":[{"name":"api","port":6443,"backends":[` +
		`{"name":"n1","address":"192.0.2.1:6443","weight":1,"order":{"out":"drain"}},` +
		`{"address":"[2001:db8::2]:6443","weight":2,"order":{"weight":5}},` +
		`{"address":"192.0.2.3:6443","weight":0}]}]}`
	five := 5
	at := netip.MustParseAddrPort
	want := list{Format: 1, LoadBalancers: []listed{{Name: "api", Port: 6443, Backends: []listedServer{
		{Name: "n1", Address: at("192.0.2.1:6443"), Weight: 1, Order: balancer.Order{Out: balancer.Drain}},
		{Address: at("[2001:db8::2]:6443"), Weight: 2, Order: balancer.Order{Weight: &five}},
		{Address: at("192.0.2.3:6443")},
	}}}}
	if got, err := json.Marshal(want); err != nil || string(got) != first {
		t.Errorf("this version says %s, %v", got, err)
	}
	later := strings.ReplaceAll(first, `"weight":`, `"ofALaterVersion":{"x":[1]},"weight":`)
	for _, text := range []string{first, later} {
		var got list
		if err := json.Unmarshal([]byte(text), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is read as %+v, %v", text, got, err)
		}
	}
}
