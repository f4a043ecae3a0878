package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/urfave/cli/v2"

	"appliance/configs"
	"appliance/raft"
	"appliance/status"
)

func keygenCommand() *cli.Command {
	return &cli.Command{
		Name:         "keygen",
		Usage:        "print a new group key; every peer gets the same, in a file of mode 0600",
		OnUsageError: usageError,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "worker", Usage: "print the key with which workers follow the group, and can do nothing else"},
			&cli.StringFlag{Name: "group-key", Usage: "the group key that --worker is made from", Value: configs.DefaultKeyFile},
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			if c.Bool("worker") {
				return printWorkerKey(c)
			}
			if c.IsSet("group-key") {
				return errUsage{fmt.Errorf("--group-key is what --worker is made from; a new group key is made from nothing")}
			}
			_, err := fmt.Fprintln(c.App.Writer, raft.GenerateKey().Text())
			return err
		},
	}
}

func printWorkerKey(c *cli.Context) error {
	key, err := raft.LoadKey(c.String("group-key"))
	if err != nil {
		return err
	}
	worker, err := key.Worker()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.App.Writer, worker.Text())
	return err
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "show holder, peers, virtual addresses, load balancers and backends",
		Flags: socketFlags(
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "show it live, until Ctrl-C"},
		),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			client := status.NewClient(socketPath(c))
			show := func(w io.Writer, colour bool) error {
				snapshot, err := client.Snapshot(c.Context)
				if err != nil {
					return err
				}
				if c.Bool("json") {
					enc := json.NewEncoder(w)
					enc.SetIndent("", "  ")
					return enc.Encode(snapshot)
				}
				return status.Text(w, snapshot, colour)
			}
			if c.Bool("watch") {
				return repeat(c.Context, c.App.Writer, time.Second, show)
			}
			colour, _ := terminal(c.App.Writer)
			return show(c.App.Writer, colour)
		},
	}
}

func healthCommand() *cli.Command {
	return &cli.Command{
		Name:  "health",
		Usage: "exit 0 if the running appliance is alive and would serve the virtual addresses; for probes",
		Flags: socketFlags(
			&cli.BoolFlag{Name: "live", Usage: "ask only whether the process answers"},
			&cli.BoolFlag{Name: "ready", Usage: "ask whether it would serve (the default)"},
		),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			path := "/readyz"
			if c.Bool("live") {
				if c.Bool("ready") {
					return errUsage{fmt.Errorf("--live and --ready are two questions; ask one of them")}
				}
				path = "/livez"
			}
			body, err := status.NewClient(socketPath(c)).Do(c.Context, http.MethodGet, path)
			if err != nil {
				return err
			}
			_, err = c.App.Writer.Write(body)
			return err
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
				return errUsage{fmt.Errorf("name one peer, or none for whichever is fit")}
			}
			path := "/transfer?to=" + url.QueryEscape(c.Args().First())
			body, err := status.NewClient(socketPath(c)).Do(c.Context, http.MethodPost, path)
			if err != nil {
				return err
			}
			_, err = c.App.Writer.Write(body)
			return err
		},
	}
}
