package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"appliance/configs"
	"appliance/status"
)

func startCommand() *cli.Command {
	return &cli.Command{
		Name:         "start",
		Usage:        "run this node of the group until SIGTERM",
		Flags:        settingFlags(),
		OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			return start(c.Context, cfg, configPath(c), func() (*configs.Config, error) { return loadConfig(c) }, c.App.ErrWriter)
		},
	}
}

// start puts cfg into force until ctx ends. Whatever can be found wrong is
// found before anything on the host is touched. load reads it again, when the
// file at path has changed.
func start(ctx context.Context, cfg *configs.Config, path string, load func() (*configs.Config, error), stderr io.Writer) error {
	book, err := newLogbook(stderr, cfg.Log)
	if err != nil {
		return err
	}
	log := book.Logger
	for _, w := range cfg.Warnings {
		log.Warn(w.String())
	}
	prioritise(log)
	site, err := survey(cfg)
	if err != nil {
		return err
	}
	n, err := newNode(cfg, site, log)
	if err != nil {
		return err
	}
	if n.light() {
		hurry(log)
	}
	defer func() {
		if err := n.close(); err != nil {
			log.Warn("something stays behind; `appliance cleanup` removes it", "error", err)
		}
	}()
	if n.balancer != nil {
		if err := errors.Join(n.unoccupied(), n.check(ctx)); err != nil {
			return err
		}
	}
	socket, err := status.ListenUnix(cfg.Socket)
	if err != nil {
		return err
	}
	if err := n.sight.listen(cfg, log); err != nil {
		socket.Close()
		return err
	}
	log.Info("appliance starts", "version", versionString(), "id", site.self.ID, "role", site.self.Role, "vips", cfg.VIPs)

	reload := newReloader(path, cfg, load, log)
	reload.apply = func(ctx context.Context, next *configs.Config) error {
		if err := n.put(ctx, next); err != nil {
			return err
		}
		return book.reconfigure(next.Log.Level)
	}
	parts := append(n.sight.parts(),
		part{name: "log level", run: book.followSignals},
		part{name: "status", run: func(ctx context.Context) error {
			return status.Serve(ctx, socket, n.handler(book, reload.handle, n.handleOrders, n.handlePeers))
		}},
		part{name: "reload", run: reload.run},
		// Among the first, so that the last words are heard.
		part{name: "hooks", run: n.hooks.Run},
	)
	err = runInOrder(ctx, append(parts, n.parts()...))
	if ctx.Err() != nil && err == nil {
		log.Info("appliance has stopped", "after", time.Since(n.started).Round(time.Second))
	}
	return err
}
