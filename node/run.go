package node

import (
	"context"
	"errors"
	"io"
	"time"

	"appliance/configs"
	"appliance/host"
	"appliance/node/lifecycle"
	"appliance/status/web"
)

// Options say what a node runs.
type Options struct {
	Config  *configs.Config
	File    string                          // the file that Config was read from; empty: there is none
	Reload  func() (*configs.Config, error) // reads the configuration again
	Version string
	Log     io.Writer
}

// Run puts a configuration into force until ctx ends. It finds whatever is wrong before it touches anything on
// the host.
func Run(ctx context.Context, o Options) error {
	cfg := o.Config
	book, err := host.NewLog(o.Log, cfg.Log.Format, cfg.Log.Level)
	if err != nil {
		return err
	}
	log := book.Logger
	for _, w := range cfg.Warnings {
		log.Warn(w.String())
	}
	host.Prioritize(log)
	site, err := survey(cfg)
	if err != nil {
		return err
	}
	n, err := newNode(cfg, site, o.Version, log)
	if err != nil {
		return err
	}
	if n.light() {
		host.PrioritizeLight(log)
	}
	defer func() {
		if err := n.close(); err != nil {
			log.Warn("something stays behind; `appliance cleanup` removes it", "error", err)
		}
	}()
	if n.balancer != nil {
		if err := errors.Join(n.checkConflicts(), n.check(ctx)); err != nil {
			return err
		}
	}
	socket, err := web.ListenUnix(cfg.Socket)
	if err != nil {
		return err
	}
	if err := n.observer.Listen(); err != nil {
		socket.Close()
		return err
	}
	log.Info("appliance starts", "version", o.Version, "id", site.self.ID, "role", site.self.Role, "vips", cfg.VIPs)

	reload := newReloader(o.File, cfg, o.Reload, log)
	reload.apply = func(ctx context.Context, next *configs.Config) error {
		if err := n.put(ctx, next); err != nil {
			return err
		}
		return book.Reconfigure(next.Log.Level)
	}
	parts := append(n.observer.Parts(),
		lifecycle.Part{Name: "log level", Run: book.FollowSignals},
		lifecycle.Part{Name: "status", Run: func(ctx context.Context) error {
			return web.Serve(ctx, socket, n.handler(book, reload.handle, n.handleBackends, n.handlePeers))
		}},
		lifecycle.Part{Name: "reload", Run: reload.run},
		// Among the first to start, so that the hooks hear of the end.
		lifecycle.Part{Name: "hooks", Run: n.hooks.Run},
	)
	err = lifecycle.RunInOrder(ctx, append(parts, n.parts()...))
	if ctx.Err() != nil && err == nil {
		log.Info("appliance has stopped", "after", time.Since(n.started).Round(time.Second))
	}
	return err
}
