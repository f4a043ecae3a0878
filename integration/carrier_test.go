package integration

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"appliance/integration/scene"
	"appliance/lab"
	"appliance/status/client"
)

// TestCarrier: the virtual IP is on one link and the group on another. A holder that loses the VIP's link hands over
// at once, and the others hand it nothing more. When nobody has carrier, nobody is fitter, and nothing moves.
func TestCarrier(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	inputs(t)
	l, err := lab.New(lab.Layout{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{family: scene.IPv4, dir: serviceDir(t), lab: l, byName: map[string]*lab.Server{}}
	t.Cleanup(w.close(t))
	key, _ := w.keys(t)
	config := fmt.Sprintf("vips: [%q]\ngroup: {keyFile: %s, heartbeat: 500ms}\nloadBalancers:\n"+
		"- {name: api, port: %d, check: {type: tcp}, backends: [", w.vip(), key, scene.Port)
	peers := "peers:\n"
	for i := range 3 {
		at := w.prefix(11 + i)
		n, err := l.Router(fmt.Sprintf("n%d", i+1), []netip.Prefix{at}, []netip.Prefix{away(at)})
		if err != nil {
			t.Fatal(err)
		}
		w.nodes = append(w.nodes, n)
		w.serve(t, n, scene.Port)
		peers += fmt.Sprintf("- {id: %s, address: %q}\n", n.Name, away(at).Addr())
		config += fmt.Sprintf("%q,", away(at).Addr())
	}
	if w.client, err = l.Machine("client", w.prefix(50)); err != nil {
		t.Fatal(err)
	}
	for _, n := range w.nodes {
		p := &program{node: n, path: filepath.Join(w.dir, n.Name)}
		p.client = client.New(p.path + ".sock")
		if err := os.WriteFile(p.path+".yaml", []byte(config+"]}\n"+peers), 0o644); err != nil {
			t.Fatal(err)
		}
		w.apps = append(w.apps, p)
		p.start(t)
	}
	for i := range w.apps {
		w.ready(t, i)
	}

	first := w.holding(t)
	if err := w.nodes[first].Unplug(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if w.holding(t) == first {
			return errors.New("the holder without carrier holds")
		}
		return nil
	})
	eventually(t, func() error {
		for range 20 { // a third of them would go to the dead link
			conn, err := w.dial()
			if err != nil {
				return err
			}
			conn.Close()
		}
		return nil
	})

	for i, n := range w.nodes {
		if i != first {
			if err := n.Unplug(); err != nil {
				t.Fatal(err)
			}
		}
	}
	time.Sleep(time.Second) // they lose it one after the other
	before := w.handovers(t)
	time.Sleep(5 * time.Second)
	if n := w.handovers(t) - before; n > 1 {
		t.Errorf("%d hand-overs in 5 s although nobody is fitter", n)
	}
	if before > 4 {
		t.Errorf("%d hand-overs until nobody had carrier", before)
	}
	for _, n := range w.nodes {
		if err := n.Plug(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range w.apps {
		w.ready(t, i)
	}
}

// dial connects to the VIP from the client, within half a second.
func (w *world) dial() (conn net.Conn, err error) {
	err = w.client.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", w.target(scene.Port).String(), 500*time.Millisecond)
		return err
	})
	return conn, err
}

// holding is the index of the node that says that it holds, ready or not.
func (w *world) holding(t *testing.T) (found int) {
	t.Helper()
	eventually(t, func() error {
		for i, p := range w.apps {
			if s, err := p.client.Snapshot(t.Context()); err == nil && s.Group.Holding {
				found = i
				return nil
			}
		}
		return errors.New("nobody holds")
	})
	return found
}

// handovers is how often a node has handed over.
func (w *world) handovers(t *testing.T) (n uint64) {
	t.Helper()
	for _, p := range w.apps {
		s, err := p.client.Snapshot(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", p.node.Name, err)
		}
		n += s.Group.TenuresEnded["handover"]
	}
	return n
}
