// A check without verification judges no certificate and no signature. The group's own connections are TLS 1.3.

//go:debug x509negativeserial=1
//go:debug rsa1024min=0
//go:debug tlssha1=1

// Command appliance keeps one address alive in front of a set of TCP servers.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"appliance/cli"
	"appliance/script"
)

// The linker sets these; see the Makefile and .goreleaser.yaml.
var (
	version string // of this program
	image   string // what `appliance manifest` runs
)

// oneGesture is how far apart signals of one cause may be.
const oneGesture = 500 * time.Millisecond

func main() {
	script.RunIfChild()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once: a crash needs no clean-up, and the operator has a reason. One that comes
	// with the first has none: timeout(1) sends two, and so does a terminal to a program below sudo.
	context.AfterFunc(ctx, func() {
		time.Sleep(oneGesture)
		stop()
	})
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
