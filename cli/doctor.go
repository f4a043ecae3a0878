package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"appliance/configs"
	"appliance/doctor"
	"appliance/endpoints"
	"appliance/install"
	"appliance/status/client"
	"appliance/status/journal"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor",
		Usage: "find what on this host or its network would keep the appliance from working, and what mends it; changes " +
			"nothing",
		Description: "Examines the host for a configuration: the file that --config names, else " + install.ConfigFile +
			" if it exists, else the host alone.\n" +
			"Exit code 0: nothing but hints; 1: a problem was found.",
		Flags: append(settingFlags(),
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
			&cli.StringFlag{Name: "bundle", Usage: "write a `FILE` (tar.gz) for a bug report: findings, configuration, " +
				"status, events and the state of the network, without secrets"},
			&cli.BoolFlag{Name: "answer", Usage: "answer on the peer port by TCP and UDP until Ctrl-C, for the doctor of " +
				"another host to try"},
		),
		OnUsageError: usageError,
		Action:       examine,
	}
}

func examine(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	subject := doctorSubject(c)
	if c.Bool("answer") {
		return answer(c, subject)
	}
	report := doctor.Examine(c.Context, doctor.System{}, subject)
	if path := c.String("bundle"); path != "" {
		if err := writeBundle(c, path, subject, report); err != nil {
			return err
		}
		fmt.Fprintf(c.App.ErrWriter, "%s is written; look through it before you send it: addresses and names of hosts are "+
			"in it\n", path)
	}
	if err := printReport(c, report); err != nil {
		return err
	}
	if report.Problems > 0 {
		return fmt.Errorf("%s found; each has its remedy above", count(report.Problems, "problem", "s"))
	}
	return nil
}

func printReport(c *cli.Context, report doctor.Diagnosis) error {
	if c.Bool("json") {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(report)
	}
	colour, _ := screen(c.App.Writer)
	return report.Text(c.App.Writer, colour)
}

// doctorSubject finds what is to be examined. A configuration that is not valid is a finding, not an error.
func doctorSubject(c *cli.Context) doctor.Request {
	s := doctor.Request{Version: c.App.Version}
	source := flagSource(c)
	file := usualPath(c)
	if file == "" && len(source.Args()) == 0 {
		s.About = "no configuration (give --config FILE, or --vip and --peers)"
		return s
	}
	s.About = file
	if file == "" {
		s.About = strings.Join(source.Args(), " ")
	}
	if s.Config, s.Invalid = loadFile(file, source); s.Invalid != nil {
		s.Config = withoutKey(file, source)
	}
	return s
}

// withoutKey loads what would be valid if it had a group key, which is often made last.
func withoutKey(file string, source configs.Source) *configs.Config {
	flag := source.Flag
	source.Flag = func(name string) (string, bool) {
		if name == "insecure" {
			return "true", true
		}
		return flag(name)
	}
	cfg, err := loadFile(file, source)
	if err != nil {
		return nil
	}
	cfg.Group.Insecure = false
	return cfg
}

// answer serves the doctor of another host.
func answer(c *cli.Context, s doctor.Request) error {
	at := netip.AddrPortFrom(netip.IPv6Unspecified(), 10000)
	if s.Config != nil {
		at = netip.AddrPortFrom(at.Addr(), s.Config.Group.Port)
	}
	fmt.Fprintf(c.App.ErrWriter, "answers on port %d by TCP and UDP; run `appliance doctor` on another host now, and "+
		"end this with Ctrl-C\n", at.Port())
	return doctor.Answer(c.Context, at)
}

// writeBundle writes what a bug report needs. The file is its owner's alone, and none is overwritten.
func writeBundle(c *cli.Context, path string, s doctor.Request, report doctor.Diagnosis) (err error) {
	docs := append(bundleDocuments(c, s, report), doctor.Facts(doctor.System{})...)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists; name a file that does not", path)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	return doctor.WriteBundle(f, docs, time.Now())
}

func bundleDocuments(c *cli.Context, s doctor.Request, report doctor.Diagnosis) (docs []doctor.Document) {
	add := func(name string, write func(w io.Writer) error) {
		var b strings.Builder
		if err := write(&b); err != nil {
			fmt.Fprintln(&b, err)
		}
		docs = append(docs, doctor.Document{Name: name, Text: b.String()})
	}
	add("version.txt", func(w io.Writer) error { _, err := fmt.Fprintln(w, c.App.Version); return err })
	add("doctor.txt", func(w io.Writer) error { return report.Text(w, false) })
	if s.Config != nil {
		add("config.txt", func(w io.Writer) error { return showValues(w, s.Config) })
	}
	node := client.New(socketPath(c))
	for name, path := range map[string]string{"status.json": "/status.json", "events.json": "/events.json",
		"peers.txt": "/peers", "backends.txt": "/backends"} {
		add(name, func(w io.Writer) error {
			body, err := node.Do(c.Context, http.MethodGet, path)
			w.Write(body)
			return err
		})
	}
	if list, err := journal.Read(dataDir(c)); err == nil {
		add("journal.jsonl", func(w io.Writer) error {
			for _, e := range list {
				if err := json.NewEncoder(w).Encode(e); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return docs
}

// showValues prints what is in force, as `config show` does: secrets are hidden.
func showValues(w io.Writer, cfg *configs.Config) error {
	for _, v := range cfg.Show() {
		if _, err := fmt.Fprintf(w, "%s\t%s\t%s\n", v.Key, v.Value, v.Origin); err != nil {
			return err
		}
	}
	return nil
}

func endpointsCommand() *cli.Command {
	return &cli.Command{
		Name: "endpoints",
		Usage: "print which address each kind of client uses, what to tell kubeadm and others, and the table for the " +
			"firewall",
		Flags: append(settingFlags(),
			&cli.StringFlag{Name: "name", Usage: "the DNS name that clients use for the virtual addresses"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		),
		OnUsageError: usageError,
		Action:       printEndpoints,
	}
}

func printEndpoints(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	name := c.String("name")
	if strings.ContainsAny(name, " \t\n/:\"'") {
		return errUsage{fmt.Errorf("--name %q is no DNS name; write one such as api.example.org", name)}
	}
	file := usualPath(c)
	cfg, err := loadFile(file, flagSource(c))
	if err != nil {
		// A guide needs no group key, which is often made last.
		if cfg = withoutKey(file, flagSource(c)); cfg == nil {
			return err
		}
		cfg.Warnings = nil
	}
	printWarnings(c.App.ErrWriter, cfg)
	guide := endpoints.New(cfg, name)
	if c.Bool("json") {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(guide)
	}
	return guide.Text(c.App.Writer)
}
