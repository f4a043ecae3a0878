package cli

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"appliance/configs"
	"appliance/convert"
)

func convertCommand() *cli.Command {
	var kinds []string
	for _, k := range convert.Formats() {
		kinds = append(kinds, string(k))
	}
	return &cli.Command{
		Name:      "convert",
		Usage:     "print our configuration for what haproxy, nginx, keepalived or kube-vip 0.1 have; - reads stdin",
		ArgsUsage: "FILE...",
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: "from", Usage: "what the files are for: " + strings.Join(kinds, ", "), DefaultText: "detected for each file",
			},
			&cli.StringSliceFlag{Name: "vip", Usage: "the virtual addresses, instead of those that the files name"},
			&cli.StringSliceFlag{Name: "peers", Usage: "the members of the group, instead of those that the files name"},
		},
		OnUsageError: usageError,
		Action:       printConverted,
	}
}

// printConverted prints nothing unless all of it is right, as printManifest does.
func printConverted(c *cli.Context) error {
	kind := convert.Format(c.String("from"))
	switch {
	case c.NArg() == 0:
		return usagef("which files? write `appliance convert /etc/keepalived/keepalived.conf /etc/haproxy/haproxy.cfg`")
	case kind != "" && !slices.Contains(convert.Formats(), kind):
		return usagef("--from %q is unknown; write one of %v", kind, convert.Formats())
	}
	var options convert.Addresses
	var err error
	if options.VIPs, err = addresses("vip", c.StringSlice("vip")); err != nil {
		return err
	}
	if options.Peers, err = addresses("peers", c.StringSlice("peers")); err != nil {
		return err
	}
	type output struct {
		convert.Output
		cfg *configs.Config
		err error
	}
	done := make(chan output, 1)
	go func() { // a signal ends it: the main thread is the one that hears of it
		var o output
		o.Output, o.cfg, o.err = converted(c, kind, options)
		done <- o
	}()
	select {
	case <-c.Context.Done():
		return fmt.Errorf("convert: %w", context.Cause(c.Context))
	case o := <-done:
		if o.err != nil {
			return o.err
		}
		printWarnings(c.App.ErrWriter, o.cfg)
		printCounts(c.App.ErrWriter, o.Output)
		_, err = c.App.Writer.Write(o.YAML)
		return err
	}
}

// converted reads the files and converts them.
func converted(c *cli.Context, kind convert.Format, options convert.Addresses) (
	result convert.Output, cfg *configs.Config, err error,
) {
	var files []convert.File
	for _, name := range c.Args().Slice() {
		if len(name) > 1 && name[0] == '-' {
			return result, nil, usagef("%s comes after a file; write flags first, and ./%s if it is a file", name, name)
		}
		if slices.ContainsFunc(files, func(f convert.File) bool { return f.Name == name }) {
			return result, nil, usagef("%s is given twice; name each file once", name)
		}
		data, err := readForeign(c, name)
		if err != nil {
			return result, nil, err
		}
		files = append(files, convert.File{Name: name, Format: kind, Data: data})
	}
	if result, err = convert.Convert(files, options); err != nil {
		return result, nil, fmt.Errorf("convert: %w", err)
	}
	// Whoever redirects stdout to a file relies on it.
	if cfg, err = configs.Parse("the result", result.YAML, configs.Source{}); err != nil {
		err = fmt.Errorf("convert: the result does not load, which is a bug of this program; please report it:\n%w", err)
	}
	return result, cfg, err
}

// printCounts says how much of the files is in the result.
func printCounts(w io.Writer, o convert.Output) {
	switch {
	case o.Refused > 0:
		fmt.Fprintf(w, "%d of %d load balancers were not carried over; ", o.Refused, o.LoadBalancers)
	case o.Alone:
		fmt.Fprint(w, "no load balancer is in these files, so the result has none, and the virtual addresses lead to the "+
			"holder's own servers; ")
	case o.LoadBalancers == 0:
		fmt.Fprint(w, "no load balancer is in these files, so the result balances port 6443 over the peers; ")
	}
	fmt.Fprintf(w, "%d statements read: %d carried over as they are, %d to look at, %d without a meaning here; "+
		"the comments say which and why\n", o.Statements, o.Statements-o.Decide-o.Moot, o.Decide, o.Moot)
}

// maxForeign is more than convert reads, so that it can say that a file is too large.
const maxForeign = 2 << 20

func readForeign(c *cli.Context, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(io.LimitReader(c.App.Reader, maxForeign))
	}
	// A pipe that a shell made has its writer; one that nobody writes to is empty, and not waited for.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w; give the paths of configuration files", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxForeign))
	if err != nil {
		return nil, fmt.Errorf("%w; give the paths of configuration files", err)
	}
	return data, nil
}

func addresses(flag string, words []string) ([]netip.Addr, error) {
	var list []netip.Addr
	for _, w := range words {
		a, err := netip.ParseAddr(strings.TrimSpace(w))
		if err != nil {
			return nil, usagef("--%s: %q is not an IP address; write one such as 192.0.2.10 or 2001:db8::10", flag, w)
		}
		list = append(list, a.Unmap())
	}
	return list, nil
}
