package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
)

// Exit codes.
const (
	exitFailed = 1 // the command was understood and failed
	exitUsage  = 2 // the command line was not understood
	exitOpen   = 3 // what a command waited for has not come
	// exitConfig is EX_CONFIG of sysexits.h: the configuration is not valid, and a restart would change nothing. The
	// systemd units name it. It differs from exitUsage because a Go process that panics exits with 2.
	exitConfig = 78
)

// Build is what is known of this program since it was built.
type Build struct {
	Version string
	Image   string // the container image that the manifest runs; empty: named after the version
}

// NewApp is the whole command line.
func NewApp(build Build, stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:                 "appliance",
		Usage:                "one address that does not go down, for kube-apiservers or any TCP servers",
		Version:              build.Version,
		Writer:               stdout,
		ErrWriter:            stderr,
		EnableBashCompletion: true,
		// Usage errors belong on stderr; the library would print its help on stdout.
		OnUsageError:   usageError,
		ExitErrHandler: func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usagef("there is no command %q; `appliance help` lists them", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			startCommand(),
			configCommand(),
			keygenCommand(),
			manifestCommand(build),
			convertCommand(),
			statusCommand(),
			topCommand(),
			eventsCommand(),
			healthCommand(),
			transferCommand(),
			takeoverCommand(),
			peersCommand(),
			drainCommand(),
			undrainCommand(),
			pinCommand(),
			recoverCommand(),
			backendsCommand(),
			reloadCommand(),
			cleanupCommand(),
			imageCommand(build),
			installCommand(),
			uninstallCommand(),
			prepareCommand(),
			doctorCommand(),
			endpointsCommand(),
			demoCommand(),
			logLevelCommand(),
			passwdCommand(),
			completionCommand(),
			{
				Name:         "version",
				Usage:        "print the version",
				OnUsageError: usageError,
				Action: func(c *cli.Context) error {
					_, err := fmt.Fprintln(c.App.Writer, "appliance", c.App.Version)
					return err
				},
			},
		},
	}
}

// Run runs the command line and returns the exit code. Data goes to stdout, everything for people to stderr.
func Run(ctx context.Context, build Build, args []string, stdout, stderr io.Writer) int {
	err := NewApp(build, stdout, stderr).RunContext(ctx, args)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "appliance: %v\n", err)
	var usage errUsage
	if errors.As(err, &usage) {
		return exitUsage
	}
	var open errOpen
	if errors.As(err, &open) {
		return exitOpen
	}
	var config errConfig
	if errors.As(err, &config) {
		return exitConfig
	}
	return exitFailed
}

// errUsage is a command line that was not understood.
type errUsage struct{ error }

func (e errUsage) Unwrap() error { return e.error }

// An errOpen says what has not ended in the time that a command waited.
type errOpen struct{ error }

func usageError(c *cli.Context, err error, _ bool) error {
	name := "appliance"
	if c.Command != nil && c.Command.HelpName != "" {
		name = c.Command.HelpName
	}
	return usagef("%w; `%s --help` lists its flags", err, name)
}

// usagef makes an errUsage.
func usagef(format string, args ...any) error { return errUsage{fmt.Errorf(format, args...)} }

// noArgs refuses arguments, which the library would ignore.
func noArgs(c *cli.Context) error {
	if c.Args().Present() {
		name := c.Command.HelpName
		return usagef("%s takes no argument, and %q is one; `%s --help` lists its flags", name, c.Args().First(), name)
	}
	return nil
}

// unknownSubcommand is the action of a command that only has subcommands.
func unknownSubcommand(c *cli.Context) error {
	if c.Args().Present() {
		name := c.Command.HelpName
		return usagef("there is no command %q; `%s --help` lists them", name+" "+c.Args().First(), name)
	}
	return cli.ShowSubcommandHelp(c)
}
