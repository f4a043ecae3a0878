package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"appliance/configs"
)

// settingFlags are the flags that the list of settings names. Environment and
// defaults are configs' business, so that there is one precedence and each value
// knows where it came from.
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
		// The library takes what stands in backquotes for the name of the value.
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

// flagSource is what the command line and the environment say.
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

// loadConfig loads the file that flag or environment name, under what they say.
func loadConfig(c *cli.Context) (*configs.Config, error) {
	return loadFile(c.String("config"), flagSource(c))
}

// loadFile is configs.Load. What is wrong with the words is an errConfig; a
// file that cannot be read is not, because it may be there in a moment.
func loadFile(path string, src configs.Source) (*configs.Config, error) {
	cfg, err := configs.Load(path, src)
	var p configs.Problem
	if errors.As(err, &p) {
		err = errConfig{err}
	}
	return cfg, err
}

// errConfig is a configuration that is not valid.
type errConfig struct{ error }

func (e errConfig) Unwrap() error { return e.error }

// configPath is the file that flag or environment name, or empty.
func configPath(c *cli.Context) string {
	if path := c.String("config"); path != "" {
		return path
	}
	return os.Getenv("APPLIANCE_CONFIG")
}

// socketFlags say where the running appliance is; the commands that talk to
// one need nothing else of its configuration.
func socketFlags(more ...cli.Flag) []cli.Flag {
	flags := []cli.Flag{}
	for _, f := range settingFlags() {
		if name := f.Names()[0]; name == "socket" {
			flags = append(flags, f)
		}
	}
	return append(flags, more...)
}

// socketPath is the socket that flag, environment or default name.
func socketPath(c *cli.Context) string { return settingOf(c, "socket") }

// printWarnings tells the operator what works and may not be meant.
func printWarnings(w io.Writer, cfg *configs.Config) {
	for _, warning := range cfg.Warnings {
		fmt.Fprintln(w, "warning:", warning)
	}
}
