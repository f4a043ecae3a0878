package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"appliance/node"
	"appliance/raft/recovery"
	"appliance/status/client"
)

func cleanupCommand() *cli.Command {
	return &cli.Command{
		Name:  "cleanup",
		Usage: "remove every address, rule, service and socket that a crashed appliance left; the data directory stays",
		Flags: socketFlags(
			&cli.StringSliceFlag{
				Name:  "vip",
				Usage: "virtual addresses to remove from lo, for kernels before 5.18, which do not remember who added them",
			},
		),
		OnUsageError: usageError,
		Action:       cleanup,
	}
}

func cleanup(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	socket := socketPath(c)
	if _, err := client.New(socket).Do(c.Context, http.MethodGet, "/livez"); err == nil {
		return fmt.Errorf("an appliance is running on %s; stop it first, it removes everything by itself", socket)
	}
	var vips []netip.Addr
	for _, text := range c.StringSlice("vip") {
		vip, err := netip.ParseAddr(text)
		if err != nil {
			return usagef("--vip %q is not an address; write one like 192.0.2.10 or 2001:db8::10", text)
		}
		vips = append(vips, vip)
	}

	removed, err := node.Cleanup(vips)
	gone, socketErr := removeSocket(socket)
	removed = append(removed, gone...)
	for _, what := range removed {
		fmt.Fprintln(c.App.Writer, "removed", what)
	}
	if err := errors.Join(err, socketErr); err != nil {
		return err
	}
	if len(removed) == 0 {
		fmt.Fprintln(c.App.Writer, "nothing to remove")
	}
	return nil
}

// removeSocket removes a socket that nobody listens on.
func removeSocket(path string) ([]string, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err == nil && info.Mode()&os.ModeSocket == 0 {
		err = errors.New("is no socket; look at it, and remove it yourself")
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return []string{"socket " + path}, nil
}

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
			rec, err := recovery.Run(cfg.DataDir, self.ID, self.AddrPort(), slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			w := c.App.Writer
			former := strings.Join(rec.Former, ", ")
			fmt.Fprintf(w, "%s at %s is the only member now; it was one of %s\n", rec.ID, rec.Addr, former)
			fmt.Fprintf(w, "a copy of the data as they were is in %s\n", rec.Copy)
			fmt.Fprintln(w, "now start the appliance here; "+
				"then empty the data directory of each other node and start it there: it joins")
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
