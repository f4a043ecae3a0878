package cli

import (
	"net/http"

	"github.com/urfave/cli/v2"

	"appliance/status"
)

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
			body, err := status.NewClient(socketPath(c)).Do(c.Context, http.MethodPost, "/reload")
			if err != nil {
				return err
			}
			_, err = c.App.Writer.Write(body)
			return err
		},
	}
}
