package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"appliance/lab"
)

const (
	// patience bounds each wait: the slowest peer needs 20 s and more at
	// times.
	patience = 60 * time.Second
	// window is how long a fault lasts at least, and how long it is watched
	// after it was undone: two holders that do not end by themselves are
	// counted for the window. keepalived takes over after 3 to 3.5 s.
	window = 3500 * time.Millisecond
	// stagger lies between the begins of two ways.
	stagger = 500 * time.Millisecond
)

// A result is one trial of one fault.
type result struct {
	outage lab.Outage
	// two is how long two nodes answered at once, from the fault until
	// after it was undone.
	two time.Duration
	// back is what clients saw when the fault was undone.
	back lab.Outage
}

// failover measures every fault on every way and writes a page. Each way goes through
// the faults at its own pace, all of them at the same time: most of a trial is
// waiting, and so noise hits all alike.
func failover(ctx context.Context, binary string, trials int,
	only, through, outDir string, out, progress io.Writer) (err error) {
	chosen := faults()
	if only != "" {
		wanted := strings.Split(only, ",")
		chosen = slices.DeleteFunc(chosen, func(f fault) bool { return !slices.Contains(wanted, f.name) })
	}
	all := ways()
	if through != "" {
		wanted := strings.Split(through, ";")
		all = slices.DeleteFunc(all, func(w way) bool { return !slices.Contains(wanted, w.name) })
	}
	if len(chosen) == 0 || len(all) == 0 || trials < 1 {
		return errors.New("nothing to measure: name faults among kill, stop, transfer, link, partition, freeze, backend, " +
			"known ways, and one trial or more")
	}
	ds, err := drivers(ctx, binary, all)
	defer func() { err = errors.Join(err, closeAll(ds)) }()
	if err != nil {
		return err
	}
	t := &trialBook{faults: chosen, drivers: ds, results: map[[2]string][]result{}}
	var mu sync.Mutex
	wg, ctx := errgroup.WithContext(ctx)
	for i, d := range ds {
		wg.Go(func() error {
			if err := sleep(ctx, time.Duration(i)*stagger); err != nil {
				return err
			}
			for k := range trials * len(chosen) {
				trial, f := k/len(chosen)+1, chosen[k%len(chosen)]
				r, err := measure(ctx, d, f)
				mu.Lock()
				switch {
				case ctx.Err() != nil:
				case errors.Is(err, errNotThere):
				case err != nil:
					// What does not come back by itself is no reason to lose the rest.
					fmt.Fprintf(progress, "%2d %-10s %-19s no result: %v\n", trial, f.name, d.name, err)
					t.missed++
				default:
					fmt.Fprintf(progress, "%2d %-10s %-19s %s; two answer for %d ms; undone: %s\n",
						trial, f.name, d.name, r.outage, r.two.Milliseconds(), r.back)
					t.add(f, d, r)
				}
				err = nil
				if k%len(chosen) == 0 {
					err = t.write(outDir) // a run that is cut short has shown something
				}
				mu.Unlock()
				if err = cmp.Or(err, ctx.Err()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := wg.Wait(); err != nil {
		return err
	}
	if err := t.write(outDir); err != nil {
		return err
	}
	t.markdown(out)
	return nil
}

// measure is one trial.
func measure(ctx context.Context, d *driver, f fault) (r result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wait, cancelWait := context.WithTimeout(ctx, 2*patience)
	defer cancelWait()

	if err := d.AwaitReady(wait, 0, 1, 2); err != nil {
		return r, err
	}
	if err := d.scene.Resolve(ctx); err != nil {
		return r, err
	}
	d.scene.Ask(ctx)
	defer func() { err = errors.Join(err, d.scene.Rest()) }()
	if _, err := steady(wait, d, time.Now()); err != nil {
		return r, fmt.Errorf("before the fault: %w", err)
	}
	if err := sleep(ctx, settle); err != nil {
		return r, err
	}
	holder, err := d.scene.AwaitHolder(wait, func(int) bool { return true })
	if err != nil {
		return r, err
	}

	start := time.Now()
	if err := f.do(d, holder); err != nil {
		return r, err
	}
	// Not having recovered is a result too.
	r.outage, _ = steady(ctx, d, start)
	if err := sleep(ctx, window-time.Since(start)); err != nil {
		return r, err
	}
	undone := time.Now()
	if err := f.undo(d, holder); err != nil {
		return r, err
	}
	if err := sleep(ctx, window/2); err != nil {
		return r, err
	}
	r.back, _ = steady(ctx, d, undone)
	r.two, _ = d.scene.Overlap(start)
	return r, ctx.Err()
}

func steady(ctx context.Context, d *driver, fault time.Time) (lab.Outage, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return d.scene.Steady(ctx, fault)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
