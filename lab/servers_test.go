package lab

import (
	"net/netip"
	"os/exec"
	"sync"
	"testing"
)

// TestServersListenAgain takes a port again and again while programs are being started: a copy of a listener that a
// program has until it runs keeps no address.
func TestServersListenAgain(t *testing.T) {
	s := newSite(t, true)
	var ss Servers
	defer ss.Close()
	addrs := []netip.AddrPort{netip.AddrPortFrom(s.a.Addr(true), 6443), netip.AddrPortFrom(netip.IPv4Unspecified(), 6443)}
	ctx := t.Context()
	var wg sync.WaitGroup
	defer wg.Wait()
	done := make(chan struct{})
	defer close(done)
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if err := exec.CommandContext(ctx, "true").Run(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for i := range 500 { // without care, one in ten fails
		server, err := ss.Serve(s.a, "a", addrs[i%len(addrs)], nil)
		if err != nil {
			t.Fatal(err)
		}
		server.Close()
	}
}
