//go:build linux && !amd64 && !arm64

package confine

import "fmt"

func filter() error {
	return fmt.Errorf("filter system calls on this architecture: %w", errUnsupported)
}
