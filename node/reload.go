package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"appliance/configs"
	"appliance/host"
)

// A reloader puts a changed file into force without a restart: at SIGHUP, when asked on the socket, and when the file
// changes. One goroutine does it, so that two changes never overlap.
type reloader struct {
	path string // empty: there is no file
	load func() (*configs.Config, error)
	// apply puts next into force, or returns why it cannot and changes nothing. next differs from what is in force only
	// in what can change live.
	apply func(ctx context.Context, next *configs.Config) error
	log   *slog.Logger

	current *configs.Config  // owned by run
	restart []configs.Change // the changes that wait for a restart; owned by run
	failed  string           // why the last try failed; owned by run
	asks    chan reloadAsk
}

type reloadAsk struct {
	quiet bool // no one waits for an answer: log only what is new
	reply chan<- reloadReply
}

type reloadReply struct {
	said string
	err  error
}

func newReloader(path string, cfg *configs.Config, load func() (*configs.Config, error), log *slog.Logger) *reloader {
	return &reloader{path: path, load: load, log: log, current: cfg, asks: make(chan reloadAsk)}
}

// run reloads until ctx ends.
func (r *reloader) run(ctx context.Context) error {
	signals := make(chan os.Signal, 1)
	// Without it, SIGHUP would end the process.
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)
	changed := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	if r.path != "" {
		g.Go(func() error { return host.FollowFile(ctx, r.path, r.log, changed) })
	}
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-signals:
				r.answer(ctx, reloadAsk{})
			case <-changed:
				r.answer(ctx, reloadAsk{quiet: true})
			case a := <-r.asks:
				r.answer(ctx, a)
			}
		}
	})
	return g.Wait()
}

func (r *reloader) answer(ctx context.Context, a reloadAsk) {
	waiting := r.restart
	said, err := r.reload(ctx)
	failed := ""
	if err != nil {
		failed = err.Error()
	}
	old := failed == r.failed
	r.failed = failed
	switch {
	case err != nil && (ctx.Err() != nil || a.quiet && old):
	case err != nil:
		r.log.Error("the configuration was not reloaded, and nothing has changed", "error", err)
	case said != "":
		r.log.Info("configuration reloaded", "changed", said)
	case !a.quiet:
		r.log.Info("configuration reloaded; nothing has changed that can change live")
	}
	if len(r.restart) > 0 && err == nil && (!a.quiet || !slices.EqualFunc(waiting, r.restart, sameKey)) {
		r.log.Warn("some changes need a restart of this node", "restart", phrase(r.restart))
	}
	if a.reply == nil {
		return
	}
	// Mostly the file has been read already: a change is noticed without being asked.
	text := "nothing has changed since the file was last read; appliance config show says what is in force"
	if said != "" {
		text = "changed: " + said
	}
	if len(r.restart) > 0 {
		text += "\nneeds a restart of this node: " + phrase(r.restart)
	}
	a.reply <- reloadReply{text, err}
}

// reload reads the file, and applies it if all of it is valid. It returns what has changed.
func (r *reloader) reload(ctx context.Context) (said string, err error) {
	if r.path == "" {
		return "", errors.New("this appliance was started without a file; restart it with other flags")
	}
	next, err := r.load()
	if err != nil {
		return "", err
	}
	live, restart := r.current.Changes(next)
	standing := r.current.WithLive(next)
	// Apply it even if nothing has changed here: files that the configuration names may have.
	if err := r.apply(ctx, standing); err != nil {
		return "", err
	}
	for _, w := range next.Warnings {
		if !slices.Contains(r.current.Warnings, w) {
			r.log.Warn(w.String())
		}
	}
	r.current = standing
	r.restart = restart
	return strings.Join(live, ", "), nil
}

func sameKey(a, b configs.Change) bool { return a.Key == b.Key }

func phrase(changes []configs.Change) string {
	words := make([]string, len(changes))
	for i, c := range changes {
		words[i] = c.String()
	}
	return strings.Join(words, ", ")
}

// ask has the file reloaded and returns what has changed.
func (r *reloader) ask(ctx context.Context) (string, error) {
	reply := make(chan reloadReply, 1)
	select {
	case r.asks <- reloadAsk{reply: reply}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	select {
	case a := <-reply:
		return a.said, a.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// handle answers POST /reload on the root-only socket.
func (r *reloader) handle(mux *http.ServeMux) {
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, req *http.Request) {
		said, err := r.ask(req.Context())
		if err != nil {
			http.Error(w, "nothing has changed: "+err.Error(), http.StatusConflict)
			return
		}
		fmt.Fprintln(w, said)
	})
}
