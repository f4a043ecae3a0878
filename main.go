// Command appliance keeps one address alive in front of a set of TCP servers.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"appliance/cli"
	"appliance/script"
)

// The linker sets these; see the Makefile and .goreleaser.yaml.
var (
	version string // of this program
	image   string // what `appliance manifest` runs
)

func main() {
	script.RunIfChild()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once: a crash needs no clean-up, and the operator has a reason.
	context.AfterFunc(ctx, stop)
	build := cli.Build{Version: versionOr("unreleased"), Image: image}
	os.Exit(cli.Run(ctx, build, os.Args, os.Stdout, os.Stderr))
}

// versionOr returns the linker's version, else what the Go command recorded, else the given word.
func versionOr(unknown string) string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return unknown
}
