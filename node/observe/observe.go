// Package observe shows a node to people and to machines: journal, page, metrics.
package observe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"appliance/arp"
	"appliance/balancer"
	"appliance/configs"
	"appliance/keyfile"
	"appliance/mask"
	"appliance/node/lifecycle"
	"appliance/status"
	"appliance/status/history"
	"appliance/status/journal"
	"appliance/status/metrics"
	"appliance/status/report"
	"appliance/status/web"
)

// Config is what an Observer shows, and where.
type Config struct {
	Admin   configs.Admin
	DataDir string
	VIPs    []netip.Addr
	ID      string
	Version string
	// Snapshot returns the node's state. It must not block.
	Snapshot func() status.Snapshot
	// Ask returns what another peer reports; nil where there are no others.
	Ask func(ctx context.Context, id string) ([]byte, error)
	// Orders are what users may order where the configuration lets them.
	Orders *web.PageOrders
	Log    *slog.Logger
}

// An Observer shows the node to people and to machines. It changes nothing of the node itself; orders of the page are
// handed to who does.
type Observer struct {
	Journal *journal.Journal
	Metrics *metrics.Metrics

	cfg       Config
	samples   *history.Samples
	page      *web.Page
	listeners []adminListener
}

type adminListener struct {
	net.Listener
	handler http.Handler
}

// Open reads the journal that earlier runs wrote.
func Open(c Config) *Observer {
	shown := c.Version
	if c.Admin.HideVersion {
		shown = ""
	}
	o := &Observer{
		Journal: journal.Open(c.DataDir, c.ID, c.Log),
		Metrics: metrics.New(c.Snapshot, shown),
		cfg:     c,
		samples: history.New(),
	}
	o.page = web.NewPage(web.PageConfig{
		Snapshot: c.Snapshot, Journal: o.Journal, Samples: o.samples, Ask: c.Ask,
		HideVersion: c.Admin.HideVersion, Log: c.Log,
	})
	return o
}

// Listen opens the admin listeners. A port that is taken is an error only if the configuration asks for it.
func (o *Observer) Listen() error {
	a := o.cfg.Admin
	token, err := readToken(a.TokenFile)
	if err != nil {
		return err
	}
	users := make(map[string]string, len(a.Users))
	for _, u := range a.Users {
		users[u.Name] = u.PasswordHash
	}
	var orders *web.PageOrders
	if a.Operate {
		orders = o.cfg.Orders
	}
	for _, at := range a.Listen {
		l, err := web.Listen(at, o.cfg.VIPs)
		if err != nil && a.IsDefault() {
			o.cfg.Log.Warn("there is no status page; choose a free port, or write off", "error", err)
			continue
		}
		unix := strings.HasPrefix(at, "unix:")
		if err == nil && a.CertFile != "" && !unix {
			var secured net.Listener
			if secured, err = web.Secure(l, a.CertFile, a.CertKeyFile); err != nil {
				l.Close()
			}
			l = secured
		}
		if err != nil {
			return errors.Join(err, o.Close())
		}
		o.listeners = append(o.listeners, adminListener{l, web.Admin(web.AdminConfig{
			Snapshot: o.cfg.Snapshot, Page: o.page, Journal: o.Journal, Metrics: o.Metrics.Handler(),
			Path: a.Path, Hosts: a.Hosts, Users: users, Token: token, HideVersion: a.HideVersion, Unix: unix, Orders: orders,
		})})
	}
	return nil
}

