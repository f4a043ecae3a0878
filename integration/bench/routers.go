package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"appliance/lab"
)

const (
	// routedConns is how many connections are open at each change, with data in flight all the time.
	routedConns = 200
	// routedBlocks is the time between two blocks of each.
	routedBlocks = 50 * time.Millisecond
	// routedPatience is how long a new connection may take, with its answer.
	routedPatience = 200 * time.Millisecond
	// routedWatch is how long a change is watched at least, and routedHang how long data may be late before a connection
	// counts as broken: TCP resends after 200, 400, 800 ms and so on.
	routedWatch = 2 * time.Second
	routedHang  = 12 * time.Second
)

// A routedChange is done to a node while clients are served.
type routedChange struct {
	name string
	do   func(r *routed, i int) error
	// leaves and comes say that the router should send the node no clients any more, or clients again.
	leaves, comes bool
	// takesServer says that the node's server is gone, too.
	takesServer bool
}

// routedChanges are done in this order to the same node: each that takes it away is followed by its return.
func routedChanges() []routedChange {
	return []routedChange{
		{name: "nothing", do: func(*routed, int) error { return nil }},
		{name: "its process is killed", leaves: true, do: func(r *routed, i int) error { r.apps[i].Kill(); return nil }},
		{name: "it is added", comes: true, do: (*routed).start},
		{name: "its process is frozen", leaves: true,
			do: func(r *routed, i int) error { return r.signal(i, syscall.SIGSTOP) }},
		{name: "it thaws", comes: true, do: func(r *routed, i int) error { return r.signal(i, syscall.SIGCONT) }},
		{name: "its host is lost", leaves: true, takesServer: true,
			do: func(r *routed, i int) error { return r.nodes[i].Unplug() }},
		{name: "its host is back", comes: true, do: func(r *routed, i int) error { return r.nodes[i].Plug() }},
		{name: "it is drained", leaves: true, do: func(r *routed, i int) error { return r.command(i, "drain") }},
		{name: "the drain ends", comes: true, do: func(r *routed, i int) error { return r.command(i, "undrain") }},
	}
}

// A routedResult is what one change did to clients.
type routedResult struct {
	// broken are the open connections that ended or hang; of them ofServer had the server of the node that was lost.
	broken, ofServer int
	// outage is what new connections saw.
	outage lab.Outage
	// router is how long the router took to act; zero where it had nothing to do.
	router time.Duration
}

// A routedBook is all results, by change and way.
type routedBook struct {
	ways    []string
	results map[[2]string][]routedResult
	missed  int
}

// routers measures what breaks behind a router when the set of nodes changes.
func routers(ctx context.Context, binary string, trials int, outDir string, out, progress io.Writer) (err error) {
	var all []*routed
	defer func() {
		for _, r := range all {
			err = errors.Join(err, r.close())
		}
	}()
	book := &routedBook{results: map[[2]string][]routedResult{}}
	for _, way := range []struct{ name, plane string }{
		{"direct", "direct"}, {"nftables", "nftables"},
	} {
		r, err := newRouted(way.name, binary, way.plane)
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		all, book.ways = append(all, r), append(book.ways, way.name)
	}
	for trial := range trials {
		for _, r := range all {
			for _, c := range routedChanges() {
				one, err := r.measure(ctx, c, trial%len(r.nodes))
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil { // what is not as it should be is no reason to lose the rest
					fmt.Fprintf(progress, "%2d %-24s %-10s no result: %v\n", trial+1, c.name, r.name, err)
					book.missed++
					continue
				}
				fmt.Fprintf(progress, "%2d %-24s %-10s %d broken, %d of the server; new: %s; router: %d ms\n", trial+1, c.name,
					r.name, one.broken, one.ofServer, one.outage, one.router.Milliseconds())
				key := [2]string{c.name, r.name}
				book.results[key] = append(book.results[key], one)
			}
		}
		if err := book.write(outDir); err != nil { // a run that is cut short has shown something
			return err
		}
	}
	book.markdown(out)
	return nil
}

