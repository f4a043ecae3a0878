package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"appliance/integration/scene"
	"appliance/lab"
)

// An openConn is a connection that a client has with a server, which echoes.
type openConn struct {
	net.Conn
	server string
}

// opens opens connections to each virtual address.
func (r *routing) opens(t *testing.T, each int) (all []*openConn) {
	t.Helper()
	for _, vip := range []netip.Addr{routed4, routed6} {
		for range each {
			c, a, err := dial(t.Context(), r.far, netip.AddrPortFrom(vip, scene.Port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			if own := r.far.Addr(vip.Is4()); a.Client.Addr() != own {
				t.Fatalf("%s sees %s as %s", a.Server, own, a.Client)
			}
			all = append(all, &openConn{c, a.Server})
		}
	}
	return all
}

// alive asks on each connection, but those of a server that is gone.
func alive(t *testing.T, when string, all []*openConn, gone ...string) {
	t.Helper()
	errs := make([]error, len(all))
	var asking sync.WaitGroup
	for i, c := range all {
		if slices.Contains(gone, c.server) {
			continue
		}
		asking.Go(func() {
			_ = c.SetDeadline(time.Now().Add(patience))
			a, err := lab.Ask(c, "hello")
			if err == nil && a.Server != c.server {
				err = fmt.Errorf("%s answers in the place of %s", a.Server, c.server)
			}
			errs[i] = err
		})
	}
	asking.Wait()
	broken := 0
	for _, err := range errs {
		if err != nil {
			broken++
		}
	}
	if broken > 0 {
		t.Errorf("%s: %d of %d open connections broke: %v", when, broken, len(all), errors.Join(errs...))
	}
}

// upload has a server echo much.
func upload(c net.Conn, size int) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := lab.Ask(c, "echo"); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		sent <- err
	}()
	n, err := io.CopyN(io.Discard, c, int64(size))
	if err != nil {
		err = fmt.Errorf("after %d of %d bytes: %w", n, size, err)
	}
	c.Close()
	return errors.Join(err, <-sent)
}

// With nodes behind different routers direct serves: servers see clients, and open connections survive whatever happens
// to other nodes, and to the router's choice.
func TestRoutersOfDifferentSubnets(t *testing.T) {
	r := newRoutingAcross(t, 2)
	r.further = "dataPlane: direct\n"
	r.frr(t, session{bfd: true, hold: 90})
	r.start(t, r.speaksBGP("", ", bfd: true"))
	r.awaitPaths(t, 0, 1, 2)
	r.served(t, "n1", "n2", "n3")
	for i, n := range r.nodes {
		err := n.Do(func() error {
			_, err := netlink.LinkByName("appliance0")
			return err
		})
		if err != nil {
			t.Errorf("node %d: %v", i+1, err)
		}
	}
	all := r.opens(t, 100)
	alive(t, "at first", all)

	// The router hashes anew.
	command(t, r.apps[1].path+".sock", "drain")
	r.awaitPaths(t, 0, 2)
	alive(t, "drained", all)
	command(t, r.apps[1].path+".sock", "undrain")
	r.awaitPaths(t, 0, 1, 2)
	alive(t, "undrained", all)
	r.apps[0].proc.Kill()
	r.awaitPaths(t, 1, 2)
	alive(t, "killed", all)
	r.apps[0].start(t)
	r.awaitPaths(t, 0, 1, 2)
	alive(t, "after a kill", all)
	r.apps[2].stop(t)
	r.awaitPaths(t, 0, 1)
	alive(t, "stopped", all)
	r.apps[2].start(t)
	r.awaitPaths(t, 0, 1, 2)
	alive(t, "after a stop", all)

	for _, c := range slices.Concat(all[:10], all[100:110]) {
		if err := upload(c, 4<<20); err != nil {
			t.Errorf("to %s: %v", c.server, err)
		}
	}
	all = slices.Concat(all[10:100], all[110:])

	// A host is lost, and comes back.
	r.watched(t)
	if err := r.nodes[1].Unplug(); err != nil {
		t.Fatal(err)
	}
	r.awaitPaths(t, 0, 2)
	alive(t, "with a lost host", all, "n2")
	if err := r.nodes[1].Plug(); err != nil {
		t.Fatal(err)
	}
	r.awaitPaths(t, 0, 1, 2)
	r.served(t, "n1", "n2", "n3")
	alive(t, "after the loss", all, "n2")
}
