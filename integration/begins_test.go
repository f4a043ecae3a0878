package integration

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/lab"
)

// TestBeginningsAreLogged: in each data plane, each connection of a client has one line where it begins, and says where
// it went.
func TestBeginningsAreLogged(t *testing.T) {
	w := newWorld(t, scene.IPv4)
	peers := []string{"n1", "n2", "n3"}
	planes := []balancer.PlaneName{balancer.Direct, balancer.NFTables, balancer.UserSpace}
	var balances []balance
	for i, plane := range planes {
		port := uint16(scene.Port)
		if plane != balancer.Direct {
			port = uint16(500 + i)
		}
		balances = append(balances, balance{
			name: string(plane), port: port, backend: scene.Port, scheduler: "rr", nodes: peers,
			more: fmt.Sprintf("  dataPlane: %s\n  logBegin: text\n", plane),
		})
	}
	group, own := w.keys(t)
	w.begin(t, func(i int) string {
		if i == worker { // it serves nobody here
			return w.config("", own, balances[1:])
		}
		return w.config("", group, balances)
	})
	w.resolve(t)
	for i := range w.apps[:worker] {
		for _, lb := range balances {
			w.await(t, i, lb.name, served(balancer.PlaneName(lb.name), len(peers)))
		}
	}
	w.begins(t, balances, func(lb balance) balancer.PlaneName { return balancer.PlaneName(lb.name) })
}

// begins connects to load balancers whose beginnings are logged, from the link and from afar, and finds one line for
// each.
func (w *world) begins(t *testing.T, balances []balance, planeOf func(lb balance) balancer.PlaneName) {
	t.Helper()
	var wants []string
	for _, from := range []*lab.Machine{w.client, w.far} {
		for _, lb := range balances {
			for range 3 {
				var client netip.AddrPort
				if err := from.Do(func() error {
					conn, err := net.DialTimeout("tcp", w.target(lb.port).String(), 30*time.Second)
					if err != nil {
						return err
					}
					client = conn.LocalAddr().(*net.TCPAddr).AddrPort()
					return conn.Close()
				}); err != nil {
					t.Fatalf("%s from %s: %v", lb.name, from.Name, err)
				}
				wants = append(wants, fmt.Sprintf("%s %s begins to=%s plane=%s\n", client, lb.name, w.target(lb.port), planeOf(lb)))
			}
		}
	}
	// lines counts those of one beginning, on all nodes; the time stands in brackets.
	lines := func(want string) (n int) {
		client, rest, _ := strings.Cut(want, " ")
		for _, p := range w.apps {
			text, err := os.ReadFile(p.path + ".log")
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				if strings.HasPrefix(line, client+" [") && strings.HasSuffix(line, "] "+rest) {
					n++
				}
			}
		}
		return n
	}
	for _, want := range wants {
		for end := time.Now().Add(time.Minute); lines(want) == 0; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("no line %q", want)
			}
		}
	}
	for _, want := range wants {
		if n := lines(want); n != 1 {
			t.Errorf("%d lines %q", n, want)
		}
	}
}