// Close closes listeners that no part serves.
func (o *Observer) Close() error {
	var errs []error
	for _, l := range o.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// View returns what the other peers' pages show of this node.
func (o *Observer) View() ([]byte, error) {
	return report.Make(o.cfg.Snapshot(), o.Journal, o.samples).Pack()
}

// Parts are the journal, which outlives everything else so that it records the end too, and what serves readers.
func (o *Observer) Parts() []lifecycle.Part {
	return []lifecycle.Part{
		{Name: "journal", Run: o.keepJournal},
		{Name: "admin", Run: o.serve},
	}
}

// keepJournal records the start and the end of the process. If the last entry is not an orderly stop, the run before
// was cut off.
func (o *Observer) keepJournal(ctx context.Context) error {
	last, any := o.Journal.Last()
	if any && (last.Kind != status.OfProcess || last.What != stopped) {
		o.Note(status.Event{Kind: status.OfProcess, Bad: true, What: "the life before this one was cut off",
			Reason: "it was killed, crashed, or the host went down; its last entry is of " +
				last.Time.UTC().Format(time.DateTime) + " UTC"})
	}
	o.Note(status.Event{Kind: status.OfProcess, What: "started", Reason: "version " + o.cfg.Version})
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	done := make(chan error, 1)
	go func() { done <- o.Journal.Run(running) }()
	select {
	case <-ctx.Done():
		o.Note(status.Event{Kind: status.OfProcess, What: stopped})
		end()
		return <-done
	case err := <-done:
		return err
	}
}

const stopped = "stopped in order"

// serve answers readers until ctx ends.
func (o *Observer) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return o.page.Run(ctx) })
	g.Go(func() error { return o.samples.Run(ctx, o.cfg.Snapshot) })
	g.Go(func() error { return o.forget(ctx) })
	for _, l := range o.listeners {
		g.Go(func() error { return web.Serve(ctx, l.Listener, l.handler, o.cfg.Log) })
	}
	return g.Wait()
}

// forget drops the metrics of load balancers that a reload has removed.
func (o *Observer) forget(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var names []string
		for _, lb := range o.cfg.Snapshot().LoadBalancers {
			names = append(names, lb.Name)
		}
		o.Metrics.Keep(names)
	}
}

// Note records an event and counts it.
func (o *Observer) Note(e status.Event) {
	e.What, e.Reason = mask.Text(e.What), mask.Text(e.Reason)
	o.Journal.Add(e)
	o.Metrics.Noted(e)
}

// Balanced records an event of the balancer.
func (o *Observer) Balanced(e balancer.LoadBalancerEvent) {
	out := status.Event{
		Time: e.Time, Kind: status.OfService, Subject: e.LoadBalancer, What: "is " + e.To,
		From: e.From, To: e.To, Reason: e.Reason,
	}
	switch {
	case e.Backend != "":
		out.Kind, out.Subject = status.OfBackend, e.LoadBalancer+" / "+e.Backend
		out.Bad = e.To == string(balancer.Down)
	case e.Plane:
		out.What = "is served by data plane " + e.To
	case e.Unserved:
		out.Bad = true
	}
	o.Note(out)
}

// Claimed records that another machine claims a VIP.
func (o *Observer) Claimed(c arp.Claim) {
	o.Note(status.Event{Time: c.At, Kind: status.OfClaim, Bad: true, Subject: c.VIP.String(),
		What: "another machine claims it", Reason: fmt.Sprintf("%s on %s", c.MAC, c.Interface)})
}

// CheckToken says what is wrong with the file of the bearer token.
func CheckToken(a configs.Admin) error {
	_, err := readToken(a.TokenFile)
	return err
}

// readToken reads a bearer token. Whoever can read the file can read the status, so only its owner may.
func readToken(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	data, err := keyfile.Read(file, keyfile.OwnerOnly)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("admin.tokenFile: %w; write one with `(umask 077; openssl rand -hex 32 > %s)`", err, file)
	}
	if err != nil {
		return "", configs.Problem{Key: "admin.tokenFile", Text: err.Error()}
	}
	token := strings.TrimSpace(string(data))
	if len(token) < 16 || len(token) > 512 || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("admin.tokenFile %s: a token is one word of 16 to 512 characters; `openssl rand -hex 32 > %s`",
			file, file)
	}
	return token, nil
}
