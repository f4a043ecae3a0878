package cli

import (
	"os"

	"github.com/urfave/cli/v2"

	"appliance/configs"
	"appliance/demo"
	"appliance/node"
)

func startCommand() *cli.Command {
	return &cli.Command{
		Name:         "start",
		Usage:        "run this node of the group until SIGTERM",
		Flags:        settingFlags(),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			return unmendable(node.Run(c.Context, node.Options{
				Config:  cfg,
				File:    configPath(c),
				Reload:  func() (*configs.Config, error) { return loadConfig(c) },
				Version: c.App.Version,
				Log:     c.App.ErrWriter,
			}))
		},
	}
}

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "run a group in network namespaces, kill the holder, and show what a client saw",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "keep", Usage: "leave it running afterwards, until Ctrl-C"},
			&cli.BoolFlag{Name: "ipv6", Usage: "on a network without any IPv4"},
		},
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			return demo.Run(c.Context, demo.RunOptions{
				Binary: self, Out: c.App.Writer, Keep: c.Bool("keep"), IPv6: c.Bool("ipv6"),
			})
		},
	}
}
