package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"appliance/configs"
	"appliance/install"
	"appliance/manifest"
	"appliance/raft/auth"
	"appliance/status/client"
)

func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "install this program as a systemd service with a configuration made of these flags; uninstall undoes it",
		Description: "Makes " + install.Program + ", the unit, /etc/appliance with key and configuration, and " +
			"/var/lib/appliance, and starts the\n" +
			"service. Each step is printed; files that exist are kept. With --config the file is copied instead of made.",
		Flags: append(settingFlags(),
			&cli.StringSliceFlag{Name: "backends", Usage: "the servers, each as address or address:port; without them, the " +
				"peers"},
			&cli.BoolFlag{Name: "new-key", Usage: "make a new group key: on the first peer only"},
			&cli.StringFlag{Name: "key-from", Usage: "copy the group key from this `FILE`: on every other peer; on a " +
				"worker, its worker key"},
			&cli.BoolFlag{Name: "no-start", Usage: "install, and start nothing"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print the steps, and do none"},
			&cli.StringFlag{Name: "root", Usage: "install below this directory, and start nothing", Value: "/"},
		),
		OnUsageError: usageError,
		Action:       installHere,
	}
}

func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:  "uninstall",
		Usage: "undo install: stop the service, and remove program and unit",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "purge", Usage: "remove configuration, keys and the group's data too"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print the steps, and do none"},
			&cli.StringFlag{Name: "root", Usage: "uninstall below this directory", Value: "/"},
		},
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			steps := install.Uninstall(c.String("root"), c.Bool("purge"), accountsHere(c), systemctlHere(c))
			return install.Run(c.App.Writer, steps, c.Bool("dry-run"))
		},
	}
}

func installHere(c *cli.Context) error {
	if err := noArgs(c); err != nil {
		return err
	}
	if c.Bool("new-key") && c.String("key-from") != "" {
		return errUsage{fmt.Errorf("--new-key is for the first peer and --key-from for the others; give one of them")}
	}
	p, socket, err := installParams(c)
	if err != nil {
		return err
	}
	steps, err := install.Install(p)
	if err != nil {
		return err
	}
	if err := install.Run(c.App.Writer, steps, c.Bool("dry-run")); err != nil {
		return err
	}
	switch {
	case c.Bool("dry-run"):
	case p.Systemctl != nil && !answers(c.Context, socket, answersWithin):
		fmt.Fprintf(c.App.ErrWriter, "it does not answer on %s yet: `journalctl -u appliance` says what it waits for, and "+
			"`appliance doctor` what is in the way\n", socket)
	default:
		fmt.Fprintln(c.App.ErrWriter, "look at it with `appliance doctor` and `appliance status`")
	}
	return nil
}

// answersWithin is how long a service that has just been started gets until it answers.
const answersWithin = 10 * time.Second

// answers waits until the appliance answers on the socket, and says whether it did in time.
func answers(ctx context.Context, socket string, patience time.Duration) bool {
	for until := time.Now().Add(patience); ; time.Sleep(patience / 100) {
		_, err := client.New(socket).Snapshot(ctx)
		if err == nil || ctx.Err() != nil || time.Now().After(until) {
			return err == nil
		}
	}
}

// installParams finds out all that is written, and checks it before anything is, and where the service will answer.
func installParams(c *cli.Context) (p install.Installation, socket string, err error) {
	p.Root = c.String("root")
	source := flagSource(c)
	file := configPath(c)
	if file != "" && len(source.Args()) > 1 {
		return p, "", errUsage{fmt.Errorf("--config is copied as it is; write the other settings into the file, or leave it out")}
	}
	if file != "" {
		p.Config, err = os.ReadFile(file)
	} else {
		p.Config, err = install.File(source, c.StringSlice("backends"))
	}
	if err != nil {
		return p, "", err
	}
	if p.Key, err = installKey(c); err != nil {
		return p, "", err
	}
	// The key is checked where it will be, or where it comes from.
	exists := func(path string) bool {
		_, err := os.Stat(filepath.Join(p.Root, path))
		return p.Key != nil && path == configs.DefaultKeyFile || err == nil
	}
	cfg, err := configs.Parse("the configuration", p.Config, configs.Source{FileExists: exists})
	if err != nil {
		return p, "", errConfig{fmt.Errorf("%w\n(--new-key makes a group key on the first peer, --key-from FILE copies it on "+
			"the others)", err)}
	}
	if err := checkKey(cfg, c.String("key-from")); err != nil {
		return p, "", err
	}
	printWarnings(c.App.ErrWriter, cfg)
	p.KeyFile = cfg.Group.KeyFile
	if !exists(p.KeyFile) && p.KeyFile != "" && p.Key == nil {
		return p, "", fmt.Errorf("the group key %s does not exist; give --new-key on the first peer, or --key-from FILE on the "+
			"others", p.KeyFile)
	}
	p.Accounts = accountsHere(c)
	o := manifest.New(cfg, "", install.ConfigFile, nil)
	o.Binary = install.Program
	p.Files, p.AsRoot, p.DropIn = o.Files, o.AsRoot != "", manifest.DropIn(o)
	if p.AsRoot {
		fmt.Fprintf(c.App.ErrWriter, "the service will run as root, because %s\n", o.AsRoot)
	}
	if p.From, p.Unit, err = programAndUnit(o); err != nil {
		return p, "", err
	}
	if !c.Bool("no-start") {
		p.Systemctl = systemctlHere(c)
	}
	return p, cfg.Socket, nil
}

