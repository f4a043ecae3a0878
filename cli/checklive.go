package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"text/tabwriter"

	"appliance/balancer"
	"appliance/configs"
	"appliance/node"
)

// liveResult is what one check of one backend found.
type liveResult struct {
	lb, backend string
	addr        netip.AddrPort
	err         error
}

// checkLive checks each backend of cfg once, as the running appliance would, and prints the answers. Where a check does
// not fit a server, it prints the line to write.
func checkLive(ctx context.Context, w io.Writer, cfg *configs.Config) error {
	if err := node.CheckPrograms(cfg); err != nil {
		return err
	}
	var results []liveResult
	var asking sync.WaitGroup
	var mu sync.Mutex
	for _, lb := range cfg.LoadBalancers {
		checker, err := balancer.NewChecker(lb.Check)
		if err != nil {
			return err
		}
		for _, b := range lb.Backends {
			asking.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, lb.Check.Timeout)
				defer cancel()
				r := liveResult{lb.Name, b.String(), b.Addr, checker.Check(ctx, b.Backend)}
				mu.Lock()
				defer mu.Unlock()
				results = append(results, r)
			})
		}
	}
	asking.Wait()
	return report(w, cfg, results)
}

// report prints results in the order of cfg.
func report(w io.Writer, cfg *configs.Config, results []liveResult) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "LOAD BALANCER\tBACKEND\tADDRESS\tSTATE\tWHY")
	type fix struct{ lb, write string }
	var fixes []fix
	down, all := 0, 0
	for i, lb := range cfg.LoadBalancers {
		for _, b := range lb.Backends {
			at := slices.IndexFunc(results, func(r liveResult) bool { return r.lb == lb.Name && r.addr == b.Addr })
			r := results[at]
			all++
			state, why := balancer.Up, "the check succeeds"
			if r.err != nil {
				state, why = balancer.Down, r.err.Error()
				down++
			}
			m := (*balancer.Mismatch)(nil)
			switch {
			case errors.Is(r.err, balancer.ErrDraining):
				state = balancer.Draining
			case errors.As(r.err, &m):
				why = m.Saw
				if f := (fix{fmt.Sprintf("loadBalancers[%d] (%s)", i, lb.Name), m.Write}); !slices.Contains(fixes, f) {
					fixes = append(fixes, f)
				}
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", r.lb, r.backend, r.addr, state, why)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, f := range fixes {
		fmt.Fprintf(w, "\nIf these servers of %s are as they should be, write there:\n  %s\n", f.lb, f.write)
	}
	if down > 0 {
		return fmt.Errorf("%d of %d backends would get no new connections from this host; see why above", down, all)
	}
	return nil
}
