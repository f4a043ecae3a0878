package cli

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"appliance/status/client"
)

func backendsCommand() *cli.Command {
	order := func(do, usage, args string, most int) *cli.Command {
		return &cli.Command{
			Name:         do,
			Usage:        usage,
			ArgsUsage:    args,
			Flags:        socketFlags(),
			OnUsageError: usageError,
			Action: func(c *cli.Context) error {
				if c.NArg() != most {
					return usagef("write `appliance backends %s %s`; `appliance backends list` has the names", do, args)
				}
				q := url.Values{"do": {do}, "name": {c.Args().First()}, "weight": {c.Args().Get(1)}}
				return post(c, "/backends?"+q.Encode())
			},
		}
	}
	return &cli.Command{
		Name:         "backends",
		Usage:        "take backends out of rotation and back, on every node of the group",
		OnUsageError: usageError,
		Action:       unknownSubcommand,
		Subcommands: []*cli.Command{
			{
				Name:         "list",
				Usage:        "print the backends with their states and orders",
				Flags:        socketFlags(),
				OnUsageError: usageError,
				Action:       listBackends,
			},
			order("drain", "give it no new connections; the open ones go on", "[LB/]BACKEND", 1),
			order("disable", "give it no connections, and reset the open ones", "[LB/]BACKEND", 1),
			order("enable", "take it as the configuration has it", "[LB/]BACKEND", 1),
			order("weight", "give it another share of new connections, 0 to 256", "[LB/]BACKEND WEIGHT", 2),
		},
	}
}

func listBackends(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	snapshot, err := client.New(socketPath(c)).Snapshot(c.Context)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BACKEND\tADDRESS\tWEIGHT\tSTATE\tORDER")
	for _, lb := range snapshot.LoadBalancers {
		for _, b := range lb.Backends {
			address := "-" // a name that never had one
			if b.Address.IsValid() {
				address = b.Address.String()
			}
			fmt.Fprintf(w, "%s/%s\t%s\t%d\t%s\t%s\n", lb.Name, b.Name, address, b.Weight, b.State, b.Override)
		}
	}
	return w.Flush()
}

func reloadCommand() *cli.Command {
	return &cli.Command{
		Name:         "reload",
		Usage:        "have the running appliance read its file again; a file that is not valid changes nothing",
		Flags:        socketFlags(),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			return post(c, "/reload")
		},
	}
}

func logLevelCommand() *cli.Command {
	return &cli.Command{
		Name:         "log-level",
		Usage:        "show or set how much the running appliance logs, until it ends",
		ArgsUsage:    "[debug|info|warn|error]",
		Flags:        socketFlags(),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			method, path := http.MethodGet, "/log-level"
			switch c.NArg() {
			case 0:
			case 1:
				method, path = http.MethodPost, path+"?level="+c.Args().First()
				if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Args().First()) {
					return usagef("there is no level %q; write debug, info, warn or error", c.Args().First())
				}
			default:
				return usagef("name one level, or none to see which is in force")
			}
			return ask(c, method, path)
		},
	}
}

// post asks the running appliance for a change, and prints the answer.
func post(c *cli.Context, path string) error {
	return ask(c, http.MethodPost, path)
}

// ask sends a request to the running appliance, and prints the answer.
func ask(c *cli.Context, method, path string) error {
	body, err := client.New(socketPath(c)).Do(c.Context, method, path)
	if err != nil {
		return err
	}
	_, err = c.App.Writer.Write(body)
	return err
}
