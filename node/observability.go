package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"appliance/arp"
	"appliance/balancer"
	"appliance/configs"
	"appliance/status"
)

// sight is what shows the node to people and to machines. It reads; what it is
// told it keeps for those who look.
type sight struct {
	journal   *status.Journal
	samples   *status.Samples
	metrics   *status.Metrics
	page      *status.Page
	snapshot  func() status.Snapshot
	version   string
	listeners []adminListener
}

type adminListener struct {
	net.Listener
	handler http.Handler
}

// openSight reads the journal of earlier lives. ask is nil where there is nobody
// to ask.
func openSight(cfg *configs.Config, id, version string, log *slog.Logger, snapshot func() status.Snapshot, ask func(context.Context, string) ([]byte, error)) *sight {
	s := &sight{
		journal:  status.OpenJournal(cfg.DataDir, id, log),
		samples:  status.NewSamples(),
		snapshot: snapshot,
		version:  version,
	}
	shown := version
	if cfg.Admin.HideVersion {
		shown = ""
	}
	s.metrics = status.NewMetrics(snapshot, shown)
	s.page = status.NewPage(status.PageConfig{
		Snapshot: snapshot, Journal: s.journal, Samples: s.samples, Ask: ask,
		HideVersion: cfg.Admin.HideVersion, Log: log,
	})
	return s
}

// listen opens the admin listeners. A port that is taken is an error only if
// somebody asked for it.
func (s *sight) listen(cfg *configs.Config, log *slog.Logger) error {
	a := cfg.Admin
	token, err := readToken(a.TokenFile)
	if err != nil {
		return err
	}
	users := make(map[string]string, len(a.Users))
	for _, u := range a.Users {
		users[u.Name] = u.PasswordHash
	}
	for _, at := range a.Listen {
		l, err := status.Listen(at, cfg.VIPs)
		if err != nil && a.IsDefault() {
			log.Warn("there is no status page; choose a free port, or write off", "error", err)
			continue
		}
		unix := strings.HasPrefix(at, "unix:")
		if err == nil && a.CertFile != "" && !unix {
			var secured net.Listener
			if secured, err = status.Secure(l, a.CertFile, a.CertKeyFile); err != nil {
				l.Close()
			}
			l = secured
		}
		if err != nil {
			return errors.Join(err, s.Close())
		}
		s.listeners = append(s.listeners, adminListener{l, status.Admin(status.AdminConfig{
			Snapshot: s.snapshot, Page: s.page, Journal: s.journal, Metrics: s.metrics.Handler(),
			Path: a.Path, Hosts: a.Hosts, Users: users, Token: token, HideVersion: a.HideVersion, Unix: unix,
		})})
	}
	return nil
}

// Close closes listeners that run does not.
func (s *sight) Close() error {
	var errs []error
	for _, l := range s.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// askPeer is how the page gets what the other peers see; a worker has none to
// ask.
func (n *node) askPeer() func(context.Context, string) ([]byte, error) {
	if n.cfg.Worker() {
		return nil
	}
	return func(ctx context.Context, id string) ([]byte, error) { return n.group.View(ctx, id) }
}

// view is what the other peers' pages show of this node.
func (n *node) view() ([]byte, error) {
	return status.MakeReport(n.snapshot(), n.sight.journal, n.sight.samples).Pack()
}

// parts are the journal, which outlives everything else so that it has the
// end in it too, and those who look.
func (s *sight) parts() []part {
	return []part{
		{name: "journal", run: s.keepJournal},
		{name: "admin", run: s.serve},
	}
}

// keepJournal frames the life of the process: a last entry that is no farewell
// says that the life before was cut off.
func (s *sight) keepJournal(ctx context.Context) error {
	last, any := s.journal.Last()
	if any && (last.Kind != status.OfProcess || last.What != stopped) {
		s.note(status.Event{Kind: status.OfProcess, Bad: true, What: "the life before this one was cut off",
			Reason: "it was killed, crashed, or the host went down; its last entry is of " + last.Time.UTC().Format(time.DateTime) + " UTC"})
	}
	s.note(status.Event{Kind: status.OfProcess, What: "started", Reason: "version " + s.version})
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	done := make(chan error, 1)
	go func() { done <- s.journal.Run(running) }()
	select {
	case <-ctx.Done():
		s.note(status.Event{Kind: status.OfProcess, What: stopped})
		end()
		return <-done
	case err := <-done:
		return err
	}
}

const stopped = "stopped in order"

// serve shows what there is to see until ctx ends.
func (s *sight) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.page.Run(ctx) })
	g.Go(func() error { return s.samples.Run(ctx, s.snapshot) })
	g.Go(func() error { return s.forget(ctx) })
	for _, l := range s.listeners {
		g.Go(func() error { return status.Serve(ctx, l.Listener, l.handler) })
	}
	return g.Wait()
}

// forget drops the measures of load balancers that are gone after a reload.
func (s *sight) forget(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var names []string
		for _, lb := range s.snapshot().LoadBalancers {
			names = append(names, lb.Name)
		}
		s.metrics.Keep(names)
	}
}

// note writes an event down and counts it.
func (s *sight) note(e status.Event) {
	s.journal.Add(e)
	s.metrics.Noted(e)
}

// balanced takes what the balancer tells.
func (s *sight) balanced(e balancer.Event) {
	out := status.Event{Time: e.Time, Kind: status.OfService, Subject: e.LoadBalancer, What: "is " + e.To, From: e.From, To: e.To, Reason: e.Reason}
	switch {
	case e.Backend != "":
		out.Kind, out.Subject = status.OfBackend, e.LoadBalancer+" / "+e.Backend
		out.Bad = e.To == string(balancer.Down)
	case e.Plane:
		out.What = "is served by data plane " + e.To
	case strings.HasPrefix(e.To, "without"):
		out.Bad = true
	}
	s.note(out)
}

// claimed takes what the wire heard of other machines.
func (s *sight) claimed(c arp.Claim) {
	s.note(status.Event{Time: c.At, Kind: status.OfClaim, Bad: true, Subject: c.VIP.String(),
		What: "another machine claims it", Reason: fmt.Sprintf("%s on %s", c.MAC, c.Interface)})
}

// readToken reads a bearer token. Who may read it may look, so only root may.
func readToken(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	info, err := os.Stat(file)
	if err != nil {
		return "", fmt.Errorf("admin.tokenFile: %w; write one with `openssl rand -hex 32 > %s`", err, file)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("admin.tokenFile %s: others may read it; `chmod 600 %s`", file, file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("admin.tokenFile: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if len(token) < 16 || len(token) > 512 || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("admin.tokenFile %s: a token is one word of 16 to 512 characters; `openssl rand -hex 32 > %s`", file, file)
	}
	return token, nil
}
