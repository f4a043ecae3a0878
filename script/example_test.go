package script_test

import (
	"context"
	"fmt"
	"time"

	"appliance/script"
)

func ExampleProgram_Run() {
	p, err := script.Open([]string{"/bin/sh", "-c", `echo "$DISK is full" >&2; exit 1`}, "")
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	fmt.Println(p.Run(ctx, "DISK=/var"))

	_, err = script.Open([]string{"check.sh"}, "")
	fmt.Println(err)
	// Output:
	// sh: exit status 1: /var is full
	// check.sh: not an absolute path; begin it with /
}
