package cli

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"appliance/image"
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
	if c.String("image") == "" && build.Image == "" && c.String("kind") != "systemd" {
		fmt.Fprintf(c.App.ErrWriter, "the image %s is in no registry; on each node: %s\n", from, bringImage)
	}
	_, err = c.App.Writer.Write(text)
	return err
}

// bringImage is how an image gets to a node that has no registry.
const bringImage = "appliance image | ctr -n k8s.io images import -"

func imageCommand(build Build) *cli.Command {
	return &cli.Command{
		Name:  "image",
		Usage: "write this program as a container image to stdout: " + bringImage,
		Description: "The image is for this machine's architecture and needs no registry; run it on each node.\n" +
			"podman load and docker load take it too.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "image", Usage: "the image's name", DefaultText: build.image()},
		},
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			name := c.String("image")
			if name == "" {
				name = build.image()
			}
			return writeImage(c, fullImageName(name))
		},
	}
}

func writeImage(c *cli.Context, name string) error {
	if f, ok := c.App.Writer.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return errUsage{fmt.Errorf("an image is no text for a terminal; write `%s`, or redirect it to a file", bringImage)}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	info, err := os.Stat(self)
	if err != nil {
		return err
	}
	program, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	if err := static(program); err != nil {
		return err
	}
	b := image.Binary{Arch: runtime.GOARCH, Program: program}
	if b.Arch == "arm" {
		b.Variant = "v7"
	}
	return image.Write(c.App.Writer, image.Archive{
		Name: name, Version: c.App.Version, Created: info.ModTime().Truncate(time.Second), Binaries: []image.Binary{b},
	})
}

// static refuses a program that needs libraries: an image has nothing but the program.
func static(program []byte) error {
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("this program cannot be read: %w", err)
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("this program needs libraries, which an image of it does not have; build it with `make build`, or " +
				"with CGO_ENABLED=0")
		}
	}
	return nil
}

// fullImageName is what a container runtime makes of an image's name: docker.io/library/appliance:latest of appliance.
func fullImageName(name string) string {
	first, rest, found := strings.Cut(name, "/")
	switch {
	case !found:
		name = "docker.io/library/" + name
	case !strings.ContainsAny(first, ".:") && first != "localhost":
		name = "docker.io/" + first + "/" + rest
	}
	if !strings.Contains(name[strings.LastIndexByte(name, '/'):], ":") {
		name += ":latest"
	}
	return name
}
