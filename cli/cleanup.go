package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"

	"github.com/urfave/cli/v2"

	"appliance/node"
	"appliance/status"
)

func cleanupCommand() *cli.Command {
	return &cli.Command{
		Name:  "cleanup",
		Usage: "remove every address, rule, service and socket that a crashed appliance left; the data directory stays",
		Flags: socketFlags(
			&cli.StringSliceFlag{Name: "vip", Usage: "virtual addresses to remove from lo, for kernels before 5.18, which cannot remember whose they are"},
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
	if _, err := status.NewClient(socket).Do(c.Context, http.MethodGet, "/livez"); err == nil {
		return fmt.Errorf("an appliance is running on %s; stop it first, it removes everything by itself", socket)
	}
	var vips []netip.Addr
	for _, text := range c.StringSlice("vip") {
		vip, err := netip.ParseAddr(text)
		if err != nil {
			return errUsage{fmt.Errorf("--vip %q is no address; write one like 192.0.2.10 or 2001:db8::10", text)}
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
