package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// errClosed is what a namespace says after its lab was closed.
var errClosed = errors.New("lab: the lab is closed; build a new one")

// threads are the OS threads of this process that live in one network
// namespace. There are as many as functions have run in it at the same time.
// They stay until close, because a child process with a parent-death signal
// dies with the thread that started it, not with the process.
type threads struct {
	ns   netns.NsHandle
	jobs chan func()
	quit chan struct{}

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// newThreads makes a network namespace and the first thread in it.
func newThreads() (*threads, error) {
	t := &threads{jobs: make(chan func()), quit: make(chan struct{})}
	made := make(chan error)
	t.wg.Go(func() {
		t.work(func() error {
			ns, err := netns.New()
			t.ns = ns
			return err
		}, made, nil)
	})
	if err := <-made; err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("lab: a network namespace needs root: run as root or inside `unshare --user --map-root-user "+
				"--net`: %w", err)
		}
		return nil, fmt.Errorf("lab: make a network namespace: %w", err)
	}
	return t, nil
}

// work turns the calling goroutine into a thread of the namespace that enter
// moves it to. The thread ends with it: one whose namespace was changed must
// never return to the Go scheduler.
func (t *threads) work(enter func() error, entered chan<- error, first func()) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The main thread cannot end, and what it shows under /proc/self
		// should stay the host's. While it is held here, the goroutine
		// that takes over gets another one.
		var wg sync.WaitGroup
		wg.Go(func() { t.work(enter, entered, first) })
		wg.Wait()
		runtime.UnlockOSThread()
		return
	}
	err := enter()
	entered <- err
	if err != nil {
		return
	}
	if first != nil {
		first()
	}
	for {
		select {
		case job := <-t.jobs:
			job()
		case <-t.quit:
			return
		}
	}
}

// do runs f on a thread of the namespace and waits for it.
func (t *threads) do(f func() error) error {
	done := make(chan error, 1)
	job := func() {
		// t.FailNow in a test's f ends this goroutine and its thread;
		// say so instead of leaving the caller waiting.
		finished := false
		defer func() {
			if !finished {
				done <- errors.New("lab: the function ended its goroutine; report errors by returning them")
			}
		}()
		err := f()
		finished = true
		done <- err
	}
	select {
	case t.jobs <- job:
		return <-done
	default:
	}

	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return errClosed
	}
	entered := make(chan error, 1)
	t.wg.Go(func() {
		t.work(func() error { return netns.Set(t.ns) }, entered, job)
	})
	t.mu.Unlock()
	if err := <-entered; err != nil {
		return fmt.Errorf("lab: enter the network namespace: %w", err)
	}
	return <-done
}

// close waits for running functions, ends the threads and gives up the
// namespace, which the kernel then removes with everything in it.
func (t *threads) close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	t.mu.Unlock()
	close(t.quit)
	t.wg.Wait()
	return t.ns.Close()
}
