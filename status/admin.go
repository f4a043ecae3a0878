package status

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

// AdminConfig is what the admin listener shows, and to whom.
type AdminConfig struct {
	Snapshot func() Snapshot
	Page     *Page
	Journal  *Journal
	Metrics  http.Handler
	// Path is where the page is; empty means /.
	Path string
	// Hosts are names by which browsers may call this node, beside its
	// addresses and localhost.
	Hosts []string
	// Users are names and bcrypt hashes of their passwords, Token is a bearer
	// token. Without either, everybody who reaches the listener may look.
	Users       map[string]string
	Token       string
	HideVersion bool
	// Unix is for a unix socket: who may open it may look, by any name.
	Unix bool
}

// Admin serves what there is to see, and nothing that changes anything:
//
//	/ or Path     the page; below it page.css, page.js, live (server-sent)
//	/status.json  this node's snapshot
//	/events       the journal as server-sent events; /events.json lists it
//	/metrics      for Prometheus
//	/healthz      200 while the process answers and its parts run; /livez the same
//	/readyz       200 if this node would serve the VIPs now, else 503
//
// Probes need no credentials, and tell those who have none only yes or no.
func Admin(cfg AdminConfig) http.Handler {
	g := newGate(cfg.Users, cfg.Token, cfg.Hosts)
	if cfg.Unix {
		g = newGate(nil, "", nil)
		g.anyHost = true
	}
	epoch := strconv.FormatInt(time.Now().UnixNano(), 36)
	s := &streams{page: cfg.Page, journal: cfg.Journal, epoch: epoch}
	base := path.Clean("/" + cfg.Path)
	if base != "/" {
		base += "/"
	}

	mux := http.NewServeMux()
	probe := func(pattern string, why func() []string) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, r *http.Request) {
			reasons := why()
			w.Header().Set("Cache-Control", "no-store")
			if len(reasons) == 0 {
				fmt.Fprintln(w, "ok")
				return
			}
			text := strings.Join(reasons, "\n")
			if ok, _ := g.admits(r); !ok && !g.open() {
				text = "not ready"
			}
			http.Error(w, text, http.StatusServiceUnavailable)
		})
	}
	probe("/livez", func() []string { return nil })
	probe("/healthz", func() []string { return nil })
	probe("/readyz", func() []string { return cfg.Snapshot().NotReady })

	guard := func(pattern string, h http.HandlerFunc) { mux.Handle("GET "+pattern, g.guarded(h)) }
	snapshot := func(w http.ResponseWriter, _ *http.Request) {
		v := cfg.Snapshot()
		if cfg.HideVersion {
			v.Version = ""
			for i := range v.Group.Peers {
				v.Group.Peers[i].Version = ""
			}
		}
		w.Header().Set("Cache-Control", "no-store")
		writeJSON(w, v)
	}
	guard("/status.json", snapshot)
	guard("/events", s.events)
	guard("/events.json", s.list)
	guard("/metrics", cfg.Metrics.ServeHTTP)
	guard(base+"{$}", func(w http.ResponseWriter, r *http.Request) { s.servePage(w, r, base) })
	guard(base+"live", s.live)
	for name, kind := range map[string]string{
		"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml",
	} {
		guard(base+name, asset(name, kind))
	}
	if base != "/" {
		guard(base+"status.json", snapshot)
		guard("/{$}", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, base, http.StatusFound) })
	}
	return g.polite(mux)
}

// asset serves an embedded file, which a browser may keep while it is the same.
func asset(name, kind string) http.HandlerFunc {
	data, err := pageFiles.ReadFile("page/" + name)
	if err != nil {
		panic(err) // the embedded files are part of the program
	}
	sum := sha256.Sum256(data)
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("ETag", tag)
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(data))
	}
}

func (s *streams) servePage(w http.ResponseWriter, r *http.Request, base string) {
	now, err := s.page.current(r.Context())
	if err != nil {
		return // the reader went away
	}
	var b bytes.Buffer
	err = s.page.templates.ExecuteTemplate(&b, "layout.html", struct {
		Title, Node, Revision, Version string
		Now                            time.Time
		Root                           string
		Parts                          []pagePart
	}{
		Title: "appliance on " + now.node, Node: now.node, Revision: s.epoch + "." + strconv.FormatUint(now.revision, 10),
		Version: now.version, Now: now.at, Root: strings.Repeat("../", strings.Count(base, "/")-1), Parts: now.parts,
	})
	if err != nil {
		http.Error(w, "the page cannot be rendered; the log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(b.Bytes())
}