// installKey makes the group key or reads it from where it is said to be; nil is none.
func installKey(c *cli.Context) ([]byte, error) {
	if c.Bool("new-key") {
		return []byte(auth.GenerateKey().Text() + "\n"), nil
	}
	from := c.String("key-from")
	if from == "" {
		return nil, nil
	}
	return os.ReadFile(from)
}

// checkKey reads the key that is to be copied: a worker has one of its own.
func checkKey(cfg *configs.Config, from string) (err error) {
	switch {
	case from == "":
	case cfg.Worker():
		_, err = auth.LoadWorkerKey(from)
	default:
		_, err = auth.LoadKeys(from)
	}
	return err
}

// programAndUnit are this program's path and the unit that runs its copy. A program that a package installed stays
// where it is, with the package's unit.
func programAndUnit(o manifest.Params) (program string, unit []byte, err error) {
	if program, err = os.Executable(); err != nil {
		return "", nil, err
	}
	if program == "/usr/bin/appliance" {
		return "", nil, nil
	}
	unit, err = manifest.Unit(o)
	return program, unit, err
}

// accountsHere are the users of this machine; nil where another root is meant.
func accountsHere(c *cli.Context) install.Accounts {
	if c.String("root") != "/" {
		return nil
	}
	return install.Local{}
}

// prepareCommand is what the unit runs as root before the service starts.
func prepareCommand() *cli.Command {
	return &cli.Command{
		Name:  "prepare",
		Usage: "as root, let the service's own user read its configuration and keys; the systemd unit runs this",
		Flags: append(settingFlags(),
			&cli.BoolFlag{Name: "data", Usage: "give it the data directory, too: only while the service does not run"},
			&cli.BoolFlag{Name: "unit", Usage: "adapt the package's unit to the configuration, too: more capabilities for " +
				"programs, or root where nothing else will do"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print the steps, and do none"},
		),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			file := usualPath(c)
			cfg, err := loadFile(file, flagSource(c))
			if err != nil {
				// What is wrong is said by the service, if it may read it.
				return errors.Join(err, install.Run(c.App.Writer, install.Prepare("/", install.Local{},
					[]string{file, configs.DefaultKeyFile}, "", nil), c.Bool("dry-run")))
			}
			o := manifest.New(cfg, "", file, nil)
			var dropIn []byte
			if c.Bool("unit") {
				dropIn = append([]byte{}, manifest.DropIn(o)...)
			}
			if !c.Bool("data") {
				o.DataDir = ""
			}
			if o.AsRoot != "" { // it is root who reads
				fmt.Fprintf(c.App.ErrWriter, "the service runs as root, because %s\n", o.AsRoot)
				o.Files, o.DataDir = nil, ""
			}
			return install.Run(c.App.Writer, install.Prepare("/", install.Local{}, o.Files, o.DataDir, dropIn),
				c.Bool("dry-run"))
		},
	}
}

// systemctlHere runs systemctl; nil where systemd does not run, or another root is meant.
func systemctlHere(c *cli.Context) func(args ...string) error {
	if _, err := os.Stat("/run/systemd/system"); errors.Is(err, fs.ErrNotExist) || c.String("root") != "/" {
		return nil
	}
	return func(args ...string) error {
		out, err := exec.CommandContext(c.Context, "systemctl", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w\n%s", err, strings.TrimSpace(string(out)))
		}
		return nil
	}
}
