package web

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"appliance/status"
	"appliance/status/history"
	"appliance/status/journal"
	"appliance/status/overview"
	"appliance/status/report"
)

//go:embed page
var pageFiles embed.FS

const (
	// renderEvery is the pace of the page while somebody looks and nothing happens, renderAtMost while a lot happens.
	renderEvery  = time.Second
	renderAtMost = 200 * time.Millisecond
	// waitForPeers is how long the first viewer waits for the reports of the peers.
	waitForPeers = 300 * time.Millisecond
)

// PageConfig says what a Page shows.
type PageConfig struct {
	Snapshot func() status.Snapshot
	Journal  *journal.Journal
	Samples  *history.Samples
	// Ask fetches the packed report of a peer over the group's channel; nil means that there are no peers.
	Ask func(ctx context.Context, id string) ([]byte, error)
	// HideVersion leaves out the versions, which would tell an attacker which vulnerabilities there are.
	HideVersion bool
	Log         *slog.Logger
}

// A Page is the whole group in HTML. It is rendered once for all viewers, and only while there are any. It is kept in
// parts, each with the revision in which it changed last, so a viewer needs no queue: however slowly it reads, it gets
// the parts that are newer than what it has.
type Page struct {
	cfg       PageConfig
	templates *template.Template
	peers     *report.Collector
	self      report.PeerReport
	wanted    chan chan struct{}
	wake      chan struct{}

	mu      sync.Mutex
	shown   rendering
	layout  uint64 // the revision in which the list of parts changed
	changed chan struct{}
	viewers int
}

// A rendering is the page at one moment.
type rendering struct {
	parts         []pagePart
	revision      uint64
	at            time.Time
	node, version string
}

// A pagePart is one section of the page.
type pagePart struct {
	ID       string
	HTML     template.HTML
	revision uint64
}

