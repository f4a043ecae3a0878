package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"appliance/status/client"
)

func peersCommand() *cli.Command {
	change := func(do, usage, args string, more ...cli.Flag) *cli.Command {
		return &cli.Command{
			Name:      do,
			Usage:     usage,
			ArgsUsage: args,
			Flags: socketFlags(append(more, &cli.BoolFlag{
				Name: "force", Usage: "do it even if the group may lose its majority, or a peer answers there",
			})...),
			OnUsageError: usageError,
			Action: func(c *cli.Context) error {
				// The library stops reading flags at the first argument; people do not.
				args, said := c.Args().Slice(), url.Values{}
				for _, flag := range c.Command.Flags {
					name := flag.Names()[0]
					if at := slices.Index(args, "--"+name); at >= 0 && (name == "force" || name == "witness") {
						args = slices.Delete(args, at, at+1)
						said.Set(name, "true")
					}
				}
				if len(args) != 1 {
					return usagef("write `appliance peers %s %s`; `appliance peers list` has the names", do, args)
				}
				said.Set("do", do)
				said.Set("peer", args[0])
				for _, flag := range []string{"force", "witness"} {
					if c.Bool(flag) {
						said.Set(flag, "true")
					}
				}
				return post(c, "/peers?"+said.Encode())
			},
		}
	}
	return &cli.Command{
		Name:         "peers",
		Usage:        "show and change who is in the group, on any node of it",
		OnUsageError: usageError,
		Subcommands: []*cli.Command{
			{Name: "list", Usage: "print the members", Flags: socketFlags(), OnUsageError: usageError, Action: listPeers},
			change("add", "expect a peer, or replace one that is gone for good: it joins when it starts",
				"ID=ADDRESS[:PORT][+ADDRESS]",
				&cli.BoolFlag{Name: "witness", Usage: "it votes and never holds"}),
			change("remove", "take a peer out of the group for good", "PEER"),
			change("promote", "give a peer a vote", "PEER"),
			change("demote", "take a peer's vote: it follows the group, and never holds", "PEER"),
		},
	}
}

func listPeers(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	return ask(c, http.MethodGet, "/peers")
}

func drainCommand() *cli.Command {
	cmd := peerOrder("drain",
		"have a peer (this one) give up holding, and give its servers no new connections, until undrain")
	cmd.Flags = append(cmd.Flags,
		&cli.BoolFlag{Name: "wait", Usage: "return when the connections of this node have ended, with 3 if some have not"},
		&cli.DurationFlag{Name: "timeout", Usage: "how long --wait waits", Value: 10 * time.Minute},
		&cli.BoolFlag{Name: "json", Usage: "print what --wait found as JSON"},
	)
	order := cmd.Action
	cmd.Action = func(c *cli.Context) error {
		switch {
		case !c.Bool("wait") && (c.IsSet("timeout") || c.Bool("json")):
			return usagef("--timeout and --json are about --wait")
		case !c.Bool("wait"):
			return order(c)
		case c.NArg() > 0:
			return usagef("--wait counts the connections of the node on which it runs; give it there, without a name")
		case c.Duration("timeout") < quietFor*countEvery:
			return usagef("--timeout is at least %s", quietFor*countEvery)
		}
		return drainAndWait(c)
	}
	return cmd
}

const (
	countEvery = time.Second
	// quietFor is how often no connection has to be seen: other nodes learn of the drain while this one counts.
	quietFor = 3
)

// drained is what `drain --wait --json` prints.
type drained struct {
	Open   int     `json:"open"`
	Waited float64 `json:"waitedSeconds"`
}

// drainAndWait drains this node, and tells how its connections end.
func drainAndWait(c *cli.Context) error {
	server := client.New(socketPath(c))
	said, err := server.Do(c.Context, http.MethodPost, "/peers?do=drain")
	if err != nil {
		return err
	}
	fmt.Fprint(c.App.ErrWriter, string(said))
	began := time.Now()
	n, ended, err := awaitEnd(c.Context, c.Duration("timeout"), server.Connections, func(n int) {
		fmt.Fprintf(c.App.ErrWriter, "open connections: %d\n", n)
	})
	if err != nil {
		return err
	}
	waited := time.Since(began)
	if c.Bool("json") {
		if err := json.NewEncoder(c.App.Writer).Encode(drained{n, waited.Seconds()}); err != nil {
			return err
		}
	}
	if !ended {
		return errOpen{fmt.Errorf("after %s, %d connections are still open: wait again, or stop the node, which cuts them",
			waited.Round(time.Second), n)}
	}
	return nil
}

// awaitEnd waits until count finds no connections, for as long as timeout says, and tells each number that differs from
// the one before. It returns the last one.
func awaitEnd(ctx context.Context, timeout time.Duration, count func(context.Context) (int, error), tell func(int)) (
	n int, ended bool, err error) {
	timer, tick := time.NewTimer(timeout), time.NewTicker(countEvery)
	defer timer.Stop()
	defer tick.Stop()
	for last, quiet := -1, 0; ; last = n {
		if n, err = count(ctx); err != nil {
			return n, false, err
		}
		if quiet++; n > 0 {
			quiet = 0
		}
		if n != last {
			tell(n)
		}
		if quiet == quietFor {
			return n, true, nil
		}
		select {
		case <-ctx.Done():
			return n, false, ctx.Err()
		case <-timer.C:
			return n, false, nil
		case <-tick.C:
		}
	}
}

func undrainCommand() *cli.Command {
	return peerOrder("undrain", "undo drain")
}

func peerOrder(do, usage string) *cli.Command {
	return &cli.Command{
		Name:         do,
		Usage:        usage,
		ArgsUsage:    "[PEER]",
		Flags:        socketFlags(),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 {
				return usagef("name one peer, or none for this one")
			}
			return post(c, "/peers?"+url.Values{"do": {do}, "peer": {c.Args().First()}}.Encode())
		},
	}
}

func pinCommand() *cli.Command {
	return &cli.Command{
		Name:         "pin",
		Usage:        "have one peer hold whenever it can; off: whoever is elected",
		ArgsUsage:    "PEER|off",
		Flags:        socketFlags(),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usagef("write `appliance pin PEER` or `appliance pin off`")
			}
			return post(c, "/peers?"+url.Values{"do": {"pin"}, "peer": {c.Args().First()}}.Encode())
		},
	}
}

func transferCommand() *cli.Command {
	return &cli.Command{
		Name:         "transfer",
		Usage:        "hand the virtual addresses over to another peer; any peer can be asked",
		ArgsUsage:    "[PEER]",
		Flags:        socketFlags(),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 {
				return usagef("name one peer, or none for whichever is fit")
			}
			path := "/transfer?to=" + url.QueryEscape(c.Args().First())
			return post(c, path)
		},
	}
}
