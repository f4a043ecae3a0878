package status

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"html/template"
	"log/slog"
	"sync"
	"time"
)

//go:embed page
var pageFiles embed.FS

const (
	// renderEvery is the pace of the page while somebody looks and nothing
	// happens; renderAtMost is the pace when a lot does.
	renderEvery  = time.Second
	renderAtMost = 200 * time.Millisecond
	// waitForPeers is how long a first look waits for the others' reports.
	waitForPeers = 300 * time.Millisecond
)

// PageConfig is what a Page shows.
type PageConfig struct {
	Snapshot func() Snapshot
	Journal  *Journal
	Samples  *Samples
	// Ask fetches the packed report of another peer over the group's
	// channel; nil means that this node is all there is.
	Ask func(ctx context.Context, id string) ([]byte, error)
	// HideVersion leaves out what tells an attacker which holes there are.
	HideVersion bool
	Log         *slog.Logger
}

// A Page is the whole group in HTML, rendered once for all who look, and only
// while somebody does. It is kept in parts, each with the revision in which it
// changed last, so a listener needs no queue: it is sent whatever is newer than
// what it has, however slowly it reads.
type Page struct {
	cfg        PageConfig
	templates  *template.Template
	neighbours *neighbours
	self       neighbour
	wanted     chan chan struct{}
	poke       chan struct{}

	mu       sync.Mutex
	shown    rendering
	layout   uint64 // the revision in which the list of parts changed
	changed  chan struct{}
	watching int
}

// rendering is the page at one moment.
type rendering struct {
	parts         []pagePart
	revision      uint64
	at            time.Time
	node, version string
}

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
		poke:    make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
	p.templates = template.Must(template.New("").Funcs(templateFuncs()).ParseFS(pageFiles, "page/*.html"))
	p.neighbours = &neighbours{ask: cfg.Ask, told: p.nudge}
	return p
}

// nudge asks for a new rendering soon, if somebody looks.
func (p *Page) nudge() {
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

// Run renders until ctx ends.
func (p *Page) Run(ctx context.Context) error {
	defer p.neighbours.wg.Wait()
	tick := time.NewTicker(renderEvery)
	defer tick.Stop()
	_, event := p.cfg.Journal.Since(0)
	for {
		urgent := false // something has happened: what others said before may be over
		select {
		case <-ctx.Done():
			return nil
		case done := <-p.wanted:
			p.look(ctx, true, false)
			close(done)
			continue
		case <-tick.C:
		case <-p.poke:
		case <-event:
			_, event = p.cfg.Journal.Since(0)
			urgent = true
		}
		if !p.watched() {
			continue
		}
		p.look(ctx, false, urgent)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(renderAtMost):
		}
	}
}

func (p *Page) watched() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.watching > 0
}

// look asks the others and renders; with patience it waits for them a moment.
func (p *Page) look(ctx context.Context, patience, urgent bool) {
	p.mu.Lock()
	young := time.Since(p.shown.at) < renderAtMost
	p.mu.Unlock()
	if young && patience {
		return // many came at once
	}
	s := p.cfg.Snapshot()
	if p.cfg.Ask != nil {
		var ids []string
		for _, peer := range s.Group.Peers {
			if !peer.Self {
				ids = append(ids, peer.ID)
			}
		}
		p.neighbours.fetch(ctx, ids, urgent)
	}
	for end := time.Now().Add(waitForPeers); patience && p.neighbours.busy() && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(5 * time.Millisecond)
	}
	if err := p.render(s); err != nil {
		p.cfg.Log.Error("the status page cannot be rendered", "error", err)
	}
}

// render makes the parts anew and notes which have changed.
func (p *Page) render(s Snapshot) error {
	if p.cfg.HideVersion {
		s.Version = ""
	}
	p.self.ID = s.ID
	p.self.take(MakeReport(s, p.cfg.Journal, p.cfg.Samples), time.Now())
	m := newModel(p.self, p.neighbours.all(), p.cfg.Samples)
	if p.cfg.HideVersion {
		m.hideVersions()
	}
	var parts []pagePart
	add := func(id, name string, data any) error {
		var b bytes.Buffer
		if err := p.templates.ExecuteTemplate(&b, name, data); err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		parts = append(parts, pagePart{ID: id, HTML: template.HTML(b.String())})
		return nil
	}
	for _, one := range []struct{ id, name string }{
		{"verdict", "verdict.html"}, {"addresses", "addresses.html"}, {"nodes", "nodes.html"},
	} {
		if err := add(one.id, one.name, m); err != nil {
			return err
		}
	}
	for i, lb := range m.LoadBalancers {
		if err := add(fmt.Sprintf("lb-%d", i), "loadbalancer.html", lb); err != nil {
			return err
		}
	}
	if err := add("history", "history.html", m); err != nil {
		return err
	}
	if err := add("events", "events.html", m); err != nil {
		return err
	}
	p.publish(rendering{parts: parts, at: s.Time, node: s.ID, version: s.Version})
	return nil
}

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

// current has the page rendered if it is old, and returns it.
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

// watch keeps the page rendered until the returned function is called.
func (p *Page) watch() (stop func()) {
	p.mu.Lock()
	p.watching++
	p.mu.Unlock()
	p.nudge()
	return func() {
		p.mu.Lock()
		p.watching--
		p.mu.Unlock()
	}
}

// since is what changed after a revision, and a channel that is closed when
// more does. layout says that parts have come or gone.
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
