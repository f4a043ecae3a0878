// Command appliance keeps one address alive in front of a set of TCP servers.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/urfave/cli/v2"
)

// version is set by the linker; see the Makefile and .goreleaser.yaml.
var version = ""

// Exit codes.
const (
	exitFailed = 1 // the command was understood and failed
	exitUsage  = 2 // the command line was not understood
	// exitConfig is EX_CONFIG of sysexits.h: the configuration is not valid, and
	// to start again would change nothing. The systemd units name it. It is not
	// exitUsage, because that is how Go ends a process that panics.
	exitConfig = 78
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once: no clean-up is needed, and the
	// operator has a reason.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// run is the command line: data goes to stdout, everything for people to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := &cli.App{
		Name:                 "appliance",
		Usage:                "one address that does not go down, for kube-apiservers or any TCP servers",
		Version:              versionString(),
		Writer:               stdout,
		ErrWriter:            stderr,
		EnableBashCompletion: true,
		// Usage errors belong on stderr; the library would print its help on stdout.
		OnUsageError:   usageError,
		ExitErrHandler: func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return errUsage{fmt.Errorf("there is no command %q; `appliance help` lists them", c.Args().First())}
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			startCommand(),
			configCommand(),
			keygenCommand(),
			manifestCommand(),
			convertCommand(),
			statusCommand(),
			topCommand(),
			eventsCommand(),
			healthCommand(),
			transferCommand(),
			peersCommand(),
			drainCommand(),
			undrainCommand(),
			pinCommand(),
			recoverCommand(),
			backendsCommand(),
			reloadCommand(),
			cleanupCommand(),
			demoCommand(),
			logLevelCommand(),
			passwdCommand(),
			completionCommand(),
			{
				Name:         "version",
				Usage:        "print the version",
				OnUsageError: usageError,
				Action: func(c *cli.Context) error {
					_, err := fmt.Fprintln(c.App.Writer, "appliance", versionString())
					return err
				},
			},
		},
	}
	err := app.RunContext(ctx, args)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "appliance: %v\n", err)
	var usage errUsage
	if errors.As(err, &usage) {
		return exitUsage
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

func usageError(c *cli.Context, err error, _ bool) error {
	name := "appliance"
	if c.Command != nil && c.Command.HelpName != "" {
		name = c.Command.HelpName
	}
	return errUsage{fmt.Errorf("%w; `%s --help` lists what can be said", err, name)}
}

// noArgs refuses arguments, which would otherwise be passed over in silence.
func noArgs(c *cli.Context) error {
	if c.Args().Present() {
		return errUsage{fmt.Errorf("%s takes no argument, and %q is one; `%s --help` lists what can be said", c.Command.HelpName, c.Args().First(), c.Command.HelpName)}
	}
	return nil
}

// unknownSubcommand is the action of a command that only has subcommands.
func unknownSubcommand(c *cli.Context) error {
	if c.Args().Present() {
		return errUsage{fmt.Errorf("there is no command %q; `%s --help` lists them", c.Command.HelpName+" "+c.Args().First(), c.Command.HelpName)}
	}
	return cli.ShowSubcommandHelp(c)
}

// versionString is the linker's version, or what the Go command recorded.
func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "unreleased"
}
