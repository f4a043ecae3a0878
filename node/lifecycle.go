package node

import (
	"context"
	"errors"
	"fmt"
)

// A part is a piece of the appliance with a lifetime of its own.
type part struct {
	name string
	// run does the part's work until ctx ends, and leaves nothing behind.
	run func(ctx context.Context) error
	// ready is closed when the parts after this one may begin; nil means at
	// once.
	ready <-chan struct{}
}

// runInOrder starts each part when the one before it is ready, and when ctx
// ends or a part does, stops them in the reverse order, each one finished before
// the one that it stood on is told to stop. It returns the errors of the parts.
func runInOrder(ctx context.Context, parts []part) error {
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
		err := p.run(own)
		if err != nil && own.Err() == nil {
			err = fmt.Errorf("%s: %w", p.name, err)
		} else if err == nil && own.Err() == nil {
			err = fmt.Errorf("%s ended by itself", p.name)
		} else if errors.Is(err, context.Canceled) {
			err = nil
		}
		done <- err
	}()

	ready := p.ready
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
	go func() { restDone <- runInOrder(restCtx, rest) }()
	select {
	case err := <-done:
		stopRest()
		return errors.Join(err, <-restDone)
	case err := <-restDone:
		stop()
		return errors.Join(err, <-done)
	}
}
