package cli

import (
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/urfave/cli/v2"

	"appliance/node"
	"appliance/raft"
)

func recoverCommand() *cli.Command {
	return &cli.Command{
		Name:  "recover",
		Usage: "make this peer the only one of its group, offline, when a majority is gone for good",
		Flags: append(settingFlags(),
			&cli.BoolFlag{Name: "as-single", Usage: "yes: forget every other member"},
		),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			self, err := node.Self(cfg)
			if err != nil {
				return err
			}
			if !c.Bool("as-single") {
				explainRecovery(c.App.ErrWriter, cfg.DataDir)
				return fmt.Errorf("nothing has been changed; add --as-single if the other members are gone for good")
			}
			rec, err := raft.Recover(cfg.DataDir, self.ID, self.AddrPort(), slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "%s at %s is the only member now; it was one of %s\n", rec.ID, rec.Addr, strings.Join(rec.Former, ", "))
			fmt.Fprintf(c.App.Writer, "the data as they were are in %s\n", rec.Copy)
			fmt.Fprintln(c.App.Writer, "now start the appliance here; then empty the data directory of each other node and start it there: it joins")
			return nil
		},
	}
}

func explainRecovery(w io.Writer, dir string) {
	fmt.Fprintf(w, `recover --as-single makes this node a group of its own, with the data in %s.
It is for the case that a majority of the peers is gone for good, so that the rest cannot elect.

  * If other peers still run, or come back with their data, there are TWO groups that
    answer for the same virtual address. Stop them first, and empty their data
    directories before they start again.
  * What the lost peers knew and this one did not is lost: the last changes of settings.
  * The appliance on this node has to be stopped. A copy of the data is kept.

`, dir)
}
