package cli

import (
	"net/http"
	"net/url"
	"slices"

	"github.com/urfave/cli/v2"
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
	return peerOrder("drain",
		"have a peer (this one) give up holding, and give its servers no new connections, until undrain")
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
