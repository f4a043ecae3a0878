package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"appliance/balancer"
	"appliance/configs"
	"appliance/dns"
	"appliance/node"
	"appliance/node/desired"
)

func configCommand() *cli.Command {
	return &cli.Command{
		Name:         "config",
		Usage:        "check, print and explain configuration",
		OnUsageError: usageError,
		Action:       unknownSubcommand,
		Subcommands: []*cli.Command{
			{
				Name:      "check",
				Usage:     "say what is wrong with a configuration file, and touch nothing",
				ArgsUsage: "FILE",
				Flags: append(settingFlags(), &cli.BoolFlag{
					Name: "host",
					Usage: "say also what `start` would say on this host: keys, own address, subnets, data planes, programs; " +
						"run it there, as the user of the appliance",
				}, &cli.BoolFlag{
					Name:  "live",
					Usage: "check each backend once, from this host, and print the line to write where the check does not fit",
				}),
				OnUsageError: usageError,
				Action:       checkConfig,
			},
			{
				Name:         "sample",
				Usage:        "print the reference file: every key, its default and why",
				OnUsageError: usageError,
				Action: func(c *cli.Context) error {
					if err := noArgs(c); err != nil {
						return err
					}
					_, err := c.App.Writer.Write(configs.Sample())
					return err
				},
			},
			{
				Name:         "show",
				Usage:        "print what is in force, and where each value came from",
				Flags:        settingFlags(),
				OnUsageError: usageError,
				Action:       showConfig,
			},
		},
	}
}

func checkConfig(c *cli.Context) error {
	file := c.String("config")
	switch {
	case c.NArg() > 1, c.NArg() == 1 && file != "":
		return usagef("one file at a time; give it as the only argument, after the flags")
	case c.NArg() == 1:
		file = c.Args().First()
	case file == "":
		file = usualPath(c)
	}
	if file == "" {
		return usagef("which file? write `appliance config check FILE`")
	}
	cfg, err := loadFile(file, flagSource(c))
	if err != nil {
		return err
	}
	printWarnings(c.App.ErrWriter, cfg)
	if c.Bool("live") {
		return checkLive(c.Context, c.App.Writer, cfg)
	}
	here := ""
	if c.Bool("host") {
		log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelWarn}))
		tried, err := node.CheckHost(c.Context, cfg, log)
		if err != nil {
			return unmendable(err)
		}
		here = "; it can be started on this host"
		if !tried {
			here = "; the data planes were not tried, since an appliance runs on this host"
		}
	} else if err := node.CheckProgramsHere(cfg); err != nil {
		return unmendable(err)
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s is valid: %s, %s, %s%s\n", file,
		count(len(cfg.VIPs), "virtual address", "es"), count(len(cfg.Peers), "peer", "s"),
		count(len(cfg.LoadBalancers), "load balancer", "s"), here)
	return err
}

// count says how many of a thing there are; plural is what the word takes.
func count(n int, thing, plural string) string {
	if n == 1 {
		plural = ""
	}
	return fmt.Sprintf("%d %s%s", n, thing, plural)
}

func showConfig(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	cfg, err := loadFile(usualPath(c), flagSource(c))
	if err != nil {
		return err
	}
	printWarnings(c.App.ErrWriter, cfg)
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	for _, v := range cfg.Show() {
		fmt.Fprintf(w, "%s\t%s\t%s\n", v.Key, v.Value, v.Origin)
	}
	return w.Flush()
}

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
	cfg = withAddresses(ctx, cfg)
	var results []liveResult
	var asking sync.WaitGroup
	var mu sync.Mutex
	for _, lb := range cfg.LoadBalancers {
		for _, b := range lb.Backends {
			check := lb.CheckOf(b)
			checker, err := node.NewChecker(check)
			if err != nil {
				return err
			}
			asking.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, check.Timeout)
				defer cancel()
				r := liveResult{lb.Name, cmp.Or(b.Name, b.Where()), b.Addr, errors.New(b.Unresolved)}
				if b.Resolved() {
					r.err = checker.Check(ctx, b.Backend)
				}
				mu.Lock()
				defer mu.Unlock()
				results = append(results, r)
			})
		}
	}
	asking.Wait()
	return report(w, cfg, results)
}

// withAddresses returns cfg with the servers that its names stand for now.
func withAddresses(ctx context.Context, cfg *configs.Config) *configs.Config {
	names := dns.Open(dns.Config{
		Nameservers: cfg.Resolver.Nameservers, Shortest: cfg.Resolver.MinTTL, Longest: cfg.Resolver.MaxTTL,
		Log: slog.New(slog.DiscardHandler), // the table says it
	})
	names.Set(cfg.Hosts())
	names.Await(ctx)
	return desired.Compute(desired.Known{Config: cfg, Names: names.Known()}).Config
}

func addrOf(b configs.BackendEntry) string {
	if !b.Resolved() {
		return "-"
	}
	return b.Addr.String()
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
			at := slices.IndexFunc(results, func(r liveResult) bool {
				return r.lb == lb.Name && r.addr == b.Addr && r.backend == cmp.Or(b.Name, b.Where())
			})
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
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", r.lb, r.backend, addrOf(b), state, why)
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
