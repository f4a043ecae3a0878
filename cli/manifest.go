package cli

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"appliance/manifest"
)

func manifestCommand(build Build) *cli.Command {
	return &cli.Command{
		Name:  "manifest",
		Usage: "print the static pod that runs the appliance with these settings",
		Flags: append(settingFlags(),
			&cli.StringFlag{Name: "image", Usage: "the container image", DefaultText: build.image()},
			&cli.StringFlag{Name: "kind", Usage: "pod (for /etc/kubernetes/manifests), daemonset or systemd", Value: "pod"},
		),
		OnUsageError: usageError,
		Action:       func(c *cli.Context) error { return printManifest(c, build) },
	}
}

// image is the container image that the manifest names by default.
func (b Build) image() string {
	if b.Image != "" {
		return b.Image
	}
	return "appliance:" + strings.ReplaceAll(b.Version, "+", "-")
}

// printManifest prints nothing unless all of it is right: its stdout is usually a file that the kubelet watches.
func printManifest(c *cli.Context, build Build) error {
	if err := noArgs(c); err != nil {
		return err
	}
	cfg, err := loadConfig(c)
	if err != nil {
		return err
	}
	from := c.String("image")
	if from == "" {
		from = build.image()
	}
	// The pod does not have this environment, so its settings become arguments, as do the flags.
	options := manifest.New(cfg, from, c.String("config"), flagSource(c).Args())
	var text []byte
	switch kind := c.String("kind"); kind {
	case "pod":
		text, err = manifest.Pod(options)
	case "daemonset":
		text, err = manifest.DaemonSet(options)
	case "systemd":
		text, err = manifest.Unit(options)
	default:
		return usagef("--kind %q is unknown; write pod, daemonset or systemd", kind)
	}
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	printWarnings(c.App.ErrWriter, cfg)
	_, err = c.App.Writer.Write(text)
	return err
}