// NewPage parses the embedded templates.
func NewPage(cfg PageConfig) *Page {
	p := &Page{
		cfg:     cfg,
		wanted:  make(chan chan struct{}),
		wake:    make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
	p.templates = template.Must(template.New("").Funcs(templateFuncs()).ParseFS(pageFiles, "page/*.html"))
	p.peers = report.NewCollector(cfg.Ask, p.wakeUp)
	return p
}

// write answers with a whole document.
func (p *Page) write(w http.ResponseWriter, status int, name string, data any) {
	var b bytes.Buffer
	if err := p.templates.ExecuteTemplate(&b, name, data); err != nil {
		p.cfg.Log.Error("the page cannot be rendered", "template", name, "error", err)
		http.Error(w, "the page cannot be rendered; the log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

// wakeUp has the page rendered again soon, if somebody looks.
func (p *Page) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run renders until ctx ends.
func (p *Page) Run(ctx context.Context) error {
	p.follow(ctx)
	p.peers.Wait()
	return nil
}

func (p *Page) follow(ctx context.Context) {
	tick := time.NewTicker(renderEvery)
	defer tick.Stop()
	_, event := p.cfg.Journal.Since(0)
	for {
		urgent := false // an event happened, so the last reports of the peers may be out of date
		select {
		case <-ctx.Done():
			return
		case done := <-p.wanted:
			p.update(ctx, true, false)
			close(done)
			continue
		case <-tick.C:
		case <-p.wake:
		case <-event:
			_, event = p.cfg.Journal.Since(0)
			urgent = true
		}
		if !p.hasViewers() {
			continue
		}
		p.update(ctx, false, urgent)
		select {
		case <-ctx.Done():
			return
		case <-time.After(renderAtMost):
		}
	}
}

func (p *Page) hasViewers() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.viewers > 0
}

// update asks the peers and renders; with patience it waits a moment for their answers.
func (p *Page) update(ctx context.Context, patience, urgent bool) {
	p.mu.Lock()
	young := time.Since(p.shown.at) < renderAtMost
	p.mu.Unlock()
	if young && patience {
		return // many viewers came at once
	}
	s := p.cfg.Snapshot()
	if p.cfg.Ask != nil {
		var ids []string
		for _, peer := range s.Group.Peers {
			if !peer.Self {
				ids = append(ids, peer.ID)
			}
		}
		p.peers.Ask(ctx, ids, urgent)
	}
	if patience {
		for end := time.Now().Add(waitForPeers); p.peers.Pending() && time.Now().Before(end) && ctx.Err() == nil; {
			time.Sleep(5 * time.Millisecond)
		}
	}
	if err := p.render(s); err != nil {
		p.cfg.Log.Error("the status page cannot be rendered", "error", err)
	}
}

// render renders all parts and notes which ones changed.
func (p *Page) render(s status.Snapshot) error {
	if p.cfg.HideVersion {
		s.Version = ""
	}
	p.self.ID = s.ID
	p.self.Take(report.Make(s, p.cfg.Journal, p.cfg.Samples), time.Now())
	m := overview.New(p.self, p.peers.All(), p.cfg.Samples)
	if p.cfg.HideVersion {
		m.HideVersions()
	}
	var parts []pagePart
	var failed error
	add := func(id, name string, data any) {
		var b bytes.Buffer
		if err := p.templates.ExecuteTemplate(&b, name, data); err != nil {
			failed = fmt.Errorf("%s: %w", id, err)
		}
		parts = append(parts, pagePart{ID: id, HTML: template.HTML(b.String())})
	}
	add("verdict", "verdict.html", m)
	add("addresses", "addresses.html", m)
	add("nodes", "nodes.html", m)
	if m.WorkersTotal > 0 { // a part of its own: it is long, and changes rarely
		add("workers", "workers.html", m)
	}
	if len(m.Routers) > 0 {
		add("routers", "routers.html", m)
	}
	for i, lb := range m.LoadBalancers {
		add(fmt.Sprintf("lb-%d", i), "loadbalancer.html", lb)
	}
	add("history", "history.html", m)
	add("events", "events.html", m)
	if failed != nil {
		return failed
	}
	p.publish(rendering{parts: parts, at: s.Time, node: s.ID, version: s.Version})
	return nil
}

// publish makes now the page that is shown, with the revisions of its parts.
func (p *Page) publish(now rendering) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.shown
	now.revision = before.revision + 1
	same := len(now.parts) == len(before.parts)
	for i := range now.parts {
		one := &now.parts[i]
		one.revision = now.revision
		if i >= len(before.parts) || before.parts[i].ID != one.ID {
			same = false
		} else if before.parts[i].HTML == one.HTML {
			one.revision = before.parts[i].revision
		}
	}
	if !same {
		p.layout = now.revision
	}
	p.shown = now
	close(p.changed)
	p.changed = make(chan struct{})
}

// current returns the page, rendered again if it is old.
func (p *Page) current(ctx context.Context) (rendering, error) {
	p.mu.Lock()
	old := time.Since(p.shown.at) > renderEvery
	p.mu.Unlock()
	if old {
		done := make(chan struct{})
		select {
		case p.wanted <- done:
		case <-ctx.Done():
			return rendering{}, ctx.Err()
		}
		select {
		case <-done:
		case <-ctx.Done():
			return rendering{}, ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shown, nil
}

// view keeps the page rendered until the returned function is called.
func (p *Page) view() (stop func()) {
	p.mu.Lock()
	p.viewers++
	p.mu.Unlock()
	p.wakeUp()
	return func() {
		p.mu.Lock()
		p.viewers--
		p.mu.Unlock()
	}
}

// since returns what changed after a revision, and a channel that is closed at the next change. layout reports that
// parts have come or gone.
func (p *Page) since(revision uint64) (parts []pagePart, now uint64, layout bool, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range p.shown.parts {
		if one.revision > revision {
			parts = append(parts, one)
		}
	}
	return parts, p.shown.revision, p.layout > revision && revision > 0, p.changed
}