// measure makes one change on node i.
func (r *routed) measure(ctx context.Context, c routedChange, i int) (one routedResult, err error) {
	ready, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// The change is made even if nothing can be measured: the next one undoes it.
	done := false
	defer func() {
		if !done && ctx.Err() == nil {
			err = errors.Join(err, c.do(r, i))
		}
	}()
	if !c.comes {
		if err := r.awaitWell(ready); err != nil {
			return one, err
		}
	}
	target := netip.AddrPortFrom(routedVIP, routedPort)
	conns, err := r.client.OpenConns(ready, lab.LongConns{
		Target: target, N: routedConns, Every: routedBlocks, Patience: 5 * time.Second,
	})
	if err != nil {
		return one, err
	}
	defer conns.Close()
	probe := r.client.Probe(ctx, lab.Probe{Target: target, Patience: routedPatience})
	defer probe.Stop()
	if err := sleep(ctx, settle); err != nil {
		return one, err
	}
	if n := conns.Await(ready, 0); n.OK != routedConns {
		return one, fmt.Errorf("before the change %d of %d connections are well", n.OK, routedConns)
	}
	began := time.Now()
	done = true
	if err := c.do(r, i); err != nil {
		return one, err
	}
	if c.leaves || c.comes {
		if err := r.awaitHop(ready, i, c.comes); err != nil {
			return one, err
		}
		one.router = time.Since(began)
	}
	if err := sleep(ctx, routedWatch); err != nil {
		return one, err
	}
	one.outage, _ = probe.WaitSteady(ready, began) // not having recovered is a result, too
	late, cancelLate := context.WithTimeout(ctx, routedHang)
	defer cancelLate()
	n := conns.Await(late, time.Second)
	one.broken = n.Broken + n.Hung
	for _, lost := range n.Lost {
		if c.takesServer && lost.Server == r.nodes[i].Name {
			one.ofServer++
		}
	}
	return one, ctx.Err()
}

func (b *routedBook) write(dir string) error {
	var page bytes.Buffer
	b.markdown(&page)
	return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "routers.md"), page.Bytes(), 0o644))
}

func (b *routedBook) markdown(w io.Writer) {
	fmt.Fprintf(w, "# Routers, measured\n\n`make bench-routers` has written this page on %s: three nodes with a server "+
		"each, a router that spreads clients over them by addresses and ports (ECMP; BIRD %s with BFD at 50 ms × 3), and a "+
		"client behind it, each in a network namespace of one machine. The client has %d open connections with data in "+
		"flight, and opens a new one every 5 ms with %d ms patience, while one node changes.\n\n"+
		"`direct` finds a connection's server from any node. `nftables` has a table of connections on each node, as the "+
		"load balancers behind kube-vip and MetalLB have: what the router's new hash moves to another node is unknown "+
		"there. Ours hands it to the node that holds, or held last, which saves the connections of that one, and no "+
		"others.\n\n"+
		"%s. Load average at the end: %s. What *nothing* breaks is the machine's noise: BFD that misses three packets in a "+
		"row, because nobody ran, looks like a lost host.\n",
		time.Now().UTC().Format("2006-01-02"), version(2, "/usr/sbin/bird", "--version"), routedConns,
		routedPatience.Milliseconds(), host(), loadAverage())
	fmt.Fprint(w, "\n*Broken*: open connections that ended, or had no data for 12 s. *Steady*: until the success after "+
		"which a second passes without a failure. *Router*: until the router sends the node no clients, or clients "+
		"again. Median (least–most).\n")
	if b.missed > 0 {
		fmt.Fprintf(w, "\n%d changes are left out because a way was not in order before them.\n", b.missed)
	}
	fmt.Fprintf(w, "\n| the node | data plane | n | broken, of %d | of them at the lost server | failed new ones | "+
		"steady, ms | router, ms |\n|---|---|---|---|---|---|---|---|\n", routedConns)
	for _, c := range routedChanges() {
		for _, way := range b.ways {
			rs := b.results[[2]string{c.name, way}]
			if len(rs) == 0 {
				continue
			}
			of := func(value func(routedResult) float64) spread {
				var vs []float64
				for _, r := range rs {
					vs = append(vs, value(r))
				}
				return spreadOfValues(vs)
			}
			server := "–"
			if c.takesServer {
				server = of(func(r routedResult) float64 { return float64(r.ofServer) }).String()
			}
			router := "–"
			if c.leaves || c.comes {
				router = of(func(r routedResult) float64 { return ms(r.router) }).String()
			}
			fmt.Fprintf(w, "| %s | %s | %d | %s | %s | %s | %s | %s |\n", c.name, way, len(rs),
				of(func(r routedResult) float64 { return float64(r.broken) }), server,
				of(func(r routedResult) float64 { return float64(r.outage.Failed) }),
				of(func(r routedResult) float64 { return ms(r.outage.Steady) }), router)
		}
	}
}
