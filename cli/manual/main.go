//go:build !urfave_cli_no_docs

// Command manual prints the appliance's manual page, for packages. The appliance itself is built without it.
package main

import (
	"fmt"
	"io"
	"os"

	"appliance/cli"
)

func main() {
	page, err := cli.NewApp(cli.Build{}, io.Discard, io.Discard).ToManWithSection(8)
	if err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
	fmt.Print(page)
}
