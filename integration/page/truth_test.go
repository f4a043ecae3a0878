package page

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"

	"appliance/balancer"
	"appliance/integration/scene"
	"appliance/lab"
)

// TestPageTruth compares the page with the connections that exist: those that three nodes
// count, each its own, and those that wait in a queue.
func TestPageTruth(t *testing.T) {
	if p := os.Getenv("APPLIANCE_TEST_PLANE"); p != "" && p != string(balancer.Direct) {
		t.Skip("another data plane is tested")
	}
	b := openBrowser(t)
	g := serveAs(t, scene.IPv4, func(g *group, config string) string {
		var y strings.Builder
		before, _, _ := strings.Cut(config, "loadBalancers:")
		y.WriteString(before + "loadBalancers:\n- name: same\n  port: 6500\n  check: {type: tcp}\n  backends:\n")
		for i, n := range g.Nodes {
			sink(t, n)
			fmt.Fprintf(&y, "  - %q\n", g.Addr(i))
		}
		y.WriteString("- name: limited\n  port: 7000\n  backendPort: 6500\n  check: {type: tcp}\n  timeouts: {queue: 10m}\n" +
			"  backends:\n")
		for i := range g.Nodes {
			fmt.Fprintf(&y, "  - {address: %q, maxconn: 1, maxqueue: 10}\n", g.Addr(i))
		}
		return y.String()
	})
	g.Ask(t.Context())
	holder, err := g.AwaitHolder(patient(t), func(int) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	b.open(t, g.sites[holder]+"/")
	const card = `
		const card = name => [...document.querySelectorAll("article")]
			.find(a => a.querySelector("h3").innerText.trim().split(/\s/)[0] === name);
		const verdict = () => document.getElementById("verdict").innerText;`
	b.await(t, "that direct serves", card+`return card("same")?.querySelector(".badge.plane").innerText === "direct"`)
	b.await(t, "that all is well", `return document.querySelector(".verdict.good") !== null`)

	const all, served, queued = 30, 3, 4
	dial := func(port uint16, n int) {
		for range n {
			c, err := g.Client.Dial(t.Context(), netip.AddrPortFrom(g.VIPs[0], port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		}
	}
	dial(6500, all)
	dial(7000, served+queued)
	// A resent packet of a handshake counts again.
	b.await(t, "what all nodes counted", card+fmt.Sprintf(`
		const sum = [...card("same").querySelectorAll("td[data-label=Total]")].reduce((n, td) => n + +td.innerText, 0);
		return sum >= %d && sum <= %d`, all, all+10))
	b.await(t, "who waits", card+fmt.Sprintf(`
		return verdict().includes("limited has %d connections in its queue") &&
			card("limited").innerText.includes("%d waiting for room at any backend")`, queued, queued))

	// Its server lives, and is given nothing: nobody there takes what is not its own.
	lost := (holder + 1) % 3
	g.app.Kill(lost)
	b.await(t, "whom direct passes over", card+`
		const row = [...card("same").querySelectorAll("tbody tr")].find(r => r.innerText.includes(arguments[0]));
		return row.innerText.includes("passed over") && row.innerText.includes("answers no probe") &&
			verdict().includes("gets no new connections from")`,
		g.Addr(lost).String())
	quiet(t, b, g.sites[holder])
}

// sink is a server on a node that reads everything and answers nothing.
func sink(t *testing.T, n *lab.Machine) {
	t.Helper()
	l, err := n.Listen(t.Context(), netip.MustParseAddrPort("0.0.0.0:6500"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(io.Discard, c)
			}()
		}
	}()
}
