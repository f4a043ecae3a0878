// Package lifecycle starts parts of a program in order and stops them in reverse.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
)

// A Part is a piece of the program with a lifetime of its own.
type Part struct {
	Name string // empty: its errors speak for themselves
	// Run does the part's work until ctx ends, and leaves nothing behind.
	Run func(ctx context.Context) error
	// Ready is closed when the parts after this one may begin; nil means at once.
	Ready <-chan struct{}
}

// Gate is a part that lets those after it begin once check has succeeded. An error of check ends them all.
func Gate(check func(ctx context.Context) error) Part {
	open := make(chan struct{})
	return Part{Ready: open, Run: func(ctx context.Context) error {
		if err := check(ctx); err != nil {
			return err
		}
		close(open)
		<-ctx.Done()
		return nil
	}}
}

// RunInOrder starts each part when the one before it is ready. When ctx ends, or a part does, it stops them in reverse:
// each one has finished before the one that it stood on is told to stop. It returns the errors of the parts.
func RunInOrder(ctx context.Context, parts []Part) error {
	if len(parts) == 0 {
		<-ctx.Done()
		return nil
	}
	p, rest := parts[0], parts[1:]

	// The part outlives ctx: it goes on while those that stand on it stop.
	own, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan error, 1)
	go func() {
		err := p.Run(own)
		if err != nil && own.Err() == nil && p.Name != "" {
			err = fmt.Errorf("%s: %w", p.Name, err)
		} else if err == nil && own.Err() == nil {
			err = fmt.Errorf("%s ended by itself", p.Name)
		} else if errors.Is(err, context.Canceled) {
			err = nil
		}
		done <- err
	}()

	ready := p.Ready
	if ready == nil {
		closed := make(chan struct{})
		close(closed)
		ready = closed
	}
	select {
	case <-ready:
	case <-ctx.Done():
		stop()
		return <-done
	case err := <-done:
		return err
	}

	// The rest stops when ctx ends, and when this part fails under it.
	restCtx, stopRest := context.WithCancel(ctx)
	defer stopRest()
	restDone := make(chan error, 1)
	go func() { restDone <- RunInOrder(restCtx, rest) }()
	select {
	case err := <-done:
		stopRest()
		return errors.Join(err, <-restDone)
	case err := <-restDone:
		stop()
		return errors.Join(err, <-done)
	}
}
