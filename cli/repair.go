package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"appliance/node"
	"appliance/raft/recovery"
	"appliance/status"
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

func takeoverCommand() *cli.Command {
	return &cli.Command{
		Name: "takeover",
		Usage: "take the virtual addresses over from a program on this host: COMMAND stops it, and this node answers " +
			"when it has given them up",
		ArgsUsage: "-- COMMAND [ARGUMENT...]",
		Description: "For a new group that runs with takeover: true beside keepalived or the like. Run it on the host that " +
			"has the\n" +
			"addresses, when the same program is stopped on all other hosts. Clients and open connections notice nothing,\n" +
			"as packets come to the same host before and after.",
		Flags: socketFlags(&cli.DurationFlag{
			Name: "within", Usage: "how long to wait until this node answers, once COMMAND has ended", Value: 30 * time.Second,
		}),
		OnUsageError: usageError,
		Action:       takeover,
	}
}

func takeover(c *cli.Context) error {
	if !c.Args().Present() {
		return usagef("say what stops the program, such as `appliance takeover -- systemctl disable --now keepalived`")
	}
	to := client.New(socketPath(c))
	s, err := to.Snapshot(c.Context)
	if err != nil {
		return err
	}
	if isAnswering(s) {
		return fmt.Errorf("%s answers for its virtual addresses already, so there is nobody to take them over from; "+
			"what was there before can be stopped by itself", s.ID)
	}
	had, err := addressesElsewhere(s)
	if err != nil {
		return err
	}
	if len(had) == 0 {
		return fmt.Errorf("no program has a virtual address on an interface of this host; run this on the host that has " +
			"it, which `ip address` shows")
	}
	// Who leads is the one to answer. On this host clients' packets arrive already.
	if _, err := to.Do(c.Context, http.MethodPost, "/transfer?to="+url.QueryEscape(s.ID)); err != nil {
		return err
	}
	stop := exec.CommandContext(c.Context, c.Args().First(), c.Args().Tail()...)
	stop.Stdout, stop.Stderr = c.App.Writer, c.App.ErrWriter
	if err := stop.Run(); err != nil {
		return fmt.Errorf("%s: %w; nothing was taken over", strings.Join(c.Args().Slice(), " "), err)
	}
	ctx, cancel := context.WithTimeout(c.Context, c.Duration("within"))
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if now, err := to.Snapshot(ctx); err == nil {
			s = now
		}
		if isAnswering(s) {
			_, err = fmt.Fprintf(c.App.Writer, "%s answers for %s\n", s.ID, strings.Join(had, ", "))
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer %v after the command: %s; `appliance status` says what goes on, and "+
				"starting the program again undoes this", s.ID, c.Duration("within"),
				cmp.Or(strings.Join(s.NotReadyTexts(), "; "), cmp.Or(s.Holder, "nobody")+" holds"))
		case <-tick.C:
		}
	}
}

// isAnswering reports whether the node answers for a virtual address.
func isAnswering(s status.Snapshot) bool {
	return slices.ContainsFunc(s.VIPs, func(v status.VIPView) bool { return v.Answering })
}

// addressesElsewhere are the virtual addresses that are on interfaces of this host other than lo.
func addressesElsewhere(s status.Snapshot) (found []string, err error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		for _, v := range s.VIPs {
			if slices.ContainsFunc(addrs, func(a net.Addr) bool {
				n, is := a.(*net.IPNet)
				return is && n.IP.Equal(v.Address.AsSlice())
			}) {
				found = append(found, v.Address.String())
			}
		}
	}
	return found, nil
}
