package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"appliance/configs"
	"appliance/install"
)

// settingFlags returns the flags that the list of settings names. The package configs handles environment and defaults,
// so that there is one precedence and each value knows its origin.
func settingFlags() []cli.Flag {
	var flags []cli.Flag
	for _, s := range configs.Settings() {
		if s.Flag == "" {
			continue
		}
		var aliases []string
		if s.Flag == "config" {
			aliases = []string{"c"}
		}
		// The library takes a word in backquotes for the name of the value.
		usage := fmt.Sprintf("%s [%s]", strings.ReplaceAll(s.Usage, "`", "'"), s.Env())
		switch s.Type {
		case configs.Bool:
			flags = append(flags, &cli.BoolFlag{Name: s.Flag, Aliases: aliases, Usage: usage})
		case configs.List:
			flags = append(flags, &cli.StringSliceFlag{Name: s.Flag, Aliases: aliases, Usage: usage})
		default:
			flags = append(flags, &cli.StringFlag{Name: s.Flag, Aliases: aliases, Usage: usage, DefaultText: s.Default})
		}
	}
	return flags
}

// flagSource returns the settings of the command line and the environment.
func flagSource(c *cli.Context) configs.Source {
	return configs.Source{
		Flag: func(name string) (string, bool) {
			if !c.IsSet(name) {
				return "", false
			}
			if list, ok := c.Value(name).(cli.StringSlice); ok {
				return strings.Join(list.Value(), ","), true
			}
			return fmt.Sprint(c.Value(name)), true
		},
		Env: os.LookupEnv,
	}
}

// loadConfig loads the file that a flag or the environment names, with their settings on top.
func loadConfig(c *cli.Context) (*configs.Config, error) {
	return loadFile(c.String("config"), flagSource(c))
}

// loadFile is configs.Load. Invalid content is an errConfig; a file that cannot be read is not, because it may be there
// in a moment.
func loadFile(path string, src configs.Source) (*configs.Config, error) {
	cfg, err := configs.Load(path, src)
	return cfg, unmendable(err)
}

// unmendable makes an errConfig of an error that no retry mends.
func unmendable(err error) error {
	var p configs.Problem
	if errors.As(err, &p) || errors.Is(err, syscall.EISDIR) {
		return errConfig{err}
	}
	return err
}

// errConfig is a configuration that is not valid.
type errConfig struct{ error }

func (e errConfig) Unwrap() error { return e.error }

// configPath returns the file that a flag or the environment names, or "".
func configPath(c *cli.Context) string {
	if path := c.String("config"); path != "" {
		return path
	}
	return os.Getenv("APPLIANCE_CONFIG")
}

// usualPath is configPath, or the file of the service that is installed here where nothing is said at all.
func usualPath(c *cli.Context) string {
	if path := configPath(c); path != "" || len(flagSource(c).Args()) > 0 {
		return path
	}
	if _, err := os.Stat(install.ConfigFile); err != nil {
		return ""
	}
	return install.ConfigFile
}

// socketFlags say where the running appliance is. The commands that talk to it need nothing else of its configuration.
func socketFlags(more ...cli.Flag) []cli.Flag {
	flags := []cli.Flag{}
	for _, f := range settingFlags() {
		if name := f.Names()[0]; name == "socket" {
			flags = append(flags, f)
		}
	}
	return append(flags, more...)
}

// socketPath returns the socket that a flag, the environment or the default names.
func socketPath(c *cli.Context) string { return settingOf(c, "socket") }

// printWarnings prints what is valid and probably not meant.
func printWarnings(w io.Writer, cfg *configs.Config) {
	for _, warning := range cfg.Warnings {
		fmt.Fprintln(w, "warning:", warning)
	}
}

// settingOf returns the value of one setting, from flag, environment or default, for commands that need nothing else of
// the configuration.
func settingOf(c *cli.Context, name string) string {
	for _, s := range configs.Settings() {
		if s.Flag != name {
			continue
		}
		if c.IsSet(name) {
			return c.String(name)
		}
		if v := os.Getenv(s.Env()); v != "" {
			return v
		}
		return s.Default
	}
	panic("the list of settings has no " + name)
}

func dataDir(c *cli.Context) string { return settingOf(c, "data-dir") }

func dataDirFlag() cli.Flag {
	for _, f := range settingFlags() {
		if f.Names()[0] == "data-dir" {
			return f
		}
	}
	panic("the list of settings has no data-dir")
}
