package cli

import (
	"github.com/urfave/cli/v2"

	"appliance/configs"
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
			return node.Run(c.Context, node.Options{
				Config:  cfg,
				File:    configPath(c),
				Reload:  func() (*configs.Config, error) { return loadConfig(c) },
				Version: c.App.Version,
				Log:     c.App.ErrWriter,
			})
		},
	}
}
