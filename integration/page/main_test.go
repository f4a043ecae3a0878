package page

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"appliance/integration/scene"
	"appliance/lab"
)

// patience bounds every wait; a test must not fail because its machine is slow.
const patience = 60 * time.Second

// binary is the program under test, built by TestMain, or the one that
// APPLIANCE_TEST_BINARY names.
var binary = os.Getenv("APPLIANCE_TEST_BINARY")

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if binary != "" {
		return m.Run()
	}
	built, remove, err := scene.Compile()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer remove()
	binary = built
	return m.Run()
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// A group is three nodes with their admin listeners within a browser's reach.
type group struct {
	*scene.Scene
	app *scene.Appliance
	// sites are where the browser finds each node's page.
	sites []string
}

// serve builds a scene with more lines in its configuration.
func serve(t *testing.T, more string) *group {
	t.Helper()
	return serveAs(t, scene.Dual, func(_ *group, config string) string { return config + more })
}

// serveAs starts a group with what edit makes of its configuration.
func serveAs(t *testing.T, family scene.Family, edit func(g *group, config string) string) *group {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	s, err := scene.Build(scene.Setup{Family: family})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	g := &group{Scene: s}
	if g.app, err = s.Appliance(scene.Settings{Binary: binary, Plane: os.Getenv("APPLIANCE_TEST_PLANE")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the appliances said:\n%s", g.app.Log())
		}
	})
	path := filepath.Join(s.Dir, "appliance.yaml")
	config, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(edit(g, string(config))), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Resolve(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.app.StartAll(); err != nil {
		t.Fatal(err)
	}
	if err := g.app.AwaitReady(patient(t), 0, 1, 2); err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Nodes {
		g.sites = append(g.sites, "http://"+door(t, n, netip.MustParseAddrPort("127.0.0.1:10001")))
	}
	return g
}

// door is an address on this machine from which connections lead to addr on a
// node.
func door(t *testing.T, n *lab.Machine, addr netip.AddrPort) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { carry(ctx, in, n, addr) })
		}
	})
	return l.Addr().String()
}

func carry(ctx context.Context, in net.Conn, n *lab.Machine, addr netip.AddrPort) {
	defer in.Close()
	out, err := n.Dial(ctx, addr)
	if err != nil {
		return
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
	defer stop()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			defer func() { done <- struct{}{} }()
			buf := make([]byte, 32<<10)
			for {
				k, err := way[0].Read(buf)
				if k > 0 {
					if _, err := way[1].Write(buf[:k]); err != nil {
						return
					}
				}
				if err != nil {
					return
				}
			}
		}()
	}
	<-done
	in.Close()
	out.Close()
	<-done
}
